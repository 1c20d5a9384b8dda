//! Who follows whom inside a layer: the list order, or what `after` says; cycles are named.

use crate::diagnostic::Reporter;
use crate::resolve::{LayerCase, Resolved};
use crate::words;

/// Positions in the case that each stage follows; `None` if an `after` leads out of the layer.
pub(super) fn predecessors(
    resolved: &Resolved<'_>,
    case: &LayerCase,
    out: &mut Reporter<'_>,
) -> Option<Vec<Vec<usize>>> {
    let mut all = Vec::with_capacity(case.stages.len());
    let mut good = true;
    for (position, stage) in case.stages.iter().enumerate() {
        let stage = &resolved.stages[*stage];
        let Some(after) = stage.spec.after.as_ref().filter(|after| !after.is_empty()) else {
            all.push(position.checked_sub(1).into_iter().collect());
            continue;
        };
        let mut before = Vec::new();
        for (index, name) in after.iter().enumerate() {
            match case.stages.iter().position(|other| resolved.stages[*other].id == name) {
                Some(other) => before.push(other),
                None => {
                    good = false;
                    let message = format!(
                        "`{}` follows `{name}`, which does not run in layers {}",
                        stage.id,
                        words::runs(&case.layers)
                    );
                    out.error("after-not-in-layer", format!("{}/{index}", stage.at("after")), message)
                        .with_help("give the two the same `on_layers`, or drop the name");
                }
            }
        }
        all.push(before);
    }
    good.then_some(all)
}

/// The positions in dataflow order, file order where the edges leave a choice; `None` if there is a cycle.
pub(super) fn sort(
    resolved: &Resolved<'_>,
    case: &LayerCase,
    before: &[Vec<usize>],
    out: &mut Reporter<'_>,
) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = Vec::with_capacity(before.len());
    let mut done = vec![false; before.len()];
    while order.len() < before.len() {
        let ready = |position: &usize| !done[*position] && before[*position].iter().all(|earlier| done[*earlier]);
        match (0..before.len()).find(ready) {
            Some(position) => {
                done[position] = true;
                order.push(position);
            }
            None => {
                report_cycle(resolved, case, before, &done, out);
                return None;
            }
        }
    }
    Some(order)
}

/// Walks back along unfinished predecessors until a stage comes twice.
fn report_cycle(
    resolved: &Resolved<'_>,
    case: &LayerCase,
    before: &[Vec<usize>],
    done: &[bool],
    out: &mut Reporter<'_>,
) {
    let Some(start) = (0..done.len()).find(|position| !done[*position]) else { return };
    let mut path = vec![start];
    loop {
        let last = path[path.len() - 1];
        let Some(next) = before[last].iter().copied().find(|earlier| !done[*earlier]) else { return };
        if let Some(from) = path.iter().position(|visited| *visited == next) {
            path.drain(..from);
            break;
        }
        path.push(next);
    }
    path.reverse();
    // Start where the file made the circle: at a stage with an `after` of its own.
    let own = |position: &usize| resolved.stages[case.stages[*position]].spec.after.is_some();
    let turn = path.iter().position(own).unwrap_or(0);
    path.rotate_left(turn);
    let stage = &resolved.stages[case.stages[path[0]]];
    let mut ids: Vec<&str> = path.iter().map(|position| resolved.stages[case.stages[*position]].id).collect();
    ids.push(ids[0]);
    let message = format!("the stages wait for each other in a circle: {}", ids.join(" → "));
    out.error("cycle", stage.at("after"), message)
        .with_help("a stage without `after` follows the one before it in the list; break the circle at one `after`");
}
