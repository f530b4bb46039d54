//! What becomes of due times: [`verdicts`] over those that are pending, then [`settle`] against the runs that are alive.
//!
//! The first looks at the schedule and the time alone, so whoever fires may prepare the runs that will probably start. The
//! second is asked within the transaction that records the decisions, when nobody else can start a run of the schedule.

use std::fmt;
use std::time::Duration;

use farrier_model::RunId;
use farrier_model::time::Timestamp;

use crate::calendar::Calendar;
use crate::spec::{CatchUp, Overlap, Spec};

/// At most so many due times are decided at once; the others follow at once. It bounds a transaction.
pub const TURN: usize = 1_000;
/// What is older is not decided one by one: one record stands for all of it.
pub const WINDOW: Duration = Duration::from_secs(24 * 60 * 60);
/// A start that is this late still counts as on time. A restart of the service takes less.
pub const ON_TIME: Duration = Duration::from_secs(60);
/// A gap between two looks at the clock that no restart explains.
const JUMP: Duration = Duration::from_secs(10 * 60);

/// The clock was seen at `from`, and next at `to`, much later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jump {
    /// When it was seen last.
    pub from: Timestamp,
    /// When it was seen again.
    pub to: Timestamp,
}

/// Whether between two looks at the clock so much time has passed that the clock may be wrong: its jump, or a long sleep.
pub fn is_jump(last: Timestamp, now: Timestamp) -> bool {
    now > plus(last, JUMP.max(WINDOW))
}

/// A schedule whose time has come, as far as its row says.
#[derive(Debug, Clone)]
pub struct Pending<'a> {
    /// What it says.
    pub spec: &'a Spec,
    /// Its due times.
    pub calendar: &'a Calendar,
    /// The last due time that was decided.
    pub cursor: Timestamp,
    /// The time.
    pub now: Timestamp,
    /// The last jump of the clock that was noticed.
    pub jump: Option<Jump>,
    /// Its runbook may destroy something.
    pub destructive: bool,
    /// Nothing of its kind starts by itself in its environment.
    pub frozen: bool,
}

/// What is to become of some due times, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// One for each due time, but one for all that are older than [`WINDOW`].
    pub verdicts: Vec<Verdict>,
    /// The last due time of them: the schedule's new cursor.
    pub cursor: Timestamp,
    /// When the schedule has to be looked at next, jitter included; none when it is due no more. May have passed already.
    pub next: Option<Timestamp>,
    /// Nothing is to start until a person has looked: why.
    pub hold: Option<String>,
}

/// What is to become of a due time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The due time, before jitter; the last one, when it stands for several.
    pub nominal: Timestamp,
    /// The first one of those that it stands for.
    pub since: Option<Timestamp>,
    /// What.
    pub what: What,
}

/// The same, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A run starts, unless one that is still going is in the way.
    Start,
    /// Nothing starts.
    Skip(Skip),
    /// This later due time stands for it.
    Into(Timestamp),
}

/// Why nothing starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// Nobody was there, and what was missed is not caught up.
    Missed,
    /// Nobody was there for longer than is caught up.
    TooOld,
    /// More were missed than are caught up.
    TooMany,
    /// The environment is frozen.
    Frozen,
    /// The clock jumped over it, and the runbook may destroy something.
    ClockJumped,
    /// Somebody paused the schedule.
    Paused,
    /// A run of the schedule is still going.
    Overlap(RunId),
    /// A run of the runbook with the same `one_run_per` is alive.
    KeyTaken(RunId),
    /// The runbook's inputs, as the trigger gives them, are refused.
    Inputs,
}

