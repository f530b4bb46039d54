//! The API: one file per kind of thing. Handlers see only requests that the guard let pass.

pub(crate) mod answers;
pub(crate) mod audit;
pub(crate) mod clock;
pub(crate) mod health;
pub(crate) mod incidents;
pub(crate) mod runbooks;
pub(crate) mod runs;
pub(crate) mod session;
pub(crate) mod webhook;

use std::sync::Arc;

use axum::Extension;
use axum::extract::{FromRequest, FromRequestParts, Request};
use bytes::Bytes;
use farrier_store::RunRow;
use http::request::Parts;
use serde::de::DeserializeOwned;

use crate::error::{ApiError, ErrorCode};
use crate::rights::Person;

/// Who asks, as the guard found out.
pub(crate) type Caller = Extension<Arc<Person>>;
/// The run that the path names, as the guard found it.
pub(crate) type Asked = Extension<Arc<RunRow>>;

/// A body of JSON; an empty one stands for `{}`.
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Json<T>, ApiError> {
        let malformed = |message: String| ApiError::new(ErrorCode::Malformed, message);
        let bytes =
            Bytes::from_request(request, state).await.map_err(|error| malformed(error.to_string()))?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        // A list would be read as the fields of an object in their order, which nobody means.
        if text.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Err(
                malformed("the body is not an object".into()).next("/api/v1/openapi.json describes it")
            );
        }
        let read = serde_json::from_slice(text);
        read.map(Json).map_err(|error| {
            malformed(format!("the body does not fit: {error}")).next("/api/v1/openapi.json describes it")
        })
    }
}

/// What stands after `?` in the address.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Query<T>, ApiError> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(query)| Query(query))
            .map_err(|error| {
                ApiError::new(ErrorCode::Malformed, format!("the query does not fit: {error}"))
                    .next("/api/v1/openapi.json describes it")
            })
    }
}

/// A place in a list by time: `MILLISECONDS_ID`.
pub(crate) fn cursor<I: std::str::FromStr>(
    text: &str,
) -> Result<(farrier_model::time::Timestamp, I), ApiError> {
    let read = || {
        let (at, id) = text.split_once('_')?;
        let at = farrier_model::time::Timestamp::from_millisecond(at.parse().ok()?).ok()?;
        Some((at, id.parse().ok()?))
    };
    read().ok_or_else(|| ApiError::new(ErrorCode::Malformed, "`before` is not what a page gave as `next`"))
}

/// The same, written.
pub(crate) fn cursor_of(at: farrier_model::time::Timestamp, id: &impl ToString) -> String {
    format!("{}_{}", at.as_millisecond(), id.to_string())
}
