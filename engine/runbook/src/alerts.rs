//! Files of alerts: the rules as Prometheus has them, the routes from them to runbooks, and tests of both.
//!
//! Read [`AlertsFile`] (what is written), then [`compile_alerts`] (all files of a project). Which alert takes which route,
//! and what a run is then told, is [`crate::routing`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use farrier_alert::Route;
use farrier_model::{Text, Value};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::at::{At, Keyed};
use crate::authored::{
    AlertMode, AlertTrigger, Bare, Cooldown, DurationText, FuseSettings, Resolved, StartLimit,
};
use crate::codes;
use crate::compile::{Compiled, alerts::check_route_to};
use crate::diagnostic::{Diagnostic, Diagnostics, Source, Span, nearest, quoted};
use crate::graph::Trigger;
use crate::read::read;
use crate::yaml::{Node, parse};

/// One alert or a family of them: when it fires, what it starts, and what shows that.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertsFile {
    /// The name. It is the file's name without `.yaml`.
    pub alerts: At<String>,
    /// One line for lists.
    pub summary: Option<At<String>>,
    /// Who is responsible.
    pub owner: Option<At<String>>,
    /// The rules, as Prometheus has them. They are checked here and used there: `farrier alerts --rules` prints them.
    #[serde(default)]
    pub rules: Vec<At<AlertRule>>,
    /// What the alerts start.
    #[serde(default)]
    pub routes: Vec<At<AlertRoute>>,
    /// Alerts, and what must follow from each.
    #[serde(default)]
    pub tests: Vec<AlertTest>,
}

/// A rule, as Prometheus has it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertRule {
    /// The alert's name.
    pub alert: At<String>,
    /// The expression in Prometheus' language.
    pub expr: At<String>,
    /// How long it must hold before the alert fires.
    #[serde(default, rename = "for")]
    pub hold: Option<At<String>>,
    /// How long the alert still fires when it does not hold any more.
    #[serde(default)]
    pub keep_firing_for: Option<At<String>>,
    /// Labels that the alert gets.
    #[serde(default)]
    pub labels: Keyed<At<String>>,
    /// What people read.
    #[serde(default)]
    pub annotations: Keyed<At<String>>,
}

/// A route from alerts to a runbook, as `alert:` under `triggers:` in the runbook itself.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertRoute {
    /// The runbook that is started.
    pub runbook: At<String>,
    /// Matchers in Alertmanager's syntax; all must match. Without any, the alerts of this file's rules.
    #[serde(default, rename = "match")]
    pub matchers: Vec<At<String>>,
    /// A bare expression of the alert: alerts with the same value are one incident.
    #[serde(default)]
    pub per: Option<Bare>,
    /// Values for the inputs, from `alert.labels` and `alert.annotations`.
    #[serde(default)]
    pub inputs: Keyed<Node>,
    /// What happens when the alert resolves while the run goes on; `cancel` when left out.
    #[serde(default)]
    pub resolved: Option<At<Resolved>>,
    /// How long after a run the same incident does not start another.
    #[serde(default)]
    pub cooldown: Option<Cooldown>,
    /// Whether the run starts or is proposed to people; `run` when left out.
    #[serde(default)]
    pub mode: Option<At<AlertMode>>,
    /// Only alerts that come in under these receivers, by the name in the webhook's path; any when left out.
    #[serde(default)]
    pub receivers: Vec<At<String>>,
    /// Who comes first when not all may start: larger is sooner, 0 when left out.
    #[serde(default)]
    pub priority: Option<At<i32>>,
    /// At most so many runs of the runbook that alerts have started are alive at once; 20 when left out.
    #[serde(default)]
    pub max_active: Option<At<u32>>,
    /// How often alerts start runs of the runbook; without it, 20 at once and then one each 30 seconds.
    #[serde(default)]
    pub limit: Option<StartLimit>,
    /// When alerts start no run of the runbook any more, until a person says so.
    #[serde(default)]
    pub fuse: Option<FuseSettings>,
    /// An alert that began longer ago, or in the future, only proposes a run of a destructive runbook; `24h` when left out.
    #[serde(default)]
    pub max_age: Option<DurationText>,
}

