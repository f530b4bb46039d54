//! `flow.note`.

use farrier_action::text::FreeText;
use farrier_action::{Action, Planned, ReadCx};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Writes a remark into the run, for whoever reads it later.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// The remark.
    message: FreeText,
}

/// What was noted.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Noted {
    /// The remark.
    pub message: String,
}

impl Action for Note {
    const NAME: &'static str = "flow.note";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const PURE: bool = true;
    const EXAMPLE: &'static str = "\
seen:
  uses: flow.note
  with: { message: '${ steps.accounts.entries | length } tools are listed' }
";
    type Output = Noted;

    async fn plan(&self, _: &ReadCx) -> Result<Planned<Noted>, Failure> {
        let message = self.message.to_string();
        Ok(Planned::known(Noted { message: message.clone() }).note(message))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{json, output};

    #[tokio::test]
    async fn the_remark_is_the_output() {
        let input = "{'message': '42 tools'}";
        assert_eq!(
            output("flow.note", input, &["{}", "{'message': 1}", "{'text': 'x'}"]).await.unwrap(),
            json(input)
        );
    }
}
