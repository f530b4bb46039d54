//! The stores of a project: its own, and those of environments that keep their runs elsewhere.
//!
//! [`own`] is the only way to a store that is written. Whoever looks for a run looks in all of them: people name a run by the
//! beginning of its id, and ids are unique across stores.

use std::path::{Path, PathBuf};

use farrier_project::{Site, Workspace};
use farrier_store::{Mode, OpenOptions, RunFilter, RunRow, SqliteStore, Store as _, StoreError};

use crate::app::App;
use crate::client::{self, Client};
use crate::leftovers;
use crate::problem::Problem;

/// Opens a store to write it. First ends what a killed Farrier left running, so that no step meets its own former attempt at
/// work.
pub async fn own(dir: &Path) -> Result<SqliteStore, Problem> {
    let store = SqliteStore::open(dir, OpenOptions { mode: Mode::Owner, ..OpenOptions::default() }).await?;
    leftovers::end(&store).await?;
    Ok(store)
}

/// Opens the store of an environment, or of the project, to write it.
pub async fn own_of(workspace: &Workspace, site: Option<&Site>) -> Result<SqliteStore, Problem> {
    own(&workspace.data_dir(site)?).await
}

/// Opens a store to read it.
pub async fn read(dir: &Path) -> Result<SqliteStore, Problem> {
    Ok(SqliteStore::open(dir, OpenOptions::read_only()).await?)
}

/// Opens the store of an environment, or of the project, to read it.
pub async fn read_of(workspace: &Workspace, site: Option<&Site>) -> Result<SqliteStore, Problem> {
    read(&workspace.data_dir(site)?).await
}

/// Every store of the project that holds something, for reading. When there is none, what opening the project's own says.
pub async fn read_all(app: &App, workspace: &Workspace) -> Result<Vec<SqliteStore>, Problem> {
    let mut stores = Vec::new();
    let mut first = None;
    for dir in workspace.data_dirs(app.registry.catalog())? {
        match read(&dir).await {
            Ok(store) => stores.push(store),
            Err(problem @ Problem::Store(StoreError::Missing { .. })) => {
                first.get_or_insert(problem);
            }
            Err(problem) => return Err(problem),
        }
    }
    match first {
        Some(problem) if stores.is_empty() => Err(problem),
        _ => Ok(stores),
    }
}

/// The one run whose id begins with `prefix`, with its store, for reading.
pub async fn find(app: &App, workspace: &Workspace, prefix: &str) -> Result<(SqliteStore, RunRow), Problem> {
    let mut found = Vec::new();
    for store in read_all(app, workspace).await? {
        let rows = begin_with(&store, prefix).await?;
        found.extend(rows.into_iter().map(|row| (store.clone(), row)));
    }
    only(found, prefix)
}

/// The service that owns the store with this run, if one does.
pub async fn service_of(app: &App, workspace: &Workspace, prefix: &str) -> Result<Option<Client>, Problem> {
    let dirs = workspace.data_dirs(app.registry.catalog())?;
    let dir = match dirs.as_slice() {
        [only] => only.clone(),
        dirs => holding(dirs, prefix).await?,
    };
    client::at(app, &dir).await
}

/// The one run whose id begins with `prefix`, with its store, to be written.
pub async fn find_own(
    app: &App,
    workspace: &Workspace,
    prefix: &str,
) -> Result<(SqliteStore, RunRow), Problem> {
    let dirs = workspace.data_dirs(app.registry.catalog())?;
    let dir = match dirs.as_slice() {
        [only] => only.clone(),
        dirs => holding(dirs, prefix).await?,
    };
    let store = own(&dir).await?;
    let rows = begin_with(&store, prefix).await?;
    let found = rows.into_iter().map(|row| (store.clone(), row)).collect();
    only(found, prefix)
}

/// The one run of a store whose id begins with `prefix`.
pub async fn find_in(store: &SqliteStore, prefix: &str) -> Result<RunRow, Problem> {
    let found = begin_with(store, prefix).await?.into_iter().map(|row| ((), row)).collect();
    only(found, prefix).map(|((), row)| row)
}

/// The directory, of several, that holds the run.
async fn holding(dirs: &[PathBuf], prefix: &str) -> Result<PathBuf, Problem> {
    let mut found = Vec::new();
    for dir in dirs {
        match read(dir).await {
            Ok(store) => {
                let rows = begin_with(&store, prefix).await?;
                store.close().await;
                found.extend(rows.into_iter().map(|_| (dir.clone(), ())));
            }
            Err(Problem::Store(StoreError::Missing { .. })) => {}
            // Its owner brings it up to date; whether it holds the run is known only then.
            Err(Problem::Store(StoreError::OlderSchema { .. })) => {
                let store = own(dir).await?;
                let rows = begin_with(&store, prefix).await?;
                store.close().await;
                found.extend(rows.into_iter().map(|_| (dir.clone(), ())));
            }
            Err(problem) => return Err(problem),
        }
    }
    only(found, prefix).map(|(dir, ())| dir)
}

async fn begin_with(store: &SqliteStore, prefix: &str) -> Result<Vec<RunRow>, Problem> {
    let filter = RunFilter { id_prefix: Some(prefix.to_lowercase()), limit: Some(2), ..RunFilter::default() };
    Ok(store.runs(filter).await?)
}

fn only<S, R>(mut found: Vec<(S, R)>, prefix: &str) -> Result<(S, R), Problem> {
    match (found.len(), found.pop()) {
        (1, Some(one)) => Ok(one),
        (0, _) => Err(Problem::NoRun(prefix.to_owned())),
        _ => Err(Problem::AmbiguousRun(prefix.to_owned())),
    }
}
