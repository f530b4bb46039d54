//! Who hears of what: notices that follow from a run's events.
//!
//! A notice is stored with the event that it is about, so it is neither told too early nor forgotten. Sending it is
//! another's business (`post.rs`).

use std::collections::BTreeSet;

use farrier_model::event::{ParkCause, Trigger};
use farrier_model::{Event, FailureKind, NodeState, RunState, Text, Value};
use farrier_runbook::authored::Occasion;
use farrier_runbook::graph::{GuardAction, Uses};
use farrier_store::Notice;
use uuid::Uuid;

use crate::guard;
use crate::run::Run;

/// How much of one step's result stands in a notice, in characters.
const RESULT_CHARS: usize = 4_000;
/// How much of all results, in characters.
const RESULTS_CHARS: usize = 40_000;
/// How many steps are listed.
const STEPS: usize = 60;

/// What people are to hear because of `events`, which are the last of `run`.
pub(crate) fn notices(run: &Run, events: &[Event]) -> Vec<Notice> {
    let mut notices = Vec::new();
    for event in events {
        let (occasion, to, reason) = match event {
            Event::Finished { state, failure, .. } => {
                let Some((occasion, word)) = end(*state, failure.as_ref().map(|failure| failure.kind)) else {
                    continue;
                };
                let reason = failure.as_ref().map(ToString::to_string).unwrap_or_default();
                (word, listed(run, occasion), reason)
            }
            Event::Parked { reason, cause, guard, .. } => {
                let (word, to) = parked(run, *cause, guard.as_ref());
                (word, to, reason.clone())
            }
            Event::ApprovalAsked { who, count, .. } => {
                let people = if who.is_empty() { "others".to_owned() } else { who.join(", ") };
                ("approval", answerable(run), format!("it waits for the approval of {people} ({count})"))
            }
            _ => continue,
        };
        notices.extend(to.into_iter().map(|to| Notice {
            id: Uuid::now_v7(),
            run: Some(run.id),
            environment: run.environment.clone(),
            to,
            occasion: occasion.into(),
            subject: format!("{} in {}: {}", run.title(), run.environment, said(occasion)),
            body: body(run, occasion, &reason),
        }));
    }
    notices
}

/// The occasion of an end, and its word; none for a good one.
fn end(state: RunState, failure: Option<FailureKind>) -> Option<(Occasion, &'static str)> {
    Some(match (state, failure) {
        (RunState::Failed, Some(FailureKind::Guard)) => (Occasion::Guard, "guard"),
        (RunState::Failed, Some(FailureKind::Lock)) => (Occasion::LockTimeout, "lock_timeout"),
        (RunState::Failed, _) => (Occasion::Failed, "failed"),
        (RunState::Degraded, _) => (Occasion::Degraded, "degraded"),
        (RunState::Undone, _) => (Occasion::Undone, "undone"),
        (RunState::Cancelled, _) => (Occasion::Cancelled, "cancelled"),
        _ => return None,
    })
}

/// Those whom the runbook wants told on an occasion.
fn listed(run: &Run, occasion: Occasion) -> BTreeSet<Text> {
    let escalate = run.graph.escalate.as_ref().filter(|escalate| escalate.on.contains(&occasion));
    escalate.map(|escalate| escalate.to.clone()).into_iter().collect()
}

/// Those who answer for a run: whom its runbook escalates to, or its owner.
fn answerable(run: &Run) -> BTreeSet<Text> {
    let escalate = run.graph.escalate.as_ref().map(|escalate| escalate.to.clone());
    BTreeSet::from([escalate.unwrap_or_else(|| run.graph.owner.clone())])
}

/// Nobody looks at a parked run unless told, so somebody is always told. When its child is parked, the child tells.
fn parked(run: &Run, cause: ParkCause, guard: Option<&Text>) -> (&'static str, BTreeSet<Text>) {
    match cause {
        ParkCause::Child => ("parked", listed(run, Occasion::Parked)),
        ParkCause::Guard => {
            let mut to = listed(run, Occasion::Guard);
            to.extend(listed(run, Occasion::Parked));
            if pages(run, guard) {
                to.insert(run.graph.owner.clone());
            }
            ("guard", if to.is_empty() { answerable(run) } else { to })
        }
        _ => ("parked", answerable(run)),
    }
}

