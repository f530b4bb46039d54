//! Ends what a killed Farrier left running, before this one claims anything.
//!
//! `kill -9` ends Farrier and none of the commands it had started. A step that is tried again must not meet its own former
//! attempt at work, so whoever opens the store as its owner looks for such commands first. The directory's lock is held
//! by then: nobody else starts commands of these runs.

use std::str::FromStr;

use farrier_model::RunId;
use farrier_plugin_host::leftovers::{self, Leftover};
use farrier_store::{SqliteStore, Store};

use crate::problem::Problem;

/// Ends the commands of the store's runs that nobody waits for any more, and says which on standard error.
///
/// # Errors
/// Nobody can say what still runs: `/proc` or the store cannot be read.
pub async fn end(store: &SqliteStore) -> Result<(), Problem> {
    // Programs whose runner was killed as well: nobody hears them, whatever run they were of.
    let swept = tokio::task::spawn_blocking(farrier_plugin_external::runner::sweep).await.unwrap_or(0);
    if swept > 0 {
        tracing::warn!(swept, "ended processes of programs that outlived their runner");
        eprintln!("ended {swept} processes of programs: they outlived their Farrier");
    }
    let (store, runtime) = (store.clone(), tokio::runtime::Handle::current());
    let ended = tokio::task::spawn_blocking(move || {
        leftovers::end(|run| {
            RunId::from_str(run).is_ok_and(|run| runtime.block_on(is_unfinished(&store, run)))
        })
    });
    let found =
        ended.await.map_err(anyhow::Error::new).and_then(|found| found.map_err(anyhow::Error::new)).map_err(
            |error| Problem::Other(error.context("cannot tell what an earlier Farrier left running")),
        )?;
    for leftover in &found {
        tell(leftover);
    }
    Ok(())
}

/// A run of this store that is not over. What a run that is over left behind on purpose is nobody's former attempt. When
/// the store cannot say, the process is left alone, and what is claimed next fails for the same reason.
async fn is_unfinished(store: &SqliteStore, run: RunId) -> bool {
    store.run(run).await.is_ok_and(|row| row.is_some_and(|row| !row.state.is_final()))
}

fn tell(leftover: &Leftover) {
    let Leftover { pid, run, node, program, ended } = leftover;
    let short = run.get(..13).unwrap_or(run);
    if *ended {
        tracing::warn!(pid, run_id = run, node, program, "ended a command that outlived its Farrier");
        eprintln!(
            "ended `{program}` (process {pid}) of step `{node}` of run {short}: it outlived its Farrier"
        );
    } else {
        tracing::error!(pid, run_id = run, node, program, "a command that outlived its Farrier does not end");
        eprintln!(
            "warning: `{program}` (process {pid}) of step `{node}` of run {short} outlived its Farrier and was \
             killed, and hangs in the kernel; it ends when it can"
        );
    }
}
