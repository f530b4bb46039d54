//! What is said between Farrier and a program: one JSON object on each line.
//!
//! Farrier's first line is the request. The program may then ask for secrets, one line each, and gets one line for each;
//! its last line is its answer. `site/manual/external.md` is the description for authors of programs.

use farrier_model::{Change, Failure, FailureKind, Fidelity, NodeName, RunId, Value};
use serde::{Deserialize, Serialize};

/// The version of this language, the value of `farrier` in every request.
pub(crate) const VERSION: u32 = 1;

/// What is wanted of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// What would change? Nothing may be changed.
    Plan,
    /// Make these changes.
    Apply,
    /// Did these changes happen? Nothing may be changed.
    Probe,
    /// Bring back what was before these changes.
    Undo,
}

impl Ask {
    /// Whether an end without an answer leaves open what has happened.
    pub(crate) fn changes_something(self) -> bool {
        matches!(self, Ask::Apply | Ask::Undo)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Ask::Plan => "plan",
            Ask::Apply => "apply",
            Ask::Probe => "probe",
            Ask::Undo => "undo",
        }
    }
}

/// Farrier's first line.
#[derive(Debug, Serialize)]
pub(crate) struct Request<'a> {
    pub(crate) farrier: u32,
    pub(crate) ask: Ask,
    /// The step's `input`.
    pub(crate) input: &'a Value,
    /// The environment's `settings`.
    pub(crate) settings: &'a Value,
    /// What was planned; empty in a plan.
    pub(crate) changes: &'a [Change],
    pub(crate) run: RunId,
    pub(crate) step: &'a NodeName,
    pub(crate) attempt: u32,
    /// The same for every attempt.
    pub(crate) effect: &'a str,
}

/// A line of the program.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Said {
    /// The name of a secret that it needs now.
    Secret(String),
    Planned(Box<Plan>),
    Applied(Applied),
    Probed(Probed),
    Undone(Undone),
    Failed(Box<Failed>),
}

impl Said {
    /// What the line is, in the words of the protocol.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Said::Secret(_) => "secret",
            Said::Planned(_) => "planned",
            Said::Applied(_) => "applied",
            Said::Probed(_) => "probed",
            Said::Undone(_) => "undone",
            Said::Failed(_) => "failed",
        }
    }
}

/// The answer to `plan`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    pub(crate) changes: Vec<Change>,
    /// Left out where it is known only after the changes are made.
    #[serde(default)]
    pub(crate) output: Option<Value>,
    /// Left out, it is `described`: the program does not say what it compared.
    #[serde(default)]
    pub(crate) fidelity: Option<Fidelity>,
    #[serde(default)]
    pub(crate) considered: Option<u64>,
    #[serde(default)]
    pub(crate) notes: Vec<String>,
}

/// The answer to `apply`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Applied {
    #[serde(default)]
    pub(crate) output: Value,
}

/// The answer to `probe`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Probed {
    Applied,
    NotApplied,
    Unknown,
}

/// The answer to `undo`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Undone {}

/// It could not.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failed {
    kind: FailureKind,
    message: String,
    #[serde(default)]
    help: Option<String>,
    #[serde(default)]
    in_doubt: bool,
}

impl Failed {
    /// As Farrier says it, if the program may say such a thing: the rest are words of Farrier's own.
    pub(crate) fn failure(self) -> Option<Failure> {
        use FailureKind as Kind;
        let allowed = matches!(
            self.kind,
            Kind::Input
                | Kind::Unreachable
                | Kind::Denied
                | Kind::Refused
                | Kind::Drift
                | Kind::Conflict
                | Kind::Limit
                | Kind::Timeout
                | Kind::Exit
        );
        let failure = Failure::new(self.kind, for_people(&self.message));
        allowed.then(|| Failure {
            help: self.help.as_deref().map(for_people),
            in_doubt: self.in_doubt,
            ..failure
        })
    }
}

/// A program's words as one line of a moderate length, without what a terminal would take for orders.
pub(crate) fn for_people(text: &str) -> String {
    const SHOWN: usize = 1000;
    let mut line: String =
        text.trim().chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    if let Some((at, _)) = line.char_indices().nth(SHOWN) {
        line.truncate(at);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> Result<Said, String> {
        Value::from_json(line).map_err(|error| error.to_string())?.read().map_err(|error| error.to_string())
    }

    #[test]
    fn lines_are_read_strictly() {
        for (line, name) in [
            (r#"{"secret": "token"}"#, "secret"),
            (r#"{"planned": {"changes": []}}"#, "planned"),
            (r#"{"applied": {}}"#, "applied"),
            (r#"{"probed": "not_applied"}"#, "probed"),
            (r#"{"undone": {}}"#, "undone"),
            (r#"{"failed": {"kind": "drift", "message": "it moved"}}"#, "failed"),
        ] {
            assert_eq!(said(line).unwrap().name(), name, "{line}");
        }
        for line in [
            "[]",
            "{}",
            r#"{"planned": {}}"#,
            r#"{"planned": {"changes": [], "more": 1}}"#,
            r#"{"applied": {}, "undone": {}}"#,
            r#"{"probed": "maybe"}"#,
            r#"{"done": {}}"#,
            r#"{"failed": {"kind": "bad luck", "message": ""}}"#,
        ] {
            assert!(said(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_program_speaks_of_its_own_work_only() {
        let failed = |kind: &str| match said(&format!(r#"{{"failed":{{"kind":"{kind}","message":"x"}}}}"#)) {
            Ok(Said::Failed(failed)) => failed.failure(),
            other => panic!("{other:?}"),
        };
        assert_eq!(failed("drift").unwrap().kind, FailureKind::Drift);
        for kind in ["guard", "rejected", "internal", "lock", "child"] {
            assert!(failed(kind).is_none(), "{kind}");
        }
    }

    #[test]
    fn words_for_people_are_one_plain_line() {
        assert_eq!(for_people(" a\nb\x1b[31mc "), "a b [31mc");
        assert_eq!(for_people(&"x".repeat(2000)).chars().count(), 1001);
    }
}
