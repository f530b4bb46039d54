//! What moves in the cluster by itself: as much as runbooks wait for, and no more.
//!
//! | who | does |
//! |---|---|
//! | namespaces | a Terminating one loses its content, then its finalizer, then itself |
//! | kubelet | a deleted pod is gone when its grace is over; one annotated `stand-in.farrier.run/stuck` stays until it is deleted by force |
//! | garbage collector | what belongs to an owner that is gone goes too; `Foreground` and `Orphan` are honoured |
//! | Deployment, ReplicaSet, StatefulSet | as many pods as wanted, on nodes that take some, ready at once |
//! | Job | one pod; `stand-in.farrier.run/ends` on the job or its namespace says how it ends: `succeeded`, `failed`, or `succeeded after 30s` |
//! | CronJob | a job for each due time of the stand-in's clock; `suspend`, concurrency and history are honoured |
//! | resource quotas | their status says what is used |
//! | disruption budgets | their status is computed from the pods |
//!
//! A workload that the files give no `status.observedGeneration` is at rest: nothing is made of it until someone
//! changes its spec. Everything here runs before a request is answered, by the time of [`settle`]'s caller.

use std::time::Duration;

use farrier_model::time::{Timestamp, parse_duration};
use serde_json::{Value as Json, json};

use super::apply::Writer;
use super::cron_jobs::cron_jobs;
use super::delete::{Options, delete_at, is_ready};
use super::kinds::{KINDS, Kind};
use super::meta;
use super::quota;
use super::selector::matches;
use super::world::{Key, World, at, is_deleting, stamp, text, texts, time_at};
use super::write::{create_at, no_finalizers, store};

/// A pod with this annotation does not end when it is deleted: its processes hang.
const STUCK: &str = "stand-in.farrier.run/stuck";

/// How jobs end.
const ENDS: &str = "stand-in.farrier.run/ends";

/// What a pod of a job says; copied to the pod.
pub(crate) const LOG: &str = "stand-in.farrier.run/log";

/// Moves everything as far as it goes at this time.
pub(crate) fn settle(world: &mut World, now: Timestamp) {
    world.compact(now);
    // Each round's work can make work for the next; a world that never rests is a defect, not a reason to hang.
    for _ in 0..100 {
        let before = world.revision;
        namespaces(world, now);
        end_pods(world, now);
        collect(world, now);
        deployments(world, now);
        replica_sets(world, now);
        stateful_sets(world, now);
        cron_jobs(world, now);
        jobs(world, now);
        quotas(world, now);
        budgets(world, now);
        if world.revision == before {
            return;
        }
    }
    tracing::warn!("the stand-in's controllers do not come to rest");
}

pub(crate) type Objects = Vec<(Key, std::sync::Arc<Json>)>;

pub(crate) fn all(world: &World, kind: &str) -> Objects {
    world.named(kind, "").map(|(key, object)| (key.clone(), object.clone())).collect()
}

fn namespaces(world: &mut World, now: Timestamp) {
    for (key, namespace) in
        all(world, "Namespace").into_iter().filter(|(_, namespace)| is_deleting(namespace))
    {
        let content: Vec<Key> = world
            .all()
            .map(|(key, _)| key)
            .filter(|content| content.namespace == key.name)
            .cloned()
            .collect();
        for object in &content {
            if world.get(object).is_some_and(|object| !is_deleting(object)) {
                let _ = delete_at(world, object, &Options::default(), now);
            }
        }
        if content.is_empty() && !texts(&namespace, &["spec", "finalizers"]).is_empty() {
            let mut new = (*namespace).clone();
            new["spec"]["finalizers"] = json!([]);
            if texts(&namespace, &["metadata", "finalizers"]).is_empty() {
                world.remove(&key, now);
            } else {
                world.put(&key, new, now);
            }
        }
    }
}

