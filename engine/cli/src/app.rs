//! [`App`]: what every command has at hand.

use std::path::PathBuf;
use std::sync::Arc;

use farrier_action::ActionRegistry;
use farrier_project::Workspace;

use crate::problem::Problem;
use crate::render::Format;
use crate::telemetry::Spans;

/// What every command has at hand.
#[derive(Clone)]
pub struct App {
    pub registry: Arc<ActionRegistry>,
    pub output: Format,
    pub project: PathBuf,
    pub logs_json: bool,
    /// The service to ask, by its address.
    pub server: Option<String>,
    /// The authorities to check its certificate against.
    pub server_ca: Option<PathBuf>,
    /// Hears of the spans of runs and steps, in a process that serves.
    pub spans: Option<Spans>,
}

impl App {
    pub fn workspace(&self) -> Result<Workspace, Problem> {
        Ok(Workspace::find(&self.project)?)
    }
}

/// Who is at the keyboard, for the journal.
pub fn user() -> String {
    ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
        .unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}
