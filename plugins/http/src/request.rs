//! `http.request`.

use farrier_action::text::FreeText;
use farrier_action::{Action, NodeInfo, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use farrier_outbound::{Method, Web};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::parts::{Answered, Headers, Params, Parts, Path, Tree, header_value, params_schema};
use crate::target::Http;

/// Asks a server to change something, so that asking again does nothing more.
///
/// Each request carries a key that is the same for every attempt, in the header that the target names in
/// `idempotency_header`. A server that knows such keys does the work once and repeats its answer; so when an answer is
/// lost, Farrier sends the request again under the same key. Without that header in the environment only `PUT` is sent,
/// which HTTP itself makes repeatable. For a server that remembers nothing, there is `http.send`; to remove something,
/// `http.delete`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
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
    /// Headers. A step may set the same as in `http.get`; `if-match` with the `etag` of an earlier answer makes sure
    /// that nobody has changed the resource since.
    #[serde(default)]
    headers: Headers,
    /// The body, a tree that is sent as JSON.
    #[serde(default)]
    json: Option<Tree>,
    /// The key by which the server knows this request again. Left out, it is made of the run and the step.
    #[serde(default)]
    idempotency_key: Option<FreeText>,
    /// The statuses that mean success. Left out, those from 200 to 299.
    #[serde(default)]
    ok: Option<Vec<u16>>,
}

/// What is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Verb {
    /// Makes something, or starts something.
    #[default]
    Post,
    /// Sets to a state.
    Put,
    /// Changes a part.
    Patch,
}

impl Verb {
    /// The method.
    pub(crate) fn method(self) -> Method {
        match self {
            Verb::Post => Method::Post,
            Verb::Put => Method::Put,
            Verb::Patch => Method::Patch,
        }
    }

    /// How it counts in plans and guards.
    pub(crate) fn change(self) -> ChangeKind {
        match self {
            Verb::Post => ChangeKind::Send,
            Verb::Put | Verb::Patch => ChangeKind::Update,
        }
    }
}

impl Request {
    fn parts(&self) -> Parts<'_> {
        Parts {
            method: self.method.method(),
            path: &self.path,
            query: &self.query,
            headers: &self.headers,
            json: self.json.as_ref(),
        }
    }

    /// The request with its key, for a server that takes keys in `header`.
    fn keyed(&self, header: Option<&str>, node: &NodeInfo) -> Result<farrier_outbound::Request, Failure> {
        let key = match &self.idempotency_key {
            None => node.effect_id.clone(),
            Some(key) if key.0.is_empty() => {
                return Err(Failure::new(FailureKind::Input, "`idempotency_key` is empty"));
            }
            Some(key) => header_value("idempotency_key", &key.0)?,
        };
        keyed(self.parts().request()?, header, key)
    }

    /// What is shown before it is sent, and compared when it is.
    fn change(&self, web: &dyn Web) -> Result<Change, Failure> {
        let parts = self.parts();
        let mut after = parts.shown();
        after.extend(self.idempotency_key.iter().map(|key| ("idempotency_key", Value::text(&*key.0))));
        planned_change(web, &parts, self.method.change(), after)
    }
}

/// A request with its key, for a server that takes keys in `header`.
pub(crate) fn keyed(
    request: farrier_outbound::Request,
    header: Option<&str>,
    key: String,
) -> Result<farrier_outbound::Request, Failure> {
    match header {
        Some(header) => Ok(request.header(header, key)),
        None if request.method.is_idempotent() => Ok(request),
        None => Err(Failure::new(
            FailureKind::Input,
            format!(
                "a {} that is sent twice may be done twice, and this environment does not say that the server \
                 remembers keys",
                request.method
            ),
        )
        .help("add `idempotency_header: Idempotency-Key` to the target if the server heeds it, or use `http.send`")),
    }
}

/// Sends a request that writes, and judges the answer.
pub(crate) async fn exchange(
    web: &dyn Web,
    request: &farrier_outbound::Request,
    ok: Option<&[u16]>,
) -> Result<Answered, Failure> {
    let answer = web.send(request).await?;
    Answered::judge(request, answer, ok)
}

/// The one change of a request.
pub(crate) fn planned_change(
    web: &dyn Web,
    parts: &Parts<'_>,
    kind: ChangeKind,
    after: Vec<(&'static str, Value)>,
) -> Result<Change, Failure> {
    // Parameters stand in `after`, where they can be read.
    let mut request = parts.request()?;
    request.query.0.clear();
    Ok(Change {
        object: web.shown(&request).into(),
        kind,
        before: Value::Null,
        after: if after.is_empty() { Value::Null } else { Value::map(after) },
        fingerprint: None,
    })
}

impl Action for Request {
    const NAME: &'static str = "http.request";
    const EFFECT: Effect = Effect::Keyed;
    const RISK: Risk = Risk::Recoverable;
    const EXAMPLE: &'static str = "\
tell:
  uses: http.request
  with:
    target: feed
    method: POST
    path: [sal]
    idempotency_key: ${ run.id }
    json: { message: 'finished ${ run.title }', tags: [farrier, toolforge] }
  undo: none
";
    type Output = Answered;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Answered>, Failure> {
        let reader = cx.reader(&self.target).await?;
        self.keyed(reader.idempotency_header.as_deref(), cx.node())
            .map_err(|failure| failure.at(self.target.alias()))?;
        Ok(Planned::described(vec![self.change(&*reader.web)?]))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Answered, Failure> {
        let writer = cx.writer(&self.target).await?;
        if *changes != [self.change(&*writer.web)?] {
            return Err(Failure::new(FailureKind::Drift, "the request is not the one that was planned"));
        }
        let request = self.keyed(writer.idempotency_header.as_deref(), cx.node())?;
        exchange(&*writer.web, &request, self.ok.as_deref())
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }
}
