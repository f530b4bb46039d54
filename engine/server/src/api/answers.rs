//! What people tell a run: yes, no, a signal, stop, go on, what happened. Their word is a request in the store; the run's owner
//! takes it into the journal or refuses it there, and the answer waits for that.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use farrier_exec::Run;
use farrier_model::{Ask, Event, NodeName, Subject};
use farrier_store::{RunRow, Store as _};
use http::StatusCode;

use super::runs::view_of;
use super::{Asked, Caller};
use crate::app::App;
use crate::error::{ApiError, ErrorCode};
use crate::wire::{AnswerRequest, CancelRequest, ResolveRequest, ResumeRequest, SignalRequest};

/// How long an answer waits for the run's owner.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the store is looked at besides being told.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) async fn approve(
    State(app): State<App>,
    Extension(person): Caller,
    Extension(row): Asked,
    super::Json(AnswerRequest { subject, digest, reason }): super::Json<AnswerRequest>,
) -> Result<Response, ApiError> {
    let (subject, digest) = (subject_of(&subject)?, digest_of(&digest)?);
    tell(&app, &person.name, &row, Ask::Approve { subject, digest, reason }).await
}

pub(crate) async fn reject(
    State(app): State<App>,
    Extension(person): Caller,
    Extension(row): Asked,
    super::Json(AnswerRequest { subject, digest, reason }): super::Json<AnswerRequest>,
) -> Result<Response, ApiError> {
    let (subject, digest) = (subject_of(&subject)?, digest_of(&digest)?);
    tell(&app, &person.name, &row, Ask::Reject { subject, digest, reason }).await
}

pub(crate) async fn signal(
    State(app): State<App>,
    Extension(person): Caller,
    Extension(row): Asked,
    super::Json(SignalRequest { name, reason }): super::Json<SignalRequest>,
) -> Result<Response, ApiError> {
    tell(&app, &person.name, &row, Ask::Signal { name: name.as_str().into(), reason }).await
}

pub(crate) async fn cancel(
    State(app): State<App>,
    Extension(person): Caller,
    Extension(row): Asked,
    super::Json(CancelRequest { undo, reason }): super::Json<CancelRequest>,
) -> Result<Response, ApiError> {
    tell(&app, &person.name, &row, Ask::Cancel { undo, reason }).await
}

pub(crate) async fn resume(
    State(app): State<App>,
    Extension(person): Caller,
    Extension(row): Asked,
    super::Json(ResumeRequest { accept }): super::Json<ResumeRequest>,
) -> Result<Response, ApiError> {
    tell(&app, &person.name, &row, Ask::Resume { accepted: accept.map(|guard| guard.as_str().into()) }).await
}

pub(crate) async fn resolve(
    State(app): State<App>,
    Extension(person): Caller,
    Extension(row): Asked,
    super::Json(ResolveRequest { node, applied, output, reason }): super::Json<ResolveRequest>,
) -> Result<Response, ApiError> {
    let node: NodeName = node.parse().map_err(malformed)?;
    tell(&app, &person.name, &row, Ask::Resolve { node, applied, output, reason }).await
}

fn malformed(message: String) -> ApiError {
    ApiError::new(ErrorCode::Malformed, message)
}

fn subject_of(text: &str) -> Result<Subject, ApiError> {
    text.parse().map_err(malformed)
}

fn digest_of(text: &str) -> Result<farrier_model::Digest, ApiError> {
    farrier_model::Digest::try_from(text.to_owned())
        .map_err(|_| malformed("`digest` is not the whole digest of a plan".into()).next("the run shows it"))
}

/// Judges, stores the request, and waits until the owner has taken it in. 202 when that takes longer than callers wait.
async fn tell(app: &App, by: &str, row: &RunRow, ask: Ask) -> Result<Response, ApiError> {
    app.still_open()?;
    let bundle =
        app.0.launcher.bundle(row).await.map_err(|why| ApiError::new(ErrorCode::Unavailable, why))?;
    let journal = app.0.store.journal(row.id).await?;
    let mut run = Run::replay(row.id, bundle.graph().clone(), &journal)
        .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
    if let Some(site) = app.set().site(&row.environment) {
        run.people = site.world().people;
    }
    run.may(by, &ask, app.now())?;
    let what = ask.what();
    let mut notes = app.0.live.follow();
    let request = app.0.driver.ask(row.id, by, ask).await?;
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            let open = app.0.store.requests(row.id).await?;
            if !open.iter().any(|other| other.id == request) {
                return Ok::<(), ApiError>(());
            }
            tokio::select! {
                _ = notes.recv() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    });
    let is_taken = match waited.await {
        Ok(answer) => answer.map(|()| true)?,
        Err(_) => false,
    };
    for entry in app.0.store.journal_after(row.id, journal.len() as i64).await? {
        match entry.event {
            Event::RequestRefused { by: who, what: other, why } if who == by && other == what => {
                return Err(ApiError::new(ErrorCode::Refused, why));
            }
            _ => {}
        }
    }
    let now = app.0.store.run(row.id).await?.unwrap_or_else(|| row.clone());
    let status = if is_taken { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(view_of(app, &now).await?)).into_response())
}
