//! Who somebody is, and logging in.

use axum::Json;
use axum::extract::State;

use super::Caller;
use crate::app::{App, NewAct};
use crate::error::{ApiError, ErrorCode};
use crate::rights::{Person, Via};
use crate::wire::{LoginRequest, SessionView};

pub(crate) async fn session(axum::Extension(person): Caller) -> Json<SessionView> {
    Json(view(&person))
}

fn view(person: &Person) -> SessionView {
    SessionView {
        name: person.name.clone(),
        via: person.via.name().to_owned(),
        role: person.rights.most().map_or("none".to_owned(), |role| format!("{role:?}").to_lowercase()),
        token: None,
        expires: None,
    }
}

/// Holds name and password against the directory. Which of them is wrong is not told.
pub(crate) async fn login(
    State(app): State<App>,
    super::Json(LoginRequest { name, password }): super::Json<LoginRequest>,
) -> Result<Json<SessionView>, ApiError> {
    let directory = app.0.directory.as_ref().ok_or_else(|| {
        ApiError::not_found("nobody logs in here with a password").next("use a token of the service file")
    })?;
    let refused = || {
        Err(ApiError::new(ErrorCode::Unauthenticated, "name and password do not fit, or give no role here"))
    };
    // An empty password is an anonymous bind, which every directory grants.
    if name.is_empty() || password.is_empty() || name.len() > 256 || password.len() > 1024 {
        return refused();
    }
    let Ok(_few) = app.0.plans.acquire().await else { return refused() };
    let groups = directory.groups(&name, &farrier_model::Secret::new(password)).await.map_err(|error| {
        tracing::warn!(error, "the directory of logins cannot say");
        ApiError::new(ErrorCode::Unavailable, "the directory cannot be asked now")
    })?;
    let rights = groups.and_then(|groups| app.access().rights_of_groups(groups.iter().map(String::as_str)));
    let Some(rights) = rights else {
        tracing::warn!(name, "a login was refused");
        return refused();
    };
    let person = Person { name, rights, via: Via::Login };
    let (who, what) = (person.name.as_str(), "POST /api/v1/login");
    app.record(NewAct { who, via: Via::Login, what, object: "", outcome: "ok", detail: "" }).await?;
    let mut shown = view(&person);
    let (token, expires) = app.log_in(person);
    shown.token = Some(token.reveal().to_owned());
    shown.expires = Some(expires.to_string());
    Ok(Json(shown))
}
