//! Deletion: at once, after a pod's grace, or when the last finalizer is gone.

use farrier_model::time::Timestamp;
use serde_json::{Value as Json, json};

use super::read;
use super::request::{Request, Route};
use super::status::Refusal;
use super::world::{Key, World, at, is_deleting, stamp, text, texts, time_at};
use super::write::{Answer, no_finalizers};

/// What a deletion asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) grace: Option<i64>,
    propagation: Option<String>,
    uid: Option<String>,
    version: Option<String>,
}

impl Options {
    /// Dependents go first.
    pub(crate) fn foreground() -> Options {
        Options { propagation: Some("Foreground".into()), ..Options::default() }
    }

    /// Reads the options of the body, which may be empty, and of the query.
    pub(crate) fn read(request: &Request, body: &Json) -> Result<Options, Refusal> {
        let of_query = request.number("gracePeriodSeconds")?.map(|seconds| seconds as i64);
        let grace = at(body, &["gracePeriodSeconds"]).and_then(Json::as_i64).or(of_query);
        if grace.is_some_and(|grace| grace < 0) {
            return Err(Refusal::bad_request(
                "gracePeriodSeconds: Invalid value: must be greater than or equal to 0",
            ));
        }
        let own = |path: &[&str]| text(body, path).map(str::to_owned);
        let propagation =
            own(&["propagationPolicy"]).or_else(|| request.parameter("propagationPolicy").map(str::to_owned));
        if let Some(other) = &propagation
            && !matches!(other.as_str(), "Background" | "Foreground" | "Orphan")
        {
            let mut refusal = Refusal::bad_request("");
            refusal.code = 422;
            refusal.reason = "Invalid";
            refusal.message = format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"{other}\": \
                 supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
            );
            return Err(refusal);
        }
        Ok(Options {
            grace,
            propagation,
            uid: own(&["preconditions", "uid"]),
            version: own(&["preconditions", "resourceVersion"]),
        })
    }
}

/// `DELETE` on an object.
pub(crate) fn delete(
    world: &mut World,
    route: &Route,
    options: &Options,
    now: Timestamp,
) -> Result<Answer, Refusal> {
    let name = route.name.as_deref().unwrap_or_default();
    let key = Key::new(route.kind, &route.namespace, name);
    delete_at(world, &key, options, now)
}

/// `DELETE` on a collection.
pub(crate) fn delete_many(
    world: &mut World,
    route: &Route,
    request: &Request,
    options: &Options,
    now: Timestamp,
) -> Result<Answer, Refusal> {
    let list = read::list(world, route, request)?;
    for item in list.body["items"].as_array().into_iter().flatten() {
        let namespace = text(item, &["metadata", "namespace"]).unwrap_or_default();
        let name = text(item, &["metadata", "name"]).unwrap_or_default();
        delete_at(world, &Key::new(route.kind, namespace, name), options, now)?;
    }
    Ok(list)
}

/// Deletes an object.
pub(crate) fn delete_at(
    world: &mut World,
    key: &Key,
    options: &Options,
    now: Timestamp,
) -> Result<Answer, Refusal> {
    let kind = key.kind();
    let object = world.get(key).cloned().ok_or_else(|| Refusal::not_found(kind, &key.name))?;
    for (wanted, field, what, means) in [
        (&options.uid, "uid", "UID", "deleted and then recreated"),
        (&options.version, "resourceVersion", "ResourceVersion", "modified"),
    ] {
        let is = text(&object, &["metadata", field]).unwrap_or_default();
        if let Some(wanted) = wanted
            && wanted != is
        {
            let mut refusal = Refusal::conflict(kind, &key.name, "");
            refusal.message = format!(
                "Operation cannot be fulfilled on {} \"{}\": the {what} in the precondition ({wanted}) does not match \
                 the {what} in record ({is}). The object might have been {means}",
                kind.with_group(),
                key.name
            );
            return Err(refusal);
        }
    }
    if key.kind().kind == "Namespace"
        && matches!(key.name.as_str(), "default" | "kube-system" | "kube-public")
    {
        return Err(Refusal::forbidden(kind, &key.name, "this namespace may not be deleted", &[]));
    }
    let mut new = (*object).clone();
    match options.propagation.as_deref() {
        Some("Orphan") => add_finalizer(&mut new, "orphan"),
        Some("Foreground") => add_finalizer(&mut new, "foregroundDeletion"),
        _ => {}
    }
    let grace = if kind.kind == "Pod" { grace_of(&object, options.grace) } else { 0 };
    if kind.kind == "Namespace" {
        new["status"]["phase"] = "Terminating".into();
    }
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": {
            "name": key.name, "group": kind.group, "kind": kind.plural, "uid": object["metadata"]["uid"],
        },
    });
    if grace == 0 && no_finalizers(kind, &new) {
        world.remove(key, now);
        let body = if kind.kind == "Pod" { (*object).clone() } else { status };
        return Ok(Answer::ok(body));
    }
    let before = time_at(&object, &["metadata", "deletionTimestamp"]);
    let until = Timestamp::from_second(now.as_second() + grace).unwrap_or(now);
    // A second deletion can only bring the end nearer.
    if before.is_none_or(|before| until < before) {
        new["metadata"]["deletionTimestamp"] = stamp(until).into();
        new["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        if let Some(generation) = object["metadata"]["generation"].as_i64()
            && before.is_none()
        {
            new["metadata"]["generation"] = (generation + 1).into();
        }
    }
    if new == *object {
        return Ok(Answer::ok(new));
    }
    Ok(Answer::ok((*world.put(key, new, now)).clone()))
}