impl Skip {
    /// The word under which it is stored and shown.
    pub fn name(self) -> &'static str {
        match self {
            Skip::Missed => "missed",
            Skip::TooOld => "too_old",
            Skip::TooMany => "too_many",
            Skip::Frozen => "frozen",
            Skip::ClockJumped => "clock_jumped",
            Skip::Paused => "paused",
            Skip::Overlap(_) => "overlap",
            Skip::KeyTaken(_) => "key_taken",
            Skip::Inputs => "inputs",
        }
    }

    /// The run that is in the way.
    pub fn run(self) -> Option<RunId> {
        match self {
            Skip::Overlap(run) | Skip::KeyTaken(run) => Some(run),
            _ => None,
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is to become of the due times that have come, at most [`TURN`] of them; nothing when none has.
pub fn verdicts(pending: &Pending<'_>) -> Option<Turn> {
    let Pending { spec, calendar, cursor, now, .. } = *pending;
    let limit = minus(now, calendar.delay());
    let first = calendar.next(cursor).filter(|first| *first <= limit)?;
    let latest = calendar.last(cursor, limit)?;
    let jumped = pending.jump.filter(|jump| latest > jump.from && first <= jump.to);
    let held = jumped.is_some() && pending.destructive;

    // One record for all that is older than the window; never for the latest one, which may run.
    let before_latest = minus(latest, Duration::from_millis(1));
    let old = calendar.last(cursor, before_latest.min(minus(now, WINDOW)));
    let mut times = Vec::new();
    let mut from = old.unwrap_or(cursor);
    // Enough beyond this turn to know which are the latest ones.
    let enough = TURN + if spec.catch_up == CatchUp::All { spec.at_most } else { 1 };
    while times.len() < enough
        && let Some(time) = calendar.next(from).filter(|time| *time <= limit)
    {
        times.push(time);
        from = time;
    }
    let known = times.len();
    // The jump may be a wrong clock, so a thousand runs are not caught up for it.
    let catch_up = match (spec.catch_up, jumped) {
        (CatchUp::All, Some(_)) => CatchUp::Latest,
        (catch_up, _) => catch_up,
    };
    let what = |time: Timestamp, index: Option<usize>| match catch_up {
        _ if pending.frozen => What::Skip(Skip::Frozen),
        _ if held => What::Skip(Skip::ClockJumped),
        CatchUp::None if time == latest && minus(limit, ON_TIME) <= time => What::Start,
        CatchUp::None => What::Skip(Skip::Missed),
        CatchUp::Latest if time == latest => What::Start,
        CatchUp::Latest => What::Into(latest),
        CatchUp::All => match index {
            Some(index) if index + spec.at_most >= known => What::Start,
            Some(_) => What::Skip(Skip::TooMany),
            None => What::Skip(Skip::TooOld),
        },
    };
    let mut verdicts = Vec::with_capacity(known.min(TURN) + 1);
    if let Some(nominal) = old {
        let since = (first < nominal).then_some(first);
        verdicts.push(Verdict { nominal, since, what: what(nominal, None) });
    }
    for (index, nominal) in times.into_iter().take(TURN).enumerate() {
        verdicts.push(Verdict { nominal, since: None, what: what(nominal, Some(index)) });
    }
    let cursor = verdicts.last()?.nominal;
    let hold = jumped.filter(|_| held).map(|Jump { from, to }| {
        format!(
            "the clock went from {from} to {to}, and this runbook may destroy something: see whether the time is right"
        )
    });
    Some(Turn { verdicts, cursor, next: calendar.next_start(cursor), hold })
}

/// The runs of a schedule that are not over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Live {
    /// Those that may be at work, parked and waiting ones included.
    pub going: Vec<RunId>,
    /// Those that begin when the others have ended, by due time.
    pub held: Vec<(Timestamp, RunId)>,
}

/// What became of a due time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A run was created.
    Run {
        /// It begins when the others have ended.
        held: bool,
        /// These are asked to end.
        cancel: Vec<RunId>,
    },
    /// Nothing started.
    Skipped(Skip),
    /// Another due time stands for it.
    Coalesced(Timestamp),
}

/// What becomes of a due time when these runs of the schedule are alive.
pub fn settle(spec: &Spec, what: What, live: &Live) -> Decision {
    let Live { going, held } = live;
    match what {
        What::Skip(why) => Decision::Skipped(why),
        What::Into(nominal) => Decision::Coalesced(nominal),
        What::Start if going.is_empty() && held.is_empty() => {
            Decision::Run { held: false, cancel: Vec::new() }
        }
        What::Start => match (spec.overlap, held.last()) {
            (Overlap::Allow, _) => Decision::Run { held: false, cancel: Vec::new() },
            (Overlap::Skip, _) => {
                let other = going.first().copied().or(held.first().map(|(_, run)| *run));
                other.map_or(Decision::Run { held: false, cancel: Vec::new() }, |run| {
                    Decision::Skipped(Skip::Overlap(run))
                })
            }
            // One waits for all who come while it waits, unless each of them is wanted.
            (Overlap::Queue, Some((nominal, _))) if spec.catch_up != CatchUp::All => {
                Decision::Coalesced(*nominal)
            }
            (Overlap::Queue, _) => Decision::Run { held: true, cancel: Vec::new() },
            (Overlap::CancelRunning, Some((nominal, _))) => Decision::Coalesced(*nominal),
            (Overlap::CancelRunning, None) => Decision::Run { held: true, cancel: going.clone() },
        },
    }
}

/// Times far from now are not worth an error.
fn plus(time: Timestamp, duration: Duration) -> Timestamp {
    time.checked_add(duration).unwrap_or(Timestamp::MAX)
}

fn minus(time: Timestamp, duration: Duration) -> Timestamp {
    time.checked_sub(duration).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests;
