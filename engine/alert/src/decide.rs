//! [`decide()`]: what an alert does.
//!
//! The identity of trouble is the *incident* (environment, runbook and key), never the time at which an alert began: two
//! Prometheus servers disagree on that. An incident opens with the first alert that fires, and closes when none of its
//! alerts fires any more and no run of it is alive. At most one run of an incident is alive.
//!
//! An alert that may not start a run now leaves its incident *held*, with the reason. What is held starts by itself when the
//! reason is gone and the alert still fires; what the fuse holds starts when a person has said so.

use std::fmt;
use std::time::Duration;

use farrier_model::time::{Timestamp, format_duration};

use crate::arrival::Rule;
use crate::payload::Status;
use crate::route::{Mode, OnResolved};

/// How long after something became known a copy of it may still be under way: a second Alertmanager, a repeated request.
pub const LATE: Duration = Duration::from_secs(5 * 60);

/// What is stored about an alert and its incident, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// When this very piece of news was received first; none when it is new.
    pub known_since: Option<Timestamp>,
    /// When it became known that the alert has ended since: a resolution that is newer than this alert's beginning.
    pub ended: Option<Timestamp>,
    /// The open incident.
    pub open: Option<Open>,
    /// The end of the last run of the same environment, runbook and key, and whether it succeeded.
    pub last_run: Option<(Timestamp, bool)>,
    /// What is counted for the runbook.
    pub counted: Counted,
}

/// An open incident.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Open {
    /// Its run is alive.
    pub running: bool,
    /// That run may have written.
    pub writing: bool,
    /// An alert of it besides this one fires.
    pub others_fire: bool,
    /// This alert fires, as far as is known, since then.
    pub fires_since: Option<Option<Timestamp>>,
}

/// What is counted over all incidents of a runbook in an environment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counted {
    /// Runs that alerts have started and that are alive.
    pub active: u32,
    /// Runs that may start now, in thousandths.
    pub tokens: Option<u64>,
    /// When the tokens were counted.
    pub counted_at: Option<Timestamp>,
    /// Runs that alerts have started within the fuse's time.
    pub runs: u32,
    /// Those of them that did not succeed.
    pub failures: u32,
    /// The fuse has blown.
    pub blown: bool,
}

impl Counted {
    /// The tokens there are at `now`, in thousandths.
    pub fn tokens_at(&self, rule: &Rule, now: Timestamp) -> u64 {
        let rate = &rule.policy.rate;
        let full = u64::from(rate.burst) * 1000;
        let (Some(tokens), Some(counted_at)) = (self.tokens, self.counted_at) else { return full };
        let passed = (now.as_millisecond() - counted_at.as_millisecond()).max(0).cast_unsigned();
        let every = (rate.every.as_millis() as u64).max(1);
        tokens.saturating_add(passed.saturating_mul(1000) / every).min(full)
    }
}

/// Why an incident has no run although it should have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Its last run ended a short time ago.
    Cooldown,
    /// Too many runs of the runbook are alive.
    Active,
    /// Too many were started.
    Rate,
    /// The environment is frozen.
    Frozen,
    /// Another run has the key of this one (`one_run_per`).
    KeyTaken,
    /// The fuse has blown.
    Fused,
}

impl Held {
    /// As it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Held::Cooldown => "cooldown",
            Held::Active => "active",
            Held::Rate => "rate",
            Held::Frozen => "frozen",
            Held::KeyTaken => "key_taken",
            Held::Fused => "fused",
        }
    }

    /// The reason of that name.
    pub fn from_name(name: &str) -> Option<Held> {
        [Held::Cooldown, Held::Active, Held::Rate, Held::Frozen, Held::KeyTaken, Held::Fused]
            .into_iter()
            .find(|held| held.name() == name)
    }
}

/// What an alert does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A run starts; the incident opens unless it is open.
    Start {
        /// It waits for an approval before its first write.
        proposed: bool,
    },
    /// It belongs to an open incident, and changes nothing.
    Joins {
        /// Why no run starts.
        why: &'static str,
    },
    /// The incident is open, and its run has to wait.
    Holds {
        /// Why.
        held: Held,
        /// Until when, where that is known.
        until: Option<Timestamp>,
        /// For people.
        why: String,
        /// The fuse blows with this alert.
        blows: bool,
    },
    /// It is a late copy of something that is over.
    Late,
    /// It resolved.
    Resolved(Resolution),
}

/// What follows when an alert resolves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// The incident closes.
    Closes,
    /// The run is cancelled unless it has begun to write; the incident closes with it.
    Cancels,
    /// The run goes on; the incident closes with it.
    WithRun,
    /// Other alerts of the incident still fire.
    OthersFire,
    /// The alert has begun to fire again since.
    Outdated,
    /// No incident is open.
    Nothing,
}

impl Resolution {
    /// For people.
    pub fn why(self) -> &'static str {
        match self {
            Resolution::Closes => "the incident is closed",
            Resolution::Cancels => "its run is cancelled, unless it has begun to write",
            Resolution::WithRun => "its run goes on, and the incident closes with it",
            Resolution::OthersFire => "other alerts of the incident still fire",
            Resolution::Outdated => "the alert has begun to fire again since",
            Resolution::Nothing => "no incident is open for it",
        }
    }
}

