//! [`Intake`]: alerts, incidents and the runs that follow from them, in the same store as the runs.

use async_trait::async_trait;
use farrier_alert::Arrival;
use farrier_model::time::Timestamp;
use farrier_model::{RunId, Text};
use serde::Serialize;
use uuid::Uuid;

use crate::{NewRun, StoreError};

/// Takes alerts in. What they do is decided by [`farrier_alert::decide()`] on the facts of one transaction, and is durable
/// when a call returns. A request whose answer was lost may be sent again: it does nothing a second time.
#[async_trait]
pub trait Intake: Send + Sync {
    /// Stores the alerts of one request with everything that follows from them: incidents, runs, requests to cancel, what
    /// is counted. All of it or nothing.
    async fn take(&self, arriving: Vec<Arriving>) -> Result<Taken, StoreError>;

    /// Starts runs for incidents that were held, as far as the reason is gone and their alerts still fire. What is more
    /// important comes first, then what is older; at most `limit` incidents are looked at. `frozen`: the environments in which
    /// nothing that writes may start by itself now.
    async fn start_held(&self, limit: usize, frozen: &[Text]) -> Result<Released, StoreError>;

    /// Mends the fuse of a runbook, in one environment or in all. Gives how many had blown. What it held may start, and
    /// counting begins anew.
    async fn unfuse(
        &self,
        environment: Option<&str>,
        runbook: &str,
        by: &str,
        reason: &str,
    ) -> Result<u64, StoreError>;

    /// The incidents that fit, newest first.
    async fn incidents(&self, filter: IncidentFilter) -> Result<Vec<IncidentRow>, StoreError>;

    /// The events of an incident in the order of their arrival; of none, the latest that did nothing, newest first.
    async fn events(&self, incident: Option<Uuid>, limit: usize) -> Result<Vec<EventRow>, StoreError>;

    /// The runs of an incident, oldest first.
    async fn incident_runs(&self, incident: Uuid) -> Result<Vec<RunId>, StoreError>;

    /// Fuses that have blown.
    async fn fuses(&self) -> Result<Vec<FuseRow>, StoreError>;

    /// Forgets events and closed incidents that nothing was heard of since `before`. Gives how many.
    async fn forget(&self, before: Timestamp) -> Result<u64, StoreError>;
}

/// One alert under one route, with the run that would follow.
#[derive(Debug, Clone)]
pub struct Arriving {
    /// The alert.
    pub arrival: Arrival,
    /// The run, when the alert takes a route. Its id and incident are the store's to fill in.
    pub run: Option<NewRun>,
}

/// What became of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    /// What each alert did, in the order they were given.
    pub outcomes: Vec<Outcome>,
    /// Fuses that have blown with it: environment, runbook and why. People must hear of each once.
    pub blown: Vec<(Text, Text, String)>,
}

/// What one alert did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The word for it, see [`farrier_alert::Decision::name`]; `ignored` when it takes no route or does not fit.
    pub decision: &'static str,
    /// The same for people.
    pub why: String,
    /// The incident that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incident: Option<Uuid>,
    /// The run that it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// The run that is asked to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stops: Option<RunId>,
    /// This piece of news was not known.
    pub new: bool,
}

/// What [`Intake::start_held`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Released {
    /// Runs that were created.
    pub runs: Vec<RunId>,
    /// Incidents that are still held.
    pub held: u64,
    /// Fuses that have blown with it.
    pub blown: Vec<(Text, Text, String)>,
}

/// Which incidents to list. The default is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IncidentFilter {
    /// Open ones only.
    pub open: bool,
    /// Of this runbook.
    pub runbook: Option<Text>,
    /// Whose id begins so.
    pub id_prefix: Option<String>,
    /// At most so many.
    pub limit: Option<usize>,
}

/// An incident.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IncidentRow {
    /// Its id.
    pub id: Uuid,
    /// Where.
    pub environment: Text,
    /// The runbook that answers.
    pub runbook: Text,
    /// Together with these two, its identity while it is open.
    pub key: Text,
    /// The alert that opened it.
    pub alert: Text,
    /// The receiver that it came in under.
    pub receiver: Text,
    /// Since when it is open.
    pub opened_at: Timestamp,
    /// When something was last heard of it.
    pub last_event: Timestamp,
    /// Since when none of its alerts fires.
    pub resolved_at: Option<Timestamp>,
    /// When it closed.
    pub closed_at: Option<Timestamp>,
    /// Its latest run.
    pub run: Option<RunId>,
    /// How many runs it had.
    pub runs: u64,
    /// Why it has no run now although it should: a word, see [`farrier_alert::Held`].
    pub held: Option<String>,
    /// Until when.
    pub held_until: Option<Timestamp>,
    /// The same for people.
    pub held_why: Option<String>,
}

/// One piece of news.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventRow {
    /// The runbook whose route it takes; empty without one.
    pub runbook: Text,
    /// The environment.
    pub environment: Text,
    /// The receiver that it came in under.
    pub receiver: Text,
    /// The alert's name.
    pub alert: Text,
    /// `firing` or `resolved`.
    pub status: String,
    /// When it came first.
    pub first_at: Timestamp,
    /// When it came last.
    pub last_at: Timestamp,
    /// How often it came.
    pub seen: u64,
    /// What it did last.
    pub decision: String,
    /// The same for people.
    pub why: String,
    /// Labels and annotations, as JSON.
    pub body: String,
}

/// A fuse that has blown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FuseRow {
    /// The environment.
    pub environment: Text,
    /// The runbook that alerts start no more.
    pub runbook: Text,
    /// Since when.
    pub blown_at: Timestamp,
    /// Why.
    pub why: String,
    /// Incidents that wait for it.
    pub held: u64,
}
