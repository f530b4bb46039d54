//! `farrier fsck`: whether what is stored is whole.

use clap::Args;
use farrier_store::Mode;

use super::{App, Problem};
use crate::exit::Exit;
use crate::render::{self, Format};

#[derive(Debug, Args)]
pub(super) struct Fsck {}

impl Fsck {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let store = app.workspace()?.store(None, Mode::ReadOnly).await?;
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
        Ok(if report.violations.is_empty() { Exit::Ok } else { Exit::Store })
    }
}
