//! `flow.fail`.

use farrier_action::text::FreeText;
use farrier_action::{Action, Planned, ReadCx};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, FailureKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Fails, with a message for people. Give the step an `if`: without one the runbook can never succeed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fail {
    /// What is wrong.
    message: FreeText,
    /// What the reader can do about it.
    #[serde(default)]
    help: Option<FreeText>,
}

/// No step comes to use this: the action never succeeds.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Nothing {}

impl Action for Fail {
    const NAME: &'static str = "flow.fail";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const PURE: bool = true;
    const EXAMPLE: &'static str = "\
unknown_project:
  uses: flow.fail
  if: inputs.project not in ['tools', 'toolsbeta']
  with:
    message: there is no project ${ inputs.project }
    help: use tools or toolsbeta
";
    type Output = Nothing;

    async fn plan(&self, _: &ReadCx) -> Result<Planned<Nothing>, Failure> {
        let failure = Failure::new(FailureKind::Told, &self.message.0);
        Err(match &self.help {
            Some(help) => failure.help(&help.0),
            None => failure,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::output;
    use farrier_model::FailureKind;

    #[tokio::test]
    async fn it_fails_with_the_authors_words() {
        for (input, help) in [
            ("{'message': 'no such project'}", None),
            ("{'message': 'no such project', 'help': 'use tools'}", Some("use tools")),
        ] {
            let failure =
                output("flow.fail", input, &["{}", "{'message': 'a', 'hepl': 'b'}"]).await.unwrap_err();
            assert_eq!((failure.kind, &*failure.message), (FailureKind::Told, "no such project"));
            assert_eq!(failure.help.as_deref(), help);
        }
    }
}
