//! Incidents: what alerts have opened, and fuses that have blown.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use farrier_store::{IncidentFilter, Intake as _};
use serde::Deserialize;

use super::runs::sees;
use super::{Caller, Query};
use crate::app::App;
use crate::error::{ApiError, ErrorCode};
use crate::wire::{IncidentView, UnfuseRequest, Unfused};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    runbook: Option<String>,
    open: Option<bool>,
    limit: Option<usize>,
}

pub(crate) async fn list(
    State(app): State<App>,
    Extension(person): Caller,
    Query(filter): Query<Filter>,
) -> Result<Json<Vec<IncidentView>>, ApiError> {
    let filter = IncidentFilter {
        open: filter.open.unwrap_or(false),
        runbook: filter.runbook.as_deref().map(Into::into),
        limit: Some(filter.limit.unwrap_or(50).clamp(1, 500)),
        ..IncidentFilter::default()
    };
    let rows = app.0.store.incidents(filter).await?;
    let seen = rows.into_iter().filter(|row| sees(&app, &person, &row.runbook));
    Ok(Json(seen.map(Into::into).collect()))
}

pub(crate) async fn unfuse(
    State(app): State<App>,
    Extension(person): Caller,
    Path(runbook): Path<String>,
    super::Json(request): super::Json<UnfuseRequest>,
) -> Result<Json<Unfused>, ApiError> {
    let environment = request.environment.as_deref();
    let mended = app.0.store.unfuse(environment, &runbook, &person.name, &request.reason).await?;
    if mended == 0 {
        return Err(ApiError::new(ErrorCode::Refused, format!("no fuse of `{runbook}` has blown")));
    }
    Ok(Json(Unfused { mended }))
}
