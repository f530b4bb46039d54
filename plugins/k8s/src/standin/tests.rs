//! What no other server shows: files, a clock that is moved, and the controllers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use farrier_action::Now;
use farrier_model::FailureKind;
use farrier_model::time::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ResourceQuota};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy, WatchParams};
use kube::{Api, Client, Error, ResourceExt};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::StandIn;
use super::apply::{Writer, apply, merged, record_update};
use super::fields::Fields;

/// A cluster in a file, whose clock stands still until it is moved.
struct Cluster {
    files: tempfile::TempDir,
    seconds: Arc<AtomicI64>,
    client: Client,
}

impl Cluster {
    fn of(text: &str) -> Cluster {
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("c.yaml"), text).unwrap();
        let seconds = Arc::new(AtomicI64::new(1_700_000_000));
        let client = open(&files.path().join("c.yaml"), &seconds).client();
        Cluster { files, seconds, client }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.files.path().join("c.yaml")).unwrap()
    }

    fn later(&self, seconds: i64) {
        self.seconds.fetch_add(seconds, Ordering::SeqCst);
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        <K as kube::Resource>::DynamicType: Default,
    {
        Api::default_namespaced(self.client.clone())
    }

    async fn add<K>(&self, object: Json) -> K
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + serde::Serialize
            + serde::de::DeserializeOwned
            + Clone
            + std::fmt::Debug,
        <K as kube::Resource>::DynamicType: Default,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api::<K>().create(&PostParams::default(), &object).await.unwrap()
    }

    async fn pods(&self) -> Vec<Pod> {
        self.api::<Pod>().list(&ListParams::default()).await.unwrap().items
    }
}

fn open(path: &Path, seconds: &Arc<AtomicI64>) -> StandIn {
    let seconds = seconds.clone();
    let now = Now::from_fn(move || Timestamp::from_second(seconds.load(Ordering::SeqCst)).unwrap());
    StandIn::open(path, now).unwrap()
}

const NODE: &str = "---
apiVersion: v1
kind: Node
metadata: { name: n1 }
status: { conditions: [{ type: Ready, status: \"True\" }] }
";

const MAPS: &str = "# The first
apiVersion: v1
kind: ConfigMap
metadata: { name: a }   # kept
data: { x: \"1\" }
---
# The second
apiVersion: v1
kind: List
items:
  - { apiVersion: v1, kind: ConfigMap, metadata: { name: b } }
  - { apiVersion: v1, kind: ConfigMap, metadata: { name: c, namespace: other } }
";

fn deployment(replicas: u32) -> Json {
    json!({
        "metadata": { "name": "web" },
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "main", "image": "busybox" }] },
            },
        },
    })
}

#[tokio::test]
async fn files_keep_what_nobody_touched() {
    let cluster = Cluster::of(MAPS);
    let before = cluster.text();
    let maps: Api<ConfigMap> = Api::all(cluster.client.clone());
    assert_eq!(maps.list(&ListParams::default()).await.unwrap().items.len(), 3);
    assert_eq!(cluster.text(), before, "reading writes nothing");
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    assert!(namespaces.get_opt("other").await.unwrap().is_some(), "what objects are in is there");

    let patch = Patch::Merge(json!({ "data": { "y": "yes", "n": "1.10", "t": "true", "m": "a: b\n# c\n" } }));
    let b = cluster.api::<ConfigMap>().patch("b", &PatchParams::default(), &patch).await.unwrap();
    let text = cluster.text();
    assert!(text.starts_with(before.split("---").next().unwrap()), "{text}");
    drop(cluster.client.clone());

    // Another process sees the same world.
    let copy = Cluster::of(&text);
    assert_eq!(copy.api::<ConfigMap>().get("b").await.unwrap(), b);
    let a = copy.api::<ConfigMap>().get("a").await.unwrap();
    assert_eq!(a, cluster.api::<ConfigMap>().get("a").await.unwrap());
    let new: ConfigMap = copy.add(json!({ "metadata": { "name": "d" } })).await;
    copy.api::<ConfigMap>().delete("d", &DeleteParams::default()).await.unwrap();
    let last = Cluster::of(&copy.text());
    let newer: ConfigMap = last.add(json!({ "metadata": { "name": "d" } })).await;
    let version = |map: &ConfigMap| map.resource_version().unwrap().parse::<u64>().unwrap();
    assert!(version(&newer) > version(&new) + 1, "no version is given twice");
    assert_ne!(newer.uid(), new.uid());
}

