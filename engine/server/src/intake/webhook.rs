//! Intake behind the service's webhook: what is stored is answered, and whoever drives runs looks up.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Json;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use farrier_model::RunId;
use farrier_project::Watched;
use farrier_store::{Clock, SqliteStore};
use http::StatusCode;

use super::{Intake, Outcome};
use crate::app::Webhook;
use crate::rights::Sender;

/// How often is looked whether something that was held may start.
const HELD: Duration = Duration::from_secs(5);
/// How many such looks it is from one time to forget what is old to the next: an hour.
const FORGET: u64 = 720;

/// Runs that a webhook has created or asked to stop; goes with the answer to the one who can make them look up.
#[derive(Debug, Clone)]
pub(crate) struct Touched(pub(crate) Vec<RunId>);

/// Intake of one service.
pub struct Receiving {
    intake: Intake<SqliteStore>,
    sets: Watched,
}

impl Receiving {
    /// An intake into the service's store, by the set of the moment.
    pub fn new(store: SqliteStore, sets: Watched) -> Arc<Receiving> {
        Arc::new(Receiving { intake: Intake::new(Arc::new(store), Clock::system()), sets })
    }

    /// Starts what was held when it may start, and forgets what is old; for as long as the process lives.
    pub async fn keep(self: Arc<Receiving>) {
        let mut looks = tokio::time::interval(HELD);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for look in 0_u64.. {
            looks.tick().await;
            let set = self.sets.current();
            // The next look tries again; whatever ends the store ends it for the engine too.
            if let Err(error) = self.intake.tick(&set).await {
                tracing::warn!(%error, "held incidents could not be looked at");
            }
            if look % FORGET == 0
                && let Err(error) = self.intake.forget().await
            {
                tracing::warn!(%error, "old events were not taken away");
            }
        }
    }
}

#[async_trait]
impl Webhook for Receiving {
    async fn receive(&self, sender: &Sender, body: Bytes) -> Response {
        let set = self.sets.current();
        let allowed = sender.runbooks.as_deref();
        let refuse = |status: StatusCode, why: String| {
            (status, Json(serde_json::json!({ "error": why }))).into_response()
        };
        match self.intake.handle_for(&sender.receiver, &body, &set, allowed).await {
            Outcome::Accepted(accepted) => {
                let touched = Touched(accepted.touched.clone());
                let mut response = Json(accepted).into_response();
                response.extensions_mut().insert(touched);
                response
            }
            Outcome::Bad(why) => refuse(StatusCode::BAD_REQUEST, why),
            Outcome::Unknown(why) => refuse(StatusCode::NOT_FOUND, why),
            Outcome::TooLarge(why) => refuse(StatusCode::PAYLOAD_TOO_LARGE, why),
            Outcome::Busy(why) => refuse(StatusCode::SERVICE_UNAVAILABLE, why),
        }
    }
}
