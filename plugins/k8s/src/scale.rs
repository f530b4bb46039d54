//! `k8s.scale`.

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, Effect, Failure, FailureKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cluster::Cluster;
use crate::object::{Named, to_json};
use crate::target::Kubernetes;
use crate::tied::{Way, only, set, update};

/// Sets how many pods a workload has.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scale {
    /// The cluster.
    target: Target<Kubernetes>,
    /// The kind. The default is `Deployment`.
    #[serde(default = "deployment")]
    kind: String,
    /// The API version (`apps/v1`), for kinds of which the cluster has several.
    #[serde(default)]
    api_version: Option<String>,
    /// The namespace.
    namespace: String,
    /// The name.
    name: String,
    /// How many pods it is to have.
    replicas: u32,
}

fn deployment() -> String {
    "Deployment".into()
}

/// How it was scaled.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Scaled {
    /// How many pods it is to have now.
    replicas: u32,
    /// How many it was to have before.
    before: u32,
}

impl Action for Scale {
    const NAME: &'static str = "k8s.scale";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
stop:
  uses: k8s.scale
  with: { target: cluster, namespace: tool-example, name: example, replicas: 0 }
  undo: restore
";

    type Output = Scaled;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Scaled>, Failure> {
        let reader = cx.reader(&self.target).await?;
        self.plan_in(&reader.cluster).await.map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Scaled, Failure> {
        let change = only(changes)?;
        self.set(cx, change, Way::Apply).await?;
        let before = crate::tied::field(&change.before, &["spec", "replicas"]).as_int().unwrap_or(0);
        Ok(Scaled { replicas: self.replicas, before: before as u32 })
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        self.set(cx, only(changes)?, Way::Undo).await
    }
}

impl Scale {
    async fn named(&self, cluster: &Cluster) -> Result<Named, Failure> {
        Named::of(cluster, &self.kind, self.api_version.as_deref(), Some(&self.namespace), &self.name).await
    }

    async fn plan_in(&self, cluster: &Cluster) -> Result<Planned<Scaled>, Failure> {
        let named = self.named(cluster).await?;
        let object = named.get(cluster).await?;
        let Some(now) = to_json(&object)?.pointer("/spec/replicas").and_then(serde_json::Value::as_u64)
        else {
            let message = format!("{} has no number of replicas to set", named.title());
            return Err(Failure::new(FailureKind::Refused, message));
        };
        let scaled = Scaled { replicas: self.replicas, before: now as u32 };
        if now == u64::from(self.replicas) {
            return Ok(Planned::known(scaled));
        }
        let of = |replicas: u64| json!({ "spec": { "replicas": replicas } });
        let change = update(&named, &object, &of(now), &of(u64::from(self.replicas)))?;
        Ok(Planned::changes(vec![change], scaled).considered(1))
    }

    async fn set(&self, cx: &WriteCx, change: &Change, way: Way) -> Result<(), Failure> {
        let writer = cx.writer(&self.target).await?;
        let at = |failure: Failure| failure.at(self.target.alias());
        let named = self.named(&writer.cluster).await.map_err(at)?;
        set(&writer.cluster, &named, change, way).await.map_err(at)
    }
}