#[tokio::test]
async fn both_sides_and_editors_are_seen_at_once() {
    let cluster = Cluster::of(MAPS);
    let other = open(&cluster.files.path().join("c.yaml"), &cluster.seconds).client();
    let there: Api<ConfigMap> = Api::default_namespaced(other);
    cluster.add::<ConfigMap>(json!({ "metadata": { "name": "new" } })).await;
    assert!(there.get_opt("new").await.unwrap().is_some());
    std::fs::write(cluster.files.path().join("c.yaml"), MAPS.replace("x: \"1\"", "x: \"edited\"")).unwrap();
    assert_eq!(json!(there.get("a").await.unwrap().data), json!({ "x": "edited" }));
    assert!(there.get_opt("new").await.unwrap().is_none());
    std::fs::write(cluster.files.path().join("c.yaml"), "a: b").unwrap();
    let error = there.get("a").await.unwrap_err();
    assert!(error.to_string().contains("c.yaml, document at line 1: `apiVersion` is missing"), "{error}");
}

#[tokio::test]
async fn a_folder_is_one_cluster() {
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("a.yaml"), MAPS).unwrap();
    std::fs::write(files.path().join("b.yml"), NODE).unwrap();
    std::fs::write(files.path().join("readme.txt"), "not this").unwrap();
    let client = open(files.path(), &Arc::new(AtomicI64::new(1_700_000_000))).client();
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client);
    nodes.cordon("n1").await.unwrap();
    let text = std::fs::read_to_string(files.path().join("b.yml")).unwrap();
    assert!(text.contains("unschedulable: true"), "{text}");
    assert!(!text.contains("StandIn"), "the counter is in the first file");
}

#[test]
fn mistakes_in_files_are_said_with_their_place() {
    for (text, reason) in [
        ("a: [", "document at line 1: "),
        (
            "\n---\napiVersion: v1\nkind: Nothing\n",
            "document at line 3: `Nothing` of `v1` is not a kind that the stand-in knows",
        ),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {}\n", "`metadata.name` is missing"),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: A }\n",
            "ConfigMap \"A\" is invalid: metadata.name",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: a }\ndota: {}\n",
            "`ConfigMap` has no field `dota`",
        ),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: { name: a }\ndata: 7\n", "data: "),
        ("apiVersion: v1\nkind: Node\nmetadata: { name: a, namespace: b }\n", "a `Node` has no namespace"),
        (
            "apiVersion: v1\nkind: Node\nmetadata: { name: a }\n---\napiVersion: v1\nkind: Node\nmetadata: { name: a }\n",
            "document at line 5: nodes \"a\" stands in the files twice",
        ),
    ] {
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join("c.yaml");
        std::fs::write(&path, text).unwrap();
        let failure = StandIn::open(&path, Now::default()).map(|_| ()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Input, "{failure}");
        assert!(failure.message.contains("c.yaml, ") && failure.message.contains(reason), "{failure}");
    }
}

#[tokio::test]
async fn what_is_too_old_is_gone() {
    let cluster = Cluster::of(MAPS);
    let maps: Api<ConfigMap> = Api::all(cluster.client.clone());
    let params = ListParams::default().limit(1);
    let first = maps.list(&params).await.unwrap();
    cluster.add::<ConfigMap>(json!({ "metadata": { "name": "new" } })).await;
    cluster.later(301);
    let answer = maps.list(&params.continue_token(&first.metadata.continue_.unwrap())).await;
    assert!(
        matches!(&answer, Err(Error::Api(status)) if status.code == 410 && status.reason == "Expired"),
        "{answer:?}"
    );
    let stream =
        maps.watch(&WatchParams::default(), &first.metadata.resource_version.unwrap()).await.unwrap();
    let events: Vec<_> = futures_util::StreamExt::collect(stream).await;
    let [Ok(kube::api::WatchEvent::Error(status))] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((status.code, &*status.reason), (410, "Expired"));
    let ahead = maps.watch(&WatchParams::default(), "999999").await;
    assert!(matches!(ahead.map(|_| ()), Err(Error::Api(status)) if status.code == 504));
}

