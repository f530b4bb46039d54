//! `flow.runs`.

use farrier_action::text::{RunbookName, Span};
use farrier_action::{Action, FailedNode, Planned, ReadCx};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, RunState};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Lists runs that ended lately or are not over, how they are, and what failed in them.
///
/// The runs are of this environment, and of this runbook or one that it starts. With it, a round that comes every few minutes
/// leaves out what another run is at, and for a while the items that have just failed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Runs {
    /// The runbook.
    runbook: RunbookName,
    /// How they are.
    states: Vec<Standing>,
    /// How long ago those that are over ended, at most.
    within: Span,
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is not over: at work, waiting, parked.
    Live,
    /// Every step succeeded or was skipped.
    Succeeded,
    /// A failure was continued over, or left items behind.
    Degraded,
    /// A step failed; what had been done stays.
    Failed,
    /// Everything was undone.
    Undone,
    /// A person stopped it.
    Cancelled,
}

/// Those that were started last come first.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Listed {
    /// The runs.
    pub runs: Vec<Other>,
    /// What failed in those of them that are over, the last failure first.
    pub failed: Vec<FailedStep>,
}

/// A step, or one of its items, that failed for good.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FailedStep {
    /// The run.
    pub run: String,
    /// The step.
    pub step: String,
    /// The key of the item; null when it is the step itself.
    pub item: Option<String>,
    /// When, such as `2026-11-22T10:15:30Z`.
    pub at: String,
    /// Why.
    pub reason: String,
}

/// One of the runs.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Other {
    /// Its id.
    pub id: String,
    /// What lists call it: `run_title`.
    pub title: String,
    /// Its state: `running`, `waiting`, `parked`, `failed`, …
    pub state: String,
    /// When it ended, such as `2026-11-22T10:15:30Z`; null when it is not over.
    pub ended_at: Option<String>,
    /// The first reason for a bad end, or why it is parked.
    pub reason: Option<String>,
}

impl Action for Runs {
    const NAME: &'static str = "flow.runs";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
tried:
  uses: flow.runs
  with: { runbook: example, states: [live, failed, undone], within: 1d }
";
    type Output = Listed;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Listed>, Failure> {
        let states: Vec<RunState> = self.states.iter().flat_map(|state| state.states()).copied().collect();
        let history = cx.history()?;
        let runs = history.runs(&self.runbook.0, &states, self.within.0).await?;
        let mut failed = Vec::new();
        for run in runs.iter().filter(|run| run.state.is_final() && run.state != RunState::Succeeded) {
            failed.extend(history.failures(run.id).await?.into_iter().map(|node| (run.id, node)));
        }
        failed.sort_by_key(|(_, node)| std::cmp::Reverse(node.at));
        let failed = failed.into_iter().map(|(run, FailedNode { node, at, reason })| FailedStep {
            run: run.to_string(),
            step: node.step.to_string(),
            item: node.item.map(|item| item.to_string()),
            at: at.to_string(),
            reason,
        });
        let runs = runs.into_iter().map(|run| Other {
            id: run.id.to_string(),
            title: run.title.to_string(),
            state: run.state.name().into(),
            ended_at: run.ended_at.map(|at| at.to_string()),
            reason: run.reason,
        });
        Ok(Planned::known(Listed { runs: runs.collect(), failed: failed.collect() }))
    }
}

impl Standing {
    fn states(self) -> &'static [RunState] {
        match self {
            Standing::Live => {
                &[RunState::Queued, RunState::Running, RunState::Waiting, RunState::Undoing, RunState::Parked]
            }
            Standing::Succeeded => &[RunState::Succeeded],
            Standing::Degraded => &[RunState::Degraded],
            Standing::Failed => &[RunState::Failed],
            Standing::Undone => &[RunState::Undone],
            Standing::Cancelled => &[RunState::Cancelled],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use async_trait::async_trait;
    use farrier_action::{EarlierRun, FailedNode, History};
    use farrier_model::{Failure, RunId, RunState};

    use crate::testing::{json, plan, plan_after};

    /// Remembers what it was asked for, and knows of one run.
    #[derive(Debug, Default)]
    struct Known(Mutex<Vec<(String, Vec<RunState>, Duration)>>);

    #[async_trait]
    impl History for Known {
        async fn runs(
            &self,
            runbook: &str,
            states: &[RunState],
            within: Duration,
        ) -> Result<Vec<EarlierRun>, Failure> {
            self.0.lock().unwrap().push((runbook.into(), states.to_vec(), within));
            Ok(vec![EarlierRun {
                id: RunId::at(0, [9; 10]),
                title: "delete tools.a".into(),
                state: RunState::Undone,
                ended_at: Some("2026-11-22T10:15:30Z".parse().unwrap()),
                reason: Some("the archives are full".into()),
            }])
        }

        async fn failures(&self, run: RunId) -> Result<Vec<FailedNode>, Failure> {
            assert_eq!(run, RunId::at(0, [9; 10]));
            let failed = |name: &str, at: &str, reason: &str| FailedNode {
                node: name.parse().unwrap(),
                at: at.parse().unwrap(),
                reason: reason.into(),
            };
            Ok(vec![
                failed("pods", "2026-11-22T10:15:29Z", "they run"),
                failed("dump[s1__b]", "2026-11-22T10:15:30Z", "gone"),
            ])
        }
    }

    #[tokio::test]
    async fn what_became_of_them_is_told() {
        let known = Arc::new(Known::default());
        let input = "{'runbook': 'a', 'states': ['failed', 'undone'], 'within': '1d'}";
        let planned = plan_after("flow.runs", input, known.clone()).await.unwrap();
        let id = RunId::at(0, [9; 10]);
        assert_eq!(
            planned.output.unwrap(),
            json(&format!(
                "{{'runs': [{{'id': '{id}', 'title': 'delete tools.a', 'state': 'undone', \
                 'ended_at': '2026-11-22T10:15:30Z', 'reason': 'the archives are full'}}], \
                 'failed': [{{'run': '{id}', 'step': 'dump', 'item': 's1__b', 'at': '2026-11-22T10:15:30Z', \
                 'reason': 'gone'}}, {{'run': '{id}', 'step': 'pods', 'item': null, 'at': '2026-11-22T10:15:29Z', \
                 'reason': 'they run'}}]}}"
            ))
        );
        let live = "{'runbook': 'a', 'states': ['live', 'cancelled'], 'within': '90s'}";
        plan_after("flow.runs", live, known.clone()).await.unwrap();
        let asked = known.0.lock().unwrap();
        let day = Duration::from_secs(86_400);
        assert_eq!(asked[0], ("a".into(), vec![RunState::Failed, RunState::Undone], day));
        let over = asked[1].1.iter().filter(|state| state.is_final()).count();
        assert_eq!((asked[1].1.len(), over, asked[1].2), (6, 1, Duration::from_secs(90)), "{asked:?}");
    }

    #[tokio::test]
    async fn without_any_runs_to_look_at_it_fails() {
        let failure =
            plan("flow.runs", "{'runbook': 'a', 'states': ['live'], 'within': '1d'}").await.unwrap_err();
        assert!(failure.message.contains("nothing says what becomes of other runs"), "{failure}");
    }
}
