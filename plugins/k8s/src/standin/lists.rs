//! How lists and maps merge: which lists are keyed by fields of their items, which are sets, and what is replaced whole.
//!
//! The API's schema says so for each field; this is the part of it that concerns the kinds served here.

use serde_json::Value as Json;

/// How a list merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merge {
    /// Replaced whole.
    Atomic,
    /// Its values are a set.
    Set,
    /// Items with equal values of these fields are the same item.
    Keyed(&'static [&'static str]),
}

/// Who merges: the two ways differ in some fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Apply,
    Strategic,
}

/// How the list at `path` (field names, without list items) merges.
pub(crate) fn list(path: &[String], by: By) -> Merge {
    let name = |back: usize| path.len().checked_sub(back).map_or("", |at| path[at].as_str());
    let in_pod = |name: &str| matches!(name, "spec");
    let in_container = matches!(name(2), "containers" | "initContainers" | "ephemeralContainers");
    match name(1) {
        "finalizers" | "podCIDRs" => Merge::Set,
        "ownerReferences" => Merge::Keyed(&["uid"]),
        "containers" | "initContainers" | "ephemeralContainers" | "volumes" if in_pod(name(2)) => {
            Merge::Keyed(&["name"])
        }
        "imagePullSecrets" | "secrets" => Merge::Keyed(&["name"]),
        "hostAliases" | "podIPs" => Merge::Keyed(&["ip"]),
        "topologySpreadConstraints" if by == By::Apply => Merge::Keyed(&["topologyKey", "whenUnsatisfiable"]),
        "topologySpreadConstraints" => Merge::Keyed(&["topologyKey"]),
        "env" if in_container => Merge::Keyed(&["name"]),
        "ports" if in_container && by == By::Apply => Merge::Keyed(&["containerPort", "protocol"]),
        "ports" if in_container => Merge::Keyed(&["containerPort"]),
        "volumeMounts" if in_container => Merge::Keyed(&["mountPath"]),
        "volumeDevices" if in_container => Merge::Keyed(&["devicePath"]),
        "conditions" | "addresses" if name(2) == "status" => Merge::Keyed(&["type"]),
        _ => Merge::Atomic,
    }
}

/// Whether the map at `path` is replaced whole by server-side apply.
pub(crate) fn atomic_map(path: &[String]) -> bool {
    let name = |back: usize| path.len().checked_sub(back).map_or("", |at| path[at].as_str());
    match name(1) {
        "selector" => name(2) == "spec",
        "nodeSelector" | "configMapKeyRef" | "secretKeyRef" | "fieldRef" | "resourceFieldRef"
        | "secretRef" | "roleRef" | "involvedObject" | "ownerReferences" | "imagePullSecrets" => true,
        _ => false,
    }
}

/// The values by which an item of a keyed list is known; nothing when it lacks one.
pub(crate) fn item_key(item: &Json, keys: &[&str]) -> Option<Vec<(String, Json)>> {
    keys.iter()
        .map(|key| {
            let value = match item.get(key) {
                Some(value) => value.clone(),
                // The one default among keys.
                None if *key == "protocol" => "TCP".into(),
                None => return None,
            };
            Some(((*key).to_owned(), value))
        })
        .collect()
}