#[tokio::test]
async fn time_ends_pods() {
    let cluster = Cluster::of(NODE);
    for (name, annotations) in [("ends", json!({})), ("hangs", json!({ "stand-in.farrier.run/stuck": "" }))] {
        let pod = json!({
            "metadata": { "name": name, "annotations": annotations },
            "spec": { "nodeName": "n1", "containers": [{ "name": "main", "image": "x" }] },
        });
        cluster.add::<Pod>(pod).await;
        cluster.api::<Pod>().delete(name, &DeleteParams::default()).await.unwrap();
    }
    cluster.later(29);
    assert_eq!(cluster.pods().await.len(), 2);
    cluster.later(1);
    let left: Vec<String> = cluster.pods().await.iter().map(kube::ResourceExt::name_any).collect();
    assert_eq!(left, ["hangs"]);
    cluster.api::<Pod>().delete("hangs", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert_eq!(cluster.pods().await.len(), 0);
}

#[tokio::test]
async fn deployments_have_their_pods() {
    let cluster = Cluster::of(NODE);
    cluster.add::<Deployment>(deployment(2)).await;
    let pods = cluster.pods().await;
    assert_eq!(pods.len(), 2);
    assert!(pods.iter().all(|pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some("n1")));
    let status = cluster.api::<Deployment>().get("web").await.unwrap().status.unwrap();
    assert_eq!((status.ready_replicas, status.observed_generation), (Some(2), Some(1)));
    let patch = Patch::Merge(json!({ "spec": { "replicas": 0 } }));
    cluster.api::<Deployment>().patch_scale("web", &PatchParams::default(), &patch).await.unwrap();
    cluster.later(30);
    assert_eq!(cluster.pods().await.len(), 0);

    let patch = Patch::Merge(json!({ "spec": { "replicas": 1 } }));
    cluster.api::<Deployment>().patch("web", &PatchParams::default(), &patch).await.unwrap();
    let image = json!({ "spec": { "template": { "metadata": { "annotations": { "again": "1" } } } } });
    let old = cluster.pods().await[0].name_any();
    cluster.api::<Deployment>().patch("web", &PatchParams::default(), &Patch::Merge(image)).await.unwrap();
    cluster.later(30);
    let pods = cluster.pods().await;
    assert_eq!(pods.len(), 1);
    assert_ne!(pods[0].name_any(), old, "a new template gives new pods");

    let foreground =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() };
    cluster.api::<Deployment>().delete("web", &foreground).await.unwrap();
    assert!(cluster.api::<Deployment>().get_opt("web").await.unwrap().is_some(), "it goes after its pods");
    cluster.later(30);
    assert_eq!(cluster.pods().await.len(), 0);
    assert!(cluster.api::<Deployment>().get_opt("web").await.unwrap().is_none());
}

#[tokio::test]
async fn workloads_of_files_rest_until_someone_changes_them() {
    let mut object = deployment(2);
    object["apiVersion"] = "apps/v1".into();
    object["kind"] = "Deployment".into();
    let cluster = Cluster::of(&format!("{NODE}---\n{object}\n"));
    assert_eq!(cluster.pods().await.len(), 0);
    let patch = |patch: Json| Patch::Merge(patch);
    let api = cluster.api::<Deployment>();
    api.patch("web", &PatchParams::default(), &patch(json!({ "metadata": { "labels": { "a": "b" } } })))
        .await
        .unwrap();
    assert_eq!(cluster.pods().await.len(), 0);
    api.patch("web", &PatchParams::default(), &patch(json!({ "spec": { "replicas": 3 } }))).await.unwrap();
    assert_eq!(cluster.pods().await.len(), 3);
}

#[tokio::test]
async fn orphans_stay() {
    let cluster = Cluster::of(NODE);
    cluster.add::<Deployment>(deployment(1)).await;
    let orphan =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    cluster.api::<Deployment>().delete("web", &orphan).await.unwrap();
    assert!(cluster.api::<Deployment>().get_opt("web").await.unwrap().is_none());
    cluster.later(60);
    assert_eq!(cluster.pods().await.len(), 1);
}

