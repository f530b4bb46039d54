//! `farrier prune`: takes away finished runs whose time is over, as `retention:` in the project file says.

use clap::Args;
use farrier_store::{Pruned, Store as _};

use super::{App, Problem};
use crate::exit::Exit;
use crate::render::{self, Format};
use crate::stores;

#[derive(Debug, Args)]
pub(super) struct Prune {
    /// Only say which runs would go.
    #[arg(long)]
    dry_run: bool,
}

impl Prune {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let workspace = app.workspace()?;
        let retention = workspace.retention().ok_or_else(|| {
            Problem::Usage("farrier.yaml does not say how long runs are kept: it has no `retention:`".into())
        })?;
        if self.dry_run {
            let store = stores::read_of(&workspace, None).await?;
            let expired = store.expired(&retention).await?;
            for run in &expired {
                if let Some(row) = store.run(*run).await? {
                    let ended = row.finished_at.map(|at| at.to_string()).unwrap_or_default();
                    render::line(&format!("{run} {} {} {ended}", row.runbook, row.state.name()))?;
                }
            }
            eprintln!(
                "{} would go, with the runs that they started",
                render::many(expired.len() as u64, "run")
            );
            return Ok(Exit::Ok);
        }
        let store = stores::own_of(&workspace, None).await?;
        let pruned = store.prune(&retention).await;
        store.close().await;
        let pruned = pruned?;
        if app.output == Format::Table {
            render::line(&describe(&pruned))?;
        } else {
            render::data(app.output, &pruned)?;
        }
        Ok(Exit::Ok)
    }
}

/// What went, in words.
pub(super) fn describe(pruned: &Pruned) -> String {
    format!(
        "{} gone, with {}, {} and {}",
        render::many(pruned.runs, "run"),
        render::many(pruned.entries, "event"),
        render::many(pruned.blobs, "large output"),
        render::many(pruned.texts, "runbook text")
    )
}
