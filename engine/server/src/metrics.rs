//! [`Metrics`]: what the service counts, in Prometheus' text format.
//!
//! Labels are of closed sets or of names in the project, so that no caller can make series. What is counted as it happens comes
//! from [`Observer`]; what is a state (runs by state, room in the store) is asked for when somebody looks.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use farrier_exec::{Observer, RunUpdate};
use farrier_model::time::Timestamp;
use farrier_model::{Event, FailureKind, NodeEvent, RunId};
use farrier_schedule::{Decision, ScheduleId};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::clock::ClockObserver;

/// Upper ends of durations, in seconds: from a step that only reads to one that waits for people.
const STEP_SECONDS: [f64; 9] = [0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 600.0, 3600.0];
/// Upper ends of what should be short.
const SHORT_SECONDS: [f64; 8] = [0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];
/// Steps under way whose beginning is remembered; bounds the memory, and only durations are lost beyond it.
const UNDER_WAY: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRunbook {
    runbook: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRunbookAndState {
    runbook: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRunbookAndKind {
    runbook: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAnswer {
    route: &'static str,
    status: u16,
}

#[derive(Debug, Clone)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// Everything that is counted. Cloning shares it.
#[derive(Clone)]
pub struct Metrics(Arc<Counted>);

struct Counted {
    registry: Registry,
    finished: Family<ByRunbookAndState, Counter>,
    steps: Family<ByRunbook, Histogram, Buckets>,
    failures: Family<ByRunbookAndKind, Counter>,
    guards: Family<ByRunbook, Counter>,
    drifts: Family<ByRunbook, Counter>,
    parked: Family<ByRunbook, Counter>,
    runs: Family<ByState, Gauge>,
    due: Gauge,
    commit: Histogram,
    full: Gauge,
    answers: Family<ByAnswer, Counter>,
    answer_seconds: Histogram,
    connections: Gauge,
    followers: Gauge,
    set: Gauge,
    reload_failures: Counter,
    stale: Gauge<f64, AtomicU64>,
    service_stale: Gauge<f64, AtomicU64>,
    lateness: Histogram,
    incidents: Gauge,
    /// When steps under way began.
    begun: Mutex<HashMap<(RunId, String), Instant>>,
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new(version: &str) -> Metrics {
        let mut registry = Registry::with_prefix("farrier");
        let build = Info::new(vec![("version".to_owned(), version.to_owned())]);
        registry.register("build", "The version of this process", build);
        macro_rules! add {
            ($name:literal, $about:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $about, metric.clone());
                metric
            }};
            ($name:literal, $unit:expr, $about:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register_with_unit($name, $about, $unit, metric.clone());
                metric
            }};
        }
        let finished = add!("runs_finished", "Runs that ended, by runbook and state", Family::default());
        let steps = add!(
            "step_duration",
            Unit::Seconds,
            "From the intent of a step to its outcome",
            Family::new_with_constructor(Buckets(&STEP_SECONDS))
        );
        let failures =
            add!("step_failures", "Attempts of steps that failed, by class of failure", Family::default());
        let guards = add!("guard_stops", "Runs that a guard stopped", Family::default());
        let drifts = add!("drift_stops", "Steps that found another world than their plan", Family::default());
        let parked = add!("runs_parked", "How often runs began to wait for a person", Family::default());
        let runs = add!("runs", "Runs that are not over, by state", Family::default());
        let due = add!("queue_depth", "Runs that are due and not worked on", Gauge::default());
        let commit = add!(
            "store_commit",
            Unit::Seconds,
            "From the beginning of a transaction that writes to its being durable",
            Histogram::new(SHORT_SECONDS)
        );
        let full = add!("store_full", "1 while the disk of the store is full", Gauge::default());
        let answers = add!("http_answers", "Answers of the API, by route and status", Family::default());
        let answer_seconds =
            add!("http_answer", Unit::Seconds, "Time to an answer of the API", Histogram::new(SHORT_SECONDS));
        let connections = add!("http_connections", "Open connections", Gauge::default());
        let followers = add!("followers", "Open streams of live updates", Gauge::default());
        let set = add!("project_set", "The number of the set of the project in use", Gauge::default());
        let reload_failures =
            add!("reload_failures", "Reloads of the project that found mistakes", Counter::default());
        let stale = add!(
            "project_stale",
            Unit::Seconds,
            "How long the files on disk have not been the set in use",
            Gauge::default()
        );
        let service_stale = add!(
            "service_stale",
            Unit::Seconds,
            "How long the service file or the certificates on disk have not been those in use",
            Gauge::default()
        );
        let lateness = add!(
            "schedule_lateness",
            Unit::Seconds,
            "From a due time, with its jitter, to its decision",
            Histogram::new(SHORT_SECONDS)
        );
        let incidents = add!("incidents_open", "Incidents that are not closed", Gauge::default());
        Metrics(Arc::new(Counted {
            registry,
            finished,
            steps,
            failures,
            guards,
            drifts,
            parked,
            runs,
            due,
            commit,
            full,
            answers,
            answer_seconds,
            connections,
            followers,
            set,
            reload_failures,
            stale,
            service_stale,
            lateness,
            incidents,
            begun: Mutex::default(),
        }))
    }

    /// Everything, in OpenMetrics' text.
    pub fn open_metrics(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.0.registry);
        text
    }

    /// Everything, in Prometheus' own older text, in which a counter's name has its ending in the head too.
    pub fn text(&self) -> String {
        let text = self.open_metrics();
        let mut endings: HashMap<&str, (&str, &str)> = HashMap::new();
        for line in text.lines() {
            match line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                Some((name, "counter")) => endings.insert(name, ("_total", "counter")),
                Some((name, "info")) => endings.insert(name, ("_info", "gauge")),
                _ => continue,
            };
        }
        let mut classic = String::with_capacity(text.len());
        for line in text.lines() {
            if line.starts_with("# UNIT ") || line.starts_with("# EOF") {
                continue;
            }
            let head = line.strip_prefix("# ").and_then(|head| {
                let (word, rest) = head.split_once(' ')?;
                let (name, rest) = rest.split_once(' ')?;
                let (ending, kind) = endings.get(name)?;
                Some(format!("# {word} {name}{ending} {}", if word == "TYPE" { kind } else { rest }))
            });
            classic.push_str(head.as_deref().unwrap_or(line));
            classic.push('\n');
        }
        classic
    }

    /// How late a due time was decided.
    pub fn schedule_decided(&self, late_seconds: f64) {
        self.0.lateness.observe(late_seconds.max(0.0));
    }

    /// How many incidents are open.
    pub fn incidents_open(&self, count: i64) {
        self.0.incidents.set(count);
    }

    /// How long the store took to make something durable.
    pub fn committed(&self, seconds: f64) {
        self.0.commit.observe(seconds);
    }

    /// One answer of the API. `route` is the path as the table of routes writes it.
    pub fn answered(&self, route: &'static str, status: u16, seconds: f64) {
        self.0.answers.get_or_create(&ByAnswer { route, status }).inc();
        self.0.answer_seconds.observe(seconds);
    }

    /// How many connections are open.
    pub fn connections(&self, open: usize) {
        self.0.connections.set(open as i64);
    }

    /// The state of the service, asked for when somebody looks.
    pub fn states(&self, states: &States) {
        for (state, count) in &states.runs {
            self.0.runs.get_or_create(&ByState { state }).set(*count);
        }
        self.0.due.set(states.due);
        self.0.full.set(i64::from(states.full));
        self.0.followers.set(states.followers as i64);
        self.0.set.set(states.set as i64);
        let failed = states.reload_failures.saturating_sub(self.0.reload_failures.get());
        self.0.reload_failures.inc_by(failed);
        self.0.stale.set(states.stale_seconds);
        self.0.service_stale.set(states.service_stale_seconds);
    }
}

