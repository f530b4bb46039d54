//! `alertmanager.expire`.

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api;
use crate::matcher::values;
use crate::target::Alertmanager;

/// Ends a silence before its time.
///
/// One that has ended already, or that the server does not know, is no change.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expire {
    /// The Alertmanager.
    target: Target<Alertmanager>,
    /// The silence's id, mostly the output of `alertmanager.silence`.
    id: String,
}

/// The silence that has ended.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Expired {
    /// Its id.
    id: String,
}

fn image(silence: &api::Silence) -> Value {
    Value::map([
        ("match", values(&silence.matchers)),
        ("ends_at", Value::text(silence.ends_at.as_str())),
        ("comment", Value::text(silence.comment.as_str())),
        ("created_by", Value::text(silence.created_by.as_str())),
    ])
}

impl Expire {
    fn output(&self) -> Expired {
        Expired { id: self.id.clone() }
    }

    fn check(&self) -> Result<(), Failure> {
        let fits = |c: char| c.is_ascii_hexdigit() || c == '-';
        if self.id.is_empty() || self.id.len() > 64 || !self.id.chars().all(fits) {
            return Err(Failure::new(
                FailureKind::Input,
                format!("`id`: {:?} is not the id of a silence", self.id),
            ));
        }
        Ok(())
    }
}

impl Action for Expire {
    const NAME: &'static str = "alertmanager.expire";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const EXAMPLE: &'static str = "\
loud_again:
  uses: alertmanager.expire
  with: { target: alerts, id: 6a3b9c1e-1f0d-4c3a-9a55-0d6a4f0e7b21 }
  undo: none
";
    type Output = Expired;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Expired>, Failure> {
        self.check()?;
        let side = cx.reader(&self.target).await?;
        let found =
            api::silence(&*side.web, &self.id).await.map_err(|failure| failure.at(self.target.alias()))?;
        let Some(silence) = found.filter(|silence| !silence.has_ended()) else {
            return Ok(Planned::known(self.output()).considered(0));
        };
        let change = Change {
            object: format!("silence {}", self.id).into(),
            kind: ChangeKind::Delete,
            before: image(&silence),
            after: Value::Null,
            fingerprint: None,
        };
        Ok(Planned::changes(vec![change], self.output()).considered(1))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Expired, Failure> {
        self.check()?;
        let side = cx.writer(&self.target).await?;
        let ended = async {
            let found = api::silence(&*side.web, &self.id).await?;
            let Some(silence) = found.filter(|silence| !silence.has_ended()) else { return Ok(()) };
            if !changes.iter().any(|change| change.before == image(&silence)) {
                return Err(Failure::new(
                    FailureKind::Drift,
                    format!("the silence {} is not as the plan saw it; it was left alone", self.id),
                ));
            }
            api::end(&*side.web, &self.id).await
        };
        ended.await.map_err(|failure| failure.at(self.target.alias()))?;
        Ok(self.output())
    }
}
