//! Alerts and silences, on a recording and on a real Alertmanager.

use std::sync::Arc;

use farrier_action::harness::{Case, World};
use farrier_action::{Now, Targets, WriteCx};
use farrier_model::time::{Timestamp, parse_timestamp};
use farrier_model::{FailureKind, Scope, Value};
use farrier_testkit::prometheus::Alertmanager;
use futures_util::FutureExt as _;
use tempfile::TempDir;

use super::{cx, json, plan, refuse, registry, targets};
use crate::matcher::{Matcher, shown};
use crate::promql::Params;

const HOSTILE: &str = "q\", alertname=~\".*\\ ${ x } $y\n";

struct Place {
    targets: Arc<Targets>,
    server: Option<Alertmanager>,
    folder: TempDir,
}

fn alert(name: &str, instance: &str) -> String {
    let instance = Value::text(instance).to_json();
    format!(
        r#"{{"labels": {{"alertname": "{name}", "instance": {instance}, "project": "tools"}}, "annotations": {{"summary": "s"}}"#
    )
}

fn all() -> [String; 3] {
    [alert("NodeDown", "node-a.b:9100"), alert("NodeDown", "node-axb:9100"), alert("DiskFull", HOSTILE)]
}

fn recording() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let alerts = all().map(|alert| format!(r#"{alert}, "starts_at": "2026-01-01T00:00:00Z"}}"#)).join(", ");
    std::fs::write(folder.path().join("alerts.yaml"), format!("{{\"alerts\": [{alerts}]}}")).unwrap();
    let targets = targets(folder.path(), "alertmanager", r#"{"url": "alerts:alerts.yaml"}"#, Now::default());
    Place { targets, server: None, folder }
}

fn server() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let server = Alertmanager::start();
    let alerts = all().map(|alert| format!(r#"{alert}, "startsAt": "2026-01-01T00:00:00Z"}}"#)).join(", ");
    server.post("/api/v2/alerts", &format!("[{alerts}]"));
    let config = format!(r#"{{"url": "{}", "write_as": {{}}}}"#, server.url());
    let targets = targets(folder.path(), "alertmanager", &config, Now::default());
    Place { targets, server: Some(server), folder }
}

impl Place {
    /// The silences that have not ended, by what they cover, without asking the plugin.
    fn world(&self) -> World {
        let mut world = World::new();
        let mut put = |silence: &Value| {
            let mut matchers: Vec<Matcher> = silence.get("matchers").unwrap().read().unwrap();
            matchers.sort();
            world.insert(format!("silence {}", shown(&matchers)), silence.get("comment").unwrap().clone());
        };
        if let Some(server) = &self.server {
            for silence in json(&server.get("/api/v2/silences")).as_list().unwrap() {
                if silence.get("status").unwrap().get("state") != Some(&Value::text("expired")) {
                    put(silence);
                }
            }
            return world;
        }
        let text = std::fs::read_to_string(self.folder.path().join("alerts.yaml.silences.jsonl"))
            .unwrap_or_default();
        let records: Vec<Value> = text.lines().map(json).collect();
        let ended = |id: &Value| records.iter().any(|record| record.get("ended") == Some(id));
        for made in records.iter().filter_map(|record| record.get("made")) {
            if !ended(made.get("id").unwrap()) {
                put(made);
            }
        }
        world
    }

    /// Makes a silence behind the action's back.
    async fn silence(&self, label: &str, comment: &str) -> String {
        let side = cx(&self.targets);
        let side = WriteCx::after_intent(side)
            .writer::<crate::target::Alertmanager>(&farrier_action::Target::new("there"))
            .await
            .unwrap();
        let matcher = Matcher { name: label.into(), value: "x".into(), is_regex: false, is_equal: true };
        let now = Timestamp::now();
        let times = [now, now + std::time::Duration::from_secs(3600)];
        crate::api::make(&*side.web, &[matcher], times, "someone", comment).await.unwrap()
    }
}

const BAD_MATCHERS: [&str; 9] = [
    r#""match": ["alertname"]"#,
    r#""match": ["=\"a\""]"#,
    r#""match": ["a=\"b"]"#,
    r#""match": ["a=~\"(\""]"#,
    r#""match": ["a=\"$b\""]"#,
    r#""match": ["a=\"b\""], "params": {"b": "c"}"#,
    r#""match": ["a=\"$b\""], "params": {"b": "\u0000"}"#,
    r#""match": ["a=~\"$b.*\""], "params": {"b": ""}"#,
    r#""match": ["a=\"b\""], "filter": "c""#,
];

async fn listing(place: &Place) -> Vec<String> {
    let hostile = Value::text(HOSTILE).to_json();
    let mut found = Vec::new();
    for input in [
        r#"{"target": "there"}"#.to_owned(),
        r#"{"target": "there", "match": ["alertname=\"NodeDown\"", "instance=~\"$node(:.*)?\""], "params": {"node": "node-a.b"}}"#.into(),
        format!(r#"{{"target": "there", "match": ["instance=\"$i\""], "params": {{"i": {hostile}}}}}"#),
        format!(r#"{{"target": "there", "match": ["instance=~\"$i\""], "params": {{"i": [{hostile}, "node-axb:9100"]}}}}"#),
        r#"{"target": "there", "match": ["project!=\"tools\""]}"#.into(),
        r#"{"target": "there", "match": ["nothing=\"\"", "alertname!~\"Node.*\""]}"#.into(),
    ] {
        let output = plan(&place.targets, "alertmanager.alerts", &input).await.expect(&input).output.unwrap();
        let alerts = output.get("alerts").unwrap().as_list().unwrap().iter().map(|alert| {
            let text = |name: &str| alert.get(name).unwrap().to_json();
            assert!(parse_timestamp(alert.get("ends_at").unwrap().as_str().unwrap()).unwrap() > Timestamp::now());
            let starts = parse_timestamp(alert.get("starts_at").unwrap().as_str().unwrap()).unwrap();
            format!(
                "{} {} {} {} {starts} {}",
                text("fingerprint"), text("labels"), text("annotations"), text("state"), text("silenced_by")
            )
        });
        found.push(format!("{} {:?}", output.get("count").unwrap(), alerts.collect::<Vec<_>>()));
    }
    found
}

/// Alerts that came in are processed a moment later.
fn processed(place: &Place) {
    let server = place.server.as_ref().unwrap();
    farrier_testkit::wait_until("the alerts are processed", || {
        let text = server.get("/api/v2/alerts");
        text.matches("\"active\"").count() == 3
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_and_a_server_list_alike() {
    let real = server();
    processed(&real);
    let (recorded, real) = (listing(&recording()).await, listing(&real).await);
    assert_eq!(recorded, real);
    let counts: Vec<&str> = real.iter().map(|text| text.split(' ').next().unwrap()).collect();
    assert_eq!(counts, ["3", "1", "1", "2", "0", "1"]);
}

async fn silencing(place: &Place) {
    let registry = registry();
    let hostile = Value::text(HOSTILE).to_json();
    let input = format!(
        r#"{{"target": "there", "match": ["project=\"tools\"", "instance=~\"$i\""], "params": {{"i": {hostile}}},
            "for": "1h", "comment": "a \" ${{ x }}\nb"}}"#
    );
    let bad = BAD_MATCHERS
        .iter()
        .map(|bad| format!(r#"{{"target": "there", "for": "1h", "comment": "c", {bad}}}"#))
        .chain(
            [
                r#"{"target": "there", "match": ["a=\"b\""], "for": "0s", "comment": "c"}"#,
                r#"{"target": "there", "match": ["a=\"b\""], "for": "long", "comment": "c"}"#,
                r#"{"target": "there", "match": ["a=\"b\""], "for": "1h", "comment": " "}"#,
                r#"{"target": "there", "match": ["a=\"b\""], "for": "1h", "comment": "\u0000"}"#,
                r#"{"target": "there", "match": [], "for": "1h", "comment": "c"}"#,
                r#"{"target": "there", "match": ["a=~\".*\"", "b=\"\""], "for": "1h", "comment": "c"}"#,
                r#"{"target": "nowhere", "match": ["a=\"b\""], "for": "1h", "comment": "c"}"#,
            ]
            .map(str::to_owned),
        );
    let run = farrier_model::RunId::at(0, [7; 10]);
    // That of the harness's node.
    let effect_id = farrier_model::ids::effect_id(run, &farrier_model::NodeName::step("case"), "do");
    let comment = format!("edited [farrier {effect_id}]");
    // Someone else's, which must stay.
    place.silence("other", "someone else's [farrier SOMETHING]").await;
    let case = Case {
        registry: &registry,
        action: "alertmanager.silence",
        input: json(&input),
        targets: place.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| async { place.world() }.boxed()),
        disturb: Some(Box::new(|| {
            let comment = comment.clone();
            async move {
                place.silence("edited", &comment).await;
            }
            .boxed()
        })),
        bad_inputs: bad.map(|bad| json(&bad)).collect(),
    };
    assert_eq!(case.read_cx().node().effect_id, effect_id);
    let shown = case.prove().await.unwrap();
    let change = &shown.plan.changes[0];
    assert_eq!(change.after.get("for"), Some(&Value::text("1h")));
    assert_eq!(shown.plan.output.as_ref().unwrap().get("id"), Some(&Value::Unknown("case".into())));
    assert!(shown.output.get("id").unwrap().as_str().unwrap().len() == 36);
}

#[tokio::test]
async fn the_laws_hold_for_silences_of_a_recording() {
    silencing(&recording()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_laws_hold_for_silences_of_a_server() {
    silencing(&server()).await;
}

/// A silence is made once, covers what it should, and ends.
async fn life(place: &Place) {
    let registry = registry();
    let input = json(
        r#"{"target": "there", "match": ["instance=~\"$node(:.*)?\""], "params": {"node": "node-a.b"},
            "for": "30m", "comment": "reboot"}"#,
    );
    let action = registry.bind("alertmanager.silence", &input).unwrap();
    let read = cx(&place.targets);
    let write = WriteCx::after_intent(read.clone());
    let planned = action.plan(&read).await.unwrap();
    let output = action.apply(&write, &planned.changes).await.unwrap();
    // The first answer was lost: the same silence again.
    let again = action.apply(&write, &planned.changes).await.unwrap();
    assert_eq!(again.get("id"), output.get("id"));
    assert_eq!(place.world().len(), 1);
    assert_eq!(place.world().values().next(), Some(&Value::text("reboot [farrier EFFECT]")));
    let id = output.get("id").unwrap().as_str().unwrap();

    let listed = |more: &str| format!(r#"{{"target": "there", "match": ["instance=~\"node-.*\""] {more}}}"#);
    let found = plan(&place.targets, "alertmanager.alerts", &listed("")).await.unwrap().output.unwrap();
    let silenced: Vec<String> = found
        .get("alerts")
        .unwrap()
        .as_list()
        .unwrap()
        .iter()
        .filter(|alert| alert.get("silenced_by").unwrap().as_list().unwrap() == [Value::text(id)])
        .map(|alert| alert.get("labels").unwrap().get("instance").unwrap().to_string())
        .collect();
    assert_eq!(silenced, ["node-a.b:9100"]);
    let rest = plan(&place.targets, "alertmanager.alerts", &listed(r#", "silenced": false"#)).await.unwrap();
    assert_eq!(rest.output.unwrap().get("count"), Some(&Value::Int(1)));

    let case = Case {
        registry: &registry,
        action: "alertmanager.expire",
        input: json(&format!(r#"{{"target": "there", "id": "{id}"}}"#)),
        targets: place.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| {
            async {
                // The change is named by the silence's id.
                let world = place.world();
                world.into_values().map(|comment| (format!("silence {id}"), comment)).collect()
            }
            .boxed()
        }),
        disturb: None,
        bad_inputs: [
            r#"{"target": "there", "id": ""}"#,
            r#"{"target": "there", "id": "../alerts"}"#,
            r#"{"target": "there"}"#,
        ]
        .map(json)
        .to_vec(),
    };
    let shown = case.prove().await.unwrap();
    assert_eq!(shown.plan.changes.len(), 1);
    assert_eq!(place.world().len(), 0);
    // Ended is ended: nothing is made anew under the same effect id, and ending again is no change.
    action.apply(&write, &planned.changes).await.unwrap();
    action.undo(&write, &planned.changes).await.unwrap();
    assert_eq!(place.world().len(), 0);
    for id in [id, "00000000-0000-4000-8000-0000000000ff"] {
        let input = format!(r#"{{"target": "there", "id": "{id}"}}"#);
        assert_eq!(plan(&place.targets, "alertmanager.expire", &input).await.unwrap().changes, []);
    }

    // A silence that someone has made longer since is not theirs to end.
    let id = place.silence("a", "first").await;
    let input = json(&format!(r#"{{"target": "there", "id": "{id}"}}"#));
    let expire = registry.bind("alertmanager.expire", &input).unwrap();
    let mut planned = expire.plan(&read).await.unwrap();
    planned.changes[0].before = Value::map([("comment", Value::text("another"))]);
    let failure = expire.apply(&write, &planned.changes).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
    assert_eq!(place.world().len(), 1);
}

#[tokio::test]
async fn a_silence_of_a_recording_lives_and_ends() {
    life(&recording()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silence_of_a_server_lives_and_ends() {
    let place = server();
    processed(&place);
    life(&place).await;
}

#[tokio::test]
async fn bad_matchers_are_refused_and_nothing_is_written_without_an_account() {
    let place = recording();
    let bad: Vec<String> =
        BAD_MATCHERS.iter().map(|bad| format!(r#"{{"target": "there", {bad}}}"#)).collect();
    refuse(&place.targets, "alertmanager.alerts", &bad.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let closed =
        targets(place.folder.path(), "alertmanager", r#"{"url": "http://127.0.0.1:1"}"#, Now::default());
    let write = WriteCx::after_intent(cx(&closed));
    let target = farrier_action::Target::<crate::target::Alertmanager>::new("there");
    let Err(failure) = write.writer(&target).await else { panic!("an account was found") };
    assert_eq!(failure.kind, FailureKind::Denied);
    assert!(Matcher::all(&[], &Params::new()).unwrap().is_empty());
}
