//! Kubernetes: get, list, apply, patch, delete, scale, cordon, drain, restart, logs, jobs; a cluster's API server, or
//! YAML objects that stand in for one.
//!
//! Read first: `target` (what an environment says), `cluster` (kube's client, and failures in our words), `object` (how
//! objects are shown and compared). There is one file for each action, and `standin` for the embedded cluster.
//!
//! **Rule:** every write is tied to the object that the plan saw, by its uid and its version.

mod apply;
mod cluster;
mod cordon;
mod delete;
mod drain;
mod get;
mod job;
mod kinds;
mod list;
mod logs;
mod object;
mod patch;
mod restart;
mod scale;
mod standin;
mod target;
#[cfg(test)]
mod tests;
mod tied;
mod uncordon;
mod wait;

use std::path::Path;

use farrier_action::{ActionRegistry, Now, RegistryError};
use farrier_model::Failure;

pub use target::{Kubernetes, KubernetesConfig, KubernetesReader, KubernetesWriter};

/// Adds the target kind `k8s` and its actions.
///
/// # Errors
/// When one of the names is taken.
pub fn register(registry: &mut ActionRegistry) -> Result<(), RegistryError> {
    registry.target::<Kubernetes>()?;
    registry.action::<apply::Apply>()?;
    registry.action::<cordon::Cordon>()?;
    registry.action::<delete::Delete>()?;
    registry.action::<drain::Drain>()?;
    registry.action::<get::Get>()?;
    registry.action::<job::Job>()?;
    registry.action::<list::List>()?;
    registry.action::<logs::Logs>()?;
    registry.action::<patch::Patch>()?;
    registry.action::<restart::Restart>()?;
    registry.action::<scale::Scale>()?;
    registry.action::<uncordon::Uncordon>()?;
    registry.action::<wait::WaitFor>()
}

/// kube's client for the embedded cluster over a YAML file or a folder of them, whose time is `now`: for tests that
/// look at the world behind an action's back.
///
/// # Errors
/// When the files cannot be read, or hold something that is no object.
pub fn stand_in(path: &Path, now: Now) -> Result<kube::Client, Failure> {
    standin::StandIn::open(path, now).map(|standin| standin.client())
}
