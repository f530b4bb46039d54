//! [`App`]: what every request has at hand.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use async_trait::async_trait;
use axum::response::Response;
use bytes::Bytes;
use farrier_exec::Driver;
use farrier_model::Text;
use farrier_model::time::Timestamp;
use farrier_project::{Set, Watched};
use farrier_store::{Act, Clock, SqliteStore, StoreError};
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use crate::error::{ApiError, ErrorCode};
use crate::launcher::Stored;
use crate::live::Live;
use crate::login::{Attempts, Directory};
use crate::metrics::Metrics;
use crate::rights::{Access, Person, Sender, Token, Via};
use crate::service::Policy;

/// How long a login is good.
const LOGIN_HOURS: u64 = 12;
/// Logins at once, beyond which the oldest ends.
const LOGINS: usize = 1_000;
/// Streams of live updates at once: each holds a connection for as long as its reader likes.
const STREAMS: usize = 200;
/// Plans that are made for callers at once: each reads targets.
const PLANS: usize = 4;
/// Names and passwords that a directory is asked about at once.
const LOGGING_IN: usize = 8;

/// What an alert's sender posts is handed to.
#[async_trait]
pub trait Webhook: Send + Sync {
    /// Answers a webhook whose sender is known and whose body is within limits.
    async fn receive(&self, sender: &Sender, body: Bytes) -> Response;
}

/// What every request has at hand. Cloning shares it.
#[derive(Clone)]
pub struct App(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) store: SqliteStore,
    pub(crate) sets: Watched,
    /// The environments whose runs are taken up; all without them.
    pub(crate) only: Option<Vec<Text>>,
    pub(crate) driver: Driver,
    pub(crate) launcher: Stored,
    pub(crate) clock: Clock,
    pub(crate) live: Live,
    pub(crate) metrics: Metrics,
    pub(crate) webhook: Option<Arc<dyn Webhook>>,
    pub(crate) directory: RwLock<Option<Arc<dyn Directory>>>,
    pub(crate) attempts: Attempts,
    pub(crate) logging_in: Semaphore,
    pub(crate) access: RwLock<Arc<Access>>,
    pub(crate) open_metrics: AtomicBool,
    /// Why the service file or the certificates on disk are not those in use.
    pub(crate) trouble: Mutex<Option<farrier_project::Trouble>>,
    pub(crate) logins: Mutex<HashMap<String, (Arc<Person>, Instant)>>,
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) plans: Semaphore,
    /// True once the process is to end: nothing new is accepted.
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) reload: tokio::sync::mpsc::Sender<tokio::sync::oneshot::Sender<Result<bool, String>>>,
}

impl Inner {
    pub(crate) fn streams() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(STREAMS))
    }

    pub(crate) fn logging_in() -> Semaphore {
        Semaphore::new(LOGGING_IN)
    }

    pub(crate) fn plans() -> Semaphore {
        Semaphore::new(PLANS)
    }
}

impl App {
    /// The set of now.
    pub(crate) fn set(&self) -> Arc<Set> {
        self.0.sets.current()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    pub(crate) fn access(&self) -> Arc<Access> {
        self.0.access.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces who may do what.
    pub fn set_policy(&self, policy: Policy) {
        let Policy { access, open_metrics, directory, .. } = policy;
        let access = Arc::new(access);
        let before = std::mem::replace(
            &mut *self.0.access.write().unwrap_or_else(PoisonError::into_inner),
            access.clone(),
        );
        self.0.open_metrics.store(open_metrics, Ordering::Relaxed);
        *self.0.directory.write().unwrap_or_else(PoisonError::into_inner) = directory;
        if before != access {
            // What people may do is decided anew, and those who logged in do so again.
            self.logins().clear();
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.0.stopping.borrow()
    }

    /// Refused once the process is to end.
    pub(crate) fn still_open(&self) -> Result<(), ApiError> {
        if self.is_stopping() {
            return Err(
                ApiError::new(ErrorCode::Unavailable, "the service is stopping").next("try again soon")
            );
        }
        Ok(())
    }

    /// The area of a runbook: its folder below `runbooks/`; none when it is gone.
    pub(crate) fn area(&self, runbook: &str) -> Option<String> {
        let set = self.set();
        set.folders.get(runbook).map(|folder| area_of(folder).to_owned())
    }

    /// Records what somebody did, and was told.
    pub(crate) async fn record(&self, act: NewAct<'_>) -> Result<(), StoreError> {
        let NewAct { who, via, what, object, outcome, detail } = act;
        let act = Act {
            id: Uuid::now_v7(),
            at: self.now(),
            who: who.to_owned(),
            via: via.name().to_owned(),
            what: what.to_owned(),
            object: object.to_owned(),
            outcome: outcome.to_owned(),
            detail: detail.to_owned(),
        };
        self.0.store.record_act(act).await?;
        Ok(())
    }

    fn logins(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Arc<Person>, Instant)>> {
        self.0.logins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a login: its token, and until when it is good.
    pub(crate) fn log_in(&self, person: Person) -> (Token, Timestamp) {
        let (token, good_for) = (Token::new(), std::time::Duration::from_secs(LOGIN_HOURS * 3600));
        let mut logins = self.logins();
        let now = Instant::now();
        logins.retain(|_, (_, until)| *until > now);
        if logins.len() >= LOGINS
            && let Some(oldest) =
                logins.iter().min_by_key(|(_, (_, until))| *until).map(|(hash, _)| hash.clone())
        {
            logins.remove(&oldest);
        }
        logins.insert(token.hash(), (Arc::new(person), now + good_for));
        (token, self.now() + good_for)
    }

    /// Forgets a login. False when it is none.
    pub(crate) fn log_out(&self, token: &str) -> bool {
        self.logins().remove(&Token::hash_of(token)).is_some()
    }

    /// Whose login a token is.
    pub(crate) fn logged_in(&self, token: &str) -> Option<Arc<Person>> {
        let hash = Token::hash_of(token);
        let logins = self.logins();
        let (person, until) = logins.get(&hash)?;
        (*until > Instant::now()).then(|| person.clone())
    }
}

/// Something that is about to be recorded.
pub(crate) struct NewAct<'a> {
    pub(crate) who: &'a str,
    pub(crate) via: Via,
    pub(crate) what: &'a str,
    pub(crate) object: &'a str,
    pub(crate) outcome: &'a str,
    pub(crate) detail: &'a str,
}

/// The area of a folder below the project: what follows `runbooks/`.
pub(crate) fn area_of(folder: &str) -> &str {
    match folder.strip_prefix("runbooks") {
        Some("") => "",
        Some(rest) => rest.strip_prefix('/').unwrap_or(folder),
        None => folder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_is_the_folder_below_runbooks() {
        for (folder, area) in [
            ("runbooks", ""),
            ("runbooks/a/b", "a/b"),
            ("runbooks-old/a", "runbooks-old/a"),
            ("other", "other"),
        ] {
            assert_eq!(area_of(folder), area);
        }
    }
}
