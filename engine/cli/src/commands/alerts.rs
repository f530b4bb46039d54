//! `farrier alerts`: the routes from alerts to runbooks, and the rules for Prometheus.

use clap::Args;
use farrier_runbook::Diagnostics;
use serde::Serialize;

use super::{App, Problem};
use crate::exit::Exit;
use crate::render::{self, Format, table};

#[derive(Debug, Args)]
pub(super) struct AlertsArgs {
    /// Print the rules of all files of alerts instead, as a file for Prometheus.
    #[arg(long)]
    rules: bool,
}

#[derive(Serialize)]
struct RouteView {
    runbook: String,
    matchers: Vec<String>,
    per: String,
    receivers: Vec<String>,
    mode: farrier_alert::Mode,
}

impl AlertsArgs {
    pub(super) fn run(&self, app: &App) -> Result<Exit, Problem> {
        let workspace = app.workspace()?;
        let compiled = workspace.compile(app.registry.catalog())?;
        let alerts = workspace.alerts(&compiled)?;
        let mut mistakes: Diagnostics = compiled.diagnostics;
        mistakes.append(alerts.diagnostics);
        if mistakes.has_errors() {
            return Err(Problem::Mistakes(Box::new(mistakes)));
        }
        if self.rules {
            let groups: Vec<serde_json::Value> = alerts
                .files
                .into_iter()
                .filter_map(|file| file.rules)
                .filter_map(|mut rules| rules["groups"].as_array_mut().map(std::mem::take))
                .flatten()
                .collect();
            let output = if app.output == Format::Table { Format::Yaml } else { app.output };
            render::data(output, &serde_json::json!({ "groups": groups }))?;
            return Ok(Exit::Ok);
        }
        let views: Vec<RouteView> = alerts
            .routes
            .iter()
            .map(|route| RouteView {
                runbook: route.runbook.to_string(),
                matchers: route.matchers.iter().map(ToString::to_string).collect(),
                per: route.per.as_ref().map_or_else(String::new, |per| per.source().to_string()),
                receivers: route.receivers.iter().map(ToString::to_string).collect(),
                mode: route.policy.mode,
            })
            .collect();
        if render::data(app.output, &views)? {
            return Ok(Exit::Ok);
        }
        let rows: Vec<Vec<String>> = views
            .into_iter()
            .map(|view| {
                let receivers =
                    if view.receivers.is_empty() { "any".into() } else { view.receivers.join(", ") };
                vec![view.matchers.join(", "), view.runbook, view.per, receivers]
            })
            .collect();
        render::line(&table::draw(&["MATCHERS", "RUNBOOK", "PER", "RECEIVERS"], &rows))?;
        Ok(Exit::Ok)
    }
}
