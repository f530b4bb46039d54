//! The kinds of object that the stand-in serves, and how clients discover them.
//!
//! Which fields a kind has comes from the types of `k8s-openapi`: what such a type does not take in is unknown to the
//! stand-in as well.

use k8s_openapi::api::{apps, autoscaling, batch, core, networking, policy, rbac};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

/// One kind of object.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "the name of the field in every object")]
pub(crate) struct Kind {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) short: &'static [&'static str],
    pub(crate) namespaced: bool,
    /// Has a status that is written apart.
    pub(crate) status: bool,
    /// Has a scale subresource.
    pub(crate) scale: bool,
    /// Counts the changes of its spec.
    pub(crate) generation: bool,
    known: fn(&Json) -> Result<Json, String>,
}

/// What the real server would store of `object`, by its type.
fn known<T: DeserializeOwned + Serialize>(object: &Json) -> Result<Json, String> {
    let typed: T = serde_path_to_error::deserialize(object).map_err(|error| {
        let path = error.path().to_string();
        format!("{path}: {}", error.into_inner())
    })?;
    serde_json::to_value(typed).map_err(|error| error.to_string())
}

macro_rules! kinds {
    ($($group:literal $version:literal $kind:literal $plural:literal $short:expr, $type:ty: $($flag:ident)*;)+) => {
        /// Every kind.
        pub(crate) static KINDS: &[Kind] = &[$(
            {
                let mut kind = Kind {
                    group: $group, version: $version, plural: $plural, kind: $kind, short: &$short,
                    namespaced: false, status: false, scale: false, generation: false, known: known::<$type>,
                };
                $(kind.$flag = true;)*
                kind
            }
        ),+];
    };
}

kinds! {
    "" "v1" "ConfigMap" "configmaps" ["cm"], core::v1::ConfigMap: namespaced;
    "" "v1" "Event" "events" ["ev"], core::v1::Event: namespaced;
    "" "v1" "LimitRange" "limitranges" ["limits"], core::v1::LimitRange: namespaced;
    "" "v1" "Namespace" "namespaces" ["ns"], core::v1::Namespace: status;
    "" "v1" "Node" "nodes" ["no"], core::v1::Node: status;
    "" "v1" "Pod" "pods" ["po"], core::v1::Pod: namespaced status;
    "" "v1" "ResourceQuota" "resourcequotas" ["quota"], core::v1::ResourceQuota: namespaced status;
    "" "v1" "Secret" "secrets" [], core::v1::Secret: namespaced;
    "" "v1" "ServiceAccount" "serviceaccounts" ["sa"], core::v1::ServiceAccount: namespaced;
    "apps" "v1" "DaemonSet" "daemonsets" ["ds"], apps::v1::DaemonSet: namespaced status generation;
    "apps" "v1" "Deployment" "deployments" ["deploy"], apps::v1::Deployment: namespaced status scale generation;
    "apps" "v1" "ReplicaSet" "replicasets" ["rs"], apps::v1::ReplicaSet: namespaced status scale generation;
    "apps" "v1" "StatefulSet" "statefulsets" ["sts"], apps::v1::StatefulSet: namespaced status scale generation;
    "batch" "v1" "CronJob" "cronjobs" ["cj"], batch::v1::CronJob: namespaced status generation;
    "batch" "v1" "Job" "jobs" [], batch::v1::Job: namespaced status generation;
    "networking.k8s.io" "v1" "Ingress" "ingresses" ["ing"], networking::v1::Ingress: namespaced status generation;
    "policy" "v1" "PodDisruptionBudget" "poddisruptionbudgets" ["pdb"], policy::v1::PodDisruptionBudget:
        namespaced status generation;
    "rbac.authorization.k8s.io" "v1" "Role" "roles" [], rbac::v1::Role: namespaced;
    "rbac.authorization.k8s.io" "v1" "RoleBinding" "rolebindings" [], rbac::v1::RoleBinding: namespaced;
}

impl Kind {
    /// The number of a kind in [`KINDS`], by its name; for names that stand in the code.
    pub(crate) fn index(kind: &str) -> usize {
        KINDS.iter().position(|known| known.kind == kind).unwrap_or(usize::MAX)
    }

    /// The number of a kind by API version and kind, as documents name it.
    pub(crate) fn find(api_version: &str, kind: &str) -> Option<usize> {
        KINDS.iter().position(|known| known.kind == kind && known.api_version() == api_version)
    }

