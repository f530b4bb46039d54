//! What was expected and what was found, in sentences: every difference, with both sides.

use std::path::Path;
use std::time::Duration;

use farrier_exec::{Plan, PlanStep, PlanStepState, Run};
use farrier_model::time::format_duration;
use farrier_model::{Event, NodeEvent, NodeName, NodeState, RunState, Scope, Value};
use farrier_runbook::testfile::{Counts, Expected, ExpectedPlan, MailIs, WorldCheck};

/// Texts that together are longer than this are shown line by line.
const ONE_LINE: usize = 100;
/// Lines that are shown of a difference, and those around a line that differs.
const SHOWN: usize = 40;
const AROUND: usize = 2;
/// Texts with more lines than this are not compared line by line.
const MAX_LINES: usize = 2000;

/// One difference: on one line when both sides are short, else line by line.
pub(super) fn differ(what: &str, expected: &str, found: &str) -> String {
    let short = expected.len() + found.len() <= ONE_LINE;
    if short && !expected.contains('\n') && !found.contains('\n') {
        return format!("{what}: expected {expected}, found {found}");
    }
    let lines = lines(expected, found);
    format!("{what}: expected (-), found (+)\n{}", lines.join("\n"))
}

fn values(what: &str, expected: &Value, found: &Value) -> String {
    let (short, other) = (expected.to_json(), found.to_json());
    if short.len() + other.len() <= ONE_LINE {
        return format!("{what}: expected {short}, found {other}");
    }
    let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_json());
    differ(what, &pretty(expected), &pretty(found))
}

/// The lines that differ with some around them, marked with `-` and `+`.
fn lines(expected: &str, found: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    if old.len() > MAX_LINES || new.len() > MAX_LINES {
        let at = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
        let side = |mark, lines: &[&str]| format!("{mark} {}", lines.get(at).unwrap_or(&"(the end)"));
        return vec![format!("  line {}:", at + 1), side('-', &old), side('+', &new)];
    }
    // The longest common subsequence, from the end.
    let width = new.len() + 1;
    let mut longest = vec![0_u32; (old.len() + 1) * width];
    for a in (0..old.len()).rev() {
        for b in (0..new.len()).rev() {
            longest[a * width + b] = if old[a] == new[b] {
                longest[(a + 1) * width + b + 1] + 1
            } else {
                longest[(a + 1) * width + b].max(longest[a * width + b + 1])
            };
        }
    }
    let (mut a, mut b) = (0, 0);
    let mut all: Vec<(char, &str)> = Vec::new();
    while a < old.len() || b < new.len() {
        if a < old.len() && b < new.len() && old[a] == new[b] {
            all.push((' ', old[a]));
            (a, b) = (a + 1, b + 1);
        } else if b >= new.len()
            || a < old.len() && longest[(a + 1) * width + b] >= longest[a * width + b + 1]
        {
            all.push(('-', old[a]));
            a += 1;
        } else {
            all.push(('+', new[b]));
            b += 1;
        }
    }
    let near = |at: usize| {
        let range = at.saturating_sub(AROUND)..(at + AROUND + 1).min(all.len());
        all[range].iter().any(|(mark, _)| *mark != ' ')
    };
    let mut shown = Vec::new();
    let mut left_out = false;
    for (at, (mark, line)) in all.iter().enumerate() {
        if !near(at) {
            left_out = true;
            continue;
        }
        if std::mem::take(&mut left_out) && !shown.is_empty() {
            shown.push("  …".into());
        }
        shown.push(format!("{mark} {line}"));
    }
    if shown.len() > SHOWN {
        let more = shown.len() - SHOWN;
        shown.truncate(SHOWN);
        shown.push(format!("  and {more} more lines"));
    }
    shown
}

pub(super) fn golden(name: &str, path: &Path, text: &str) -> Option<String> {
    match std::fs::read_to_string(path) {
        Err(error) => {
            Some(format!("plan: {name} cannot be read ({error}); `farrier test --update` writes it"))
        }
        Ok(expected) if expected == text => None,
        Ok(expected) => Some(format!(
            "{}\n  `farrier test --update` writes it anew",
            differ(&format!("plan: {name}"), &format!("{expected}\n"), text)
        )),
    }
}

