//! Quotas refuse what is beyond them, in the server's words. A server alone has no controller that keeps a quota's status, so
//! the suite says it.

use farrier_model::FailureKind;
use serde_json::{Value as Json, json};

use super::Place;

fn manifest(place: &Place, kind: &str, name: &str, spec: &Json) -> Json {
    let metadata = json!({ "name": name, "namespace": place.namespace });
    let mut manifest = json!({ "apiVersion": "v1", "kind": kind, "metadata": metadata });
    crate::standin::merge_patch(&mut manifest, spec);
    json!({ "manifest": manifest })
}

#[tokio::test]
async fn objects_beyond_a_quota_are_refused() {
    for place in Place::all().await {
        place.add("ConfigMap", json!({ "metadata": { "name": "first" } })).await;
        let hard = json!({ "pods": "0", "count/configmaps": "2" });
        // One more is there already where a controller gives every namespace its root certificate.
        let used = json!({ "pods": "0", "count/configmaps": "1" });
        let quota = json!({ "metadata": { "name": "tool" }, "spec": { "hard": hard } });
        place.add("ResourceQuota", quota).await;
        place.set_status("ResourceQuota", "tool", json!({ "hard": hard, "used": used })).await;
        let manifest = |kind: &str, name: &str, spec: Json| manifest(&place, kind, name, &spec);
        let containers = json!({ "spec": { "containers": [{ "name": "main", "image": "busybox" }] } });
        let failure = place.failure("k8s.apply", manifest("Pod", "p", containers)).await;
        assert_eq!(failure.kind, FailureKind::Refused);
        let expected =
            "pods \"p\" is forbidden: exceeded quota: tool, requested: pods=1, used: pods=0, limited: pods=0";
        assert!(failure.message.contains(expected), "{failure}");
        place.add("ConfigMap", json!({ "metadata": { "name": "second" } })).await;
        let failure = place.failure("k8s.apply", manifest("ConfigMap", "third", json!({}))).await;
        let expected = "exceeded quota: tool, requested: count/configmaps=1, used: count/configmaps=2, limited: \
                        count/configmaps=2";
        assert!(failure.message.contains(expected), "{failure}");
    }
}

#[tokio::test]
async fn pods_say_what_a_quota_counts_and_ask_for_no_more() {
    for place in Place::all().await {
        for (name, hard) in [
            ("compute", json!({ "requests.cpu": "1", "limits.memory": "1Gi", "pods": "5" })),
            ("objects", json!({ "count/pods": "2" })),
        ] {
            place
                .add("ResourceQuota", json!({ "metadata": { "name": name }, "spec": { "hard": hard } }))
                .await;
            let none = hard.as_object().unwrap().keys().map(|name| (name.clone(), json!("0")));
            let used: Json = none.collect::<serde_json::Map<_, _>>().into();
            place.set_status("ResourceQuota", name, json!({ "hard": hard, "used": used })).await;
        }
        let pod = |name: &str, resources: Json| {
            let container = json!({ "name": "main", "image": "busybox", "resources": resources });
            manifest(&place, "Pod", name, &json!({ "spec": { "containers": [container] } }))
        };
        for (resources, expected) in [
            (json!({}), "failed quota: compute: must specify limits.memory"),
            (json!({ "limits": { "memory": "64Mi" } }), "failed quota: compute: must specify requests.cpu"),
            (
                json!({ "requests": { "cpu": "1500m" }, "limits": { "memory": "64Mi" } }),
                "exceeded quota: compute, requested: requests.cpu=1500m, used: requests.cpu=0, limited: requests.cpu=1",
            ),
            (
                json!({ "limits": { "cpu": "2", "memory": "1536Mi" } }),
                "exceeded quota: compute, requested: limits.memory=1536Mi,requests.cpu=2, \
                 used: limits.memory=0,requests.cpu=0, limited: limits.memory=1Gi,requests.cpu=1",
            ),
        ] {
            let failure = place.failure("k8s.apply", pod("p", resources)).await;
            assert_eq!(failure.kind, FailureKind::Refused);
            assert!(failure.message.contains(expected), "{failure}");
        }
        // What is used counts, and a refused one does not.
        let small = json!({ "requests": { "cpu": "600m" }, "limits": { "memory": "512Mi" } });
        let container = json!({ "name": "main", "image": "busybox", "resources": small });
        let spec = json!({ "containers": [container] });
        place.add("Pod", json!({ "metadata": { "name": "first" }, "spec": spec })).await;
        let expected = "exceeded quota: compute, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1";
        let failure = place.failure("k8s.apply", pod("p", small)).await;
        assert!(failure.message.contains(expected), "{failure}");
        let least = json!({ "requests": { "cpu": "100m" }, "limits": { "memory": "64Mi" } });
        let container = json!({ "name": "main", "image": "busybox", "resources": least });
        let spec = json!({ "containers": [container] });
        place.add("Pod", json!({ "metadata": { "name": "second" }, "spec": spec })).await;
        let failure = place.failure("k8s.apply", pod("p", least)).await;
        let expected =
            "exceeded quota: objects, requested: count/pods=1, used: count/pods=2, limited: count/pods=2";
        assert!(failure.message.contains(expected), "{failure}");
        // An object that is there already asks for nothing more.
        let label = json!({ "metadata": { "labels": { "a": "b" } } });
        place.patch("Pod", "first", label).await;
        let used = place.api("ResourceQuota").get("compute").await.unwrap().data["status"]["used"].clone();
        assert_eq!(used, json!({ "limits.memory": "576Mi", "pods": "2", "requests.cpu": "700m" }));
    }
}
