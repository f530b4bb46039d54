//! `farrier files-helper`.

use std::path::PathBuf;

use clap::Args;

use super::Problem;
use crate::exit::Exit;

/// Do one piece of work with files for another Farrier, and end. Environments name this program under `via`.
///
/// A request is one line of JSON on standard input, and so is the answer on standard output. Standard input stays open
/// while the answer is waited for: when it ends, so does the helper.
#[derive(Debug, Args)]
pub struct FilesHelper {
    /// The file with the folders that it may work in: `NAME FOLDER` on each line. It must belong to the superuser.
    #[arg(long, value_name = "FILE", default_value = "/etc/farrier/files-roots")]
    roots: PathBuf,
}

impl FilesHelper {
    pub(super) async fn run(self) -> Result<Exit, Problem> {
        match farrier_plugin_files::helper::serve(&self.roots).await {
            Ok(()) => Ok(Exit::Ok),
            Err(failure) => Err(Problem::Other(anyhow::anyhow!(failure.message))),
        }
    }
}
