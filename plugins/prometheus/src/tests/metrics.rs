//! `prometheus.query`, on a recording and on a Prometheus that holds the same samples.

use std::fmt::Write as _;
use std::sync::Arc;

use farrier_action::harness::{Case, World};
use farrier_action::{Now, Targets};
use farrier_model::time::Timestamp;
use farrier_model::{FailureKind, Scope, Value};
use farrier_testkit::prometheus::Prometheus;
use futures_util::FutureExt as _;
use tempfile::TempDir;

use super::{json, plan, refuse, registry, targets};

/// A label that tries to be more.
const HOSTILE: &str = "q\" } or vector(1) # \\ ${ x } $y\n.*";

/// Seconds between samples.
const EVERY: i64 = 15;

struct Place {
    targets: Arc<Targets>,
    now: i64,
    _server: Option<Prometheus>,
    _folder: TempDir,
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Samples from a quarter of an hour ago to a quarter of an hour ahead, so that there are new ones however long it takes.
fn server() -> Place {
    let now = Timestamp::now().as_second();
    let mut samples = String::new();
    let mut series = |name: &str, labels: &str, value: &dyn Fn(i64) -> Option<&'static str>| {
        for since in (-900..=900).step_by(EVERY as usize) {
            if let Some(value) = value(since) {
                let _ = writeln!(samples, "{name}{{{labels}}} {value} {}", now + since);
            }
        }
    };
    series("stuck", r#"instance="node-a.b:9100""#, &|since| Some(if since < -300 { "5" } else { "0" }));
    series("stuck", r#"instance="node-axb:9100""#, &|_| Some("7.5"));
    series("stuck", &format!("instance=\"{}\"", escaped(HOSTILE)), &|_| Some("3"));
    series("gone", "", &|since| (since < -600).then_some("1"));
    series("late", "", &|since| (since < -30).then_some("1"));
    series("ratio", "", &|_| Some("NaN"));
    let text: String = ["gone", "late", "ratio", "stuck"]
        .iter()
        .flat_map(|family| {
            let of_family = samples.lines().filter(|line| line.starts_with(family)).collect::<Vec<_>>();
            [vec![format!("# TYPE {family} gauge")], of_family.into_iter().map(str::to_owned).collect()]
                .concat()
        })
        .chain(["# EOF".to_owned()])
        .fold(String::new(), |text, line| text + &line + "\n");
    let server = Prometheus::start(&text);
    let folder = tempfile::tempdir().unwrap();
    let config = format!(r#"{{"url": "{}"}}"#, server.url());
    let targets = targets(folder.path(), "prometheus", &config, Now::default());
    Place { targets, now, _server: Some(server), _folder: folder }
}

fn recording() -> Place {
    let now = Timestamp::now().as_second();
    let time = |since: i64| Timestamp::from_second(now + since).unwrap().to_string();
    let start = time(-900);
    let hostile = Value::text(HOSTILE).to_json();
    let hostile_query = Value::text(format!("stuck{{instance=\"{}\"}}", escaped(HOSTILE))).to_json();
    let series_a = format!(r#"values: [{{ value: 5 }}, {{ at: "{}", value: 0 }}]"#, time(-300));
    let text = format!(
        r#"
start: {start}
every: {EVERY}s
queries:
  - query: sum(stuck{{instance=~"node-a\\.b(:.*)?"}})
    series: [{{ {series_a} }}]
  - query: {hostile_query}
    series: [{{ labels: {{ __name__: stuck, instance: {hostile} }}, values: [{{ value: 3 }}] }}]
  - query: gone
    series: [{{ values: [{{ value: 1 }}, {{ at: 5m, value: null }}] }}]
  - query: count(gone)
  - query: ratio
    series: [{{ labels: {{ __name__: ratio }}, values: [{{ value: NaN }}] }}]
  - query: |
      stuck   # all of them
    series:
      - {{ labels: {{ __name__: stuck, instance: "node-a.b:9100" }}, {series_a} }}
      - {{ labels: {{ __name__: stuck, instance: "node-axb:9100" }}, values: [{{ value: 7.5 }}] }}
      - {{ labels: {{ __name__: stuck, instance: {hostile} }}, values: [{{ value: 3 }}] }}
"#
    );
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("series.yaml"), text).unwrap();
    let targets = targets(folder.path(), "prometheus", r#"{"url": "series:series.yaml"}"#, Now::default());
    Place { targets, now, _server: None, _folder: folder }
}

/// The answer without the time of asking, the samples by their labels.
async fn ask(place: &Place, input: &str) -> String {
    let output = plan(&place.targets, "prometheus.query", input).await.expect(input).output.unwrap();
    let mut samples: Vec<String> = output
        .get("samples")
        .unwrap()
        .as_list()
        .unwrap()
        .iter()
        .map(|sample| {
            let mut labels: Vec<String> = sample
                .get("labels")
                .unwrap()
                .as_map()
                .unwrap()
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            labels.sort();
            let at: Timestamp = sample.get("at").unwrap().as_str().unwrap().parse().unwrap();
            assert!((Timestamp::now().as_second() - at.as_second()).abs() < 600);
            format!("{labels:?} {} {}", sample.get("value").unwrap(), sample.get("text").unwrap())
        })
        .collect();
    samples.sort();
    format!("{} {} {samples:?}", output.get("value").unwrap(), output.get("count").unwrap())
}

async fn answers(place: &Place) -> Vec<String> {
    let hostile = Value::text(HOSTILE).to_json();
    let sum = r#""query": "sum(stuck{instance=~\"$node(:.*)?\"})", "params": {"node": "node-a.b"}"#;
    let time = |since: i64| Timestamp::from_second(place.now + since).unwrap();
    let mut answers = Vec::new();
    for input in [
        format!(r#"{{"target": "there", {sum}}}"#),
        format!(r#"{{"target": "there", {sum}, "not_older_than": "{}"}}"#, time(-120)),
        format!(r#"{{"target": "there", {sum}, "not_older_than": "{}"}}"#, time(3600)),
        format!(
            r#"{{"target": "there", "query": "stuck{{instance=\"$i\"}}", "params": {{"i": {hostile}}}}}"#
        ),
        r#"{"target": "there", "query": "gone"}"#.into(),
        r#"{"target": "there", "query": "count(gone)"}"#.into(),
        r#"{"target": "there", "query": "ratio"}"#.into(),
        r#"{"target": "there", "query": "stuck"}"#.into(),
        format!(r#"{{"target": "there", "query": "stuck", "not_older_than": "{}"}}"#, time(-60)),
        format!(r#"{{"target": "there", "query": "stuck", "not_older_than": "{}"}}"#, time(3600)),
    ] {
        answers.push(ask(place, &input).await);
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_and_a_server_answer_alike() {
    let (recorded, real) = (answers(&recording()).await, answers(&server()).await);
    assert_eq!(recorded, real);
    assert_eq!(real[0], r#"0 1 ["[] 0 0"]"#);
    assert_eq!(real[1], real[0]);
    assert_eq!(real[2], "null 0 []");
    assert!(real[3].starts_with("3 1 "), "{}", real[3]);
    assert_eq!((real[4].as_str(), real[5].as_str()), ("null 0 []", "null 0 []"));
    assert_eq!(real[6], r#"null 1 ["[\"__name__=ratio\"] null NaN"]"#);
    assert!(real[7].starts_with("null 3 "), "{}", real[7]);
    assert_eq!(real[9], "null 0 []");
}

/// What a recording cannot have: samples that stopped coming, ranges, and mistakes in PromQL.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_leaves_old_samples_out_when_asked() {
    let place = server();
    let time = |since: i64| Timestamp::from_second(place.now + since).unwrap();
    let count = async |query: &str, oldest: i64| {
        let query = Value::text(query).to_json();
        let input =
            format!(r#"{{"target": "there", "query": {query}, "not_older_than": "{}"}}"#, time(oldest));
        let output = plan(&place.targets, "prometheus.query", &input).await.expect(&input).output.unwrap();
        output.get("count").unwrap().as_int().unwrap()
    };
    for (query, oldest, wanted) in [
        ("late", -60, 1),
        ("late", -30, 0),
        ("gone offset 12m", -100, 0),
        ("gone offset 12m", -899, 1),
        ("sum by (instance) (stuck) > 1", -60, 2),
        ("sum(late) or vector(0)", -30, 1),
        ("rate(stuck[1m])", -600, 3),
        ("rate(stuck[1m])", 800, 0),
        ("count(rate(stuck[1m] offset 1m) * on(instance) stuck)", -600, 1),
        ("count(rate(stuck[1m] offset 1m) * on(instance) stuck)", 700, 0),
        ("absent(late)", -30, 1),
    ] {
        // Time has gone on since the samples were made; each of these holds for minutes.
        assert_eq!(count(query, oldest).await, wanted, "{query} {oldest}");
    }
    for (query, kind, reason) in [
        ("sum(", FailureKind::Refused, "the query failed: "),
        ("stuck[5m]", FailureKind::Refused, "gives a matrix"),
        ("\"text\"", FailureKind::Refused, "gives a string"),
    ] {
        let input = format!(r#"{{"target": "there", "query": {}}}"#, Value::text(query).to_json());
        let failure = plan(&place.targets, "prometheus.query", &input).await.expect_err(query);
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.contains(reason), "{failure}");
        assert_eq!(failure.target.as_deref(), Some("there"));
    }
}

#[tokio::test]
async fn what_is_not_recorded_is_an_error_and_never_absent() {
    let place = recording();
    let failure =
        plan(&place.targets, "prometheus.query", r#"{"target": "there", "query": "up"}"#).await.unwrap_err();
    assert_eq!(
        (failure.kind, failure.message.as_str()),
        (FailureKind::Refused, "the query `up` is not recorded")
    );
    assert!(failure.help.unwrap().contains("`count(gone)`"));
}

const BAD: [&str; 8] = [
    r#"{"target": "there", "query": "up{a=\"$a\"}"}"#,
    r#"{"target": "there", "query": "up", "params": {"a": 1}}"#,
    r#"{"target": "there", "query": "up{a=\"$a\"}", "params": {"a": "\u0000"}}"#,
    r#"{"target": "there", "query": "up{a=~\"$a.*\"}", "params": {"a": ""}}"#,
    r#"{"target": "there", "query": "up{a=\"$a\"}", "params": {"a": [1]}}"#,
    r#"{"target": "there", "query": "up", "not_older_than": "yesterday"}"#,
    r#"{"target": "there", "query": "up", "at": "now"}"#,
    r#"{"target": "nowhere", "query": "up"}"#,
];

#[tokio::test]
async fn the_laws_hold() {
    let place = recording();
    let registry = registry();
    let case = Case {
        registry: &registry,
        action: "prometheus.query",
        input: json(r#"{"target": "there", "query": "stuck"}"#),
        targets: place.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| async { World::new() }.boxed()),
        disturb: None,
        bad_inputs: BAD.into_iter().map(json).collect(),
    };
    assert!(case.prove().await.unwrap().plan.changes.is_empty());
    refuse(&place.targets, "prometheus.query", &BAD).await;
}

#[test]
fn mistakes_in_a_recording_show_when_it_is_opened() {
    for (text, reason) in [
        ("queries: [{ query: up, series: [{ values: [{ at: 5m, value: 1 }] }] }]", "counts from `start`"),
        ("queries: [{ query: up, series: [{ values: [{ value: 1 }, { value: 2 }] }] }]", "must grow"),
        ("queries: [{ query: up, series: [{ values: [{ value: many }] }] }]", "is not a number"),
        ("queries: []\nevery: 0s", "not a duration above zero"),
        ("series: []", "series"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("series.yaml");
        std::fs::write(&path, text).unwrap();
        let failure = crate::standin::RecordedMetrics::open(path, Now::default()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Input, "{failure}");
        assert!(failure.message.contains(reason), "{failure}");
    }
}
