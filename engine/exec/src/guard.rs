//! Guards: limits on planned changes, checked before the first write and again whenever a step's changes become known.

use farrier_model::{Change, ChangeKind};
use farrier_runbook::graph::{Guard, GuardAction};
use serde::{Deserialize, Serialize};

/// How many changes of each kind there are, and how many existing objects they were found among.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Objects that would come into being.
    pub create: u64,
    /// Objects that would differ.
    pub update: u64,
    /// Objects that would be gone.
    pub delete: u64,
    /// Opaque things that would be run.
    pub run: u64,
    /// Things that would be sent.
    pub send: u64,
    /// Existing objects that were compared.
    pub considered: u64,
}

impl Counts {
    /// The counts of one step's changes.
    pub fn of(changes: &[Change], considered: Option<u64>) -> Counts {
        let mut counts = Counts { considered: considered.unwrap_or(0), ..Counts::default() };
        for change in changes {
            *counts.slot(change.kind) += 1;
        }
        counts
    }

    fn slot(&mut self, kind: ChangeKind) -> &mut u64 {
        match kind {
            ChangeKind::Create => &mut self.create,
            ChangeKind::Update => &mut self.update,
            ChangeKind::Delete => &mut self.delete,
            ChangeKind::Run => &mut self.run,
            ChangeKind::Send => &mut self.send,
        }
    }

    /// How many there are of one kind.
    pub fn get(mut self, kind: ChangeKind) -> u64 {
        *self.slot(kind)
    }

    /// How many there are in all.
    pub fn total(&self) -> u64 {
        self.create + self.update + self.delete + self.run + self.send
    }

    /// Adds another step's counts.
    pub fn add(&mut self, other: Counts) {
        self.create += other.create;
        self.update += other.update;
        self.delete += other.delete;
        self.run += other.run;
        self.send += other.send;
        self.considered += other.considered;
    }

    /// Takes another step's counts out again.
    pub fn subtract(&mut self, other: Counts) {
        self.create -= other.create;
        self.update -= other.update;
        self.delete -= other.delete;
        self.run -= other.run;
        self.send -= other.send;
        self.considered -= other.considered;
    }
}

/// What one guard says of some counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuardFinding {
    /// The guard as written, with the step it stands in, if it stands in one.
    pub guard: String,
    /// What it counted.
    pub count: u64,
    /// The largest number it lets pass.
    pub limit: u64,
    /// Whether it lets the changes pass.
    pub passed: bool,
    /// It counts executions over time, and not changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rate: bool,
    /// What happens when it does not.
    #[serde(serialize_with = "action_name", deserialize_with = "named_action")]
    pub otherwise: GuardAction,
}

fn action_name<S: serde::Serializer>(action: &GuardAction, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match action {
        GuardAction::Stop => "stop",
        GuardAction::Ask => "ask",
        GuardAction::Page => "page",
    })
}

fn named_action<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<GuardAction, D::Error> {
    match &*String::deserialize(deserializer)? {
        "stop" => Ok(GuardAction::Stop),
        "ask" => Ok(GuardAction::Ask),
        "page" => Ok(GuardAction::Page),
        other => Err(serde::de::Error::custom(format!("`{other}` is not what a guard does"))),
    }
}

impl GuardFinding {
    /// One sentence for people.
    pub fn sentence(&self) -> String {
        let verdict = if self.passed { "within" } else { "more than" };
        let what = if self.rate { "executions" } else { "changes" };
        format!("guard `{}`: {} {what}, {verdict} the limit of {}", self.guard, self.count, self.limit)
    }
}

/// The name of a guard in findings: as written, with the step it stands in, if it stands in one.
pub(crate) fn name(guard: &Guard, step: Option<&str>) -> String {
    match step {
        Some(step) => format!("{step}: {}", guard.text),
        None => guard.text.to_string(),
    }
}

/// Holds a rate against how often something was and is about to be executed.
pub(crate) fn check_rate(guard: &Guard, step: Option<&str>, count: u64) -> GuardFinding {
    let limit = guard.at_most.unwrap_or(u64::MAX);
    GuardFinding {
        guard: name(guard, step),
        count,
        limit,
        passed: count <= limit,
        rate: true,
        otherwise: guard.otherwise,
    }
}

/// Holds `guard` against `counts`. With both a number and a share, the smaller limit counts.
pub(crate) fn check(guard: &Guard, step: Option<&str>, counts: Counts) -> GuardFinding {
    let count = if guard.count.is_empty() {
        counts.total()
    } else {
        guard.count.iter().map(|kind| counts.get(*kind)).sum()
    };
    let by_share = guard.share.map(|share| (share * counts.considered as f64).floor() as u64);
    let limit = [guard.at_most, by_share].into_iter().flatten().min().unwrap_or(u64::MAX);
    GuardFinding {
        guard: name(guard, step),
        count,
        limit,
        passed: count <= limit,
        rate: false,
        otherwise: guard.otherwise,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_number_and_share_is_the_limit() {
        let guard = |at_most, share| Guard {
            count: vec![ChangeKind::Delete],
            at_most,
            share,
            rate: None,
            otherwise: GuardAction::Stop,
            text: "g".into(),
        };
        let counts = Counts { delete: 30, create: 500, considered: 1000, ..Counts::default() };
        for (at_most, share, limit, passed) in [
            (Some(25), None, 25, false),
            (Some(30), None, 30, true),
            (None, Some(0.02), 20, false),
            (Some(40), Some(0.02), 20, false),
            (Some(40), Some(0.5), 40, true),
            (None, None, u64::MAX, true),
        ] {
            let finding = check(&guard(at_most, share), None, counts);
            assert_eq!((finding.count, finding.limit, finding.passed), (30, limit, passed));
        }
        let empty = check(&guard(None, Some(0.02)), None, Counts::default());
        assert!(empty.passed, "no change is never too many");
    }
}
