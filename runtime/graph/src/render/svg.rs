//! SVG: devices as horizontal lanes, stages from left to right, transfers as pills between lanes. Light and dark.

use super::escape;
use super::picture::{Box, LayerPicture, Part, Picture};

const HEADER: f64 = 56.0;
const TITLE: f64 = 40.0;
const LANE_NAME: f64 = 132.0;
const COLUMN: f64 = 148.0;
const BOX_WIDTH: f64 = 124.0;
const BOX_HEIGHT: f64 = 54.0;
const ROW: f64 = 74.0;
const LANE_GAP: f64 = 76.0;
const TALL_HEIGHT: f64 = 58.0;
const MARGIN: f64 = 24.0;

/// Colours are variables, so that one style holds for both schemes.
const STYLE: &str = "
  .rally { --ink: #0f172a; --soft: #64748b; --line: #94a3b8; --lane: #f1f5f9; --edge: #cbd5e1; --back: #ffffff;
    --attention: #dbeafe; --attention-ink: #1d4ed8; --ffn: #ffedd5; --ffn-ink: #c2410c; --router: #ccfbf1; --router-ink: #0f766e;
    --transfer: #f3e8ff; --transfer-ink: #7e22ce; --combine: #dcfce7; --combine-ink: #15803d; --plain: #e2e8f0; --plain-ink: #334155;
    font-family: Inter, 'Segoe UI', Helvetica, Arial, sans-serif; }
  @media (prefers-color-scheme: dark) { .rally { --ink: #e2e8f0; --soft: #94a3b8; --line: #64748b; --lane: #1e293b; --edge: #334155;
    --back: #0f172a; --attention: #1e3a8a; --attention-ink: #bfdbfe; --ffn: #7c2d12; --ffn-ink: #fed7aa; --router: #134e4a;
    --router-ink: #99f6e4; --transfer: #581c87; --transfer-ink: #e9d5ff; --combine: #14532d; --combine-ink: #bbf7d0;
    --plain: #334155; --plain-ink: #e2e8f0; } }
  .rally .back { fill: var(--back); } .rally .lane { fill: var(--lane); stroke: var(--edge); }
  .rally .title { fill: var(--ink); font-size: 18px; font-weight: 650; } .rally .sub { fill: var(--soft); font-size: 13px; }
  .rally .layer { fill: var(--ink); font-size: 14px; font-weight: 600; } .rally .name { fill: var(--ink); font-size: 13px; font-weight: 600; }
  .rally .note { fill: var(--soft); font-size: 11px; } .rally .flow { fill: none; stroke: var(--line); stroke-width: 1.6; }
  .rally .head { fill: var(--line); } .rally .repeat { fill: none; stroke: var(--soft); stroke-dasharray: 4 4; }
  .rally .id { font-size: 12.5px; font-weight: 600; text-anchor: middle; } .rally .detail { font-size: 10.5px; text-anchor: middle; opacity: .85; }
  .rally .attention rect { fill: var(--attention); stroke: var(--attention-ink); } .rally .attention text { fill: var(--attention-ink); }
  .rally .ffn rect { fill: var(--ffn); stroke: var(--ffn-ink); } .rally .ffn text { fill: var(--ffn-ink); }
  .rally .router rect { fill: var(--router); stroke: var(--router-ink); } .rally .router text { fill: var(--router-ink); }
  .rally .transfer rect { fill: var(--transfer); stroke: var(--transfer-ink); } .rally .transfer text { fill: var(--transfer-ink); }
  .rally .combine rect { fill: var(--combine); stroke: var(--combine-ink); } .rally .combine text { fill: var(--combine-ink); }
  .rally .embed rect, .rally .sampling rect, .rally .rowwise rect { fill: var(--plain); stroke: var(--plain-ink); }
  .rally .embed text, .rally .sampling text, .rally .rowwise text { fill: var(--plain-ink); }
";

/// The deployment as a self-contained SVG.
pub fn svg(picture: &Picture) -> String {
    let panels: Vec<Panel<'_>> = picture.layers.iter().map(Panel::new).collect();
    let width = panels.iter().map(|panel| panel.width).fold(480.0, f64::max) + 2.0 * MARGIN;
    let height = HEADER + panels.iter().map(|panel| panel.height + MARGIN).sum::<f64>() + MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"rally\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{}\">\n<style>{STYLE}</style>\n",
        escape(&format!("stages of {}", picture.name))
    );
    out.push_str("<defs><marker id=\"head\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\"><path class=\"head\" d=\"M0 0 L8 4 L0 8 z\"/></marker></defs>\n");
    out.push_str(&format!("<rect class=\"back\" width=\"{width}\" height=\"{height}\"/>\n"));
    out.push_str(&format!("<text class=\"title\" x=\"{MARGIN}\" y=\"34\">{}</text>\n", escape(&picture.name)));
    let slo = picture.tpot_ms.map(|tpot| format!(" · {tpot} ms per token")).unwrap_or_default();
    out.push_str(&format!("<text class=\"sub\" x=\"{MARGIN}\" y=\"54\">{}{slo}</text>\n", escape(&picture.schedule)));
    let mut top = HEADER + MARGIN / 2.0;
    for panel in &panels {
        out.push_str(&format!("<g transform=\"translate({MARGIN} {top})\">\n"));
        panel.draw(&mut out);
        out.push_str("</g>\n");
        top += panel.height + MARGIN;
    }
    out.push_str("</svg>\n");
    out
}

/// One layer: where its lanes and boxes are.
struct Panel<'a> {
    layer: &'a LayerPicture,
    /// Top and height of each lane.
    lanes: Vec<(f64, f64)>,
    /// Middle of each box.
    middles: Vec<(f64, f64)>,
    width: f64,
    height: f64,
}

