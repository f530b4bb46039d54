//! `http.delete`.

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind};
use farrier_outbound::Method;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::parts::{Answered, Headers, Params, Parts, Path, params_schema};
use crate::request::{exchange, keyed, planned_change};
use crate::target::Http;

/// Removes something from a server.
///
/// HTTP itself makes this repeatable: when an answer is lost, the request is sent again, under the same key where the
/// server takes keys. What is gone already is mostly answered with 404; say in `ok` when that is as good.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Delete {
    /// The server.
    target: Target<Http>,
    /// The path below that of the target, one text for each segment. A segment needs no encoding and never becomes two.
    path: Path,
    /// Parameters: text, numbers, bools, or a list of these, which gives the name several times.
    #[serde(default)]
    #[schemars(schema_with = "params_schema")]
    query: Params,
    /// Headers. A step may set the same as in `http.get`; `if-match` with the `etag` of an earlier answer makes sure
    /// that nobody has changed the resource since.
    #[serde(default)]
    headers: Headers,
    /// The statuses that mean success. Left out, those from 200 to 299.
    #[serde(default)]
    ok: Option<Vec<u16>>,
}

impl Delete {
    fn parts(&self) -> Parts<'_> {
        Parts {
            method: Method::Delete,
            path: &self.path,
            query: &self.query,
            headers: &self.headers,
            json: None,
        }
    }

    fn check(&self) -> Result<(), Failure> {
        if self.path.is_empty() {
            return Err(Failure::new(FailureKind::Input, "`path` is empty; it would remove the whole place"));
        }
        self.parts().request().map(drop)
    }
}

impl Action for Delete {
    const NAME: &'static str = "http.delete";
    const EFFECT: Effect = Effect::Keyed;
    const RISK: Risk = Risk::Destructive;
    const DELETES: bool = true;
    const EXAMPLE: &'static str = "\
old_image:
  uses: http.delete
  needs: []
  with:
    target: registry
    path: [api, v2.0, projects, tools, repositories, old]
    ok: [200, 404]
  undo: none
";
    type Output = Answered;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Answered>, Failure> {
        self.check()?;
        let reader = cx.reader(&self.target).await?;
        let parts = self.parts();
        Ok(Planned::described(vec![planned_change(&*reader.web, &parts, ChangeKind::Delete, parts.shown())?]))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Answered, Failure> {
        self.check()?;
        let writer = cx.writer(&self.target).await?;
        let parts = self.parts();
        if *changes != [planned_change(&*writer.web, &parts, ChangeKind::Delete, parts.shown())?] {
            return Err(Failure::new(FailureKind::Drift, "the request is not the one that was planned"));
        }
        let header = writer.idempotency_header.as_deref();
        let request = keyed(parts.request()?, header, cx.node().effect_id.clone())?;
        exchange(&*writer.web, &request, self.ok.as_deref())
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }
}
