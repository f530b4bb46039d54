//! `k8s.drain`.
//!
//! The plan lists the pods that will go. Apply evicts exactly these, each named by its uid, and waits until they are
//! gone. A disruption budget that refuses is asked again; it is never gone around. A pod whose eviction was taken and
//! that does not end (its processes hang) is stuck, and `when_stuck` says what then.

use std::collections::BTreeMap;
use std::time::Duration;

use farrier_action::duration::Length;
use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::time::{Timestamp, format_duration};
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, DynamicObject, ListParams, Preconditions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use crate::cluster::{Cluster, Kind, is_missing, read_failure, status, write_failure};
use crate::cordon::{is_cordoned, node};
use crate::list::all;
use crate::object::{title, to_json, uid};
use crate::target::Kubernetes;

/// How soon to look at the pods that are going; each look doubles the pause until the next, up to [`LATER`], so that a
/// pod that hangs for minutes costs the server little.
const SOON: Duration = Duration::from_secs(1);

/// The longest pause between two looks.
const LATER: Duration = Duration::from_secs(8);

/// How many pods are asked about at once.
const AT_ONCE: usize = 16;

/// Empties a node: evicts its pods and waits until they are gone.
///
/// Evictions respect disruption budgets, and are tried again until these allow them. Pods of daemon sets, mirror pods
/// and pods that have ended stay. The node should be cordoned before; otherwise the plan says so.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Drain {
    /// The cluster.
    target: Target<Kubernetes>,
    /// The node.
    node: String,
    /// How long each pod may take to end. Left out, as the pod has it.
    #[serde(default)]
    pod_grace: Option<Length>,
    /// How long to wait for a pod to go before it counts as stuck. The default is `10m`.
    #[serde(default = "ten_minutes")]
    stuck_after: Length,
    /// What to do with pods that are stuck: `fail`, or `force_delete`, which takes them off the cluster's books while
    /// their processes may still run. A pod that a disruption budget holds back is never forced.
    #[serde(default)]
    when_stuck: WhenStuck,
    /// Whether pods may go that keep data on the node (`emptyDir`), which is then lost: `fail` or `evict`.
    #[serde(default)]
    empty_dir: Policy,
    /// Whether pods may go that nothing would make again elsewhere: `fail` or `evict`.
    #[serde(default)]
    unmanaged: Policy,
}

fn ten_minutes() -> Length {
    Length(Duration::from_secs(600))
}

/// What happens to pods that do not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum WhenStuck {
    /// The step fails and names them.
    #[default]
    Fail,
    /// They are deleted without waiting for their end.
    ForceDelete,
}

/// Whether pods of a kind may be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Policy {
    /// The step fails before anything is evicted.
    #[default]
    Fail,
    /// They are evicted like others.
    Evict,
}

/// What became of the pods.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Drained {
    /// The node.
    node: String,
    /// The pods that were evicted, as `namespace/name`.
    evicted: Vec<String>,
    /// Those of them that did not end and were deleted by force.
    forced: Vec<String>,
    /// The pods that stay: of daemon sets, mirror pods, and those that have ended.
    left: Vec<String>,
}

impl Action for Drain {
    const NAME: &'static str = "k8s.drain";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const EXAMPLE: &'static str = "\
drain:
  uses: k8s.drain
  with:
    target: cluster
    node: tools-k8s-worker-nfs-12
    pod_grace: 30s
    stuck_after: 10m
    when_stuck: force_delete
  timeout: 15m
  undo: none
";

