//! `rally show`: the stage graph as a picture, or the unrolled plan.

use crate::Format;
use crate::error::{Blame, CliError};
use crate::graph_file;
use crate::{output, report, show_plan};
use clap::{Args, ValueEnum};
use rally_graph::diagnostic::Diagnostic;
use rally_graph::kinds::KindRegistry;
use rally_graph::render;
use rally_stages::deployment::Checked;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `rally show`.
#[derive(Clone, Debug, Args)]
pub struct ShowArgs {
    /// The graph file.
    pub graph: PathBuf,
    /// Model folder to use instead of the graph's.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// The form of the picture; a text tree unless given.
    #[arg(long = "as", value_name = "FORM", value_enum)]
    pub form: Option<Form>,
    /// Show the plan: what every lane does, in order, for whom it waits, and a timeline; as text, `svg`, `html` or `json`.
    #[arg(long)]
    pub plan: bool,
    /// Schedule of the plan instead of the graph's: `sequential`, `ping_pong`, `greedy` or `custom`, with `:N` for N micro-batches.
    #[arg(long, value_name = "POLICY[:N]", requires = "plan")]
    pub schedule: Option<String>,
    /// How results are printed; `json` is the same as `--as json`.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Forms of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Graphviz.
    Dot,
    /// Mermaid, as Markdown viewers draw it.
    Mermaid,
    /// An image for browsers and documents.
    Svg,
    /// A page of its own.
    Html,
    /// For programs.
    Json,
}

/// Runs `rally show`. A graph whose faults are not of form is still drawn, after they have been reported.
pub fn run(args: &ShowArgs) -> Result<ExitCode, CliError> {
    let checked = graph_file::check(&args.graph, args.model.as_deref());
    // A picture needs no model, so a tree can be drawn before the weights are there.
    let bearable = |diagnostic: &&Diagnostic| diagnostic.code != "model-unreadable" || args.plan;
    let told: Vec<Diagnostic> = checked.diagnostics.iter().filter(bearable).cloned().collect();
    report::print(&args.graph, checked.positions.text(), &told);
    let good = !told.iter().any(Diagnostic::is_error);
    let form = args.form.or((args.format == Format::Json).then_some(Form::Json));
    let text = if args.plan {
        if !good {
            return Err(CliError::Reported);
        }
        show_plan::render(&checked, form, args.schedule.as_deref())?
    } else {
        draw(&checked, form)?
    };
    output::print(&text)?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn draw(checked: &Checked, form: Option<Form>) -> Result<String, CliError> {
    let Some(spec) = &checked.spec else { return Err(CliError::Reported) };
    let picture = render::picture(spec, checked.shape.as_ref(), KindRegistry::shared());
    Ok(match form {
        None => render::text(&picture),
        Some(Form::Dot) => render::dot(&picture),
        Some(Form::Mermaid) => render::mermaid(&picture),
        Some(Form::Svg) => render::svg(&picture),
        Some(Form::Html) => render::html(&picture),
        Some(Form::Json) => format!("{}\n", serde_json::to_string_pretty(&picture).or_failure()?),
    })
}
