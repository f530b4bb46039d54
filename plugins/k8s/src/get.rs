//! `k8s.get`.

use farrier_action::{Action, Planned, ReadCx, Target};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use crate::object::{Named, Object};
use crate::target::Kubernetes;

/// Reads one object.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Get {
    /// The cluster.
    target: Target<Kubernetes>,
    /// The kind: `Node`, `Deployment`.
    kind: String,
    /// The API version (`apps/v1`), for kinds of which the cluster has several.
    #[serde(default)]
    api_version: Option<String>,
    /// The namespace, for kinds that are in one.
    #[serde(default)]
    namespace: Option<String>,
    /// The name.
    name: String,
    /// What it means when the object is not there: `fail`, or `ok`, when `found` tells.
    #[serde(default)]
    missing: Missing,
}

/// What a missing object means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Missing {
    /// The step fails.
    #[default]
    Fail,
    /// It is an answer like others.
    Ok,
}

/// What was read.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Got {
    /// Whether the object is there.
    found: bool,
    /// The object; null when it is not there and `missing` is `ok`.
    #[schemars(schema_with = "object_schema")]
    object: Option<Object>,
}

fn object_schema(generator: &mut SchemaGenerator) -> Schema {
    Object::json_schema(generator)
}

impl Action for Get {
    const NAME: &'static str = "k8s.get";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
ready:
  uses: k8s.get
  with: { target: cluster, kind: Node, name: tools-k8s-worker-nfs-12 }
  verify: { that: result.object.ready, within: 10m, every: 10s, otherwise: the node did not become Ready }
";

    type Output = Got;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Got>, Failure> {
        let reader = cx.reader(&self.target).await?;
        self.get(&reader.cluster).await.map(Planned::known).map_err(|failure| failure.at(self.target.alias()))
    }
}

impl Get {
    async fn get(&self, cluster: &crate::cluster::Cluster) -> Result<Got, Failure> {
        let (kind, version, namespace) = (&self.kind, self.api_version.as_deref(), self.namespace.as_deref());
        let named = Named::of(cluster, kind, version, namespace, &self.name).await?;
        let object = match self.missing {
            Missing::Fail => Some(named.get(cluster).await?),
            Missing::Ok => named.find(cluster).await?,
        };
        let object = object.map(|object| Object::of(&named.kind, &object)).transpose()?;
        Ok(Got { found: object.is_some(), object })
    }
}
