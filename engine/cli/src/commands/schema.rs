//! `farrier schema`: JSON Schemas for editors, made from the types that read the files.

use clap::{Args, ValueEnum};
use farrier_model::spec::Catalog;
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
    /// The service file.
    Service,
    /// A runbook's tests.
    Tests,
    /// Alert rules and routes.
    Alerts,
}

impl SchemaArgs {
    pub(super) fn run(&self, app: &App) -> Result<Exit, Problem> {
        let schema = self.kind.schema(app.registry.catalog());
        render::line(&serde_json::to_string_pretty(&schema).map_err(anyhow::Error::from)?)?;
        Ok(Exit::Ok)
    }
}

impl Kind {
    fn schema(self, catalog: &Catalog) -> serde_json::Value {
        match self {
            Kind::Runbook => schema::runbook_schema(catalog),
            Kind::Environment => schema::environment_schema(catalog),
            Kind::Project => schema::project_schema(),
            Kind::Service => schema::service_schema(),
            Kind::Tests => schema::tests_schema(catalog),
            Kind::Alerts => schema::alerts_schema(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_schemas_are_current() {
        let registry = crate::plugins::registry().unwrap();
        for kind in Kind::value_variants() {
            let name = kind.to_possible_value().unwrap().get_name().to_owned();
            let current = serde_json::to_string_pretty(&kind.schema(registry.catalog())).unwrap() + "\n";
            farrier_testkit::generated::is_current(&format!("site/schema/{name}.json"), &current);
        }
    }
}
