//! `k8s.delete`.

use std::time::Duration;

use farrier_action::duration::Length;
use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind};
use kube::api::{DeleteParams, Preconditions, PropagationPolicy};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, status, write_failure};
use crate::get::Missing;
use crate::object::{Named, hide, to_json, to_value, uid, without_bookkeeping};
use crate::target::Kubernetes;
use crate::tied::{gone, only, same_object};

/// How often to look whether an object is gone.
const LOOK: Duration = Duration::from_secs(1);

/// Deletes one object.
///
/// The deletion names the object that the plan saw: another one that has its name by now is left alone. An object that
/// is on its way out already is no change. Deleting a namespace deletes everything in it. It cannot be undone.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Delete {
    /// The cluster.
    target: Target<Kubernetes>,
    /// The kind: `Namespace`, `ConfigMap`.
    kind: String,
    /// The API version (`apps/v1`), for kinds of which the cluster has several.
    #[serde(default)]
    api_version: Option<String>,
    /// The namespace, for kinds that are in one.
    #[serde(default)]
    namespace: Option<String>,
    /// The name.
    name: String,
    /// What it means when the object is not there: `fail`, or `ok`, when there is nothing to do.
    #[serde(default)]
    missing: Missing,
    /// What happens to the objects that belong to it: `background`, `foreground` (it goes after them), or `orphan`
    /// (they stay). Left out, as the kind has it.
    #[serde(default)]
    dependents: Option<Dependents>,
    /// How long a pod may take to end. Left out, as the pod has it.
    #[serde(default)]
    grace: Option<Length>,
    /// Wait until it is gone, and fail when it is not gone in this time. Left out, the step ends when the server has
    /// taken the deletion.
    #[serde(default)]
    gone_within: Option<Length>,
}

/// What happens to dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Dependents {
    /// They go after it.
    Background,
    /// They go before it.
    Foreground,
    /// They stay.
    Orphan,
}

/// What was deleted.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Deleted {
    /// Whether there was something to delete.
    deleted: bool,
    /// The identity of the object; empty when there was none.
    uid: String,
}

impl Action for Delete {
    const NAME: &'static str = "k8s.delete";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Destructive;
    const DELETES: bool = true;
    const EXAMPLE: &'static str = "\
delete_namespace:
  uses: k8s.delete
  needs: []
  with: { target: cluster, kind: Namespace, name: tool-example, missing: ok, gone_within: 10m }
  undo: none
";

    type Output = Deleted;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Deleted>, Failure> {
        let reader = cx.reader(&self.target).await?;
        self.plan_in(&reader.cluster).await.map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Deleted, Failure> {
        let writer = cx.writer(&self.target).await?;
        self.apply_in(&writer.cluster, only(changes)?)
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }
}

impl Delete {
    async fn named(&self, cluster: &Cluster) -> Result<Named, Failure> {
        let (version, namespace) = (self.api_version.as_deref(), self.namespace.as_deref());
        Named::of(cluster, &self.kind, version, namespace, &self.name).await
    }

    async fn plan_in(&self, cluster: &Cluster) -> Result<Planned<Deleted>, Failure> {
        let named = self.named(cluster).await?;
        let object = match self.missing {
            Missing::Fail => Some(named.get(cluster).await?),
            Missing::Ok => named.find(cluster).await?,
        };
        let nothing = Deleted { deleted: false, uid: String::new() };
        let Some(object) = object else { return Ok(Planned::known(nothing)) };
        if object.metadata.deletion_timestamp.is_some() {
            let note = format!("{} is on its way out already", named.title());
            return Ok(Planned::known(nothing).note(note));
        }
        let mut before = without_bookkeeping(&to_json(&object)?);
        hide(&named.kind.resource.kind, &mut before);
        let change = Change {
            object: named.title().into(),
            kind: ChangeKind::Delete,
            before: to_value(&before)?,
            after: farrier_model::Value::Null,
            fingerprint: Some(uid(&object).into()),
        };
        let planned =
            Planned::changes(vec![change], Deleted { deleted: true, uid: uid(&object) }).considered(1);
        Ok(if named.kind.resource.kind == "Namespace" {
            planned.note(format!("everything in the namespace `{}` goes with it", named.name))
        } else {
            planned
        })
    }

    async fn apply_in(&self, cluster: &Cluster, change: &Change) -> Result<Deleted, Failure> {
        let named = self.named(cluster).await?;
        let planned = change.fingerprint.as_deref().unwrap_or_default().to_owned();
        let done = Deleted { deleted: true, uid: planned.clone() };
        let Some(live) = named.find(cluster).await? else { return Ok(done) };
        same_object(&named, &live, change)?;
        if live.metadata.deletion_timestamp.is_none() {
            let params = DeleteParams {
                grace_period_seconds: self.grace.map(|grace| grace.0.as_secs() as u32),
                propagation_policy: self.dependents.map(|dependents| match dependents {
                    Dependents::Background => PropagationPolicy::Background,
                    Dependents::Foreground => PropagationPolicy::Foreground,
                    Dependents::Orphan => PropagationPolicy::Orphan,
                }),
                preconditions: Some(Preconditions { uid: Some(planned.clone()), resource_version: None }),
                ..DeleteParams::default()
            };
            match named.api(cluster).delete(&named.name, &params).await {
                Ok(_) => {}
                Err(error) if status(&error).is_some_and(|status| status.code == 404) => return Ok(done),
                // The server has compared.
                Err(error) if status(&error).is_some_and(|status| status.code == 409) => {
                    return Err(gone(&named));
                }
                Err(error) => return Err(write_failure(&error, &format!("cannot delete {}", named.title()))),
            }
        }
        let Some(within) = self.gone_within else { return Ok(done) };
        let begun = tokio::time::Instant::now();
        while named.find(cluster).await?.is_some_and(|live| uid(&live) == planned) {
            if begun.elapsed() >= within.0 {
                return Err(Failure::new(
                    FailureKind::Timeout,
                    format!(
                        "{} is not gone after {}",
                        named.title(),
                        farrier_model::time::format_duration(within.0)
                    ),
                )
                .help("its finalizers or its content hold it; look at its status"));
            }
            farrier_action::rest::sleep(LOOK).await;
        }
        Ok(done)
    }
}
