//! Tests of the actions: their laws, on the embedded cluster always and on a real server when there is one, and what
//! they do when the world does not play along.

mod accounts;
mod connecting;
mod controllers;
mod drain;
mod faults;
mod gate;
mod jobs;
mod laws;
mod quota;
mod refusals;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use farrier_action::harness::{Case, World};
use farrier_action::{ActionRegistry, Binding, Now, Targets};
use farrier_model::time::Timestamp;
use farrier_model::{Failure, Scope, Value};
use futures_util::FutureExt as _;
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value as Json, json};

use crate::kinds;
use crate::object::{title, to_value, without_bookkeeping};

/// Names a kubeconfig, as in `tests/conformance`.
const SERVER: &str = "FARRIER_TEST_KUBECONFIG";

pub(crate) fn registry() -> ActionRegistry {
    let mut registry = ActionRegistry::default();
    crate::register(&mut registry).unwrap();
    registry
}

/// A value from JSON; single quotes stand for double ones.
pub(crate) fn value(json: &Json) -> Value {
    to_value(json).unwrap()
}

/// A cluster with a namespace of its own, as an environment names it.
pub(crate) struct Place {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    targets: Arc<Targets>,
    /// Seconds that the clock of the embedded cluster was put forward.
    ahead: Arc<AtomicI64>,
    /// Whether this is a server, which may have nobody who ends pods and runs jobs.
    is_server: bool,
    _files: Option<tempfile::TempDir>,
}

impl Place {
    /// The embedded cluster.
    pub(crate) async fn standin() -> Place {
        Place::standin_of("").await
    }

