//! Webhooks: handed to intake once their sender is known and their body is within limits.

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use std::sync::Arc;

use crate::app::App;
use crate::error::{ApiError, ErrorCode};
use crate::rights::Sender;

pub(crate) async fn receive(
    State(app): State<App>,
    Extension(sender): Extension<Arc<Sender>>,
    body: Bytes,
) -> Response {
    // Alertmanager tries again after 5xx only.
    if let Err(error) = app.still_open() {
        return error.into_response();
    }
    match &app.0.webhook {
        Some(webhook) => webhook.receive(&sender, body).await,
        None => ApiError::new(ErrorCode::Unavailable, "this service takes no alerts").into_response(),
    }
}
