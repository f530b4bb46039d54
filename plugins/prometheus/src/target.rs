//! The target kinds [`Prometheus`] and [`Alertmanager`], and their entries in an environment.

use std::path::PathBuf;

use farrier_action::{ConnectCx, Now, TargetKind};
use farrier_model::{Failure, FailureKind};
use farrier_outbound::{Endpoint, Web};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::metrics::{Metrics, Server};
use crate::standin::{RecordedAlerts, RecordedMetrics};

/// A Prometheus server.
#[derive(Debug)]
pub struct Prometheus;

/// A Prometheus server, or one that speaks its API, such as Thanos; or a recording that stands in for one.
///
/// `url` is the address before `/api/v1`. `series:FILE` answers from a file of recorded queries.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct PrometheusConfig(Endpoint);

/// The side that reads; there is no other.
pub struct PrometheusReader {
    pub(crate) metrics: Box<dyn Metrics>,
}

impl TargetKind for Prometheus {
    const KIND: &'static str = "prometheus";
    type Config = PrometheusConfig;
    type Reader = PrometheusReader;
    type Writer = ();

    fn identity(config: &PrometheusConfig) -> String {
        config.0.identity()
    }

    fn is_stand_in(config: &PrometheusConfig) -> bool {
        config.0.stand_in("series").is_some_and(|path| !path.starts_with('/'))
    }

    async fn reader(config: PrometheusConfig, cx: &ConnectCx) -> Result<PrometheusReader, Failure> {
        let metrics: Box<dyn Metrics> = match config.0.stand_in("series") {
            Some(file) => Box::new(RecordedMetrics::open(cx.path(file), cx.now.clone())?),
            None => Box::new(Server(config.0.reader(cx).await?)),
        };
        Ok(PrometheusReader { metrics })
    }

    async fn writer(_: PrometheusConfig, _: &ConnectCx) -> Result<(), Failure> {
        Err(Failure::new(FailureKind::Denied, "a Prometheus server can only be read"))
    }
}

/// An Alertmanager.
#[derive(Debug)]
pub struct Alertmanager;

/// An Alertmanager, or a recording that stands in for one.
///
/// `url` is the address before `/api/v2`. `alerts:FILE` has the alerts of a file; silences are kept in
/// `FILE.silences.jsonl` beside it, or where `state` says.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct AlertmanagerConfig(Endpoint);

/// One side of an Alertmanager.
pub struct AlertmanagerSide {
    pub(crate) web: Box<dyn Web>,
    pub(crate) now: Now,
}

impl AlertmanagerConfig {
    fn recorded(&self, cx: &ConnectCx) -> Option<Result<RecordedAlerts, Failure>> {
        let file = cx.path(self.0.stand_in("alerts")?);
        let state = self.0.state.as_ref().map_or_else(
            || {
                let mut path = file.clone().into_os_string();
                path.push(".silences.jsonl");
                PathBuf::from(path)
            },
            |state| cx.path(state),
        );
        Some(RecordedAlerts::open(file, state, cx.now.clone()))
    }
}

impl TargetKind for Alertmanager {
    const KIND: &'static str = "alertmanager";
    type Config = AlertmanagerConfig;
    type Reader = AlertmanagerSide;
    type Writer = AlertmanagerSide;

    fn identity(config: &AlertmanagerConfig) -> String {
        config.0.identity()
    }

    fn is_stand_in(config: &AlertmanagerConfig) -> bool {
        let relative = |path: &str| !path.starts_with('/');
        config.0.stand_in("alerts").is_some_and(relative) && config.0.state.as_deref().is_none_or(relative)
    }

    async fn reader(config: AlertmanagerConfig, cx: &ConnectCx) -> Result<AlertmanagerSide, Failure> {
        let web: Box<dyn Web> = match config.recorded(cx) {
            Some(recorded) => Box::new(recorded?),
            None => Box::new(config.0.reader(cx).await?),
        };
        Ok(AlertmanagerSide { web, now: cx.now.clone() })
    }

    async fn writer(config: AlertmanagerConfig, cx: &ConnectCx) -> Result<AlertmanagerSide, Failure> {
        let web: Box<dyn Web> = match config.recorded(cx) {
            Some(recorded) => Box::new(recorded?),
            None => Box::new(config.0.writer(cx).await?),
        };
        Ok(AlertmanagerSide { web, now: cx.now.clone() })
    }
}
