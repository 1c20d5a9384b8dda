//! A Mermaid flowchart, as Markdown viewers draw it.

use super::picture::{Box, Picture};

/// The deployment as a Mermaid flowchart.
pub fn mermaid(picture: &Picture) -> String {
    let mut out = String::from("flowchart LR\n");
    for (number, layer) in picture.layers.iter().enumerate() {
        out.push_str(&format!("  subgraph L{number}[\"{}\"]\n    direction LR\n", label(&layer.title)));
        for (lane, entry) in layer.lanes.iter().enumerate() {
            let title = label(&format!("{} ({})", entry.name, entry.note));
            out.push_str(&format!("    subgraph L{number}D{lane}[\"{title}\"]\n      direction LR\n"));
            for (index, stage) in layer.boxes.iter().enumerate() {
                if stage.lane == lane && stage.role != "transfer" {
                    out.push_str(&format!("      S{number}_{index}(\"{}\"):::{}\n", node_label(stage), stage.role));
                }
            }
            out.push_str("    end\n");
        }
        for (index, stage) in layer.boxes.iter().enumerate().filter(|(_, stage)| stage.role == "transfer") {
            out.push_str(&format!("    S{number}_{index}{{{{\"{}\"}}}}:::transfer\n", node_label(stage)));
        }
        for edge in &layer.edges {
            out.push_str(&format!("    S{number}_{} --> S{number}_{}\n", edge.from, edge.to));
        }
        out.push_str("  end\n");
    }
    for (role, fill) in [
        ("attention", "#bfdbfe"),
        ("ffn", "#fed7aa"),
        ("router", "#99f6e4"),
        ("transfer", "#e9d5ff"),
        ("combine", "#bbf7d0"),
        ("embed", "#e2e8f0"),
        ("sampling", "#e2e8f0"),
        ("rowwise", "#e2e8f0"),
    ] {
        out.push_str(&format!("  classDef {role} fill:{fill},stroke:#64748b,color:#0f172a\n"));
    }
    out
}

fn node_label(stage: &Box) -> String {
    let mut text = label(&stage.id);
    stage.notes.iter().for_each(|note| text.push_str(&format!("<br/><small>{}</small>", label(note))));
    text
}

fn label(text: &str) -> String {
    text.replace('#', "#35;").replace('"', "#quot;").replace('<', "#lt;").replace('>', "#gt;").replace('\n', " ")
}
