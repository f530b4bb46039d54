//! Objects: how steps name them, how outputs show them, and how two states of one are compared.

use std::collections::BTreeMap;

use farrier_model::{Failure, FailureKind, Value};
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use crate::cluster::{Cluster, Kind, is_missing, read_failure};

/// An object of a cluster.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Object {
    /// Its kind.
    pub(crate) kind: String,
    /// Its name.
    pub(crate) name: String,
    /// Its namespace; empty for kinds that have none.
    pub(crate) namespace: String,
    /// Its identity: another object of the same name has another one.
    pub(crate) uid: String,
    /// When it was made, RFC 3339.
    pub(crate) created: String,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Its annotations.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Whether it does what it is for: a node or pod whose condition `Ready` holds, a workload all of whose pods are
    /// ready, a job that has succeeded. Other kinds are ready while their condition `Ready` does not say otherwise.
    pub(crate) ready: bool,
    /// Whether it is on its way out.
    pub(crate) deleting: bool,
    /// Its phase (`Running`, `Active`), empty for kinds that have none.
    pub(crate) phase: String,
    /// The node that a pod runs on; empty otherwise.
    pub(crate) node: String,
    /// Whether a node takes no new pods; false otherwise.
    pub(crate) unschedulable: bool,
    /// The whole object, as the server has it. Values of secrets are left out: there, `data` has its keys only.
    #[schemars(schema_with = "any")]
    pub(crate) manifest: Value,
}

fn any(_: &mut SchemaGenerator) -> Schema {
    json_schema!({})
}

/// A tree of an input: an object's manifest, or a part of one.
pub(crate) fn tree(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "additionalProperties": true })
}

impl Object {
    /// What steps see of an object.
    pub(crate) fn of(kind: &Kind, object: &DynamicObject) -> Result<Object, Failure> {
        let mut manifest = to_json(object)?;
        manifest["apiVersion"] = kind.resource.api_version.clone().into();
        manifest["kind"] = kind.resource.kind.clone().into();
        let text = |path: &str| manifest.pointer(path).and_then(Json::as_str).unwrap_or_default().to_owned();
        let (created, phase, node) =
            (text("/metadata/creationTimestamp"), text("/status/phase"), text("/spec/nodeName"));
        let ready = is_ready(&kind.resource.kind, &manifest);
        let unschedulable = manifest.pointer("/spec/unschedulable") == Some(&Json::Bool(true));
        if let Some(metadata) = manifest["metadata"].as_object_mut() {
            metadata.shift_remove("managedFields");
        }
        hide(&kind.resource.kind, &mut manifest);
        Ok(Object {
            kind: kind.resource.kind.clone(),
            name: object.name_any(),
            namespace: object.namespace().unwrap_or_default(),
            uid: object.uid().unwrap_or_default(),
            created,
            labels: object.labels().clone(),
            annotations: object.annotations().clone(),
            ready,
            deleting: object.metadata.deletion_timestamp.is_some(),
            phase,
            node,
            unschedulable,
            manifest: to_value(&manifest)?,
        })
    }
}

/// An object as JSON.
pub(crate) fn to_json(object: &DynamicObject) -> Result<Json, Failure> {
    serde_json::to_value(object)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("an object cannot be read: {error}")))
}

/// JSON as a value.
pub(crate) fn to_value(json: &Json) -> Result<Value, Failure> {
    Value::of(json)
        .map_err(|error| Failure::new(FailureKind::Refused, format!("an object cannot be read: {error}")))
}

/// A value as JSON.
pub(crate) fn from_value(value: &Value) -> Result<Json, Failure> {
    serde_json::to_value(value)
        .map_err(|error| Failure::new(FailureKind::Input, format!("a tree cannot be read: {error}")))
}

/// Takes the values of a secret out: they are never data of a run.
pub(crate) fn hide(kind: &str, object: &mut Json) {
    if kind != "Secret" {
        return;
    }
    for field in ["data", "stringData"] {
        for value in object.get_mut(field).and_then(Json::as_object_mut).into_iter().flat_map(Map::values_mut)
        {
            *value = Json::Null;
        }
    }
    if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Json::as_object_mut) {
        // kubectl keeps the whole object there.
        annotations.shift_remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

/// Whether an object does what it is for.
pub(crate) fn is_ready(kind: &str, object: &Json) -> bool {
    let number = |path: &str| object.pointer(path).and_then(Json::as_i64).unwrap_or(0);
    let condition = |name: &str| {
        object
            .pointer("/status/conditions")
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == name)
            .map(|condition| condition["status"] == "True")
    };
    let observed = number("/status/observedGeneration") >= number("/metadata/generation");
    match kind {
        "Deployment" | "StatefulSet" | "ReplicaSet" => {
            let wanted = object.pointer("/spec/replicas").and_then(Json::as_i64).unwrap_or(1);
            let updated = kind == "ReplicaSet" || number("/status/updatedReplicas") >= wanted;
            observed
                && updated
                && number("/status/readyReplicas") >= wanted
                && number("/status/replicas") == wanted
        }
        "DaemonSet" => {
            let wanted = number("/status/desiredNumberScheduled");
            observed
                && number("/status/updatedNumberScheduled") >= wanted
                && number("/status/numberReady") >= wanted
        }
        "Job" => condition("Complete") == Some(true),
        "Node" | "Pod" => condition("Ready") == Some(true),
        "Namespace" => object.pointer("/status/phase").is_none_or(|phase| phase == "Active"),
        _ => condition("Ready") != Some(false),
    }
}