pub(super) fn plan(expected: &ExpectedPlan, plan: &Plan) -> Vec<String> {
    let mut differences = Vec::new();
    match (&expected.fails, &plan.failure) {
        (Some(wanted), Some(failure)) => {
            let found = failure.to_string();
            if !found.contains(wanted.as_str()) {
                differences.push(differ("plan: a failure with", wanted, &found));
            }
        }
        (Some(wanted), None) => {
            differences.push(format!("plan: expected a failure with `{wanted}`, but it succeeded"));
        }
        (None, Some(failure)) => differences.push(format!("plan: failed with `{failure}`")),
        (None, None) => {}
    }
    for (step, wanted) in &expected.changes {
        let found = plan.steps.iter().find(|shown| *shown.id == **step).map(counts_of).unwrap_or_default();
        if found != *wanted {
            differences.push(format!("plan: step `{step}`: expected {}, found {}", say(*wanted), say(found)));
        }
    }
    if let Some(wanted) = &expected.deferred {
        let mut wanted: Vec<&str> = wanted.iter().map(|step| step.as_str()).collect();
        let mut found: Vec<&str> = plan
            .steps
            .iter()
            .filter(|step| matches!(step.state, PlanStepState::After(_) | PlanStepState::MaybeAfter(_)))
            .map(|step| &*step.id)
            .collect();
        wanted.sort_unstable();
        found.sort_unstable();
        if wanted != found {
            differences.push(differ("plan: deferred", &list(&wanted), &list(&found)));
        }
    }
    differences
}

fn counts_of(step: &PlanStep) -> Counts {
    let counts = step.counts;
    Counts {
        create: counts.create,
        update: counts.update,
        delete: counts.delete,
        run: counts.run,
        send: counts.send,
    }
}

/// Compares a run, its journal and how long it took.
pub(super) fn run(
    expected: &Expected,
    run: &Run,
    journal: &[&Event],
    ended: Option<Duration>,
) -> Vec<String> {
    let mut differences = Vec::new();
    let message = run
        .failure
        .as_ref()
        .map(ToString::to_string)
        .or_else(|| run.parked.as_ref().map(|(reason, _)| reason.clone()))
        .unwrap_or_default();
    let waits = run.suspended.as_ref().map(|(reason, _)| reason.as_str()).unwrap_or_default();
    let wanted = RunState::from(*expected.state);
    if run.state != wanted {
        let why = if message.is_empty() { waits } else { &message };
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        differences.push(format!("state: expected {}, found {}{why}", wanted.name(), run.state.name()));
    }
    for (step, wanted) in &expected.steps {
        let wanted = NodeState::from(**wanted);
        let node = step.parse::<NodeName>().ok().and_then(|name| run.find(&name)).map(|node| run.node(node));
        if node.map(|node| node.state) != Some(wanted) {
            let found = node.map_or("no such step", |node| node.state.name());
            let why = node.and_then(|node| node.failure.as_ref());
            let why = why.map_or_else(String::new, |failure| format!(": {failure}"));
            differences.push(format!("step `{step}`: expected {}, found {found}{why}", wanted.name()));
        }
    }
    for (step, wanted) in &expected.changes {
        let kinds = run
            .nodes()
            .filter(|node| *run.name(*node).step == ***step)
            .filter(|node| run.node(*node).state != NodeState::Failed)
            .flat_map(|node| run.node(node).effects.iter().map(|change| change.kind));
        let found = Counts::of(kinds);
        if found != *wanted {
            differences.push(format!("step `{step}`: expected {}, found {}", say(*wanted), say(found)));
        }
    }
    for (name, node) in &expected.outputs {
        let wanted = node.to_value();
        let found = run.outputs.get(name.as_str()).cloned().unwrap_or(Value::Null);
        if found != wanted {
            differences.push(values(&format!("output `{name}`"), &wanted, &found));
        }
    }
    if let Some(wanted) = &expected.undone {
        let wanted: Vec<&str> = wanted.iter().map(|step| step.as_str()).collect();
        let found = happened(journal, |event| matches!(event, NodeEvent::UndoDone));
        let found: Vec<&str> = found.iter().map(String::as_str).collect();
        if wanted != found {
            differences.push(differ("undone", &list(&wanted), &list(&found)));
        }
    }
    differences.extend(order(expected, journal));
    if let Some(wanted) = &expected.message_contains
        && !message.contains(wanted.as_str())
    {
        differences.push(differ("message", &format!("one with `{wanted}`"), &format!("`{message}`")));
    }
    if let Some(wanted) = &expected.waits
        && !waits.contains(wanted.as_str())
    {
        differences.push(differ("waits", &format!("for `{wanted}`"), &format!("`{waits}`")));
    }
    let words = ended.map_or_else(
        || "it has not ended".to_owned(),
        |ended| format!("it ended after {}", format_duration(Duration::from_secs(ended.as_secs()))),
    );
    if let Some(wanted) = &expected.at
        && ended.map(|ended| ended.as_secs()) != Some(wanted.0.as_secs())
    {
        differences.push(format!("at: expected the end after {}; {words}", format_duration(wanted.0)));
    }
    if let Some(within) = &expected.ended_within
        && ended.is_none_or(|ended| ended > within.0)
    {
        differences
            .push(format!("ended_within: expected the end within {}; {words}", format_duration(within.0)));
    }
    differences
}

