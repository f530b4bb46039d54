//! Deletion: preconditions, finalizers, grace, evictions.

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use crate::cluster::{Cluster, from, refused};
use crate::conformance;

fn with(grace: u32) -> DeleteParams {
    DeleteParams { grace_period_seconds: Some(grace), ..DeleteParams::default() }
}

/// A budget over two pods that are ready, with as many disruptions as the pods allow; a controller says the same.
async fn budget(cluster: &Cluster, least: i64) {
    for name in ["a", "b"] {
        cluster.pod(name, "node", json!({ "app": "x" })).await;
        cluster.set_ready(name, true).await;
    }
    let budgets = cluster.budgets().await;
    let object = json!({
        "metadata": { "name": "b" },
        "spec": { "minAvailable": least, "selector": { "matchLabels": { "app": "x" } } },
    });
    let made = budgets.create(&PostParams::default(), &from(object)).await.unwrap();
    let status = json!({ "status": {
        "observedGeneration": made.metadata.generation, "expectedPods": 2, "desiredHealthy": least,
        "currentHealthy": 2, "disruptionsAllowed": 2 - least,
    } });
    budgets.patch_status("b", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

conformance! {
    async fn a_deleted_object_is_gone(cluster) {
        let map = cluster.map("m", json!({})).await;
        let answer = cluster.maps().delete("m", &DeleteParams::default()).await.unwrap();
        if let Some(status) = answer.right() {
            assert_eq!(status.details.unwrap().uid, map.uid().unwrap());
        }
        assert!(cluster.maps().get_opt("m").await.unwrap().is_none());
        let status = refused(cluster.maps().delete("m", &DeleteParams::default()).await);
        assert_eq!((status.code, &*status.reason), (404, "NotFound"));
        let again = cluster.map("m", json!({})).await;
        assert_ne!(again.uid(), map.uid(), "a new object of the same name is another one");
    }

    async fn a_deletion_can_name_the_object(cluster) {
        let map = cluster.map("m", json!({})).await;
        let of = |uid: Option<String>, resource_version: Option<String>| DeleteParams {
            preconditions: Some(Preconditions { uid, resource_version }),
            ..DeleteParams::default()
        };
        let wrong = of(Some("00000000-0000-0000-0000-000000000000".into()), None);
        let status = refused(cluster.maps().delete("m", &wrong).await);
        assert_eq!((status.code, &*status.reason), (409, "Conflict"));
        assert!(status.message.contains("the UID in the precondition (00000000-"), "{}", status.message);
        let patch = Patch::Merge(json!({ "data": { "a": "1" } }));
        cluster.maps().patch("m", &PatchParams::default(), &patch).await.unwrap();
        let status = refused(cluster.maps().delete("m", &of(map.uid(), map.resource_version())).await);
        assert_eq!((status.code, &*status.reason), (409, "Conflict"));
        assert!(cluster.maps().get_opt("m").await.unwrap().is_some());
        cluster.maps().delete("m", &of(map.uid(), None)).await.unwrap();
        assert!(cluster.maps().get_opt("m").await.unwrap().is_none());
    }

    async fn a_dry_deletion_deletes_nothing(cluster) {
        let map = cluster.map("m", json!({})).await;
        let params = DeleteParams { dry_run: true, ..DeleteParams::default() };
        cluster.maps().delete("m", &params).await.unwrap();
        assert_eq!(cluster.maps().get("m").await.unwrap(), map);
        assert_eq!(refused(cluster.maps().delete("none", &params).await).code, 404);
    }

    async fn finalizers_hold_an_object(cluster) {
        let map: ConfigMap =
            from(json!({ "metadata": { "name": "m", "finalizers": ["example.org/a", "example.org/b"] } }));
        cluster.maps().create(&PostParams::default(), &map).await.unwrap();
        let held = cluster.maps().delete("m", &DeleteParams::default()).await.unwrap().left().unwrap();
        assert!(held.metadata.deletion_timestamp.is_some());
        let again = cluster.maps().delete("m", &DeleteParams::default()).await.unwrap().left().unwrap();
        assert_eq!(again.metadata.deletion_timestamp, held.metadata.deletion_timestamp);
        let set = |finalizers: &[&str]| Patch::Merge(json!({ "metadata": { "finalizers": finalizers } }));
        let params = PatchParams::default();
        let status = refused(cluster.maps().patch("m", &params, &set(&["example.org/c"])).await);
        assert_eq!((status.code, &*status.reason), (422, "Invalid"));
        assert!(status.message.contains("no new finalizers can be added if the object is being deleted"), "{}", status.message);
        cluster.maps().patch("m", &params, &set(&["example.org/a"])).await.unwrap();
        assert!(cluster.maps().get_opt("m").await.unwrap().is_some());
        cluster.maps().patch("m", &params, &set(&[])).await.unwrap();
        assert!(cluster.maps().get_opt("m").await.unwrap().is_none());
    }

    async fn a_pod_gets_time_to_end(cluster) {
        cluster.pod("p", "node", json!({})).await;
        cluster.set_ready("p", true).await;
        let going = cluster.pods().delete("p", &DeleteParams::default()).await.unwrap().left().unwrap();
        assert_eq!(going.metadata.deletion_grace_period_seconds, Some(30));
        let until = going.metadata.deletion_timestamp.clone().unwrap();
        let sooner = cluster.pods().delete("p", &with(600)).await.unwrap().left().unwrap();
        assert_eq!(sooner.metadata.deletion_timestamp.unwrap(), until, "it cannot be put off");
        let sooner = cluster.pods().delete("p", &with(5)).await.unwrap().left().unwrap();
        assert_eq!(sooner.metadata.deletion_grace_period_seconds, Some(5));
        cluster.pods().delete("p", &with(0)).await.unwrap();
        assert!(cluster.pods().get_opt("p").await.unwrap().is_none());
    }

    async fn a_pod_that_runs_nowhere_is_gone_at_once(cluster) {
        let mut pod = crate::cluster::pod("p", "x", json!({}));
        pod["spec"].as_object_mut().unwrap().remove("nodeName");
        pod["spec"]["schedulerName"] = "nobody".into();
        let pod: Pod = from(pod);
        cluster.pods().create(&PostParams::default(), &pod).await.unwrap();
        cluster.pods().delete("p", &DeleteParams::default()).await.unwrap();
        assert!(cluster.pods().get_opt("p").await.unwrap().is_none());
    }

    async fn a_collection_is_deleted_by_its_labels(cluster) {
        for (name, app) in [("a", "x"), ("b", "x"), ("c", "y")] {
            let map: ConfigMap = from(json!({ "metadata": { "name": name, "labels": { "app": app } } }));
            cluster.maps().create(&PostParams::default(), &map).await.unwrap();
        }
        let chosen = kube::api::ListParams::default().labels("app=x");
        cluster.maps().delete_collection(&DeleteParams::default(), &chosen).await.unwrap();
        let left = cluster.maps().list(&kube::api::ListParams::default().labels("app")).await.unwrap();
        assert_eq!(left.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["c"]);
    }

    async fn a_namespace_takes_nothing_new_when_it_goes(cluster) {
        let namespace = json!({ "spec": { "finalizers": ["kubernetes"] }, "metadata": { "finalizers": ["example.org/held"] } });
        cluster
            .namespaces()
            .patch(&cluster.namespace, &PatchParams::default(), &Patch::Merge(namespace))
            .await
            .unwrap();
        cluster.namespaces().delete(&cluster.namespace, &DeleteParams::default()).await.unwrap();
        let going = cluster.namespaces().get(&cluster.namespace).await.unwrap();
        assert!(going.metadata.deletion_timestamp.is_some());
        assert_eq!(going.status.unwrap().phase.as_deref(), Some("Terminating"));
        let map: ConfigMap = from(json!({ "metadata": { "name": "m" } }));
        let status = refused(cluster.maps().create(&PostParams::default(), &map).await);
        assert_eq!((status.code, &*status.reason), (403, "Forbidden"));
        assert!(status.message.contains("because it is being terminated"), "{}", status.message);
        assert!(status.details.unwrap().causes.iter().any(|cause| cause.reason == "NamespaceTerminating"));
        let free = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        cluster.namespaces().patch(&cluster.namespace, &PatchParams::default(), &free).await.unwrap();
    }

    async fn a_budget_stops_evictions(cluster) {
        budget(&cluster, 2).await;
        let status = refused(cluster.pods().evict("a", &EvictParams::default()).await);
        assert_eq!((status.code, &*status.reason), (429, "TooManyRequests"));
        assert_eq!(status.message, "Cannot evict pod as it would violate the pod's disruption budget.");
        let cause = &status.details.unwrap().causes[0];
        assert_eq!(&*cause.reason, "DisruptionBudget");
        assert_eq!(&*cause.message, "The disruption budget b needs 2 healthy pods and has 2 currently");
        assert!(cluster.pods().get("a").await.unwrap().metadata.deletion_timestamp.is_none());
    }

    async fn a_budget_allows_as_many_as_it_can(cluster) {
        budget(&cluster, 1).await;
        let dry = EvictParams { post_options: PostParams { dry_run: true, ..PostParams::default() }, ..EvictParams::default() };
        cluster.pods().evict("a", &dry).await.unwrap();
        assert!(cluster.pods().get("a").await.unwrap().metadata.deletion_timestamp.is_none());
        cluster.pods().evict("a", &EvictParams::default()).await.unwrap();
        assert!(cluster.pods().get("a").await.unwrap().metadata.deletion_timestamp.is_some());
        let status = refused(cluster.pods().evict("b", &EvictParams::default()).await);
        assert_eq!(status.code, 429);
        cluster.pods().evict("a", &EvictParams::default()).await.expect("what goes already is evicted already");
        assert_eq!(refused(cluster.pods().evict("none", &EvictParams::default()).await).code, 404);
    }

    async fn pods_without_a_budget_are_evicted(cluster) {
        cluster.pod("p", "node", json!({})).await;
        cluster.set_ready("p", true).await;
        cluster.pods().evict("p", &EvictParams::default()).await.unwrap();
        let going = cluster.pods().get("p").await.unwrap();
        assert_eq!(going.metadata.deletion_grace_period_seconds, Some(30));
    }
}
