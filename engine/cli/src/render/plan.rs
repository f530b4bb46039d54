//! A plan as a tree of steps with their changes, for people.

use std::fmt::Write;

use farrier_exec::{Counts, Plan, PlanStep, PlanStepState};
use farrier_model::{Change, ChangeKind, Fidelity, Value};

use super::style::Style;

/// Lists of changes longer than this are cut, unless all are wanted.
const SHOWN_CHANGES: usize = 12;
/// Values longer than this many characters are cut.
const SHOWN_TEXT: usize = 100;

/// How much of a plan to draw.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// Every change and whole values.
    pub all: bool,
}

/// The whole plan.
pub fn draw(plan: &Plan, style: Style, shown: Shown) -> String {
    let mut text = String::new();
    let inputs = inputs(&plan.inputs);
    let _ = writeln!(
        text,
        "{} {} in {}{inputs}",
        style.bold("Plan of"),
        style.bold(&plan.runbook),
        plan.environment
    );
    text.push('\n');
    draw_steps(&mut text, plan, style, shown, 1);
    if !plan.guards.is_empty() {
        text.push('\n');
        for finding in &plan.guards {
            let mark = if finding.passed { style.good("within guard") } else { style.bad("beyond guard") };
            let limit = if finding.limit == u64::MAX {
                "no limit".to_owned()
            } else {
                format!("limit {}", finding.limit)
            };
            let _ = writeln!(text, "  {mark}  {} ({} counted, {limit})", finding.guard, finding.count);
        }
    }
    text.push('\n');
    text.push_str(&summary(plan, style));
    text
}

fn inputs(inputs: &Value) -> String {
    match inputs.as_map() {
        Some(map) if !map.is_empty() => {
            let pairs: Vec<String> =
                map.iter().map(|(key, value)| format!("{key}={}", short(value, false))).collect();
            format!(", {}", pairs.join(", "))
        }
        _ => String::new(),
    }
}

fn draw_steps(text: &mut String, plan: &Plan, style: Style, shown: Shown, depth: usize) {
    let name_width = plan.steps.iter().map(|step| step.id.chars().count()).max().unwrap_or(0);
    let uses_width = plan.steps.iter().map(|step| step.uses.chars().count()).max().unwrap_or(0);
    for step in &plan.steps {
        draw_step(text, step, style, shown, depth, (name_width, uses_width));
    }
}

fn draw_step(
    text: &mut String,
    step: &PlanStep,
    style: Style,
    shown: Shown,
    depth: usize,
    widths: (usize, usize),
) {
    let indent = "  ".repeat(depth);
    let uses = style.dim(&format!("{:width$}", step.uses, width = widths.1));
    let _ = writeln!(text, "{indent}{:width$}  {uses}  {}", step.id, what(step, style), width = widths.0);
    for note in &step.notes {
        let _ = writeln!(text, "{indent}    {}", style.dim(&format!("note: {note}")));
    }
    let limit = if shown.all { usize::MAX } else { SHOWN_CHANGES };
    for change in step.changes.iter().take(limit) {
        draw_change(text, change, style, shown, depth + 2);
    }
    if step.changes.len() > limit {
        let rest = Counts::of(&step.changes[limit..], None);
        let _ = writeln!(text, "{indent}    … and {} (all of them with --all)", counts(rest, style));
    }
    if let Some(child) = &step.child {
        draw_steps(text, child, style, shown, depth + 2);
    }
    let item_width = step.items.iter().map(|item| item.id.chars().count()).max().unwrap_or(0);
    // Items with nothing to show are counted, not listed.
    let (quiet, loud): (Vec<_>, Vec<_>) = step
        .items
        .iter()
        .partition(|item| !shown.all && item.state == PlanStepState::Done && item.notes.is_empty());
    for item in loud.iter().take(limit) {
        draw_step(text, item, style, shown, depth + 2, (item_width, 0));
    }
    if loud.len() > limit {
        let _ =
            writeln!(text, "{indent}    … and {} more items (all of them with --all)", loud.len() - limit);
    }
    if !quiet.is_empty() && !loud.is_empty() {
        let _ =
            writeln!(text, "{indent}    {}", style.dim(&format!("{} items without changes", quiet.len())));
    }
}

