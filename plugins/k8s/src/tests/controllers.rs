//! What a bare API server has nobody for: it stores objects, and no kubelet ends pods, no controller runs jobs. The tests do
//! it there, by the marks that the stand-in goes by too; its own time is put forward instead.

use std::time::Duration;

use kube::ResourceExt as _;
use kube::api::{DeleteParams, DynamicObject, ListParams, Preconditions};
use serde_json::json;

use super::Place;

/// How often they look.
const OFTEN: Duration = Duration::from_millis(50);

impl Place {
    /// Does some work while kubelets and controllers do theirs.
    pub(crate) async fn while_controllers_work<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(OFTEN) => if self.is_server { self.control().await } else { self.later(5) },
            }
        }
    }

    /// How long a wait is to be that must run out: the stand-in's time can be put forward, and a server's cannot.
    pub(crate) fn short(&self) -> &'static str {
        if self.is_server { "2s" } else { "2m" }
    }

    /// One look of all kubelets and controllers of a server.
    async fn control(&self) {
        for pod in self.api("Pod").list(&ListParams::default()).await.unwrap() {
            let hangs = pod.annotations().contains_key("stand-in.farrier.run/stuck");
            if pod.metadata.deletion_timestamp.is_some() && !hangs {
                self.end(&pod).await;
            }
        }
        let namespaces = self.api("Namespace");
        let namespace = namespaces.get(&self.namespace).await.unwrap();
        let Some(ends) = namespace.annotations().get("stand-in.farrier.run/ends") else { return };
        for job in self.api("Job").list(&ListParams::default()).await.unwrap() {
            if job.data.pointer("/status/conditions").is_none() {
                let condition = if ends == "succeeded" {
                    json!({ "type": "Complete", "status": "True" })
                } else {
                    json!({ "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded" })
                };
                self.set_status("Job", &job.name_any(), json!({ "conditions": [condition] })).await;
            }
        }
    }

    /// A pod has ended: its kubelet takes it off the books, when nobody has done so at the same moment.
    async fn end(&self, pod: &DynamicObject) {
        let preconditions = Some(Preconditions { uid: pod.uid(), resource_version: None });
        let params = DeleteParams { grace_period_seconds: Some(0), preconditions, ..DeleteParams::default() };
        match self.api("Pod").delete(&pod.name_any(), &params).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            ended => drop(ended.unwrap()),
        }
    }
}
