//! A plan in words: one line a turn, layers that are alike told once, devices that do the same told together.

use rally_graph::plan::{Plan, PlannedTask, TaskRole};
use std::fmt::Write;

/// One turn of a lane: tasks of one micro-batch that wait for no other lane in between.
#[derive(Clone, PartialEq, Eq)]
struct Line {
    first: usize,
    micro_batch: usize,
    /// Highest layer of its tasks.
    layer: Option<usize>,
    /// Layers counted from `layer`, to find turns that are alike.
    signature: String,
    work: String,
    waits: String,
}

/// The plan.
pub fn text(plan: &Plan, label: &str) -> String {
    let mut out = format!(
        "{label}: {} micro-batches (D1 …) rotate over {} lanes. A cycle is one step of each; every lane repeats its list for ever.\n\
         ‹ marks work that belongs to the step before.\n",
        plan.micro_batches,
        plan.lanes.len()
    );
    let lanes: Vec<Vec<Line>> = (0..plan.lanes.len()).map(|lane| lines(plan, lane)).collect();
    let mut told = vec![false; lanes.len()];
    for lane in 0..lanes.len() {
        if told[lane] {
            continue;
        }
        let alike: Vec<usize> = (lane..lanes.len())
            .filter(|other| group(plan, *other) == group(plan, lane) && lanes[*other] == lanes[lane])
            .collect();
        alike.iter().for_each(|other| told[*other] = true);
        let names: Vec<&str> = alike.iter().map(|other| plan.lanes[*other].name.as_str()).collect();
        let each = if alike.len() > 1 { " each" } else { "" };
        let (tasks, turns) = (plan.lanes[lane].tasks.len(), lanes[lane].len());
        let _ = writeln!(out, "\n{}: {tasks} tasks in {turns} turns{each}", span_of(&names));
        table(&lanes[lane], &mut out);
    }
    out
}

fn group(plan: &Plan, lane: usize) -> &str {
    &plan.table.lanes[lane].group
}

/// `a.0`, or `a.0 … a.7`.
fn span_of(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).into(),
        [first, second] => format!("{first}, {second}"),
        [first, .., last] => format!("{first} … {last}"),
    }
}

fn lines(plan: &Plan, lane: usize) -> Vec<Line> {
    let tasks = &plan.lanes[lane].tasks;
    let mut starts: Vec<usize> = Vec::new();
    for (position, task) in tasks.iter().enumerate() {
        if position == 0 || !task.waits.is_empty() || task.micro_batch != tasks[position - 1].micro_batch {
            starts.push(position);
        }
    }
    let ends = starts.iter().skip(1).copied().chain([tasks.len()]);
    starts.iter().zip(ends).map(|(start, end)| line(plan, lane, *start, &tasks[*start..end])).collect()
}

fn line(plan: &Plan, lane: usize, first: usize, tasks: &[PlannedTask]) -> Line {
    let layers = || tasks.iter().filter_map(|task| plan.table.tasks[task.task].layer.zip(Some(task.behind)));
    let layer =
        layers().filter(|(_, behind)| !behind).map(|(layer, _)| layer).max().or(layers().map(|(layer, _)| layer).max());
    let name = |layer: Option<usize>| layer.map(|layer| format!("layer {layer} ")).unwrap_or_default();
    let relative = |of: Option<usize>| match (of, layer) {
        (Some(of), Some(base)) => format!("layer {} ", of as i64 - base as i64),
        _ => String::new(),
    };
    let waits = waits(plan, lane, &tasks[0]);
    let signature = format!("{} {}", work(plan, tasks, &relative), waits);
    Line { first, micro_batch: tasks[0].micro_batch, layer, signature, work: work(plan, tasks, &name), waits }
}

/// The tasks, those of one layer and step together.
fn work(plan: &Plan, tasks: &[PlannedTask], layer_name: &dyn Fn(Option<usize>) -> String) -> String {
    let layer = |task: &PlannedTask| plan.table.tasks[task.task].layer;
    let parts = tasks.chunk_by(|a, b| (layer(a), a.behind) == (layer(b), b.behind)).map(|part| {
        let step = if part[0].behind { "‹" } else { "" };
        let names: Vec<String> = part.iter().map(|task| stage(plan, task)).collect();
        format!("{step}{}{}", layer_name(layer(&part[0])), names.join(", "))
    });
    parts.collect::<Vec<_>>().join(" · ")
}

