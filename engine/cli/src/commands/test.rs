//! `farrier test`: the cases beside the runbooks, on copies of stand-ins, by a simulated clock.
//!
//! Read first: `case` (one execution of a case), `sandbox` (its world), `simulated` (its time), then `compare` and `sweep`.
//! Every case gets a fresh copy of its environment's folder in a temporary place, so cases neither meet each other nor
//! change what is checked in. Only stand-ins are allowed: a test never reaches a real server.

mod alerts;
mod case;
mod compare;
mod hooks;
mod record;
mod report;
mod sandbox;
mod simulated;
mod sweep;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use clap::Args;
use farrier_runbook::testfile::{Test, check_tests, read_tests};
use farrier_runbook::{Bundle, Diagnostics};

use super::{App, Problem};
use crate::exit::Exit;
use crate::render::style::Style;
use crate::render::{self, Format};
use case::{Case, Trouble};
use farrier_project::{shown, tested};
use report::Outcome;
use sweep::{Sweep, Swept};

#[derive(Debug, Args)]
pub(super) struct TestArgs {
    /// Only tests of these runbooks, or whose name contains this; all without any.
    only: Vec<String>,
    /// Execute each case again and again, with something going wrong each time.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    sweep: Vec<Sweep>,
    /// Try at most so many places of each kind and case in a sweep, spread evenly; all without it.
    #[arg(long, value_name = "N", requires = "sweep", value_parser = clap::value_parser!(u64).range(1..))]
    tries: Option<u64>,
    /// Write the plans that cases compare with (`golden`) anew.
    #[arg(long)]
    update: bool,
    /// Write the outcome as JUnit's XML as well.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Print a case that does again what this run did, by the beginning of its id. Needs no world.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["only", "sweep", "tries", "update", "junit", "parallel"])]
    record: Option<String>,
    /// Cases at once; as many as there are processors without it.
    #[arg(long, value_name = "N")]
    parallel: Option<usize>,
}

/// A case that is to be executed.
struct Chosen {
    runbook: String,
    place: String,
    case: Case,
}

impl TestArgs {
    pub(super) fn run(&self, app: &App) -> Result<Exit, Problem> {
        if let Some(run) = &self.record {
            return record::record(app, run);
        }
        let chosen = self.choose(app)?;
        let of_alerts = self.alerts(app)?;
        if chosen.is_empty() && of_alerts.is_empty() && app.output == Format::Table {
            return Err(Problem::Usage("no test fits".into()));
        }
        let threads = self
            .parallel
            .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
            .unwrap_or(1)
            .clamp(1, chosen.len().max(1));
        let mut outcomes = self.execute(app, &chosen, threads)?;
        for outcome in of_alerts {
            if app.output == Format::Table {
                print(&outcome)?;
            }
            outcomes.push(outcome);
        }
        let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
        if let Some(path) = &self.junit {
            report::junit(path, &outcomes)?;
        }
        if app.output == Format::Table {
            render::line(&format!("{} passed, {failed} failed", outcomes.len() - failed))?;
        } else {
            render::data(app.output, &outcomes)?;
        }
        Ok(if failed > 0 { Exit::TestsFailed } else { Exit::Ok })
    }

    /// The tests in files of alerts. They need no world, and are executed at once.
    fn alerts(&self, app: &App) -> Result<Vec<Outcome>, Problem> {
        let workspace = app.workspace()?;
        if workspace.alert_files().is_empty() {
            return Ok(Vec::new());
        }
        let compiled = workspace.compile(app.registry.catalog())?;
        let found = workspace.alerts(&compiled)?;
        if found.diagnostics.has_errors() {
            return Err(Problem::Mistakes(Box::new(found.diagnostics)));
        }
        alerts::execute(&found, &compiled, |file, name| {
            self.only.is_empty() || self.only.iter().any(|only| file == only || name.contains(only.as_str()))
        })
    }

