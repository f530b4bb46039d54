//! What the tests of all actions here share.

use std::sync::Arc;

use farrier_action::harness::Case;
use farrier_action::{ActionRegistry, Targets};
use farrier_model::{Failure, Scope, Value};

pub(crate) fn registry() -> ActionRegistry {
    let mut registry = ActionRegistry::default();
    crate::register(&mut registry).unwrap();
    registry
}

/// A value in JSON, single quotes for double ones.
pub(crate) fn json(text: &str) -> Value {
    Value::from_json(&text.replace('\'', "\"")).unwrap()
}

/// A scope as a run has it, with one value that is known only later.
pub(crate) fn scope() -> Scope {
    let steps = Value::map([("later", Value::Unknown("later".into()))]);
    Scope::new(vec![("inputs".into(), json("{'project': 'tools'}")), ("steps".into(), steps)])
}

/// The output of an action, its laws proven.
pub(crate) async fn output(action: &str, input: &Value) -> Result<Value, Failure> {
    Ok(case(&registry(), action, input.clone(), Vec::new()).prove().await?.output)
}

/// Every input is refused as wrong input.
pub(crate) async fn refuses(action: &str, good: &str, bad: &[&str]) {
    let bad = bad.iter().map(|text| json(text)).collect();
    case(&registry(), action, json(good), bad).prove().await.unwrap();
}

fn case<'a>(registry: &'a ActionRegistry, action: &'a str, input: Value, bad_inputs: Vec<Value>) -> Case<'a> {
    Case {
        registry,
        action,
        input,
        targets: Arc::new(Targets::new("/".into(), Vec::new(), [].into())),
        scope: scope(),
        observe: Box::new(|| Box::pin(async { [].into() })),
        disturb: None,
        bad_inputs,
    }
}

#[test]
fn examples_are_steps_of_their_action() {
    for (name, spec) in &registry().catalog().actions {
        let step: Value = serde_saphyr::from_str(spec.example).unwrap();
        let (id, step) = step.as_map().unwrap().iter().next().unwrap();
        assert!(id.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{id}");
        assert_eq!(step.get("uses").and_then(Value::as_str), Some(*name));
        let with = step.get("with").unwrap().as_map().unwrap();
        let known = spec.input["properties"].as_object().unwrap();
        assert!(with.keys().all(|key| known.contains_key(&**key)), "{name}: {with:?}");
        for required in spec.input["required"].as_array().into_iter().flatten() {
            assert!(with.get(required.as_str().unwrap()).is_some(), "{name} lacks {required}");
        }
        assert!(spec.pure && !spec.summary.is_empty(), "{name}");
    }
}