fn what(step: &PlanStep, style: Style) -> String {
    let fidelity = |text: String| match step.fidelity {
        Fidelity::Exact | Fidelity::Described => {
            format!("{text} {}", style.dim(&format!("[{}]", step.fidelity.name())))
        }
        _ => text,
    };
    match &step.state {
        PlanStepState::Done if step.fidelity == Fidelity::Deferred => style.warn("deferred"),
        PlanStepState::Done if step.read => style.dim("read"),
        PlanStepState::Done => style.dim("no changes"),
        PlanStepState::Changes => fidelity(counts(step.counts, style)),
        PlanStepState::Skipped(why) => style.dim(&format!("skipped: {why}")),
        PlanStepState::After(after) => style.warn(&format!("known after {after}")),
        PlanStepState::MaybeAfter(after) => style.warn(&format!("perhaps; known after {after}")),
        PlanStepState::Waits(what) => style.warn(&format!("waits {what}")),
        PlanStepState::Failed(failure) => style.bad(&format!("failed: {failure}")),
        PlanStepState::Blocked(by) => style.dim(&format!("blocked by {by}")),
        PlanStepState::NotReached => style.dim("not reached"),
    }
}

/// `12 to create, 1 to delete`.
pub fn counts(counts: Counts, style: Style) -> String {
    let mut parts = Vec::new();
    if counts.create > 0 {
        parts.push(style.good(&format!("{} to create", counts.create)));
    }
    if counts.update > 0 {
        parts.push(style.warn(&format!("{} to update", counts.update)));
    }
    if counts.delete > 0 {
        parts.push(style.bad(&format!("{} to delete", counts.delete)));
    }
    if counts.run > 0 {
        parts.push(style.warn(&format!("{} to run", counts.run)));
    }
    if counts.send > 0 {
        parts.push(style.warn(&format!("{} to send", counts.send)));
    }
    if parts.is_empty() { "no changes".into() } else { parts.join(", ") }
}

fn draw_change(text: &mut String, change: &Change, style: Style, shown: Shown, depth: usize) {
    let indent = "  ".repeat(depth);
    let object = &change.object;
    let _ = match change.kind {
        ChangeKind::Create => writeln!(text, "{indent}{} {object}", style.good("+")),
        ChangeKind::Update => writeln!(text, "{indent}{} {object}", style.warn("~")),
        ChangeKind::Delete => writeln!(text, "{indent}{} {object}", style.bad("-")),
        ChangeKind::Run => writeln!(text, "{indent}{} {object}", style.warn("run")),
        ChangeKind::Send => writeln!(text, "{indent}{} {object}", style.warn("send")),
    };
    match (change.kind, change.before.as_map(), change.after.as_map()) {
        (ChangeKind::Update, Some(before), Some(after)) => {
            for (field, new) in after.iter() {
                let old = before.get(field).unwrap_or(&Value::Null);
                if old != new {
                    let _ = writeln!(
                        text,
                        "{indent}    {field}: {} → {}",
                        short(old, shown.all),
                        short(new, shown.all)
                    );
                }
            }
        }
        (ChangeKind::Update, ..) => {
            let _ = writeln!(
                text,
                "{indent}    {} → {}",
                short(&change.before, shown.all),
                short(&change.after, shown.all)
            );
        }
        (ChangeKind::Create, _, Some(after)) if shown.all => {
            for (field, new) in after.iter() {
                let _ = writeln!(text, "{indent}    {field}: {}", short(new, true));
            }
        }
        _ => {}
    }
}

/// A value on one line.
fn short(value: &Value, all: bool) -> String {
    let text = match value {
        Value::Text(text)
            if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) =>
        {
            value.to_json()
        }
        other => other.to_string(),
    };
    if all || text.chars().count() <= SHOWN_TEXT {
        return text;
    }
    let cut: String = text.chars().take(SHOWN_TEXT).collect();
    format!("{cut}…")
}

fn summary(plan: &Plan, style: Style) -> String {
    if let Some(failure) = &plan.failure {
        let help = failure.help.as_ref().map_or_else(String::new, |help| format!("  {help}\n"));
        return format!("{} {failure}\n{help}", style.bad("The plan is not complete:"));
    }
    if let Some(reason) = &plan.finished_early {
        return format!("Nothing to do: {reason}.\n");
    }
    if plan.is_empty() {
        return format!("{} The world is as the runbook wants it.\n", style.good("No changes."));
    }
    let open = if plan.is_certain() { "" } else { "; parts are known only while running" };
    format!("{} {}{open}.\n", style.bold("Sum:"), counts(plan.summary, style))
}
