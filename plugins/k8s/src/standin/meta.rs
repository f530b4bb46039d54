//! Names, defaults and the parts of an object that the server keeps: what every write goes through.

use farrier_model::time::Timestamp;
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::KINDS;
use super::kinds::Kind;
use super::status::{Cause, Refusal};
use super::world::{Key, World, at, stamp, text, texts};

/// When objects of a file were made that do not say it.
const LONG_AGO: &str = "1970-01-01T00:00:00Z";

/// Reads an object of a file: it must be as valid as one that a client creates.
pub(crate) fn from_file(kind: usize, mut object: Json) -> Result<(Key, Json), String> {
    let kind_of = &KINDS[kind];
    let unknown = kind_of.prune(&mut object)?;
    if !unknown.is_empty() {
        return Err(format!("`{}` has no field `{}`", kind_of.kind, unknown.join("`, `")));
    }
    let name = text(&object, &["metadata", "name"]).ok_or("`metadata.name` is missing")?.to_owned();
    let namespace = match (kind_of.namespaced, text(&object, &["metadata", "namespace"])) {
        (true, given) => given.unwrap_or("default").to_owned(),
        (false, None) => String::new(),
        (false, Some(_)) => return Err(format!("a `{}` has no namespace", kind_of.kind)),
    };
    if kind_of.namespaced {
        object["metadata"]["namespace"] = namespace.clone().into();
    }
    let key = Key::new(kind, &namespace, &name);
    default(kind_of, &mut object);
    let causes = validate(kind_of, &object);
    if !causes.is_empty() {
        return Err(Refusal::invalid(kind_of, &name, &causes).message);
    }
    let metadata = &mut object["metadata"];
    let mut fill = |field: &str, value: Json| {
        if metadata.get(field).is_none() {
            metadata[field] = value;
        }
    };
    fill("uid", uid(&key, 0).into());
    fill("resourceVersion", "1".into());
    fill("creationTimestamp", LONG_AGO.into());
    if kind_of.generation {
        fill("generation", 1.into());
    }
    Ok((key, object))
}

/// Adds the namespaces that objects are in and every cluster has.
pub(crate) fn complete(world: &mut World) {
    let mut names: Vec<String> = world.all().map(|(key, _)| key.namespace.clone()).collect();
    names.extend(["default".into(), "kube-system".into()]);
    names.sort();
    names.dedup();
    for name in names.into_iter().filter(|name| !name.is_empty()) {
        let key = Key::namespace(&name);
        if world.get(&key).is_none() {
            let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
            if let Ok((key, namespace)) = from_file(key.kind, namespace) {
                world.load(key, namespace);
            }
        }
    }
}

/// An identity that is never given twice: of an object, made at a revision.
pub(crate) fn uid(key: &Key, revision: u64) -> String {
    let name = format!("{}/{}/{}@{revision}", key.kind().resource(), key.namespace, key.name);
    Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("https://farrier.run/stand-in/{name}").as_bytes()).to_string()
}

/// The end of a generated name: like random, and the same in every rerun of the same world.
pub(crate) fn suffix(base: &str, revision: u64) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    Sha256::digest(format!("{base}@{revision}"))
        .iter()
        .take(5)
        .map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]))
        .collect()
}

