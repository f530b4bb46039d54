//! `prometheus.wait`, in a world whose time is the runtime's.

use std::sync::Arc;
use std::time::Duration;

use farrier_action::harness::{Case, World};
use farrier_action::{Now, Targets};
use farrier_model::time::Timestamp;
use farrier_model::{FailureKind, Fidelity, Scope, Value};
use futures_util::FutureExt as _;
use tempfile::TempDir;
use tokio::time::Instant;

use super::{cx, json, plan, registry, targets};

const SERIES: &str = "
start: 2026-11-22T10:00:00Z
queries:
  - query: stuck
    series:
      - values: [{ value: 5 }, { at: 10m, value: 0 }, { at: 11m, value: null }, { at: 20m, value: 0 }]
";

/// A world that begins at ten o'clock.
fn world() -> (TempDir, Arc<Targets>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("series.yaml"), SERIES).unwrap();
    let start: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
    let begun = Instant::now();
    let now = Now::from_fn(move || start + begun.elapsed());
    let targets = targets(folder.path(), "prometheus", r#"{"url": "series:series.yaml"}"#, now);
    (folder, targets)
}

fn input(more: &str) -> String {
    format!(
        r#"{{"target": "there", "query": "stuck", "until": "item.value is not none and item.value == 0", {more}}}"#
    )
}

#[tokio::test(start_paused = true)]
async fn it_waits_until_the_answer_holds() {
    for (more, minutes) in [
        (r#""within": "30m", "every": "30s""#, 10.0),
        // An absent series is not zero, so holding begins anew.
        (r#""within": "30m", "every": "30s", "hold": "5m""#, 25.0),
        (r#""within": "30m", "every": "30s", "not_older_than": "2026-11-22T10:15:00Z""#, 20.0),
    ] {
        let (_folder, targets) = world();
        let begun = Instant::now();
        let output = plan(&targets, "prometheus.wait", &input(more)).await.unwrap().output.unwrap();
        assert_eq!(output.get("value"), Some(&Value::Int(0)));
        assert!(
            (begun.elapsed().as_secs_f64() / 60.0 - minutes).abs() < 0.1,
            "{more}: {:?}",
            begun.elapsed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn it_gives_up_and_says_what_it_saw() {
    for (more, seen) in [
        (r#""within": "5m""#, "the value was 5"),
        (r#""within": "19m", "hold": "2m""#, "the answer was empty"),
        (r#""within": "10m10s", "every": "5s", "hold": "1m""#, "it has not held long enough"),
    ] {
        let (_folder, targets) = world();
        let failure = plan(&targets, "prometheus.wait", &input(more)).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Verification);
        assert!(failure.message.ends_with(&format!("({seen})")), "{failure}");
    }
    // A recording that is away for a while is looked at again; a query that is wrong is not.
    let (folder, targets) = world();
    let path = folder.path().join("series.yaml");
    plan(&targets, "prometheus.query", r#"{"target": "there", "query": "stuck"}"#).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let failure = plan(&targets, "prometheus.wait", &input(r#""within": "5m""#)).await.unwrap_err();
    assert!(failure.message.contains("cannot read"), "{failure}");
    std::fs::write(&path, SERIES).unwrap();
    let wrong = input(r#""within": "5m""#).replace("\"stuck\"", "\"up\"");
    assert_eq!(plan(&targets, "prometheus.wait", &wrong).await.unwrap_err().kind, FailureKind::Refused);
}

#[tokio::test(start_paused = true)]
async fn a_plan_to_be_shown_looks_once() {
    let (_folder, targets) = world();
    let action = registry().bind("prometheus.wait", &json(&input(r#""within": "30m""#))).unwrap();
    let begun = Instant::now();
    let planned = action.plan(&cx(&targets).looking_once(true)).await.unwrap();
    assert_eq!((planned.fidelity, planned.output, planned.changes.len()), (Fidelity::Deferred, None, 0));
    assert_eq!(planned.notes, ["waits up to 30m until `item.value is not none and item.value == 0`"]);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    tokio::time::advance(Duration::from_secs(630)).await;
    let planned = action.plan(&cx(&targets).looking_once(true)).await.unwrap();
    assert_eq!(planned.fidelity, Fidelity::Computed);
    assert!(planned.output.is_some());
}

/// Inputs that must be refused before anyone is asked.
fn bad() -> Vec<String> {
    let until = r#"{"target": "there", "query": "stuck", "until": "item.value +", "within": "5m"}"#;
    let mut bad = [
        r#""within": "soon""#,
        r#""within": "5m", "every": "0s""#,
        r#""within": "5m", "hold": "6m""#,
        r#""within": "5m", "params": {"a": 1}"#,
        r#""within": "5m", "not_older_than": "soon""#,
    ]
    .map(input)
    .to_vec();
    bad.extend([until.to_owned(), until.replace("item.value +", "item.value")]);
    bad
}

/// The world is all that lies beside the recording. The wait is over once the value is as wanted; before that, a plan to be shown
/// leaves it at that.
#[tokio::test(start_paused = true)]
async fn the_laws_hold() {
    let (folder, targets) = world();
    let observe = || {
        let files = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let read = |path: std::path::PathBuf| {
            (path.display().to_string(), Value::text(std::fs::read_to_string(path).unwrap()))
        };
        files.map(read).collect::<World>()
    };
    let registry = registry();
    let case = Case {
        registry: &registry,
        action: "prometheus.wait",
        input: json(&input(r#""within": "30m", "hold": "5m""#)),
        targets,
        scope: Scope::default(),
        observe: Box::new(|| async { observe() }.boxed()),
        disturb: None,
        bad_inputs: bad().iter().map(|text| json(text)).collect(),
    };
    let begun = Instant::now();
    let shown = case.prove().await.unwrap();
    assert!(shown.plan.changes.is_empty());
    assert_eq!(shown.output.get("value"), Some(&Value::Int(0)));
    assert!(begun.elapsed() >= Duration::from_secs(25 * 60), "{:?}", begun.elapsed());
}
