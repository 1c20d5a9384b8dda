//! What is measured: schedules of the graph, other graphs, and the undivided model on the same devices.

use super::BenchArgs;
use crate::cost_args::Costs;
use crate::error::{Blame, CliError};
use crate::identity::Identity;
use crate::machine::Machine;
use crate::session::{self, SessionArgs};
use rally_engine::schedule::policy::Schedule;
use rally_graph::kinds::KindRegistry;
use rally_graph::undivided::undivided;
use rally_load::{Load, LoadLimits};
use rally_stages::checkpoint::SharedWeights;
use rally_stages::deployment::{Choices, Deployment};
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
    /// In tables: no other contender has the same.
    pub name: String,
}

impl Contender {
    /// Longest sequence it takes.
    pub fn limits(&self) -> LoadLimits {
        session::load_limits(&self.deployment)
    }

    /// Short name. `alone`: all contenders are schedules of one graph.
    fn short_name(&self, alone: bool) -> String {
        match (self.part, alone) {
            (Part::NoAfd, _) => "no AFD".into(),
            (Part::Candidate, true) => self.schedule.label.clone(),
            (Part::Candidate, false) => format!("{} {}", self.deployment.spec.name, self.schedule.label),
        }
    }
}

/// Opens everything that is to be measured, in the order of the arguments. Reads no weights yet.
/// What each `greedy` among them orders by is set by [`measured_costs`].
pub fn open_all(args: &BenchArgs) -> Result<Vec<Contender>, CliError> {
    let mut opened = Opened::default();
    let main = Rc::new(session::open(&args.session)?);
    let path = &args.session.graph;
    if args.compare.is_empty() {
        opened.add(&main, path, None, Part::Candidate)?;
    }
    for (index, schedule) in args.compare.iter().enumerate() {
        if args.compare[..index].contains(schedule) {
            return Err(CliError::Mistake(format!("--compare names `{schedule}` twice: give each schedule once")));
        }
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
    name_all(&mut opened.contenders);
    Ok(opened.contenders)
}

/// Gives each contender the shortest name that no other has: its graph and schedule, then its file too, then a number.
fn name_all(contenders: &mut [Contender]) {
    let alone = contenders.iter().all(|contender| contender.path == contenders[0].path);
    let forms: [&dyn Fn(&Contender) -> String; 3] = [
        &|contender| contender.short_name(alone),
        &|contender| {
            let file = contender.path.file_name().unwrap_or_default().to_string_lossy();
            format!("{} ({file})", contender.short_name(alone))
        },
        &|contender| format!("{} ({})", contender.short_name(alone), contender.path.display()),
    ];
    let all: Vec<Vec<String>> = forms.iter().map(|form| contenders.iter().map(form).collect()).collect();
    let count = |names: &[String], name: &String| names.iter().filter(|other| *other == name).count();
    for (index, contender) in contenders.iter_mut().enumerate() {
        let alike = count(&all[0][..index], &all[0][index]) + 1;
        let told_apart = all.iter().find(|names| count(names, &names[index]) == 1);
        contender.name = told_apart.map_or_else(|| format!("{} #{alike}", all[0][index]), |names| names[index].clone());
    }
}

/// Makes every `greedy` order by `costs`, for micro-batches as `load` makes them.
pub fn measured_costs(
    contenders: &mut [Contender],
    costs: &Costs<'_>,
    machine: &Machine,
    load: &Load,
) -> Result<(), CliError> {
    let mut taken = false;
    for contender in contenders {
        let planner = contender.deployment.planner_config();
        let most = load.max_concurrency.unwrap_or(usize::MAX).min(load.requests.len()).min(planner.sequences);
        let rows = most.div_ceil(contender.schedule.micro_batches);
        let identity = Identity::of(machine, &contender.deployment, &contender.path);
        taken |= costs.order(&mut contender.schedule, &identity, rows, load.mean_context())?;
    }
    if taken { Ok(()) } else { Err(costs.unused()) }
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
        let schedule = deployment.schedule_as(schedule).or_mistake()?;
        let fresh = || Rc::new(SharedWeights::new(Arc::clone(&deployment.weights)));
        let weights = Rc::clone(self.weights.entry(deployment.weights_id()).or_insert_with(fresh));
        self.contenders.push(Contender {
            deployment: Rc::clone(deployment),
            schedule,
            weights,
            path: path.into(),
            part,
            name: String::new(),
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
