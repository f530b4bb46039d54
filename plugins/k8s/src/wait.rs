//! `k8s.wait`.

use std::time::Duration;

use farrier_action::duration::Length;
use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::time::format_duration;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::object::{Named, Object};
use crate::target::Kubernetes;

/// How often to look.
const LOOK: Duration = Duration::from_secs(1);

/// Waits until an object is ready, or gone.
///
/// It waits when it is run, not when it is planned: a plan shows what it would wait for, or that it is so already.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WaitFor {
    /// The cluster.
    target: Target<Kubernetes>,
    /// The kind: `Deployment`, `Node`.
    kind: String,
    /// The API version (`apps/v1`), for kinds of which the cluster has several.
    #[serde(default)]
    api_version: Option<String>,
    /// The namespace, for kinds that are in one.
    #[serde(default)]
    namespace: Option<String>,
    /// The name.
    name: String,
    /// `ready` (see `k8s.get`), or `gone`. The default is `ready`.
    #[serde(default)]
    until: Until,
    /// How long at most.
    within: Length,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Until {
    /// It does what it is for.
    #[default]
    Ready,
    /// It is not there.
    Gone,
}

/// How it came.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Waited {
    /// Whether the object is there.
    found: bool,
    /// Whether it is ready.
    ready: bool,
}

impl Action for WaitFor {
    const NAME: &'static str = "k8s.wait";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const EXAMPLE: &'static str = "\
rolled_out:
  uses: k8s.wait
  with: { target: cluster, kind: Deployment, namespace: tool-example, name: example, within: 5m }
  undo: none
";

    type Output = Waited;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Waited>, Failure> {
        let reader = cx.reader(&self.target).await?;
        let at = |failure: Failure| failure.at(self.target.alias());
        let named = self.named(&reader.cluster).await.map_err(at)?;
        let now = self.look(&reader.cluster, &named).await.map_err(at)?;
        if self.is_so(&now) {
            return Ok(Planned::known(now));
        }
        let word = |ready: bool, found: bool| {
            Value::text(match (found, ready) {
                (false, _) => "gone",
                (true, true) => "ready",
                (true, false) => "not ready",
            })
        };
        let change = Change {
            object: named.title().into(),
            kind: ChangeKind::Run,
            before: Value::map([("is", word(now.ready, now.found))]),
            after: Value::map([("is", word(self.until == Until::Ready, self.until == Until::Ready))]),
            fingerprint: None,
        };
        Ok(Planned::described(vec![change]))
    }

    async fn apply(&self, cx: &WriteCx, _changes: &[Change]) -> Result<Waited, Failure> {
        // It only reads, but the account that writes is the one that a run may count on.
        let writer = cx.writer(&self.target).await?;
        let at = |failure: Failure| failure.at(self.target.alias());
        let named = self.named(&writer.cluster).await.map_err(at)?;
        let begun = tokio::time::Instant::now();
        loop {
            let now = self.look(&writer.cluster, &named).await.map_err(at)?;
            if self.is_so(&now) {
                return Ok(now);
            }
            if begun.elapsed() >= self.within.0 {
                let what = if self.until == Until::Ready { "ready" } else { "gone" };
                let waited = format_duration(self.within.0);
                let message = format!("{} is not {what} after {waited}", named.title());
                return Err(at(Failure::new(FailureKind::Timeout, message)));
            }
            farrier_action::rest::sleep(LOOK).await;
        }
    }
}

impl WaitFor {
    async fn named(&self, cluster: &Cluster) -> Result<Named, Failure> {
        let (version, namespace) = (self.api_version.as_deref(), self.namespace.as_deref());
        Named::of(cluster, &self.kind, version, namespace, &self.name).await
    }

    async fn look(&self, cluster: &Cluster, named: &Named) -> Result<Waited, Failure> {
        let object = named.find(cluster).await?;
        let object = object.map(|object| Object::of(&named.kind, &object)).transpose()?;
        Ok(Waited {
            found: object.is_some(),
            ready: object.is_some_and(|object| object.ready && !object.deleting),
        })
    }

    fn is_so(&self, now: &Waited) -> bool {
        match self.until {
            Until::Ready => now.ready,
            Until::Gone => !now.found,
        }
    }
}
