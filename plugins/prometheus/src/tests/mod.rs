//! The plugin against recordings and against real servers: the same suites on both.

mod alerts;
mod metrics;
mod waiting;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use farrier_action::{ActionRegistry, Binding, NodeInfo, Now, Planned, ReadCx, Targets};
use farrier_model::{Effect, Failure, NodeName, RunId, Scope, Value};

pub(super) fn registry() -> ActionRegistry {
    let mut registry = ActionRegistry::default();
    crate::register(&mut registry).unwrap();
    registry
}

#[track_caller]
pub(super) fn json(text: &str) -> Value {
    Value::from_json(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

pub(super) fn targets(folder: &Path, kind: &str, config: &str, now: Now) -> Arc<Targets> {
    let binding = Binding { alias: "there".into(), kind: kind.into(), config: json(config) };
    Arc::new(Targets::new(folder.to_owned(), vec![binding], BTreeMap::new()).at(now))
}

pub(super) fn cx(targets: &Arc<Targets>) -> ReadCx {
    let node = NodeInfo {
        run: RunId::at(0, [7; 10]),
        node: NodeName::step("s"),
        attempt: 1,
        effect_id: "EFFECT".into(),
    };
    ReadCx::new(targets.clone(), Scope::default(), node)
}

pub(super) async fn plan(
    targets: &Arc<Targets>,
    action: &str,
    input: &str,
) -> Result<Planned<Value>, Failure> {
    registry().bind(action, &json(input))?.plan(&cx(targets)).await
}

/// Plans that must fail without asking anyone.
pub(super) async fn refuse(targets: &Arc<Targets>, action: &str, inputs: &[&str]) {
    for input in inputs {
        let failure = plan(targets, action, input).await.expect_err(input);
        assert_eq!(failure.kind, farrier_model::FailureKind::Input, "{input}: {failure}");
    }
}

#[test]
fn every_action_is_registered_once_and_its_example_is_a_step() {
    let mut registry = registry();
    let names: Vec<&str> = registry.catalog().actions.keys().copied().collect();
    let wanted = [
        "alertmanager.alerts",
        "alertmanager.expire",
        "alertmanager.silence",
        "prometheus.query",
        "prometheus.wait",
    ];
    assert_eq!(names, wanted);
    for spec in registry.catalog().actions.values() {
        let step: Value = serde_saphyr::from_str(spec.example).unwrap();
        let (_, step) = step.as_map().unwrap().iter().next().unwrap();
        assert_eq!(step.get("uses").and_then(Value::as_str), Some(spec.name));
        assert!(spec.effect == Effect::Read || step.get("undo").is_some(), "{}", spec.name);
        if let Err(failure) = registry.bind(spec.name, step.get("with").unwrap()) {
            panic!("the example of {}: {failure}", spec.name);
        }
    }
    for kind in ["prometheus", "alertmanager"] {
        let spec = &registry.catalog().targets[kind];
        assert!(spec.summary.contains("or a recording that stands in for one"), "{}", spec.summary);
        assert!(registry.identity(kind, &json(r#"{"url": "https://a", "verify": false}"#)).is_err());
    }
    let is = |kind: &str, config: &str| registry.is_stand_in(kind, &json(config)).unwrap();
    assert!(is("prometheus", r#"{"url": "series:a.yaml"}"#) && !is("prometheus", r#"{"url": "series:/a"}"#));
    assert!(
        is("alertmanager", r#"{"url": "alerts:a.yaml"}"#) && !is("alertmanager", r#"{"url": "https://a"}"#)
    );
    assert!(!is("alertmanager", r#"{"url": "alerts:a.yaml", "state": "/a"}"#));
    assert!(crate::register(&mut registry).is_err());
}

/// The examples of the manual, as a user would write them down.
#[tokio::test]
async fn the_manuals_recordings_answer() {
    let page = include_str!("../../../../site/manual/environments.md");
    let folder = tempfile::tempdir().unwrap();
    for kind in ["prometheus", "alertmanager"] {
        let (_, example) = page.split_once(&format!("```yaml stand-in {kind}\n")).unwrap();
        std::fs::write(folder.path().join(kind), example.split_once("```").unwrap().0).unwrap();
    }
    let at = |minutes: i64| {
        let start = "2026-11-22T10:00:00Z".parse::<farrier_model::time::Timestamp>().unwrap();
        let now = start + std::time::Duration::from_secs(60 * minutes as u64);
        Now::from_fn(move || now)
    };
    let query = r#"{"target": "there", "query": "sum(stuck_processes{instance=~\"$node(:.*)?\"})",
        "params": {"node": "worker-12"}}"#;
    for (minutes, value) in [(0, Value::Int(12)), (21, Value::Int(0)), (45, Value::Null)] {
        let targets = targets(folder.path(), "prometheus", r#"{"url": "series:prometheus"}"#, at(minutes));
        let output = plan(&targets, "prometheus.query", query).await.unwrap().output.unwrap();
        assert_eq!(output.get("value"), Some(&value), "{minutes}");
    }
    for (minutes, count) in [(0, 1), (45, 0)] {
        let targets =
            targets(folder.path(), "alertmanager", r#"{"url": "alerts:alertmanager"}"#, at(minutes));
        let found = plan(&targets, "alertmanager.alerts", r#"{"target": "there"}"#).await.unwrap();
        assert_eq!(found.output.unwrap().get("count"), Some(&Value::Int(count)));
    }
}
