//! [`Spec`]: what a runbook says about its schedule, as the ledger keeps it.

use std::fmt;
use std::time::Duration;

use farrier_model::Text;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The identity of a schedule in the ledger: `environment/runbook`, with `#2` for the second clock trigger of the runbook.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ScheduleId(pub Text);

impl ScheduleId {
    /// The schedule of the `nth` clock trigger of a runbook, counted from 1.
    pub fn new(environment: &str, runbook: &str, nth: usize) -> ScheduleId {
        ScheduleId(match nth {
            0 | 1 => format!("{environment}/{runbook}").into(),
            nth => format!("{environment}/{runbook}#{nth}").into(),
        })
    }

    /// Its share of a jitter: always the same, and spread evenly over all ids.
    pub fn share_of(&self, jitter: Duration) -> Duration {
        let digest = Sha256::digest(self.0.as_bytes());
        let (head, _) = digest.split_at(8);
        let random = head.iter().fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
        let millis = u64::try_from(jitter.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(if millis == 0 { 0 } else { random % millis })
    }
}

impl fmt::Display for ScheduleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// When a schedule is due and what becomes of its due times. A change of it is an edit of the schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// When.
    pub due: Due,
    /// Starts are spread over this time, in milliseconds.
    #[serde(default, with = "millis")]
    pub jitter: Duration,
    /// What happens when a run is still going.
    pub overlap: Overlap,
    /// What happens with due times that were missed.
    pub catch_up: CatchUp,
    /// How many missed due times run at most, with [`CatchUp::All`].
    #[serde(default = "hundred", skip_serializing_if = "is_hundred")]
    pub at_most: usize,
}

impl Spec {
    /// A schedule as it is when a runbook says nothing but when it is due.
    pub fn new(due: Due) -> Spec {
        Spec {
            due,
            jitter: Duration::ZERO,
            overlap: Overlap::Skip,
            catch_up: CatchUp::Latest,
            at_most: hundred(),
        }
    }
}

fn hundred() -> usize {
    100
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
fn is_hundred(number: &usize) -> bool {
    *number == hundred()
}

/// When a schedule is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Due {
    /// Again and again after this time, in milliseconds.
    #[serde(with = "millis")]
    Every(Duration),
    /// By a cron pattern.
    Cron {
        /// Five fields, or six with seconds first.
        pattern: Text,
        /// The IANA name of its time zone.
        timezone: Text,
        /// What a change of the clock means; none leaves it to the pattern.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clock_change: Option<ClockChange>,
    },
}

impl fmt::Display for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Due::Every(every) => write!(f, "every {}", farrier_model::time::format_duration(*every)),
            Due::Cron { pattern, timezone, .. } if &**timezone == "Etc/UTC" => write!(f, "cron {pattern}"),
            Due::Cron { pattern, timezone, .. } => write!(f, "cron {pattern} in {timezone}"),
        }
    }
}

/// What a change of the clock means for a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClockChange {
    /// Each local time is due once: one that the clock leaves out when it is put forward at the moment of the change, one that it
    /// shows twice when it is put back the first time. When left out, the meaning of patterns that name their hours.
    Once,
    /// As often as the clock shows it: a time that is left out is not due, one that comes twice is due twice. When left
    /// out, the meaning of patterns that name no hours (`*`, or a step such as `*/2`).
    AsShown,
}

/// What happens when a run is still going at the next due time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The due time is skipped, and that is recorded.
    Skip,
    /// It starts when the other has ended.
    Queue,
    /// The other is cancelled first.
    CancelRunning,
    /// Both run.
    Allow,
}

/// What happens with due times that were missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// They are recorded as missed.
    None,
    /// The latest one runs.
    Latest,
    /// Each one of the last 24 hours runs, at most the latest hundred.
    All,
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_a_jitter_is_the_same_for_ever_and_spread() {
        let id = ScheduleId::new("tools", "updatetools", 1);
        let jitter = Duration::from_secs(60);
        assert_eq!(id.to_string(), "tools/updatetools");
        assert_eq!(ScheduleId::new("tools", "updatetools", 2).to_string(), "tools/updatetools#2");
        // Written down, because a change of it would shift every start.
        assert_eq!(id.share_of(jitter), Duration::from_millis(SHARE_OF_UPDATETOOLS));
        assert_eq!(id.share_of(Duration::ZERO), Duration::ZERO);
        let shares: Vec<u128> = (0..1000)
            .map(|n| ScheduleId::new("e", &format!("r{n}"), 1).share_of(jitter).as_millis())
            .collect();
        for tenth in 0..10 {
            let inside = shares.iter().filter(|share| **share / 6_000 == tenth).count();
            assert!((60..140).contains(&inside), "{inside} of 1000 in tenth {tenth}");
        }
    }

    const SHARE_OF_UPDATETOOLS: u64 = 19_095;

    #[test]
    fn a_spec_reads_as_it_was_written() {
        let due = Due::Cron {
            pattern: "17 3 * * *".into(),
            timezone: "Europe/Berlin".into(),
            clock_change: Some(ClockChange::Once),
        };
        let spec = Spec {
            jitter: Duration::from_millis(1500),
            overlap: Overlap::CancelRunning,
            catch_up: CatchUp::All,
            ..Spec::new(due)
        };
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(
            text,
            r#"{"due":{"cron":{"pattern":"17 3 * * *","timezone":"Europe/Berlin","clock_change":"once"}},"jitter":1500,"overlap":"cancel_running","catch_up":"all"}"#
        );
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
        assert_eq!(spec.due.to_string(), "cron 17 3 * * * in Europe/Berlin");
        assert_eq!(Due::Every(Duration::from_secs(120)).to_string(), "every 2m");
    }
}
