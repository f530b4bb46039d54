//! `k8s.apply`.

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Fidelity, Value};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::core::response::Status;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::cluster::{Cluster, is_missing, read_failure, status, write_failure};
use crate::object::{
    Named, Object, deviations, difference, from_value, tied_patch, to_json, to_value, tree, uid,
    without_bookkeeping,
};
use crate::target::Kubernetes;
use crate::tied::{MANAGER, Way, drifted, gone, only, same_object, set, update};

/// How often a write is tried again because something else of the object changed meanwhile.
const TRIES: usize = 10;

/// Makes an object as a manifest says, by server-side apply.
///
/// Only the fields that the manifest names are touched. The server judges the plan: it fills in, checks and compares,
/// and stores nothing. A field that the manifest named before and names no longer is removed. A field that someone else
/// manages and has another value of is a refusal, unless `force` takes it over. Undo brings the touched fields back, or
/// deletes the object that was made. Secrets are refused, since their values would stand in the journal.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Apply {
    /// The cluster.
    target: Target<Kubernetes>,
    /// The object, with `apiVersion`, `kind` and `metadata.name`.
    #[schemars(schema_with = "tree")]
    manifest: Value,
    /// Take over fields that others manage.
    #[serde(default)]
    force: bool,
}

/// What was applied.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Applied {
    /// The object as it is afterwards.
    object: Object,
}

