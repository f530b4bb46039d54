//! The same case again and again: with each step failing, and with the process dying at each write.

use clap::ValueEnum;
use farrier_model::RunState;
use farrier_runbook::testfile::Happens;
use farrier_store::Fault;

use super::super::Problem;
use super::case::{Came, Case, Trouble};
use super::hooks::{Failing, Place};

/// What is swept over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Sweep {
    /// Each step that did something fails, once and for good.
    Failures,
    /// The process dies at each write of its store, before it and after it.
    Crashes,
}

/// More writes than any case of a test should need.
const MAX_WRITES: u64 = 5000;
/// Which of `count` places are tried when only `tries` of them can be: evenly spread, the last one among them.
fn spread(count: u64, tries: Option<u64>) -> impl Iterator<Item = u64> {
    let tries = tries.map_or(count, |tries| tries.min(count));
    (1..=tries).map(move |at| at * count / tries)
}

/// Differences that are told of one sweep.
const TOLD: usize = 3;

/// How often something was tried, and what was found.
#[derive(Debug, Default)]
pub(super) struct Swept {
    pub(super) crashes: u64,
    pub(super) failures: u64,
    pub(super) differences: Vec<String>,
    untold: u64,
}

impl Swept {
    /// Sweeps over a case whose undisturbed execution came to `came`, with so many tries for each kind of trouble.
    pub(super) fn over(
        case: &Case,
        came: &Came,
        sweeps: &[Sweep],
        tries: Option<u64>,
    ) -> Result<Swept, Problem> {
        let mut swept = Swept::default();
        if came.state.is_none() || !came.differences.is_empty() {
            return Ok(swept);
        }
        if sweeps.contains(&Sweep::Failures) {
            swept.failures(case, came, tries)?;
        }
        if sweeps.contains(&Sweep::Crashes) {
            swept.crashes(case, came, tries)?;
        }
        if swept.untold > 0 {
            swept.differences.push(format!("and {} more in sweeps", swept.untold));
        }
        Ok(swept)
    }

    fn found(&mut self, where_from: &str, differences: Vec<String>) {
        for difference in differences {
            if self.differences.len() < TOLD {
                self.differences.push(format!("{where_from}: {difference}"));
            } else {
                self.untold += 1;
            }
        }
    }

    fn failures(&mut self, case: &Case, came: &Came, tries: Option<u64>) -> Result<(), Problem> {
        for at in spread(came.acted.len() as u64, tries) {
            let Some(failing_at) = usize::try_from(at - 1).ok().and_then(|at| came.acted.get(at)) else {
                continue;
            };
            let Place { runbook, node } = failing_at;
            let Some(graph) = case.bundle.graphs.get(runbook) else { continue };
            let of = if graph.name == case.bundle.graph().name {
                String::new()
            } else {
                format!(" of `{runbook}`")
            };
            for for_good in [false, true] {
                self.failures += 1;
                let failing = Some(Failing { at: failing_at.clone(), for_good });
                let again = case.execute(&Trouble { failing, ..Trouble::default() })?;
                let how = if for_good { "for good" } else { "once" };
                let place = format!("with `{node}`{of} failing {how}");
                let mut differences = again.differences;
                let step = graph.indices().map(|index| graph.step(index)).find(|step| *step.id == *node.step);
                let retried = step.is_some_and(|step| step.retry.attempts > 1 && step.retry.on.is_empty());
                if !for_good && retried && again.state != came.state {
                    let name = |state: Option<RunState>| state.map_or("no run", RunState::name);
                    differences.push(format!(
                        "it is tried again, and the run ended {} instead of {}",
                        name(again.state),
                        name(came.state)
                    ));
                }
                self.found(&place, differences);
            }
        }
        Ok(())
    }

    fn crashes(&mut self, case: &Case, came: &Came, tries: Option<u64>) -> Result<(), Problem> {
        // A case that crashes by itself says by itself what follows.
        let own = case
            .test
            .events
            .iter()
            .any(|event| matches!(event.happens(), Some(Happens::Crash | Happens::Resolve { .. })));
        if own {
            return Ok(());
        }
        for fault in [Fault::CrashBefore, Fault::CrashAfter] {
            // Without a limit it goes on until no write is left: there can be more of them than without any trouble.
            let count = if tries.is_some() { came.writes } else { MAX_WRITES };
            for nth in spread(count, tries) {
                let crash = Some((nth, fault));
                let again =
                    case.execute(&Trouble { crash, gave: came.gave.clone(), ..Trouble::default() })?;
                if !again.crashed {
                    break;
                }
                self.crashes += 1;
                // A step that fails here, and of which a person says after the crash that it has happened, leads elsewhere.
                if again.answered.iter().any(|node| came.failed.contains(node)) {
                    continue;
                }
                let when = if fault == Fault::CrashBefore { "before" } else { "after" };
                self.found(&format!("with the process dying {when} write {nth}"), again.differences);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn tries_are_spread_evenly_and_reach_the_end() {
        assert_eq!(spread(5, None).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(spread(5, Some(9)).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(spread(100, Some(4)).collect::<Vec<_>>(), [25, 50, 75, 100]);
        assert_eq!(spread(7, Some(3)).collect::<Vec<_>>(), [2, 4, 7]);
        assert_eq!(spread(0, Some(3)).count(), 0);
    }
}
