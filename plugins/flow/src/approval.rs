//! `flow.approval`.

use farrier_action::text::Span;
use farrier_action::{Action, Planned, ReadCx, WaitFor};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, FailureKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Waits until people have approved what the rest of the run would do.
///
/// They are shown the plan of everything that has not been done yet, with its digest. Their yes is for that plan: a
/// step whose changes are not those that were approved fails, and changes nothing. Whoever asked for the run does not
/// count. `farrier approve` and `farrier reject` give the answer.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// Who may approve: people, or groups under `people:` in the environment. Anyone but the person who asked for the
    /// run when left out.
    #[serde(default)]
    who: Vec<String>,
    /// How many must; 1 when left out.
    #[serde(default = "one")]
    count: u32,
    /// How long they have. Without an answer the step then fails.
    #[serde(default)]
    within: Option<Span>,
}

fn one() -> u32 {
    1
}

/// The answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Approved {
    /// Who said yes, in order.
    pub approved_by: Vec<String>,
    /// The digest of the plan that they approved.
    pub digest: String,
}

impl Action for Approval {
    const NAME: &'static str = "flow.approval";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const PURE: bool = true;
    const EXAMPLE: &'static str = "\
sure:
  uses: flow.approval
  with: { who: [toolforge-roots], count: 2, within: 3d }
";
    type Output = Approved;

    async fn plan(&self, _: &ReadCx) -> Result<Planned<Approved>, Failure> {
        if self.count == 0 {
            return Err(Failure::new(FailureKind::Input, "`count`: an approval by nobody is none"));
        }
        Ok(Planned::waiting(WaitFor::Approval {
            who: self.who.iter().map(|who| who.as_str().into()).collect(),
            count: self.count,
            within: self.within.map(|within| within.0),
        }))
    }
}

#[cfg(test)]
mod tests {
    use farrier_model::FailureKind;

    use crate::testing::plan;

    #[tokio::test]
    async fn it_says_who_is_asked() {
        for (input, words) in [
            ("{}", "for one approval"),
            (
                "{'who': ['roots', 'ada'], 'count': 2, 'within': '3d'}",
                "for 2 approvals of roots, ada within 3d",
            ),
        ] {
            let planned = plan("flow.approval", input).await.unwrap();
            assert_eq!(planned.wait.unwrap().describe(), words);
        }
        let failure = plan("flow.approval", "{'count': 0}").await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Input);
    }
}