fn happened(journal: &[&Event], what: impl Fn(&NodeEvent) -> bool) -> Vec<String> {
    journal
        .iter()
        .filter_map(|event| match event {
            Event::Node { node, event, .. } if what(event) => Some(node.to_string()),
            _ => None,
        })
        .collect()
}

/// Steps that had to succeed one after the other.
fn order(expected: &Expected, journal: &[&Event]) -> Option<String> {
    let succeeded = happened(journal, |event| matches!(event, NodeEvent::Succeeded { .. }));
    let wanted: Vec<&str> = expected.order.iter().map(|step| step.as_str()).collect();
    let mut found: Vec<&str> = Vec::new();
    for name in &succeeded {
        let is = |wanted: &&&str| **wanted == name || name.split('[').next() == Some(**wanted);
        if let Some(name) = wanted.iter().find(is)
            && !found.contains(name)
        {
            found.push(name);
        }
    }
    (wanted != found).then(|| differ("order", &list(&wanted), &list(&found)))
}

pub(super) fn world(at: usize, check: &WorldCheck, result: &Value) -> Option<String> {
    let scope = Scope::new(vec![("result".into(), result.clone())]);
    let that = check.that.0.source();
    let place = format!("world: look {} with `{}`", at + 1, *check.uses);
    let why = match check.that.0.eval_bool(&scope) {
        Ok(Some(true)) => return None,
        Err(error) => return Some(format!("{place}: `{that}`: {}", error.message)),
        Ok(_) => check.otherwise.clone().unwrap_or_else(|| format!("`{that}` is not true")),
    };
    let found = result.to_json();
    let found: String =
        if found.chars().count() > 600 { found.chars().take(599).chain(['…']).collect() } else { found };
    Some(format!("{place}: {why}; found {found}"))
}

/// Compares the mails that were sent, in order.
pub(super) fn mails(wanted: &[MailIs], sent: &[Value]) -> Vec<String> {
    let mut differences = Vec::new();
    for at in 0..wanted.len().max(sent.len()) {
        let number = at + 1;
        match (wanted.get(at), sent.get(at)) {
            (Some(wanted), Some(mail)) => {
                let text = |field: &str| mail.get(field).and_then(Value::as_str).unwrap_or_default();
                let to = mail.get("to").and_then(Value::as_list).unwrap_or_default();
                if let Some(address) = &wanted.to
                    && !to.iter().any(|to| to.as_str() == Some(address.as_str()))
                {
                    let to: Vec<&str> = to.iter().filter_map(Value::as_str).collect();
                    differences.push(differ(&format!("mail {number}: to"), address, &list(&to)));
                }
                for (field, part) in [("subject", &wanted.subject_contains), ("text", &wanted.text_contains)]
                {
                    if let Some(part) = part
                        && !text(field).contains(part.as_str())
                    {
                        let expected = format!("one with `{part}`");
                        differences.push(differ(&format!("mail {number}: {field}"), &expected, text(field)));
                    }
                }
            }
            (Some(_), None) => {
                differences.push(format!("mail {number}: expected one, and {} were sent", sent.len()));
            }
            (None, Some(mail)) => {
                let subject = mail.get("subject").and_then(Value::as_str).unwrap_or_default();
                differences.push(format!("mail {number}: expected no more, found `{subject}`"));
            }
            (None, None) => {}
        }
    }
    differences
}

fn say(counts: Counts) -> String {
    let parts: Vec<String> = [
        ("create", counts.create),
        ("update", counts.update),
        ("delete", counts.delete),
        ("run", counts.run),
        ("send", counts.send),
    ]
    .iter()
    .filter(|(_, count)| *count > 0)
    .map(|(name, count)| format!("{count} {name}"))
    .collect();
    if parts.is_empty() { "no changes".into() } else { parts.join(", ") }
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_compared_line_by_line() {
        let old: Vec<String> = (1..=30).map(|line| format!("line {line}")).collect();
        let mut new = old.clone();
        new[14] = "another line".into();
        new.push("one more".into());
        let text = differ("plan", &old.join("\n"), &new.join("\n"));
        let expected = "plan: expected (-), found (+)
  line 13
  line 14
- line 15
+ another line
  line 16
  line 17
  …
  line 29
  line 30
+ one more";
        assert_eq!(text, expected);
        assert_eq!(differ("state", "succeeded", "failed"), "state: expected succeeded, found failed");
    }
}
