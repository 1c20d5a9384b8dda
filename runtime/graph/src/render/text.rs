//! A tree to read in a terminal.

use super::picture::{Box, LayerPicture, Part, Picture};

/// The deployment as a tree of stages.
pub fn text(picture: &Picture) -> String {
    let slo = picture.tpot_ms.map(|tpot| format!(" · {tpot} ms per token")).unwrap_or_default();
    let mut out = format!("{} · {}{slo}\n", picture.name, picture.schedule);
    let Some(first) = picture.layers.first() else { return out };
    let widths = Widths::of(picture);
    for part in first.boxes.iter().filter(|stage| stage.part == Part::Before) {
        out.push_str(&line("├─ ", "   ", part, first, &widths));
    }
    let after: Vec<&Box> = first.boxes.iter().filter(|stage| stage.part == Part::After).collect();
    for (index, layer) in picture.layers.iter().enumerate() {
        let last = after.is_empty() && index + 1 == picture.layers.len();
        let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        out.push_str(&format!("{branch}{}\n", layer.title));
        let inside: Vec<&Box> = layer.boxes.iter().filter(|stage| stage.part == Part::Layer).collect();
        for (index, stage) in inside.iter().enumerate() {
            let branch = if index + 1 == inside.len() { "└─ " } else { "├─ " };
            out.push_str(&line(&format!("{below}{branch}"), "", stage, layer, &widths));
        }
    }
    for (index, stage) in after.iter().enumerate() {
        let branch = if index + 1 == after.len() { "└─ " } else { "├─ " };
        out.push_str(&line(branch, "   ", stage, first, &widths));
    }
    out
}

struct Widths {
    id: usize,
    place: usize,
}

impl Widths {
    fn of(picture: &Picture) -> Self {
        let all = || picture.layers.iter().flat_map(|layer| layer.boxes.iter().map(move |stage| (layer, stage)));
        Self {
            id: all().map(|(_, stage)| name(stage).chars().count()).max().unwrap_or(0),
            place: all().map(|(layer, stage)| place(layer, stage).chars().count()).max().unwrap_or(0),
        }
    }
}

fn name(stage: &Box) -> String {
    match stage.id == stage.kind {
        true => stage.id.clone(),
        false => format!("{} ({})", stage.id, stage.kind),
    }
}

fn place(layer: &LayerPicture, stage: &Box) -> String {
    let lane = |index: usize| layer.lanes[index].name.as_str();
    match stage.role == "transfer" {
        true => format!("{} → {}", lane(stage.lane), lane(stage.to_lane)),
        false => format!("on {}", lane(stage.lane)),
    }
}

/// `pad` keeps the columns of stages outside the layers under those inside.
fn line(branch: &str, pad: &str, stage: &Box, layer: &LayerPicture, widths: &Widths) -> String {
    let (id, place) = (name(stage), place(layer, stage));
    let fill = |text: &str, width: usize| " ".repeat(width.saturating_sub(text.chars().count()) + 2);
    let text = format!(
        "{branch}{id}{}{pad}{place}{}{}",
        fill(&id, widths.id),
        fill(&place, widths.place),
        stage.notes.join(" · ")
    );
    format!("{}\n", text.trim_end())
}
