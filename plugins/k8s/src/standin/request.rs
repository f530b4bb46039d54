//! A request as the stand-in sees it: which resource, which object, with which parameters.

use serde_json::Value as Json;

use super::kinds::{KINDS, Kind};
use super::status::Refusal;

/// What is asked, apart from the path.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) content_type: String,
    pub(crate) body: Vec<u8>,
}

/// Which part of the cluster a path means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) kind: usize,
    pub(crate) namespace: String,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

impl Route {
    /// Reads a path; nothing when it means nothing here.
    pub(crate) fn parse(path: &[&str]) -> Option<Route> {
        let (group, version, rest) = match path {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, resource, rest @ ..] if !matches!(*resource, "status" | "finalize") => {
                (*namespace, [&[*resource], rest].concat())
            }
            rest => ("", rest.to_vec()),
        };
        let (plural, name, subresource) = match rest.as_slice() {
            [plural] => (*plural, None, None),
            [plural, name] => (*plural, Some((*name).to_owned()), None),
            [plural, name, subresource] => {
                (*plural, Some((*name).to_owned()), Some((*subresource).to_owned()))
            }
            _ => return None,
        };
        let kind = KINDS
            .iter()
            .position(|kind| kind.group == group && kind.version == version && kind.plural == plural)?;
        let of = &KINDS[kind];
        // A namespaced object is reached through its namespace; what has none is not.
        if namespace.is_empty() == of.namespaced && (name.is_some() || !of.namespaced) {
            return None;
        }
        let known = match subresource.as_deref() {
            None => true,
            Some("status") => of.status,
            Some("scale") => of.scale,
            Some("eviction" | "log") => of.kind == "Pod",
            Some("finalize") => of.kind == "Namespace",
            Some(_) => false,
        };
        known.then(|| Route { kind, namespace: namespace.to_owned(), name, subresource })
    }

    /// Its kind.
    pub(crate) fn kind(&self) -> &'static Kind {
        &KINDS[self.kind]
    }
}

impl Request {
    /// A parameter of the query.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, value)| key == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// Whether a parameter says yes.
    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.parameter(name), Some("true" | "1"))
    }

    /// A parameter that is a number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        self.parameter(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| Refusal::bad_request(format!("invalid value for {name}: \"{text}\"")))
            })
            .transpose()
    }

    /// Whether nothing is to be stored, by the query or by the options in the body.
    pub(crate) fn dry_run(&self, options: Option<&Json>) -> Result<bool, Refusal> {
        let body: Vec<&str> =
            options.map(|options| super::world::texts(options, &["dryRun"])).unwrap_or_default();
        let query = self.query.iter().filter(|(key, _)| key == "dryRun").map(|(_, value)| value.as_str());
        let mut dry = false;
        for value in query.chain(body) {
            match value {
                "" => {}
                "All" => dry = true,
                other => {
                    return Err(Refusal::bad_request(format!(
                        "dryRun: Unsupported value: \"{other}\": supported values: \"All\""
                    )));
                }
            }
        }
        Ok(dry)
    }

    /// Who writes.
    pub(crate) fn manager(&self) -> Result<&str, Refusal> {
        let manager = self.parameter("fieldManager").unwrap_or("unknown");
        if manager.len() > 128 || manager.chars().any(|c| !(' '..='~').contains(&c)) {
            return Err(Refusal::bad_request(
                "fieldManager: Invalid value: may not be more than 128 bytes or contain characters that cannot be printed",
            ));
        }
        Ok(manager)
    }

    /// The body as JSON; server-side apply sends YAML, of which JSON is a part.
    pub(crate) fn json(&self) -> Result<Json, Refusal> {
        let yaml = self.content_type.contains("yaml");
        let read = serde_json::from_slice(&self.body).map_err(|error| error.to_string());
        let read = match (read, yaml) {
            (Err(_), true) => std::str::from_utf8(&self.body)
                .map_err(|error| error.to_string())
                .and_then(|text| serde_saphyr::from_str(text).map_err(|error| error.to_string())),
            (read, _) => read,
        };
        read.map_err(|error| Refusal::bad_request(format!("the object provided is not readable: {error}")))
    }
}
