//! [`fsck()`]: are the promises kept in what is stored?
//!
//! [`check_run`] is the heart: pure, over one run's row and journal. The stores add what only they can see (hash chain,
//! blobs, pages). Each [`Violation`] names run and entry, and the invariant by its number in the protocol:
//!
//! | | invariant |
//! |---|---|
//! | I1 | a node succeeds at most once |
//! | I2 | an outcome that changed something has an intent before it, with the same attempt and no later epoch |
//! | I4 | an effect that must not happen twice has at most one intent without a resolution |
//! | I5 | epochs never decrease, and each begins with its claim |
//! | I6 | a schedule's due times are recorded without a gap, up to its cursor |
//! | I7 | a due time that started a run has it, and a run that a schedule started has its due time |
//! | I8 | a run has ended exactly when its journal ends with `finished` |
//! | I9 | nothing is undone that had not succeeded |

use std::collections::HashMap;
use std::fmt;

use farrier_model::{Effect, Entry, Event, NodeEvent, NodeName, NodeState, RunId};

use crate::{RunFilter, RunRow, Store, StoreError};

/// How many runs are listed at a time.
const PAGE: usize = 500;

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    /// The run; none for damage beneath all runs.
    pub run: Option<RunId>,
    /// The journal entry, where it is about one.
    pub seq: Option<i64>,
    /// The invariant: `I1` … `I9`, `seq` (gaps), `chain` (hash chain), `body`, `blob`, `row` (the run's row says something
    /// else than its journal), `transition` (an event that cannot happen in the node's state), `pages` (the database file), `retention` (a mark
    /// that lets a journal be deleted).
    pub invariant: &'static str,
    /// What was found.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(run) = self.run {
            write!(f, "run {run} ")?;
        }
        if let Some(seq) = self.seq {
            write!(f, "entry {seq} ")?;
        }
        write!(f, "[{}]: {}", self.invariant, self.message)
    }
}

/// What [`fsck()`] read and found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct FsckReport {
    /// How many runs were read.
    pub runs: u64,
    /// How many journal entries.
    pub entries: u64,
    /// How many of the runs ended well: a suite in which everything failed has shown nothing.
    pub succeeded: u64,
    /// What is wrong; empty when all is well.
    pub violations: Vec<Violation>,
}

impl FsckReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Checks every run of `store`, and its storage. Reads only; runs that are being written meanwhile are seen as of one
/// moment each. An error means that nothing could be read at all; damage is a violation.
pub async fn fsck(store: &dyn Store) -> Result<FsckReport, StoreError> {
    let mut report = FsckReport::default();
    match store.audit_storage().await {
        Ok(violations) => report.violations = violations,
        Err(error) => report.violations.push(unreadable(None, error)?),
    }
    let mut filter = RunFilter { limit: Some(PAGE), ..RunFilter::default() };
    loop {
        let page = match store.runs(filter.clone()).await {
            Ok(page) => page,
            Err(error) => {
                report.violations.push(unreadable(None, error)?);
                return Ok(report);
            }
        };
        let Some(last) = page.last() else { return Ok(report) };
        filter.before = Some((last.created_at, last.id));
        for row in page {
            let run = row.id;
            if let Err(error) = check_stored_run(store, row, &mut report).await {
                report.violations.push(unreadable(Some(run), error)?);
            }
        }
    }
}

/// What cannot be read is damage, unless it is the store that is gone.
fn unreadable(run: Option<RunId>, error: StoreError) -> Result<Violation, StoreError> {
    let message = match error {
        StoreError::Closed => return Err(error),
        StoreError::Fatal { file, message } => format!("`{}` cannot be read: {message}", file.display()),
        error => error.to_string(),
    };
    Ok(Violation { run, seq: None, invariant: "pages", message })
}

