//! What became of other runs, for actions that go by it.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use farrier_model::time::Timestamp;
use farrier_model::{Failure, NodeName, RunId, RunState, Text};

/// A run that others began, or that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarlierRun {
    /// Its id.
    pub id: RunId,
    /// What lists call it.
    pub title: Text,
    /// How it ended, or where it stands.
    pub state: RunState,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// The first reason for a bad end.
    pub reason: Option<String>,
}

/// A step of such a run, or one of its items, that failed for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedNode {
    /// Which.
    pub node: NodeName,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
}

/// Looks at other runs. The driver gives one to the steps of its runs; it sees the runs of their environment.
#[async_trait]
pub trait History: fmt::Debug + Send + Sync {
    /// The runs of `runbook` that are in one of these states; of those that are over, the ones that ended `within` this time.
    /// Those that were created last come first.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn runs(
        &self,
        runbook: &str,
        states: &[RunState],
        within: Duration,
    ) -> Result<Vec<EarlierRun>, Failure>;

    /// What failed in a run that is over, in the order in which it did.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn failures(&self, run: RunId) -> Result<Vec<FailedNode>, Failure>;
}
