//! What a person says that a step in doubt gave, held against its output and against what others read of it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use farrier_model::{Text, Value};
use farrier_runbook::graph::Step;
use farrier_runbook::{Bundle, compile_bundle};
use serde_json::json;

const RUNBOOK: &str = "runbook: said
summary: Says
owner: tests
risk: recoverable
targets: { catalogue: sql }
steps:
  rows: { uses: data.rows, with: { from: [1], as: n, row: { id: \"${ n }\" } } }
  sync:
    uses: sql.sync
    with: { target: catalogue, table: t, key: [id], rows: \"${ steps.rows.rows }\", rows_not_listed: keep }
    undo: restore
  each:
    uses: sql.sync
    for_each: { in: \"${ ['a', 'b'] }\", as: name, key: name }
    with: { target: catalogue, table: t, key: [id], rows: \"${ steps.rows.rows }\", rows_not_listed: keep }
    undo: restore
  tell: { uses: flow.note, with: { message: \"${ steps.sync.changed } of ${ steps.sync.changed | default(0) }\" } }
  also: { uses: flow.note, needs: [sync], with: { message: \"${ steps.sync.changed | default(0) }\" } }
  all: { uses: flow.note, with: { message: \"${ steps.each.items | length }\" } }
outputs: { changed: \"${ steps.sync.changed }\" }
";

fn bundle() -> Arc<Bundle> {
    let sources = BTreeMap::from([(Text::from("said"), Text::from(RUNBOOK))]);
    match compile_bundle("said", &sources, &support::catalog()) {
        Ok(bundle) => Arc::new(bundle),
        Err(wrong) => panic!("{}", wrong.render(false)),
    }
}

fn step<'b>(bundle: &'b Bundle, id: &str) -> &'b Step {
    let graph = bundle.graph();
    graph.indices().map(|index| graph.step(index)).find(|step| &*step.id == id).unwrap()
}

fn said(step: &str, output: &serde_json::Value) -> Result<Value, String> {
    let output = Value::of(output).unwrap();
    self::step(&bundle(), step).said_output(Some(&output).filter(|output| !output.is_null()))
}

#[test]
fn what_others_read_must_be_said() {
    let wanted = "say what step `sync` gave, too: `changed`, which step `tell` and the run's outputs read";
    assert_eq!(said("sync", &json!(null)).unwrap_err(), wanted);
    assert_eq!(said("sync", &json!({})).unwrap_err(), wanted);
    let must: Vec<Text> =
        step(&bundle(), "sync").must_be_said().iter().map(|(_, reader)| reader.clone()).collect();
    assert_eq!(must, ["tell".into(), Text::from("outputs")]);
    // Nobody reads this one as if it were always there; single items are nobody's business here.
    assert_eq!(said("also", &json!(null)), Ok(Value::Null));
    assert_eq!(said("each", &json!(null)), Ok(Value::Null));
    assert_eq!(said("each", &json!({ "changed": 2 })), Ok(Value::of(&json!({ "changed": 2 })).unwrap()));
}

#[test]
fn values_are_read_as_their_fields_are() {
    let three = Value::map([("changed", Value::Int(3))]);
    assert_eq!(said("sync", &json!({ "changed": 3 })), Ok(three.clone()));
    // As from a command line.
    assert_eq!(said("sync", &json!({ "changed": "3" })), Ok(three));
    for wrong in [
        json!({ "changed": "many" }),
        json!({ "changed": [3] }),
        json!({ "changed": "" }),
        json!({ "changed": -1 }),
    ] {
        let told = said("sync", &wrong).unwrap_err();
        assert!(told.starts_with("the output of step `sync`: "), "{wrong}: {told}");
    }
    let told = said("sync", &json!({ "changed": 3, "chagned": 4 })).unwrap_err();
    assert!(told.contains("`chagned`"), "{told}");
    assert!(said("sync", &json!([3])).unwrap_err().contains("is a map of its fields"));
}