/// What is asked for when somebody looks at the metrics.
#[derive(Debug, Clone, Default)]
pub struct States {
    /// Runs that are not over, by state.
    pub runs: Vec<(&'static str, i64)>,
    /// Runs that are due and not worked on.
    pub due: i64,
    /// The disk is full.
    pub full: bool,
    /// Streams of live updates.
    pub followers: usize,
    /// The number of the set in use.
    pub set: u64,
    /// Reloads that failed, in all.
    pub reload_failures: u64,
    /// How long the files on disk have not been the set in use; 0 when they are.
    pub stale_seconds: f64,
    /// The same for the service file and its certificates.
    pub service_stale_seconds: f64,
}

impl ClockObserver for Metrics {
    fn decided(&self, _: &ScheduleId, _: Timestamp, _: &Decision, late: Duration) {
        self.schedule_decided(late.as_secs_f64());
    }
}

impl Observer for Metrics {
    fn update(&self, update: RunUpdate<'_>) {
        let runbook = || update.runbook.to_owned();
        for event in update.events {
            match event {
                Event::Finished { state, failure, .. } => {
                    let by = ByRunbookAndState { runbook: runbook(), state: state.name() };
                    self.0.finished.get_or_create(&by).inc();
                    if failure.as_ref().is_some_and(|failure| failure.kind == FailureKind::Guard) {
                        self.0.guards.get_or_create(&ByRunbook { runbook: runbook() }).inc();
                    }
                    self.begun().retain(|(run, _), _| *run != update.run);
                }
                Event::Parked { guard, .. } => {
                    self.0.parked.get_or_create(&ByRunbook { runbook: runbook() }).inc();
                    if guard.is_some() {
                        self.0.guards.get_or_create(&ByRunbook { runbook: runbook() }).inc();
                    }
                }
                Event::Node { node, event, .. } => match event {
                    NodeEvent::Intent { .. } => {
                        let mut begun = self.begun();
                        if begun.len() < UNDER_WAY {
                            begun.insert((update.run, node.to_string()), Instant::now());
                        }
                    }
                    NodeEvent::Succeeded { .. } => self.ended(&update, &node.to_string()),
                    NodeEvent::Failed { failure, .. } => {
                        self.ended(&update, &node.to_string());
                        let by = ByRunbookAndKind { runbook: runbook(), kind: failure.kind.name() };
                        self.0.failures.get_or_create(&by).inc();
                        if failure.kind == FailureKind::Drift {
                            self.0.drifts.get_or_create(&ByRunbook { runbook: runbook() }).inc();
                        }
                    }
                    _ => {}
                },
                _ => {}
            }
        }
    }
}

impl Metrics {
    fn begun(&self) -> std::sync::MutexGuard<'_, HashMap<(RunId, String), Instant>> {
        self.0.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self, update: &RunUpdate<'_>, node: &str) {
        let began = self.begun().remove(&(update.run, node.to_owned()));
        if let Some(began) = began {
            let by = ByRunbook { runbook: update.runbook.to_owned() };
            self.0.steps.get_or_create(&by).observe(began.elapsed().as_secs_f64());
        }
    }
}
