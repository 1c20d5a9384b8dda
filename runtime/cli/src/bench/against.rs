//! A prediction held against what was measured: every figure that both have, the largest disagreements first.

use super::contender::Contender;
use crate::error::CliError;
use crate::identity::GraphIdentity;
use crate::input;
use crate::load_args::MadeLoad;
use crate::table::Table;
use serde_json::{Value, json};
use std::path::Path;

const FLAG: &str = "--against";

/// What `rally predict` said.
pub struct Prediction {
    path: String,
    run: Value,
}

/// A figure that was predicted and measured.
pub struct Difference {
    /// What it is of: the whole, a stage, an edge, a lane.
    of: String,
    /// Which figure.
    figure: String,
    predicted: f64,
    measured: f64,
}

impl Difference {
    /// What was predicted over what was measured, less one.
    fn off(&self) -> f64 {
        self.predicted / self.measured - 1.0
    }

    /// What orders the table. Shares are compared by their difference: 1 % against 2 % is no error of one half.
    fn size(&self) -> f64 {
        match self.figure.ends_with("share") {
            true => (self.predicted - self.measured).abs(),
            false => self.off().abs(),
        }
    }
}

/// Differences shown to people.
const SHOWN: usize = 24;

impl Prediction {
    /// Reads a prediction of this contender under this load.
    pub fn read(path: &Path, contender: &Contender, load: &MadeLoad) -> Result<Self, CliError> {
        let mistake = |what: &str| input::mistake(FLAG, path, what);
        let parse = |text: &str| serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"));
        let value: Value = input::read_named(FLAG, path, parse)?;
        if value["predicted_from"].is_null() || !value["runs"][0].is_object() {
            return Err(mistake("it is no prediction: write one with `rally predict --save-result`"));
        }
        let run = value["runs"][0].clone();
        let here = json!(GraphIdentity::of(&contender.deployment, &contender.path));
        if run["graph"]["hash"] != here["hash"] {
            return Err(mistake("it was made for another graph file, or another version of this one: predict again"));
        }
        if run["schedule"] != json!(contender.schedule.label) {
            return Err(mistake(&format!(
                "it was made for schedule {}, and this is {}: give both the same --schedule",
                run["schedule"], contender.schedule.label
            )));
        }
        if value["load"] != load.json {
            return Err(mistake("it was made for another load: give both commands the same load flags"));
        }
        Ok(Self { path: path.display().to_string(), run })
    }

    /// Against a run of the result, the largest first.
    pub fn differences(&self, measured: &Value) -> Vec<Difference> {
        let mut all = Vec::new();
        let whole = |key: &str| key.ends_with("_ms") || key.ends_with("throughput") || key == "request_goodput";
        pairs(&mut all, "run", &self.run, measured, whole);
        let of_stage = |stage: &Value| format!("{} {}", text(stage, "stage"), text(stage, "part"));
        each(&mut all, &self.run["stages"], &measured["stages"], &of_stage, |key| key.ends_with("_us"));
        let of_lane = |lane: &Value| format!("lane {}", text(lane, "name"));
        each(&mut all, &self.run["lanes"], &measured["lanes"], &of_lane, |key| key.ends_with("_share"));
        all.sort_by(|a, b| b.size().total_cmp(&a.size()));
        all
    }

    /// For people.
    pub fn table(&self, differences: &[Difference]) -> String {
        let mut table = Table::new(&["of", "figure", "predicted", "measured", "off"]);
        for difference in differences.iter().take(SHOWN) {
            let share = difference.figure.ends_with("share");
            let off = match share {
                true => format!("{:+.1} points", (difference.predicted - difference.measured) * 100.0),
                false => format!("{:+.1} %", difference.off() * 100.0),
            };
            table.row(&[
                &difference.of,
                &difference.figure,
                &format!("{:.3}", difference.predicted),
                &format!("{:.3}", difference.measured),
                &off,
            ]);
        }
        let rest = differences.len().saturating_sub(SHOWN);
        let more = if rest > 0 { format!("and {rest} figures that differ less\n") } else { String::new() };
        format!("against {}, the largest disagreements first:\n{table}{more}", self.path)
    }

    /// For results.
    pub fn json(&self, differences: &[Difference]) -> Value {
        let row = |difference: &Difference| {
            json!({
                "of": difference.of,
                "figure": difference.figure,
                "predicted": difference.predicted,
                "measured": difference.measured,
                "off": difference.off(),
            })
        };
        json!({ "prediction": self.path, "differences": differences.iter().map(row).collect::<Vec<_>>() })
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("")
}

/// Figures whose keys are `wanted` and that both objects have. Where nothing was measured nothing is off.
fn pairs(all: &mut Vec<Difference>, of: &str, predicted: &Value, measured: &Value, wanted: impl Fn(&str) -> bool) {
    for (key, value) in predicted.as_object().into_iter().flatten() {
        let figures = value.as_f64().zip(measured[key].as_f64());
        if let Some((predicted, measured)) = figures.filter(|(_, measured)| wanted(key) && *measured != 0.0) {
            all.push(Difference { of: of.into(), figure: key.clone(), predicted, measured });
        }
    }
}

/// The same of every element of two lists that has the same name in both.
fn each(
    all: &mut Vec<Difference>,
    predicted: &Value,
    measured: &Value,
    name: &dyn Fn(&Value) -> String,
    wanted: impl Fn(&str) -> bool + Copy,
) {
    let measured = measured.as_array().map(Vec::as_slice).unwrap_or_default();
    for element in predicted.as_array().into_iter().flatten() {
        let of = name(element);
        if let Some(other) = measured.iter().find(|other| name(other) == of) {
            pairs(all, &of, element, other, wanted);
        }
    }
}
