//! The Step-3 report's figures 1, 2 and 5 for any models and accelerators, and cost against context.

use super::Figure;
use super::study::{Accelerator, Costed, Study};
use crate::chart::plane::{Axis, Plane, around, from_zero};
use crate::chart::{BARS, Canvas, Form, LINE, LONGEST, ROW};
use crate::error::CliError;

/// Draws one.
pub fn draw(figure: Figure, study: &Study, form: Form) -> Result<String, CliError> {
    let mut canvas = Canvas::new();
    let label = match figure {
        Figure::Parameters => parameters(&mut canvas, study),
        Figure::Parts => parts(&mut canvas, study),
        Figure::Intensity => intensity(&mut canvas, study),
        Figure::Context => context(&mut canvas, study),
    };
    let names: Vec<&str> = study.accelerators.iter().map(|on| on.hardware.name.as_str()).collect();
    canvas.note(&format!(
        "Theoretical floors by the Step-3 report's formulas (arXiv 2507.19427): full peak and bandwidth, communication hidden. \
         Accelerators: {}.",
        names.join(", ")
    ));
    Ok(canvas.finish(label, form))
}

fn usd(value: f64) -> String {
    format!("{value:.2}")
}

fn parameters(canvas: &mut Canvas, study: &Study) -> &'static str {
    canvas.title(&format!("decoding cost against activated parameters, context {}", study.context));
    let places: Vec<(f64, f64)> =
        study.models.iter().map(|costed| (costed.model.active_parameters() / 1e9, costed.pair.usd_per_mtok)).collect();
    let x = from_zero(places.iter().map(|place| place.0));
    let y = from_zero(places.iter().map(|place| place.1));
    let written = |value: f64| format!("{value:.0}");
    let x = Axis { title: "activated parameters, 10⁹", range: x, logarithmic: false, written };
    let y = Axis { title: "USD per million tokens, best pair", range: y, logarithmic: false, written: usd };
    let mut plane = Plane::on(canvas, x, y);
    for (costed, place) in study.models.iter().zip(places) {
        let class = if costed.model.name == study.subject { "other" } else { "bar" };
        plane.point(canvas, class, place, &costed.model.name);
    }
    "decoding cost against activated parameters"
}

fn parts(canvas: &mut Canvas, study: &Study) -> &'static str {
    canvas.title(&format!("USD per million tokens, context {}: attention (blue) and FFN (orange)", study.context));
    canvas.top += LINE / 2.0;
    let most = study.models.iter().map(|costed| costed.alone().1).fold(0.0, f64::max);
    let scale = LONGEST / most.max(f64::MIN_POSITIVE);
    for costed in &study.models {
        let (pair, (alone, _)) = (costed.pair, costed.alone());
        let together = format!("{} + {}", study.name(pair.attention_on), study.name(pair.ffn_on));
        let (attention, ffn) = (costed.usd[pair.attention_on].attention, costed.usd[pair.ffn_on].ffn);
        bar(canvas, &costed.model.name, (attention, ffn), scale, &together);
        if pair.attention_on != pair.ffn_on {
            let usd = costed.usd[alone];
            bar(canvas, "", (usd.attention, usd.ffn), scale, &format!("all on {}", study.name(alone)));
        }
        canvas.top += 6.0;
    }
    canvas.top += LINE;
    "decoding cost in its parts"
}

fn bar(canvas: &mut Canvas, name: &str, (attention, ffn): (f64, f64), scale: f64, on: &str) {
    const HEIGHT: f64 = ROW - 12.0;
    let top = canvas.top;
    let middle = top + HEIGHT / 2.0;
    canvas.name(name, middle);
    canvas.bar("bar", BARS, top, attention * scale, HEIGHT);
    canvas.bar("other", BARS + attention * scale, top, ffn * scale, HEIGHT);
    let end = BARS + (attention + ffn) * scale + 8.0;
    canvas.text("figure", end, middle + 4.0, &format!("{:.3}  {on}", attention + ffn));
    canvas.top += HEIGHT + 3.0;
}

/// A power of ten as a tick has it.
fn power(value: f64) -> String {
    format!("1e{:.0}", value.log10())
}

fn intensity(canvas: &mut Canvas, study: &Study) -> &'static str {
    canvas.title(&format!("attention: computing against reading, context {}", study.context));
    let of = |value: fn(&Costed) -> f64| study.models.iter().map(value);
    let x = around(of(|costed| costed.cost.kv_bytes));
    // At least three powers of ten, so that ticks are those.
    let x = (x.0.min(x.1 / 1200.0), x.1);
    let y = around(of(|costed| costed.cost.attention_flops));
    let y = (y.0.min(y.1 / 1200.0), y.1);
    let x = Axis { title: "bytes of keys, values and states a token", range: x, logarithmic: true, written: power };
    let y = Axis { title: "FLOPs of attention a token", range: y, logarithmic: true, written: power };
    let mut plane = Plane::on(canvas, x, y);
    let ridge = Accelerator::flops_per_byte;
    let mut accelerators: Vec<&Accelerator> = study.accelerators.iter().collect();
    // Steepest first: a name that finds no place moves to the right, where the next slopes end.
    accelerators.sort_by(|left, right| ridge(right).total_cmp(&ridge(left)));
    for on in accelerators {
        plane.slope(canvas, ridge(on), &format!("{} {:.0}", on.hardware.name, ridge(on)));
    }
    for costed in &study.models {
        let class = if costed.model.name == study.subject { "other" } else { "bar" };
        let place = (costed.cost.kv_bytes, costed.cost.attention_flops);
        let name = format!("{} {:.0}", costed.model.name, costed.cost.arithmetic_intensity());
        plane.point(canvas, class, place, &name);
    }
    canvas.note(
        "Beside each name FLOPs for a byte. A model above an accelerator's line is bound by its computing there, below it by its \
         bandwidth; on the line it uses both.",
    );
    "attention's computing against its reading"
}

fn context(canvas: &mut Canvas, study: &Study) -> &'static str {
    canvas.title("decoding cost against context");
    let contexts: Vec<u64> = (10..=17).map(|power| 1 << power).collect();
    let curves: Vec<Vec<(f64, f64)>> = study
        .models
        .iter()
        .map(|costed| contexts.iter().map(|context| (*context as f64, study.usd_at(costed, *context))).collect())
        .collect();
    let written = |tokens: f64| format!("{:.0}K", tokens / 1024.0);
    let x = Axis { title: "context, tokens", range: (1024.0, 131_072.0), logarithmic: true, written };
    let y = from_zero(curves.iter().flatten().map(|place| place.1));
    let y = Axis { title: "USD per million tokens, best pair", range: y, logarithmic: false, written: usd };
    let mut plane = Plane::on(canvas, x, y);
    for (index, (costed, curve)) in study.models.iter().zip(&curves).enumerate() {
        // As far apart on the wheel as their number allows.
        let hue = 360.0 * index as f64 / study.models.len() as f64;
        plane.line(canvas, hue, curve, &costed.model.name);
    }
    "decoding cost against context"
}
