//! Who did what.

use axum::Json;
use axum::extract::State;
use farrier_store::ActFilter;
use serde::Deserialize;

use super::{Query, cursor, cursor_of};
use crate::app::App;
use crate::error::ApiError;
use crate::wire::ActPage;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    who: Option<String>,
    object: Option<String>,
    before: Option<String>,
    limit: Option<usize>,
}

pub(crate) async fn list(
    State(app): State<App>,
    Query(filter): Query<Filter>,
) -> Result<Json<ActPage>, ApiError> {
    let limit = filter.limit.unwrap_or(50).clamp(1, 500);
    let before = filter.before.as_deref().map(cursor).transpose()?;
    let filter = ActFilter { who: filter.who, object: filter.object, before, limit: Some(limit) };
    let acts = app.0.store.acts(&filter).await?;
    let next = acts.last().filter(|_| acts.len() == limit).map(|last| cursor_of(last.at, &last.id));
    Ok(Json(ActPage { acts: acts.into_iter().map(Into::into).collect(), next }))
}
