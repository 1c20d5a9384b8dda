//! Graphviz DOT: a cluster for each layer kind, inside it a cluster for each lane.

use super::picture::{Box, Picture};

/// The deployment in the DOT language.
pub fn dot(picture: &Picture) -> String {
    let mut out = format!("digraph {} {{\n", quote(&picture.name));
    out.push_str("  rankdir=LR; compound=true; fontname=\"Helvetica\"; fontsize=12;\n");
    out.push_str(
        "  node [shape=box, style=\"rounded,filled\", fontname=\"Helvetica\", fontsize=11, color=\"#64748b\"];\n",
    );
    out.push_str("  edge [color=\"#64748b\", arrowsize=0.7];\n");
    out.push_str(&format!("  label={}; labelloc=t;\n", quote(&format!("{} · {}", picture.name, picture.schedule))));
    for (number, layer) in picture.layers.iter().enumerate() {
        out.push_str(&format!("  subgraph cluster_{number} {{\n    label={}; style=dashed;\n", quote(&layer.title)));
        for (lane, entry) in layer.lanes.iter().enumerate() {
            out.push_str(&format!("    subgraph cluster_{number}_{lane} {{\n"));
            out.push_str(&format!(
                "      label={}; style=\"rounded,filled\"; color=\"#f1f5f9\";\n",
                quote(&lane_label(entry))
            ));
            for (index, stage) in layer.boxes.iter().enumerate() {
                if stage.lane == lane && stage.role != "transfer" {
                    out.push_str(&format!("      {};\n", node(number, index, stage)));
                }
            }
            out.push_str("    }\n");
        }
        for (index, stage) in layer.boxes.iter().enumerate().filter(|(_, stage)| stage.role == "transfer") {
            out.push_str(&format!("    {};\n", node(number, index, stage)));
        }
        for edge in &layer.edges {
            out.push_str(&format!("    s{number}_{} -> s{number}_{};\n", edge.from, edge.to));
        }
        out.push_str("  }\n");
    }
    out.push_str("}\n");
    out
}

fn lane_label(lane: &super::picture::Lane) -> String {
    format!("{} ({})", lane.name, lane.note)
}

fn node(number: usize, index: usize, stage: &Box) -> String {
    let fill = match stage.role {
        "attention" => "#bfdbfe",
        "ffn" => "#fed7aa",
        "router" => "#99f6e4",
        "transfer" => "#e9d5ff",
        "combine" => "#bbf7d0",
        _ => "#e2e8f0",
    };
    let shape = if stage.role == "transfer" { ", shape=cds, style=filled" } else { "" };
    let mut label = stage.id.clone();
    stage.notes.iter().for_each(|note| label.push_str(&format!("\n{note}")));
    format!("s{number}_{index} [label={}, fillcolor=\"{fill}\"{shape}]", quote(&label))
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
