//! Variables that a stand-in keeps for many owners: what `GET`, `POST` and `DELETE` do to them.
//!
//! **Rule:** there is no other state than the requests that came. What is kept is read from them, in their order.

use std::collections::BTreeMap;

use farrier_model::Value;
use farrier_outbound::{Answer, Method};
use serde::Deserialize;

use super::file::{Fault, same_path};

/// Where variables are kept.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shelves {
    /// The segments of the path; `*` stands for any one, which names the owner.
    pub(super) path: Vec<String>,
    /// The field of the answer to `GET` that has the list of `name` and `value`.
    list: String,
}

/// Marks a request in the record as one that was answered here.
pub(super) const KEPT: &str = "kept";

impl Shelves {
    /// The answer to a request, if it is for here.
    pub(super) fn answer(
        &self,
        method: Method,
        path: &[String],
        body: &Value,
        earlier: &[Value],
    ) -> Option<Answer> {
        let length = self.path.len();
        let one = match path.len().checked_sub(length)? {
            0 => None,
            1 => path.last(),
            _ => return None,
        };
        let owner = path.get(..length)?;
        if !same_path(&self.path, owner) {
            return None;
        }
        let kept = kept(owner, earlier);
        let variable = |name: &str, value: &str| {
            Value::map([("name", Value::text(name)), ("value", Value::text(value))])
        };
        let (status, body) = match (method, one) {
            (Method::Get, None) => {
                let all = kept.iter().map(|(name, value)| variable(name, value)).collect();
                (200, Value::map([(self.list.as_str(), Value::list(all))]))
            }
            (Method::Post, None) => match set_by(body) {
                Some((name, value)) => (200, variable(name, value)),
                None => (400, Value::text("a variable has a `name` and a `value`, which are texts")),
            },
            (Method::Get | Method::Delete, Some(name)) => match kept.get(name.as_str()) {
                Some(value) => (200, variable(name, value)),
                None => (404, Value::text("there is no such variable")),
            },
            _ => (405, Value::Null),
        };
        let headers = BTreeMap::from([("content-type".to_owned(), "application/json".to_owned())]);
        Some(Answer { status, headers, body: body.to_json().into_bytes(), cut: false })
    }
}

/// The variables of an owner, after all that came.
fn kept<'a>(owner: &[String], earlier: &'a [Value]) -> BTreeMap<&'a str, &'a str> {
    let mut kept = BTreeMap::new();
    for record in earlier {
        let arrived = record.get("fault").and_then(Value::as_str) != Some(Fault::Unreachable.name());
        let done = record.get("status").and_then(Value::as_int).is_some_and(|status| status < 300);
        if record.get(KEPT).is_none() || !arrived || !done {
            continue;
        }
        let path: Vec<&str> = record
            .get("path")
            .and_then(Value::as_list)
            .unwrap_or_default()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let Some((here, below)) = path.split_at_checked(owner.len()) else { continue };
        if !here.iter().zip(owner).all(|(one, other)| one == other) {
            continue;
        }
        match (record.get("method").and_then(Value::as_str), below) {
            (Some("POST"), []) => kept.extend(record.get("body").and_then(set_by)),
            (Some("DELETE"), [name]) => drop(kept.remove(name)),
            _ => {}
        }
    }
    kept
}

fn set_by(body: &Value) -> Option<(&str, &str)> {
    body.get("name").and_then(Value::as_str).zip(body.get("value").and_then(Value::as_str))
}
