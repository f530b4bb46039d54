//! The service: the clock, intake of alerts, API and metrics.

pub mod intake;
