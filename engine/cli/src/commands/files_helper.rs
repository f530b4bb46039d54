//! `farrier files-helper`.

use std::path::PathBuf;

use clap::Args;
use farrier_plugin_files::helper::Helper;

use super::{Problem, block_on};
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
    /// Work even where the kernel has no Landlock to keep the helper to those folders.
    #[arg(long)]
    unconfined: bool,
}

impl FilesHelper {
    pub(super) fn run(self) -> Result<Exit, Problem> {
        // Before there is a second thread: what this one gives up, the later ones do not have.
        let helper = Helper::prepare(&self.roots, self.unconfined)?;
        block_on(async { Ok(helper.serve().await.map(|()| Exit::Ok)?) })
    }
}
