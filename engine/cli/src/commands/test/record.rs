//! A run that happened becomes a case: what its steps found and what people said, and what came of it.
//!
//! Every step that touched a target is replaced by what it said, so the case needs no world and passes anywhere. What
//! cannot be told so (a run that a guard parked, one that was stopped in the middle of a step) is found by executing the
//! case before it is printed.

use std::sync::Arc;
use std::time::Duration;

use farrier_exec::Run;
use farrier_model::time::{Timestamp, format_duration};
use farrier_model::{Entry, Event, NodeState, RunState};
use farrier_runbook::graph::Uses;
use farrier_runbook::testfile::read_tests;
use farrier_runbook::{Diagnostics, compile_bundle};
use farrier_store::{RunRow, Store};
use serde_json::{Map, Value as Json, json};

use super::super::{App, Problem, block_on};
use super::case::{Came, Case, Trouble};
use crate::exit::Exit;
use crate::render;
use crate::stores;

/// Prints the case of a stored run.
pub(super) fn record(app: &App, id: &str) -> Result<Exit, Problem> {
    let (mut test, row) = block_on(case_of(app, id))?;
    let mut came = try_out(app, &row, &text_of(&test)?)?;
    if row.state == RunState::Undone
        && let Some(state) = came.state.filter(|state| *state != RunState::Undone)
    {
        // The stand-ins changed nothing, so nothing has to be undone.
        test["expect"]["state"] = json!(state.name());
        came = try_out(app, &row, &text_of(&test)?)?;
    }
    render::line(text_of(&test)?.trim_end())?;
    let differences = came.differences;
    if differences.is_empty() {
        return Ok(Exit::Ok);
    }
    eprintln!("this case does not pass as it stands; change what is expected, or the runbook:");
    for line in differences.iter().flat_map(|difference| difference.lines()) {
        eprintln!("  {line}");
    }
    Ok(Exit::TestsFailed)
}

/// Executes the recorded case where it would stand.
fn try_out(app: &App, row: &RunRow, text: &str) -> Result<Came, Problem> {
    let workspace = app.workspace()?;
    let bundle = workspace.bundle(&row.runbook, app.registry.catalog())?;
    let is_it = |file: &std::path::PathBuf| {
        file.file_stem().is_some_and(|stem| stem.to_string_lossy() == *row.runbook)
    };
    let file = workspace.runbook_files().into_iter().find(is_it).unwrap_or_else(|| workspace.root.clone());
    let mut diagnostics = Diagnostics::new();
    let id = diagnostics.add_file("the recorded case", text.as_bytes());
    let tests = read_tests(id, text.as_bytes(), app.registry.catalog(), &mut diagnostics);
    let Some(test) = tests.and_then(|tests| tests.tests.into_iter().next()) else {
        return Err(Problem::Mistakes(Box::new(diagnostics)));
    };
    let (registry, bundle) = (app.registry.clone(), Arc::new(bundle));
    let case = Case { registry, file, bundle, test, update: false };
    case.execute(&Trouble::default())
}

fn text_of(test: &Map<String, Json>) -> Result<String, Problem> {
    serde_saphyr::to_string(&json!({ "tests": [test] }))
        .map_err(|error| Problem::Other(anyhow::Error::new(error).context("the case cannot be written")))
}

async fn case_of(app: &App, id: &str) -> Result<(Map<String, Json>, RunRow), Problem> {
    let workspace = app.workspace()?;
    let catalog = app.registry.catalog();
    let (store, row) = stores::find(app, &workspace, id).await?;
    let journal = store.journal(row.id).await?;
    let sources = store.bundle(row.bundle).await?.map(|(_, sources)| sources).unwrap_or_default();
    store.close().await;
    let bundle = compile_bundle(&row.runbook, &sources, catalog)
        .map_err(|mistakes| Problem::Mistakes(Box::new(mistakes)))?;
    let run = Run::replay(row.id, bundle.graph().clone(), &journal)
        .map_err(|error| Problem::Other(error.into()))?;
    let starts_others = run.nodes().any(|node| {
        matches!(run.graph.step(node.step).uses, Uses::Runbook { .. })
            && run.node(node).state != NodeState::Skipped
    });
    if starts_others {
        return Err(Problem::Usage(format!(
            "run {} started other runs, whose steps a case cannot replace; record those runs one by one",
            row.id
        )));
    }
    let mut test = written(&run, &journal);
    if let Ok(site) = workspace.site(&row.environment, catalog) {
        if !site.environment.people.is_empty() {
            test.insert("people".into(), json!(site.environment.people));
        }
        if site.environment.approvals.needed(farrier_model::spec::Risk::Destructive) > 0 {
            test.insert("approvals".into(), json!(site.environment.approvals));
        }
    }
    Ok((test, row))
}

