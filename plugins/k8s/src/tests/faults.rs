//! Connections that are cut around a write, on every cluster: before the request arrives, and when its answer is lost. The
//! step is in doubt then; the same effect again finds out, and what it is to do is done once.

use farrier_action::WriteCx;
use farrier_model::{Failure, FailureKind, Value};
use farrier_testkit::proxy::Direction;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value as Json, json};

use super::gate::Gate;
use super::{Place, registry, value};
use crate::cluster::write_failure;

/// What happens to the one request that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The cluster never sees it.
    NeverArrives,
    /// The cluster does it, and its answer is lost.
    AnswerLost,
    /// The cluster does it, and answers that it does not know.
    TimesOut,
}

const FAULTS: [Fault; 3] = [Fault::NeverArrives, Fault::AnswerLost, Fault::TimesOut];

impl Fault {
    fn set(self, gate: &Gate, method: http::Method) {
        let text = format!("{method} /ap");
        match self {
            Fault::NeverArrives => gate.proxy.cut_before(Direction::ToServer, &text),
            Fault::AnswerLost => gate.proxy.lose_answer_to(&text),
            Fault::TimesOut => gate.time_out(method),
        }
    }
}

/// Every cluster with every fault, each in a namespace of its own, reached through a gate.
async fn each(mut test: impl AsyncFnMut(&Place, &Gate, Fault)) {
    for fault in FAULTS {
        for mut place in Place::all().await {
            let gate = Gate::before(&mut place).await;
            test(&place, &gate, fault).await;
        }
    }
}

/// A write that is cut, and the same one again.
struct Write<'a> {
    place: &'a Place,
    gate: &'a Gate,
    fault: Fault,
    /// The method of its one request.
    method: http::Method,
}

