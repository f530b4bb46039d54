//! Alertmanager's API, version 2, as far as the actions need it.

use farrier_model::time::Timestamp;
use farrier_model::{Failure, FailureKind, Value};
use farrier_outbound::{Answer, Method, Query, Request, Web, refused};
use serde::Deserialize;

use crate::matcher::Matcher;

/// An alert.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Alert {
    pub(crate) fingerprint: String,
    pub(crate) labels: Value,
    #[serde(default)]
    pub(crate) annotations: Value,
    pub(crate) starts_at: String,
    pub(crate) ends_at: String,
    #[serde(default, rename = "generatorURL")]
    pub(crate) generator_url: String,
    pub(crate) status: AlertStatus,
}

/// Whether an alert is held back, and by what.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AlertStatus {
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) silenced_by: Vec<String>,
    #[serde(default)]
    pub(crate) inhibited_by: Vec<String>,
}

/// A silence.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Silence {
    pub(crate) id: String,
    pub(crate) matchers: Vec<Matcher>,
    pub(crate) ends_at: String,
    pub(crate) created_by: String,
    pub(crate) comment: String,
    pub(crate) status: SilenceStatus,
}

/// `pending`, `active` or `expired`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SilenceStatus {
    pub(crate) state: String,
}

impl Silence {
    pub(crate) fn has_ended(&self) -> bool {
        self.status.state == "expired"
    }
}

/// Which alerts to list.
pub(crate) struct Filter<'a> {
    pub(crate) matchers: &'a [Matcher],
    pub(crate) silenced: bool,
    pub(crate) inhibited: bool,
}

/// The alerts that fire.
pub(crate) async fn alerts(web: &dyn Web, filter: Filter<'_>) -> Result<Vec<Alert>, Failure> {
    let mut query = Query::default();
    for matcher in filter.matchers {
        query = query.with("filter", matcher.shown());
    }
    for (name, wanted) in [("silenced", filter.silenced), ("inhibited", filter.inhibited)] {
        query = query.with(name, wanted.to_string());
    }
    read(web, Request::new(Method::Get, ["api", "v2", "alerts"])?.query(query)).await
}

/// Every silence that the server remembers, ended ones too.
pub(crate) async fn silences(web: &dyn Web) -> Result<Vec<Silence>, Failure> {
    read(web, Request::new(Method::Get, ["api", "v2", "silences"])?).await
}

/// One silence; none when the server knows none of this id.
pub(crate) async fn silence(web: &dyn Web, id: &str) -> Result<Option<Silence>, Failure> {
    let request = Request::new(Method::Get, ["api", "v2", "silence", id])?;
    let answer = web.send(&request).await?;
    match answer.status {
        404 => Ok(None),
        _ => decoded(&request, &answer).map(Some),
    }
}

/// Makes a silence; its id.
pub(crate) async fn make(
    web: &dyn Web,
    matchers: &[Matcher],
    [starts_at, ends_at]: [Timestamp; 2],
    created_by: &str,
    comment: &str,
) -> Result<String, Failure> {
    let matchers = Value::of(matchers)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("no value: {error}")))?;
    let tree = Value::map([
        ("matchers", matchers),
        ("startsAt", Value::text(starts_at.to_string())),
        ("endsAt", Value::text(ends_at.to_string())),
        ("createdBy", Value::text(created_by)),
        ("comment", Value::text(comment)),
    ]);
    let request = Request::new(Method::Post, ["api", "v2", "silences"])?.json(&tree);
    let answer = web.send(&request).await?;
    let made: Value = decoded(&request, &answer)?;
    made.get("silenceID").and_then(Value::as_str).map(str::to_owned).ok_or_else(|| {
        Failure::new(FailureKind::Refused, "the server made a silence and did not say which").in_doubt()
    })
}

/// Ends a silence. One that has ended already, or that nobody knows any more, is as wanted.
pub(crate) async fn end(web: &dyn Web, id: &str) -> Result<(), Failure> {
    let request = Request::new(Method::Delete, ["api", "v2", "silence", id])?;
    let answer = web.send(&request).await?;
    if answer.is_success() || answer.status == 404 {
        return Ok(());
    }
    // What a server says to a silence that has ended depends on its version; what the silence is does not.
    if !answer.is_success() && silence(web, id).await?.is_none_or(|silence| silence.has_ended()) {
        return Ok(());
    }
    Err(refused(&request, &answer))
}

async fn read<T: serde::de::DeserializeOwned>(web: &dyn Web, request: Request) -> Result<T, Failure> {
    let answer = web.send(&request).await?;
    decoded(&request, &answer)
}

fn decoded<T: serde::de::DeserializeOwned>(request: &Request, answer: &Answer) -> Result<T, Failure> {
    if !answer.is_success() {
        return Err(refused(request, answer));
    }
    let strange = |what: String| {
        Failure::new(FailureKind::Refused, format!("the answer is not one of Alertmanager: {what}"))
    };
    let body = answer.json().ok_or_else(|| strange("it is not JSON".into()))?;
    body.read().map_err(|error| strange(error.to_string()))
}