async fn check_stored_run(
    store: &dyn Store,
    mut row: RunRow,
    report: &mut FsckReport,
) -> Result<(), StoreError> {
    // Row and journal are two reads; when the run grew in between, look again.
    let audit = loop {
        let audit = store.audit(row.id).await?;
        match store.run(row.id).await? {
            Some(now) if now.seq != row.seq || now.state != row.state => row = now,
            _ => break audit,
        }
    };
    report.runs += 1;
    report.entries += audit.entries.len() as u64;
    report.succeeded += u64::from(row.state == farrier_model::RunState::Succeeded);
    let stored_well = audit.violations.is_empty();
    report.violations.extend(audit.violations);
    if stored_well {
        report.violations.extend(check_run(&row, &audit.entries));
    } else {
        // A journal with holes breaks further invariants by its holes alone; only what holes cannot cause is told.
        let unaffected = ["I1", "I5"];
        let more = check_run(&row, &audit.entries).into_iter();
        report.violations.extend(more.filter(|violation| unaffected.contains(&violation.invariant)));
    }
    Ok(())
}

/// Checks one run: `row` as stored, `entries` its whole journal in order.
pub fn check_run(row: &RunRow, entries: &[Entry]) -> Vec<Violation> {
    let mut check = Check { run: row.id, seq: None, nodes: HashMap::new(), violations: Vec::new() };
    let mut epoch = 0;
    for (index, entry) in entries.iter().enumerate() {
        check.seq = Some(entry.seq);
        if entry.seq != index as i64 + 1 {
            check.violation("seq", format!("entry {} is expected here", index + 1));
        }
        if (index == 0) != matches!(entry.event, Event::Created { .. }) {
            check.violation("I8", format!("`{}` is out of place", entry.event.name()));
        }
        let claimed = matches!(entry.event, Event::Claimed { .. });
        if entry.epoch < epoch || (entry.epoch > epoch) != claimed {
            let message = format!("`{}` has epoch {} after epoch {epoch}", entry.event.name(), entry.epoch);
            check.violation("I5", message);
        }
        epoch = epoch.max(entry.epoch);
        match &entry.event {
            Event::Node { node, attempt, event } => check.node(node, *attempt, entry.epoch, event),
            Event::Finished { state, .. } => {
                if index + 1 < entries.len() {
                    check.violation("I8", "the journal goes on after `finished`".into());
                }
                if *state != row.state {
                    check.violation(
                        "I8",
                        format!("it finished `{}`, the run is `{}`", state.name(), row.state.name()),
                    );
                }
            }
            _ => {}
        }
    }
    check.seq = None;
    let finished = entries.last().is_some_and(|entry| matches!(entry.event, Event::Finished { .. }));
    if row.state.is_final() && !finished {
        check.violation(
            "I8",
            format!("the run is `{}` without `finished` at the journal's end", row.state.name()),
        );
    }
    if row.seq != entries.len() as i64 {
        check.violation("row", format!("{} entries expected, {} found", row.seq, entries.len()));
    }
    if row.epoch != epoch {
        check.violation("row", format!("the run has epoch {}, its journal {epoch}", row.epoch));
    }
    check.violations
}

struct Check {
    run: RunId,
    seq: Option<i64>,
    nodes: HashMap<NodeName, Seen>,
    violations: Vec<Violation>,
}

/// What is known of a node so far.
#[derive(Default)]
struct Seen {
    state: NodeState,
    succeeded: u32,
    /// Attempt, epoch, effect and key of each intent.
    intents: Vec<(u32, i64, Effect, String)>,
    /// The last intent has no resolution yet.
    open: bool,
    undo_intents: Vec<u32>,
}

impl Check {
    fn violation(&mut self, invariant: &'static str, message: String) {
        self.violations.push(Violation { run: Some(self.run), seq: self.seq, invariant, message });
    }