    /// `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// `deployments.apps`.
    pub(crate) fn resource(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// `Deployment.apps`.
    pub(crate) fn with_group(&self) -> String {
        match self.group {
            "" => self.kind.to_owned(),
            group => format!("{}.{group}", self.kind),
        }
    }

    /// Removes the fields of `object` that this kind does not have, and returns their paths.
    ///
    /// # Errors
    /// When a field has a value of the wrong type; the text says which.
    pub(crate) fn prune(&self, object: &mut Json) -> Result<Vec<String>, String> {
        let known = (self.known)(object)?;
        let mut unknown = Vec::new();
        prune(object, &known, "", &mut unknown);
        Ok(unknown)
    }

    fn verbs() -> Json {
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        verbs.into()
    }
}

/// The unknown fields of a `Scale`.
pub(crate) fn check_scale(object: &Json) -> Result<(), String> {
    known::<autoscaling::v1::Scale>(object).map(|_| ())
}

/// Removes from `given` what `known` lacks; nulls go without a word.
fn prune(given: &mut Json, known: &Json, path: &str, unknown: &mut Vec<String>) {
    match (given, known) {
        (Json::Object(given), Json::Object(known)) => {
            given.retain(|key, value| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match known.get(key) {
                    Some(known) => prune(value, known, &path, unknown),
                    None if value.is_null() => return false,
                    None => {
                        unknown.push(path);
                        return false;
                    }
                }
                true
            });
        }
        (Json::Array(given), Json::Array(known)) => {
            for (number, (value, known)) in given.iter_mut().zip(known).enumerate() {
                prune(value, known, &format!("{path}[{number}]"), unknown);
            }
        }
        _ => {}
    }
}

/// Answers for the paths that tell what there is; nothing when the path is another.
pub(crate) fn discovery(path: &[&str]) -> Option<Json> {
    match path {
        ["version"] => Some(json!({
            "major": "1", "minor": "33", "gitVersion": "v1.33.0+stand-in", "platform": "stand-in",
            "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "",
        })),
        ["api"] => {
            Some(json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }))
        }
        ["apis"] => {
            let mut groups: Vec<&str> =
                KINDS.iter().map(|kind| kind.group).filter(|g| !g.is_empty()).collect();
            groups.dedup();
            let groups: Vec<Json> = groups.into_iter().map(group).collect();
            Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        ["apis", name] => KINDS.iter().any(|kind| kind.group == *name).then(|| {
            let mut group = group(name);
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            group
        }),
        ["api", version] => resources("", version),
        ["apis", group, version] if !group.is_empty() => resources(group, version),
        _ => None,
    }
}

fn group(name: &str) -> Json {
    let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
    json!({ "name": name, "versions": [version], "preferredVersion": version })
}

fn resources(group: &str, version: &str) -> Option<Json> {
    let mut resources = Vec::new();
    for kind in KINDS.iter().filter(|kind| kind.group == group && kind.version == version) {
        resources.push(json!({
            "name": kind.plural, "singularName": kind.kind.to_lowercase(), "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": Kind::verbs(), "shortNames": kind.short,
        }));
        let mut sub = |name: &str, of: Json| {
            let mut resource = json!({
                "name": format!("{}/{name}", kind.plural), "singularName": "", "namespaced": kind.namespaced,
            });
            if let (Some(resource), Json::Object(of)) = (resource.as_object_mut(), of) {
                resource.extend(of);
            }
            resources.push(resource);
        };
        if kind.status {
            sub("status", json!({ "kind": kind.kind, "verbs": ["get", "patch", "update"] }));
        }
        if kind.scale {
            let scale = json!({
                "kind": "Scale", "group": "autoscaling", "version": "v1", "verbs": ["get", "patch", "update"],
            });
            sub("scale", scale);
        }
        if kind.kind == "Pod" {
            sub(
                "eviction",
                json!({ "kind": "Eviction", "group": "policy", "version": "v1", "verbs": ["create"] }),
            );
            sub("log", json!({ "kind": "Pod", "verbs": ["get"] }));
        }
        if kind.kind == "Namespace" {
            sub("finalize", json!({ "kind": "Namespace", "verbs": ["update"] }));
        }
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!resources.is_empty()).then(|| {
        json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources })
    })
}
