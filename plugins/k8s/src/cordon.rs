//! `k8s.cordon`.

use farrier_action::text::FreeText;
use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, Effect, Failure};
use kube::ResourceExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::cluster::Cluster;
use crate::object::{Named, to_json};
use crate::target::Kubernetes;
use crate::tied::{Way, only, set, update};

/// The annotation with the note of who keeps new pods off a node.
pub(crate) const NOTE: &str = "farrier.run/cordoned-by";

/// Keeps new pods off a node.
///
/// The node gets a note of who did it, so that `k8s.uncordon` can leave alone what someone else has cordoned. A node
/// that takes no pods already is no change, and keeps the note that it has.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cordon {
    /// The cluster.
    target: Target<Kubernetes>,
    /// The node.
    node: String,
    /// Who does it: the id of the run, as a rule.
    #[serde(default)]
    note: Option<FreeText>,
}

/// How the node is.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Cordoned {
    /// The node.
    pub(crate) node: String,
    /// Whether it takes no new pods.
    pub(crate) unschedulable: bool,
    /// Whose note it has; empty when it has none.
    pub(crate) note: String,
}

impl Action for Cordon {
    const NAME: &'static str = "k8s.cordon";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
cordon:
  uses: k8s.cordon
  with: { target: cluster, node: tools-k8s-worker-nfs-12, note: \"${ run.id }\" }
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
        Ok(self.done())
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let writer = cx.writer(&self.target).await?;
        set_node(&writer.cluster, &self.node, only(changes)?, Way::Undo)
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }
}

impl Cordon {
    fn done(&self) -> Cordoned {
        let note = self.note.as_ref().map(|note| note.0.clone()).unwrap_or_default();
        Cordoned { node: self.node.clone(), unschedulable: true, note }
    }

    async fn plan_in(&self, cluster: &Cluster) -> Result<Planned<Cordoned>, Failure> {
        let named = node(cluster, &self.node).await?;
        let object = named.get(cluster).await?;
        let own = object.annotations().get(NOTE).cloned();
        if is_cordoned(&to_json(&object)?) {
            let wanted = self.note.as_ref().map(|note| note.0.as_str());
            let foreign = own.as_deref() != wanted;
            let note = own.clone().unwrap_or_default();
            let planned =
                Planned::known(Cordoned { node: self.node.clone(), unschedulable: true, note: note.clone() });
            return Ok(match (foreign, note.as_str()) {
                (false, _) => planned,
                (true, "") => {
                    planned.note(format!("{} was cordoned by someone who left no note", named.title()))
                }
                (true, other) => planned.note(format!("{} was cordoned by `{other}`", named.title())),
            });
        }
        let note = self.note.as_ref().map_or(Json::Null, |note| note.0.clone().into());
        let change = update(&named, &object, &state(false, &own.into()), &state(true, &note))?;
        Ok(Planned::changes(vec![change], self.done()).considered(1))
    }
}

/// What the two actions change of a node.
pub(crate) fn state(unschedulable: bool, note: &Json) -> Json {
    let unschedulable = if unschedulable { Json::Bool(true) } else { Json::Null };
    json!({ "spec": { "unschedulable": unschedulable }, "metadata": { "annotations": { NOTE: note } } })
}

/// Whether a node takes no new pods.
pub(crate) fn is_cordoned(node: &Json) -> bool {
    node.pointer("/spec/unschedulable") == Some(&Json::Bool(true))
}

/// The node of this name.
pub(crate) async fn node(cluster: &Cluster, name: &str) -> Result<Named, Failure> {
    Named::of(cluster, "Node", Some("v1"), None, name).await
}

/// Makes the change of a node, or takes it back.
pub(crate) async fn set_node(
    cluster: &Cluster,
    name: &str,
    change: &Change,
    way: Way,
) -> Result<(), Failure> {
    let named = node(cluster, name).await?;
    set(cluster, &named, change, way).await
}