/// Fills in what the real server fills in, as far as something here depends on it.
pub(crate) fn default(kind: &Kind, object: &mut Json) {
    let fill = |object: &mut Json, path: &[&str], value: Json| {
        if at(object, path).is_some_and(|value| !value.is_null()) {
            return;
        }
        let Some((last, before)) = path.split_last() else { return };
        let mut place = object;
        for key in before {
            let Some(map) = place.as_object_mut() else { return };
            place = map.entry(*key).or_insert_with(|| json!({}));
        }
        if let Some(map) = place.as_object_mut() {
            map.insert((*last).to_owned(), value);
        }
    };
    match kind.kind {
        "Namespace" => {
            let name = text(object, &["metadata", "name"]).unwrap_or_default().to_owned();
            fill(object, &["metadata", "labels", "kubernetes.io/metadata.name"], name.into());
            fill(object, &["spec", "finalizers"], json!(["kubernetes"]));
            fill(object, &["status", "phase"], "Active".into());
        }
        "Pod" => {
            pod_spec(object.get_mut("spec"), "Always");
            fill(object, &["status", "phase"], "Pending".into());
        }
        "Deployment" | "ReplicaSet" | "StatefulSet" => {
            fill(object, &["spec", "replicas"], 1.into());
            pod_spec(object.pointer_mut("/spec/template/spec"), "Always");
        }
        "DaemonSet" => pod_spec(object.pointer_mut("/spec/template/spec"), "Always"),
        "Job" => {
            fill(object, &["spec", "parallelism"], 1.into());
            fill(object, &["spec", "completions"], 1.into());
            fill(object, &["spec", "backoffLimit"], 6.into());
            pod_spec(object.pointer_mut("/spec/template/spec"), "Never");
        }
        "CronJob" => {
            fill(object, &["spec", "suspend"], false.into());
            fill(object, &["spec", "concurrencyPolicy"], "Allow".into());
        }
        "Secret" => {
            fill(object, &["type"], "Opaque".into());
            let plain = object.as_object_mut().and_then(|map| map.remove("stringData"));
            for (name, value) in plain.as_ref().and_then(Json::as_object).into_iter().flatten() {
                use base64::Engine as _;
                let bytes = value.as_str().unwrap_or_default().as_bytes();
                object["data"][name] = base64::engine::general_purpose::STANDARD.encode(bytes).into();
            }
        }
        _ => {}
    }
}

fn pod_spec(spec: Option<&mut Json>, restart: &str) {
    let Some(spec) = spec.and_then(Json::as_object_mut) else { return };
    spec.entry("restartPolicy").or_insert_with(|| restart.into());
    spec.entry("terminationGracePeriodSeconds").or_insert_with(|| 30.into());
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Json::as_array_mut).into_iter().flatten() {
            for port in container.get_mut("ports").and_then(Json::as_array_mut).into_iter().flatten() {
                if let Some(port) = port.as_object_mut() {
                    port.entry("protocol").or_insert_with(|| "TCP".into());
                }
            }
        }
    }
}

/// What is wrong with an object, as far as the stand-in looks.
pub(crate) fn validate(kind: &Kind, object: &Json) -> Vec<Cause> {
    let mut causes = Vec::new();
    match text(object, &["metadata", "name"]) {
        None | Some("") => {
            causes.push(Cause::required("metadata.name", "name or generateName is required"));
        }
        Some(name) => {
            let (fits, rule) = if matches!(kind.kind, "Role" | "RoleBinding") {
                (!name.contains(['/', '%']) && name != "." && name != "..", "may not contain '/' or '%'")
            } else if kind.kind == "Namespace" {
                (is_label_name(name), LABEL_RULE)
            } else {
                (is_subdomain(name), SUBDOMAIN_RULE)
            };
            if !fits {
                causes.push(Cause::invalid("metadata.name", &name.into(), rule));
            }
        }
    }
    let pairs = |path: &[&str]| at(object, path).and_then(Json::as_object).into_iter().flatten();
    for (key, value) in pairs(&["metadata", "labels"]) {
        if !is_qualified(key) {
            causes.push(Cause::invalid("metadata.labels", &key.as_str().into(), QUALIFIED_RULE));
        }
        if !value.as_str().is_some_and(is_label_value) {
            causes.push(Cause::invalid("metadata.labels", value, VALUE_RULE));
        }
    }
    for (key, _) in pairs(&["metadata", "annotations"]) {
        if !is_qualified(&key.to_lowercase()) {
            causes.push(Cause::invalid("metadata.annotations", &key.as_str().into(), QUALIFIED_RULE));
        }
    }
    for finalizer in texts(object, &["metadata", "finalizers"]) {
        let standard = matches!(finalizer, "orphan" | "foregroundDeletion" | "kubernetes");
        if !is_qualified(finalizer) {
            causes.push(Cause::invalid("metadata.finalizers", &finalizer.into(), QUALIFIED_RULE));
        } else if !standard && !finalizer.contains('/') {
            let rule = "name is neither a standard finalizer name nor is it fully qualified";
            causes.push(Cause::invalid("metadata.finalizers", &finalizer.into(), rule));
        }
    }
    validate_spec(kind, object, &mut causes);
    causes
}