fn json_of(value: &farrier_model::Value) -> Json {
    serde_json::from_str(&value.to_json()).unwrap_or(Json::Null)
}

/// The case, without the people of the environment.
fn written(run: &Run, journal: &[Entry]) -> Map<String, Json> {
    let mut test = Map::new();
    test.insert("name".into(), json!(format!("as run {} of {}", &run.id.to_string()[..13], run.started_at)));
    let inputs = run.inputs.as_map().into_iter().flat_map(farrier_model::Map::iter);
    let inputs: Map<String, Json> = inputs
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.to_string(), json_of(value)))
        .collect();
    if !inputs.is_empty() {
        test.insert("inputs".into(), inputs.into());
    }
    test.insert("start".into(), json!(run.started_at.to_string()));
    let mut actions = Map::new();
    let mut steps = Map::new();
    for node in run.nodes() {
        let name = run.name(node).to_string();
        let (state, step) = (run.node(node), run.graph.step(node.step));
        let is_whole =
            node.item.is_none() && run.nodes().any(|other| other.step == node.step && other.item.is_some());
        if let Uses::Action { pure: false, .. } = &step.uses
            && !is_whole
        {
            let stand_in = match (state.state, &state.output, &state.failure) {
                (NodeState::Succeeded | NodeState::Undone, Some(output), _) => {
                    Some(json!({ "output": json_of(output) }))
                }
                (NodeState::Failed, _, Some(failure)) => Some(json!({ "fail": failure.message })),
                _ => None,
            };
            if let Some(stand_in) = stand_in {
                actions.insert(name.clone(), stand_in);
            }
        }
        let told = matches!(
            state.state,
            NodeState::Succeeded | NodeState::Failed | NodeState::Skipped | NodeState::Blocked
        );
        if told {
            steps.insert(name, json!(state.state.name()));
        }
    }
    test.insert("actions".into(), actions.into());
    let mut events = Vec::new();
    for (at, entry) in journal.iter().enumerate() {
        // A signal that stops the run says so in two events.
        let follows = at > 0
            && matches!(journal[at - 1].event, Event::SignalReceived { .. })
            && matches!(entry.event, Event::CancelRequested { .. });
        if !follows {
            events.extend(event(entry, run.started_at));
        }
    }
    if !events.is_empty() {
        test.insert("events".into(), events.into());
    }
    let mut expect = Map::new();
    expect.insert("state".into(), json!(run.state.name()));
    expect.insert("steps".into(), steps.into());
    let outputs = run.outputs.as_map().into_iter().flat_map(farrier_model::Map::iter);
    let outputs: Map<String, Json> =
        outputs.map(|(name, value)| (name.to_string(), json_of(value))).collect();
    if !outputs.is_empty() {
        expect.insert("outputs".into(), outputs.into());
    }
    if let Some(failure) = &run.failure {
        let first = failure.message.lines().next().unwrap_or_default();
        expect.insert("message_contains".into(), json!(first));
    }
    if run.state == RunState::Waiting
        && let Some((_, Some(until))) = &run.suspended
    {
        // A case goes on until nothing is left to happen, and time is no obstacle to it.
        let length = Duration::try_from(until.duration_since(run.started_at)).unwrap_or_default();
        expect.insert("ended_within".into(), json!(whole(length + Duration::from_secs(1))));
    }
    test.insert("expect".into(), expect.into());
    test
}

/// In whole seconds, rounded up: what people said came after what they were asked.
fn whole(length: Duration) -> String {
    format_duration(Duration::from_secs(length.as_secs() + 1))
}

fn event(entry: &Entry, begun: Timestamp) -> Option<Json> {
    let (mut event, by, reason) = match &entry.event {
        Event::SignalReceived { name, by, reason } => (json!({ "signal": name }), by, reason),
        Event::Approved { subject, by, reason, .. } => {
            (json!({ "approve": subject.to_string() }), by, reason)
        }
        Event::Rejected { subject, by, reason, .. } => (json!({ "reject": subject.to_string() }), by, reason),
        Event::CancelRequested { by, undo: true, reason } => {
            (json!({ "cancel": true, "undo": true }), by, reason)
        }
        Event::CancelRequested { by, undo: false, reason } => (json!({ "cancel": true }), by, reason),
        _ => return None,
    };
    event["at"] = json!(whole(Duration::try_from(entry.at.duration_since(begun)).unwrap_or_default()));
    event["by"] = json!(by);
    if let Some(reason) = reason {
        event["reason"] = json!(reason);
    }
    Some(event)
}
