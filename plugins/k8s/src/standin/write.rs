//! Create, update, patch: every way to an object's next state ends in [`store`].

use farrier_model::time::Timestamp;
use serde_json::{Value as Json, json};

use super::apply::{self, Writer};
use super::kinds::Kind;
use super::meta;
use super::patch;
use super::request::{Request, Route};
use super::status::{Cause, Refusal};
use super::world::{Key, World, at, is_deleting, stamp, text, texts};

/// An answer with a body.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Json,
    /// What the server took note of and did not refuse.
    pub(crate) warnings: Vec<String>,
}

impl Answer {
    /// A plain success.
    pub(crate) fn ok(body: Json) -> Answer {
        Answer { code: 200, body, warnings: Vec::new() }
    }
}

/// `POST` on a collection.
pub(crate) fn create(
    world: &mut World,
    route: &Route,
    request: &Request,
    now: Timestamp,
) -> Result<Answer, Refusal> {
    let kind = route.kind();
    let mut object = request.json()?;
    let warnings = decode(kind, &mut object, request)?;
    if at(&object, &["metadata", "resourceVersion"])
        .and_then(Json::as_str)
        .is_some_and(|text| !text.is_empty())
    {
        return Err(Refusal::internal("resourceVersion should not be set on objects to be created"));
    }
    let mut name = text(&object, &["metadata", "name"]).unwrap_or_default().to_owned();
    if let Some(base) = text(&object, &["metadata", "generateName"]).filter(|_| name.is_empty()) {
        name = format!("{base}{}", meta::suffix(base, world.revision));
    }
    let key = in_namespace(route, &name, &object)?;
    object["metadata"]["name"] = name.into();
    let object = create_at(world, &key, object, Some(writer(kind, request, "", now)?), now)?;
    Ok(Answer { code: 201, body: object, warnings })
}

/// Adds a new object.
pub(crate) fn create_at(
    world: &mut World,
    key: &Key,
    mut object: Json,
    writer: Option<Writer<'_>>,
    now: Timestamp,
) -> Result<Json, Refusal> {
    let kind = key.kind();
    if kind.namespaced {
        let namespace = Key::namespace(&key.namespace);
        let Some(found) = world.get(&namespace) else {
            return Err(Refusal::not_found(namespace.kind(), &key.namespace));
        };
        if is_deleting(found) {
            let detail = format!(
                "unable to create new content in namespace {} because it is being terminated",
                key.namespace
            );
            let cause = format!("namespace {} is being terminated", key.namespace);
            let cause = Cause::other("NamespaceTerminating", cause, "metadata.namespace");
            return Err(Refusal::forbidden(kind, &key.name, &detail, &[cause]));
        }
    }
    meta::born(key, &mut object, world.revision + 1, now);
    // A node is registered together with its state; everything else starts without.
    if kind.status && kind.kind != "Node" {
        // The mark by which controllers tell what a client made from what the files hold.
        let status = match kind.kind {
            "Deployment" | "ReplicaSet" | "StatefulSet" => Some(json!({ "observedGeneration": 0 })),
            "Job" => Some(json!({ "startTime": stamp(now) })),
            _ => kind.generation.then(|| json!({})),
        };
        set(&mut object, "status", status);
    }
    meta::default(kind, &mut object);
    if kind.kind == "Job" {
        label_job(&mut object);
    }
    let causes = meta::validate(kind, &object);
    if !causes.is_empty() {
        return Err(Refusal::invalid(kind, &key.name, &causes));
    }
    if kind.namespaced {
        super::quota::admit(world, key, &object)?;
    }
    if world.get(key).is_some() {
        return Err(Refusal::already_exists(kind, &key.name));
    }
    if let Some(writer) = writer {
        apply::record_update(&Json::Null, &mut object, writer);
    }
    Ok((*world.put(key, object, now)).clone())
}

/// A job chooses its pods by its own identity.
fn label_job(job: &mut Json) {
    let uid = job["metadata"]["uid"].clone();
    let name = job["metadata"]["name"].clone();
    if at(job, &["spec", "selector"]).is_none() {
        job["spec"]["selector"] = json!({ "matchLabels": { "batch.kubernetes.io/controller-uid": uid } });
    }
    for (label, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        job["spec"]["template"]["metadata"]["labels"][label] = value.clone();
    }
}

