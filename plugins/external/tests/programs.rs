//! Programs and stand-ins keep the laws of actions, and get what the protocol promises them.

#![expect(clippy::unwrap_used, reason = "tests panic")]

mod common;

use std::fs;

use common::{Place, example};
use farrier_action::harness::{Case, World};
use farrier_action::{Probe, WriteCx};
use farrier_model::{ChangeKind, Fidelity, Scope, Value};
use futures_util::FutureExt as _;
use serde_json::{Value as Json, json};

/// Flags as their files hold them.
fn flags(place: &Place) -> World {
    let folder = fs::read_dir(place.path("flags")).unwrap();
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let name = format!("flag {}", entry.file_name().to_string_lossy());
        (name, Value::text(fs::read_to_string(entry.path()).unwrap()))
    };
    folder.map(file).collect()
}

fn flag_place() -> Place {
    let place = Place::program(&example());
    fs::create_dir(place.path("flags")).unwrap();
    fs::write(place.path("flags/other"), "untouched").unwrap();
    let folder = place.path("flags");
    place
        .with("settings", json!({ "folder": folder }))
        .with("restores", json!(true))
        .with("effect", json!("probed"))
}

#[tokio::test]
async fn the_example_of_the_manual_keeps_the_laws() {
    for (before, wanted, kind) in [
        (None, json!("on"), ChangeKind::Create),
        (Some("off"), json!("on"), ChangeKind::Update),
        (Some("off"), Json::Null, ChangeKind::Delete),
    ] {
        let place = flag_place();
        if let Some(before) = before {
            fs::write(place.path("flags/maintenance"), before).unwrap();
        }
        let bad = [
            json!({ "name": "../other" }),
            json!({ "name": "a", "value": 1 }),
            json!({ "name": "a", "colour": "red" }),
        ];
        let mut bad_inputs: Vec<Value> = bad.into_iter().map(Place::input).collect();
        bad_inputs.push(Value::from_json(r#"{"target": "flags", "more": 1}"#).unwrap());
        let shown = Case {
            registry: &place.registry,
            action: "external.run",
            input: Place::input(json!({ "name": "maintenance", "value": wanted })),
            targets: place.targets(),
            scope: Scope::default(),
            observe: Box::new(|| async { flags(&place) }.boxed()),
            disturb: Some(Box::new(|| {
                async { fs::write(place.path("flags/maintenance"), "of another").unwrap() }.boxed()
            })),
            bad_inputs,
        }
        .prove()
        .await
        .unwrap();
        assert_eq!((shown.plan.changes[0].kind, shown.plan.fidelity), (kind, Fidelity::Computed));
        assert_eq!(shown.output, shown.plan.output.unwrap(), "the plan knew the output");
    }
}

#[tokio::test]
async fn the_example_tells_what_has_happened() {
    let place = flag_place();
    let action =
        place.registry.bind("external.run", &Place::input(json!({ "name": "a", "value": "1" }))).unwrap();
    let cx = place.cx();
    let changes = action.plan(&cx).await.unwrap().changes;
    assert_eq!(action.probe(&cx, &changes).await.unwrap(), Probe::NotApplied);
    action.apply(&WriteCx::after_intent(cx.clone()), &changes).await.unwrap();
    assert_eq!(action.probe(&cx, &changes).await.unwrap(), Probe::Applied);
    fs::write(place.path("flags/a"), "2").unwrap();
    assert_eq!(action.probe(&cx, &changes).await.unwrap(), Probe::Unknown);
}

#[tokio::test]
async fn a_stand_in_keeps_the_laws() {
    let place = Place::program("");
    let script = "answers:
- input: { name: a }
  changes: [{ object: flag a, kind: update, before: off, after: on }]
  output: { done: true }
- input: { name: b }
  fails: { kind: unreachable, message: it is away }
";
    fs::write(place.path("flags.yaml"), script).unwrap();
    let place = Place { config: json!({ "scripted": "flags.yaml", "restores": true }), ..place };
    let state = || -> World {
        let text = fs::read_to_string(place.path("flags.yaml.state.json")).unwrap_or_else(|_| "{}".into());
        let mut world: World = serde_json::from_str(&text).unwrap();
        world.entry("flag a".into()).or_insert_with(|| Value::text("off"));
        world
    };
    let shown = Case {
        registry: &place.registry,
        action: "external.run",
        input: Place::input(json!({ "name": "a", "more": 1 })),
        targets: place.targets(),
        scope: Scope::default(),
        observe: Box::new(|| async { state() }.boxed()),
        disturb: Some(Box::new(|| {
            async { fs::write(place.path("flags.yaml.state.json"), r#"{"flag a": "odd"}"#).unwrap() }.boxed()
        })),
        bad_inputs: vec![Place::input(json!({ "name": "c" }))],
    }
    .prove()
    .await
    .unwrap();
    assert_eq!(shown.output.to_json(), r#"{"value":{"done":true}}"#);
    let action = place.registry.bind("external.run", &Place::input(json!({ "name": "b" }))).unwrap();
    assert_eq!(action.plan(&place.cx()).await.unwrap_err().message, "it is away");
}

#[tokio::test]
async fn a_program_is_told_what_it_needs_and_no_more() {
    let place = Place::script("planned([request, dict(os.environ), os.getcwd(), sys.argv])");
    let output = place.plan().await.unwrap().output.unwrap().to_json();
    let [request, environment, folder, arguments] = serde_json::from_str::<Json>(&output).unwrap()["value"]
        .as_array()
        .unwrap()
        .clone()
        .try_into()
        .unwrap();
    assert_eq!(request["farrier"], 1);
    assert_eq!(
        (&request["ask"], &request["step"], &request["effect"]),
        (&json!("plan"), &json!("flag"), &json!("effect"))
    );
    let mut names: Vec<&str> = environment.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    // Python sets the last but one itself, where the language has no territory.
    names.retain(|name| *name != "LC_CTYPE");
    assert_eq!(names, ["FARRIER_EFFECT", "FARRIER_NODE", "FARRIER_RUN", "LANG", "PATH", "TMPDIR"]);
    assert_eq!(folder, "/");
    // A script is called by the name of its sealed copy.
    assert!(arguments[0].as_str().unwrap().starts_with("/proc/self/fd/"), "{arguments}");
}

#[tokio::test]
async fn what_happens_after_a_crash_is_the_environments_word() {
    for (effect, expected) in [
        ("once", Probe::Unknown),
        ("repeatable", Probe::NotApplied),
        ("keyed", Probe::NotApplied),
        ("probed", Probe::Applied),
    ] {
        let place = Place::script("say({'probed': 'applied'})").with("effect", json!(effect));
        let action = place.registry.bind("external.run", &Place::input(json!({}))).unwrap();
        assert_eq!(action.probe(&place.cx(), &[]).await.unwrap(), expected, "{effect}");
    }
    let place = Place::script("say({'undone': {}})");
    let action = place.registry.bind("external.run", &Place::input(json!({}))).unwrap();
    let failure = action.undo(&WriteCx::after_intent(place.cx()), &[]).await.unwrap_err();
    assert!(failure.message.contains("cannot bring back"), "{failure}");
}

#[tokio::test]
async fn plans_are_judged() {
    let change = "{'object': 'x', 'kind': 'update', 'before': 1, 'after': 2}";
    for (script, expected) in [
        (format!("say({{'planned': {{'changes': [{change}, {change}]}}}})"), "twice"),
        ("say({'planned': {'changes': [{'object': 'a\\x1b[1m', 'kind': 'run'}]}})".into(), "names nothing"),
        ("planned(fidelity='deferred')".into(), "Farrier's own word"),
        ("say({'applied': {}})".into(), "asked to `plan` and answered `applied`"),
        ("say({'failed': {'kind': 'guard', 'message': 'no'}})".into(), "not its own"),
        ("say({'failed': {'kind': 'conflict', 'message': 'busy\\nnow'}})".into(), "busy now"),
    ] {
        let failure = Place::script(&script).plan().await.unwrap_err();
        assert!(failure.message.contains(expected), "{script}: {failure}");
    }
    let place = Place::script(&format!("say({{'planned': {{'changes': [{change}]}}}})"));
    let reading = json!({ "target": "flags", "read_only": true }).to_string();
    let action = place.registry.bind("external.run", &Value::from_json(&reading).unwrap()).unwrap();
    assert!(action.plan(&place.cx()).await.unwrap_err().message.contains("read_only"));
    let plan = place.plan().await.unwrap();
    assert_eq!(plan.fidelity, Fidelity::Described);
    assert_eq!(plan.output.unwrap().get("value").unwrap().unknown_after().unwrap().to_string(), "flag");
    assert!(plan.notes[0].contains("cannot bring back"));
}
