//! `farrier test`: the cases beside the runbooks, on copies of stand-ins.
//!
//! Every case gets a fresh copy of its environment's folder in a temporary place, so cases neither meet each other nor
//! change what is checked in. Only stand-ins are allowed: a test never reaches a real server.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use farrier_exec::driver::{Answer, Confirm, ProceedAlways, Start, Unobserved, World};
use farrier_exec::{Driver, Halt, Interpose, Options, Plan, PlanStep, PlanStepState, Run, StandIn};
use farrier_model::event::Trigger;
use farrier_model::{Event, Failure, FailureKind, NodeEvent, NodeName, NodeState, RunState, Value};
use farrier_runbook::environment::{TargetBindings, read_environment};
use farrier_runbook::inputs::{Given, check_inputs};
use farrier_runbook::testfile::{self, Counts, Expected, ExpectedPlan, Test, Tests, check_tests, read_tests};
use farrier_runbook::{Bundle, Diagnostics};
use farrier_store::{Clock, MemoryStore, Store};
use serde::Serialize;
use tokio::sync::watch;

use super::{App, Problem};
use crate::exit::Exit;
use crate::project::{bind, shown};
use crate::render::style::Style;
use crate::render::{self, Format};

#[derive(Debug, Args)]
pub(super) struct TestArgs {
    /// Only tests of these runbooks, or whose name contains this; all without any.
    only: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Outcome {
    runbook: String,
    test: String,
    passed: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<String>,
}

impl TestArgs {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let workspace = app.workspace()?;
        let compiled = workspace.compile(app.registry.catalog())?;
        let style = Style::stdout();
        let mut outcomes = Vec::new();
        for path in workspace.test_files() {
            let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let runbook = file_name.trim_end_matches(".test.yaml");
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
            let tests = load(app, &path, &bundle)?;
            let bundle = Arc::new(bundle);
            for test in &tests.tests {
                let wanted = self.only.is_empty()
                    || self.only.iter().any(|only| runbook == only || test.name.contains(only.as_str()));
                if !wanted {
                    continue;
                }
                let differences = run_case(app, &path, &bundle, test).await?;
                let passed = differences.is_empty();
                if app.output == Format::Table {
                    let mark = if passed { style.good("passed") } else { style.bad("FAILED") };
                    render::line(&format!("{mark}  {runbook}: {}", *test.name))?;
                    for difference in &differences {
                        render::line(&format!("        {difference}"))?;
                    }
                }
                outcomes.push(Outcome {
                    runbook: runbook.to_owned(),
                    test: test.name.to_string(),
                    passed,
                    differences,
                });
            }
        }
        let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
        if app.output == Format::Table {
            if outcomes.is_empty() {
                return Err(Problem::Usage("no test fits".into()));
            }
            render::line(&format!("{} passed, {failed} failed", outcomes.len() - failed))?;
        } else {
            render::data(app.output, &outcomes)?;
        }
        Ok(if failed > 0 { Exit::TestsFailed } else { Exit::Ok })
    }
}

fn load(app: &App, path: &Path, bundle: &Bundle) -> Result<Tests, Problem> {
    let bytes = std::fs::read(path).map_err(|error| Problem::file(path, error))?;
    let mut diagnostics = Diagnostics::new();
    let file = diagnostics.add_file(shown(path), &bytes);
    let tests = read_tests(file, &bytes, app.registry.catalog(), &mut diagnostics);
    if let Some(tests) = &tests {
        check_tests(tests, bundle.graph(), &mut diagnostics);
    }
    match tests {
        Some(tests) if !diagnostics.has_errors() => Ok(tests),
        _ => Err(Problem::Mistakes(Box::new(diagnostics))),
    }
}

/// The folder of one case; removed with it.
struct Sandbox {
    folder: tempfile::TempDir,
    targets: farrier_action::Targets,
}

