//! `farrier check`: every mistake of every file at once.

use std::path::PathBuf;

use clap::Args;
use farrier_runbook::environment::read_environment;
use farrier_runbook::testfile::{check_tests, read_tests};
use farrier_runbook::{Compiled, Diagnostics};
use serde::Serialize;

use super::{App, Problem};
use crate::exit::Exit;
use crate::render::style::Style;
use crate::render::{self, Format};
use farrier_project::{compile_files, shown, tested};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Only these runbook files; without any, the whole project.
    files: Vec<PathBuf>,
}

#[derive(Debug, Default, Serialize)]
struct Counted {
    runbooks: u64,
    tests: u64,
    environments: u64,
    alerts: u64,
}

impl Check {
    pub(super) fn run(&self, app: &App) -> Result<Exit, Problem> {
        let catalog = app.registry.catalog();
        let mut counted = Counted::default();
        let mut found: Vec<Diagnostics> = Vec::new();
        let compiled: Compiled;
        if self.files.is_empty() {
            let workspace = app.workspace()?;
            counted.runbooks = workspace.runbook_files().len() as u64;
            compiled = workspace.compile(catalog)?;
            for path in workspace.environment_files() {
                counted.environments += 1;
                let mut diagnostics = Diagnostics::new();
                let bytes = std::fs::read(&path).map_err(|error| Problem::file(&path, error))?;
                let file = diagnostics.add_file(shown(&path), &bytes);
                read_environment(file, &bytes, catalog, &mut diagnostics);
                found.push(diagnostics);
            }
            let alerts = workspace.alerts(&compiled)?;
            counted.alerts = workspace.alert_files().len() as u64;
            counted.tests += alerts.files.iter().map(|file| file.tests.len() as u64).sum::<u64>();
            found.push(alerts.diagnostics);
            for path in workspace.test_files() {
                let mut diagnostics = Diagnostics::new();
                let bytes = std::fs::read(&path).map_err(|error| Problem::file(&path, error))?;
                let file = diagnostics.add_file(shown(&path), &bytes);
                if let Some(tests) = read_tests(file, &bytes, catalog, &mut diagnostics) {
                    counted.tests += tests.tests.len() as u64;
                    if let Some(graph) = compiled.graphs.get(&*tested(&path)) {
                        check_tests(&tests, graph, &mut diagnostics);
                    }
                }
                found.push(diagnostics);
            }
        } else {
            counted.runbooks = self.files.len() as u64;
            compiled = compile_files(&self.files, catalog)?;
        }
        found.insert(0, compiled.diagnostics);
        let errors = found.iter().any(Diagnostics::has_errors);
        if app.output == Format::Table {
            let colour = Style::stdout().has_colour();
            for diagnostics in found.iter().filter(|diagnostics| !diagnostics.is_empty()) {
                render::line(&diagnostics.render(colour))?;
            }
            if !errors {
                let alerts = match counted.alerts {
                    0 => String::new(),
                    alerts => format!(", {}", render::many(alerts, "file") + " of alerts"),
                };
                render::line(&format!(
                    "{}, {}, {}{alerts}: no mistakes",
                    render::many(counted.runbooks, "runbook"),
                    render::many(counted.tests, "test"),
                    render::many(counted.environments, "environment")
                ))?;
            }
        } else {
            let list: Vec<serde_json::Value> = found
                .iter()
                .flat_map(|diagnostics| match diagnostics.to_json() {
                    serde_json::Value::Array(items) => items,
                    other => vec![other],
                })
                .collect();
            render::data(app.output, &list)?;
        }
        Ok(if errors { Exit::Invalid } else { Exit::Ok })
    }
}