impl Action for Apply {
    const NAME: &'static str = "k8s.apply";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
quota:
  uses: k8s.apply
  with:
    target: cluster
    manifest:
      apiVersion: v1
      kind: ResourceQuota
      metadata: { name: tool-example, namespace: tool-example }
      spec: { hard: { pods: \"20\", limits.memory: 12Gi } }
  undo: restore
";

    type Output = Applied;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Applied>, Failure> {
        let manifest = self.manifest()?;
        let reader = cx.reader(&self.target).await?;
        self.plan_in(&reader.cluster, &manifest).await.map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Applied, Failure> {
        let manifest = self.manifest()?;
        let writer = cx.writer(&self.target).await?;
        self.apply_in(&writer.cluster, &manifest, only(changes)?)
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let manifest = self.manifest()?;
        let writer = cx.writer(&self.target).await?;
        self.undo_in(&writer.cluster, &manifest, only(changes)?)
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }
}

impl Apply {
    /// The manifest, as far as it can be checked without a cluster.
    fn manifest(&self) -> Result<Json, Failure> {
        let input = |message: &str| Failure::new(FailureKind::Input, format!("`manifest`: {message}"));
        let manifest = from_value(&self.manifest)?;
        for path in ["/apiVersion", "/kind", "/metadata/name"] {
            if manifest.pointer(path).and_then(Json::as_str).is_none_or(str::is_empty) {
                return Err(input(&format!("`{}` is missing", path[1..].replace('/', "."))));
            }
        }
        if manifest["kind"] == "Secret" {
            return Err(input(
                "a Secret cannot be applied: its values would stand in the journal of the run",
            ));
        }
        for field in ["uid", "resourceVersion", "managedFields"] {
            if manifest["metadata"].get(field).is_some() {
                return Err(input(&format!("`metadata.{field}` is the server's; leave it out")));
            }
        }
        Ok(manifest)
    }

    async fn named(&self, cluster: &Cluster, manifest: &Json) -> Result<Named, Failure> {
        let text = |path: &str| manifest.pointer(path).and_then(Json::as_str);
        let (kind, name) = (text("/kind").unwrap_or_default(), text("/metadata/name").unwrap_or_default());
        Named::of(cluster, kind, text("/apiVersion"), text("/metadata/namespace"), name).await
    }

    fn params(&self, dry_run: bool) -> PatchParams {
        PatchParams {
            dry_run,
            force: self.force,
            field_manager: Some(MANAGER.into()),
            ..PatchParams::default()
        }
    }

    async fn plan_in(&self, cluster: &Cluster, manifest: &Json) -> Result<Planned<Applied>, Failure> {
        let named = self.named(cluster, manifest).await?;
        let live = named.find(cluster).await?;
        let judged = named.api(cluster).patch(&named.name, &self.params(true), &Patch::Apply(manifest)).await;
        let (judged, fidelity) = match judged {
            Ok(judged) => (judged, Fidelity::Exact),
            // The account that reads may not have the server judge a write.
            Err(error)
                if status(&error).is_some_and(|status| status.code == 403 && is_permission(status)) =>
            {
                (computed(live.as_ref(), manifest)?, Fidelity::Computed)
            }
            Err(error) => return Err(refused(&error, &named)),
        };
        let object = Object::of(&named.kind, &judged)?;
        let after = without_bookkeeping(&to_json(&judged)?);
        let change = match &live {
            None => Change {
                object: named.title().into(),
                kind: ChangeKind::Create,
                before: Value::Null,
                after: to_value(&after)?,
                fingerprint: None,
            },
            Some(live) => {
                let before = without_bookkeeping(&to_json(live)?);
                let Some((before, after)) = difference(&before, &after) else {
                    return Ok(Planned { fidelity, ..Planned::known(Applied { object }) }.considered(1));
                };
                update(&named, live, &before, &after)?
            }
        };
        let planned = Planned { fidelity, ..Planned::changes(vec![change], Applied { object }) }
            .unknown("object")
            .considered(usize::from(live.is_some()));
        Ok(if fidelity == Fidelity::Computed {
            planned.note(
                "the account that reads may not have the server judge it, so Farrier compared by itself",
            )
        } else {
            planned
        })
    }

    async fn apply_in(
        &self,
        cluster: &Cluster,
        manifest: &Json,
        change: &Change,
    ) -> Result<Applied, Failure> {
        let named = self.named(cluster, manifest).await?;
        let (before, after) = (from_value(&change.before)?, from_value(&change.after)?);
        for _ in 0..TRIES {
            let live = named.find(cluster).await?;
            let config = match (&live, change.kind) {
                (Some(live), kind) => {
                    if kind != ChangeKind::Create {
                        same_object(&named, live, change)?;
                    }
                    let now = to_json(live)?;
                    if deviations(&after, &now).is_empty() {
                        return Ok(Applied { object: Object::of(&named.kind, live)? });
                    }
                    let different = if kind == ChangeKind::Create {
                        deviations(&after, &now)
                    } else {
                        deviations(&before, &now)
                    };
                    if !different.is_empty() {
                        return Err(drifted(&named, &different));
                    }
                    tied_patch(manifest, live)
                }
                (None, ChangeKind::Create) => manifest.clone(),
                (None, _) => return Err(gone(&named)),
            };
            match named.api(cluster).patch(&named.name, &self.params(false), &Patch::Apply(&config)).await {
                Ok(object) => return Ok(Applied { object: Object::of(&named.kind, &object)? }),
                Err(error) => match status(&error) {
                    Some(status) if is_owned(status) => {
                        return Err(Failure::new(FailureKind::Drift, refused(&error, &named).message));
                    }
                    Some(status) if status.code == 409 => {}
                    Some(status) if status.code == 404 && live.is_some() => return Err(gone(&named)),
                    _ => return Err(write_failure(&error, &format!("cannot apply {}", named.title()))),
                },
            }
        }
        let message =
            format!("{} changes so often that no write came between; nothing was changed", named.title());
        Err(Failure::new(FailureKind::Conflict, message))
    }

    async fn undo_in(&self, cluster: &Cluster, manifest: &Json, change: &Change) -> Result<(), Failure> {
        let named = self.named(cluster, manifest).await?;
        if change.kind != ChangeKind::Create {
            return set(cluster, &named, change, Way::Undo).await;
        }
        let Some(live) = named.find(cluster).await? else { return Ok(()) };
        let different = deviations(&from_value(&change.after)?, &to_json(&live)?);
        if !different.is_empty() {
            return Err(drifted(&named, &different));
        }
        let preconditions =
            Preconditions { uid: Some(uid(&live)), resource_version: live.metadata.resource_version };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match named.api(cluster).delete(&named.name, &params).await {
            Ok(_) => Ok(()),
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(write_failure(&error, &format!("cannot delete {}", named.title()))),
        }
    }
}

/// Whether a refusal is about what the account may do, and not about the object.
pub(crate) fn is_permission(status: &Status) -> bool {
    ["cannot patch resource", "cannot create resource", "cannot update resource"]
        .iter()
        .any(|text| status.message.contains(text))
}

fn is_owned(status: &Status) -> bool {
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    status.code == 409 && causes.iter().any(|cause| cause.reason == "FieldManagerConflict")
}

fn refused(error: &kube::Error, named: &Named) -> Failure {
    let doing = format!("cannot apply {}", named.title());
    match status(error) {
        Some(status) if is_owned(status) => {
            Failure::new(FailureKind::Refused, format!("{doing}: {}", status.message))
                .help("`force: true` takes the fields over")
        }
        // The namespace, as a rule.
        Some(status) if status.code == 404 => {
            Failure::new(FailureKind::Refused, format!("{doing}: {}", status.message))
        }
        _ => read_failure(error, &doing),
    }
}

/// What an apply would give, without the server.
fn computed(live: Option<&DynamicObject>, manifest: &Json) -> Result<DynamicObject, Failure> {
    let merged = match live {
        Some(live) => crate::standin::merged(&to_json(live)?, manifest),
        None => manifest.clone(),
    };
    serde_json::from_value(merged)
        .map_err(|error| Failure::new(FailureKind::Input, format!("`manifest` is no object: {error}")))
}