    fn choose(&self, app: &App) -> Result<Vec<Chosen>, Problem> {
        let workspace = app.workspace()?;
        let compiled = workspace.compile(app.registry.catalog())?;
        let mut chosen = Vec::new();
        for path in workspace.test_files() {
            let runbook = tested(&path);
            let runbook = runbook.as_str();
            let bundle = compiled.bundle(runbook).ok_or_else(|| {
                if compiled.graphs.contains_key(runbook) || compiled.diagnostics.has_errors() {
                    Problem::Mistakes(Box::new(compiled.diagnostics.clone()))
                } else {
                    Problem::Usage(format!(
                        "{} tests the runbook `{runbook}`, which does not exist",
                        shown(&path)
                    ))
                }
            })?;
            let bundle = Arc::new(bundle);
            for (line, test) in load(app, &path, &bundle)? {
                let wanted = self.only.is_empty()
                    || self.only.iter().any(|only| runbook == only || test.name.contains(only.as_str()));
                if wanted {
                    chosen.push(Chosen {
                        runbook: runbook.to_owned(),
                        place: format!("{}:{line}", shown(&path)),
                        case: Case {
                            registry: app.registry.clone(),
                            file: path.clone(),
                            bundle: bundle.clone(),
                            test,
                            update: self.update,
                        },
                    });
                }
            }
        }
        Ok(chosen)
    }

    /// Executes the cases on several threads, and tells of each in the order of the files.
    fn execute(&self, app: &App, chosen: &[Chosen], threads: usize) -> Result<Vec<Outcome>, Problem> {
        let next = AtomicUsize::new(0);
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let (tell, next) = (tell.clone(), &next);
                scope.spawn(move || {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(chosen) = chosen.get(at) else { return };
                        // Whoever listens is gone when another case could not be executed at all.
                        if tell.send((at, chosen.execute(&self.sweep, self.tries))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(tell);
            let mut waiting: Vec<Option<Outcome>> = chosen.iter().map(|_| None).collect();
            let mut outcomes = Vec::new();
            for (at, outcome) in told {
                waiting[at] = Some(outcome?);
                while let Some(outcome) = waiting.get_mut(outcomes.len()).and_then(Option::take) {
                    if app.output == Format::Table {
                        print(&outcome)?;
                    }
                    outcomes.push(outcome);
                }
            }
            Ok(outcomes)
        })
    }
}

impl Chosen {
    fn execute(&self, sweeps: &[Sweep], tries: Option<u64>) -> Result<Outcome, Problem> {
        let begun = Instant::now();
        let came = self.case.execute(&Trouble::default())?;
        let swept = Swept::over(&self.case, &came, sweeps, tries)?;
        let mut differences = came.differences;
        differences.extend(swept.differences);
        Ok(Outcome {
            runbook: self.runbook.clone(),
            test: self.case.test.name.to_string(),
            place: self.place.clone(),
            passed: differences.is_empty(),
            crashes: swept.crashes,
            failures: swept.failures,
            differences,
            took: begun.elapsed(),
        })
    }
}

fn print(outcome: &Outcome) -> Result<(), Problem> {
    let style = Style::stdout();
    let Outcome { runbook, test, place, .. } = outcome;
    if outcome.passed {
        render::line(&format!("{}  {runbook}: {test}{}", style.good("passed"), outcome.swept()))?;
        return Ok(());
    }
    render::line(&format!("{}  {runbook}: {test}{}", style.bad("FAILED"), outcome.swept()))?;
    render::line(&format!("        {}", style.dim(place)))?;
    for line in outcome.differences.iter().flat_map(|difference| difference.lines()) {
        let line = match line.chars().next() {
            Some('-') => style.bad(line),
            Some('+') => style.good(line),
            _ => line.to_owned(),
        };
        render::line(&format!("        {line}"))?;
    }
    Ok(())
}

/// The cases of a file, with their lines.
fn load(app: &App, path: &Path, bundle: &Bundle) -> Result<Vec<(usize, Test)>, Problem> {
    let bytes = std::fs::read(path).map_err(|error| Problem::file(path, error))?;
    let mut diagnostics = Diagnostics::new();
    let file = diagnostics.add_file(shown(path), &bytes);
    let tests = read_tests(file, &bytes, app.registry.catalog(), &mut diagnostics);
    if let Some(tests) = &tests {
        check_tests(tests, bundle.graph(), &mut diagnostics);
    }
    match tests {
        Some(tests) if !diagnostics.has_errors() => Ok(tests
            .tests
            .into_iter()
            .map(|test| (diagnostics.position(file, test.name.span.start).0, test))
            .collect()),
        _ => Err(Problem::Mistakes(Box::new(diagnostics))),
    }
}
