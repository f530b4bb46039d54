//! Schedules: what starts by itself, and keeping it from doing so.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use farrier_schedule::ScheduleId;
use farrier_store::Ledger as _;

use super::Caller;
use super::runs::sees;
use crate::app::App;
use crate::error::{ApiError, ErrorCode};
use crate::wire::{PauseRequest, ScheduleView, UnpauseRequest};

pub(crate) async fn list(
    State(app): State<App>,
    Extension(person): Caller,
) -> Result<Json<Vec<ScheduleView>>, ApiError> {
    let all = app.0.store.schedules(false).await?;
    let seen = all.into_iter().filter(|(row, _)| sees(&app, &person, &row.runbook));
    Ok(Json(seen.map(|(row, last)| ScheduleView::of(&row, last)).collect()))
}

pub(crate) async fn pause(
    State(app): State<App>,
    Extension(person): Caller,
    Path(runbook): Path<String>,
    super::Json(request): super::Json<PauseRequest>,
) -> Result<Json<ScheduleView>, ApiError> {
    let id = ScheduleId(request.schedule.as_str().into());
    of_runbook(&app, &runbook, &id).await?;
    app.0.store.pause(&id, &person.name, &request.reason).await?;
    of_runbook(&app, &runbook, &id).await.map(Json)
}

pub(crate) async fn unpause(
    State(app): State<App>,
    Path(runbook): Path<String>,
    super::Json(request): super::Json<UnpauseRequest>,
) -> Result<Json<ScheduleView>, ApiError> {
    let id = ScheduleId(request.schedule.as_str().into());
    of_runbook(&app, &runbook, &id).await?;
    if !app.0.store.unpause(&id).await? {
        return Err(ApiError::new(ErrorCode::Refused, format!("the schedule `{id}` is not paused")));
    }
    of_runbook(&app, &runbook, &id).await.map(Json)
}

/// The schedule, if it is one of the runbook that the path names.
async fn of_runbook(app: &App, runbook: &str, id: &ScheduleId) -> Result<ScheduleView, ApiError> {
    let row =
        app.0.store.schedule(id).await?.filter(|row| *row.runbook == *runbook && row.retired_at.is_none());
    let row = row.ok_or_else(|| {
        ApiError::not_found(format!("`{runbook}` has no schedule `{id}` here"))
            .next("GET /api/v1/schedules lists them")
    })?;
    let last = app.0.store.fires(id, 1).await?.pop();
    Ok(ScheduleView::of(&row, last))
}
