//! `k8s.patch`.

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, Effect, Failure, FailureKind, Fidelity, Value};
use kube::api::{Patch as Body, PatchParams};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::cluster::{Cluster, read_failure};
use crate::object::{Named, Object, difference, from_value, to_json, tree, without_bookkeeping};
use crate::target::Kubernetes;
use crate::tied::{MANAGER, Way, only, set, update};

/// Changes some fields of an object that is there.
///
/// The server judges the plan and stores nothing. Apply writes only the fields that the plan showed, and only while
/// they are as the plan saw them; undo brings them back. The values of secrets are refused.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "authors write these names")]
pub(crate) struct Patch {
    /// The cluster.
    target: Target<Kubernetes>,
    /// The kind: `Deployment`, `Namespace`.
    kind: String,
    /// The API version (`apps/v1`), for kinds of which the cluster has several.
    #[serde(default)]
    api_version: Option<String>,
    /// The namespace, for kinds that are in one.
    #[serde(default)]
    namespace: Option<String>,
    /// The name.
    name: String,
    /// The fields to set; null removes one.
    #[schemars(schema_with = "tree")]
    patch: Value,
    /// How lists are merged: `merge` replaces them, `strategic` goes by the keys of their items, for built-in kinds.
    #[serde(default)]
    lists: Lists,
}

/// How lists are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Lists {
    /// Whole.
    #[default]
    Merge,
    /// By the keys of their items.
    Strategic,
}

/// What was patched.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Patched {
    /// The object as it is afterwards.
    object: Object,
}

impl Action for Patch {
    const NAME: &'static str = "k8s.patch";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
suspend:
  uses: k8s.patch
  with:
    target: cluster
    kind: CronJob
    namespace: tool-example
    name: nightly
    patch: { spec: { suspend: true } }
  undo: restore
";

    type Output = Patched;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Patched>, Failure> {
        let patch = self.patch()?;
        let reader = cx.reader(&self.target).await?;
        self.plan_in(&reader.cluster, &patch).await.map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Patched, Failure> {
        let writer = cx.writer(&self.target).await?;
        self.set(&writer.cluster, only(changes)?, Way::Apply)
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let writer = cx.writer(&self.target).await?;
        self.set(&writer.cluster, only(changes)?, Way::Undo)
            .await
            .map(|_| ())
            .map_err(|failure| failure.at(self.target.alias()))
    }
}

impl Patch {
    fn patch(&self) -> Result<Json, Failure> {
        let input = |message: String| Err(Failure::new(FailureKind::Input, format!("`patch`: {message}")));
        let patch = from_value(&self.patch)?;
        if patch.as_object().is_none_or(serde_json::Map::is_empty) {
            return input("it changes nothing".into());
        }
        for path in ["/apiVersion", "/kind", "/status"] {
            if patch.pointer(path).is_some() {
                return input(format!("`{}` is not patched here; leave it out", &path[1..]));
            }
        }
        for field in ["name", "namespace", "uid", "resourceVersion", "managedFields"] {
            if patch["metadata"].get(field).is_some() {
                return input(format!("`metadata.{field}` is not patched; leave it out"));
            }
        }
        if self.kind == "Secret" && (patch.get("data").is_some() || patch.get("stringData").is_some()) {
            return input("the values of a Secret would stand in the journal of the run".into());
        }
        Ok(patch)
    }

    async fn named(&self, cluster: &Cluster) -> Result<Named, Failure> {
        let (version, namespace) = (self.api_version.as_deref(), self.namespace.as_deref());
        Named::of(cluster, &self.kind, version, namespace, &self.name).await
    }

    async fn plan_in(&self, cluster: &Cluster, patch: &Json) -> Result<Planned<Patched>, Failure> {
        let named = self.named(cluster).await?;
        let live = named.get(cluster).await?;
        let params =
            PatchParams { dry_run: true, field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let body = match self.lists {
            Lists::Merge => Body::Merge(patch),
            Lists::Strategic => Body::Strategic(patch),
        };
        let judged = named
            .api(cluster)
            .patch(&named.name, &params, &body)
            .await
            .map_err(|error| read_failure(&error, &format!("cannot patch {}", named.title())))?;
        let output = Patched { object: Object::of(&named.kind, &judged)? };
        let (before, after) =
            (without_bookkeeping(&to_json(&live)?), without_bookkeeping(&to_json(&judged)?));
        let planned = match difference(&before, &after) {
            None => Planned::known(output),
            Some((before, after)) => {
                Planned::changes(vec![update(&named, &live, &before, &after)?], output).unknown("object")
            }
        };
        Ok(Planned { fidelity: Fidelity::Exact, ..planned }.considered(1))
    }

    async fn set(&self, cluster: &Cluster, change: &Change, way: Way) -> Result<Patched, Failure> {
        let named = self.named(cluster).await?;
        set(cluster, &named, change, way).await?;
        let object = named.get(cluster).await?;
        Ok(Patched { object: Object::of(&named.kind, &object)? })
    }
}