/// `PUT` on an object or its status.
pub(crate) fn update(
    world: &mut World,
    route: &Route,
    request: &Request,
    now: Timestamp,
) -> Result<Answer, Refusal> {
    let kind = route.kind();
    let mut object = request.json()?;
    let warnings = decode(kind, &mut object, request)?;
    let subresource = route.subresource.as_deref().unwrap_or_default();
    let name = route.name.as_deref().unwrap_or_default();
    match text(&object, &["metadata", "name"]) {
        None | Some("") => return Err(Refusal::bad_request("name must be provided")),
        Some(given) if given != name => {
            return Err(Refusal::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        Some(_) => {}
    }
    let key = in_namespace(route, name, &object)?;
    let old = world.get(&key).cloned().ok_or_else(|| Refusal::not_found(kind, name))?;
    let object =
        store(world, &key, &old, object, subresource, Some(writer(kind, request, subresource, now)?), now)?;
    Ok(Answer { code: 200, body: object, warnings })
}

/// `PATCH` on an object or its status.
pub(crate) fn patch(
    world: &mut World,
    route: &Route,
    request: &Request,
    now: Timestamp,
) -> Result<Answer, Refusal> {
    let kind = route.kind();
    let subresource = route.subresource.as_deref().unwrap_or_default();
    let name = route.name.as_deref().unwrap_or_default();
    let key = Key::new(route.kind, &route.namespace, name);
    let content_type = request.content_type.split(';').next().unwrap_or_default().trim();
    if content_type == "application/apply-patch+yaml" {
        return apply_patch(world, &key, request, subresource, now);
    }
    let old = world.get(&key).cloned().ok_or_else(|| Refusal::not_found(kind, name))?;
    let mut object = (*old).clone();
    let body = request.json()?;
    match content_type {
        "application/merge-patch+json" => patch::merge(&mut object, &body),
        "application/json-patch+json" => patch::operations(&mut object, body)?,
        "application/strategic-merge-patch+json" => patch::strategic(&mut object, &body)?,
        other => {
            return Err(Refusal::media_type(
                other,
                "application/json-patch+json, application/merge-patch+json, \
                 application/strategic-merge-patch+json, application/apply-patch+yaml",
            ));
        }
    }
    let warnings = decode(kind, &mut object, request)?;
    let changed = |field: &str| object["metadata"][field] != old["metadata"][field];
    if changed("name") || changed("namespace") {
        return Err(Refusal::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            text(&object, &["metadata", "name"]).unwrap_or_default()
        )));
    }
    if changed("uid") && !changed("resourceVersion") {
        let cause = Cause::invalid("metadata.uid", &object["metadata"]["uid"], "field is immutable");
        return Err(Refusal::invalid(kind, name, &[cause]));
    }
    let object =
        store(world, &key, &old, object, subresource, Some(writer(kind, request, subresource, now)?), now)?;
    Ok(Answer { code: 200, body: object, warnings })
}