fn end_pods(world: &mut World, now: Timestamp) {
    for (key, pod) in all(world, "Pod") {
        let Some(until) = time_at(&pod, &["metadata", "deletionTimestamp"]) else { continue };
        let stuck = pod["metadata"]["annotations"].get(STUCK).is_some();
        let forced = pod["metadata"]["deletionGracePeriodSeconds"] == 0;
        if until <= now && (forced || !stuck) && no_finalizers(key.kind(), &pod) {
            world.remove(&key, now);
        }
    }
}

/// Deletes what belongs to nobody any more, and lets go of owners whose dependents are gone or set free.
fn collect(world: &mut World, now: Timestamp) {
    let owned: Objects = world
        .all()
        .filter(|(_, object)| at(object, &["metadata", "ownerReferences"]).is_some())
        .map(|(key, object)| (key.clone(), object.clone()))
        .collect();
    for (key, object) in &owned {
        let references = object["metadata"]["ownerReferences"].as_array().map_or(&[][..], Vec::as_slice);
        let is_known = |reference: &Json| {
            let kind = Kind::find(
                text(reference, &["apiVersion"]).unwrap_or_default(),
                text(reference, &["kind"]).unwrap_or_default(),
            );
            kind.is_none_or(|kind| owner(world, key, kind, reference).is_some())
        };
        if references.is_empty() || is_deleting(object) || references.iter().any(is_known) {
            continue;
        }
        let _ = delete_at(world, key, &Options::default(), now);
    }
    let waiting: Objects = world
        .all()
        .filter(|(_, object)| is_deleting(object))
        .filter(|(_, object)| !texts(object, &["metadata", "finalizers"]).is_empty())
        .map(|(key, object)| (key.clone(), object.clone()))
        .collect();
    for (key, object) in waiting {
        let finalizers = texts(&object, &["metadata", "finalizers"]);
        let dependents: Vec<&(Key, std::sync::Arc<Json>)> =
            owned.iter().filter(|(_, dependent)| belongs(dependent, &object)).collect();
        let done = if finalizers.contains(&"orphan") {
            for (dependent, _) in dependents {
                let Some(held) = world.get(dependent).cloned() else { continue };
                let mut free = (*held).clone();
                if let Some(references) = free["metadata"]["ownerReferences"].as_array_mut() {
                    references.retain(|reference| reference["uid"] != object["metadata"]["uid"]);
                }
                world.put(dependent, free, now);
            }
            "orphan"
        } else if finalizers.contains(&"foregroundDeletion") {
            for (dependent, _) in &dependents {
                if world.get(dependent).is_some_and(|dependent| !is_deleting(dependent)) {
                    let _ = delete_at(world, dependent, &Options::foreground(), now);
                }
            }
            if dependents.iter().any(|(dependent, _)| world.get(dependent).is_some()) {
                continue;
            }
            "foregroundDeletion"
        } else {
            continue;
        };
        let mut new = (*object).clone();
        if let Some(finalizers) = new["metadata"]["finalizers"].as_array_mut() {
            finalizers.retain(|finalizer| finalizer != done);
        }
        // A pod's grace goes on.
        let over = time_at(&new, &["metadata", "deletionTimestamp"]).is_some_and(|until| until <= now);
        if over && no_finalizers(key.kind(), &new) {
            world.remove(&key, now);
        } else {
            world.put(&key, new, now);
        }
    }
}

fn owner<'a>(world: &'a World, of: &Key, kind: usize, reference: &Json) -> Option<&'a std::sync::Arc<Json>> {
    let namespace = if KINDS[kind].namespaced { of.namespace.as_str() } else { "" };
    let key = Key::new(kind, namespace, text(reference, &["name"])?);
    world.get(&key).filter(|owner| owner["metadata"]["uid"] == reference["uid"])
}

pub(crate) fn belongs(object: &Json, owner: &Json) -> bool {
    let references = object["metadata"]["ownerReferences"].as_array();
    references.into_iter().flatten().any(|reference| reference["uid"] == owner["metadata"]["uid"])
}

