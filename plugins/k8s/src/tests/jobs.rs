//! Jobs, which the cluster remembers by the effect id.

use farrier_action::WriteCx;
use farrier_model::{ChangeKind, Effect, FailureKind, Fidelity, Value};
use kube::ResourceExt as _;
use serde_json::{Value as Json, json};

use super::{Place, registry, value};

fn input(place: &Place) -> Json {
    json!({
        "namespace": place.namespace, "image": "busybox", "argv": ["echo", "$(HOME)", "a b"], "env": { "A": "1" },
        "labels": { "app": "x" }, "deadline": "5m",
        "pod": { "serviceAccountName": "runner", "containers": { "resources": { "limits": { "memory": "1Gi" } } } },
    })
}

async fn script(place: &Place, how: &str) {
    let patch = json!({ "metadata": { "annotations": { "stand-in.farrier.run/ends": how } } });
    place.patch("Namespace", &place.namespace, patch).await;
}

#[tokio::test]
async fn a_job_is_submitted_once() {
    for place in Place::all().await {
        script(&place, "succeeded").await;
        let registry = registry();
        let mut case = place.case(&registry, "k8s.job", &input(&place), &["Job"]);
        assert_eq!(registry.catalog().actions["k8s.job"].effect, Effect::Keyed);
        case.bad_inputs = [
            json!({ "argv": [] }),
            json!({ "argv": [""] }),
            json!({ "image": "" }),
            json!({ "image": "a b" }),
            json!({ "env": { "A=B": "x" } }),
            json!({ "deadline": "0s" }),
            json!({ "namespace": "a/b" }),
            json!({ "pod": { "containers": [] } }),
        ]
        .into_iter()
        .map(|wrong| {
            let mut input = input(&place);
            input["target"] = "cluster".into();
            for (key, value) in wrong.as_object().unwrap() {
                input[key] = value.clone();
            }
            value(&input)
        })
        .collect();
        let shown = place.while_controllers_work(case.prove()).await.unwrap();
        assert_eq!(shown.plan.fidelity, Fidelity::Described);
        assert_eq!(shown.plan.changes[0].kind, ChangeKind::Run);
        let jobs = place.api("Job").list(&kube::api::ListParams::default()).await.unwrap().items;
        let [job] = jobs.as_slice() else { panic!("{} jobs", jobs.len()) };
        assert_eq!(shown.output.get("job"), Some(&Value::text(job.name_any())));
        assert_eq!(job.annotations()["farrier.run/effect"], case.read_cx().node().effect_id);
        let container = job.data.pointer("/spec/template/spec/containers/0").unwrap();
        assert_eq!(container["command"], json!(["echo", "$$(HOME)", "a b"]), "arguments are no templates");
        assert_eq!(container["resources"], json!({ "limits": { "memory": "1Gi" } }));
        assert_eq!(job.data.pointer("/spec/template/spec/serviceAccountName").unwrap(), "runner");

        // The answer was lost: the same effect is the same job.
        let bound = registry.bind(case.action, &case.input).unwrap();
        let write = WriteCx::after_intent(case.read_cx());
        let again = bound.apply(&write, &shown.plan.changes).await.unwrap();
        assert_eq!(again, shown.output);
        assert_eq!(place.api("Job").list(&kube::api::ListParams::default()).await.unwrap().items.len(), 1);
    }
}

#[tokio::test]
async fn a_failed_job_says_what_its_pod_said() {
    for place in Place::all().await {
        script(&place, "failed").await;
        let registry = registry();
        let case = place.case(&registry, "k8s.job", &input(&place), &["Job"]);
        let failure = place.while_controllers_work(case.prove()).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Exit);
        assert!(failure.message.contains("failed (BackoffLimitExceeded)"), "{failure}");
    }
}

#[tokio::test]
async fn a_job_of_someone_else_is_not_ours() {
    for place in Place::all().await {
        script(&place, "succeeded").await;
        let registry = registry();
        let case = place.case(&registry, "k8s.job", &input(&place), &["Job"]);
        let bound = registry.bind(case.action, &case.input).unwrap();
        let plan = bound.plan(&case.read_cx()).await.unwrap();
        let mut foreign = serde_json::to_value(&plan.changes[0].after).unwrap();
        foreign["metadata"]["annotations"] = json!({});
        foreign["metadata"].as_object_mut().unwrap().remove("namespace");
        place.add("Job", foreign).await;
        let failure = bound.apply(&WriteCx::after_intent(case.read_cx()), &plan.changes).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Drift);
        assert!(failure.message.ends_with("is there already and was not made by this step"), "{failure}");
    }
}