impl AlertRoute {
    /// The same as a trigger of its runbook; `rules` are those of its file.
    fn trigger(&self, rules: &[At<AlertRule>]) -> AlertTrigger {
        let mut matchers = self.matchers.clone();
        if let (true, Some(first)) = (matchers.is_empty(), rules.first()) {
            let names: Vec<String> = rules.iter().map(|rule| regex::escape(&rule.alert)).collect();
            let names = names.join("|").replace('\\', "\\\\").replace('"', "\\\"");
            matchers.push(At::new(format!("alertname=~\"{names}\""), first.span));
        }
        AlertTrigger {
            matchers,
            per: self.per.clone(),
            inputs: self.inputs.clone(),
            resolved: self.resolved,
            cooldown: self.cooldown.clone(),
            mode: self.mode,
            receivers: self.receivers.clone(),
            priority: self.priority,
            max_active: self.max_active,
            limit: self.limit.clone(),
            fuse: self.fuse.clone(),
            max_age: self.max_age.clone(),
        }
    }
}

/// An alert, and what must follow from it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertTest {
    /// What it shows, in a sentence.
    #[schemars(length(min = 1))]
    pub name: At<String>,
    /// The receiver that it comes in under; one that no route names when left out.
    pub receiver: Option<At<String>>,
    /// The alert's labels; `alertname` is that of the file's only rule when left out.
    #[serde(default)]
    pub labels: Keyed<At<String>>,
    /// The alert's annotations.
    #[serde(default)]
    pub annotations: Keyed<At<String>>,
    /// Instead of labels: a whole message of Alertmanager in this file, from the folder of this one.
    pub payload: Option<At<String>>,
    /// What follows, in the order of the alerts and the routes they take; an empty list when no route takes any.
    pub expect: Vec<AlertExpectation>,
}

/// What follows from an alert under one route.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertExpectation {
    /// The runbook.
    pub runbook: At<String>,
    /// The incident's key, the value of `per`.
    pub key: Option<At<String>>,
    /// The inputs of the run; those that are not named are not looked at.
    #[serde(default)]
    pub inputs: Keyed<Node>,
    /// Nothing is started, and the reason contains this.
    pub ignored: Option<At<String>>,
}

/// The alerts of a project.
#[derive(Debug, Clone, Default)]
pub struct Alerts {
    /// Every route without errors: those of runbooks first, by name, then those of files.
    pub routes: Vec<Arc<Route>>,
    /// The files without errors.
    pub files: Vec<AlertsRead>,
    /// Everything that is wrong.
    pub diagnostics: Diagnostics,
}

/// A file of alerts that has been read.
#[derive(Debug, Clone)]
pub struct AlertsRead {
    /// The path it was read under.
    pub path: String,
    /// Its name.
    pub name: String,
    /// Its tests, each with its line.
    pub tests: Vec<(usize, AlertTest)>,
    /// Its rules as a group for Prometheus; none when it has no rules.
    pub rules: Option<serde_json::Value>,
}

/// Reads and checks files of alerts against the runbooks that they name.
pub fn compile_alerts(sources: &[Source], compiled: &Compiled) -> Alerts {
    let mut alerts = Alerts { routes: routes_of(compiled), ..Alerts::default() };
    let mut out = Diagnostics::new();
    let mut names: HashMap<String, (String, Span)> = HashMap::new();
    for source in sources {
        let file = out.add_source(source.clone());
        let Some(node) = parse(file, source.text.as_bytes(), &mut out) else { continue };
        let Some(written) = read::<AlertsFile>(&node, &mut out) else { continue };
        check_name(&written, &source.path, &mut out);
        for rule in &written.rules {
            check_rule(rule, &mut out);
            let place = (source.path.clone(), rule.alert.span);
            if let Some((path, first)) = names.insert(rule.alert.value.clone(), place) {
                let message = format!("there is already a rule {} in {}", quoted(&rule.alert), quoted(&path));
                let diagnostic = Diagnostic::new(codes::BAD_ALERT_RULE, rule.alert.span, message);
                out.push(if path == source.path {
                    diagnostic.label(first, "the other one")
                } else {
                    diagnostic
                });
            }
        }
        if written.rules.is_empty() && written.routes.is_empty() {
            out.push(
                Diagnostic::new(
                    codes::BAD_ALERT_RULE,
                    written.alerts.span,
                    "there is neither a rule nor a route",
                )
                .help("add `rules:` with a rule of Prometheus, or `routes:` to a runbook"),
            );
        }
        for route in &written.routes {
            let known = compiled.sources.keys().map(|name| &**name);
            let Some(graph) = compiled.graphs.get(&*route.runbook.value) else {
                // What is wrong with a runbook has been said at its own place.
                if !compiled.sources.contains_key(&*route.runbook.value) {
                    let message = format!("unknown runbook {}", quoted(&route.runbook));
                    let diagnostic = Diagnostic::new(codes::UNKNOWN_RUNBOOK, route.runbook.span, message);
                    out.push(match nearest(&route.runbook, known) {
                        Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
                        None => diagnostic,
                    });
                }
                continue;
            };
            let trigger = route.trigger(&written.rules);
            let checked = check_route_to(graph, &trigger, route.runbook.span, &mut out);
            alerts.routes.extend(checked.map(Arc::new));
        }
        let mut seen: HashMap<&str, Span> = HashMap::new();
        for test in &written.tests {
            if let Some(first) = seen.insert(&test.name, test.name.span) {
                out.push(
                    Diagnostic::new(
                        codes::SAME_TEST_NAME,
                        test.name.span,
                        format!("two tests are named {}", quoted(&test.name)),
                    )
                    .label(first, "the other one")
                    .help("say what differs"),
                );
            }
            check_test(test, &written, compiled, &mut out);
        }
        if !out.has_errors_in(file) {
            let rules = rules_of(&written);
            let tests = written.tests.into_iter().map(|mut test| {
                with_name(&mut test, &written.rules);
                (out.position(file, test.name.span.start).0, test)
            });
            alerts.files.push(AlertsRead {
                path: source.path.clone(),
                name: written.alerts.value.clone(),
                tests: tests.collect(),
                rules,
            });
        }
    }
    alerts.diagnostics = out;
    alerts
}