/// Whether a controller acts on it: always, unless the files left it at rest and nobody has changed its spec.
fn is_live(object: &Json) -> bool {
    let generation = object["metadata"]["generation"].as_i64().unwrap_or(1);
    let known = ["observedGeneration", "startTime"].iter().any(|field| object["status"].get(field).is_some());
    !is_deleting(object) && (generation > 1 || known)
}

pub(crate) fn set_status(world: &mut World, key: &Key, status: Json, now: Timestamp) {
    let Some(old) = world.get(key).cloned() else { return };
    let mut new = (*old).clone();
    if !new["status"].is_object() {
        new["status"] = json!({});
    }
    if let (Some(map), Json::Object(fields)) = (new["status"].as_object_mut(), status) {
        map.extend(fields);
    }
    if new != *old {
        world.put(key, new, now);
    }
}

pub(crate) fn reference(owner: &Key, object: &Json) -> Json {
    json!([{
        "apiVersion": owner.kind().api_version(), "kind": owner.kind().kind, "name": owner.name,
        "uid": object["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
    }])
}

fn deployments(world: &mut World, now: Timestamp) {
    for (key, deployment) in all(world, "Deployment").into_iter().filter(|(_, object)| is_live(object)) {
        let template = deployment["spec"]["template"].clone();
        let replicas = deployment["spec"]["replicas"].clone();
        let mut current = None;
        let sets: Objects = world
            .named("ReplicaSet", &key.namespace)
            .filter(|(_, set)| belongs(set, &deployment))
            .map(|(key, set)| (key.clone(), set.clone()))
            .collect();
        for (set_key, set) in &sets {
            let mut of_set = set["spec"]["template"].clone();
            if let Some(labels) = of_set["metadata"]["labels"].as_object_mut() {
                labels.shift_remove("pod-template-hash");
            }
            let wanted = if of_set == template && current.is_none() {
                current = Some(set_key.clone());
                replicas.clone()
            } else {
                0.into()
            };
            if set["spec"]["replicas"] != wanted {
                let mut new = (**set).clone();
                new["spec"]["replicas"] = wanted;
                new["metadata"]["resourceVersion"] = Json::Null;
                let _ = store(world, set_key, set, new, "", Some(system(now)), now);
            }
        }
        if current.is_none() {
            let hash = meta::suffix(
                &template.to_string(),
                deployment["metadata"]["generation"].as_u64().unwrap_or(0),
            );
            let set_key =
                Key::new(Kind::index("ReplicaSet"), &key.namespace, &format!("{}-{hash}", key.name));
            let mut set = json!({
                "apiVersion": "apps/v1", "kind": "ReplicaSet",
                "metadata": { "labels": template["metadata"]["labels"], "ownerReferences": reference(&key, &deployment) },
                "spec": { "replicas": replicas, "selector": deployment["spec"]["selector"], "template": template },
            });
            set["metadata"]["name"] = set_key.name.clone().into();
            set["metadata"]["labels"]["pod-template-hash"] = hash.clone().into();
            set["spec"]["selector"]["matchLabels"]["pod-template-hash"] = hash.clone().into();
            set["spec"]["template"]["metadata"]["labels"]["pod-template-hash"] = hash.into();
            let _ = create_at(world, &set_key, set, Some(system(now)), now);
        }
        let pods: Vec<bool> = world
            .named("ReplicaSet", &key.namespace)
            .filter(|(_, set)| belongs(set, &deployment))
            .flat_map(|(_, set)| pods_of(world, &key.namespace, set))
            .map(|(_, pod)| is_ready(&pod))
            .collect();
        set_status(world, &key, counts(&deployment, &pods), now);
    }
}

fn counts(object: &Json, pods: &[bool]) -> Json {
    let ready = pods.iter().filter(|ready| **ready).count();
    json!({
        "observedGeneration": object["metadata"]["generation"], "replicas": pods.len(), "updatedReplicas": pods.len(),
        "readyReplicas": ready, "availableReplicas": ready, "unavailableReplicas": pods.len() - ready,
    })
}

fn pods_of(world: &World, namespace: &str, owner: &Json) -> Objects {
    world
        .named("Pod", namespace)
        .filter(|(_, pod)| belongs(pod, owner) && !is_deleting(pod) && !has_ended(pod))
        .map(|(key, pod)| (key.clone(), pod.clone()))
        .collect()
}

fn has_ended(pod: &Json) -> bool {
    matches!(text(pod, &["status", "phase"]), Some("Succeeded" | "Failed"))
}

fn replica_sets(world: &mut World, now: Timestamp) {
    for (key, set) in all(world, "ReplicaSet").into_iter().filter(|(_, object)| is_live(object)) {
        let wanted = set["spec"]["replicas"].as_u64().unwrap_or(0) as usize;
        let pods = pods_of(world, &key.namespace, &set);
        for (pod, _) in pods.iter().skip(wanted) {
            let _ = delete_at(world, pod, &Options::default(), now);
        }
        for _ in pods.len()..wanted {
            let base = format!("{}-", key.name);
            let name = format!("{base}{}", meta::suffix(&base, world.revision));
            if !add_pod(world, &key, &set, &name, now) {
                break;
            }
        }
        let pods: Vec<bool> =
            pods_of(world, &key.namespace, &set).iter().map(|(_, pod)| is_ready(pod)).collect();
        let status = json!({
            "observedGeneration": set["metadata"]["generation"], "replicas": pods.len(),
            "readyReplicas": pods.iter().filter(|ready| **ready).count(),
        });
        set_status(world, &key, status, now);
    }
}

fn stateful_sets(world: &mut World, now: Timestamp) {
    for (key, set) in all(world, "StatefulSet").into_iter().filter(|(_, object)| is_live(object)) {
        let wanted = set["spec"]["replicas"].as_u64().unwrap_or(0);
        let name = |number: u64| format!("{}-{number}", key.name);
        for (pod, object) in pods_of(world, &key.namespace, &set) {
            let number = pod.name.rsplit_once('-').and_then(|(_, number)| number.parse::<u64>().ok());
            if number.is_none_or(|number| number >= wanted) && !is_deleting(&object) {
                let _ = delete_at(world, &pod, &Options::default(), now);
            }
        }
        for number in 0..wanted {
            // The name must be free: a pod that is still ending holds it.
            if world.get(&Key::new(Kind::index("Pod"), &key.namespace, &name(number))).is_none()
                && !add_pod(world, &key, &set, &name(number), now)
            {
                break;
            }
        }
        let pods: Vec<bool> =
            pods_of(world, &key.namespace, &set).iter().map(|(_, pod)| is_ready(pod)).collect();
        set_status(world, &key, counts(&set, &pods), now);
    }
}

/// Adds a pod of a template and places it; false when it is refused.
fn add_pod(world: &mut World, owner: &Key, object: &Json, name: &str, now: Timestamp) -> bool {
    let template = &object["spec"]["template"];
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "labels": template["metadata"]["labels"], "annotations": template["metadata"]["annotations"],
            "ownerReferences": reference(owner, object),
        },
        "spec": template["spec"],
    });
    let key = Key::new(Kind::index("Pod"), &owner.namespace, name);
    let mut pod = pod;
    let _ = key.kind().prune(&mut pod);
    if create_at(world, &key, pod, Some(system(now)), now).is_err() {
        return false;
    }
    if let (Some(node), Some(pod)) = (place(world, &key), world.get(&key).cloned()) {
        let mut pod = (*pod).clone();
        pod["spec"]["nodeName"] = node.into();
        pod["status"] = json!({
            "phase": "Running", "startTime": stamp(now),
            "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": stamp(now) }],
        });
        world.put(&key, pod, now);
    }
    true
}

