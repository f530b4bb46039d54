//! [`Ask`]: what people ask of a run that is under way. A request is stored first; the run's owner takes it into the
//! journal, or refuses it there with the reason.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{Digest, NodeName};
use crate::time::Timestamp;
use crate::value::{Text, Value};

/// What an approval is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Subject {
    /// The whole run, before its first write, because the environment wants it.
    Run,
    /// A step of the runbook.
    Node(NodeName),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // No step can have this name, since ids begin with a letter.
            Subject::Run => f.write_str("-"),
            Subject::Node(node) => node.fmt(f),
        }
    }
}

impl From<Subject> for String {
    fn from(subject: Subject) -> String {
        subject.to_string()
    }
}

impl TryFrom<String> for Subject {
    type Error = String;
    fn try_from(text: String) -> Result<Subject, String> {
        text.parse()
    }
}

impl FromStr for Subject {
    type Err = String;
    fn from_str(text: &str) -> Result<Subject, String> {
        if text == "-" { Ok(Subject::Run) } else { text.parse().map(Subject::Node) }
    }
}

/// Something that a person asks of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Yes to a plan.
    Approve {
        /// What waits for it.
        subject: Subject,
        /// The plan that they have read.
        digest: Digest,
        /// In their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// No to a plan.
    Reject {
        /// What waits for it.
        subject: Subject,
        /// The plan that they have read.
        digest: Digest,
        /// In their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// One of the runbook's signals.
    Signal {
        /// Its name.
        name: Text,
        /// In their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Stop; with `undo`, also take back what was done.
    Cancel {
        /// Take back what was done.
        undo: bool,
        /// In their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Stop if nothing has been written yet: what the run was started for has gone away. Otherwise it goes on.
    Withdraw {
        /// What has gone away.
        reason: String,
    },
    /// A parked run may go on.
    Resume {
        /// The guard that they accept, as its finding names it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        accepted: Option<Text>,
    },
    /// Whether a step in doubt happened.
    Resolve {
        /// The step.
        node: NodeName,
        /// It happened.
        applied: bool,
        /// What it gave, as far as they know: fields of the step's output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<Value>,
        /// How they know.
        reason: String,
    },
}

impl Ask {
    /// What it is, in a few words.
    pub fn what(&self) -> String {
        match self {
            Ask::Approve { subject: Subject::Run, .. } => "approve the run".into(),
            Ask::Approve { subject, .. } => format!("approve `{subject}`"),
            Ask::Reject { subject: Subject::Run, .. } => "reject the run".into(),
            Ask::Reject { subject, .. } => format!("reject `{subject}`"),
            Ask::Signal { name, .. } => format!("signal `{name}`"),
            Ask::Cancel { undo: false, .. } => "cancel".into(),
            Ask::Cancel { undo: true, .. } => "cancel and undo".into(),
            Ask::Withdraw { .. } => "withdraw".into(),
            Ask::Resume { .. } => "resume".into(),
            Ask::Resolve { node, applied: true, .. } => format!("resolve `{node}` as applied"),
            Ask::Resolve { node, .. } => format!("resolve `{node}` as not applied"),
        }
    }
}

/// A stored [`Ask`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// By which it is stored once.
    pub id: Uuid,
    /// When it was stored.
    pub at: Timestamp,
    /// Who asks.
    pub by: String,
    /// What.
    pub ask: Ask,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_reads_back_as_it_is_written() {
        for subject in [
            Subject::Run,
            Subject::Node(NodeName::step("drop")),
            Subject::Node(NodeName::item("each", "a-[b]")),
        ] {
            assert_eq!(subject.to_string().parse(), Ok(subject));
        }
    }
}
