//! Logs: on stderr, warnings and worse unless `RALLY_LOG` says otherwise, as text or as JSON lines.
//!
//! `RALLY_LOG` takes what `RUST_LOG` takes (`debug`, `rally_engine=trace,info`). Without it `RUST_LOG` is heeded, which other
//! programs read as well: a filter there that this one cannot read is a warning, in `RALLY_LOG` it is a mistake.

use crate::error::CliError;
use crate::observe::screen::{LogWriter, wants_colours};
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Without a word from the environment.
const DEFAULT: &str = "warn";

/// Starts logging.
pub fn start(format: LogFormat) -> Result<(), CliError> {
    let read = |name: &str| std::env::var(name).ok();
    let (filter, complaint) = filter(read("RALLY_LOG").as_deref(), read("RUST_LOG").as_deref())?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| LogWriter).with_ansi(wants_colours());
    // A program that embeds rally may have its own subscriber.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if let Some(complaint) = complaint {
        tracing::warn!("{complaint}");
    }
    Ok(())
}

/// The filter, and what was wrong with `RUST_LOG`.
fn filter(rally_log: Option<&str>, rust_log: Option<&str>) -> Result<(EnvFilter, Option<String>), CliError> {
    let parse = |text: &str| EnvFilter::builder().parse(text);
    if let Some(text) = rally_log.filter(|text| !text.trim().is_empty()) {
        let mistake =
            |error| CliError::Mistake(format!("RALLY_LOG={text}: {error}; try warn, info or rally_engine=debug"));
        return parse(text).map(|filter| (filter, None)).map_err(mistake);
    }
    let Some(text) = rust_log.filter(|text| !text.trim().is_empty()) else {
        return Ok((EnvFilter::new(DEFAULT), None));
    };
    match parse(text) {
        Ok(filter) => Ok((filter, None)),
        Err(error) => Ok((EnvFilter::new(DEFAULT), Some(format!("RUST_LOG={text} is ignored: {error}")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_both_variables_that_says_something_counts() {
        let chosen =
            |rally, rust| filter(rally, rust).map(|(filter, complaint)| (filter.to_string(), complaint.is_some()));
        for (rally, rust, want) in [
            (None, None, "warn"),
            (Some("debug"), None, "debug"),
            (Some("debug"), Some("trace"), "debug"),
            (None, Some("info"), "info"),
            (Some(" "), Some("info"), "info"),
            (Some("rally_engine=trace,info"), None, "rally_engine=trace,info"),
        ] {
            assert_eq!(chosen(rally, rust).expect("these are filters"), (want.into(), false), "{rally:?} {rust:?}");
        }
        assert_eq!(chosen(None, Some("a=b=c")).expect("others read it too"), ("warn".into(), true));
        let error = chosen(Some("a=b=c"), None).expect_err("this is ours alone");
        assert!(matches!(&error, CliError::Mistake(text) if text.contains("RALLY_LOG=a=b=c")), "{error}");
    }
}