/// The node with the fewest pods among those that take some.
fn place(world: &World, pod: &Key) -> Option<String> {
    let tolerates = world.get(pod).is_some_and(|pod| at(pod, &["spec", "tolerations"]).is_some());
    let wanted = world.get(pod).and_then(|pod| at(pod, &["spec", "nodeSelector"]).cloned());
    let mut nodes: Vec<(usize, &str)> = world
        .named("Node", "")
        .filter(|(_, node)| {
            let tainted = at(node, &["spec", "taints"]).and_then(Json::as_array).is_some_and(|taints| {
                taints
                    .iter()
                    .any(|taint| matches!(text(taint, &["effect"]), Some("NoSchedule" | "NoExecute")))
            });
            let labels = node["metadata"].get("labels");
            let chosen =
                wanted.as_ref().is_none_or(|wanted| matches(&json!({ "matchLabels": wanted }), labels));
            node["spec"]["unschedulable"] != true && chosen && (!tainted || tolerates) && is_ready(node)
        })
        .map(|(key, _)| {
            let pods =
                world.named("Pod", "").filter(|(_, pod)| text(pod, &["spec", "nodeName"]) == Some(&key.name));
            (pods.count(), key.name.as_str())
        })
        .collect();
    nodes.sort_unstable();
    nodes.first().map(|(_, name)| (*name).to_owned())
}

