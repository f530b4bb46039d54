//! [`Failure`]: why a node did not succeed. It is data: stored, shown, and read by later versions.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A small closed set, also the label of the failure metric. Names are stored: never rename or reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The inputs do not fit the action, or an expression could not be evaluated. Trying again cannot help.
    Input,
    /// The target cannot be reached or went away.
    Unreachable,
    /// The target does not accept our credentials.
    Denied,
    /// The target refused the request as wrong: no such table, schema violation.
    Refused,
    /// The world is not as the plan saw it; nothing was overwritten.
    Drift,
    /// Someone else was in the way: deadlock, lock, busy. Trying again may help.
    Conflict,
    /// The answer is larger than allowed, or was cut off.
    Limit,
    /// It took longer than allowed.
    Timeout,
    /// An `expect` did not hold.
    Expectation,
    /// A `verify` did not become true in time.
    Verification,
    /// A guard stopped the changes.
    Guard,
    /// A child run did not succeed.
    Child,
    /// The runbook says so: `flow.fail`.
    Told,
    /// A command ran and reported failure.
    Exit,
    /// A lock was not free in time.
    Lock,
    /// People said no, or did not say yes in time.
    Rejected,
    /// A defect of Farrier or a plugin.
    Internal,
}

impl FailureKind {
    /// The stored and shown name.
    pub fn name(self) -> &'static str {
        match self {
            FailureKind::Input => "input",
            FailureKind::Unreachable => "unreachable",
            FailureKind::Denied => "denied",
            FailureKind::Refused => "refused",
            FailureKind::Drift => "drift",
            FailureKind::Conflict => "conflict",
            FailureKind::Limit => "limit",
            FailureKind::Timeout => "timeout",
            FailureKind::Expectation => "expectation",
            FailureKind::Verification => "verification",
            FailureKind::Guard => "guard",
            FailureKind::Child => "child",
            FailureKind::Told => "told",
            FailureKind::Exit => "exit",
            FailureKind::Lock => "lock",
            FailureKind::Rejected => "rejected",
            FailureKind::Internal => "internal",
        }
    }

    /// Whether the same attempt may go better later.
    pub fn may_pass(self) -> bool {
        matches!(
            self,
            FailureKind::Unreachable | FailureKind::Conflict | FailureKind::Timeout | FailureKind::Exit
        )
    }
}

/// Why a node failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The reason's class.
    pub kind: FailureKind,
    /// One lower-case fragment that reads well after "error:".
    pub message: String,
    /// The target alias it happened at, if at one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What the person can do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// True when the effect may have happened although no answer came: the step is then in doubt, not failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_doubt: bool,
    /// How many seconds the target asks to wait before it is asked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
}

impl Failure {
    /// A failure of `kind`.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Failure {
        Failure {
            kind,
            message: message.into(),
            target: None,
            help: None,
            in_doubt: false,
            retry_after_s: None,
        }
    }

    /// Names the target.
    pub fn at(mut self, target: impl Into<String>) -> Failure {
        self.target = Some(target.into());
        self
    }

    /// Says what to do next.
    pub fn help(mut self, help: impl Into<String>) -> Failure {
        self.help = Some(help.into());
        self
    }

    /// Says how long to wait before the next try.
    pub fn retry_after(mut self, seconds: u32) -> Failure {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Marks that the effect may have happened.
    pub fn in_doubt(mut self) -> Failure {
        self.in_doubt = true;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Some(target) => write!(f, "target `{target}`: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Failure {}
