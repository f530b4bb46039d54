//! What the tests of all actions here share.

use std::sync::Arc;

use farrier_action::harness::Case;
use farrier_action::{ActionRegistry, History, NodeInfo, Planned, ReadCx, Targets};
use farrier_model::{Failure, NodeName, RunId, Scope, Value};

/// A value in JSON, single quotes for double ones.
pub(crate) fn json(text: &str) -> Value {
    Value::from_json(&text.replace('\'', "\"")).unwrap()
}

/// What an action plans, without its laws.
pub(crate) async fn plan(action: &str, input: &str) -> Result<Planned<Value>, Failure> {
    planned(action, input, None).await
}

/// The same, of an action that looks at other runs.
pub(crate) async fn plan_after(
    action: &str,
    input: &str,
    history: Arc<dyn History>,
) -> Result<Planned<Value>, Failure> {
    planned(action, input, Some(history)).await
}

async fn planned(
    action: &str,
    input: &str,
    history: Option<Arc<dyn History>>,
) -> Result<Planned<Value>, Failure> {
    let mut registry = ActionRegistry::default();
    crate::register(&mut registry).unwrap();
    let run = RunId::at(0, [7; 10]);
    let node = NodeInfo { run, node: NodeName::step("case"), attempt: 1, effect_id: String::new() };
    let targets = Arc::new(Targets::new("/".into(), Vec::new(), [].into()));
    let cx = ReadCx::new(targets, Scope::default(), node);
    let cx = match history {
        Some(history) => cx.with_history(history),
        None => cx,
    };
    registry.bind(action, &json(input))?.plan(&cx).await
}

/// The output of an action, its laws proven and the bad inputs refused.
pub(crate) async fn output(action: &str, input: &str, bad_inputs: &[&str]) -> Result<Value, Failure> {
    let mut registry = ActionRegistry::default();
    crate::register(&mut registry).unwrap();
    let case = Case {
        registry: &registry,
        action,
        input: json(input),
        targets: Arc::new(Targets::new("/".into(), Vec::new(), [].into())),
        scope: Scope::default(),
        observe: Box::new(|| Box::pin(async { [].into() })),
        disturb: None,
        bad_inputs: bad_inputs.iter().map(|text| json(text)).collect(),
    };
    Ok(case.prove().await?.output)
}

#[test]
fn examples_are_steps_of_their_action() {
    let mut registry = ActionRegistry::default();
    crate::register(&mut registry).unwrap();
    for (name, spec) in &registry.catalog().actions {
        let step: Value = serde_saphyr::from_str(spec.example).unwrap();
        let (_, step) = step.as_map().unwrap().iter().next().unwrap();
        assert_eq!(step.get("uses").and_then(Value::as_str), Some(*name));
        let known = spec.input["properties"].as_object().unwrap();
        let with = step.get("with").unwrap().as_map().unwrap();
        assert!(with.keys().all(|key| known.contains_key(&**key)), "{name}: {with:?}");
        assert!((spec.pure || *name == "flow.runs") && !spec.summary.is_empty(), "{name}");
    }
}
