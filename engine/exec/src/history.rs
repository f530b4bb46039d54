//! What became of other runs, for steps that go by it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use farrier_action::{EarlierRun, FailedNode, History};
use farrier_model::{Event, Failure, FailureKind, NodeEvent, RunId, RunState, Text};
use farrier_store::{Clock, RunFilter, Store, StoreError};

/// The runs of one environment in a store, without the run that looks and those that it has started.
pub(crate) struct Kept {
    pub(crate) run: RunId,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Clock,
    pub(crate) environment: Text,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "runs of {}", self.environment)
    }
}

#[async_trait]
impl History for Kept {
    async fn runs(
        &self,
        runbook: &str,
        states: &[RunState],
        within: Duration,
    ) -> Result<Vec<EarlierRun>, Failure> {
        let (over, live): (Vec<RunState>, Vec<RunState>) = states.iter().partition(|state| state.is_final());
        let after = Some(self.clock.now() - within);
        let mut rows = Vec::new();
        // Without a state the store would list them all.
        for (states, ended_after) in
            [(over, after), (live, None)].into_iter().filter(|(states, _)| !states.is_empty())
        {
            let runbook = Some(runbook.into());
            let filter = RunFilter { states, runbook, ended_after, ..RunFilter::default() };
            rows.extend(self.store.runs(filter).await.map_err(|error| unreadable(&error))?);
        }
        rows.retain(|row| {
            row.environment == self.environment && row.id != self.run && row.parent != Some(self.run)
        });
        rows.sort_by_key(|row| std::cmp::Reverse((row.created_at, row.id)));
        let runs = rows.into_iter().map(|row| EarlierRun {
            id: row.id,
            title: row.title,
            state: row.state,
            ended_at: row.finished_at,
            reason: row.reason,
        });
        Ok(runs.collect())
    }

    async fn failures(&self, run: RunId) -> Result<Vec<FailedNode>, Failure> {
        let journal = self.store.journal(run).await.map_err(|error| unreadable(&error))?;
        let failed = journal.into_iter().filter_map(|entry| match entry.event {
            Event::Node { node, event: NodeEvent::Failed { failure, retry_at: None, .. }, .. } => {
                Some(FailedNode { node, at: entry.at, reason: failure.to_string() })
            }
            _ => None,
        });
        Ok(failed.collect())
    }
}

fn unreadable(error: &StoreError) -> Failure {
    Failure::new(FailureKind::Unreachable, format!("other runs cannot be read: {error}"))
}
