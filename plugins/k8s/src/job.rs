//! `k8s.job`.
//!
//! The job is named by the effect id, so that the cluster remembers it: submitting it again, after a crash or a lost
//! answer, finds the job that is there, and waits for it.

use std::collections::BTreeMap;
use std::time::Duration;

use farrier_action::duration::Length;
use farrier_action::text::FreeText;
use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::time::format_duration;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use kube::ResourceExt as _;
use kube::api::{DynamicObject, ListParams, LogParams, PostParams};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use crate::cluster::{Cluster, status, write_failure};
use crate::list::all;
use crate::logs::{end_of, read};
use crate::object::{Named, check_name, from_value, to_json, to_value, tree};
use crate::target::Kubernetes;
use crate::tied::{MANAGER, only};

/// The label with the effect id of the step that submitted a job.
const EFFECT: &str = "farrier.run/effect";

/// How often to look whether it has ended.
const LOOK: Duration = Duration::from_secs(1);

/// Runs one command in the cluster, as a Kubernetes job, and waits for its end.
///
/// The job has the name of this very step of this very run: it is submitted once, however often the step is tried, and
/// a second look finds it again. When the step is cancelled or takes too long, the job goes on; `deadline` ends it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Job {
    /// The cluster.
    target: Target<Kubernetes>,
    /// The namespace.
    namespace: String,
    /// The image.
    image: String,
    /// The program and its arguments. No shell reads it.
    argv: Vec<FreeText>,
    /// Environment variables.
    #[serde(default)]
    env: BTreeMap<String, FreeText>,
    /// Labels for the job and its pods.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// More of the pod's spec, merged into it: volumes, resources, a service account.
    #[serde(default)]
    #[schemars(schema_with = "tree")]
    pod: Option<Value>,
    /// How long the job may run before the cluster ends it.
    deadline: Length,
    /// How long the job and its log are kept after its end. The default is `1d`.
    #[serde(default = "one_day")]
    keep: Length,
    /// How many lines of the log's end are returned. The default is 200.
    #[serde(default = "two_hundred")]
    lines: u32,
}

fn one_day() -> Length {
    Length(Duration::from_secs(86_400))
}

fn two_hundred() -> u32 {
    200
}

/// How it ended.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Ended {
    /// The name of the job.
    job: String,
    /// The pod that ran; empty when it is gone already.
    pod: String,
    /// The end of what it said.
    log: String,
}

impl Action for Job {
    const NAME: &'static str = "k8s.job";
    const EFFECT: Effect = Effect::Keyed;
    const RISK: Risk = Risk::Destructive;
    const EXAMPLE: &'static str = "\
clean:
  uses: k8s.job
  with:
    target: cluster
    namespace: maintain-harbor
    image: docker-registry.tools.wmflabs.org/maintain-harbor:latest
    argv: [maintain-harbor, delete-stale-artifacts]
    deadline: 30m
  undo: none
";

    type Output = Ended;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Ended>, Failure> {
        let manifest = self.manifest(&cx.node().effect_id, &cx.node().run.to_string())?;
        let reader = cx.reader(&self.target).await?;
        let named = self.named(&reader.cluster, &cx.node().effect_id).await?;
        let change = Change {
            object: named.title().into(),
            kind: ChangeKind::Run,
            before: Value::Null,
            after: to_value(&manifest)?,
            fingerprint: None,
        };
        Ok(Planned::described(vec![change]))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Ended, Failure> {
        let writer = cx.writer(&self.target).await?;
        self.apply_in(&writer.cluster, &cx.node().effect_id, only(changes)?)
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }
}

/// A job's name from an effect id, which may hold what names may not.
fn name_of(effect_id: &str) -> String {
    let digest = Sha256::digest(effect_id);
    digest.iter().take(10).fold(String::from("farrier-"), |name, byte| format!("{name}{byte:02x}"))
}

impl Job {
    async fn named(&self, cluster: &Cluster, effect_id: &str) -> Result<Named, Failure> {
        Named::of(cluster, "Job", Some("batch/v1"), Some(&self.namespace), &name_of(effect_id)).await
    }