fn jobs(world: &mut World, now: Timestamp) {
    for (key, job) in all(world, "Job").into_iter().filter(|(_, object)| is_live(object)) {
        if at(&job, &["status", "completionTime"]).is_some() || at(&job, &["status", "failed"]).is_some() {
            continue;
        }
        let name = format!("{}-{}", key.name, meta::suffix(&key.name, 0));
        let pod_key = Key::new(Kind::index("Pod"), &key.namespace, &name);
        if job["spec"]["suspend"] == true {
            continue;
        }
        if world.get(&pod_key).is_none() && at(&job, &["status", "active"]).is_none() {
            add_pod(world, &key, &job, &name, now);
            set_status(world, &key, json!({ "active": 1 }), now);
        }
        let script = [job["metadata"]["annotations"].get(ENDS).cloned()]
            .into_iter()
            .flatten()
            .chain(
                world
                    .get(&Key::namespace(&key.namespace))
                    .and_then(|namespace| namespace["metadata"]["annotations"].get(ENDS).cloned()),
            )
            .next();
        let Some(script) = script.as_ref().and_then(Json::as_str) else { continue };
        let (outcome, after) = script.split_once(" after ").unwrap_or((script, "0s"));
        let after = parse_duration(after).unwrap_or(Duration::ZERO);
        let started = world.get(&key).and_then(|job| time_at(job, &["status", "startTime"])).unwrap_or(now);
        if now.as_second() - started.as_second() < after.as_secs() as i64 {
            continue;
        }
        let succeeded = outcome == "succeeded";
        if let Some(pod) = world.get(&pod_key).cloned() {
            let mut pod = (*pod).clone();
            pod["status"]["phase"] = if succeeded { "Succeeded" } else { "Failed" }.into();
            pod["status"]["conditions"] = json!([{ "type": "Ready", "status": "False" }]);
            if let Some(log) = job["metadata"]["annotations"].get(LOG) {
                pod["metadata"]["annotations"][LOG] = log.clone();
            }
            world.put(&pod_key, pod, now);
        }
        let condition = json!([{
            "type": if succeeded { "Complete" } else { "Failed" }, "status": "True",
            "reason": if succeeded { "CompletionsReached" } else { "BackoffLimitExceeded" },
            "lastTransitionTime": stamp(now),
        }]);
        let status = if succeeded {
            json!({ "active": 0, "succeeded": 1, "completionTime": stamp(now), "conditions": condition })
        } else {
            json!({ "active": 0, "failed": 1, "conditions": condition })
        };
        set_status(world, &key, status, now);
    }
}

