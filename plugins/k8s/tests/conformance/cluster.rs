//! The clusters that the suite runs on.

use farrier_action::Now;
use kube::api::{DeleteParams, DynamicObject, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config, Error};
use serde_json::{Value, json};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod};

/// Names a kubeconfig.
pub(crate) const VARIABLE: &str = "FARRIER_TEST_KUBECONFIG";

/// A cluster, and a namespace in it for one test.
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) client: Client,
    pub(crate) namespace: String,
    nodes: std::sync::Mutex<Vec<String>>,
    _files: Option<tempfile::TempDir>,
}

/// Every cluster there is.
pub(crate) async fn all(test: &str) -> Vec<Cluster> {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("cluster.yaml");
    std::fs::write(&file, "").unwrap();
    let client = farrier_plugin_k8s::stand_in(&file, Now::default()).unwrap();
    let mut clusters = vec![Cluster::begin("the stand-in", client, test, Some(files)).await];
    if let Ok(file) = std::env::var(VARIABLE) {
        let kubeconfig = Kubeconfig::read_from(&file).unwrap();
        let mut config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.default_retry = false;
        let client = Client::try_from(config).unwrap();
        clusters.push(Cluster::begin(&file, client, test, None).await);
    }
    clusters
}

impl Cluster {
    async fn begin(name: &str, client: Client, test: &str, files: Option<tempfile::TempDir>) -> Cluster {
        let random = uuid::Uuid::new_v4().simple().to_string();
        let short: String = test.replace('_', "-").chars().take(30).collect();
        let namespace = format!("farrier-{}-{}", short.trim_matches('-'), &random[..8]);
        let object: Namespace =
            from(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } }));
        Api::all(client.clone()).create(&PostParams::default(), &object).await.unwrap();
        Cluster {
            name: name.to_owned(),
            client,
            namespace,
            nodes: std::sync::Mutex::default(),
            _files: files,
        }
    }

    /// Removes what the test made; the content of a namespace goes when the server has controllers.
    pub(crate) async fn remove(self) {
        let _ = self.namespaces().delete(&self.namespace, &DeleteParams::default()).await;
        let nodes = self.nodes.lock().unwrap().clone();
        for node in nodes {
            let _ = self.nodes().delete(&node, &DeleteParams::default()).await;
        }
    }

    pub(crate) fn namespaces(&self) -> Api<Namespace> {
        Api::all(self.client.clone())
    }

    pub(crate) fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    pub(crate) fn of<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        <K as kube::Resource>::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn maps(&self) -> Api<ConfigMap> {
        self.of()
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        self.of()
    }

    /// The disruption budgets, in the version that the server has.
    pub(crate) async fn budgets(&self) -> Api<DynamicObject> {
        for version in ["v1", "v1beta1"] {
            let kind = GroupVersionKind::gvk("policy", version, "PodDisruptionBudget");
            if let Ok((resource, _)) = kube::discovery::oneshot::pinned_kind(&self.client, &kind).await {
                return Api::namespaced_with(self.client.clone(), &self.namespace, &resource);
            }
        }
        panic!("{} has no disruption budgets", self.name);
    }

    /// A config map with data.
    pub(crate) async fn map(&self, name: &str, data: Value) -> ConfigMap {
        let map = from(json!({ "metadata": { "name": name }, "data": data }));
        self.maps().create(&PostParams::default(), &map).await.unwrap()
    }

    /// A pod on a node that no kubelet serves.
    pub(crate) async fn pod(&self, name: &str, node: &str, labels: Value) -> Pod {
        let pod: Pod = from(pod(name, node, labels));
        self.pods().create(&PostParams::default(), &pod).await.unwrap()
    }

    /// Sets the status of a pod, as its kubelet would.
    pub(crate) async fn set_ready(&self, pod: &str, ready: bool) {
        let status = json!({ "status": {
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
        } });
        let patch = kube::api::Patch::Strategic(status);
        self.pods().patch_status(pod, &kube::api::PatchParams::default(), &patch).await.unwrap();
    }

    /// A node of its own name.
    pub(crate) async fn node(&self) -> String {
        let name = format!("node-{}", &self.namespace[self.namespace.len() - 8..]);
        let node: Node = from(json!({ "metadata": { "name": name } }));
        self.nodes().create(&PostParams::default(), &node).await.unwrap();
        self.nodes.lock().unwrap().push(name.clone());
        name
    }
}

/// A pod's manifest.
pub(crate) fn pod(name: &str, node: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": labels },
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 30,
            "containers": [{ "name": "main", "image": "busybox" }],
        },
    })
}

/// A deployment's manifest.
pub(crate) fn deployment(name: &str, replicas: i32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "main", "image": "busybox" }] },
            },
        },
    })
}

/// A typed object.
pub(crate) fn from<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// An object without its versions.
pub(crate) fn version(metadata: &ObjectMeta) -> u64 {
    metadata.resource_version.as_deref().unwrap().parse().unwrap()
}

/// The code and reason of a refusal.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> kube::core::response::Status {
    match answer {
        Err(Error::Api(status)) => *status,
        other => panic!("expected a refusal, got {other:?}"),
    }
}