impl Decision {
    /// The one word under which it is stored and counted.
    pub fn name(&self) -> &'static str {
        match self {
            Decision::Start { proposed: false } => "started",
            Decision::Start { proposed: true } => "proposed",
            Decision::Joins { .. } => "joined",
            Decision::Holds { held: Held::Cooldown, .. } => "cooling",
            Decision::Holds { held: Held::Fused, .. } => "fused",
            Decision::Holds { .. } => "held",
            Decision::Late => "late",
            Decision::Resolved(Resolution::Closes) => "closed",
            Decision::Resolved(Resolution::Cancels) => "cancels",
            Decision::Resolved(_) => "noted",
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Decision::Start { proposed: false } => f.write_str("starts a run"),
            Decision::Start { proposed: true } => f.write_str("proposes a run"),
            Decision::Joins { why } => write!(f, "joins the open incident: {why}"),
            Decision::Holds { why, .. } => f.write_str(why),
            Decision::Late => f.write_str("it is a late copy: the alert has resolved since"),
            Decision::Resolved(resolution) => f.write_str(resolution.why()),
        }
    }
}

/// What an alert of this status does, given what is stored. `began` and `ended` are the alert's own times.
pub fn decide(
    status: Status,
    (began, ended): (Option<Timestamp>, Option<Timestamp>),
    rule: &Rule,
    facts: &Facts,
    now: Timestamp,
) -> Decision {
    match status {
        Status::Resolved => Decision::Resolved(resolution(ended.or(began), rule, facts)),
        Status::Firing => fires(rule, facts, now),
    }
}

fn resolution(ended: Option<Timestamp>, rule: &Rule, facts: &Facts) -> Resolution {
    let Some(open) = &facts.open else { return Resolution::Nothing };
    match (open.fires_since, ended) {
        // A resolution of the episode before, which was overtaken.
        (Some(Some(since)), Some(ended)) if ended < since => return Resolution::Outdated,
        (None, _) => return if open.others_fire { Resolution::OthersFire } else { Resolution::Nothing },
        _ => {}
    }
    if open.others_fire {
        return Resolution::OthersFire;
    }
    match (open.running, rule.policy.resolved) {
        (false, _) => Resolution::Closes,
        (true, OnResolved::Cancel) if !open.writing => Resolution::Cancels,
        (true, _) => Resolution::WithRun,
    }
}

fn fires(rule: &Rule, facts: &Facts, now: Timestamp) -> Decision {
    let recently = |moment: Timestamp| now < moment + LATE;
    match &facts.open {
        None if facts.ended.is_some_and(recently) => return Decision::Late,
        Some(open) if open.running => return Decision::Joins { why: "its run is under way" },
        Some(_) if facts.known_since.is_some_and(recently) => {
            return Decision::Joins { why: "it is a copy of what is known" };
        }
        _ => {}
    }
    may_start(rule, facts, now)
}

/// Whether a run may start now. Also asked for incidents that were held.
fn may_start(rule: &Rule, facts: &Facts, now: Timestamp) -> Decision {
    let policy = &rule.policy;
    let hold = |held, until, why: String| Decision::Holds { held, until, why, blows: false };
    if let Some((ended, success)) = facts.last_run {
        let pause = if success { policy.after_success } else { policy.after_failure };
        let until = ended.checked_add(pause).unwrap_or(Timestamp::MAX);
        if now < until {
            let end = if success { "succeeded" } else { "did not succeed" };
            let pause = format_duration(pause);
            return hold(
                Held::Cooldown,
                Some(until),
                format!("its last run {end}, and the next may start {pause} after that"),
            );
        }
    }
    if rule.frozen && rule.writes {
        return hold(Held::Frozen, None, "the environment is frozen".into());
    }
    let (counted, fuse) = (&facts.counted, &policy.fuse);
    if counted.blown {
        return hold(
            Held::Fused,
            None,
            "the fuse of the runbook has blown; `farrier unfuse` mends it".into(),
        );
    }
    let within = format_duration(fuse.within);
    let too_much = if rule.destructive && counted.runs >= fuse.runs {
        Some(format!("alerts have started {} runs of a destructive runbook within {within}", counted.runs))
    } else if counted.failures >= fuse.failures {
        Some(format!("{} runs that alerts have started did not succeed within {within}", counted.failures))
    } else {
        None
    };
    if let Some(why) = too_much {
        return Decision::Holds {
            held: Held::Fused,
            until: None,
            why: format!("the fuse of the runbook blows: {why}"),
            blows: true,
        };
    }
    if counted.active >= policy.max_active {
        return hold(Held::Active, None, format!("{} runs of the runbook are under way", counted.active));
    }
    let tokens = counted.tokens_at(rule, now);
    if tokens < 1000 {
        let wait = policy.rate.every.mul_f64((1000 - tokens) as f64 / 1000.0);
        return hold(
            Held::Rate,
            now.checked_add(wait).ok(),
            format!("alerts start one run of the runbook each {}", format_duration(policy.rate.every)),
        );
    }
    Decision::Start { proposed: policy.mode == Mode::Propose || rule.doubt.is_some() }
}

/// As [`decide()`], for an incident that was held and whose alert still fires.
pub fn release(rule: &Rule, facts: &Facts, now: Timestamp) -> Decision {
    if facts.open.as_ref().is_some_and(|open| open.running) {
        return Decision::Joins { why: "its run is under way" };
    }
    may_start(rule, facts, now)
}

#[cfg(test)]
mod tests;
