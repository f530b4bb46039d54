//! When the world does not play along.

use farrier_action::WriteCx;
use farrier_model::{FailureKind, Value};
use serde_json::json;

use super::{Place, registry};

#[tokio::test]
async fn what_is_not_there_is_said() {
    for place in Place::all().await {
        for (action, input) in [
            ("k8s.get", json!({ "kind": "ConfigMap", "namespace": place.namespace, "name": "none" })),
            ("k8s.delete", json!({ "kind": "ConfigMap", "namespace": place.namespace, "name": "none" })),
            ("k8s.scale", json!({ "namespace": place.namespace, "name": "none", "replicas": 1 })),
            ("k8s.cordon", json!({ "node": "farrier-none" })),
            ("k8s.uncordon", json!({ "node": "farrier-none" })),
            ("k8s.drain", json!({ "node": "farrier-none" })),
            ("k8s.logs", json!({ "namespace": place.namespace, "pod": "none" })),
            (
                "k8s.patch",
                json!({ "kind": "ConfigMap", "namespace": place.namespace, "name": "none", "patch": { "data": {} } }),
            ),
        ] {
            let failure = place.failure(action, input).await;
            assert_eq!(failure.kind, FailureKind::Refused, "{action}: {failure}");
            assert!(failure.message.contains("there is no "), "{action}: {failure}");
            assert_eq!(failure.target.as_deref(), Some("cluster"));
        }
    }
}

#[tokio::test]
async fn a_field_of_someone_else_is_a_refusal() {
    for place in Place::all().await {
        place.add("ConfigMap", json!({ "metadata": { "name": "m" }, "data": { "a": "1" } })).await;
        let manifest = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "m", "namespace": place.namespace }, "data": { "a": "2" },
        });
        let failure = place.failure("k8s.apply", json!({ "manifest": manifest })).await;
        assert_eq!(failure.kind, FailureKind::Refused);
        assert!(failure.message.contains("conflict with \""), "{failure}");
        assert_eq!(failure.help.as_deref(), Some("`force: true` takes the fields over"));
    }
}

#[tokio::test]
async fn what_the_server_finds_wrong_is_a_refusal_of_the_plan() {
    for place in Place::all().await {
        let manifest = |kind: &str, more: serde_json::Value| {
            let mut manifest = json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": "m", "namespace": place.namespace } });
            crate::standin::merge_patch(&mut manifest, &more);
            json!({ "manifest": manifest })
        };
        for (input, reason) in [
            (manifest("ConfigMap", json!({ "dota": { "a": "1" } })), "field not declared in schema"),
            (manifest("Pod", json!({ "spec": { "containers": [] } })), "spec.containers: Required value"),
            (
                manifest("ConfigMap", json!({ "metadata": { "namespace": "farrier-none" } })),
                "namespaces \"farrier-none\" not found",
            ),
            (manifest("ConfigMap", json!({ "metadata": { "labels": { "a": "x y" } } })), "metadata.labels"),
        ] {
            let failure = place.failure("k8s.apply", input).await;
            assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
            assert!(failure.message.contains(reason), "{failure}");
        }
    }
}

/// Another object that has the name by now is not the one of the plan.
#[tokio::test]
async fn another_object_of_the_name_is_left_alone() {
    for place in Place::all().await {
        let registry = registry();
        place.deployment("d", 1).await;
        for (action, input) in [
            ("k8s.delete", json!({ "kind": "Deployment", "namespace": place.namespace, "name": "d" })),
            ("k8s.scale", json!({ "namespace": place.namespace, "name": "d", "replicas": 7 })),
            (
                "k8s.patch",
                json!({ "kind": "Deployment", "namespace": place.namespace, "name": "d", "patch": { "spec": { "paused": true } } }),
            ),
        ] {
            let case = place.case(&registry, action, &input, &["Deployment"]);
            let bound = registry.bind(action, &case.input).unwrap();
            let plan = bound.plan(&case.read_cx()).await.unwrap();
            place.api("Deployment").delete("d", &kube::api::DeleteParams::default()).await.unwrap();
            let write = WriteCx::after_intent(case.read_cx());
            if action != "k8s.delete" {
                let failure = bound.apply(&write, &plan.changes).await.unwrap_err();
                assert_eq!(failure.kind, FailureKind::Drift, "{action}: {failure}");
            }
            place.deployment("d", 1).await;
            let before = place.world(&["Deployment"]).await;
            let failure = bound.apply(&write, &plan.changes).await.unwrap_err();
            assert_eq!(failure.kind, FailureKind::Drift, "{action}: {failure}");
            assert!(failure.message.contains("is another object of that name"), "{failure}");
            assert_eq!(place.world(&["Deployment"]).await, before, "{action}");
        }
    }
}

