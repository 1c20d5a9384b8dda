//! The page that a scrape gets: what went through the façade, then what is read at the moment.

use crate::exposition::Exposition;
use crate::family::Identity;
use crate::names::{self, FAMILIES};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What keeps its figures itself and writes them when asked.
pub trait Source: Send + Sync {
    /// Writes its families; each at most once.
    fn write(&self, page: &mut Exposition<'_>);
}

/// Whether the process can do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// It gets ready.
    Starting,
    /// It works.
    Serving,
    /// It has failed.
    Failed,
}

impl Health {
    /// In a word, as `/health` says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "ok",
            Self::Failed => "failed",
        }
    }
}

/// Why there can be no exporter.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// Another one is installed in this process: a program that embeds rally may have its own.
    #[error("metrics cannot be exported: {0}")]
    Install(#[from] BuildError),
}

/// Collects what this process measures. Clones are the same exporter.
#[derive(Clone)]
pub struct Exporter(Arc<Inner>);

struct Inner {
    facade: PrometheusHandle,
    identity: Identity,
    source: Mutex<Option<(Arc<dyn Source>, Identity)>>,
    health: AtomicU8,
}

impl Exporter {
    /// Installs the exporter behind the façade. Handles made before it do nothing, so this comes first.
    pub fn install(identity: Identity) -> Result<Self, ExporterError> {
        let mut builder = PrometheusBuilder::new();
        for family in FAMILIES.iter().filter(|family| !family.edges.is_empty()) {
            builder = builder.set_buckets_for_metric(Matcher::Full(family.name.into()), family.edges)?;
        }
        let facade = builder.install_recorder()?;
        names::describe();
        let health = AtomicU8::new(Health::Starting as u8);
        Ok(Self(Arc::new(Inner { facade, identity, source: Mutex::new(None), health })))
    }

    /// Labels of this process.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// Reads `source` at scrapes from now on, under `identity`, in place of the one before: to Prometheus a second run in one
    /// process looks like a restart.
    pub fn watch(&self, source: Arc<dyn Source>, identity: Identity) {
        *self.source() = Some((source, identity));
    }

    fn source(&self) -> std::sync::MutexGuard<'_, Option<(Arc<dyn Source>, Identity)>> {
        // Nothing panics while it holds the lock but a `Source`, and that leaves the option as it was.
        self.0.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how the process does.
    pub fn set_health(&self, health: Health) {
        self.0.health.store(health as u8, Ordering::Relaxed);
    }

    /// How the process does.
    pub fn health(&self) -> Health {
        let health = self.0.health.load(Ordering::Relaxed);
        [Health::Starting, Health::Serving, Health::Failed][usize::from(health).min(2)]
    }

    /// The page.
    pub fn render(&self) -> String {
        let mut text = self.0.facade.render();
        let source = self.source().clone();
        if let Some((source, identity)) = source {
            let mut page = Exposition::new(&identity);
            source.write(&mut page);
            text.push_str(&page.into_text());
        }
        text
    }

    /// Puts samples that the façade has kept into their buckets. A scrape does that too; without one they would pile up.
    pub fn tidy(&self) {
        self.0.facade.run_upkeep();
    }
}
