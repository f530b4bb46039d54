//! The file of recorded routes.

use std::collections::BTreeMap;
use std::path::Path;

use farrier_model::time::Timestamp;
use farrier_model::{Failure, FailureKind, Value};
use farrier_outbound::{Answer, Method};
use serde::Deserialize;

use super::variables::Shelves;

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteFile {
    /// The routes; the first that fits a request answers it.
    #[serde(default)]
    pub(super) routes: Vec<Route>,
    /// Variables that are kept, for requests that no route fits.
    #[serde(default)]
    pub(super) variables: Vec<Shelves>,
    /// The certificate that `http.certificate` finds.
    #[serde(default)]
    pub(super) certificate: Option<Recorded>,
}

/// What is asked, and what is answered.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    #[serde(default = "get")]
    method: Method,
    /// The segments of the path; `*` stands for any one.
    #[serde(default)]
    path: Vec<String>,
    /// Parameters that must have these values; others do not matter.
    #[serde(default)]
    query: BTreeMap<String, String>,
    /// Fits only once such a request was answered well.
    #[serde(default)]
    after: Option<After>,
    /// One after the other; the last one stays.
    pub(super) answers: Vec<RecordedAnswer>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct After {
    method: Method,
    path: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecordedAnswer {
    #[serde(default = "ok")]
    pub(super) status: u16,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    json: Option<Value>,
    #[serde(default)]
    text: Option<String>,
    /// What goes wrong on the way.
    #[serde(default)]
    pub(super) fault: Option<Fault>,
}

/// What goes wrong on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    /// The request does not arrive.
    Unreachable,
    /// It arrives, and no answer comes in time.
    Timeout,
    /// It arrives, and the connection ends before the answer.
    Lost,
    /// It arrives, and the connection ends in the middle of the answer.
    Cut,
}

impl Fault {
    pub(super) fn name(self) -> &'static str {
        match self {
            Fault::Unreachable => "unreachable",
            Fault::Timeout => "timeout",
            Fault::Lost => "lost",
            Fault::Cut => "cut",
        }
    }
}

/// A certificate.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recorded {
    pub(super) not_after: Timestamp,
    pub(super) not_before: Timestamp,
    #[serde(default)]
    pub(super) names: Vec<String>,
    #[serde(default)]
    pub(super) subject: String,
    #[serde(default)]
    pub(super) issuer: String,
    /// Why it is not to be trusted, besides having expired.
    #[serde(default)]
    pub(super) problem: Option<String>,
}

fn get() -> Method {
    Method::Get
}

fn ok() -> u16 {
    200
}

impl RouteFile {
    pub(super) fn read(path: &Path) -> Result<RouteFile, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::new(FailureKind::Unreachable, format!("cannot read {}: {error}", path.display()))
        })?;
        let file: RouteFile = serde_saphyr::from_str(&text)
            .map_err(|error| Failure::new(FailureKind::Input, format!("{}: {error}", path.display())))?;
        for (number, route) in file.routes.iter().enumerate() {
            let wrong = |what: &str| {
                Failure::new(FailureKind::Input, format!("{}: route {} {what}", path.display(), number + 1))
            };
            if route.answers.is_empty() {
                return Err(wrong("has no answers"));
            }
            if route.answers.iter().any(|answer| answer.json.is_some() && answer.text.is_some()) {
                return Err(wrong("has an answer with both `json` and `text`"));
            }
        }
        Ok(file)
    }
}

impl Route {
    pub(super) fn fits(
        &self,
        method: Method,
        path: &[String],
        query: &[(String, String)],
        earlier: &[Value],
    ) -> bool {
        self.method == method
            && same_path(&self.path, path)
            && self.query.iter().all(|(name, value)| query.iter().any(|(n, v)| n == name && v == value))
            && self.after.as_ref().is_none_or(|after| earlier.iter().any(|record| after.happened(record)))
    }
}

impl After {
    fn happened(&self, record: &Value) -> bool {
        let path: Vec<String> = record
            .get("path")
            .and_then(Value::as_list)
            .unwrap_or_default()
            .iter()
            .filter_map(|part| part.as_str().map(str::to_owned))
            .collect();
        record.get("method").and_then(Value::as_str) == Some(self.method.name())
            && same_path(&self.path, &path)
            && record.get("status").and_then(Value::as_int).is_some_and(|status| (200..300).contains(&status))
            && record.get("fault").and_then(Value::as_str) != Some(Fault::Unreachable.name())
    }
}

/// Whether a path fits segments of which `*` stands for any one.
pub(super) fn same_path(pattern: &[String], path: &[String]) -> bool {
    pattern.len() == path.len()
        && pattern.iter().zip(path).all(|(wanted, part)| wanted == "*" || wanted == part)
}

impl RecordedAnswer {
    pub(super) fn answer(&self) -> Answer {
        let mut headers: BTreeMap<String, String> =
            self.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        let (kind, body) = match (&self.json, &self.text) {
            (Some(tree), _) => (Some("application/json"), tree.to_json().into_bytes()),
            (None, Some(text)) => (Some("text/plain"), text.clone().into_bytes()),
            (None, None) => (None, Vec::new()),
        };
        if let Some(kind) = kind {
            headers.entry("content-type".into()).or_insert_with(|| kind.into());
        }
        Answer { status: self.status, headers, body, cut: false }
    }
}
