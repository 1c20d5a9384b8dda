//! What is measured: schedules of the graph, other graphs, and the undivided model on the same devices.

use super::BenchArgs;
use crate::error::{Blame, CliError};
use crate::session::{self, SessionArgs};
use rally_engine::schedule::policy::Schedule;
use rally_graph::kinds::KindRegistry;
use rally_graph::undivided::undivided;
use rally_load::LoadLimits;
use rally_stages::checkpoint::SharedWeights;
use rally_stages::deployment::{Choices, Deployment};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// What a contender is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What was asked about.
    Candidate,
    /// The undivided model on the same devices.
    NoAfd,
}

/// A deployment under one schedule.
pub struct Contender {
    /// The graph and its model.
    pub deployment: Rc<Deployment>,
    /// The schedule, its label as given.
    pub schedule: Schedule,
    /// The model's weights, shared with contenders of the same model.
    pub weights: Rc<SharedWeights>,
    /// The graph file.
    pub path: PathBuf,
    /// What it is for.
    pub part: Part,
}

impl Contender {
    /// Longest sequence it takes.
    pub fn limits(&self) -> Result<LoadLimits, CliError> {
        let config = self.deployment.planner_config().or_mistake()?;
        let capacity = config.pages_per_device as usize * config.page_tokens;
        // The last token is never fed back, so it needs no place in the cache.
        Ok(LoadLimits { total_tokens: config.max_positions.min(capacity.saturating_add(1)) })
    }

    /// Name in tables. `alone`: all contenders are schedules of one graph.
    pub fn name(&self, alone: bool) -> String {
        match (self.part, alone) {
            (Part::NoAfd, _) => "no AFD".into(),
            (Part::Candidate, true) => self.schedule.label.clone(),
            (Part::Candidate, false) => format!("{} {}", self.deployment.spec.name, self.schedule.label),
        }
    }

    /// The graph, as results name it: with a hash, so that a figure cannot be held against another version of the file.
    pub fn graph_json(&self) -> Value {
        json!({
            "name": self.deployment.spec.name,
            "path": self.path.display().to_string(),
            "hash": format!("{:016x}", fnv1a(self.deployment.positions.text().as_bytes())),
        })
    }

    /// The model, as results name it.
    pub fn model_json(&self) -> Value {
        let shape = &self.deployment.shape;
        json!({
            "family": shape.family,
            "layers": shape.layers.len(),
            "hidden": shape.hidden,
            "experts": shape.experts,
            "vocab": shape.vocab,
            "weights": self.deployment.weights_source,
        })
    }
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Opens everything that is to be measured, in the order of the arguments. Reads no weights yet.
pub fn open_all(args: &BenchArgs) -> Result<Vec<Contender>, CliError> {
    let mut opened = Opened::default();
    let main = Rc::new(session::open(&args.session)?);
    let path = &args.session.graph;
    if args.compare.is_empty() {
        opened.add(&main, path, None, Part::Candidate)?;
    }
    for schedule in &args.compare {
        opened.add(&main, path, Some(schedule), Part::Candidate)?;
    }
    for path in &args.against_graph {
        let session = SessionArgs { graph: path.clone(), schedule: None, ..args.session.clone() };
        let other = Rc::new(session::open(&session)?);
        opened.add(&other, path, None, Part::Candidate)?;
    }
    if args.baseline.is_some() {
        let other = Rc::new(open_undivided(&args.session, &main)?);
        opened.add(&other, path, None, Part::NoAfd)?;
    }
    Ok(opened.contenders)
}

#[derive(Default)]
struct Opened {
    contenders: Vec<Contender>,
    weights: HashMap<String, Rc<SharedWeights>>,
}

impl Opened {
    fn add(
        &mut self,
        deployment: &Rc<Deployment>,
        path: &Path,
        schedule: Option<&str>,
        part: Part,
    ) -> Result<(), CliError> {
        let spec = &deployment.spec.schedule;
        let schedule = match schedule {
            Some(text) => Schedule::parse(text, spec).or_mistake()?,
            None => deployment.same_schedule().or_mistake()?,
        };
        let fresh = || Rc::new(SharedWeights::new(Arc::clone(&deployment.weights)));
        let weights = Rc::clone(self.weights.entry(deployment.weights_id()).or_insert_with(fresh));
        self.contenders.push(Contender {
            deployment: Rc::clone(deployment),
            schedule,
            weights,
            path: path.into(),
            part,
        });
        Ok(())
    }
}

/// The undivided deployment of the same devices, judged like any graph.
fn open_undivided(session: &SessionArgs, main: &Deployment) -> Result<Deployment, CliError> {
    let mistake = |what: String| CliError::Mistake(format!("--baseline no-afd: {what}"));
    let spec = undivided(&main.spec, KindRegistry::shared()).map_err(|error| mistake(error.to_string()))?;
    let text = serde_json::to_string_pretty(&spec).or_failure()?;
    let choices = Choices { schedule: None, ..session.choices() };
    Deployment::open_text(&session.graph, &text, &choices).map_err(|error| mistake(error.to_string()))
}
