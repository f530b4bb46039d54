//! `flow.gate`.

use farrier_action::text::FreeText;
use farrier_action::{Action, Planned, ReadCx};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, FailureKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Lets the steps that need it go on only when something holds.
///
/// Either one condition, `that` with `otherwise`, or several under `all`: then every one that does not hold is told.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// The condition: `${ … }` that is true or false.
    #[serde(default)]
    that: Option<bool>,
    /// What to say when it does not hold.
    #[serde(default)]
    otherwise: Option<FreeText>,
    /// Several conditions.
    #[serde(default)]
    all: Option<Vec<Check>>,
}

/// One condition.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The condition: `${ … }` that is true or false.
    that: bool,
    /// What to say when it does not hold.
    otherwise: FreeText,
}

/// The gate is open.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Passed {
    /// How many conditions hold.
    pub passed: u64,
}

impl Action for Gate {
    const NAME: &'static str = "flow.gate";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const PURE: bool = true;
    const EXAMPLE: &'static str = "\
plausible:
  uses: flow.gate
  with:
    all:
      - { that: '${ steps.accounts.entries | length > 0 }', otherwise: the directory lists no tools }
      - { that: '${ steps.groups.entries | length > 0 }', otherwise: the directory lists no groups }
";
    type Output = Passed;

    async fn plan(&self, _: &ReadCx) -> Result<Planned<Passed>, Failure> {
        let conditions: Vec<(bool, &str)> = match (self.that, &self.otherwise, &self.all) {
            (Some(that), None, None) => vec![(that, "the condition of this gate does not hold")],
            (Some(that), Some(otherwise), None) => vec![(that, &otherwise.0)],
            (None, None, Some(checks)) if !checks.is_empty() => {
                checks.iter().map(|check| (check.that, &*check.otherwise.0)).collect()
            }
            _ => {
                return Err(Failure::new(
                    FailureKind::Input,
                    "a gate has either `that` with `otherwise`, or a list of such pairs under `all`",
                ));
            }
        };
        let closed: Vec<&str> =
            conditions.iter().filter(|(holds, _)| !holds).map(|(_, words)| *words).collect();
        if !closed.is_empty() {
            return Err(Failure::new(FailureKind::Told, closed.join("; ")));
        }
        Ok(Planned::known(Passed { passed: conditions.len() as u64 }))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{json, output};
    use farrier_model::FailureKind;

    const BAD: &[&str] = &[
        "{}",
        "{'all': []}",
        "{'otherwise': 'x'}",
        "{'that': 'true'}",
        "{'that': 1}",
        "{'that': true, 'all': [{'that': true, 'otherwise': 'x'}]}",
        "{'all': [{'that': true}]}",
    ];

    #[tokio::test]
    async fn what_holds_passes() {
        for (input, passed) in [
            ("{'that': true}", "{'passed': 1}"),
            ("{'that': true, 'otherwise': 'x'}", "{'passed': 1}"),
            (
                "{'all': [{'that': true, 'otherwise': 'x'}, {'that': true, 'otherwise': 'y'}]}",
                "{'passed': 2}",
            ),
        ] {
            assert_eq!(output("flow.gate", input, BAD).await.unwrap(), json(passed), "{input}");
        }
    }

    #[tokio::test]
    async fn everything_that_does_not_hold_is_told() {
        for (input, message) in [
            ("{'that': false}", "the condition of this gate does not hold"),
            ("{'that': false, 'otherwise': 'no tools'}", "no tools"),
            (
                "{'all': [{'that': false, 'otherwise': 'a'}, {'that': true, 'otherwise': 'b'}, {'that': false, 'otherwise': 'c'}]}",
                "a; c",
            ),
        ] {
            let failure = output("flow.gate", input, BAD).await.unwrap_err();
            assert_eq!((failure.kind, &*failure.message), (FailureKind::Told, message));
        }
    }
}