/// The name of an object in changes: `Pod tool-example/web-1`, `Node worker-3`.
pub(crate) fn title(kind: &Kind, namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) if kind.namespaced => format!("{} {namespace}/{name}", kind.resource.kind),
        _ => format!("{} {name}", kind.resource.kind),
    }
}

/// Which object a step means.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    pub(crate) kind: Kind,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

impl Named {
    /// Checks a name before anything is asked.
    pub(crate) async fn of(
        cluster: &Cluster,
        kind: &str,
        api_version: Option<&str>,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Named, Failure> {
        check_name("name", name)?;
        check_kind(kind)?;
        if let Some(namespace) = namespace {
            check_name("namespace", namespace)?;
        }
        let kind = cluster.kind(kind, api_version).await?;
        let input = |message: String| Failure::new(FailureKind::Input, message);
        match (kind.namespaced, namespace) {
            (true, None) => Err(input(format!("a `{}` is in a namespace; say which", kind.resource.kind))),
            (false, Some(_)) => Err(input(format!("a `{}` is in no namespace", kind.resource.kind))),
            _ => Ok(Named { kind, namespace: namespace.map(str::to_owned), name: name.to_owned() }),
        }
    }

    /// Its name in changes.
    pub(crate) fn title(&self) -> String {
        title(&self.kind, self.namespace.as_deref(), &self.name)
    }

    /// The objects of its kind, in its namespace.
    pub(crate) fn api(&self, cluster: &Cluster) -> kube::Api<DynamicObject> {
        cluster.api(&self.kind, self.namespace.as_deref())
    }

    /// The object; nothing when there is none.
    pub(crate) async fn find(&self, cluster: &Cluster) -> Result<Option<DynamicObject>, Failure> {
        match self.api(cluster).get(&self.name).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(read_failure(&error, &format!("cannot read {}", self.title()))),
        }
    }

    /// The object, which must be there.
    pub(crate) async fn get(&self, cluster: &Cluster) -> Result<DynamicObject, Failure> {
        self.find(cluster)
            .await?
            .ok_or_else(|| Failure::new(FailureKind::Refused, format!("there is no {}", self.title())))
    }
}

/// A name becomes a part of a path, so it must be nothing else.
pub(crate) fn check_name(field: &str, name: &str) -> Result<(), Failure> {
    let fits = !name.is_empty()
        && name.len() <= 253
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':'))
        && !matches!(name, "." | "..");
    if fits {
        return Ok(());
    }
    Err(Failure::new(FailureKind::Input, format!("`{field}`: {name:?} is not the name of an object")))
}

/// A kind is a word such as `Deployment`.
pub(crate) fn check_kind(kind: &str) -> Result<(), Failure> {
    if !kind.is_empty() && kind.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Ok(());
    }
    Err(Failure::new(FailureKind::Input, format!("`kind`: {kind:?} is not the name of a kind")))
}

/// What tells an object from all others that had its name.
pub(crate) fn uid(object: &DynamicObject) -> String {
    object.metadata.uid.clone().unwrap_or_default()
}

/// An object without what the server keeps for itself.
pub(crate) fn without_bookkeeping(object: &Json) -> Json {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.shift_remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Json::as_object_mut) {
        for field in
            ["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink"]
        {
            metadata.shift_remove(field);
        }
    }
    object
}

/// The parts in which two states differ, each with the same fields; null stands for what is not there.
pub(crate) fn difference(before: &Json, after: &Json) -> Option<(Json, Json)> {
    if before == after {
        return None;
    }
    let (Json::Object(old), Json::Object(new)) = (before, after) else {
        return Some((before.clone(), after.clone()));
    };
    let mut keys: Vec<&String> = old.keys().collect();
    keys.extend(new.keys().filter(|key| !old.contains_key(*key)));
    let (mut from, mut to) = (Map::new(), Map::new());
    for key in keys {
        let (old, new) = (old.get(key).unwrap_or(&Json::Null), new.get(key).unwrap_or(&Json::Null));
        if let Some((old, new)) = difference(old, new) {
            from.insert(key.clone(), old);
            to.insert(key.clone(), new);
        }
    }
    Some((Json::Object(from), Json::Object(to)))
}

/// The paths at which an object is not as recorded.
pub(crate) fn deviations(recorded: &Json, object: &Json) -> Vec<String> {
    let mut paths = Vec::new();
    deviate(recorded, object, "", &mut paths);
    paths
}

fn deviate(recorded: &Json, object: &Json, path: &str, paths: &mut Vec<String>) {
    match (recorded, object) {
        (Json::Object(recorded), _) if object.is_object() || object.is_null() => {
            for (key, value) in recorded {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                deviate(value, object.get(key).unwrap_or(&Json::Null), &path, paths);
            }
        }
        // An empty map or list is as good as none.
        (recorded, object) if recorded == object || (is_empty(recorded) && is_empty(object)) => {}
        _ => paths.push(path.to_owned()),
    }
}

fn is_empty(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Object(map) => map.is_empty(),
        Json::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// A merge patch to a recorded state, tied to the version that was just read.
pub(crate) fn tied_patch(recorded: &Json, live: &DynamicObject) -> Json {
    let mut patch = recorded.clone();
    if !patch["metadata"].is_object() {
        patch["metadata"] = json!({});
    }
    patch["metadata"]["resourceVersion"] = live.metadata.resource_version.clone().into();
    patch
}
