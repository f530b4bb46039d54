//! Runs: lists, one of them, its journal, and what happens to it as it happens.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::{Extension, Json};
use farrier_exec::Run;
use farrier_model::{Event, RunId, RunState};
use farrier_store::{RunFilter, RunRow, Store as _};
use futures_util::Stream;
use futures_util::stream::unfold;
use http::HeaderMap;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, broadcast};

use super::{Asked, Caller, Query, cursor, cursor_of};
use crate::app::App;
use crate::error::{ApiError, ErrorCode};
use crate::listen::stopped;
use crate::live::{Note, Told};
use crate::rights::{Person, Role};
use crate::wire::{EntryView, LockView, ProgressView, RunPage, RunSummary, RunView};

/// Runs on one page, when the caller does not say.
const PAGE: usize = 50;
/// The largest page.
const LARGEST_PAGE: usize = 500;
/// How often a follower looks by itself, and the stream says that it lives.
const LOOK: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    runbook: Option<String>,
    environment: Option<String>,
    /// One or more, with commas between them.
    state: Option<String>,
    parent: Option<String>,
    /// The beginning of ids.
    id: Option<String>,
    before: Option<String>,
    limit: Option<usize>,
}

pub(crate) async fn list(
    State(app): State<App>,
    Extension(person): Caller,
    Query(filter): Query<Filter>,
) -> Result<Json<RunPage>, ApiError> {
    let malformed = |message: String| ApiError::new(ErrorCode::Malformed, message);
    let limit = filter.limit.unwrap_or(PAGE).clamp(1, LARGEST_PAGE);
    let states = filter.state.as_deref().into_iter().flat_map(|states| states.split(',')).map(|name| {
        RunState::from_name(name).ok_or_else(|| malformed(format!("`{name}` is not a state of a run")))
    });
    let parent = filter.parent.as_deref().map(str::parse::<RunId>).transpose();
    let mut wanted = RunFilter {
        runbook: filter.runbook.as_deref().map(Into::into),
        states: states.collect::<Result<_, _>>()?,
        parent: parent.map_err(|_| malformed("`parent` is not the id of a run".into()))?,
        id_prefix: filter.id.map(|id| id.to_lowercase()),
        before: filter.before.as_deref().map(cursor).transpose()?,
        limit: Some(limit),
        ..RunFilter::default()
    };
    let mut runs = Vec::new();
    loop {
        let rows = app.0.store.runs(wanted.clone()).await?;
        let is_last = rows.len() < limit;
        for row in &rows {
            if runs.len() == limit {
                break;
            }
            wanted.before = Some((row.created_at, row.id));
            let is_here = filter.environment.as_ref().is_none_or(|name| **name == *row.environment);
            if is_here && sees(&app, &person, &row.runbook) {
                runs.push(RunSummary::of(row));
            }
        }
        if is_last || runs.len() == limit {
            let next = wanted.before.filter(|_| !is_last || runs.len() == limit);
            let next = next.filter(|_| runs.len() == limit).map(|(at, id)| cursor_of(at, &id));
            return Ok(Json(RunPage { runs, next }));
        }
    }
}

pub(super) fn sees(app: &App, person: &Person, runbook: &str) -> bool {
    person.rights.role_in(app.area(runbook).as_deref()) >= Some(Role::Viewer)
}

pub(crate) async fn show(State(app): State<App>, Extension(row): Asked) -> Result<Json<RunView>, ApiError> {
    view_of(&app, &row).await.map(Json)
}

/// A run, whole.
pub(crate) async fn view_of(app: &App, row: &RunRow) -> Result<RunView, ApiError> {
    let bundle =
        app.0.launcher.bundle(row).await.map_err(|why| ApiError::new(ErrorCode::Unavailable, why))?;
    let journal = app.0.store.journal(row.id).await?;
    let run = Run::replay(row.id, bundle.graph().clone(), &journal)
        .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
    RunView::of(row, &run).map_err(|error| ApiError::new(ErrorCode::Internal, error))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct After {
    after: Option<i64>,
    limit: Option<usize>,
}

pub(crate) async fn journal(
    State(app): State<App>,
    Extension(row): Asked,
    Query(After { after, limit }): Query<After>,
) -> Result<Json<Vec<EntryView>>, ApiError> {
    let entries = app.0.store.journal_after(row.id, after.unwrap_or(0).max(0)).await?;
    let limit = limit.unwrap_or(usize::MAX);
    Ok(Json(entries.into_iter().take(limit).map(EntryView::from).collect()))
}

pub(crate) async fn locks(
    State(app): State<App>,
    Extension(person): Caller,
) -> Result<Json<Vec<LockView>>, ApiError> {
    let mut views = Vec::new();
    for ticket in app.0.store.tickets(None).await? {
        let row = app.0.store.run(ticket.run).await?;
        if let Some(row) = row.filter(|row| sees(&app, &person, &row.runbook)) {
            views.push(LockView::of(ticket, row.title.to_string()));
        }
    }
    Ok(Json(views))
}

/// A place among those who follow.
fn place(app: &App) -> Result<OwnedSemaphorePermit, ApiError> {
    app.still_open()?;
    app.0.streams.clone().try_acquire_owned().map_err(|_| {
        ApiError::new(ErrorCode::TooMany, "too many follow already").next("ask for the journal now and then")
    })
}

/// The journal from a place on, and then as it grows, until the run has ended. `Last-Event-ID`, which browsers send when they
/// come back, counts more than `after`.
pub(crate) async fn events(
    State(app): State<App>,
    Extension(row): Asked,
    headers: HeaderMap,
    Query(After { after, .. }): Query<After>,
) -> Result<Sse<impl Stream<Item = Result<Sent, Infallible>>>, ApiError> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).and_then(|id| id.parse().ok());
    let after: i64 = last.or(after).unwrap_or(0).max(0);
    let place = place(&app)?;
    let follower = Follower {
        notes: app.0.live.follow(),
        told: app.0.live.listen(),
        app,
        run: row.id,
        after,
        read: VecDeque::new(),
        ended: false,
        _place: place,
    };
    Ok(Sse::new(unfold(follower, Follower::next)).keep_alive(KeepAlive::new().interval(LOOK)))
}