fn apply_patch(
    world: &mut World,
    key: &Key,
    request: &Request,
    subresource: &str,
    now: Timestamp,
) -> Result<Answer, Refusal> {
    let kind = key.kind();
    if request.parameter("fieldManager").is_none() {
        let mut refusal = Refusal::bad_request("");
        refusal.code = 422;
        refusal.reason = "Invalid";
        refusal.message = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch".into();
        refusal.details = json!({
            "group": "meta.k8s.io", "kind": "PatchOptions",
            "causes": [{ "reason": "FieldValueRequired", "message": "Required value: is required for apply patch", "field": "fieldManager" }],
        });
        return Err(refusal);
    }
    let mut config = request.json()?;
    for (field, wanted) in [("apiVersion", kind.api_version()), ("kind", kind.kind.to_owned())] {
        match text(&config, &[field]) {
            Some(given) if given == wanted => {}
            given => {
                let given = given.unwrap_or_default();
                return Err(Refusal::bad_request(format!(
                    "the {field} in the body ({given}) does not match that of the URL ({wanted})"
                )));
            }
        }
    }
    for (field, wanted) in [("name", &key.name), ("namespace", &key.namespace)] {
        if text(&config, &["metadata", field]).is_some_and(|given| given != wanted) {
            return Err(Refusal::bad_request(format!(
                "the {field} of the object ({}) does not match the {field} on the URL ({wanted})",
                text(&config, &["metadata", field]).unwrap_or_default()
            )));
        }
    }
    if at(&config, &["metadata", "managedFields"])
        .and_then(Json::as_array)
        .is_some_and(|list| !list.is_empty())
    {
        return Err(Refusal::bad_request("metadata.managedFields must be nil"));
    }
    let unknown = prune(kind, &mut config)?;
    if let Some(first) = unknown.first() {
        let place = format!("{}/{}; {}, Kind={}", key.namespace, key.name, kind.api_version(), kind.kind);
        let mut refusal = Refusal::internal("");
        refusal.reason = "";
        refusal.details = Json::Null;
        refusal.message =
            format!("failed to create typed patch object ({place}): .{first}: field not declared in schema");
        return Err(refusal);
    }
    let writer = writer(kind, request, subresource, now)?;
    let force = request.flag("force");
    let Some(old) = world.get(key).cloned() else {
        if !subresource.is_empty() {
            return Err(Refusal::not_found(kind, &key.name));
        }
        if let Some(uid) = text(&config, &["metadata", "uid"]) {
            let detail = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(Refusal::conflict(kind, &key.name, &detail));
        }
        // A version in the body asks for an object that is there.
        if at(&config, &["metadata", "resourceVersion"]).is_some() {
            return Err(Refusal::not_found(kind, &key.name));
        }
        let object = apply::apply(&Json::Null, &config, force, writer)?;
        let object = create_at(world, key, object, None, now)?;
        return Ok(Answer { code: 201, body: object, warnings: Vec::new() });
    };
    same_version(kind, &key.name, &old, &config)?;
    let object = apply::apply(&old, &config, force, writer)?;
    let object = store(world, key, &old, object, subresource, None, now)?;
    Ok(Answer::ok(object))
}

/// The next state of an object. Nothing changes, the version included, when it is as it was.
pub(crate) fn store(
    world: &mut World,
    key: &Key,
    old: &Json,
    mut new: Json,
    subresource: &str,
    writer: Option<Writer<'_>>,
    now: Timestamp,
) -> Result<Json, Refusal> {
    let kind = key.kind();
    same_version(kind, &key.name, old, &new)?;
    match subresource {
        "status" => {
            let (status, managed) =
                (new.get("status").cloned(), new["metadata"].get("managedFields").cloned());
            new = old.clone();
            set(&mut new, "status", status);
            set(&mut new["metadata"], "managedFields", managed);
        }
        "finalize" => {
            let finalizers = at(&new, &["spec", "finalizers"]).cloned();
            new = old.clone();
            set(&mut new["spec"], "finalizers", finalizers);
        }
        _ if kind.status => {
            let status = old.get("status").cloned();
            set(&mut new, "status", status);
        }
        _ => {}
    }
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
    ] {
        let value = old["metadata"].get(field).cloned();
        set(&mut new["metadata"], field, value);
    }
    if subresource != "finalize" && kind.kind == "Namespace" {
        // Only `finalize` changes them.
        set(&mut new["spec"], "finalizers", at(old, &["spec", "finalizers"]).cloned());
    }
    meta::default(kind, &mut new);
    let mut causes = meta::validate(kind, &new);
    causes.extend(immutable(kind, old, &new));
    if !causes.is_empty() {
        return Err(Refusal::invalid(kind, &key.name, &causes));
    }
    if kind.generation && new.get("spec") != old.get("spec") {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
        new["metadata"]["generation"] = (generation + 1).into();
    }
    if let Some(writer) = writer {
        apply::record_update(old, &mut new, writer);
    }
    if new == *old {
        return Ok(new);
    }
    // The last finalizer was removed from an object that only waited for it.
    let waits = kind.kind == "Pod" && old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) > 0;
    let stored = (*world.put(key, new, now)).clone();
    if is_deleting(&stored) && !waits && no_finalizers(kind, &stored) {
        world.remove(key, now);
    }
    Ok(stored)
}

/// Whether nothing holds a deleted object back.
pub(crate) fn no_finalizers(kind: &Kind, object: &Json) -> bool {
    texts(object, &["metadata", "finalizers"]).is_empty()
        && (kind.kind != "Namespace" || texts(object, &["spec", "finalizers"]).is_empty())
}

