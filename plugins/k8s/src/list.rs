//! `k8s.list`.

use std::collections::BTreeMap;

use farrier_action::{Action, Planned, ReadCx, Target};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, FailureKind, Value};
use kube::api::{DynamicObject, ListParams};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, Kind, read_failure, status};
use crate::object::{Object, check_kind, check_name};
use crate::target::Kubernetes;

/// Objects per request.
const PAGE: u32 = 500;

/// How often a list is begun again because the server forgot its first page.
const BEGINNINGS: usize = 3;

/// Lists objects of one kind.
///
/// The list is whole and of one moment, or the step fails. An empty list is an answer; say in `expect` when it must not
/// be.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct List {
    /// The cluster.
    target: Target<Kubernetes>,
    /// The kind: `Node`, `Pod`.
    kind: String,
    /// The API version (`apps/v1`), for kinds of which the cluster has several.
    #[serde(default)]
    api_version: Option<String>,
    /// One namespace. Left out, all of them.
    #[serde(default)]
    namespace: Option<String>,
    /// Labels with the values that they must have; a list stands for any of its values, null for any value at all.
    #[serde(default)]
    #[schemars(schema_with = "selector_schema")]
    selector: BTreeMap<String, Value>,
    /// Fields with the values that they must have, as far as the server knows them: `{ spec.nodeName: worker-3 }`.
    #[serde(default)]
    fields: BTreeMap<String, String>,
    /// More objects than this are an error.
    #[serde(default)]
    at_most: Option<usize>,
}

fn selector_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "additionalProperties": true })
}

/// What was found.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Listed {
    /// The objects, in order of namespace and name.
    items: Vec<Object>,
}

impl Action for List {
    const NAME: &'static str = "k8s.list";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
workers:
  uses: k8s.list
  with: { target: cluster, kind: Node, selector: { kubernetes.wmcloud.org/nfs-mounted: \"true\" } }
  expect:
    - that: result.items | selectattr('ready') | list | length >= 0.95 * (result.items | length)
      otherwise: under 95 % of the workers are ready
";

    type Output = Listed;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Listed>, Failure> {
        let params = self.params()?;
        let reader = cx.reader(&self.target).await?;
        self.list(&reader.cluster, params)
            .await
            .map(Planned::known)
            .map_err(|failure| failure.at(self.target.alias()))
    }
}

impl List {
    fn params(&self) -> Result<ListParams, Failure> {
        check_kind(&self.kind)?;
        if let Some(namespace) = &self.namespace {
            check_name("namespace", namespace)?;
        }
        let mut params = ListParams::default().limit(PAGE);
        if !self.selector.is_empty() {
            params = params.labels(&selector(&self.selector)?);
        }
        if !self.fields.is_empty() {
            let mut parts = Vec::new();
            for (field, value) in &self.fields {
                let plain = |text: &str| {
                    text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':'))
                };
                if field.is_empty() || !plain(field) || !plain(value) {
                    return Err(Failure::new(
                        FailureKind::Input,
                        format!("`fields`: {field:?} with {value:?} is not a field and its value"),
                    ));
                }
                parts.push(format!("{field}={value}"));
            }
            params = params.fields(&parts.join(","));
        }
        Ok(params)
    }

    async fn list(&self, cluster: &Cluster, params: ListParams) -> Result<Listed, Failure> {
        let kind = cluster.kind(&self.kind, self.api_version.as_deref()).await?;
        if self.namespace.is_some() && !kind.namespaced {
            let message = format!("a `{}` is in no namespace", kind.resource.kind);
            return Err(Failure::new(FailureKind::Input, message));
        }
        let found = all(cluster, &kind, self.namespace.as_deref(), params, self.at_most).await?;
        let items = found.iter().map(|object| Object::of(&kind, object)).collect::<Result<_, _>>()?;
        Ok(Listed { items })
    }
}

/// Every object that is chosen.
pub(crate) async fn all(
    cluster: &Cluster,
    kind: &Kind,
    namespace: Option<&str>,
    params: ListParams,
    at_most: Option<usize>,
) -> Result<Vec<DynamicObject>, Failure> {
    let api = cluster.api(kind, namespace);
    let doing = || format!("cannot list objects of the kind `{}`", kind.resource.kind);
    for _ in 0..BEGINNINGS {
        let mut found = Vec::new();
        let mut params = params.clone();
        loop {
            let page = match api.list(&params).await {
                Ok(page) => page,
                // The pages before are of a moment that the server remembers no longer.
                Err(error)
                    if params.continue_token.is_some()
                        && status(&error).is_some_and(|status| status.code == 410) =>
                {
                    break;
                }
                Err(error) => return Err(read_failure(&error, &doing())),
            };
            found.extend(page.items);
            if let Some(most) = at_most.filter(|most| found.len() > *most) {
                let message = format!("{}: there are more than {most}", doing());
                return Err(Failure::new(FailureKind::Limit, message));
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(found),
            }
        }
    }
    Err(Failure::new(
        FailureKind::Conflict,
        format!("{}: the server forgot the first page each time before the last was read", doing()),
    ))
}

/// A selector by labels. Keys and values are checked, so that none of them can say more than one label.
pub(crate) fn selector(labels: &BTreeMap<String, Value>) -> Result<String, Failure> {
    let mut parts = Vec::new();
    for (key, value) in labels {
        let wrong = |what: String| Failure::new(FailureKind::Input, format!("`selector.{key}`: {what}"));
        if !is_key(key) {
            return Err(wrong(format!("{key:?} is not the key of a label")));
        }
        let text = |value: &Value| match value {
            Value::Text(text) if is_value(text) => Ok(text.to_string()),
            Value::Bool(_) | Value::Int(_) => {
                Err(wrong(format!("the values of labels are text; write `\"{value}\"`")))
            }
            other => Err(wrong(format!("{} is not the value of a label", other.to_json()))),
        };
        parts.push(match value {
            Value::Null => key.clone(),
            Value::List(values) if values.is_empty() => return Err(wrong("the list is empty".into())),
            Value::List(values) => {
                let values = values.iter().map(text).collect::<Result<Vec<_>, _>>()?;
                format!("{key} in ({})", values.join(","))
            }
            value => format!("{key}={}", text(value)?),
        });
    }
    Ok(parts.join(","))
}

fn is_key(key: &str) -> bool {
    let (prefix, name) = key.rsplit_once('/').unwrap_or(("", key));
    let domain =
        prefix.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'));
    domain && !name.is_empty() && is_value(name)
}

fn is_value(value: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    value.is_empty()
        || (value.len() <= 63
            && value.starts_with(edge)
            && value.ends_with(edge)
            && value.chars().all(|c| edge(c) || matches!(c, '-' | '_' | '.')))
}
