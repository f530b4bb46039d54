//! What a server of metrics can do: [`Metrics`]; and how a real one does it: [`Server`].

use async_trait::async_trait;
use farrier_model::time::Timestamp;
use farrier_model::{Failure, FailureKind, Value};
use farrier_outbound::{Client, Method, Query, Request, Web, refused};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;

use crate::promql::not_older_than;

/// A server of metrics, or a recording.
#[async_trait]
pub(crate) trait Metrics: Send + Sync {
    /// What the query finds now, over samples from `not_older_than` on.
    async fn ask(&self, query: &str, not_older_than: Option<Timestamp>) -> Result<Vec<Sample>, Failure>;
}

/// One sample of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub(crate) struct Sample {
    /// The labels.
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    pub(crate) labels: Value,
    /// The value; none when it is no finite number.
    #[schemars(schema_with = "number_schema")]
    pub(crate) value: Value,
    /// The value as the server wrote it, as in `NaN` and `+Inf`.
    pub(crate) text: String,
    /// When the server evaluated the query. This says nothing about the age of what was measured.
    pub(crate) at: String,
}

/// A number or none.
pub(crate) fn number_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["number", "null"] })
}

impl Sample {
    /// A sample with a value as Prometheus writes it.
    pub(crate) fn new(labels: Value, text: &str, at: Timestamp) -> Sample {
        Sample { labels, value: number(text), text: text.to_owned(), at: at.to_string() }
    }
}

/// A finite number; whole ones without a fraction, so that they read well.
fn number(text: &str) -> Value {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => {
            if number.fract() == 0.0 && number.abs() < 9e15 {
                Value::Int(number as i64)
            } else {
                Value::Float(number)
            }
        }
        _ => Value::Null,
    }
}

/// A real server.
pub(crate) struct Server(pub(crate) Client);

#[async_trait]
impl Metrics for Server {
    async fn ask(&self, query: &str, oldest: Option<Timestamp>) -> Result<Vec<Sample>, Failure> {
        let query = match oldest {
            Some(time) => not_older_than(query, time)?,
            None => query.to_owned(),
        };
        let request =
            Request::new(Method::Get, ["api", "v1", "query"])?.query(Query::default().with("query", query));
        let answer = self.0.send(&request).await?;
        let body = answer.json();
        let said = |name: &str| body.as_ref().and_then(|body| body.get(name)).and_then(Value::as_str);
        if said("status") == Some("error") {
            // The server's own words say more than the status.
            let kind = match said("errorType") {
                Some("timeout" | "canceled") => FailureKind::Timeout,
                Some("unavailable" | "internal") => FailureKind::Unreachable,
                _ => FailureKind::Refused,
            };
            return Err(Failure::new(
                kind,
                format!("the query failed: {}", said("error").unwrap_or_default()),
            ));
        }
        if !answer.is_success() {
            return Err(refused(&request, &answer));
        }
        let body = body.ok_or_else(|| strange("it is not JSON"))?;
        read(&body)
    }
}

fn strange(what: &str) -> Failure {
    Failure::new(FailureKind::Refused, format!("the answer is not one of Prometheus: {what}"))
}

/// The samples in an answer of `/api/v1/query`.
fn read(body: &Value) -> Result<Vec<Sample>, Failure> {
    if body.get("status").and_then(Value::as_str) != Some("success") {
        return Err(strange("it has no `status`"));
    }
    // A store behind Thanos that does not answer leaves part of the series out, and says so here alone.
    if let Some(warnings) = body.get("warnings").and_then(Value::as_list)
        && !warnings.is_empty()
    {
        let words: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        return Err(Failure::new(
            FailureKind::Unreachable,
            format!("the server knows only part of the answer: {}", words.join("; ")),
        ));
    }
    let data = body.get("data").ok_or_else(|| strange("it has no `data`"))?;
    let result = data.get("result").ok_or_else(|| strange("it has no `result`"))?;
    match data.get("resultType").and_then(Value::as_str) {
        Some("vector") => result
            .as_list()
            .ok_or_else(|| strange("`result` is no list"))?
            .iter()
            .map(|series| {
                let Some(pair) = series.get("value") else {
                    return Err(Failure::new(
                        FailureKind::Refused,
                        "the query gives histograms, not numbers",
                    ));
                };
                let labels =
                    series.get("metric").cloned().ok_or_else(|| strange("a series has no labels"))?;
                sample(labels, pair)
            })
            .collect(),
        Some("scalar") => Ok(vec![sample(Value::map::<&str>([]), result)?]),
        other => Err(Failure::new(
            FailureKind::Refused,
            format!(
                "the query gives a {}, not samples at one time",
                other.unwrap_or("thing of unknown type")
            ),
        )),
    }
}

fn sample(labels: Value, pair: &Value) -> Result<Sample, Failure> {
    let Some([at, value]) = pair.as_list() else { return Err(strange("a sample is no pair")) };
    let at = match at {
        Value::Int(seconds) => Timestamp::from_second(*seconds).ok(),
        Value::Float(seconds) => Timestamp::from_millisecond((seconds * 1000.0).round() as i64).ok(),
        _ => None,
    };
    let text = value.as_str().ok_or_else(|| strange("a value is no text"))?;
    Ok(Sample::new(labels, text, at.ok_or_else(|| strange("a sample has no time"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_are_none_are_errors_and_never_empty() {
        for (body, reason) in [
            ("{}", "no `status`"),
            (r#"{"status": "success"}"#, "no `data`"),
            (r#"{"status": "success", "data": {}}"#, "no `result`"),
            (r#"{"status": "success", "data": {"resultType": "matrix", "result": []}}"#, "gives a matrix"),
            (r#"{"status": "success", "data": {"resultType": "vector", "result": null}}"#, "is no list"),
            (
                r#"{"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "histogram": []}]}}"#,
                "histograms",
            ),
            (
                r#"{"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1]}]}}"#,
                "no pair",
            ),
            (
                r#"{"status": "success", "warnings": ["store x"], "data": {"resultType": "vector", "result": []}}"#,
                "only part of the answer: store x",
            ),
        ] {
            let failure = read(&Value::from_json(body).unwrap()).expect_err(body);
            assert!(failure.message.contains(reason), "{failure}");
        }
        let good = r#"{"status": "success", "data": {"resultType": "scalar", "result": [1.5, "NaN"]}}"#;
        let samples = read(&Value::from_json(good).unwrap()).unwrap();
        assert_eq!((samples[0].text.as_str(), &samples[0].value), ("NaN", &Value::Null));
        assert_eq!(samples[0].at, "1970-01-01T00:00:01.5Z");
        assert_eq!(
            [number("5"), number("-0.5"), number("+Inf")],
            [Value::Int(5), Value::Float(-0.5), Value::Null]
        );
    }
}