fn set(object: &mut Json, field: &str, value: Option<Json>) {
    match (object.as_object_mut(), value) {
        (Some(map), Some(value)) => {
            map.insert(field.to_owned(), value);
        }
        (Some(map), None) => {
            map.shift_remove(field);
        }
        (None, _) => {}
    }
}

/// Compares the version and the identity that a write names with those that are.
fn same_version(kind: &Kind, name: &str, old: &Json, new: &Json) -> Result<(), Refusal> {
    let given = |field: &str| text(new, &["metadata", field]).filter(|text| !text.is_empty());
    if let Some(uid) = given("uid")
        && old["metadata"]["uid"] != uid
    {
        let detail = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            text(old, &["metadata", "uid"]).unwrap_or_default()
        );
        return Err(Refusal::conflict(kind, name, &detail));
    }
    match given("resourceVersion") {
        Some(version) if version.parse::<u64>().is_err() => {
            let cause = Cause::invalid("metadata.resourceVersion", &version.into(), "must be a number");
            Err(Refusal::invalid(kind, name, &[cause]))
        }
        Some(version) if old["metadata"]["resourceVersion"] != version => Err(Refusal::stale(kind, name)),
        _ => Ok(()),
    }
}

/// What may not change any more.
fn immutable(kind: &Kind, old: &Json, new: &Json) -> Vec<Cause> {
    let mut causes = Vec::new();
    if is_deleting(old) {
        let before = texts(old, &["metadata", "finalizers"]);
        let added: Vec<&str> = texts(new, &["metadata", "finalizers"])
            .into_iter()
            .filter(|finalizer| !before.contains(finalizer))
            .collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{\"{}\"}}",
                added.join("\", \"")
            );
            causes.push(Cause::forbidden("metadata.finalizers", &detail));
        }
    }
    let mut fixed = |path: &[&str]| {
        if at(old, path) != at(new, path) {
            let value = at(new, path).cloned().unwrap_or_default();
            causes.push(Cause::invalid(path.join("."), &value, "field is immutable"));
        }
    };
    match kind.kind {
        "Deployment" | "ReplicaSet" | "DaemonSet" => fixed(&["spec", "selector"]),
        "Job" => {
            for field in ["completions", "selector", "template"] {
                fixed(&["spec", field]);
            }
        }
        "Secret" => fixed(&["type"]),
        "RoleBinding" if old.get("roleRef") != new.get("roleRef") => {
            causes.push(Cause::invalid("roleRef", &new["roleRef"], "cannot change roleRef"));
        }
        "StatefulSet" => {
            let rest = |object: &Json| {
                let mut spec = object["spec"].clone();
                for free in [
                    "replicas",
                    "ordinals",
                    "template",
                    "updateStrategy",
                    "persistentVolumeClaimRetentionPolicy",
                    "minReadySeconds",
                ] {
                    set(&mut spec, free, None);
                }
                spec
            };
            if rest(old) != rest(new) {
                causes.push(Cause::forbidden("spec", "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"));
            }
        }
        "Pod" => {
            let rest = |object: &Json| {
                let mut spec = object["spec"].clone();
                for free in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"] {
                    set(&mut spec, free, None);
                }
                for list in ["containers", "initContainers"] {
                    for container in spec.get_mut(list).and_then(Json::as_array_mut).into_iter().flatten() {
                        set(container, "image", None);
                    }
                }
                spec
            };
            if rest(old) != rest(new) {
                causes.push(Cause::forbidden("spec", "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"));
            }
        }
        _ => {}
    }
    causes
}

/// Reads a body as an object of a kind: types are checked, unknown fields go with a warning, or are refused when the
/// client asks for that.
fn decode(kind: &Kind, object: &mut Json, request: &Request) -> Result<Vec<String>, Refusal> {
    let Some(map) = object.as_object_mut() else {
        return Err(Refusal::bad_request("the object provided is not a map"));
    };
    for (field, wanted) in [("apiVersion", kind.api_version()), ("kind", kind.kind.to_owned())] {
        match map.get(field).and_then(Json::as_str).unwrap_or_default() {
            "" => {
                map.insert(field.to_owned(), wanted.into());
            }
            given if given != wanted => {
                return Err(Refusal::bad_request(format!(
                    "the {field} in the data ({given}) does not match the expected {field} ({wanted})"
                )));
            }
            _ => {}
        }
    }
    let unknown = prune(kind, object)?;
    let unknown: Vec<String> = unknown.into_iter().map(|path| format!("unknown field \"{path}\"")).collect();
    if !unknown.is_empty() && request.parameter("fieldValidation") == Some("Strict") {
        return Err(unreadable(kind, &format!("strict decoding error: {}", unknown.join(", "))));
    }
    Ok(if request.parameter("fieldValidation") == Some("Ignore") { Vec::new() } else { unknown })
}

