//! Structure: one `layers` block, an embedding before it, a sampling after it and last.

use crate::diagnostic::Reporter;
use crate::kinds::{Place, Role};
use crate::resolve::Resolved;
use crate::spec::StageEntry;
use crate::stage_graph::Section;

/// Whether the file has the parts that the other rules take for granted.
pub(super) fn check(resolved: &Resolved<'_>, out: &mut Reporter<'_>) -> bool {
    let before = out.len();
    blocks(resolved, out);
    places(resolved, out);
    once(resolved, Role::Embed, "embed", out);
    once(resolved, Role::Sampling, "sampling", out);
    if let Some((index, last)) = resolved.stages.iter().enumerate().find(|(_, stage)| stage.role() == Role::Sampling)
        && index + 1 < resolved.stages.len()
    {
        let next = &resolved.stages[index + 1];
        let message = format!("`{}` is not the last stage: `{}` follows it", last.id, next.id);
        out.error("sampling-not-last", last.at("kind"), message).with_help("move it to the end of `stages`");
    }
    out.len() == before
}

fn blocks(resolved: &Resolved<'_>, out: &mut Reporter<'_>) {
    let entries = resolved.spec.stages.iter().enumerate();
    let blocks: Vec<usize> =
        entries.filter(|(_, entry)| matches!(entry, StageEntry::Layers(_))).map(|(index, _)| index).collect();
    if blocks.is_empty() {
        out.error("no-layers-block", "/stages", "`stages` has no `layers` block")
            .with_help("put the stages that repeat for every layer into `{ \"layers\": [ … ] }`");
    }
    for index in blocks.iter().skip(1) {
        let message = format!("a second `layers` block; the first is /stages/{}", blocks[0]);
        out.key_error("two-layers-blocks", format!("/stages/{index}/layers"), message)
            .with_help("keep one block and tell its layers apart with `on_layers`");
    }
}

/// Parsing refuses most misplaced kinds; it cannot tell before from after.
fn places(resolved: &Resolved<'_>, out: &mut Reporter<'_>) {
    for stage in &resolved.stages {
        let stands = match stage.section {
            Section::Before => Place::Before,
            Section::Layers => Place::Layers,
            Section::After => Place::After,
        };
        let place = stage.info.place();
        if stands != place {
            let message = format!("`{}` stands {}, not {}", stage.info.name(), place.describe(), stands.describe());
            out.error("misplaced-stage", stage.at("kind"), message).with_help(format!("move it {}", place.describe()));
        }
    }
}

fn once(resolved: &Resolved<'_>, role: Role, word: &str, out: &mut Reporter<'_>) {
    let all: Vec<_> = resolved.stages.iter().filter(|stage| stage.role() == role).collect();
    if all.is_empty() {
        let place = if role == Role::Embed { Place::Before } else { Place::After };
        let message = format!("`stages` has no `{word}` stage");
        let help = format!("add `{{ \"kind\": \"{word}\", \"on\": … }}` {}", place.describe());
        out.error("missing-stage", "/stages", message).with_help(help);
    }
    for stage in all.iter().skip(1) {
        let message = format!("a second `{word}` stage; the first is {}", all[0].pointer);
        out.error("duplicate-stage", stage.at("kind"), message).with_help("remove one of the two");
    }
}