/// Whether the guard that asks says `otherwise: page`.
fn pages(run: &Run, name: Option<&Text>) -> bool {
    let graph = &run.graph;
    let of_steps = graph.indices().flat_map(|step| {
        graph.step(step).guards.iter().map(move |guard| (guard, Some(&*graph.step(step).id)))
    });
    run.run_guards().map(|guard| (guard, None)).chain(of_steps).any(|(guard, step)| {
        guard.otherwise == GuardAction::Page && name.is_some_and(|name| **name == *guard::name(guard, step))
    })
}

fn said(occasion: &str) -> &'static str {
    match occasion {
        "guard" => "a guard stopped it",
        "lock_timeout" => "a lock was not free in time",
        "approval" => "it waits for approval",
        "parked" => "it waits for a person",
        "failed" => "it failed",
        "degraded" => "it ended with a failure",
        "undone" => "it was undone",
        _ => "it was cancelled",
    }
}

/// The text: why, what the steps say, and what to type next.
fn body(run: &Run, occasion: &str, reason: &str) -> String {
    let short = &run.id.to_string()[..13];
    let mut text = format!("{} in {}: {}.\n", run.title(), run.environment, said(occasion));
    if !reason.is_empty() {
        text.push_str(&format!("\nWhy: {reason}\n"));
    }
    text.push_str(&format!("Started: {}, {}\n", run.started_at, began(&run.trigger)));
    text.push_str("\nSteps:\n");
    let (mut listed, mut left) = (0, RESULTS_CHARS);
    for node in run.nodes() {
        let of = run.node(node);
        if matches!(of.state, NodeState::Pending) {
            continue;
        }
        if listed == STEPS {
            text.push_str("  and others\n");
            break;
        }
        listed += 1;
        let why = match (&of.failure, &of.reason) {
            (Some(failure), _) if of.state != NodeState::Succeeded => format!(": {failure}"),
            (_, Some(reason)) => format!(": {reason}"),
            _ => String::new(),
        };
        text.push_str(&format!("  {} {}{why}\n", run.name(node), of.state.name()));
        // What was read is the evidence, also by a command that says that it only reads; what was written the plan and the
        // journal tell.
        let reads = matches!(&run.graph.step(node.step).uses, Uses::Action { .. }) && of.effects.is_empty();
        if let Some(output) = of.output.as_ref().filter(|_| reads && of.state == NodeState::Succeeded) {
            let seen = cut(&seen(output), RESULT_CHARS.min(left));
            left = left.saturating_sub(seen.chars().count());
            seen.lines().for_each(|line| text.push_str(&format!("    {line}\n")));
        }
    }
    text.push_str(&format!("\nLook: farrier show {short}\n"));
    text.push_str(match occasion {
        "approval" => "Decide: farrier approve or farrier reject, as it shows\n",
        "parked" | "guard" if run.parked.is_some() => "Decide: it shows what to type\n",
        _ => "",
    });
    if let Some(docs) = &run.graph.docs {
        text.push_str(&format!("Read: {docs}\n"));
    }
    text
}

fn began(trigger: &Trigger) -> String {
    match trigger {
        Trigger::Manual { by } => format!("by {by}"),
        Trigger::Parent { run, .. } => format!("by run {}", &run.to_string()[..13]),
        Trigger::Schedule { schedule, nominal } => format!("by schedule {schedule}, due {nominal}"),
        Trigger::Alert { incident, .. } => format!("by an alert, incident {incident}"),
    }
}

/// What a step found, for people: texts of several lines as they are, everything else as data.
fn seen(output: &Value) -> String {
    let Value::Map(fields) = output else { return output.to_json() };
    let line = |(name, value): (&_, &Value)| match value {
        Value::Text(text) if text.trim_end().contains('\n') => {
            let lines = text.trim_end().lines().map(|line| format!("\n  {line}"));
            format!("{name}:{}", lines.collect::<String>())
        }
        value => format!("{name}: {}", value.to_json()),
    };
    fields.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn cut(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