/// The routes that runbooks have themselves.
pub fn routes_of(compiled: &Compiled) -> Vec<Arc<Route>> {
    let triggers = compiled.graphs.values().flat_map(|graph| &graph.triggers);
    triggers
        .filter_map(|trigger| match trigger {
            Trigger::Alert(route) => Some(Arc::new((**route).clone())),
            Trigger::Clock { .. } => None,
        })
        .collect()
}

fn check_name(written: &AlertsFile, path: &str, out: &mut Diagnostics) {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.strip_suffix(".yaml").unwrap_or(file);
    let stem = stem.strip_suffix(".alerts").unwrap_or(stem);
    if *written.alerts.value != *stem {
        out.push(
            Diagnostic::new(
                codes::NAME_IS_NOT_STEM,
                written.alerts.span,
                format!("the alerts are called {}, and their file {}", quoted(&written.alerts), quoted(stem)),
            )
            .help(format!("write `alerts: {stem}`, or rename the file")),
        );
    }
}

/// What Prometheus would refuse, as far as it can be told without its parser.
fn check_rule(rule: &AlertRule, out: &mut Diagnostics) {
    let mut wrong = |span, message: String, help: &str| {
        let diagnostic = Diagnostic::new(codes::BAD_ALERT_RULE, span, message);
        out.push(if help.is_empty() { diagnostic } else { diagnostic.help(help) });
    };
    if rule.alert.trim().is_empty() {
        wrong(rule.alert.span, "the alert has no name".into(), "");
    }
    if rule.expr.trim().is_empty() {
        wrong(rule.expr.span, "the rule has no expression".into(), "");
    }
    for time in rule.hold.iter().chain(&rule.keep_firing_for) {
        if !is_prometheus_duration(time) {
            wrong(
                time.span,
                format!("{} is not a duration of Prometheus", quoted(time)),
                "write whole numbers with `ms`, `s`, `m`, `h`, `d`, `w` or `y`, the largest first: `1h30m`",
            );
        }
    }
    for (name, _) in rule.labels.iter().chain(&rule.annotations) {
        let letter = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !letter || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            wrong(name.span, format!("{} is not the name of a label", quoted(name)), "");
        }
    }
    if let Some((name, _)) = rule.labels.iter().find(|(name, _)| *name.value == *"alertname") {
        wrong(name.span, "the label `alertname` is the rule's name".into(), "remove it");
    }
}

fn is_prometheus_duration(text: &str) -> bool {
    let units = ["y", "w", "d", "h", "m", "s", "ms"];
    let (mut rest, mut next) = (text, 0);
    if text == "0" {
        return true;
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let after = &rest[digits..];
        let unit = after.len() - after.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
        let Some(at) = units.iter().position(|name| *name == &after[..unit]) else { return false };
        if digits == 0 || at < next {
            return false;
        }
        (rest, next) = (&after[unit..], at + 1);
    }
    !text.is_empty()
}

