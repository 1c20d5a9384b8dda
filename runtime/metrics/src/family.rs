//! What a metric is: name, help, unit, labels, edges; and the handles of those that go through the façade.
//!
//! Families are made in [`crate::names`] and nowhere else: their fields are this crate's own.

use crate::label::Label;
use metrics::{Key, Level, Metadata};
use std::sync::Arc;

/// What a metric counts in. Seconds, never milliseconds: it is what Prometheus expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Tokens.
    Tokens,
    /// Requests.
    Requests,
    /// Micro-batches of a schedule.
    MicroBatches,
    /// A share from 0 to 1, or a quotient.
    Ratio,
    /// Times that something happened.
    Events,
}

/// A metric with all its label values.
#[derive(Debug)]
pub struct Family {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) unit: Unit,
    pub(crate) labels: &'static [Label],
    /// Upper edges of a histogram's buckets, ascending; empty for others.
    pub(crate) edges: &'static [f64],
}

impl Family {
    /// Name, prefix included.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// One sentence.
    pub fn help(&self) -> &'static str {
        self.help
    }

    /// What it counts in.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// Its labels, in order.
    pub fn labels(&self) -> &'static [Label] {
        self.labels
    }

    /// Upper edges of a histogram's buckets, ascending; empty for others.
    pub fn edges(&self) -> &'static [f64] {
        self.edges
    }

    /// Labels that whoever emits it must give, after those of the process.
    pub(crate) fn own_labels(&self) -> &'static [Label] {
        let process = self.labels.iter().take_while(|label| matches!(label, Label::ModelName | Label::Engine)).count();
        &self.labels[process..]
    }

    /// Labels with their values. Panics on a value outside its bound: that is a fault in the program, not in its input.
    pub(crate) fn values<'a>(
        &self,
        identity: &'a Identity,
        own: &'a [&'a str],
    ) -> impl Iterator<Item = (Label, &'a str)> {
        let labels = self.own_labels();
        assert_eq!(labels.len(), own.len(), "{} takes {labels:?}", self.name);
        for (label, value) in labels.iter().zip(own) {
            assert!(label.allows(value), "{}: `{value}` is outside the bound of {label:?}", self.name);
        }
        let process = self.labels[..self.labels.len() - labels.len()].iter().map(|label| match label {
            Label::ModelName => (*label, &*identity.model_name),
            _ => (*label, &*identity.engine),
        });
        let schedule = identity.schedule.iter().map(|schedule| (Label::Schedule, &**schedule));
        process.chain(schedule).chain(labels.iter().copied().zip(own.iter().copied()))
    }

    fn key(&self, identity: &Identity, own: &[&str]) -> Key {
        let labels: Vec<metrics::Label> = self
            .values(identity, own)
            .map(|(label, value)| metrics::Label::new(label.key(), value.to_owned()))
            .collect();
        Key::from_parts(self.name, labels)
    }
}

/// Values of the labels that are the same in a whole process, or for one of several contenders in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    model_name: Arc<str>,
    engine: Arc<str>,
    schedule: Option<Arc<str>>,
}

impl Identity {
    /// The first engine of a process, and the model it serves.
    pub fn new(model_name: &str) -> Self {
        let model_name = if model_name.is_empty() { "unnamed" } else { model_name };
        Self { model_name: model_name.into(), engine: "0".into(), schedule: None }
    }

    /// The same for one of several contenders, which its series name.
    pub fn with_schedule(&self, schedule: &str) -> Self {
        Self { schedule: Some(schedule.into()), ..self.clone() }
    }
}

/// Through the façade: a whole number that only rises.
#[derive(Debug)]
pub struct Counter(pub(crate) Family);

/// Through the façade: samples in buckets.
#[derive(Debug)]
pub struct Histogram(pub(crate) Family);

/// Read at a scrape: a number that only rises, seconds for one.
#[derive(Debug)]
pub struct SampledCounter(pub(crate) Family);

/// Read at a scrape: a number that is as it is.
#[derive(Debug)]
pub struct SampledGauge(pub(crate) Family);

/// Read at a scrape: samples in buckets.
#[derive(Debug)]
pub struct SampledHistogram(pub(crate) Family);

/// Counts without looking anything up. Does nothing if no exporter was installed when it was made.
#[derive(Clone, Debug)]
pub struct CounterHandle(metrics::Counter);

/// Takes samples without looking anything up. Does nothing if no exporter was installed when it was made.
#[derive(Clone, Debug)]
pub struct HistogramHandle(metrics::Histogram);

const METADATA: Metadata<'static> = Metadata::new("rally", Level::INFO, None);

impl Counter {
    /// The counter of these labels: those of the process, then `own`.
    pub fn handle(&self, identity: &Identity, own: &[&str]) -> CounterHandle {
        let key = self.0.key(identity, own);
        CounterHandle(metrics::with_recorder(|recorder| recorder.register_counter(&key, &METADATA)))
    }
}

impl Histogram {
    /// The histogram of these labels: those of the process, then `own`.
    pub fn handle(&self, identity: &Identity, own: &[&str]) -> HistogramHandle {
        let key = self.0.key(identity, own);
        HistogramHandle(metrics::with_recorder(|recorder| recorder.register_histogram(&key, &METADATA)))
    }
}

impl SampledHistogram {
    /// Upper edges of its buckets, ascending, in its unit.
    pub fn edges(&self) -> &'static [f64] {
        self.0.edges
    }
}

impl CounterHandle {
    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.increment(count);
    }
}

impl HistogramHandle {
    /// Takes a sample, in the family's unit.
    pub fn record(&self, value: f64) {
        self.0.record(value);
    }
}