fn quotas(world: &mut World, now: Timestamp) {
    for (key, status) in quota::statuses(world) {
        set_status(world, &key, status, now);
    }
}

fn budgets(world: &mut World, now: Timestamp) {
    for (key, budget) in
        all(world, "PodDisruptionBudget").into_iter().filter(|(_, budget)| !is_deleting(budget))
    {
        let selector = budget["spec"]["selector"].clone();
        let pods: Objects = world
            .named("Pod", &key.namespace)
            .filter(|(_, pod)| !has_ended(pod) && matches(&selector, pod["metadata"].get("labels")))
            .map(|(key, pod)| (key.clone(), pod.clone()))
            .collect();
        let mut disrupted = budget["status"]["disruptedPods"].as_object().cloned().unwrap_or_default();
        // A pod that was allowed to go is remembered until it is seen going.
        disrupted.retain(|name, _| pods.iter().any(|(key, pod)| key.name == *name && !is_deleting(pod)));
        let healthy = pods
            .iter()
            .filter(|(key, pod)| is_ready(pod) && !is_deleting(pod) && !disrupted.contains_key(&key.name))
            .count() as i64;
        let expected = expected(world, &key.namespace, &pods);
        let desired = match (budget["spec"].get("minAvailable"), budget["spec"].get("maxUnavailable")) {
            (Some(least), _) if !least.is_null() => share(least, expected),
            (_, Some(most)) if !most.is_null() => (expected - share(most, expected)).max(0),
            _ => (expected - 1).max(0),
        };
        let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
        let mut status = json!({
            "observedGeneration": budget["metadata"]["generation"], "expectedPods": expected, "desiredHealthy": desired,
            "currentHealthy": healthy, "disruptionsAllowed": allowed,
        });
        let Some(old) = world.get(&key).cloned() else { continue };
        if disrupted.is_empty() {
            if old["status"].get("disruptedPods").is_some() {
                let mut new = (*old).clone();
                if let Some(map) = new["status"].as_object_mut() {
                    map.shift_remove("disruptedPods");
                }
                world.put(&key, new, now);
            }
        } else {
            status["disruptedPods"] = Json::Object(disrupted);
        }
        set_status(world, &key, status, now);
    }
}

/// How many pods there should be: what their controllers want, and each pod without one.
fn expected(world: &World, namespace: &str, pods: &[(Key, std::sync::Arc<Json>)]) -> i64 {
    let mut owners: Vec<&Json> = Vec::new();
    let mut count = 0;
    for (_, pod) in pods {
        let reference = pod["metadata"]["ownerReferences"].get(0);
        match reference {
            Some(reference) if !owners.contains(&&reference["uid"]) => {
                owners.push(&reference["uid"]);
                let kind = text(reference, &["kind"]).map_or(usize::MAX, Kind::index);
                let wanted = KINDS
                    .get(kind)
                    .and_then(|_| owner(world, &Key::new(kind, namespace, ""), kind, reference))
                    .and_then(|owner| at(owner, &["spec", "replicas"])?.as_i64());
                let own = pods.iter().filter(|(_, other)| {
                    other["metadata"]["ownerReferences"]
                        .get(0)
                        .is_some_and(|other| other["uid"] == reference["uid"])
                });
                count += wanted.unwrap_or_else(|| own.count() as i64);
            }
            Some(_) => {}
            None => count += 1,
        }
    }
    count
}

/// A number, or a share of one rounded up.
fn share(value: &Json, of: i64) -> i64 {
    match value.as_str().and_then(|text| text.strip_suffix('%')?.parse::<i64>().ok()) {
        Some(percent) => (of * percent + 99) / 100,
        None => value.as_i64().unwrap_or(0),
    }
}

pub(crate) fn system(now: Timestamp) -> Writer<'static> {
    Writer { manager: "stand-in-controllers", api_version: "v1", subresource: "", now }
}