fn check_test(test: &AlertTest, written: &AlertsFile, compiled: &Compiled, out: &mut Diagnostics) {
    let mut wrong = |span, message: String, help: &str| {
        let diagnostic = Diagnostic::new(codes::BAD_ALERT_TEST, span, message);
        out.push(if help.is_empty() { diagnostic } else { diagnostic.help(help) });
    };
    if let Some(payload) = &test.payload {
        if !test.labels.is_empty() || !test.annotations.is_empty() {
            wrong(
                payload.span,
                "a whole message has its own labels".into(),
                "remove `labels:` and `annotations:`",
            );
        }
        if payload.starts_with('/') || payload.split('/').any(|part| part == "..") {
            wrong(payload.span, format!("{} leaves the folder of this file", quoted(payload)), "");
        }
    } else if test.labels.get("alertname").is_none() && written.rules.len() != 1 {
        wrong(test.name.span, "the alert of this test has no name".into(), "add `alertname:` to `labels:`");
    }
    for expected in &test.expect {
        if expected.ignored.is_some() && (expected.key.is_some() || !expected.inputs.is_empty()) {
            wrong(
                expected.runbook.span,
                "an alert that is ignored has neither key nor inputs".into(),
                "remove them, or `ignored:`",
            );
        }
        let Some(graph) = compiled.graphs.get(&*expected.runbook.value) else { continue };
        for (name, _) in &expected.inputs {
            if !graph.inputs.iter().any(|spec| *spec.name == *name.value) {
                wrong(name.span, format!("runbook `{}` has no input {}", graph.name, quoted(name)), "");
            }
        }
    }
}

/// The label `alertname` of a test that leaves it to the file's only rule.
fn with_name(test: &mut AlertTest, rules: &[At<AlertRule>]) {
    if let (None, None, [rule]) = (&test.payload, test.labels.get("alertname"), rules) {
        let name = At::new("alertname".to_owned(), rule.alert.span);
        test.labels.0.push((name, rule.alert.clone()));
    }
}

/// The rules as Prometheus reads them: a file with one group.
fn rules_of(written: &AlertsFile) -> Option<serde_json::Value> {
    let pairs = |pairs: &Keyed<At<String>>| -> serde_json::Map<String, serde_json::Value> {
        pairs.iter().map(|(name, value)| (name.value.clone(), value.value.clone().into())).collect()
    };
    let rules = written.rules.iter().map(|rule| {
        let mut one = serde_json::Map::new();
        one.insert("alert".into(), rule.alert.value.clone().into());
        one.insert("expr".into(), rule.expr.value.clone().into());
        for (name, value) in [("for", &rule.hold), ("keep_firing_for", &rule.keep_firing_for)] {
            if let Some(value) = value {
                one.insert(name.into(), value.value.clone().into());
            }
        }
        for (name, of) in [("labels", &rule.labels), ("annotations", &rule.annotations)] {
            if !of.is_empty() {
                one.insert(name.into(), pairs(of).into());
            }
        }
        serde_json::Value::Object(one)
    });
    let rules: Vec<serde_json::Value> = rules.collect();
    (!rules.is_empty())
        .then(|| serde_json::json!({ "groups": [{ "name": written.alerts.value, "rules": rules }] }))
}

impl AlertTest {
    /// The test as a message of Alertmanager, unless it has its own.
    pub fn message(&self) -> Option<serde_json::Value> {
        if self.payload.is_some() {
            return None;
        }
        let pairs = |pairs: &Keyed<At<String>>| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| (name.value.clone(), value.value.clone())).collect()
        };
        Some(serde_json::json!({
            "version": "4",
            "groupKey": "{}:{}",
            "status": "firing",
            "alerts": [{
                "status": "firing",
                "labels": pairs(&self.labels),
                "annotations": pairs(&self.annotations),
                "startsAt": "2026-01-01T00:00:00Z",
                "endsAt": "0001-01-01T00:00:00Z",
            }],
        }))
    }
}

impl AlertExpectation {
    /// The inputs that are looked at, as values.
    pub fn inputs(&self) -> impl Iterator<Item = (Text, Value)> + '_ {
        self.inputs.iter().map(|(name, node)| (Text::from(&*name.value), node.to_value()))
    }
}