fn validate_spec(kind: &Kind, object: &Json, causes: &mut Vec<Cause>) {
    match kind.kind {
        "Pod" => validate_pod_spec(object.get("spec"), "spec", causes),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" => {
            let selector = at(object, &["spec", "selector"]).filter(|selector| *selector != &json!({}));
            match selector {
                None if kind.kind == "Deployment"
                    || kind.kind == "StatefulSet"
                    || kind.kind == "DaemonSet"
                    || kind.kind == "ReplicaSet" =>
                {
                    causes.push(Cause::required("spec.selector", ""));
                }
                None => {}
                Some(selector) => {
                    let labels = at(object, &["spec", "template", "metadata", "labels"]);
                    if !super::selector::matches(selector, labels) {
                        causes.push(Cause::invalid(
                            "spec.template.metadata.labels",
                            labels.unwrap_or(&json!({})),
                            "`selector` does not match template `labels`",
                        ));
                    }
                }
            }
            if let Some(replicas) = at(object, &["spec", "replicas"])
                && replicas.as_i64().is_some_and(|replicas| replicas < 0)
            {
                causes.push(Cause::invalid("spec.replicas", replicas, NOT_NEGATIVE));
            }
            validate_pod_spec(object.pointer("/spec/template/spec"), "spec.template.spec", causes);
        }
        "Job" => {
            let template = object.pointer("/spec/template/spec");
            validate_pod_spec(template, "spec.template.spec", causes);
            let restart = template.and_then(|spec| text(spec, &["restartPolicy"]));
            if restart == Some("Always") {
                causes.push(Cause::other(
                    "FieldValueNotSupported",
                    "Unsupported value: \"Always\": supported values: \"OnFailure\", \"Never\"",
                    "spec.template.spec.restartPolicy",
                ));
            }
        }
        "PodDisruptionBudget" => {
            let given = |field: &str| at(object, &["spec", field]).is_some_and(|value| !value.is_null());
            if given("minAvailable") && given("maxUnavailable") {
                causes.push(Cause::invalid(
                    "spec",
                    &object["spec"],
                    "minAvailable and maxUnavailable cannot be both set",
                ));
            }
        }
        _ => {}
    }
}

fn validate_pod_spec(spec: Option<&Json>, path: &str, causes: &mut Vec<Cause>) {
    let containers = spec.and_then(|spec| spec.get("containers")).and_then(Json::as_array);
    let Some(containers) = containers.filter(|containers| !containers.is_empty()) else {
        causes.push(Cause::required(format!("{path}.containers"), ""));
        return;
    };
    for (number, container) in containers.iter().enumerate() {
        let path = format!("{path}.containers[{number}]");
        match text(container, &["name"]) {
            None | Some("") => causes.push(Cause::required(format!("{path}.name"), "")),
            Some(name) if !is_label_name(name) => {
                causes.push(Cause::invalid(format!("{path}.name"), &name.into(), LABEL_RULE));
            }
            Some(_) => {}
        }
        if text(container, &["image"]).is_none_or(str::is_empty) && path.starts_with("spec.containers") {
            causes.push(Cause::required(format!("{path}.image"), ""));
        }
    }
}

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED_RULE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// One part of a DNS name.
pub(crate) fn is_label_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty()
        && name.len() <= 63
        && name.chars().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// A DNS name.
pub(crate) fn is_subdomain(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(part)
}

/// A label's or an annotation's key.
pub(crate) fn is_qualified(key: &str) -> bool {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_subdomain) && !name.is_empty() && is_label_value(name)
}

/// A label's value.
pub(crate) fn is_label_value(value: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    value.is_empty()
        || (value.len() <= 63
            && value.chars().all(|c| edge(c) || matches!(c, '-' | '_' | '.'))
            && value.starts_with(edge)
            && value.ends_with(edge))
}

/// A new object's own metadata.
pub(crate) fn born(key: &Key, object: &mut Json, revision: u64, now: Timestamp) {
    let metadata = &mut object["metadata"];
    metadata["name"] = key.name.clone().into();
    if key.kind().namespaced {
        metadata["namespace"] = key.namespace.clone().into();
    }
    metadata["uid"] = uid(key, revision).into();
    metadata["creationTimestamp"] = stamp(now).into();
    if let Some(map) = metadata.as_object_mut() {
        for field in
            ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"]
        {
            map.shift_remove(field);
        }
    }
    if key.kind().generation {
        metadata["generation"] = 1.into();
    }
}