/// Others may change the rest of the object between plan and apply.
#[tokio::test]
async fn other_fields_do_not_matter() {
    for place in Place::all().await {
        place.deployment("d", 1).await;
        let registry = registry();
        let input = json!({ "namespace": place.namespace, "name": "d", "replicas": 0 });
        let case = place.case(&registry, "k8s.scale", &input, &["Deployment"]);
        let bound = registry.bind(case.action, &case.input).unwrap();
        let plan = bound.plan(&case.read_cx()).await.unwrap();
        place.patch("Deployment", "d", json!({ "metadata": { "labels": { "x": "y" } } })).await;
        let write = WriteCx::after_intent(case.read_cx());
        bound.apply(&write, &plan.changes).await.unwrap();
        bound.apply(&write, &plan.changes).await.expect("the answer was lost: it is done already");
        let world = place.world(&["Deployment"]).await;
        let object = world.values().next().unwrap();
        assert_eq!(object.get("spec").unwrap().get("replicas"), Some(&Value::Int(0)));
        assert_eq!(object.get("metadata").unwrap().get("labels").unwrap().get("x"), Some(&Value::text("y")));
    }
}

#[tokio::test]
async fn waiting_is_shown_and_done() {
    for place in Place::all().await {
        let node = place.node("n", json!({})).await;
        let registry = registry();
        place
            .set_status("Node", &node, json!({ "conditions": [{ "type": "Ready", "status": "False" }] }))
            .await;
        let input = json!({ "kind": "Node", "name": node, "within": "0s" });
        let case = place.case(&registry, "k8s.wait", &input, &["Node"]);
        let failure = case.prove().await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Timeout);
        assert!(failure.message.ends_with("is not ready after 0s"), "{failure}");
        let input = json!({ "kind": "Node", "name": node, "within": "5m" });
        let case = place.case(&registry, "k8s.wait", &input, &["Node"]);
        let bound = registry.bind(case.action, &case.input).unwrap();
        let plan = bound.plan(&case.read_cx()).await.unwrap();
        assert_eq!(plan.changes[0].before, super::value(&json!({ "is": "not ready" })));
        let write = WriteCx::after_intent(case.read_cx());
        let ready = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
        let (output, _) =
            tokio::join!(bound.apply(&write, &plan.changes), place.set_status("Node", &node, ready));
        assert_eq!(output.unwrap(), super::value(&json!({ "found": true, "ready": true })));
        let plan = bound.plan(&case.read_cx()).await.unwrap();
        assert_eq!(plan.changes, []);
    }
}

/// What goes is gone when its name is free, not when somebody has told it to go.
#[tokio::test]
async fn the_end_of_an_object_is_waited_for() {
    for place in Place::all().await {
        let held = json!({ "metadata": { "name": "m", "finalizers": ["example.org/hold"] } });
        place.add("ConfigMap", held).await;
        place.api("ConfigMap").delete("m", &kube::api::DeleteParams::default()).await.unwrap();
        let registry = registry();
        let input = |within: &str| json!({ "kind": "ConfigMap", "namespace": place.namespace, "name": "m", "until": "gone", "within": within });
        let failure =
            place.case(&registry, "k8s.wait", &input("0s"), &["ConfigMap"]).prove().await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Timeout);
        assert!(failure.message.ends_with("is not gone after 0s"), "{failure}");
        let case = place.case(&registry, "k8s.wait", &input("5m"), &[]);
        let release = json!({ "metadata": { "finalizers": null } });
        let (shown, _) = tokio::join!(case.prove(), place.patch("ConfigMap", "m", release));
        assert_eq!(shown.unwrap().output, super::value(&json!({ "found": false, "ready": false })));
    }
}

/// A namespace goes with its content, and the step waits for it; a server alone has no controller that empties it.
#[tokio::test]
async fn a_namespace_goes_with_its_content() {
    let place = Place::standin().await;
    place.add("ConfigMap", json!({ "metadata": { "name": "m" } })).await;
    let registry = registry();
    let input = json!({ "kind": "Namespace", "name": place.namespace, "missing": "ok", "gone_within": "1m" });
    let case = place.case(&registry, "k8s.delete", &input, &["Namespace"]);
    let shown = case.prove().await.unwrap();
    assert_eq!(shown.plan.notes, [format!("everything in the namespace `{}` goes with it", place.namespace)]);
    assert!(place.api("Namespace").get_opt(&place.namespace).await.unwrap().is_none());
    assert!(place.world(&["ConfigMap"]).await.is_empty());
}

/// A server alone has no kubelet that it could ask for them.
#[tokio::test]
async fn logs_are_read() {
    let place = Place::standin().await;
    let log = json!({ "metadata": { "annotations": { "stand-in.farrier.run/log": "one\ntwo\nthree" } } });
    place.pod("p", "node", log).await;
    let registry = registry();
    let input = json!({ "namespace": place.namespace, "pod": "p", "lines": 2, "max_output": 8 });
    let output = place.case(&registry, "k8s.logs", &input, &["Pod"]).prove().await.unwrap().output;
    assert_eq!(output, super::value(&json!({ "text": "o\nthree\n", "cut": true })));
}

#[tokio::test]
async fn the_log_of_no_container_is_refused() {
    for place in Place::all().await {
        place.pod("p", "node", json!({})).await;
        let input = json!({ "namespace": place.namespace, "pod": "p", "container": "none" });
        let failure = place.failure("k8s.logs", input).await;
        assert_eq!(failure.kind, FailureKind::Refused);
        assert!(failure.message.contains("container none is not valid for pod p"), "{failure}");
    }
}
