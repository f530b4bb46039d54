//! `k8s.restart`.

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, Effect, Failure, FailureKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::cluster::Cluster;
use crate::object::{Named, to_json};
use crate::target::Kubernetes;
use crate::tied::{Way, only, set, update};

/// The annotation of kubectl, so that both tools see each other's restarts.
const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";

/// Which step restarted the workload last.
const RESTARTED_BY: &str = "farrier.run/restarted-by";

/// Replaces all pods of a workload by new ones, a few at a time, as the workload's own strategy has it.
///
/// The pod template gets a note of the step that did it, so that a step that is tried again restarts once. The step
/// ends when the server has taken it; `k8s.wait` waits for the new pods.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Restart {
    /// The cluster.
    target: Target<Kubernetes>,
    /// `Deployment`, `StatefulSet` or `DaemonSet`. The default is `Deployment`.
    #[serde(default = "deployment")]
    kind: String,
    /// The namespace.
    namespace: String,
    /// The name.
    name: String,
}

fn deployment() -> String {
    "Deployment".into()
}

/// What was restarted.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Restarted {
    /// The workload, as `namespace/name`.
    workload: String,
}

impl Action for Restart {
    const NAME: &'static str = "k8s.restart";
    const EFFECT: Effect = Effect::Keyed;
    const RISK: Risk = Risk::Recoverable;
    const EXAMPLE: &'static str = "\
restart:
  uses: k8s.restart
  with: { target: cluster, namespace: tool-example, name: example }
  undo: none
";

    type Output = Restarted;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Restarted>, Failure> {
        if !matches!(self.kind.as_str(), "Deployment" | "StatefulSet" | "DaemonSet") {
            return Err(Failure::new(
                FailureKind::Input,
                format!("`kind`: a `{}` cannot be restarted", self.kind),
            )
            .help("`Deployment`, `StatefulSet` and `DaemonSet` can"));
        }
        let reader = cx.reader(&self.target).await?;
        self.plan_in(&reader.cluster, &cx.node().effect_id)
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Restarted, Failure> {
        let writer = cx.writer(&self.target).await?;
        let at = |failure: Failure| failure.at(self.target.alias());
        let named = self.named(&writer.cluster).await.map_err(at)?;
        set(&writer.cluster, &named, only(changes)?, Way::Apply).await.map_err(at)?;
        Ok(self.done())
    }
}

impl Restart {
    fn done(&self) -> Restarted {
        Restarted { workload: format!("{}/{}", self.namespace, self.name) }
    }

    async fn named(&self, cluster: &Cluster) -> Result<Named, Failure> {
        Named::of(cluster, &self.kind, Some("apps/v1"), Some(&self.namespace), &self.name).await
    }

    async fn plan_in(&self, cluster: &Cluster, effect_id: &str) -> Result<Planned<Restarted>, Failure> {
        let named = self.named(cluster).await?;
        let object = named.get(cluster).await?;
        let tree = to_json(&object)?;
        let annotation = |key: &str| {
            tree.pointer("/spec/template/metadata/annotations").and_then(|all| all.get(key)).cloned()
        };
        let by = annotation(RESTARTED_BY).unwrap_or_default();
        if by == effect_id {
            return Ok(Planned::known(self.done()));
        }
        let at = annotation(RESTARTED_AT).unwrap_or_default();
        let of = |at: Json, by: Json| {
            let annotations = json!({ RESTARTED_AT: at, RESTARTED_BY: by });
            json!({ "spec": { "template": { "metadata": { "annotations": annotations } } } })
        };
        let now = cluster.now().to_string();
        let change = update(&named, &object, &of(at, by), &of(now.into(), effect_id.into()))?;
        Ok(Planned::changes(vec![change], self.done()).considered(1))
    }
}
