//! Quotas refuse what is beyond them, in the server's words. A server alone has no controller that keeps a quota's status, so
//! the suite says it.

use farrier_model::FailureKind;
use serde_json::json;

use super::Place;

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
        let manifest = |kind: &str, name: &str, spec: serde_json::Value| {
            let metadata = json!({ "name": name, "namespace": place.namespace });
            let mut manifest = json!({ "apiVersion": "v1", "kind": kind, "metadata": metadata });
            crate::standin::merge_patch(&mut manifest, &spec);
            json!({ "manifest": manifest })
        };
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
