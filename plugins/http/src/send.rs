//! `http.send`.

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, Effect, Failure, FailureKind};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::parts::{Answered, Headers, Params, Parts, Path, Tree, params_schema};
use crate::request::{Verb, exchange, planned_change};
use crate::target::Http;

/// Sends a request to a server that does not remember keys.
///
/// When the answer is lost, nobody can tell from here whether the server did what was asked; the run then waits for a
/// person who has looked. Where the server knows keys, `http.request` needs no person.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Send {
    /// The server.
    target: Target<Http>,
    /// What to do. The default is `POST`.
    #[serde(default)]
    method: Verb,
    /// The path below that of the target, one text for each segment. A segment needs no encoding and never becomes two.
    #[serde(default)]
    path: Path,
    /// Parameters: text, numbers, bools, or a list of these, which gives the name several times.
    #[serde(default)]
    #[schemars(schema_with = "params_schema")]
    query: Params,
    /// Headers. A step may set the same as in `http.get`.
    #[serde(default)]
    headers: Headers,
    /// The body, a tree that is sent as JSON.
    #[serde(default)]
    json: Option<Tree>,
    /// The statuses that mean success. Left out, those from 200 to 299.
    #[serde(default)]
    ok: Option<Vec<u16>>,
}

impl Send {
    fn parts(&self) -> Parts<'_> {
        Parts {
            method: self.method.method(),
            path: &self.path,
            query: &self.query,
            headers: &self.headers,
            json: self.json.as_ref(),
        }
    }
}

impl Action for Send {
    const NAME: &'static str = "http.send";
    const EFFECT: Effect = Effect::Once;
    const RISK: Risk = Risk::Recoverable;
    const EXAMPLE: &'static str = "\
rebuild:
  uses: http.send
  with:
    target: builder
    path: [hooks, rebuild]
    json: { branch: main }
  undo: none
";
    type Output = Answered;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Answered>, Failure> {
        let parts = self.parts();
        parts.request()?;
        let reader = cx.reader(&self.target).await?;
        Ok(Planned::described(vec![planned_change(
            &*reader.web,
            &parts,
            self.method.change(),
            parts.shown(),
        )?]))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Answered, Failure> {
        let writer = cx.writer(&self.target).await?;
        let parts = self.parts();
        if *changes != [planned_change(&*writer.web, &parts, self.method.change(), parts.shown())?] {
            return Err(Failure::new(FailureKind::Drift, "the request is not the one that was planned"));
        }
        let request = parts.request()?;
        exchange(&*writer.web, &request, self.ok.as_deref())
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }
}
