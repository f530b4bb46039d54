//! `farrier graph`: the steps of a runbook as text, DOT, Mermaid or SVG.

use clap::{Args, ValueEnum};
use farrier_runbook::render_graph;

use super::{App, Problem};
use crate::exit::Exit;
use crate::render;

#[derive(Debug, Args)]
pub(super) struct GraphArgs {
    /// Name of a runbook, or the path of its file.
    runbook: String,
    /// The form.
    #[arg(long, short, default_value = "text", value_enum)]
    form: Form,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    /// A tree for people.
    Text,
    /// For Graphviz.
    Dot,
    /// For Markdown pages.
    Mermaid,
    /// A picture.
    Svg,
}

impl GraphArgs {
    pub(super) fn run(&self, app: &App) -> Result<Exit, Problem> {
        let bundle = app.workspace()?.bundle(&self.runbook, app.registry.catalog())?;
        let graph = bundle.graph();
        let text = match self.form {
            Form::Text => render_graph::to_text(graph),
            Form::Dot => render_graph::to_dot(graph),
            Form::Mermaid => render_graph::to_mermaid(graph),
            Form::Svg => render_graph::to_svg(graph),
        };
        render::line(text.trim_end())?;
        Ok(Exit::Ok)
    }
}