impl Write<'_> {
    /// Makes the changes twice: the first time is in doubt, the second finds out and is one effect at most.
    async fn survives(&self, action: &str, input: &Json) -> Value {
        let registry = registry();
        let case = self.place.case(&registry, action, input, &[]);
        let bound = registry.bind(action, &case.input).unwrap();
        let changes = bound.plan(&case.read_cx()).await.unwrap().changes;
        let write = WriteCx::after_intent(case.read_cx());
        let apply = async || self.place.while_controllers_work(bound.apply(&write, &changes)).await;
        self.twice(action, apply).await
    }

    /// As [`Write::survives`], of an undo.
    async fn undo_survives(&self, action: &str, input: &Json) {
        let registry = registry();
        let case = self.place.case(&registry, action, input, &[]);
        let bound = registry.bind(action, &case.input).unwrap();
        let changes = bound.plan(&case.read_cx()).await.unwrap().changes;
        let write = WriteCx::after_intent(case.read_cx());
        bound.apply(&write, &changes).await.unwrap();
        self.twice(&format!("undo of {action}"), async || bound.undo(&write, &changes).await).await;
    }

    async fn twice<T: std::fmt::Debug>(&self, what: &str, work: impl AsyncFn() -> Result<T, Failure>) -> T {
        let what = format!("{what}, {:?}", self.fault);
        let (writes, cuts) = (self.gate.writes().len(), self.gate.proxy.cuts());
        self.fault.set(self.gate, self.method.clone());
        let failure = work().await.unwrap_err();
        assert!(failure.in_doubt, "{what}: {failure}");
        assert_eq!(failure.kind, FailureKind::Unreachable, "{what}: {failure}");
        assert_eq!(failure.target.as_deref(), Some("cluster"), "{what}");
        assert_eq!(self.gate.proxy.cuts() - cuts, usize::from(self.fault != Fault::TimesOut), "{what}");
        let done = usize::from(self.fault != Fault::NeverArrives);
        assert_eq!(self.gate.writes().len() - writes, done, "{what}: {:?}", self.gate.writes());
        let output = work().await.unwrap_or_else(|failure| panic!("{what}, again: {failure}"));
        assert_eq!(self.gate.writes().len() - writes, 1, "{what}, again: {:?}", self.gate.writes());
        output
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_made_once() {
    each(async |place, gate, fault| {
        let manifest = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "m", "namespace": place.namespace }, "data": { "a": "1" },
        });
        let write = Write { place, gate, fault, method: http::Method::PATCH };
        let output = write.survives("k8s.apply", &json!({ "manifest": manifest })).await;
        let made = place.api("ConfigMap").get("m").await.unwrap();
        assert_eq!(output.get("object").unwrap().get("uid"), Some(&Value::text(made.uid().unwrap())));

        // What was made is taken away again, and nothing else of that name.
        let other = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "n", "namespace": place.namespace },
        });
        let write = Write { place, gate, fault, method: http::Method::DELETE };
        write.undo_survives("k8s.apply", &json!({ "manifest": other })).await;
        assert!(place.api("ConfigMap").get_opt("n").await.unwrap().is_none());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_changed_once() {
    each(async |place, gate, fault| {
        let write = Write { place, gate, fault, method: http::Method::PATCH };
        place.deployment("d", 1).await;
        let named = json!({ "kind": "Deployment", "namespace": place.namespace, "name": "d" });
        let mut input = named.clone();
        input["patch"] = json!({ "metadata": { "labels": { "x": "y" } } });
        write.survives("k8s.patch", &input).await;
        input["patch"] = json!({ "metadata": { "labels": { "x": "z" } } });
        write.undo_survives("k8s.patch", &input).await;
        let mut input = named.clone();
        input["replicas"] = 0.into();
        let output = write.survives("k8s.scale", &input).await;
        assert_eq!(output, value(&json!({ "replicas": 0, "before": 1 })));
        write.survives("k8s.restart", &named).await;
        let live = place.api("Deployment").get("d").await.unwrap();
        assert_eq!((&live.labels()["x"], &live.data["spec"]["replicas"]), (&"y".to_owned(), &json!(0)));
        // What made it, the replicas and the restart, once each; labels do not count.
        assert_eq!(live.metadata.generation, Some(3));
        let node = place.node("n", json!({})).await;
        write.survives("k8s.cordon", &json!({ "node": node, "note": "run-1" })).await;
        write.survives("k8s.uncordon", &json!({ "node": node, "only_if_note": "run-1" })).await;
        place.api("Node").delete(&node, &DeleteParams::default()).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_deleted_once() {
    each(async |place, gate, fault| {
        place.add("ConfigMap", json!({ "metadata": { "name": "m" } })).await;
        let input = json!({ "kind": "ConfigMap", "namespace": place.namespace, "name": "m" });
        let write = Write { place, gate, fault, method: http::Method::DELETE };
        let output = write.survives("k8s.delete", &input).await;
        assert_eq!(output.get("deleted"), Some(&Value::Bool(true)));
        assert!(place.api("ConfigMap").get_opt("m").await.unwrap().is_none());
    })
    .await;
}

/// The answer was lost, and before anyone asks again somebody makes another object of that name: it stays.
#[tokio::test(flavor = "multi_thread")]
async fn another_object_of_that_name_is_not_deleted() {
    for mut place in Place::all().await {
        let gate = Gate::before(&mut place).await;
        place.add("ConfigMap", json!({ "metadata": { "name": "m" } })).await;
        let registry = registry();
        let input = json!({ "kind": "ConfigMap", "namespace": place.namespace, "name": "m" });
        let case = place.case(&registry, "k8s.delete", &input, &[]);
        let bound = registry.bind(case.action, &case.input).unwrap();
        let changes = bound.plan(&case.read_cx()).await.unwrap().changes;
        let write = WriteCx::after_intent(case.read_cx());
        Fault::AnswerLost.set(&gate, http::Method::DELETE);
        assert!(bound.apply(&write, &changes).await.unwrap_err().in_doubt);
        let other = place.add("ConfigMap", json!({ "metadata": { "name": "m" } })).await;
        let failure = bound.apply(&write, &changes).await.unwrap_err();
        assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Drift, false), "{failure}");
        assert_eq!(place.api("ConfigMap").get("m").await.unwrap().uid(), other.uid());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_evicted_once() {
    each(async |place, gate, fault| {
        let node = place.node("worker", json!({ "unschedulable": true })).await;
        place.pod("p", &node, json!({})).await;
        let write = Write { place, gate, fault, method: http::Method::POST };
        let input = json!({ "node": node, "unmanaged": "evict", "pod_grace": "0s" });
        let output = write.survives("k8s.drain", &input).await;
        let name = format!("{}/p", place.namespace);
        assert_eq!(output, value(&json!({ "node": node, "evicted": [name], "forced": [], "left": [] })));
        place.api("Node").delete(&node, &DeleteParams::default()).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_made_once() {
    each(async |place, gate, fault| {
        let ends = json!({ "metadata": { "annotations": { "stand-in.farrier.run/ends": "succeeded" } } });
        place.patch("Namespace", &place.namespace, ends).await;
        let write = Write { place, gate, fault, method: http::Method::POST };
        let input = json!({
            "namespace": place.namespace, "image": "busybox", "argv": ["true"], "deadline": "5m",
        });
        let output = write.survives("k8s.job", &input).await;
        let jobs = place.api("Job").list(&ListParams::default()).await.unwrap().items;
        let [job] = jobs.as_slice() else { panic!("{} jobs", jobs.len()) };
        assert_eq!(output.get("job"), Some(&Value::text(job.name_any())));
    })
    .await;
}

/// A server that answers has decided, unless it says that it does not know.
#[test]
fn only_what_nobody_knows_is_in_doubt() {
    let failure = |code: u16, reason: &str| {
        let status = kube::core::response::Status {
            code,
            reason: reason.into(),
            message: "no".into(),
            ..Default::default()
        };
        write_failure(&kube::Error::Api(Box::new(status)), "cannot change it")
    };
    for (code, reason, in_doubt) in [
        (504, "Timeout", true),
        (503, "ServiceUnavailable", true),
        // As storage says it that has lost its majority.
        (500, "", true),
        (500, "InternalError", false),
        (429, "TooManyRequests", false),
        (422, "Invalid", false),
        (409, "Conflict", false),
        (403, "Forbidden", false),
    ] {
        assert_eq!(failure(code, reason).in_doubt, in_doubt, "{code} {reason}");
    }
}