fn prune(kind: &Kind, object: &mut Json) -> Result<Vec<String>, Refusal> {
    kind.prune(object).map_err(|error| unreadable(kind, &error))
}

fn unreadable(kind: &Kind, detail: &str) -> Refusal {
    Refusal::bad_request(format!(
        "{} in version \"{}\" cannot be handled as a {}: {detail}",
        kind.kind, kind.version, kind.kind
    ))
}

fn in_namespace(route: &Route, name: &str, object: &Json) -> Result<Key, Refusal> {
    match text(object, &["metadata", "namespace"]) {
        Some(given) if !given.is_empty() && given != route.namespace => Err(Refusal::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
        _ => Ok(Key::new(route.kind, &route.namespace, name)),
    }
}

/// Who writes by this request.
pub(crate) fn writer<'a>(
    kind: &'static Kind,
    request: &'a Request,
    subresource: &'a str,
    now: Timestamp,
) -> Result<Writer<'a>, Refusal> {
    let api_version = match kind.group {
        "" => "v1",
        "apps" => "apps/v1",
        "batch" => "batch/v1",
        "policy" => "policy/v1",
        "networking.k8s.io" => "networking.k8s.io/v1",
        _ => "rbac.authorization.k8s.io/v1",
    };
    Ok(Writer { manager: request.manager()?, api_version, subresource, now })
}

/// `GET`, `PUT` and `PATCH` on the scale of an object.
pub(crate) fn scale(
    world: &mut World,
    route: &Route,
    request: &Request,
    now: Timestamp,
) -> Result<Answer, Refusal> {
    let kind = route.kind();
    let name = route.name.as_deref().unwrap_or_default();
    let key = Key::new(route.kind, &route.namespace, name);
    let old = world.get(&key).cloned().ok_or_else(|| Refusal::not_found(kind, name))?;
    if request.method == "GET" {
        return Ok(Answer::ok(scale_of(&old)));
    }
    let mut scale = scale_of(&old);
    let body = request.json()?;
    match (request.method.as_str(), request.content_type.split(';').next().unwrap_or_default()) {
        ("PUT", _) => scale = body,
        (_, "application/json-patch+json") => patch::operations(&mut scale, body)?,
        _ => patch::merge(&mut scale, &body),
    }
    super::kinds::check_scale(&scale).map_err(|error| {
        Refusal::bad_request(format!("Scale in version \"v1\" cannot be handled as a Scale: {error}"))
    })?;
    same_version(kind, name, &old, &scale)?;
    let replicas = at(&scale, &["spec", "replicas"]).cloned().unwrap_or_else(|| 0.into());
    if replicas.as_i64().is_none_or(|replicas| replicas < 0) {
        let cause = Cause::invalid("spec.replicas", &replicas, "must be greater than or equal to 0");
        let mut refusal = Refusal::invalid(kind, name, &[cause]);
        refusal.message = refusal.message.replacen(&kind.with_group(), "Scale.autoscaling", 1);
        return Err(refusal);
    }
    let mut new = (*old).clone();
    new["spec"]["replicas"] = replicas;
    let writer = writer(kind, request, "scale", now)?;
    let stored = store(world, &key, &old, new, "", Some(writer), now)?;
    Ok(Answer::ok(scale_of(&stored)))
}

fn scale_of(object: &Json) -> Json {
    let metadata = &object["metadata"];
    let selector = at(object, &["spec", "selector", "matchLabels"]).and_then(Json::as_object);
    let selector: Vec<String> = selector
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    // None is not written.
    let replicas = object["spec"]["replicas"].as_i64().filter(|replicas| *replicas != 0);
    let spec = replicas.map_or_else(|| json!({}), |replicas| json!({ "replicas": replicas }));
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": spec,
        "status": {
            "replicas": at(object, &["status", "replicas"]).cloned().unwrap_or_else(|| 0.into()),
            "selector": selector.join(","),
        },
    })
}
