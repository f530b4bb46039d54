//! The `sql` plugin: MariaDB (and MySQL), PostgreSQL and SQLite.
//!
//! Read first: [`Sql`] (how a target is configured), then the actions [`Query`], [`Sync`] and [`Execute`], one file
//! each. Below them lie `database` (connections and transactions), `dialect` (what differs between the databases, with
//! one adapter file for each) and `column` (how a value is stored in a column, and when two are the same).
//!
//! **Rule:** data never becomes SQL. Values are bound; names of tables and columns pass an allow-list and are quoted;
//! everything else is text from the runbook's author.

mod column;
mod database;
mod dialect;
mod execute;
mod mariadb;
mod postgres;
mod query;
mod sqlite;
mod statement;
mod sync;
mod table;
mod target;
mod value;

pub use execute::{Execute, Executed};
use farrier_action::{ActionRegistry, RegistryError};
pub use query::{Query, Rows};
pub use sync::{NotListed, Sync, Synced, WriteTime};
pub use target::{Account, Sql, SqlConfig, Tls};

/// Adds the target kind and the actions of this plugin.
///
/// # Errors
/// When one of the names is taken.
pub fn register(registry: &mut ActionRegistry) -> Result<(), RegistryError> {
    registry.target::<Sql>()?;
    registry.action::<Query>()?;
    registry.action::<Sync>()?;
    registry.action::<Execute>()
}
