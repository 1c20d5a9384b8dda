//! `--measured`: which stage times stand for figures, those that come with rally or those of a table.

use crate::error::CliError;
use crate::input::{mistake, read_named};
use rally_cost::Hardware;
use rally_cost::library::hardware_named;
use rally_engine::schedule::cost_table::CostTable;
use rally_graph::words;
use rally_predict::measured::{MeasuredCards, StageTimes};
use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

/// Tables of one card and model, and the card that they are of if that is not the one they name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeasuredFile {
    hardware: Option<String>,
    paths: Vec<PathBuf>,
}

impl FromStr for MeasuredFile {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let named = text.split_once(':').filter(|(name, path)| !name.is_empty() && !path.is_empty());
        let (hardware, paths) = named.map_or((None, text), |(name, paths)| (Some(name.into()), paths));
        Ok(Self { hardware, paths: paths.split(',').map(PathBuf::from).collect() })
    }
}

/// What `--measured` or `--measured=F.json` stands for, where `hardware` is what there is.
///
/// # Errors
/// A file that is no table of a card of these.
pub fn cards<'a>(
    flag: Option<&Option<MeasuredFile>>,
    hardware: impl Iterator<Item = &'a Hardware>,
) -> Result<MeasuredCards, CliError> {
    let file = match flag {
        None => return Ok(MeasuredCards::None),
        Some(None) => return Ok(MeasuredCards::BuiltIn),
        Some(Some(file)) => file,
    };
    let (path, table) = one_table(&file.paths)?;
    let wrong = |what: &str| mistake("--measured", path, what);
    let on = of_machine(&table);
    let name = match &file.hardware {
        Some(name) => hardware_named(name).map_err(|error| wrong(&error.to_string()))?.name,
        None => {
            let names: Vec<String> = hardware.map(|hardware| hardware.name.clone()).collect();
            let called = |name: &&String| {
                on.iter().any(|card| card.split_whitespace().any(|word| word.eq_ignore_ascii_case(name)))
            };
            let found = names.iter().find(called).cloned();
            found.ok_or_else(|| {
                wrong(&format!(
                    "it was measured on {}, which is none of {}: say which it stands for, as --measured=NAME:F.json",
                    on.join(", "),
                    words::list(&names)
                ))
            })?
        }
    };
    let names: Vec<String> = file.paths.iter().map(|path| path.display().to_string()).collect();
    let source = format!("{}, measured on {}", names.join(" and "), on.join(", "));
    let times = StageTimes::of_table(&name, source, &table);
    let times = times.ok_or_else(|| wrong("it has neither attention nor experts whose times stand for others'"))?;
    Ok(MeasuredCards::Of(times.kept()))
}

/// What several tables have together: they are of one card and of layers of one model.
fn one_table(paths: &[PathBuf]) -> Result<(&PathBuf, CostTable), CliError> {
    let mut all: Option<(&PathBuf, CostTable)> = None;
    for path in paths {
        let table = read_named("--measured", path, CostTable::from_json)?;
        match &mut all {
            None => all = Some((path, table)),
            Some((first, known)) => {
                let another = |what: &str| format!("it is of another {what} than {}", first.display());
                let wrong = |what: &str| mistake("--measured", path, &another(what));
                if known.machine["cuda"] != table.machine["cuda"] || known.machine["cpu"] != table.machine["cpu"] {
                    return Err(wrong("machine"));
                }
                let sizes = ["family", "layers", "hidden", "experts", "weight_format"];
                if sizes.iter().any(|key| known.model[key] != table.model[key]) {
                    return Err(wrong("model"));
                }
                known.stages.extend(table.stages);
            }
        }
    }
    all.ok_or_else(|| CliError::Mistake("--measured: no file is named".into()))
}

/// The cards of a table's machine, its processor where there are none.
fn of_machine(table: &CostTable) -> Vec<&str> {
    let cards: Vec<&str> =
        table.machine["cuda"].as_array().into_iter().flatten().filter_map(|card| card.as_str()).collect();
    if cards.is_empty() { vec![table.machine["cpu"].as_str().unwrap_or("an unknown machine")] } else { cards }
}

/// What there is in `cards`, for a question that has nothing of it.
pub fn nothing_of(cards: MeasuredCards) -> CliError {
    let names: Vec<&str> = cards.all().map(|times| times.hardware.as_str()).collect();
    let what = if cards == MeasuredCards::BuiltIn { "Step-3's shapes" } else { "one model" };
    CliError::Mistake(format!(
        "--measured: there are stage times of {what} on {}, and nothing of this question is that",
        words::list(&names)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_be_said_to_be_of_another_card() {
        let of = |text: &str| text.parse::<MeasuredFile>().expect("any text");
        let file = |hardware: Option<&str>, paths: &[&str]| MeasuredFile {
            hardware: hardware.map(str::to_owned),
            paths: paths.iter().map(PathBuf::from).collect(),
        };
        assert_eq!(of("H800:card.json"), file(Some("H800"), &["card.json"]));
        assert_eq!(of("./card.json"), file(None, &["./card.json"]));
        assert_eq!(of(":card.json"), file(None, &[":card.json"]));
        assert_eq!(of("H800:a.json,b.json"), file(Some("H800"), &["a.json", "b.json"]));
    }
}
