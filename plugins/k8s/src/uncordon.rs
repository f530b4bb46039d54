//! `k8s.uncordon`.

use farrier_action::text::FreeText;
use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, Effect, Failure};
use kube::ResourceExt as _;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value as Json;

use crate::cluster::Cluster;
use crate::cordon::{Cordoned, NOTE, is_cordoned, node, set_node, state};
use crate::object::to_json;
use crate::target::Kubernetes;
use crate::tied::{Way, only};

/// Lets new pods on a node again.
///
/// With `only_if_note`, a node that someone else has cordoned is left as it is; the plan and the output say so.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Uncordon {
    /// The cluster.
    target: Target<Kubernetes>,
    /// The node.
    node: String,
    /// Only when the node has this note, as `k8s.cordon` left it.
    #[serde(default)]
    only_if_note: Option<FreeText>,
}

impl Action for Uncordon {
    const NAME: &'static str = "k8s.uncordon";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
uncordon:
  uses: k8s.uncordon
  with: { target: cluster, node: tools-k8s-worker-nfs-12, only_if_note: \"${ run.id }\" }
  undo: restore
";

    type Output = Cordoned;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Cordoned>, Failure> {
        let reader = cx.reader(&self.target).await?;
        self.plan_in(&reader.cluster).await.map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Cordoned, Failure> {
        let writer = cx.writer(&self.target).await?;
        set_node(&writer.cluster, &self.node, only(changes)?, Way::Apply)
            .await
            .map_err(|failure| failure.at(self.target.alias()))?;
        Ok(self.now(false, ""))
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let writer = cx.writer(&self.target).await?;
        set_node(&writer.cluster, &self.node, only(changes)?, Way::Undo)
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }
}

impl Uncordon {
    fn now(&self, unschedulable: bool, note: &str) -> Cordoned {
        Cordoned { node: self.node.clone(), unschedulable, note: note.to_owned() }
    }

    async fn plan_in(&self, cluster: &Cluster) -> Result<Planned<Cordoned>, Failure> {
        let named = node(cluster, &self.node).await?;
        let object = named.get(cluster).await?;
        let own = object.annotations().get(NOTE).cloned();
        let note = own.as_deref().unwrap_or_default();
        if !is_cordoned(&to_json(&object)?) {
            return Ok(Planned::known(self.now(false, note)));
        }
        if let Some(wanted) = &self.only_if_note
            && own.as_ref() != Some(&wanted.0)
        {
            let whose = if note.is_empty() { "someone who left no note".into() } else { format!("`{note}`") };
            let left = format!("{} was cordoned by {whose} and stays so", named.title());
            return Ok(Planned::known(self.now(true, note)).note(left));
        }
        let before = state(true, &own.clone().into());
        let change = crate::tied::update(&named, &object, &before, &state(false, &Json::Null))?;
        Ok(Planned::changes(vec![change], self.now(false, "")).considered(1))
    }
}
