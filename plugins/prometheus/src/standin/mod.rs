//! Recordings that stand in for servers: [`RecordedMetrics`] and [`RecordedAlerts`].

mod alerts;
mod metrics;

use std::path::Path;

use farrier_model::{Failure, FailureKind};
use serde::de::DeserializeOwned;

pub(crate) use alerts::RecordedAlerts;
pub(crate) use metrics::RecordedMetrics;

/// Reads a recording.
fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::new(FailureKind::Unreachable, format!("cannot read {}: {error}", path.display()))
    })?;
    serde_saphyr::from_str(&text)
        .map_err(|error| Failure::new(FailureKind::Input, format!("{}: {error}", path.display())))
}
