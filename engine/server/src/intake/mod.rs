//! Intake: from the body of a webhook to what is on disk, and only then an answer.
//!
//! Read first: [`Intake::handle`] (one request), [`Outcome`] (what the HTTP layer answers), then `route`: which runbooks
//! an alert means in which environment, and with what inputs. What follows from that is decided by the store, within the
//! transaction that writes it.
//!
//! **Overload is answered with 503**, never with 4xx: Alertmanager sends again after the first and gives up after the
//! second. Only what can never be used is refused as bad.
//!
//! What is held (see `farrier_alert::decide`) starts by itself: [`Intake::tick`] is called every few seconds, and whenever a
//! fuse was mended.

mod route;
mod webhook;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farrier_alert::{BadMessage, Message};
use farrier_model::{Digest, RunId, Text};
use farrier_project::Set;
use farrier_store::{Clock, Intake as Store, NewRun, Released, Store as Runs, StoreError};
use serde::Serialize;
use tokio::sync::Semaphore;

pub use route::{Routing, arrivals};
pub use webhook::Receiving;
pub(crate) use webhook::Touched;

/// How many requests are worked on at once; those beyond are answered with 503. Each may hold a body of two megabytes.
const AT_ONCE: usize = 32;
/// How many held incidents are looked at in one transaction.
const HELD_AT_ONCE: usize = 200;
/// For how long texts that no run refers to yet are known to be in the store.
const TEXTS_KEPT: Duration = Duration::from_secs(10 * 60);
/// How long events and closed incidents are remembered.
const REMEMBERED: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// What the HTTP layer answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// 200: everything is on disk.
    Accepted(Accepted),
    /// 400: it cannot be used, however often it is sent.
    Bad(String),
    /// 404: no environment takes alerts of this receiver.
    Unknown(String),
    /// 413: as above, because of its size.
    TooLarge(String),
    /// 503: try again soon.
    Busy(String),
}

/// What became of the alerts of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// How many alerts there were.
    pub alerts: u64,
    /// How many did what, by the word for it: `started`, `joined`, `ignored`, …
    pub decisions: std::collections::BTreeMap<&'static str, u64>,
    /// Runs that were created, or are asked to stop: whoever drives them should look up.
    #[serde(skip)]
    pub touched: Vec<RunId>,
}

/// What has been counted since the start, for metrics.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests that were stored.
    pub accepted: AtomicU64,
    /// Requests that were refused for good.
    pub refused: AtomicU64,
    /// Requests that are to come again.
    pub busy: AtomicU64,
    /// Alerts that were stored.
    pub alerts: AtomicU64,
}

/// Takes alerts in. One for a store.
pub struct Intake<S> {
    store: Arc<S>,
    clock: Clock,
    permits: Semaphore,
    texts: Mutex<HashMap<Digest, std::time::Instant>>,
    /// What has been counted since the start.
    pub counts: Counts,
}

impl<S: Store + Runs> Intake<S> {
    /// An intake into `store`.
    pub fn new(store: Arc<S>, clock: Clock) -> Intake<S> {
        Intake {
            store,
            clock,
            permits: Semaphore::new(AT_ONCE),
            texts: Mutex::default(),
            counts: Counts::default(),
        }
    }

    /// Stores the alerts of one request with everything that follows, under the routes and environments of `set`.
    pub async fn handle(&self, receiver: &str, body: &[u8], set: &Set) -> Outcome {
        self.handle_for(receiver, body, set, None).await
    }