/// Copies the environment's folder and binds the case's targets to the copy.
fn sandbox(app: &App, file: &Path, test: &Test) -> Result<Sandbox, Problem> {
    let test_folder = file.parent().unwrap_or(Path::new("."));
    let mut bindings = TargetBindings::default();
    let mut from = test_folder.to_path_buf();
    if let Some(environment) = &test.environment {
        let path = test_folder.join(environment.as_str());
        let bytes = std::fs::read(&path).map_err(|error| Problem::file(&path, error))?;
        let mut diagnostics = Diagnostics::new();
        let id = diagnostics.add_file(shown(&path), &bytes);
        let environment = read_environment(id, &bytes, app.registry.catalog(), &mut diagnostics)
            .ok_or_else(|| Problem::Mistakes(Box::new(diagnostics)))?;
        bindings = environment.targets;
        from = path.parent().unwrap_or(test_folder).to_path_buf();
    }
    for binding in &test.bindings.bindings {
        bindings.bindings.retain(|known| *known.alias != *binding.alias);
        bindings.bindings.push(binding.clone());
    }
    bindings.groups.extend(test.bindings.groups.clone());
    for binding in &bindings.bindings {
        let stand_in = app.registry.is_stand_in(&binding.kind, &binding.config);
        if !stand_in.is_ok_and(|stand_in| stand_in) {
            return Err(Problem::Usage(format!(
                "{}: test `{}`: target `{}` is not a stand-in, and tests use nothing else",
                shown(file),
                *test.name,
                *binding.alias
            )));
        }
    }
    let folder = tempfile::Builder::new().prefix("farrier-test-").tempdir().map_err(|error| {
        Problem::Other(anyhow::Error::new(error).context("cannot make a temporary folder"))
    })?;
    // One level deep, so that paths such as `../.farrier/…` stay inside.
    let copy = folder.path().join("a").join("b").join("c");
    copy_tree(&from, &copy).map_err(|error| Problem::file(&from, error))?;
    let targets = bind(&copy, &bindings);
    Ok(Sandbox { folder, targets })
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(entry.path())?, target)?;
        } else if kind.is_file() {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The case's word on what is not executed.
struct StandIns(HashMap<String, StandIn>);

impl StandIns {
    fn of(test: &Test) -> StandIns {
        StandIns(
            test.actions
                .iter()
                .map(|(name, stand_in)| {
                    let stand_in = match stand_in {
                        testfile::StandIn::Fail(message) => {
                            StandIn::Fail(Failure::new(FailureKind::Refused, message.to_string()))
                        }
                        testfile::StandIn::Output(output) => StandIn::Output(output.to_value()),
                    };
                    (name.to_string(), stand_in)
                })
                .collect(),
        )
    }
}

impl Interpose for StandIns {
    fn instead_of(&self, node: &NodeName, action: &str) -> Option<StandIn> {
        self.0.get(&*node.step).or_else(|| self.0.get(action)).cloned()
    }
}

/// Remembers the plan that the run was about to carry out.
#[derive(Default)]
struct Remember(std::sync::Mutex<Option<Plan>>);

#[async_trait::async_trait]
impl Confirm for Remember {
    async fn confirm(&self, plan: &Plan) -> Answer {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(plan.clone());
        ProceedAlways.confirm(plan).await
    }
}

/// Runs one case; every difference between what is and what should be, in sentences.
async fn run_case(app: &App, file: &Path, bundle: &Arc<Bundle>, test: &Test) -> Result<Vec<String>, Problem> {
    let sandbox = sandbox(app, file, test)?;
    let given =
        test.inputs.iter().map(|(key, node)| (key.as_str().into(), Given::Value(node.to_value()))).collect();
    let inputs = match check_inputs(bundle.graph(), &given) {
        Ok(inputs) => inputs,
        Err(problems) => return Ok(problems.iter().map(|problem| format!("inputs: {problem}")).collect()),
    };
    let start = Start {
        bundle: bundle.clone(),
        world: World::new("test", Arc::new(sandbox.targets)),
        inputs,
        trigger: Trigger::Manual { by: "test".into() },
        plan: None,
    };
    let store = Arc::new(MemoryStore::default());
    let (_stop, cancel) = watch::channel(Halt::No);
    let options = Options { interpose: Some(Arc::new(StandIns::of(test))), ..Options::default() };
    let driver = Driver::new(
        app.registry.clone(),
        store.clone(),
        Clock::system(),
        options,
        Arc::new(Unobserved),
        cancel,
    );

    let mut differences = Vec::new();
    if let Some(expected) = &test.plan {
        let plan = driver.plan(&start).await?;
        differences.extend(compare_plan(expected, &plan));
    }
    if let Some(expected) = &test.expect {
        let ended = driver.start(&start, &Remember::default(), |_| {}).await?;
        let journal = store.journal(ended.run).await?;
        let run = Run::replay(ended.run, bundle.graph().clone(), &journal)
            .map_err(|error| Problem::Other(error.into()))?;
        let undone = undone(&journal.iter().map(|entry| &entry.event).collect::<Vec<_>>());
        let message =
            ended.failure.as_ref().map(ToString::to_string).or(ended.parked.clone()).unwrap_or_default();
        differences.extend(compare_run(expected, &run, &message, &undone));
        if let Some(settled) = &expected.settled {
            let plan = driver.plan(&start).await?;
            if plan.is_empty() != **settled {
                let counts = render::plan::counts(plan.summary, Style::plain());
                differences
                    .push(format!("settled: expected {}, but planning again finds {counts}", **settled));
            }
        }
        let report = farrier_store::fsck(&*store).await?;
        differences.extend(report.violations.iter().map(|violation| format!("journal: {violation}")));
    }
    drop(sandbox.folder);
    Ok(differences)
}

fn undone(events: &[&Event]) -> Vec<String> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Node { node, event: NodeEvent::UndoDone, .. } => Some(node.to_string()),
            _ => None,
        })
        .collect()
}

