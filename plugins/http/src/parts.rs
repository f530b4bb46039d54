//! The pieces of a request that a runbook gives, and of an answer that it gets.

use std::borrow::Cow;
use std::collections::BTreeMap;

use farrier_action::text::FreeText;
use farrier_model::{Failure, FailureKind, Value};
use farrier_outbound::{Answer, Method, Query, Request, refused};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// Headers that a step may set. The others say who asks, or how the message is framed.
const HEADERS: [&str; 9] = [
    "accept",
    "accept-language",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-unmodified-since",
    "prefer",
    "range",
    "x-request-id",
];

/// Any tree of values; its texts may mix words and `${ }`.
#[derive(Debug, Clone)]
pub(crate) struct Tree(pub(crate) Value);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tree, D::Error> {
        Value::deserialize(deserializer).map(Tree)
    }
}

impl JsonSchema for Tree {
    fn schema_name() -> Cow<'static, str> {
        "tree".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let inner = generator.subschema_for::<Tree>();
        json_schema!({
            "anyOf": [
                { "type": "object", "additionalProperties": inner },
                { "type": "array", "items": inner },
                { "type": "integer" },
                { "type": "number" },
                { "type": "boolean" },
                { "type": "null" },
                { "type": "string", "x-farrier": "text" },
            ]
        })
    }
}

/// The path of a request: one text for each segment.
pub(crate) type Path = Vec<FreeText>;

/// Parameters by name.
pub(crate) type Params = BTreeMap<String, Value>;

/// Headers by name.
pub(crate) type Headers = BTreeMap<String, FreeText>;

/// What several actions give for a request.
pub(crate) struct Parts<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a Path,
    pub(crate) query: &'a Params,
    pub(crate) headers: &'a Headers,
    pub(crate) json: Option<&'a Tree>,
}

impl Parts<'_> {
    /// The request, every part checked.
    pub(crate) fn request(&self) -> Result<Request, Failure> {
        let mut query = Query::default();
        for (name, value) in self.query {
            query.add(name, value)?;
        }
        let mut request =
            Request::new(self.method, self.path.iter().map(|part| part.0.as_str()))?.query(query);
        for (name, value) in self.headers {
            if !HEADERS.iter().any(|allowed| name.eq_ignore_ascii_case(allowed)) {
                return Err(Failure::new(
                    FailureKind::Input,
                    format!("a step may not set the header {name:?}; it may set {}", HEADERS.join(", ")),
                )
                .help("credentials belong into `read_as` and `write_as` of the target"));
            }
            request = request.header(name, header_value(&format!("headers.{name}"), &value.0)?);
        }
        if let Some(tree) = self.json {
            request = request.json(&tree.0);
        }
        Ok(request)
    }

    /// The parts for a plan, those that are there.
    pub(crate) fn shown(&self) -> Vec<(&'static str, Value)> {
        let mut shown = Vec::new();
        if !self.query.is_empty() {
            shown.push(("query", Value::map(self.query.iter().map(|(k, v)| (k.as_str(), v.clone())))));
        }
        if !self.headers.is_empty() {
            let headers = self.headers.iter().map(|(name, text)| (name.as_str(), Value::text(&*text.0)));
            shown.push(("headers", Value::map(headers)));
        }
        shown.extend(self.json.map(|tree| ("json", tree.0.clone())));
        shown
    }
}

/// Text that can stand in a header: visible ASCII and spaces, so that it ends where it ends.
pub(crate) fn header_value(field: &str, text: &str) -> Result<String, Failure> {
    if text.len() <= 1000 && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Ok(text.to_owned());
    }
    Err(Failure::new(
        FailureKind::Input,
        format!("`{field}` is {text:?}; a header holds visible ASCII characters alone, at most 1,000"),
    ))
}

/// An answer, as later steps see it.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Answered {
    /// The status code.
    pub(crate) status: u16,
    /// The headers, by lower-case name.
    pub(crate) headers: BTreeMap<String, String>,
    /// The body as a tree; none when it is not JSON.
    #[schemars(with = "serde_json::Value")]
    pub(crate) json: Value,
    /// The body as text.
    pub(crate) text: String,
}

impl Answered {
    /// An answer with one of the statuses in `ok`; without a list, those from 200 to 299.
    pub(crate) fn judge(request: &Request, answer: Answer, ok: Option<&[u16]>) -> Result<Answered, Failure> {
        let good = ok.map_or(answer.is_success(), |ok| ok.contains(&answer.status));
        if !good {
            return Err(refused(request, &answer));
        }
        Ok(Answered {
            status: answer.status,
            json: answer.json().unwrap_or_default(),
            text: answer.text(),
            headers: answer.headers,
        })
    }
}

/// The schema of parameters: any name, simple values.
pub(crate) fn params_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "additionalProperties": true })
}