    /// As [`handle`](Intake::handle), for a sender whose alerts may start these runbooks only.
    pub async fn handle_for(
        &self,
        receiver: &str,
        body: &[u8],
        set: &Set,
        allowed: Option<&[String]>,
    ) -> Outcome {
        let outcome = self.answer(receiver, body, set, allowed).await;
        let counter = match &outcome {
            Outcome::Accepted(accepted) => {
                self.counts.alerts.fetch_add(accepted.alerts, Ordering::Relaxed);
                &self.counts.accepted
            }
            Outcome::Busy(why) => {
                tracing::warn!(receiver, why, "alerts are to be sent again");
                &self.counts.busy
            }
            Outcome::Bad(why) | Outcome::Unknown(why) | Outcome::TooLarge(why) => {
                tracing::warn!(receiver, why, "a message was refused");
                &self.counts.refused
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        outcome
    }

    async fn answer(&self, receiver: &str, body: &[u8], set: &Set, allowed: Option<&[String]>) -> Outcome {
        let Ok(_permit) = self.permits.try_acquire() else {
            return Outcome::Busy("too many requests at once".into());
        };
        let message = match Message::read(body) {
            Ok(message) => message,
            Err(error @ BadMessage::TooLarge(_)) => return Outcome::TooLarge(error.to_string()),
            Err(error @ BadMessage::Form(_)) => return Outcome::Bad(error.to_string()),
        };
        let routing = Routing::of(set, receiver).only(allowed);
        if routing.is_empty() {
            return Outcome::Unknown(format!(
                "no environment names the receiver `{}`",
                receiver.escape_debug()
            ));
        }
        if message.truncated_alerts > 0 {
            let left_out = message.truncated_alerts;
            tracing::warn!(
                receiver,
                left_out,
                "alertmanager left alerts out of a message; raise `max_alerts`"
            );
        }
        let arriving = arrivals(&routing, receiver, &message, self.clock.now());
        if let Err(error) =
            self.keep_texts(&routing, arriving.iter().filter_map(|one| one.run.as_ref())).await
        {
            return Outcome::Busy(error.to_string());
        }
        match self.store.take(arriving).await {
            Ok(taken) => {
                for (environment, runbook, why) in &taken.blown {
                    tracing::error!(%environment, %runbook, why, "a fuse has blown: alerts do not start the runbook");
                }
                let mut accepted = Accepted { alerts: message.alerts.len() as u64, ..Accepted::default() };
                for outcome in taken.outcomes {
                    *accepted.decisions.entry(outcome.decision).or_default() += 1;
                    accepted.touched.extend(outcome.run.into_iter().chain(outcome.stops));
                }
                Outcome::Accepted(accepted)
            }
            // A full disk, a store that fails: whatever it is, Alertmanager has the alerts still.
            Err(error) => Outcome::Busy(error.to_string()),
        }
    }

    /// Puts the texts that runs need into the store before them.
    async fn keep_texts<'a>(
        &self,
        routing: &Routing<'_>,
        runs: impl Iterator<Item = &'a NewRun>,
    ) -> Result<(), StoreError> {
        let mut wanted: Vec<&NewRun> = Vec::new();
        {
            let texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
            for run in runs {
                let fresh = texts.get(&run.bundle).is_some_and(|at| at.elapsed() < TEXTS_KEPT);
                if !fresh && !wanted.iter().any(|other| other.bundle == run.bundle) {
                    wanted.push(run);
                }
            }
        }
        for run in wanted {
            if let Some(bundle) = routing.bundle(&run.runbook) {
                self.store.put_bundle(bundle.digest, &bundle.root, &bundle.sources).await?;
                let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
                texts.retain(|_, at| at.elapsed() < TEXTS_KEPT);
                texts.insert(bundle.digest, std::time::Instant::now());
            }
        }
        Ok(())
    }

    /// Starts what was held and may start now. Whoever drives runs should look up when there are any.
    ///
    /// # Errors
    /// The store fails; the next tick tries again.
    pub async fn tick(&self, set: &Set) -> Result<Released, StoreError> {
        let frozen: Vec<Text> = set
            .served()
            .filter(|site| site.environment.freeze)
            .map(|site| site.environment.name.as_str().into())
            .collect();
        let released = self.store.start_held(HELD_AT_ONCE, &frozen).await?;
        for (environment, runbook, why) in &released.blown {
            tracing::error!(%environment, %runbook, why, "a fuse has blown: alerts do not start the runbook");
        }
        Ok(released)
    }

    /// Forgets what is old; for a housekeeper that comes by now and then.
    ///
    /// # Errors
    /// The store fails; the next time tries again.
    pub async fn forget(&self) -> Result<u64, StoreError> {
        let before = self.clock.now();
        let before = before.checked_sub(REMEMBERED).unwrap_or(before);
        self.store.forget(before).await
    }
}

#[cfg(test)]
mod tests;
