//! [`Route`]: from alerts to a runbook, and [`Policy`]: how often and how.

use std::time::Duration;

use farrier_model::expr::Template;
use farrier_model::{Expr, Text};
use serde::{Deserialize, Serialize};

use crate::matcher::{Matcher, matches_all};
use crate::payload::Alert;

/// Which alerts start which runbook. Made by the compiler only, so everything in it has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The runbook.
    pub runbook: Text,
    /// All must match.
    pub matchers: Vec<Matcher>,
    /// Only alerts that come in under these receivers; any when empty.
    pub receivers: Vec<Text>,
    /// Alerts with the same value are one incident; without it, all alerts of the route are. Sees `alert`.
    pub per: Option<Expr>,
    /// Values for the runbook's inputs, by name. Sees `alert`.
    pub inputs: Template,
    /// How often and how.
    pub policy: Policy,
}

impl Route {
    /// Whether an alert that came in under `receiver` takes this route.
    pub fn takes(&self, receiver: &str, alert: &Alert) -> bool {
        (self.receivers.is_empty() || self.receivers.iter().any(|name| **name == *receiver))
            && matches_all(&self.matchers, &alert.labels)
    }
}

/// Whether an alert starts a run or proposes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// The run starts.
    Run,
    /// The run plans, and waits for a person's approval before its first write.
    Propose,
}

/// What a resolved alert does to its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnResolved {
    /// It is cancelled, unless it has begun to write.
    Cancel,
    /// Nothing; it is noted.
    Note,
}

/// How often an incident may have runs, and what kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Whether runs start or are proposed.
    pub mode: Mode,
    /// What a resolved alert does to a run under way.
    pub resolved: OnResolved,
    /// How long after a run that succeeded the same incident starts no other.
    pub after_success: Duration,
    /// How long after one that did not.
    pub after_failure: Duration,
    /// Who comes first when not all may start. Larger is sooner.
    pub priority: i32,
    /// At most so many runs of the runbook that alerts have started are alive at once.
    pub max_active: u32,
    /// How often alerts start runs of the runbook.
    pub rate: Rate,
    /// When alerts start none any more, until a person says so.
    pub fuse: Fuse,
    /// An alert that began longer ago starts no destructive run by itself.
    #[serde(default = "usual_age")]
    pub max_age: Duration,
}

/// A day: what fires for longer has been seen by people, or comes from a message that somebody has kept.
fn usual_age() -> Duration {
    Duration::from_secs(24 * 60 * 60)
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            mode: Mode::Run,
            resolved: OnResolved::Cancel,
            after_success: Duration::from_secs(60 * 60),
            after_failure: Duration::from_secs(4 * 60 * 60),
            priority: 0,
            max_active: 20,
            rate: Rate { burst: 20, every: Duration::from_secs(30) },
            fuse: Fuse { runs: 10, failures: 5, within: Duration::from_secs(60 * 60) },
            max_age: usual_age(),
        }
    }
}

/// A token bucket: so many runs at once, and one more after each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// How many it holds.
    pub burst: u32,
    /// The time after which it gets one more.
    pub every: Duration,
}

/// What is too much to be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fuse {
    /// More than so many runs of a destructive runbook.
    pub runs: u32,
    /// So many runs that did not succeed.
    pub failures: u32,
    /// Within this time.
    pub within: Duration,
}