    type Output = Drained;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Drained>, Failure> {
        let reader = cx.reader(&self.target).await?;
        self.plan_in(&reader.cluster).await.map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Drained, Failure> {
        let writer = cx.writer(&self.target).await?;
        self.apply_in(cx, &writer.cluster, changes).await.map_err(|failure| failure.at(self.target.alias()))
    }
}

/// A pod that has to go.
#[derive(Debug, Clone)]
struct Going {
    namespace: String,
    name: String,
    uid: String,
}

impl Going {
    fn shown(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// What people are told while pods are waited for.
fn left_over(waiting: &[Going], held: &BTreeMap<String, String>) -> String {
    let mut text = "pods gone".to_owned();
    let first: Vec<String> = waiting.iter().take(3).map(Going::shown).collect();
    if !first.is_empty() {
        text = format!("{text}; waiting for {}", first.join(", "));
        if waiting.len() > first.len() {
            text = format!("{text} and {} more", waiting.len() - first.len());
        }
    }
    if !held.is_empty() {
        text = format!("{text}; disruption budgets hold {} back", held.len());
    }
    text
}

/// How it stands with a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stands {
    Gone,
    /// Its eviction was taken, and it has not ended yet.
    Ending,
    /// A budget refuses, in these words.
    Held(String),
}

impl Drain {
    async fn plan_in(&self, cluster: &Cluster) -> Result<Planned<Drained>, Failure> {
        let named = node(cluster, &self.node).await?;
        let object = to_json(&named.get(cluster).await?)?;
        let kind = cluster.kind("Pod", Some("v1")).await?;
        let pods = self.pods(cluster, &kind).await?;
        let (mut changes, mut left, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for pod in &pods {
            let tree = to_json(pod)?;
            let shown = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
            if stays(&tree) {
                left.push(shown);
                continue;
            }
            let decided = pod.metadata.deletion_timestamp.is_some();
            if !decided && self.empty_dir == Policy::Fail && keeps_data(&tree) {
                refused.push(format!("`{shown}` keeps data on the node (emptyDir)"));
            }
            if !decided && self.unmanaged == Policy::Fail && controller(&tree).is_none() {
                refused.push(format!("`{shown}` belongs to nothing that would make it again"));
            }
            changes.push(Change {
                object: title(&kind, pod.namespace().as_deref(), &pod.name_any()).into(),
                kind: ChangeKind::Delete,
                before: Value::map([
                    ("namespace", Value::text(pod.namespace().unwrap_or_default())),
                    ("name", Value::text(pod.name_any())),
                    ("node", Value::text(&*self.node)),
                    ("of", Value::text(controller(&tree).unwrap_or_default())),
                ]),
                after: Value::Null,
                fingerprint: Some(uid(pod).into()),
            });
        }
        if !refused.is_empty() {
            return Err(Failure::new(
                FailureKind::Refused,
                format!("{} cannot be drained: {}", named.title(), refused.join(", ")),
            )
            .help("`empty_dir: evict` and `unmanaged: evict` let them go all the same"));
        }
        let evicted =
            changes.iter().map(|change| going(change).map(|pod| pod.shown())).collect::<Result<_, _>>()?;
        let output = Drained { node: self.node.clone(), evicted, forced: Vec::new(), left };
        let mut planned = Planned::changes(changes, output).unknown("forced").considered(pods.len());
        if !is_cordoned(&object) {
            planned = planned.note(format!(
                "{} is not cordoned yet: new pods may come while it is drained",
                named.title()
            ));
        }
        Ok(planned)
    }

    async fn pods(&self, cluster: &Cluster, kind: &Kind) -> Result<Vec<DynamicObject>, Failure> {
        let params = ListParams::default().limit(500).fields(&format!("spec.nodeName={}", self.node));
        all(cluster, kind, None, params, None).await
    }

    async fn apply_in(
        &self,
        cx: &WriteCx,
        cluster: &Cluster,
        changes: &[Change],
    ) -> Result<Drained, Failure> {
        let kind = cluster.kind("Pod", Some("v1")).await?;
        let mut waiting: Vec<Going> = changes.iter().map(going).collect::<Result<_, _>>()?;
        let evicted = waiting.iter().map(Going::shown).collect();
        let mut forced = Vec::new();
        let begun = Begun { at: Instant::now(), in_cluster: cluster.now() };
        let mut pause = SOON;
        loop {
            let mut held: BTreeMap<String, String> = BTreeMap::new();
            let mut still = Vec::new();
            for some in waiting.chunks(AT_ONCE) {
                let asked = some.iter().map(|pod| self.ask(cluster, &kind, pod));
                for (pod, stands) in some.iter().zip(futures_util::future::join_all(asked).await) {
                    match stands? {
                        Stands::Gone => continue,
                        Stands::Ending => {}
                        Stands::Held(why) => {
                            held.insert(pod.uid.clone(), why);
                        }
                    }
                    still.push(pod.clone());
                }
            }
            waiting = still;
            let gone = changes.len() - waiting.len();
            cx.progress(gone, changes.len(), || left_over(&waiting, &held));
            if waiting.is_empty() {
                break;
            }
            if begun.is_past(cluster.now(), self.stuck_after.0) {
                self.end_stuck(cluster, &kind, &waiting, &held, &mut forced).await?;
                continue;
            }
            farrier_action::rest::sleep(pause).await;
            pause = (pause * 2).min(LATER);
        }
        let mut left = Vec::new();
        let mut came = Vec::new();
        for pod in self.pods(cluster, &kind).await? {
            let shown = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
            if stays(&to_json(&pod)?) { left.push(shown) } else { came.push(shown) }
        }
        if !came.is_empty() {
            return Err(Failure::new(
                FailureKind::Drift,
                format!("pods came to `{}` since the plan was made: `{}`", self.node, came.join("`, `")),
            )
            .help("cordon the node and plan again"));
        }
        Ok(Drained { node: self.node.clone(), evicted, forced, left })
    }

    /// Looks at a pod, and evicts it when nobody has told it to end yet.
    async fn ask(&self, cluster: &Cluster, kind: &Kind, pod: &Going) -> Result<Stands, Failure> {
        let api = cluster.api(kind, Some(&pod.namespace));
        let live = match api.get(&pod.name).await {
            Ok(live) => live,
            Err(error) if is_missing(&error) => return Ok(Stands::Gone),
            Err(error) => return Err(read_failure(&error, &format!("cannot read Pod {}", pod.shown()))),
        };
        if uid(&live) != pod.uid {
            return Ok(Stands::Gone);
        }
        if live.metadata.deletion_timestamp.is_some() {
            return Ok(Stands::Ending);
        }
        match self.evict(cluster, pod).await {
            Ok(()) => Ok(Stands::Ending),
            Err(error) if is_missing(&error) => Ok(Stands::Gone),
            Err(error) => match status(&error) {
                Some(refusal) if refusal.code == 429 => {
                    let cause = refusal.details.as_ref().and_then(|details| details.causes.first());
                    let why = cause.map_or(&refusal.message, |cause| &cause.message);
                    Ok(Stands::Held(why.clone()))
                }
                // Another pod of that name, or someone changed it at this moment: look again.
                Some(refusal) if refusal.code == 409 => Ok(Stands::Ending),
                _ => Err(write_failure(&error, &format!("cannot evict Pod {}", pod.shown()))),
            },
        }
    }

    /// kube's own call has no way to pass the options, so the request is made here. Without a version of its own, the
    /// server reads it as the one that it has.
    async fn evict(&self, cluster: &Cluster, pod: &Going) -> Result<(), kube::Error> {
        let mut options = json!({ "preconditions": { "uid": pod.uid } });
        if let Some(grace) = self.pod_grace {
            options["gracePeriodSeconds"] = grace.0.as_secs().into();
        }
        let body = json!({
            "metadata": { "namespace": pod.namespace, "name": pod.name },
            "deleteOptions": options,
        });
        let path = format!("/api/v1/namespaces/{}/pods/{}/eviction", pod.namespace, pod.name);
        let request = http::Request::post(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        cluster.client.request::<Json>(request).await.map(|_| ())
    }

    async fn end_stuck(
        &self,
        cluster: &Cluster,
        kind: &Kind,
        waiting: &[Going],
        held: &BTreeMap<String, String>,
        forced: &mut Vec<String>,
    ) -> Result<(), Failure> {
        let waited = format_duration(self.stuck_after.0);
        if !held.is_empty() {
            let each: Vec<String> = waiting
                .iter()
                .filter_map(|pod| held.get(&pod.uid).map(|why| format!("`{}`: {why}", pod.shown())))
                .collect();
            return Err(Failure::new(
                FailureKind::Conflict,
                format!("after {waited} a disruption budget still holds pods back: {}", each.join(", ")),
            )
            .help("bring more pods of that workload up, or have its owner change the budget"));
        }
        if self.when_stuck == WhenStuck::Fail {
            let each: Vec<String> = waiting.iter().map(Going::shown).collect();
            return Err(Failure::new(
                FailureKind::Timeout,
                format!("after {waited} pods have not ended: `{}`", each.join("`, `")),
            )
            .help("`when_stuck: force_delete` takes them off the books"));
        }
        for pod in waiting {
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions { uid: Some(pod.uid.clone()), resource_version: None }),
                ..DeleteParams::default()
            };
            match cluster.api(kind, Some(&pod.namespace)).delete(&pod.name, &params).await {
                Ok(_) if forced.contains(&pod.shown()) => {
                    let message = format!("Pod {} was deleted by force and is still there", pod.shown());
                    return Err(Failure::new(FailureKind::Timeout, message)
                        .help("its finalizers hold it; look at its metadata"));
                }
                Ok(_) => forced.push(pod.shown()),
                Err(error) if status(&error).is_some_and(|status| matches!(status.code, 404 | 409)) => {}
                Err(error) => {
                    return Err(write_failure(&error, &format!("cannot delete Pod {}", pod.shown())));
                }
            }
        }
        Ok(())
    }
}

/// When waiting began, by both clocks: the cluster's may be a simulated one.
struct Begun {
    at: Instant,
    in_cluster: Timestamp,
}

impl Begun {
    fn is_past(&self, now: Timestamp, limit: Duration) -> bool {
        let in_cluster = now.as_millisecond().saturating_sub(self.in_cluster.as_millisecond());
        self.at.elapsed() >= limit
            || u128::try_from(in_cluster).is_ok_and(|waited| waited >= limit.as_millis())
    }
}

/// The pod of a recorded change.
fn going(change: &Change) -> Result<Going, Failure> {
    let text = |name: &str| change.before.get(name).and_then(Value::as_str).map(str::to_owned);
    match (text("namespace"), text("name"), &change.fingerprint) {
        (Some(namespace), Some(name), Some(uid)) => Ok(Going { namespace, name, uid: uid.to_string() }),
        _ => Err(Failure::new(FailureKind::Internal, "a recorded change does not name a pod")),
    }
}

/// Whether a pod stays on a node that is drained.
fn stays(pod: &Json) -> bool {
    let mirror = pod.pointer("/metadata/annotations/kubernetes.io~1config.mirror").is_some();
    let ended = matches!(pod.pointer("/status/phase").and_then(Json::as_str), Some("Succeeded" | "Failed"));
    let daemon = controller(pod).is_some_and(|of| of.starts_with("DaemonSet ") || of.starts_with("Node "));
    mirror || ended || daemon
}

/// What a pod belongs to: `ReplicaSet web-5c9f`.
fn controller(pod: &Json) -> Option<String> {
    let references = pod.pointer("/metadata/ownerReferences")?.as_array()?;
    let reference = references.iter().find(|reference| reference["controller"] == true)?;
    Some(format!("{} {}", reference["kind"].as_str()?, reference["name"].as_str()?))
}

fn keeps_data(pod: &Json) -> bool {
    let volumes = pod.pointer("/spec/volumes").and_then(Json::as_array);
    volumes.into_iter().flatten().any(|volume| volume.get("emptyDir").is_some())
}