    /// The embedded cluster over some objects.
    pub(crate) async fn standin_of(objects: &str) -> Place {
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("cluster.yaml"), objects).unwrap();
        let ahead = Arc::new(AtomicI64::new(0));
        let now = {
            let ahead = ahead.clone();
            Now::from_fn(move || {
                let now = Timestamp::now().as_second() + ahead.load(Ordering::SeqCst);
                Timestamp::from_second(now).unwrap()
            })
        };
        let config = value(&json!({ "url": "objects:cluster.yaml" }));
        let binding = Binding { alias: "cluster".into(), kind: "k8s".into(), config };
        let targets = Targets::new(files.path().to_owned(), vec![binding], BTreeMap::new()).at(now.clone());
        let client = crate::stand_in(&files.path().join("cluster.yaml"), now).unwrap();
        Place::begin(client, targets, ahead, Some(files)).await
    }

    /// A real server, when there is one.
    pub(crate) async fn server() -> Option<Place> {
        let file = std::env::var(SERVER).ok()?;
        let kubeconfig = kube::config::Kubeconfig::read_from(&file).unwrap();
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default())
                .await
                .unwrap();
        let target = value(&json!({ "kubeconfig": file, "write_as": {} }));
        let binding = Binding { alias: "cluster".into(), kind: "k8s".into(), config: target };
        let targets = Targets::new("/".into(), vec![binding], BTreeMap::new());
        Some(Place::begin(Client::try_from(config).unwrap(), targets, Arc::default(), None).await)
    }

    /// Every cluster there is.
    pub(crate) async fn all() -> Vec<Place> {
        let mut places = vec![Place::standin().await];
        places.extend(Place::server().await);
        places
    }

    async fn begin(
        client: Client,
        targets: Targets,
        ahead: Arc<AtomicI64>,
        files: Option<tempfile::TempDir>,
    ) -> Place {
        let namespace = format!("farrier-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let is_server = files.is_none();
        let targets = Arc::new(targets);
        let place = Place { client, namespace, targets, ahead, is_server, _files: files };
        place.add("Namespace", json!({ "metadata": { "name": place.namespace } })).await;
        place
    }

    /// A namespace of a server that somebody else has made.
    pub(crate) fn of(client: Client, namespace: String, targets: Arc<Targets>) -> Place {
        Place { client, namespace, targets, ahead: Arc::default(), is_server: true, _files: None }
    }

    /// Has the actions reach this cluster as a configuration says.
    pub(crate) fn reach(&mut self, config: &Json) {
        let binding = Binding { alias: "cluster".into(), kind: "k8s".into(), config: value(config) };
        self.targets = Arc::new(Targets::new("/".into(), vec![binding], BTreeMap::new()));
    }

    /// Puts the clock of the embedded cluster forward.
    pub(crate) fn later(&self, seconds: i64) {
        self.ahead.fetch_add(seconds, Ordering::SeqCst);
    }

    pub(crate) fn api(&self, kind: &str) -> Api<DynamicObject> {
        let kind = kinds::known(kind, None).unwrap();
        if kind.namespaced {
            Api::namespaced_with(self.client.clone(), &self.namespace, &kind.resource)
        } else {
            Api::all_with(self.client.clone(), &kind.resource)
        }
    }

    /// A kind in the first of these versions that the cluster has.
    pub(crate) async fn resource(&self, group: &str, versions: &[&str], kind: &str) -> ApiResource {
        for version in versions {
            let kind = GroupVersionKind::gvk(group, version, kind);
            if let Ok((resource, _)) = kube::discovery::oneshot::pinned_kind(&self.client, &kind).await {
                return resource;
            }
        }
        panic!("the cluster has no {kind}");
    }

    /// Adds an object; with its status, when it has one.
    pub(crate) async fn add(&self, kind: &str, mut object: Json) -> DynamicObject {
        let status = object.as_object_mut().unwrap().remove("status");
        let known = kinds::known(kind, None).unwrap();
        object["apiVersion"] = known.resource.api_version.into();
        object["kind"] = known.resource.kind.into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let made = self.api(kind).create(&PostParams::default(), &object).await.unwrap();
        match status {
            Some(status) => self.set_status(kind, &name, status).await,
            None => made,
        }
    }

    pub(crate) async fn set_status(&self, kind: &str, name: &str, status: Json) -> DynamicObject {
        let patch = Patch::Merge(json!({ "status": status }));
        self.api(kind).patch_status(name, &PatchParams::default(), &patch).await.unwrap()
    }

    pub(crate) async fn patch(&self, kind: &str, name: &str, patch: Json) -> DynamicObject {
        self.api(kind).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
    }

    /// A deployment whose controller has nothing to do.
    pub(crate) async fn deployment(&self, name: &str, replicas: u32) -> DynamicObject {
        let spec = json!({
            "replicas": replicas, "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "main", "image": "busybox" }] },
            },
        });
        self.add("Deployment", json!({ "metadata": { "name": name }, "spec": spec })).await
    }

    /// A node with a name of its own.
    pub(crate) async fn node(&self, suffix: &str, spec: Json) -> String {
        let name = format!("{}-{suffix}", self.namespace);
        let ready = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
        self.add("Node", json!({ "metadata": { "name": name }, "spec": spec, "status": ready })).await;
        name
    }

    /// A pod that runs on a node; `of` is what it belongs to.
    pub(crate) async fn pod(&self, name: &str, node: &str, more: Json) -> DynamicObject {
        let mut pod = json!({
            "metadata": { "name": name, "labels": { "app": "x" } },
            "spec": { "nodeName": node, "containers": [{ "name": "main", "image": "busybox" }] },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        crate::standin::merge_patch(&mut pod, &more);
        self.add("Pod", pod).await
    }

    /// What there is of some kinds, as changes name it, without what servers keep for themselves.
    pub(crate) async fn world(&self, kinds: &[&str]) -> World {
        let mut world = World::new();
        for name in kinds {
            let kind = kinds::known(name, None).unwrap();
            for object in self.api(name).list(&ListParams::default()).await.unwrap().items {
                let own = kind.namespaced || object.name_any().starts_with(&self.namespace);
                if !own || object.name_any() == "kube-root-ca.crt" {
                    continue;
                }
                let key = title(&kind, object.namespace().as_deref(), &object.name_any());
                world.insert(key, value(&plain(&object)));
            }
        }
        world
    }

    /// A case for the laws on objects of these kinds.
    pub(crate) fn case<'a>(
        &'a self,
        registry: &'a ActionRegistry,
        action: &'a str,
        input: &Json,
        kinds: &'static [&'static str],
    ) -> Case<'a> {
        let mut input = input.clone();
        input["target"] = "cluster".into();
        Case {
            registry,
            action,
            input: value(&input),
            targets: self.targets.clone(),
            scope: Scope::default(),
            observe: Box::new(move || self.world(kinds).boxed()),
            disturb: None,
            bad_inputs: Vec::new(),
        }
    }

    /// The failure of a plan.
    pub(crate) async fn failure(&self, action: &str, input: Json) -> Failure {
        let registry = registry();
        let case = self.case(&registry, action, &input, &[]);
        let bound = registry.bind(action, &case.input).unwrap();
        bound.plan(&case.read_cx()).await.expect_err(&input.to_string())
    }
}

/// An object, without empty maps, which come and go.
fn plain(object: &DynamicObject) -> Json {
    let mut object = without_bookkeeping(&serde_json::to_value(object).unwrap());
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|_, value| value.as_object().is_none_or(|map| !map.is_empty()));
    }
    if let Some(map) = object.as_object_mut() {
        map.retain(|_, value| value.as_object().is_none_or(|map| !map.is_empty()));
    }
    object
}
