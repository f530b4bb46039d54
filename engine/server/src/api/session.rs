//! Who somebody is, logging in, and logging out.

use std::sync::PoisonError;
use std::time::Instant;

use axum::extract::State;
use axum::{Extension, Json};
use farrier_model::Secret;
use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::Caller;
use crate::app::{App, NewAct};
use crate::error::{ApiError, ErrorCode};
use crate::listen::Peer;
use crate::login::Answer;
use crate::rights::{Person, Via};
use crate::wire::{LoginRequest, LogoutView, SessionView};

pub(crate) async fn session(Extension(person): Caller) -> Json<SessionView> {
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
    peer: Option<Extension<Peer>>,
    super::Json(LoginRequest { name, password }): super::Json<LoginRequest>,
) -> Result<Json<SessionView>, ApiError> {
    let directory = app.0.directory.read().unwrap_or_else(PoisonError::into_inner).clone();
    let directory = directory.ok_or_else(|| {
        ApiError::not_found("nobody logs in here with a password").next("use a token of the service file")
    })?;
    let refused =
        || ApiError::new(ErrorCode::Unauthenticated, "name and password do not fit, or give no role here");
    let (password, from) = (Secret::new(password), peer.map(|peer| peer.0).unwrap_or_default().to_string());
    // An empty password is a visitor without a name, whom every directory lets in.
    if name.is_empty() || password.reveal().is_empty() || name.len() > 256 || password.reveal().len() > 1024 {
        return Err(refused());
    }
    let Ok(_one_of_few) = app.0.logging_in.acquire().await else { return Err(refused()) };
    // Counted before it is asked: whoever sends many at once gets no more tries than one after the other.
    if !app.0.attempts.try_one(&name, &from, Instant::now()) {
        return Err(ApiError::new(
            ErrorCode::TooManyAttempts,
            "too many wrong names or passwords came lately",
        )
        .next("wait five minutes, then try again"));
    }
    let answer = directory.check(&name, &password).await.map_err(|error| {
        app.0.attempts.give_back(&name, &from);
        tracing::warn!(error, "the directory of logins cannot say");
        ApiError::new(ErrorCode::Unavailable, "the directory cannot be asked now").next("try again soon")
    })?;
    let (what, detail) = ("POST /api/v1/login", from.as_str());
    let act = |who, outcome| NewAct { who, via: Via::Login, what, object: "", outcome, detail };
    let (name, groups) = match answer {
        // What was typed is kept nowhere: people type passwords into the field for the name.
        Answer::Unknown => {
            tracing::info!(from, "somebody tried to log in under a name that the directory does not know");
            return Err(refused());
        }
        Answer::Refused { name } => {
            app.record(act(&name, ErrorCode::Unauthenticated.name())).await?;
            return Err(refused());
        }
        Answer::Member { name, groups } => (name, groups),
    };
    app.0.attempts.right(&name, &from);
    let Some(rights) = app.access().rights_of_groups(groups.iter().map(String::as_str)) else {
        app.record(act(&name, ErrorCode::NotAllowed.name())).await?;
        return Err(refused());
    };
    let person = Person { name, rights, via: Via::Login };
    app.record(act(&person.name, "ok")).await?;
    let mut shown = view(&person);
    let (token, expires) = app.log_in(person);
    shown.token = Some(token.reveal().to_owned());
    shown.expires = Some(expires.to_string());
    Ok(Json(shown))
}

/// Ends the login whose token this is. Tokens of the service file are taken out there.
pub(crate) async fn logout(State(app): State<App>, headers: HeaderMap) -> Json<LogoutView> {
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let ended =
        token.and_then(|value| value.split_once(' ')).is_some_and(|(_, token)| app.log_out(token.trim()));
    Json(LogoutView { ended })
}