struct Follower {
    app: App,
    run: RunId,
    after: i64,
    notes: broadcast::Receiver<Note>,
    told: broadcast::Receiver<Told>,
    read: VecDeque<EntryView>,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

/// Why a follower wakes up.
enum Heard {
    /// The journal may have grown.
    News,
    /// A step has come further.
    Progress(Told),
    /// The service stops.
    Stop,
}

impl Follower {
    async fn next(mut self) -> Option<(Result<Sent, Infallible>, Follower)> {
        loop {
            if let Some(entry) = self.read.pop_front() {
                let sent = Sent::default().id(entry.seq.to_string()).event(entry.event.name());
                let sent = sent.json_data(&entry).unwrap_or_else(|_| Sent::default().comment("unreadable"));
                return Some((Ok(sent), self));
            }
            if self.ended {
                return None;
            }
            // A store that is closing ends the stream; who comes back goes on where it ended.
            let entries = self.app.0.store.journal_after(self.run, self.after).await.ok()?;
            self.ended = entries.iter().any(|entry| matches!(entry.event, Event::Finished { .. }));
            if let Some(last) = entries.last() {
                self.after = last.seq;
                self.read.extend(entries.into_iter().map(EntryView::from));
                continue;
            }
            // Whoever comes back after the end is told nothing more, and that at once.
            let row = self.app.0.store.run(self.run).await.ok()?;
            if row.is_none_or(|row| row.state.is_final()) {
                return None;
            }
            match self.wait().await {
                Heard::News => {}
                // It has no id: it is no part of the journal, and nobody goes on from it.
                Heard::Progress(told) => {
                    let sent = Sent::default().event("progress").json_data(ProgressView::from(told));
                    return Some((Ok(sent.unwrap_or_else(|_| Sent::default().comment("unreadable"))), self));
                }
                Heard::Stop => return None,
            }
        }
    }

    /// Waits until there is something to say. The journal comes before how far its steps are.
    async fn wait(&mut self) -> Heard {
        let mut stopping = self.app.0.stopping.clone();
        let look = tokio::time::Instant::now() + LOOK;
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut stopping) => return Heard::Stop,
                note = self.notes.recv() => match note {
                    Ok(note) if note.run != self.run => {}
                    Err(broadcast::error::RecvError::Closed) => return Heard::Stop,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return Heard::News,
                },
                told = self.told.recv() => match told {
                    Ok(told) if told.run == self.run => return Heard::Progress(told),
                    Err(broadcast::error::RecvError::Closed) => return Heard::Stop,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                },
                () = tokio::time::sleep_until(look) => return Heard::News,
            }
        }
    }
}

/// What happens in all runs that the caller may see: which run, and the names of its events. Nothing is repeated to whoever
/// comes back; lists say what there is.
pub(crate) async fn all_events(
    State(app): State<App>,
    Extension(person): Caller,
) -> Result<Sse<impl Stream<Item = Result<Sent, Infallible>>>, ApiError> {
    let place = place(&app)?;
    let notes = app.0.live.follow();
    let stream = unfold(
        (app, person, notes, place),
        |(app, person, mut notes, place): (App, Arc<Person>, _, _)| async move {
            let mut stopping = app.0.stopping.clone();
            loop {
                let note: Result<Note, broadcast::error::RecvError> = tokio::select! {
                    note = broadcast::Receiver::recv(&mut notes) => note,
                    () = stopped(&mut stopping) => return None,
                };
                let sent = match note {
                    Ok(note) if !sees(&app, &person, &note.runbook) => continue,
                    Ok(note) => Sent::default().event("run").json_data(serde_json::json!({
                        "run": note.run,
                        "runbook": note.runbook,
                        "events": &*note.events,
                        "ended": note.ended,
                    })),
                    // Something was missed: whoever shows lists reads them again.
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        Ok(Sent::default().event("missed").data(""))
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                };
                let sent = sent.unwrap_or_else(|_| Sent::default().comment("unreadable"));
                return Some((Ok(sent), (app, person, notes, place)));
            }
        },
    );
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(LOOK)))
}