    fn manifest(&self, effect_id: &str, run: &str) -> Result<Json, Failure> {
        let input = |message: String| Failure::new(FailureKind::Input, message);
        check_name("namespace", &self.namespace)?;
        if self.argv.first().is_none_or(|program| program.0.is_empty()) {
            return Err(input("`argv` names no program".into()));
        }
        if self.image.is_empty() || self.image.contains(char::is_whitespace) {
            return Err(input(format!("`image`: {:?} is not the name of an image", self.image)));
        }
        for name in self.env.keys() {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(input(format!("`env`: {name:?} is not the name of a variable")));
            }
        }
        if self.deadline.0.as_secs() == 0 {
            return Err(input("`deadline` must be at least one second".into()));
        }
        // The kubelet would read `$(NAME)` in arguments and values as a variable.
        let plain = |text: &str| text.replace("$(", "$$(");
        let argv: Vec<String> = self.argv.iter().map(|argument| plain(&argument.0)).collect();
        let env: Vec<Json> =
            self.env.iter().map(|(name, value)| json!({ "name": name, "value": plain(&value.0) })).collect();
        let mut labels = json!({ "app.kubernetes.io/managed-by": MANAGER });
        for (key, value) in &self.labels {
            labels[key] = value.clone().into();
        }
        let mut spec = json!({
            "restartPolicy": "Never",
            "containers": [{ "name": "main", "image": self.image, "command": argv, "env": env }],
        });
        if let Some(more) = &self.pod {
            let mut more = from_value(more)?;
            if more.get("containers").is_some_and(Json::is_array) {
                return Err(input("`pod.containers` is a map here: fields of the one container".into()));
            }
            if let Some(fields) = more.as_object_mut().and_then(|more| more.shift_remove("containers")) {
                crate::standin::merge_patch(&mut spec["containers"][0], &fields);
            }
            crate::standin::merge_patch(&mut spec, &more);
        }
        let mut own = labels.clone();
        own[EFFECT] = name_of(effect_id).into();
        Ok(json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {
                "name": name_of(effect_id), "namespace": self.namespace, "labels": own,
                "annotations": { EFFECT: effect_id, "farrier.run/run": run },
            },
            "spec": {
                "backoffLimit": 0, "completions": 1, "parallelism": 1,
                "activeDeadlineSeconds": self.deadline.0.as_secs(),
                "ttlSecondsAfterFinished": self.keep.0.as_secs(),
                "template": { "metadata": { "labels": labels }, "spec": spec },
            },
        }))
    }

    async fn apply_in(&self, cluster: &Cluster, effect_id: &str, change: &Change) -> Result<Ended, Failure> {
        let named = self.named(cluster, effect_id).await?;
        let object: DynamicObject = serde_json::from_value(from_value(&change.after)?).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("a recorded job cannot be read: {error}"))
        })?;
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        match named.api(cluster).create(&params, &object).await {
            Ok(_) => {}
            Err(error) if status(&error).is_some_and(|status| status.reason == "AlreadyExists") => {
                let there = named.get(cluster).await?;
                if there.annotations().get(EFFECT).is_none_or(|own| own != effect_id) {
                    let message = format!("{} is there already and was not made by this step", named.title());
                    return Err(Failure::new(FailureKind::Drift, message));
                }
            }
            Err(error) => return Err(write_failure(&error, &format!("cannot submit {}", named.title()))),
        }
        self.wait(cluster, &named).await
    }

    async fn wait(&self, cluster: &Cluster, named: &Named) -> Result<Ended, Failure> {
        loop {
            let Some(job) = named.find(cluster).await? else {
                let message = format!("{} was deleted before its end was seen", named.title());
                return Err(Failure::new(FailureKind::Refused, message).in_doubt());
            };
            let job = to_json(&job)?;
            let conditions = job.pointer("/status/conditions").and_then(Json::as_array);
            let holds = |kind: &str| {
                conditions
                    .into_iter()
                    .flatten()
                    .find(|condition| condition["type"] == kind && condition["status"] == "True")
            };
            if holds("Complete").is_some() {
                return self.ended(cluster, named).await;
            }
            if let Some(failed) = holds("Failed") {
                let ended = self.ended(cluster, named).await?;
                let reason = failed["reason"].as_str().unwrap_or("no reason given");
                let said = ended.log.trim();
                let said = if said.is_empty() {
                    String::new()
                } else {
                    format!(": {}", end_of(said.into(), 1000).0)
                };
                let message = if reason == "DeadlineExceeded" {
                    format!("{} did not end in {}{said}", named.title(), format_duration(self.deadline.0))
                } else {
                    format!("{} failed ({reason}){said}", named.title())
                };
                return Err(Failure::new(FailureKind::Exit, message));
            }
            farrier_action::rest::sleep(LOOK).await;
        }
    }

    /// The pod that ran last, and what it said. A log that is gone is no reason to fail.
    async fn ended(&self, cluster: &Cluster, named: &Named) -> Result<Ended, Failure> {
        let pods = cluster.kind("Pod", Some("v1")).await?;
        let params = ListParams::default().labels(&format!("job-name={}", named.name));
        let mut pods = all(cluster, &pods, Some(&self.namespace), params, None).await?;
        pods.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
        let mut ended = Ended { job: named.name.clone(), pod: String::new(), log: String::new() };
        if let Some(pod) = pods.last() {
            ended.pod = pod.name_any();
            let params = LogParams { tail_lines: Some(i64::from(self.lines)), ..LogParams::default() };
            if let Ok(log) = read(cluster, &self.namespace, &ended.pod, &params).await {
                ended.log = end_of(log, 64 << 10).0;
            }
        }
        Ok(ended)
    }
}