fn stage(plan: &Plan, task: &PlannedTask) -> String {
    let template = &plan.table.tasks[task.task];
    let id = &plan.table.stages[template.stage].id;
    match template.role {
        TaskRole::Compute => id.clone(),
        role => format!("{id} {}", role.name()),
    }
}

/// What a turn waits for, in words. Devices of one group that do the same are told together, and
/// those of the lane's own group are its peers.
fn waits(plan: &Plan, lane: usize, task: &PlannedTask) -> String {
    let mut by_group: Vec<(&str, String, Vec<&str>)> = Vec::new();
    for wait in &task.waits {
        let other = &plan.lanes[wait.lane].tasks[wait.position];
        let (group, what) = (group(plan, wait.lane), stage(plan, other));
        let name = plan.lanes[wait.lane].name.as_str();
        match by_group.iter_mut().find(|known| known.0 == group && known.1 == what) {
            Some(known) => known.2.push(name),
            None => by_group.push((group, what, vec![name])),
        }
    }
    let mut by_work: Vec<(String, Vec<String>)> = Vec::new();
    for (of, what, names) in by_group {
        let who = match names[..] {
            _ if of == group(plan, lane) => format!("its peers in {of}"),
            // One device of a group, at the same place as this one in its own: every device of a rail says the same.
            [name]
                if place_in_group(name).is_some() && place_in_group(name) == place_in_group(&plan.lanes[lane].name) =>
            {
                format!("{of} on its rail")
            }
            _ => span_of(&names),
        };
        match by_work.iter_mut().find(|known| known.0 == what) {
            Some(known) => known.1.push(who),
            None => by_work.push((what, vec![who])),
        }
    }
    by_work.iter().map(|(what, who)| format!("{}: {what}", who.join(", "))).collect::<Vec<_>>().join(" and ")
}

/// The `i` of `name.i`.
fn place_in_group(name: &str) -> Option<&str> {
    name.rsplit_once('.').map(|(_, place)| place)
}

fn table(lines: &[Line], out: &mut String) {
    let width = lines.iter().map(|line| line.work.chars().count()).max().unwrap_or(0);
    let _ = writeln!(out, "  {:>5}  batch  {:<width$}  waits for", "entry", "does");
    let mut at = 0;
    while at < lines.len() {
        let period = lines[at..].iter().take_while(|line| line.layer == lines[at].layer).count();
        let repeats = repeats(lines, at, period);
        for line in &lines[at..at + period] {
            let waits = if line.waits.is_empty() { "" } else { &line.waits };
            let row = format!("  {:>5}  D{:<4}  {:<width$}  {waits}", line.first, line.micro_batch + 1, line.work);
            let _ = writeln!(out, "{}", row.trim_end());
        }
        if repeats > 1 {
            let first = lines[at].layer.unwrap_or(0);
            let range = if repeats == 2 {
                format!("layer {}", first + 1)
            } else {
                format!("layers {} … {}", first + 1, first + repeats - 1)
            };
            let _ = writeln!(out, "      ⋮         the same for {range} ({} turns)", (repeats - 1) * period);
        }
        at += repeats * period;
    }
}

/// How often the `period` lines from `at` follow each other, a layer further each time.
fn repeats(lines: &[Line], at: usize, period: usize) -> usize {
    let same = |k: usize| {
        let block = lines.get(at + k * period..at + (k + 1) * period);
        block.is_some_and(|block| {
            block.iter().zip(&lines[at..at + period]).all(|(line, first)| {
                (&line.signature, line.micro_batch) == (&first.signature, first.micro_batch)
                    && line.layer.zip(first.layer).is_some_and(|(layer, base)| layer == base + k)
            })
        })
    };
    1 + (1..).take_while(|k| same(*k)).count()
}