fn compare_plan(expected: &ExpectedPlan, plan: &Plan) -> Vec<String> {
    let mut differences = Vec::new();
    match (&expected.fails, &plan.failure) {
        (Some(wanted), Some(failure)) => {
            if !failure.to_string().contains(wanted.as_str()) {
                differences.push(format!(
                    "plan: expected a failure with `{wanted}`, but it failed with `{failure}`"
                ));
            }
        }
        (Some(wanted), None) => {
            differences.push(format!("plan: expected a failure with `{wanted}`, but it succeeded"));
        }
        (None, Some(failure)) => differences.push(format!("plan: failed with `{failure}`")),
        (None, None) => {}
    }
    for (step, wanted) in &expected.changes {
        let found = plan.steps.iter().find(|shown| *shown.id == **step).map(counts_of).unwrap_or_default();
        if found != *wanted {
            differences.push(format!("plan: step `{step}`: expected {}, found {}", say(*wanted), say(found)));
        }
    }
    if let Some(wanted) = &expected.deferred {
        let mut wanted: Vec<&str> = wanted.iter().map(|step| step.as_str()).collect();
        let mut found: Vec<&str> = plan
            .steps
            .iter()
            .filter(|step| matches!(step.state, PlanStepState::After(_) | PlanStepState::MaybeAfter(_)))
            .map(|step| &*step.id)
            .collect();
        wanted.sort_unstable();
        found.sort_unstable();
        if wanted != found {
            differences.push(format!("plan: expected deferred: {}; found {}", list(&wanted), list(&found)));
        }
    }
    differences
}

fn counts_of(step: &PlanStep) -> Counts {
    let counts = step.counts;
    Counts {
        create: counts.create,
        update: counts.update,
        delete: counts.delete,
        run: counts.run,
        send: counts.send,
    }
}

fn compare_run(expected: &Expected, run: &Run, message: &str, undone: &[String]) -> Vec<String> {
    let mut differences = Vec::new();
    let wanted = RunState::from(*expected.state);
    if run.state != wanted {
        let why = if message.is_empty() { String::new() } else { format!(": {message}") };
        differences.push(format!("state: expected {}, found {}{why}", wanted.name(), run.state.name()));
    }
    for (step, wanted) in &expected.steps {
        let wanted = NodeState::from(**wanted);
        let found =
            step.parse::<NodeName>().ok().and_then(|name| run.find(&name)).map(|node| run.node(node).state);
        if found != Some(wanted) {
            let found = found.map_or("no such step", NodeState::name);
            differences.push(format!("step `{step}`: expected {}, found {found}", wanted.name()));
        }
    }
    for (step, wanted) in &expected.changes {
        let kinds = run
            .nodes()
            .filter(|node| *run.name(*node).step == ***step)
            .filter(|node| run.node(*node).state != NodeState::Failed)
            .flat_map(|node| run.node(node).effects.iter().map(|change| change.kind));
        let found = Counts::of(kinds);
        if found != *wanted {
            differences.push(format!("step `{step}`: expected {}, found {}", say(*wanted), say(found)));
        }
    }
    for (name, node) in &expected.outputs {
        let wanted = node.to_value();
        let found = run.outputs.get(name.as_str()).cloned().unwrap_or(Value::Null);
        if found != wanted {
            differences.push(format!(
                "output `{name}`: expected {}, found {}",
                wanted.to_json(),
                found.to_json()
            ));
        }
    }
    if let Some(wanted) = &expected.undone {
        let wanted: Vec<&str> = wanted.iter().map(|step| step.as_str()).collect();
        let found: Vec<&str> = undone.iter().map(String::as_str).collect();
        if wanted != found {
            differences.push(format!("undone: expected {}; found {}", list(&wanted), list(&found)));
        }
    }
    if let Some(wanted) = &expected.message_contains
        && !message.contains(wanted.as_str())
    {
        differences.push(format!("message: expected one with `{wanted}`, found `{message}`"));
    }
    differences
}

fn say(counts: Counts) -> String {
    let parts: Vec<String> = [
        ("create", counts.create),
        ("update", counts.update),
        ("delete", counts.delete),
        ("run", counts.run),
        ("send", counts.send),
    ]
    .iter()
    .filter(|(_, count)| *count > 0)
    .map(|(name, count)| format!("{count} {name}"))
    .collect();
    if parts.is_empty() { "no changes".into() } else { parts.join(", ") }
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
