//! Prometheus and Alertmanager: query, wait; alerts, silence, expire. Servers, or recordings that stand in for them.
//!
//! Read first: `promql` (how values enter a query, and how old samples are left out), `metrics` (what a server of
//! metrics can do), `matcher` (what alerts and silences are picked by). There is one file for each action.
//!
//! **Rules.** A value is never part of PromQL's syntax. A series that is absent is none, never zero. A silence that a
//! step makes carries its effect id, so that it is found again.

mod alerts;
mod api;
mod expire;
mod matcher;
mod metrics;
mod promql;
mod query;
mod silence;
mod standin;
mod target;
#[cfg(test)]
mod tests;
mod wait;

use farrier_action::{ActionRegistry, RegistryError};

pub use target::{Alertmanager, AlertmanagerConfig, Prometheus, PrometheusConfig};

/// Adds the target kinds `prometheus` and `alertmanager` and their actions.
///
/// # Errors
/// When one of the names is taken.
pub fn register(registry: &mut ActionRegistry) -> Result<(), RegistryError> {
    registry.target::<Prometheus>()?;
    registry.target::<Alertmanager>()?;
    registry.action::<query::Query>()?;
    registry.action::<wait::Wait>()?;
    registry.action::<alerts::Alerts>()?;
    registry.action::<silence::Silence>()?;
    registry.action::<expire::Expire>()
}
