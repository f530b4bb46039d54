//! Draining a node, on every cluster.

use farrier_action::WriteCx;
use farrier_model::{ChangeKind, FailureKind, Value};
use kube::ResourceExt as _;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value as Json, json};

use super::{Place, registry, value};

fn of(kind: &str, name: &str) -> Json {
    // Kinds that the cluster does not have keep their pods.
    json!({ "metadata": { "ownerReferences": [
        { "apiVersion": "example.org/v1", "kind": kind, "name": name, "uid": "u", "controller": true },
    ] } })
}

async fn node(place: &Place) -> String {
    place.node("worker", json!({ "unschedulable": true })).await
}

/// The budgets, in the version that the cluster has.
async fn budgets(place: &Place) -> (ApiResource, Api<DynamicObject>) {
    let resource = place.resource("policy", &["v1", "v1beta1"], "PodDisruptionBudget").await;
    let api = Api::namespaced_with(place.client.clone(), &place.namespace, &resource);
    (resource, api)
}

/// A budget that wants one of the pods of this suite.
async fn budget(place: &Place) {
    let (resource, budgets) = budgets(place).await;
    let object = json!({
        "apiVersion": resource.api_version, "kind": resource.kind, "metadata": { "name": "b" },
        "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "x" } } },
    });
    budgets.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
}

/// What the controller of budgets finds.
async fn healthy(place: &Place, pods: u32) {
    let status = json!({ "status": {
        "observedGeneration": 1, "expectedPods": pods, "desiredHealthy": 1, "currentHealthy": pods,
        "disruptionsAllowed": pods - 1,
    } });
    let (_, budgets) = budgets(place).await;
    budgets.patch_status("b", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// Runs a drain while the cluster's time goes on.
async fn drain(place: &Place, input: Json) -> Result<Value, farrier_model::Failure> {
    let registry = registry();
    let case = place.case(&registry, "k8s.drain", &input, &["Pod"]);
    let bound = registry.bind(case.action, &case.input).unwrap();
    let plan = bound.plan(&case.read_cx()).await?;
    let write = WriteCx::after_intent(case.read_cx());
    place.while_controllers_work(bound.apply(&write, &plan.changes)).await
}

#[tokio::test]
async fn pods_go_and_daemons_stay() {
    for place in Place::all().await {
        let node = node(&place).await;
        place.pod("web", &node, of("ReplicaSet", "web-1")).await;
        place.pod("agent", &node, of("DaemonSet", "agent")).await;
        let mirror = json!({ "metadata": { "annotations": { "kubernetes.io/config.mirror": "x" } } });
        place.pod("static", &node, mirror).await;
        place.pod("ended", &node, json!({ "status": { "phase": "Succeeded" } })).await;
        place.pod("elsewhere", "other", of("ReplicaSet", "web-1")).await;
        let registry = registry();
        let input = json!({ "node": node, "pod_grace": "0s" });
        let mut case = place.case(&registry, "k8s.drain", &input, &["Pod"]);
        case.bad_inputs = vec![
            value(&json!({ "target": "cluster", "node": "a,b" })),
            value(&json!({ "target": "cluster", "node": "a", "when_stuck": "pray" })),
            value(&json!({ "target": "cluster", "node": "a", "stuck_after": 10 })),
        ];
        let shown = case.prove().await.unwrap();
        let [change] = shown.plan.changes.as_slice() else { panic!("{:?}", shown.plan.changes) };
        assert_eq!(&*change.object, format!("Pod {}/web", place.namespace));
        assert_eq!(change.kind, ChangeKind::Delete);
        assert_eq!(change.before.get("of"), Some(&Value::text("ReplicaSet web-1")));
        assert_eq!(shown.plan.considered, Some(4));
        let name = |pod: &str| format!("{}/{pod}", place.namespace);
        let left = json!([name("agent"), name("ended"), name("static")]);
        assert_eq!(
            shown.output,
            value(&json!({ "node": node, "evicted": [name("web")], "forced": [], "left": left }))
        );
    }
}

#[tokio::test]
async fn what_would_be_lost_is_said_before() {
    for place in Place::all().await {
        let node = node(&place).await;
        place.pod("bare", &node, json!({})).await;
        let mut scratch = of("ReplicaSet", "web-1");
        scratch["spec"] = json!({ "volumes": [{ "name": "tmp", "emptyDir": {} }] });
        place.pod("scratch", &node, scratch).await;
        let failure = place.failure("k8s.drain", json!({ "node": node })).await;
        assert_eq!(failure.kind, FailureKind::Refused);
        assert!(failure.message.contains("/bare` belongs to nothing that would make it again"), "{failure}");
        assert!(failure.message.contains("/scratch` keeps data on the node (emptyDir)"), "{failure}");
        drain(&place, json!({ "node": node, "empty_dir": "evict", "unmanaged": "evict" })).await.unwrap();
        assert!(place.world(&["Pod"]).await.is_empty());
    }
}

#[tokio::test]
async fn a_budget_is_waited_for_and_never_gone_around() {
    for place in Place::all().await {
        let node = node(&place).await;
        place.pod("a", &node, of("ReplicaSet", "web-1")).await;
        budget(&place).await;
        healthy(&place, 1).await;
        let input = json!({ "node": node, "stuck_after": place.short(), "when_stuck": "force_delete" });
        let failure = drain(&place, input.clone()).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Conflict);
        let said = "The disruption budget b needs 1 healthy pods and has 1 currently";
        assert!(failure.message.contains(said), "{failure}");
        assert_eq!(place.world(&["Pod"]).await.len(), 1, "the pod is still there");

        // Another pod comes up elsewhere, and the budget lets go.
        let (done, ()) = tokio::join!(drain(&place, json!({ "node": node, "stuck_after": "1h" })), async {
            place.pod("c", "other", of("ReplicaSet", "web-1")).await;
            healthy(&place, 2).await;
        });
        assert_eq!(done.unwrap().get("forced"), Some(&Value::list(vec![])));
        assert_eq!(place.world(&["Pod"]).await.len(), 1);
    }
}

#[tokio::test]
async fn pods_that_hang_are_named_or_forced() {
    for place in Place::all().await {
        let node = node(&place).await;
        let mut hanging = of("ReplicaSet", "web-1");
        hanging["metadata"]["annotations"] = json!({ "stand-in.farrier.run/stuck": "" });
        place.pod("hangs", &node, hanging).await;
        place.pod("ends", &node, of("ReplicaSet", "web-1")).await;
        let input = |stuck: &str| json!({ "node": node, "pod_grace": "30s", "stuck_after": place.short(), "when_stuck": stuck });
        let failure = drain(&place, input("fail")).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Timeout);
        let name = format!("{}/hangs", place.namespace);
        assert_eq!(failure.message, format!("after {} pods have not ended: `{name}`", place.short()));
        let output = drain(&place, input("force_delete")).await.unwrap();
        assert_eq!(output.get("forced"), Some(&value(&json!([name]))));
        assert!(place.world(&["Pod"]).await.is_empty());
    }
}

