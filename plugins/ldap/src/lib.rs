//! LDAP: search, modify, add, delete, members; a directory server, or LDIF files that stand in for one.
//!
//! Read first: `target` (what an environment says), `directory` (what a directory can do), `compare` (how a write
//! stays within what the plan saw). There is one file for each action.
//!
//! **Rule:** a name or a filter is built from typed parts (`dn`, `filter`); no value from outside is ever part of
//! its syntax.

mod add;
mod compare;
mod connection;
mod delete;
mod directory;
mod dn;
mod filter;
mod login;
mod members;
mod modify;
mod restore;
mod schema;
mod search;
mod standin;
mod target;
#[cfg(test)]
mod tests;
mod values;
mod within;

use farrier_action::{ActionRegistry, RegistryError};

pub use login::{Login, Outcome};
pub use target::{Ldap, LdapConfig, LdapReader, LdapWriter};

/// Adds the target kind `ldap` and its actions.
///
/// # Errors
/// When one of the names is taken.
pub fn register(registry: &mut ActionRegistry) -> Result<(), RegistryError> {
    registry.target::<Ldap>()?;
    registry.action::<add::Add>()?;
    registry.action::<delete::Delete>()?;
    registry.action::<members::Members>()?;
    registry.action::<modify::Modify>()?;
    registry.action::<search::Search>()
}
