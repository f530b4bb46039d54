//! Label selectors, in objects and in queries, and field selectors.

use serde_json::Value as Json;

use super::kinds::Kind;
use super::status::Refusal;
use super::world::text;

/// Whether a `LabelSelector` chooses these labels. An empty one chooses everything.
pub(crate) fn matches(selector: &Json, labels: Option<&Json>) -> bool {
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).and_then(Json::as_str);
    let equal = selector
        .get("matchLabels")
        .and_then(Json::as_object)
        .into_iter()
        .flatten()
        .all(|(key, value)| label(key) == value.as_str());
    equal
        && selector.get("matchExpressions").and_then(Json::as_array).into_iter().flatten().all(|expression| {
            let key = text(expression, &["key"]).unwrap_or_default();
            let values = super::world::texts(expression, &["values"]);
            let listed = label(key).is_some_and(|value| values.contains(&value));
            match text(expression, &["operator"]) {
                Some("In") => listed,
                Some("NotIn") => !listed,
                Some("Exists") => label(key).is_some(),
                Some("DoesNotExist") => label(key).is_none(),
                _ => false,
            }
        })
}

/// One requirement of a query.
#[derive(Debug, Clone)]
struct Requirement {
    key: String,
    values: Vec<String>,
    is: Is,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    In,
    NotIn,
    There,
    Absent,
}

/// A selector of a query: by labels or by fields.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    labels: Vec<Requirement>,
    fields: Vec<(String, String, bool)>,
}

impl Query {
    /// Reads the two parameters.
    pub(crate) fn parse(kind: &Kind, labels: Option<&str>, fields: Option<&str>) -> Result<Query, Refusal> {
        let labels = match labels {
            Some(text) => parse_labels(text).ok_or_else(|| {
                Refusal::bad_request(format!(
                    "unable to parse requirement: found in label selector \"{text}\""
                ))
            })?,
            None => Vec::new(),
        };
        let mut parsed = Vec::new();
        for part in fields.into_iter().flat_map(|text| text.split(',')).filter(|part| !part.is_empty()) {
            let (key, value, equal) = if let Some((key, value)) = part.split_once("!=") {
                (key, value, false)
            } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (key, value, true)
            } else {
                return Err(Refusal::bad_request(format!(
                    "invalid field selector: \"{part}\"; can't understand \"{part}\""
                )));
            };
            if !supported(kind, key) {
                return Err(Refusal::bad_request(format!(
                    "Unable to find \"{}\" that match label selector \"\", field selector \"{part}\": \
                     field label not supported: {key}",
                    kind.api_version()
                )));
            }
            parsed.push((key.to_owned(), value.to_owned(), equal));
        }
        Ok(Query { labels, fields: parsed })
    }

    /// Whether an object is chosen.
    pub(crate) fn chooses(&self, object: &Json) -> bool {
        let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Json::as_str);
        self.labels.iter().all(|requirement| {
            let value = label(&requirement.key);
            let listed = value.is_some_and(|value| requirement.values.iter().any(|other| other == value));
            match requirement.is {
                Is::In => listed,
                Is::NotIn => !listed,
                Is::There => value.is_some(),
                Is::Absent => value.is_none(),
            }
        }) && self.fields.iter().all(|(path, wanted, equal)| {
            let path: Vec<&str> = path.split('.').collect();
            (field(object, &path) == *wanted) == *equal
        })
    }
}

fn field(object: &Json, path: &[&str]) -> String {
    match super::world::at(object, path) {
        Some(Json::String(text)) => text.clone(),
        None | Some(Json::Null) if path == ["spec", "unschedulable"] => "false".into(),
        None | Some(Json::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

fn supported(kind: &Kind, field: &str) -> bool {
    let own: &[&str] = match kind.kind {
        "Pod" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "status.phase",
            "status.podIP",
        ],
        "Node" => &["spec.unschedulable"],
        "Namespace" => &["status.phase"],
        "ReplicaSet" => &["status.replicas"],
        "Job" => &["status.successful"],
        "Secret" => &["type"],
        "Event" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "reason",
            "type",
            "source",
        ],
        _ => &[],
    };
    field == "metadata.name" || (field == "metadata.namespace" && kind.namespaced) || own.contains(&field)
}

fn parse_labels(text: &str) -> Option<Vec<Requirement>> {
    let mut requirements = Vec::new();
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    for part in parts.into_iter().map(str::trim) {
        if part.is_empty() {
            if text.trim().is_empty() {
                return Some(Vec::new());
            }
            return None;
        }
        requirements.push(requirement(part)?);
    }
    Some(requirements)
}

fn requirement(part: &str) -> Option<Requirement> {
    let known = |key: &str, values: Vec<String>, is: Is| {
        let key = key.trim();
        let fits =
            super::meta::is_qualified(key) && values.iter().all(|value| super::meta::is_label_value(value));
        fits.then(|| Requirement { key: key.to_owned(), values, is })
    };
    if let Some(head) = part.strip_suffix(')') {
        let (head, values) = head.split_once('(')?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let (key, operator) = head.trim().split_once(char::is_whitespace)?;
        return match operator.trim() {
            "in" => known(key, values, Is::In),
            "notin" => known(key, values, Is::NotIn),
            _ => None,
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        return known(key, vec![value.trim().to_owned()], Is::NotIn);
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return known(key, vec![value.trim().to_owned()], Is::In);
    }
    match part.strip_prefix('!') {
        Some(key) => known(key, Vec::new(), Is::Absent),
        None => known(part, Vec::new(), Is::There),
    }
}