#[tokio::test]
async fn pods_that_come_meanwhile_are_told() {
    for place in Place::all().await {
        let node = place.node("worker", json!({})).await;
        place.pod("a", &node, of("ReplicaSet", "web-1")).await;
        let registry = registry();
        let case = place.case(&registry, "k8s.drain", &json!({ "node": node, "pod_grace": "0s" }), &["Pod"]);
        let bound = registry.bind(case.action, &case.input).unwrap();
        let plan = bound.plan(&case.read_cx()).await.unwrap();
        assert!(plan.notes[0].contains("is not cordoned yet"), "{:?}", plan.notes);
        place.pod("late", &node, of("ReplicaSet", "web-1")).await;
        let failure = bound.apply(&WriteCx::after_intent(case.read_cx()), &plan.changes).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Drift);
        assert!(failure.message.contains("/late`"), "{failure}");
        assert_eq!(place.world(&["Pod"]).await.len(), 1, "it was not in the plan, so it was not evicted");
    }
}

/// A pod that has the name by now is another one: it was not in the plan.
#[tokio::test]
async fn a_pod_with_the_name_of_one_that_went_stays() {
    for place in Place::all().await {
        let node = node(&place).await;
        place.pod("a", &node, of("ReplicaSet", "web-1")).await;
        let registry = registry();
        let case = place.case(&registry, "k8s.drain", &json!({ "node": node, "pod_grace": "0s" }), &["Pod"]);
        let bound = registry.bind(case.action, &case.input).unwrap();
        let plan = bound.plan(&case.read_cx()).await.unwrap();
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        place.api("Pod").delete("a", &at_once).await.unwrap();
        let other = place.pod("a", &node, of("ReplicaSet", "web-1")).await;
        let failure = bound.apply(&WriteCx::after_intent(case.read_cx()), &plan.changes).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
        let there = place.api("Pod").get("a").await.unwrap();
        assert_eq!((there.uid(), there.metadata.deletion_timestamp), (other.uid(), None));
    }
}

/// The whole way of a sick worker: pods come back on another node. Only the stand-in has controllers that make them again.
#[tokio::test]
async fn a_deployment_moves() {
    let place = Place::standin().await;
    let sick = place.node("sick", json!({})).await;
    place.deployment("web", 2).await;
    let on = |world: &farrier_action::harness::World, node: &str| {
        world
            .values()
            .filter(|pod| pod.get("spec").unwrap().get("nodeName") == Some(&Value::text(node)))
            .count()
    };
    assert_eq!(on(&place.world(&["Pod"]).await, &sick), 2);
    let well = place.node("well", json!({})).await;
    place.patch("Node", &sick, json!({ "spec": { "unschedulable": true } })).await;
    drain(&place, json!({ "node": sick })).await.unwrap();
    let world = place.world(&["Pod"]).await;
    assert_eq!((on(&world, &sick), on(&world, &well)), (0, 2));
}