#[tokio::test]
async fn jobs_end_as_they_are_told() {
    let cluster = Cluster::of(NODE);
    for (name, ends) in [("good", "succeeded after 30s"), ("bad", "failed"), ("open", "")] {
        let annotations =
            if ends.is_empty() { json!({}) } else { json!({ "stand-in.farrier.run/ends": ends }) };
        let job = json!({
            "metadata": { "name": name, "annotations": annotations },
            "spec": { "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "main", "image": "x" }] } } },
        });
        cluster.add::<Job>(job).await;
    }
    let state = async |name: &str| {
        let status = cluster.api::<Job>().get(name).await.unwrap().status.unwrap();
        (status.active.unwrap_or(0), status.succeeded.unwrap_or(0), status.failed.unwrap_or(0))
    };
    assert_eq!((state("good").await, state("bad").await), ((1, 0, 0), (0, 0, 1)));
    cluster.later(30);
    assert_eq!((state("good").await, state("open").await), ((0, 1, 0), (1, 0, 0)));
    assert_eq!(cluster.pods().await.len(), 3);
    cluster.api::<Job>().delete("good", &DeleteParams::background()).await.unwrap();
    assert_eq!(cluster.pods().await.len(), 2, "its pod goes with it");
}

const QUOTA: &str = "---
apiVersion: v1
kind: ResourceQuota
metadata: { name: tool }
spec: { hard: { pods: \"2\", requests.cpu: 500m, limits.memory: 1Gi, count/jobs.batch: \"1\" } }
";

#[tokio::test]
async fn quotas_hold_back_what_controllers_make_and_say_what_is_used() {
    let cluster = Cluster::of(&format!("{NODE}{QUOTA}"));
    let used = async || {
        let quota = cluster.api::<ResourceQuota>().get("tool").await.unwrap();
        let used = serde_json::to_value(quota.status.unwrap().used.unwrap()).unwrap();
        ["pods", "requests.cpu", "limits.memory"].map(|name| used[name].as_str().unwrap().to_owned())
    };
    assert_eq!(used().await, ["0", "0", "0"]);
    // What does not say how much it needs is not let in where that is counted.
    cluster.add::<Deployment>(deployment(1)).await;
    assert_eq!(cluster.pods().await.len(), 0);
    let resources = json!({ "requests": { "cpu": "200m" }, "limits": { "memory": "256Mi" } });
    let containers = json!([{ "name": "main", "image": "busybox", "resources": resources }]);
    let wanted = json!({ "spec": { "replicas": 3, "template": { "spec": { "containers": containers } } } });
    let deployments = cluster.api::<Deployment>();
    deployments.patch("web", &PatchParams::default(), &Patch::Merge(wanted)).await.unwrap();
    assert_eq!(cluster.pods().await.len(), 2, "the third is beyond the quota");
    assert_eq!(used().await, ["2", "400m", "512Mi"]);
    let more = json!({ "spec": { "hard": { "pods": "3", "requests.cpu": "1" } } });
    cluster.api::<ResourceQuota>().patch("tool", &PatchParams::default(), &Patch::Merge(more)).await.unwrap();
    assert_eq!((cluster.pods().await.len(), used().await), (3, ["3", "600m", "768Mi"].map(str::to_owned)));
    let pod = json!({ "metadata": { "name": "mute" }, "spec": { "containers": [{ "name": "main", "image": "x" }] } });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let Err(Error::Api(refusal)) = cluster.api::<Pod>().create(&PostParams::default(), &pod).await else {
        panic!("it was let in");
    };
    assert_eq!((refusal.code, refusal.reason.as_str()), (403, "Forbidden"));
    let expected = "pods \"mute\" is forbidden: failed quota: tool: must specify limits.memory for: main; requests.cpu \
                    for: main";
    assert_eq!(refusal.message, expected);
}

#[tokio::test]
async fn cron_jobs_make_jobs_when_they_are_due() {
    let cluster = Cluster::of(NODE);
    // The clock stands at 22:13:20.
    let template = |ends: &str| {
        let pod =
            json!({ "spec": { "restartPolicy": "Never", "containers": [{ "name": "main", "image": "x" }] } });
        json!({ "metadata": { "annotations": { "stand-in.farrier.run/ends": ends } }, "spec": { "template": pod } })
    };
    let add = async |name: &str, schedule: &str, ends: &str| {
        let spec =
            json!({ "schedule": schedule, "concurrencyPolicy": "Forbid", "jobTemplate": template(ends) });
        cluster.add::<CronJob>(json!({ "metadata": { "name": name }, "spec": spec })).await
    };
    let jobs = async |name: &str| {
        let all = cluster.api::<Job>().list(&ListParams::default()).await.unwrap().items;
        let names = all.iter().map(ResourceExt::name_any).filter(|job| job.starts_with(name));
        names.collect::<Vec<String>>()
    };
    add("five", "*/5 * * * *", "succeeded after 30s").await;
    add("slow", "*/5 * * * *", "").await;
    assert_eq!((jobs("five").await.len(), jobs("slow").await.len()), (0, 0), "nothing is due yet");
    cluster.later(100);
    assert_eq!(jobs("five").await, ["five-28333335"]);
    let status = async |name: &str| cluster.api::<CronJob>().get(name).await.unwrap().status.unwrap();
    let found = status("five").await;
    assert_eq!(found.active.unwrap().len(), 1);
    assert_eq!(found.last_schedule_time.unwrap().0.to_string(), "2023-11-14T22:15:00Z");
    cluster.later(40);
    let found = status("five").await;
    assert!(found.active.unwrap_or_default().is_empty() && found.last_successful_time.is_some());
    // Of many due times only the last is made up for; one that still runs lets no second one begin.
    cluster.later(3600);
    assert_eq!((jobs("five").await.len(), jobs("slow").await.len()), (2, 1));
    for _ in 0..4 {
        cluster.later(300);
        jobs("five").await;
    }
    cluster.later(60);
    assert_eq!(jobs("five").await.len(), 3, "three that succeeded are kept");
    let suspend = |suspend: bool| Patch::Merge(json!({ "spec": { "suspend": suspend } }));
    let before = jobs("five").await;
    cluster.api::<CronJob>().patch("five", &PatchParams::default(), &suspend(true)).await.unwrap();
    cluster.later(3600);
    assert_eq!(jobs("five").await, before, "suspended");
    cluster.api::<CronJob>().delete("five", &DeleteParams::background()).await.unwrap();
    assert_eq!(jobs("five").await, Vec::<String>::new(), "its jobs go with it");
}

#[tokio::test]
async fn a_cron_job_of_the_files_is_at_rest() {
    let text = "apiVersion: batch/v1
kind: CronJob
metadata: { name: old, creationTimestamp: \"2023-01-01T00:00:00Z\" }
spec:
  schedule: '* * * * *'
  jobTemplate: { spec: { template: { spec: { restartPolicy: Never, containers: [{ name: a, image: b }] } } } }
";
    for (status, expected) in [("", 0), ("status: {}\n", 1)] {
        let cluster = Cluster::of(&format!("{text}{status}---\n{NODE}"));
        cluster.later(86400);
        assert_eq!(cluster.api::<Job>().list(&ListParams::default()).await.unwrap().items.len(), expected);
    }
}

#[tokio::test]
async fn namespaces_wait_for_their_content() {
    let cluster = Cluster::of(MAPS);
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "other");
    let held = |finalizers: Json| Patch::Merge(json!({ "metadata": { "finalizers": finalizers } }));
    maps.patch("c", &PatchParams::default(), &held(json!(["example.org/x"]))).await.unwrap();
    namespaces.delete("other", &DeleteParams::default()).await.unwrap();
    cluster.later(3600);
    assert!(namespaces.get("other").await.unwrap().metadata.deletion_timestamp.is_some());
    maps.patch("c", &PatchParams::default(), &held(json!(null))).await.unwrap();
    assert!(namespaces.get_opt("other").await.unwrap().is_none());
    assert!(!cluster.text().contains("namespace: other"), "{}", cluster.text());
}

#[tokio::test]
async fn a_refused_or_dry_request_leaves_nothing() {
    let cluster = Cluster::of(MAPS);
    let before = cluster.text();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let map: ConfigMap = serde_json::from_value(json!({ "metadata": { "name": "new" } })).unwrap();
    cluster.api::<ConfigMap>().create(&dry, &map).await.unwrap();
    let patch = Patch::Merge(json!({ "data": { "x": 7 } }));
    cluster.api::<ConfigMap>().patch("a", &PatchParams::default(), &patch).await.unwrap_err();
    assert_eq!(cluster.text(), before);
}

fn tree() -> impl Strategy<Value = Json> {
    let leaf =
        prop_oneof![Just(json!(null)), any::<bool>().prop_map(Json::from), "[a-z]{0,3}".prop_map(Json::from)];
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::btree_map("(env|finalizers|containers|spec|name|[a-c])", inner, 0..4)
                .prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever objects look like, sets of fields survive their stored form, and an apply of an apply changes nothing.
    #[test]
    fn fields_are_kept(live in tree(), config in tree()) {
        let object = |spec: &Json| json!({ "metadata": { "name": "x" }, "spec": spec });
        let (live, config) = (object(&live), object(&config));
        let fields = Fields::of(&config);
        prop_assert_eq!(Fields::from_v1(&fields.to_v1()), fields);
        let now = Timestamp::UNIX_EPOCH;
        let writer = Writer { manager: "m", api_version: "v1", subresource: "", now };
        let mut base = live.clone();
        record_update(&Json::Null, &mut base, writer);
        let once = apply(&base, &config, true, writer).unwrap();
        let twice = apply(&once, &config, true, writer).unwrap();
        prop_assert_eq!(&once, &twice);
        prop_assert_eq!(merged(&once, &config)["spec"].clone(), once["spec"].clone());
    }
}
