//! `data.let`.

use farrier_action::{Action, Planned, ReadCx};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Names a value that is made of other steps' outputs, so that it is computed once and shown in the journal.
///
/// A value that depends on inputs alone is better under `vars`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Let {
    /// Any value: a constant, an expression, or a tree of both.
    #[schemars(with = "serde_json::Value")]
    value: Value,
}

/// The named value.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Named {
    /// The value.
    #[schemars(with = "serde_json::Value")]
    pub value: Value,
}

impl Action for Let {
    const NAME: &'static str = "data.let";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const PURE: bool = true;
    const EXAMPLE: &'static str = "\
names:
  uses: data.let
  with:
    value: ${ steps.accounts.entries | map(attribute='cn') | list }
";
    type Output = Named;

    async fn plan(&self, _: &ReadCx) -> Result<Planned<Named>, Failure> {
        Ok(Planned::known(Named { value: self.value.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{json, output, refuses};

    #[tokio::test]
    async fn any_value_comes_back() {
        for value in ["1", "null", "'a'", "[1, 'b', null]", "{'a': {'b': 1.5}}", "{'$unknown': 'x'}"] {
            let input = json(&format!("{{'value': {value}}}"));
            assert_eq!(output("data.let", &input).await.unwrap(), input, "{value}");
        }
        refuses("data.let", "{'value': 1}", &["{'value': 1, 'vale': 2}", "{}"]).await;
    }
}
