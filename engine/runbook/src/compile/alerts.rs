//! Routes from alerts to runbooks, where a runbook names them and where a file of alerts does.

use std::collections::BTreeMap;
use std::time::Duration;

use farrier_alert::{Fuse, Matcher, Mode, OnResolved, Policy, Rate, Route, matches_all, read_matchers};
use farrier_model::Text;

use super::head::{duration, positive, trigger_inputs};
use super::names::{Found, IN_ALERT, Names, View};
use crate::at::At;
use crate::authored::{AlertMode, AlertTrigger, DurationText, Resolved};
use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics, Span, quoted};
use crate::graph::{Graph, InputKind, InputSpec};

/// Checks one route to `runbook`, whose inputs are `inputs`.
pub(super) fn check_route(
    runbook: &Text,
    alert: &AlertTrigger,
    place: Span,
    inputs: &[InputSpec],
    names: &Names,
    found: &mut Found,
    out: &mut Diagnostics,
) -> Option<Route> {
    let matchers = check_matchers(&alert.matchers, place, out);
    let view = View { names, roots: IN_ALERT, result: None, locals: Vec::new(), step: None };
    let per = alert.per.as_ref().map(|per| view.bare(&per.0, found, out));
    for (name, node) in &alert.inputs {
        // Whether the value comes from the alert, whatever else is wrong with it.
        let mut uses = Found::default();
        view.tree(node, true, &mut uses, &mut Diagnostics::new());
        let Some(spec) = inputs.iter().find(|spec| *spec.name == *name.value) else { continue };
        let closed = matches!(
            spec.kind,
            InputKind::Int | InputKind::Bool | InputKind::Duration | InputKind::Timestamp
        );
        if uses.alert && spec.pattern.is_none() && spec.one_of.is_empty() && !closed {
            out.push(
                Diagnostic::new(
                    codes::ALERT_WITHOUT_PATTERN,
                    name.span,
                    format!("an alert fills the input {}, which has no pattern", quoted(name)),
                )
                .help(format!("labels come from outside: add `pattern:` to `inputs.{name}`, or `one_of:`")),
            );
        }
    }
    let policy = check_policy(alert, out);
    let inputs = trigger_inputs(&alert.inputs, place, inputs, &view, found, out);
    Some(Route {
        runbook: runbook.clone(),
        matchers: matchers?,
        receivers: alert.receivers.iter().map(|receiver| (*receiver.value).into()).collect(),
        per: match per {
            Some(per) => Some(per?.0),
            None => None,
        },
        inputs: inputs?,
        policy: policy?,
    })
}

/// As [`check_route`], for a runbook that is compiled.
pub(crate) fn check_route_to(
    graph: &Graph,
    alert: &AlertTrigger,
    place: Span,
    out: &mut Diagnostics,
) -> Option<Route> {
    let names = Names {
        inputs: graph.inputs.iter().map(|spec| (spec.name.clone(), super::with::input_type(spec))).collect(),
        ..Names::default()
    };
    check_route(&graph.name, alert, place, &graph.inputs, &names, &mut Found::default(), out)
}

/// Reads the matchers of a route.
fn check_matchers(written: &[At<String>], place: Span, out: &mut Diagnostics) -> Option<Vec<Matcher>> {
    let mut matchers = Vec::new();
    let mut good = true;
    for text in written {
        match read_matchers(text) {
            Ok(read) => matchers.extend(read),
            Err(error) => {
                good = false;
                out.push(
                    Diagnostic::new(codes::BAD_MATCHER, text.span, error.to_string())
                        .expected("a matcher as Alertmanager has them")
                        .help("for example `alertname=\"DiskFull\"`, or `instance=~\"tools-.*\"`"),
                );
            }
        }
    }
    if good && matches_all(&matchers, &BTreeMap::new()) {
        let place = written.first().map_or(place, |first| first.span);
        let message = if matchers.is_empty() {
            "an alert trigger without matchers would take every alert"
        } else {
            "these matchers would take an alert without labels, and so nearly every alert"
        };
        out.push(
            Diagnostic::new(codes::BAD_TRIGGER, place, message)
                .help("name the alert: `match: ['alertname=\"…\"']`"),
        );
        return None;
    }
    good.then_some(matchers)
}

fn check_policy(alert: &AlertTrigger, out: &mut Diagnostics) -> Option<Policy> {
    let usual = Policy::default();
    let mut good = true;
    let mut read = |text: Option<&DurationText>, usual: Duration, zero: bool, out: &mut Diagnostics| {
        let Some(text) = text else { return usual };
        let length = if zero { duration(text, out) } else { positive(text, out) };
        good &= length.is_some();
        length.unwrap_or(usual)
    };
    let cooldown = alert.cooldown.as_ref();
    let after_success =
        read(cooldown.and_then(|cooldown| cooldown.after_success.as_ref()), usual.after_success, true, out);
    let after_failure =
        read(cooldown.and_then(|cooldown| cooldown.after_failure.as_ref()), usual.after_failure, true, out);
    let every = read(alert.limit.as_ref().map(|limit| &limit.every), usual.rate.every, false, out);
    let within =
        read(alert.fuse.as_ref().and_then(|fuse| fuse.within.as_ref()), usual.fuse.within, false, out);
    let max_age = read(alert.max_age.as_ref(), usual.max_age, false, out);
    let mut positive = |number: Option<&At<u32>>, usual: u32, out: &mut Diagnostics| {
        let Some(number) = number else { return usual };
        if number.value == 0 {
            good = false;
            out.push(
                Diagnostic::new(codes::BAD_TRIGGER, number.span, "with 0 here no alert would start anything")
                    .expected("1 or more")
                    .help("to leave the route out for a time, leave it out of the file"),
            );
        }
        number.value
    };
    let max_active = positive(alert.max_active.as_ref(), usual.max_active, out);
    let burst = positive(alert.limit.as_ref().map(|limit| &limit.burst), usual.rate.burst, out);
    let fuse = alert.fuse.as_ref();
    let runs = positive(fuse.and_then(|fuse| fuse.runs.as_ref()), usual.fuse.runs, out);
    let failures = positive(fuse.and_then(|fuse| fuse.failures.as_ref()), usual.fuse.failures, out);
    good.then(|| Policy {
        mode: match alert.mode.map(|mode| mode.value) {
            None | Some(AlertMode::Run) => Mode::Run,
            Some(AlertMode::Propose) => Mode::Propose,
        },
        resolved: match alert.resolved.map(|resolved| resolved.value) {
            None | Some(Resolved::Cancel) => OnResolved::Cancel,
            Some(Resolved::Note) => OnResolved::Note,
        },
        after_success,
        after_failure,
        priority: alert.priority.map_or(0, |priority| priority.value),
        max_active,
        rate: Rate { burst, every },
        fuse: Fuse { runs, failures, within },
        max_age,
    })
}