/// How long a pod may take to end: nothing for one that never ran anywhere or has ended already.
fn grace_of(pod: &Json, asked: Option<i64>) -> i64 {
    let unplaced = text(pod, &["spec", "nodeName"]).is_none_or(str::is_empty);
    let ended = matches!(text(pod, &["status", "phase"]), Some("Succeeded" | "Failed"));
    if unplaced || ended {
        return 0;
    }
    let own = at(pod, &["spec", "terminationGracePeriodSeconds"]).and_then(Json::as_i64);
    asked.or(own).unwrap_or(30)
}

fn add_finalizer(object: &mut Json, finalizer: &str) {
    if texts(object, &["metadata", "finalizers"]).contains(&finalizer) {
        return;
    }
    match object["metadata"]["finalizers"].as_array_mut() {
        Some(list) => list.push(finalizer.into()),
        None => object["metadata"]["finalizers"] = json!([finalizer]),
    }
}

/// `POST` on the eviction of a pod: a deletion that disruption budgets allow.
pub(crate) fn evict(
    world: &mut World,
    route: &Route,
    options: &Options,
    now: Timestamp,
) -> Result<Answer, Refusal> {
    let name = route.name.as_deref().unwrap_or_default();
    let key = Key::new(route.kind, &route.namespace, name);
    let pod = world.get(&key).cloned().ok_or_else(|| Refusal::not_found(key.kind(), name))?;
    let phase = text(&pod, &["status", "phase"]);
    let free = is_deleting(&pod) || matches!(phase, Some("Pending" | "Succeeded" | "Failed"));
    let budgets: Vec<Key> = world
        .named("PodDisruptionBudget", &key.namespace)
        .filter(|(_, budget)| {
            at(budget, &["spec", "selector"])
                .is_some_and(|selector| super::selector::matches(selector, pod["metadata"].get("labels")))
        })
        .map(|(key, _)| key.clone())
        .collect();
    match budgets.as_slice() {
        _ if free => {}
        [] => {}
        [budget] => spend(world, budget, &pod, now)?,
        _ => {
            let mut refusal = Refusal::internal("");
            refusal.message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.".into();
            return Err(refusal);
        }
    }
    delete_at(world, &key, options, now)?;
    let body =
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
    Ok(Answer { code: 201, body, warnings: Vec::new() })
}

/// Takes one disruption from a budget.
fn spend(world: &mut World, key: &Key, pod: &Json, now: Timestamp) -> Result<(), Refusal> {
    const VIOLATES: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
    let Some(budget) = world.get(key).cloned() else { return Ok(()) };
    let number = |path: &[&str]| at(&budget, path).and_then(Json::as_i64).unwrap_or(0);
    let (desired, healthy) = (number(&["status", "desiredHealthy"]), number(&["status", "currentHealthy"]));
    if number(&["status", "observedGeneration"]) < number(&["metadata", "generation"]) {
        let cause = format!("The disruption budget {} is still being processed by the server.", key.name);
        let mut refusal = Refusal::too_many_requests(VIOLATES, cause);
        refusal.details["retryAfterSeconds"] = 10.into();
        return Err(refusal);
    }
    // A pod that runs and is not ready is not what the budget protects.
    if !is_ready(pod) && healthy >= desired && desired > 0 {
        return Ok(());
    }
    if number(&["status", "disruptionsAllowed"]) <= 0 {
        let cause = format!(
            "The disruption budget {} needs {desired} healthy pods and has {healthy} currently",
            key.name
        );
        return Err(Refusal::too_many_requests(VIOLATES, cause));
    }
    let mut new = (*budget).clone();
    let name = text(pod, &["metadata", "name"]).unwrap_or_default();
    new["status"]["disruptionsAllowed"] = (number(&["status", "disruptionsAllowed"]) - 1).into();
    new["status"]["disruptedPods"][name] = stamp(now).into();
    world.put(key, new, now);
    Ok(())
}

/// Whether an object's condition `Ready` holds.
pub(crate) fn is_ready(object: &Json) -> bool {
    let conditions = at(object, &["status", "conditions"]).and_then(Json::as_array);
    conditions.into_iter().flatten().any(|condition| {
        condition.get("type").is_some_and(|kind| kind == "Ready")
            && condition.get("status").is_some_and(|status| status == "True")
    })
}
