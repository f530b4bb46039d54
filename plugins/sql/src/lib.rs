//! The `sql` plugin: MariaDB (and MySQL), PostgreSQL and SQLite.
//!
//! Read first: [`Sql`] (how a target is configured), then the actions [`Query`], [`Sync`] and [`Execute`], one file
//! each; then those about accounts ([`SetAccount`], [`SetGrants`]) and whole databases ([`Dump`], [`DropDatabases`]), which
//! work on `server`. Below them lie `database` (connections and transactions), `dialect` (what differs between the databases, with
//! one adapter file for each) and `column` (how a value is stored in a column, and when two are the same).
//!
//! **Rule:** data never becomes SQL. Values are bound; names of tables and columns pass an allow-list and are quoted;
//! everything else is text from the runbook's author.

mod account;
mod column;
mod credentials;
mod database;
mod dialect;
mod drop_accounts;
mod drop_databases;
mod dump;
mod execute;
mod grants;
mod hashes;
mod list;
mod mariadb;
mod postgres;
mod query;
mod server;
mod sqlite;
mod statement;
mod sync;
mod table;
mod target;
mod value;

pub use account::{AccountsSet, SetAccount};
pub use credentials::{Credentials, CredentialsMade};
pub use drop_accounts::{AccountsDropped, DropAccounts};
pub use drop_databases::{DropDatabases, Dropped};
pub use dump::{Dump, Dumped};
pub use execute::{Execute, Executed};
use farrier_action::{ActionRegistry, RegistryError};
pub use grants::{GrantsSet, SetGrants};
pub use list::{AccountsListed, DatabasesListed, ListAccounts, ListDatabases};
pub use query::{Query, Rows};
pub use sync::{NotListed, Sync, Synced, WriteTime};
pub use target::{Account, Sql, SqlConfig, Tls};

/// Adds the target kind and the actions of this plugin.
///
/// # Errors
/// When one of the names is taken.
pub fn register(registry: &mut ActionRegistry) -> Result<(), RegistryError> {
    registry.target::<Sql>()?;
    registry.action::<Credentials>()?;
    registry.action::<DropAccounts>()?;
    registry.action::<DropDatabases>()?;
    registry.action::<Dump>()?;
    registry.action::<Execute>()?;
    registry.action::<ListAccounts>()?;
    registry.action::<ListDatabases>()?;
    registry.action::<Query>()?;
    registry.action::<SetAccount>()?;
    registry.action::<SetGrants>()?;
    registry.action::<Sync>()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use farrier_action::ActionRegistry;
    use farrier_model::{FailureKind, Value};

    #[test]
    fn examples_are_inputs() {
        let mut registry = ActionRegistry::default();
        super::register(&mut registry).unwrap();
        let actions: Vec<&str> = registry.catalog().actions.keys().copied().collect();
        assert_eq!(
            actions,
            [
                "sql.account",
                "sql.credentials",
                "sql.drop_accounts",
                "sql.drop_databases",
                "sql.dump",
                "sql.execute",
                "sql.grants",
                "sql.list_accounts",
                "sql.list_databases",
                "sql.query",
                "sql.sync"
            ]
        );
        for (name, action) in &registry.catalog().actions {
            let steps: BTreeMap<String, Value> = serde_saphyr::from_str(action.example).unwrap();
            for step in steps.values() {
                assert_eq!(step.get("uses").and_then(Value::as_str), Some(*name));
                registry.bind(name, step.get("with").unwrap()).map(|_| ()).unwrap();
            }
        }
        assert_eq!(super::register(&mut registry).unwrap_err().0, "sql");
    }

    #[test]
    fn a_target_is_told_by_its_place_alone() {
        let mut registry = ActionRegistry::default();
        super::register(&mut registry).unwrap();
        let identity = |config: &str| registry.identity("sql", &Value::from_json(config).unwrap());
        let one = r#"{"url":"mysql://me@db/a","password":{"env":"SECRET"},"statement_timeout":"5m"}"#;
        let other = r#"{"url":"mysql://db/a","read_as":{"user":"you"}}"#;
        assert_eq!(identity(one).unwrap(), "mysql://db:3306/a");
        assert_eq!(identity(one), identity(other));
        for wrong in [
            r#"{"url":"mysql://db/a","statement_timeout":"soon"}"#,
            r#"{"url":"mysql://db/a","tls":"skip_verify"}"#,
            r#"{"url":"mysql://db/a","ssl":false}"#,
            "{}",
        ] {
            assert_eq!(identity(wrong).unwrap_err().kind, FailureKind::Input, "{wrong}");
        }
    }
}