impl<'a> Panel<'a> {
    fn new(layer: &'a LayerPicture) -> Self {
        let ids = 0..layer.boxes.len();
        // Boxes of one lane and column, and pills of one column, are stacked.
        let slot = |index: usize| {
            let stage = &layer.boxes[index];
            let same = |other: &&usize| {
                let other = &layer.boxes[**other];
                other.column == stage.column
                    && crosses(other) == crosses(stage)
                    && (crosses(stage) || other.lane == stage.lane)
            };
            (0..index).collect::<Vec<_>>().iter().filter(same).count()
        };
        let slots: Vec<usize> = ids.clone().map(slot).collect();
        let mut lanes = Vec::new();
        let mut top = TITLE;
        for lane in 0..layer.lanes.len() {
            let own = ids.clone().filter(|index| layer.boxes[*index].lane == lane && !crosses(&layer.boxes[*index]));
            let rows = own.map(|index| slots[index] + 1).max().unwrap_or(1);
            let height = rows as f64 * ROW;
            lanes.push((top, height));
            top += height + LANE_GAP;
        }
        let middle = |index: usize| {
            let stage = &layer.boxes[index];
            let x = LANE_NAME + stage.column as f64 * COLUMN + COLUMN / 2.0;
            let y = match crosses(stage) {
                true => {
                    let (upper, lower) = (stage.lane.min(stage.to_lane), stage.lane.max(stage.to_lane));
                    let gap = (lanes[upper].0 + lanes[upper].1 + lanes[lower].0) / 2.0;
                    gap + slots[index] as f64 * 12.0
                }
                false => lanes[stage.lane].0 + slots[index] as f64 * ROW + ROW / 2.0,
            };
            (x, y)
        };
        let columns = layer.boxes.iter().map(|stage| stage.column + 1).max().unwrap_or(1);
        let height = lanes.last().map_or(TITLE, |(top, height)| top + height) + 8.0;
        Self { layer, middles: ids.map(middle).collect(), width: LANE_NAME + columns as f64 * COLUMN, lanes, height }
    }

