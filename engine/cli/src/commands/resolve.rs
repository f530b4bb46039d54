//! `farrier resolve`: a person's word on a step in doubt.

use clap::Args;
use farrier_exec::Run;
use farrier_model::{Event, NodeEvent, NodeName, NodeState, Value};
use farrier_store::Store;

use super::run::{open_run, user};
use super::{App, Problem};
use crate::exit::Exit;
use crate::render;

#[derive(Debug, Args)]
pub(super) struct Resolve {
    /// The run, by the beginning of its id.
    run: String,
    /// The step, or `step[item]`.
    node: NodeName,
    /// Its effect happened: it counts as succeeded and is not repeated.
    #[arg(long, conflicts_with = "not_applied", required_unless_present = "not_applied")]
    applied: bool,
    /// Its effect did not happen: it will be tried again.
    #[arg(long)]
    not_applied: bool,
    /// How you know; kept in the journal.
    #[arg(long)]
    reason: String,
}

impl Resolve {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let workspace = app.workspace()?;
        let (store, start, row) = open_run(app, &workspace, &self.run).await?;
        let journal = store.journal(row.id).await?;
        let run = Run::replay(row.id, start.bundle.graph().clone(), &journal)
            .map_err(|error| Problem::Other(error.into()))?;
        let node = run
            .find(&self.node)
            .ok_or_else(|| Problem::Usage(format!("run {} has no step `{}`", row.id, self.node)))?;
        let state = run.node(node).state;
        if state != NodeState::InDoubt {
            return Err(Problem::Usage(format!("step `{}` is {}, not in doubt", self.node, state.name())));
        }
        let attempt = run.node(node).attempt;
        let by = format!("{}: {}", user(), self.reason);
        let event = if self.applied {
            NodeEvent::Succeeded { output: Value::Null, changed: run.node(node).effects.len() as u64 }
        } else {
            NodeEvent::NotApplied { by: by.clone() }
        };
        let claim = store.claim(row.id, &by).await?;
        let node = Event::Node { node: self.node.clone(), attempt, event };
        store.append(&claim, vec![Event::Resumed { by, accepted: None }, node], None).await?;
        store.release(&claim).await?;
        store.close().await;
        let short = &row.id.to_string()[..13];
        render::line(&format!(
            "step `{}` counts as {}",
            self.node,
            if self.applied { "applied" } else { "not applied" }
        ))?;
        eprintln!("next: farrier resume {short}");
        Ok(Exit::Ok)
    }
}
