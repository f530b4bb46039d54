//! `farrier schema`: JSON Schemas for editors, made from the types that read the files.

use clap::{Args, ValueEnum};
use farrier_runbook::schema;

use super::{App, Problem};
use crate::exit::Exit;
use crate::render;

#[derive(Debug, Args)]
pub(super) struct SchemaArgs {
    /// The kind of file.
    #[arg(default_value = "runbook", value_enum)]
    kind: Kind,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// A runbook.
    Runbook,
    /// An environment.
    Environment,
    /// The project file.
    Project,
    /// A runbook's tests.
    Tests,
}

impl SchemaArgs {
    pub(super) fn run(&self, app: &App) -> Result<Exit, Problem> {
        let catalog = app.registry.catalog();
        let schema = match self.kind {
            Kind::Runbook => schema::runbook_schema(catalog),
            Kind::Environment => schema::environment_schema(catalog),
            Kind::Project => schema::project_schema(),
            Kind::Tests => schema::tests_schema(catalog),
        };
        render::line(&serde_json::to_string_pretty(&schema).map_err(anyhow::Error::from)?)?;
        Ok(Exit::Ok)
    }
}