    fn draw(&self, out: &mut String) {
        out.push_str(&format!("<text class=\"layer\" x=\"0\" y=\"20\">{}</text>\n", escape(&self.layer.title)));
        for (lane, (top, height)) in self.layer.lanes.iter().zip(&self.lanes) {
            let width = self.width;
            out.push_str(&format!(
                "<rect class=\"lane\" x=\"0\" y=\"{top}\" width=\"{width}\" height=\"{height}\" rx=\"10\"/>\n"
            ));
            let middle = top + height / 2.0;
            out.push_str(&format!(
                "<text class=\"name\" x=\"14\" y=\"{}\">{}</text>\n",
                middle - 3.0,
                escape(&lane.name)
            ));
            out.push_str(&format!(
                "<text class=\"note\" x=\"14\" y=\"{}\">{}</text>\n",
                middle + 14.0,
                escape(&lane.note)
            ));
        }
        self.repeat(out);
        for edge in &self.layer.edges {
            self.edge(edge.from, edge.to, out);
        }
        for (index, stage) in self.layer.boxes.iter().enumerate() {
            self.stage(index, stage, out);
        }
    }

    /// A dashed frame around what repeats.
    fn repeat(&self, out: &mut String) {
        let inside = self.layer.boxes.iter().filter(|stage| stage.part == Part::Layer).map(|stage| stage.column);
        let (Some(first), Some(last)) = (inside.clone().min(), inside.max()) else { return };
        let x = LANE_NAME + first as f64 * COLUMN + 2.0;
        let width = (last - first + 1) as f64 * COLUMN - 4.0;
        let (y, height) = (TITLE - 8.0, self.height - TITLE + 8.0);
        out.push_str(&format!(
            "<rect class=\"repeat\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"12\"/>\n"
        ));
        if self.layer.layers.len() > 1 {
            let (x, y) = (x + width - 8.0, y - 6.0);
            let count = self.layer.layers.len();
            out.push_str(&format!("<text class=\"note\" text-anchor=\"end\" x=\"{x}\" y=\"{y}\">× {count}</text>\n"));
        }
    }

    fn edge(&self, from: usize, to: usize, out: &mut String) {
        let ((x1, y1), (x2, y2)) = (self.middles[from], self.middles[to]);
        let (x1, x2) = (x1 + BOX_WIDTH / 2.0, x2 - BOX_WIDTH / 2.0 - 1.0);
        // The bend has room even where the columns are close.
        let bend = ((x2 - x1) / 2.0).max(14.0);
        out.push_str(&format!(
            "<path class=\"flow\" marker-end=\"url(#head)\" d=\"M{x1} {y1} C{} {y1} {} {y2} {x2} {y2}\"/>\n",
            x1 + bend,
            x2 - bend
        ));
    }

    fn stage(&self, index: usize, stage: &Box, out: &mut String) {
        let (x, y) = self.middles[index];
        let (width, height) = (BOX_WIDTH, if one_line(&stage.notes) { BOX_HEIGHT } else { TALL_HEIGHT });
        let radius = if stage.role == "transfer" { 22.0 } else { 9.0 };
        out.push_str(&format!(
            "<g class=\"{}\"><title>{}</title><rect x=\"{}\" y=\"{}\" width=\"{width}\" height=\"{height}\" rx=\"{radius}\"/>\n",
            stage.role,
            escape(&format!("{} ({})", stage.id, stage.kind)),
            x - width / 2.0,
            y - height / 2.0
        ));
        // What a transfer carries, then how; of other stages everything on one line if it fits.
        let lines: Vec<String> = match stage.notes.as_slice() {
            [] => Vec::new(),
            notes if one_line(notes) => vec![notes.join(" · ")],
            [only] => vec![only.clone()],
            [first, rest @ ..] => vec![first.clone(), rest.join(" · ")],
        };
        let top = y + 4.0 - lines.len() as f64 * 7.5;
        let id = escape(&shorten(&stage.id, 17));
        out.push_str(&format!("<text class=\"id\" x=\"{x}\" y=\"{top}\">{id}</text>\n"));
        for (number, line) in lines.iter().enumerate() {
            let line = escape(&shorten(line, 24));
            let below = top + 15.5 + number as f64 * 14.0;
            out.push_str(&format!("<text class=\"detail\" x=\"{x}\" y=\"{below}\">{line}</text>\n"));
        }
        out.push_str("</g>\n");
    }
}

/// Whether the notes fit on one line of a box.
fn one_line(notes: &[String]) -> bool {
    const MOST: usize = 22;
    notes.join(" · ").chars().count() <= MOST
}

fn crosses(stage: &Box) -> bool {
    stage.lane != stage.to_lane
}

fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
