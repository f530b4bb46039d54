//! How the service is, what it counts, and what it offers.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use farrier_model::RunState;
use farrier_store::{IncidentFilter, Intake as _, Store as _};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};

use crate::app::App;
use crate::error::{ApiError, ErrorCode};
use crate::metrics::States;
use crate::wire::{HealthView, ReloadView};

/// Open incidents are counted up to here.
const INCIDENTS: usize = 10_000;
/// Runs that are looked at to say how many are due.
const DUE: usize = 1_000;

pub(crate) async fn healthz(State(app): State<App>) -> Response {
    let mut problems = Vec::new();
    if app.0.store.fatal().is_some() {
        problems.push("the store can be written no more".to_owned());
    }
    if app.0.store.is_full() {
        problems.push("the disk of the store is full".to_owned());
    }
    if app.0.store.due(1).await.is_err() {
        problems.push("the store cannot be read".to_owned());
    }
    let mut notes = Vec::new();
    // What it is that is wrong is for those who may look at the log.
    if app.trouble().is_some() {
        notes.push("the service file or the certificates on disk are not those in use".to_owned());
    }
    if app.0.sets.trouble().is_some() {
        notes.push("the project's files on disk are not those in use".to_owned());
    }
    answer(problems, notes)
}

pub(crate) async fn readyz(State(app): State<App>) -> Response {
    let mut problems = Vec::new();
    if app.is_stopping() {
        problems.push("the service is stopping".to_owned());
    }
    if app.0.store.fatal().is_some() || app.0.store.is_full() {
        problems.push("the store takes nothing new".to_owned());
    }
    answer(problems, Vec::new())
}

fn answer(problems: Vec<String>, notes: Vec<String>) -> Response {
    let status = if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(HealthView { ok: problems.is_empty(), problems, notes })).into_response()
}

pub(crate) async fn metrics(State(app): State<App>, headers: HeaderMap) -> Result<Response, ApiError> {
    app.refresh_metrics().await?;
    let accepts = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (kind, text) = if accepts.contains("application/openmetrics-text") {
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", app.0.metrics.open_metrics())
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", app.0.metrics.text())
    };
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

impl App {
    /// Asks for the states that the metrics tell.
    pub(crate) async fn refresh_metrics(&self) -> Result<(), ApiError> {
        let found = self.0.store.live_states().await?;
        let live =
            [RunState::Queued, RunState::Running, RunState::Waiting, RunState::Undoing, RunState::Parked];
        let count = |state| found.iter().find(|(other, _)| *other == state).map_or(0, |(_, count)| *count);
        let stale = |trouble: Option<farrier_project::Trouble>| {
            trouble.map_or(0.0, |trouble| self.now().duration_since(trouble.since).as_secs_f64().max(0.0))
        };
        let open = IncidentFilter { open: true, limit: Some(INCIDENTS), ..IncidentFilter::default() };
        self.0.metrics.incidents_open(self.0.store.incidents(open).await?.len() as i64);
        self.0.metrics.states(&States {
            runs: live.into_iter().map(|state| (state.name(), count(state))).collect(),
            due: self.0.store.due_in(self.0.only.as_deref(), DUE).await?.runs.len() as i64,
            full: self.0.store.is_full(),
            followers: self.0.live.followers(),
            set: self.set().number,
            reload_failures: self.0.sets.failures(),
            stale_seconds: stale(self.0.sets.trouble()),
            service_stale_seconds: stale(self.trouble()),
        });
        Ok(())
    }
}

pub(crate) async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], crate::openapi::text()).into_response()
}

pub(crate) async fn reload(State(app): State<App>) -> Result<Json<ReloadView>, ApiError> {
    let changed = app.reload().await?;
    Ok(Json(ReloadView { set: app.set().number, changed }))
}

impl App {
    /// Reads the project and the service file again. False when nothing is new.
    ///
    /// # Errors
    /// What is wrong with the files; the old set stays in use.
    pub async fn reload(&self) -> Result<bool, ApiError> {
        let stopping = || ApiError::new(ErrorCode::Unavailable, "the service is stopping");
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.0.reload.send(reply).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?.map_err(|mistakes| {
            ApiError::new(ErrorCode::Refused, mistakes).next("the set of before stays in use; mend the files")
        })
    }
}
