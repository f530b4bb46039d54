//! `farrier fsck`: whether what is stored is whole.

use std::path::PathBuf;

use clap::Args;

use super::{App, Problem, export};
use crate::exit::Exit;
use crate::render::{self, Format};
use crate::stores;
use farrier_project::shown;

#[derive(Debug, Args)]
pub(super) struct Fsck {
    /// Write every run that can still be read to a file, as `farrier export` does, and say which cannot.
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
}

impl Fsck {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let store = stores::read_of(&app.workspace()?, None).await?;
        let mut lost = 0;
        if let Some(out) = &self.export {
            // First: of a damaged file the check may not come to an end.
            let (runs, damage) = store.run_ids().await?;
            if let Some(damage) = &damage {
                eprintln!("there may be more runs than are found: {damage}");
            }
            let (written, unreadable) = export::write(&store, &runs, Some(out), true).await?;
            eprintln!("{} written to {}", render::many(written, "run"), shown(out));
            lost = unreadable + u64::from(damage.is_some());
        }
        let report = farrier_store::fsck(&store).await?;
        if app.output == Format::Table {
            for violation in &report.violations {
                render::line(&violation.to_string())?;
            }
            render::line(&format!(
                "{}, {}: {}",
                render::many(report.runs, "run"),
                render::many(report.entries, "event"),
                if report.violations.is_empty() {
                    "everything is whole".to_owned()
                } else {
                    render::many(report.violations.len() as u64, "violation")
                }
            ))?;
        } else {
            render::data(app.output, &report)?;
        }
        Ok(if report.violations.is_empty() && lost == 0 { Exit::Ok } else { Exit::Store })
    }
}