    fn node(&mut self, name: &NodeName, attempt: u32, epoch: i64, event: &NodeEvent) {
        let mut seen = self.nodes.remove(name).unwrap_or_default();
        match seen.state.after(event) {
            Ok(state) => seen.state = state,
            Err(illegal) => self.violation("transition", format!("`{name}`: {illegal}")),
        }
        let has_intent =
            seen.intents.iter().any(|(intent, its_epoch, ..)| *intent == attempt && *its_epoch <= epoch);
        let needs_intent = match event {
            // A step that found nothing to change, or whose planning failed, never had one.
            NodeEvent::Succeeded { changed, .. } => *changed > 0,
            NodeEvent::Applied { .. } | NodeEvent::InDoubt { .. } | NodeEvent::NotApplied { .. } => true,
            _ => false,
        };
        if needs_intent && !has_intent {
            let message = format!("`{name}`: `{}` of attempt {attempt} has no intent", event.name());
            self.violation("I2", message);
        }
        match event {
            NodeEvent::Intent { effect, effect_id, .. } => {
                if seen.open {
                    let safe = match effect {
                        Effect::Read | Effect::Repeatable => true,
                        // The target remembers the key, so the same key again is the same effect.
                        Effect::Keyed => seen.intents.last().is_some_and(|(.., key)| key == effect_id),
                        Effect::Probed | Effect::Once => false,
                    };
                    if !safe {
                        let message = format!(
                            "`{name}`: a second intent of a `{}` effect while the first is unresolved",
                            effect.name()
                        );
                        self.violation("I4", message);
                    }
                }
                if seen.succeeded > 0 {
                    self.violation("I1", format!("`{name}`: an intent after it had succeeded"));
                }
                seen.intents.push((attempt, epoch, *effect, effect_id.clone()));
                seen.open = true;
            }
            NodeEvent::Succeeded { .. } => {
                seen.open = false;
                seen.succeeded += 1;
                if seen.succeeded > 1 {
                    self.violation("I1", format!("`{name}` succeeded a second time"));
                }
            }
            NodeEvent::Failed { .. } | NodeEvent::NotApplied { .. } | NodeEvent::Applied { .. } => {
                seen.open = false;
            }
            NodeEvent::UndoIntent { .. } => {
                // A step that failed after its intent may have had a part of its effect, which is undone too.
                if seen.intents.is_empty() || seen.open {
                    self.violation("I9", format!("`{name}` is undone without a recorded effect"));
                }
                seen.undo_intents.push(attempt);
            }
            NodeEvent::UndoDone | NodeEvent::UndoFailed { .. } if !seen.undo_intents.contains(&attempt) => {
                let message = format!("`{name}`: `{}` of attempt {attempt} has no intent", event.name());
                self.violation("I9", message);
            }
            _ => {}
        }
        self.nodes.insert(name.clone(), seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farrier_model::event::{ParkCause, Trigger};
    use farrier_model::{Digest, Failure, FailureKind, RunState, Value};

    use crate::timestamp;

    fn created() -> Event {
        Event::Created {
            runbook: "r".into(),
            bundle: Digest::of(""),
            environment: "e".into(),
            inputs: Value::Null,
            trigger: Trigger::Manual { by: "me".into() },
            plan: None,
        }
    }

    fn claimed() -> Event {
        Event::Claimed { owner: "h:1".into() }
    }

    fn finished(state: RunState) -> Event {
        Event::Finished { state, outputs: Value::Null, failure: None }
    }

    fn node(attempt: u32, event: NodeEvent) -> Event {
        Event::Node { node: NodeName::step("a"), attempt, event }
    }

    fn intent(attempt: u32, effect: Effect, key: &str) -> Event {
        let (inputs, changes) = (Value::Null, Vec::new());
        node(attempt, NodeEvent::Intent { inputs, changes, effect, effect_id: key.into() })
    }

    fn succeeded(attempt: u32, changed: u64) -> Event {
        node(attempt, NodeEvent::Succeeded { output: Value::Null, changed })
    }

    fn failed(attempt: u32, retry: bool) -> Event {
        let failure = Failure::new(FailureKind::Exit, "no");
        node(attempt, NodeEvent::Failed { failure, retry_at: retry.then(|| timestamp(5)), continued: false })
    }

    fn in_doubt(attempt: u32) -> Event {
        node(attempt, NodeEvent::InDoubt { reason: "crash".into() })
    }

    fn undo_intent(attempt: u32) -> Event {
        node(attempt, NodeEvent::UndoIntent { effect_id: "u".into() })
    }

    /// Runs the checks over events with their epochs; the row agrees with the journal.
    fn check(state: RunState, events: Vec<(i64, Event)>) -> Vec<&'static str> {
        let at = timestamp(0);
        let entries: Vec<Entry> = events
            .into_iter()
            .zip(1..)
            .map(|((epoch, event), seq)| Entry { seq, epoch, at, event })
            .collect();
        let row =
            row(state, entries.len() as i64, entries.iter().map(|entry| entry.epoch).max().unwrap_or(0));
        check_run(&row, &entries).iter().map(|violation| violation.invariant).collect()
    }

    fn row(state: RunState, seq: i64, epoch: i64) -> RunRow {
        RunRow {
            id: RunId::at(1, [0; 10]),
            runbook: "r".into(),
            bundle: Digest::of(""),
            environment: "e".into(),
            title: "t".into(),
            state,
            owner: None,
            epoch,
            lease_until: None,
            not_before: None,
            created_at: timestamp(0),
            updated_at: timestamp(0),
            finished_at: None,
            parent: None,
            reason: None,
            seq,
        }
    }

    fn begun(rest: Vec<(i64, Event)>) -> Vec<(i64, Event)> {
        let mut events = vec![(0, created()), (1, claimed())];
        events.extend(rest);
        events
    }

    /// What it is, the run's state, and epochs with events.
    type Sound = (&'static str, RunState, Vec<(i64, Event)>);
    /// The same, and the invariants that are broken.
    type Broken = (&'static str, RunState, Vec<(i64, Event)>, &'static [&'static str]);

    #[test]
    fn sound_journals_are_clean() {
        use Effect::{Keyed, Once, Probed, Repeatable};
        let cases: Vec<Sound> = vec![
            ("never claimed", RunState::Queued, vec![(0, created())]),
            ("nothing to change", RunState::Running, begun(vec![(1, succeeded(1, 0))])),
            ("plain", RunState::Running, begun(vec![(1, intent(1, Once, "k")), (1, succeeded(1, 3))])),
            (
                "retry after failure",
                RunState::Running,
                begun(vec![
                    (1, intent(1, Once, "k")),
                    (1, failed(1, true)),
                    (1, intent(2, Once, "k")),
                    (1, succeeded(2, 1)),
                ]),
            ),
            (
                "repeated after a crash",
                RunState::Running,
                begun(vec![
                    (1, intent(1, Repeatable, "k")),
                    (2, claimed()),
                    (2, in_doubt(1)),
                    (2, intent(2, Repeatable, "k")),
                ]),
            ),
            (
                "submitted again under the same key",
                RunState::Running,
                begun(vec![
                    (1, intent(1, Keyed, "k")),
                    (2, claimed()),
                    (2, in_doubt(1)),
                    (2, intent(2, Keyed, "k")),
                    (2, succeeded(2, 1)),
                ]),
            ),
            (
                "probed: not applied, then again",
                RunState::Running,
                begun(vec![
                    (1, intent(1, Probed, "k")),
                    (2, claimed()),
                    (2, in_doubt(1)),
                    (2, node(1, NodeEvent::NotApplied { by: "probe".into() })),
                    (2, intent(2, Probed, "k")),
                ]),
            ),
            (
                "parked in doubt, resolved as applied",
                RunState::Succeeded,
                begun(vec![
                    (1, intent(1, Once, "k")),
                    (2, claimed()),
                    (2, in_doubt(1)),
                    (
                        2,
                        Event::Parked {
                            reason: "a".into(),
                            cause: ParkCause::InDoubt,
                            guard: None,
                            plan: None,
                        },
                    ),
                    (3, claimed()),
                    (3, succeeded(1, 1)),
                    (3, finished(RunState::Succeeded)),
                ]),
            ),
            (
                "undone at the second try",
                RunState::Undone,
                begun(vec![
                    (1, intent(1, Once, "k")),
                    (1, succeeded(1, 1)),
                    (1, Event::UndoStarted { reason: "b failed".into() }),
                    (1, undo_intent(1)),
                    (1, node(1, NodeEvent::UndoFailed { failure: Failure::new(FailureKind::Exit, "no") })),
                    (1, undo_intent(2)),
                    (1, node(2, NodeEvent::UndoDone)),
                    (1, finished(RunState::Undone)),
                ]),
            ),
        ];
        for (name, state, events) in cases {
            assert_eq!(check(state, events), Vec::<&str>::new(), "{name}");
        }
    }

    #[test]
    fn each_broken_promise_is_named() {
        use Effect::{Keyed, Once, Probed};
        let running = RunState::Running;
        let cases: Vec<Broken> = vec![
            (
                "two successes",
                running,
                begun(vec![(1, succeeded(1, 0)), (1, succeeded(2, 0))]),
                &["transition", "I1"],
            ),
            (
                "intent after success",
                running,
                begun(vec![(1, succeeded(1, 0)), (1, intent(2, Once, "k"))]),
                &["transition", "I1"],
            ),
            ("effect without intent", running, begun(vec![(1, succeeded(1, 2))]), &["I2"]),
            (
                "outcome of another attempt",
                running,
                begun(vec![(1, intent(1, Once, "k")), (1, succeeded(2, 2))]),
                &["I2"],
            ),
            (
                "once guessed after a crash",
                running,
                begun(vec![
                    (1, intent(1, Once, "k")),
                    (2, claimed()),
                    (2, in_doubt(1)),
                    (2, intent(2, Once, "k")),
                ]),
                &["I4"],
            ),
            (
                "probed not asked",
                running,
                begun(vec![
                    (1, intent(1, Probed, "k")),
                    (2, claimed()),
                    (2, in_doubt(1)),
                    (2, intent(2, Probed, "k")),
                ]),
                &["I4"],
            ),
            (
                "keyed under another key",
                running,
                begun(vec![(1, intent(1, Keyed, "k")), (1, in_doubt(1)), (1, intent(2, Keyed, "l"))]),
                &["I4"],
            ),
            ("old owner wrote", running, begun(vec![(2, claimed()), (1, succeeded(1, 0))]), &["I5"]),
            ("epoch without claim", running, begun(vec![(2, succeeded(1, 0))]), &["I5"]),
            ("claim without epoch", running, begun(vec![(1, claimed())]), &["I5"]),
            ("not created", running, vec![(1, claimed())], &["I8"]),
            ("ended unsaid", RunState::Failed, begun(vec![]), &["I8"]),
            ("said unended", running, begun(vec![(1, finished(RunState::Failed))]), &["I8"]),
            (
                "went on",
                RunState::Failed,
                begun(vec![(1, finished(RunState::Failed)), (1, succeeded(1, 0))]),
                &["I8", "I8"],
            ),
            ("undone unsucceeded", running, begun(vec![(1, undo_intent(1))]), &["transition", "I9"]),
            (
                "undone unannounced",
                running,
                begun(vec![(1, succeeded(1, 0)), (1, node(1, NodeEvent::UndoDone))]),
                &["transition", "I9"],
            ),
        ];
        for (name, state, events, expected) in cases {
            assert_eq!(check(state, events), expected, "{name}");
        }
    }

    #[test]
    fn the_row_must_agree_with_its_journal() {
        let entry = |seq, epoch, event| Entry { seq, epoch, at: timestamp(0), event };
        let entries = [entry(1, 0, created()), entry(3, 1, claimed())];
        let found: Vec<String> =
            check_run(&row(RunState::Running, 3, 2), &entries).iter().map(ToString::to_string).collect();
        let run = RunId::at(1, [0; 10]);
        assert_eq!(
            found,
            [
                format!("run {run} entry 3 [seq]: entry 2 is expected here"),
                format!("run {run} [row]: 3 entries expected, 2 found"),
                format!("run {run} [row]: the run has epoch 2, its journal 1"),
            ]
        );
    }
}
