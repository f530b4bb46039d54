//! HTTP: get, request, send, delete, certificate, and variables; a server, or recorded routes that stand in for one.
//!
//! Read first: `target` (what an environment says), `parts` (the pieces of a request that a runbook gives), `standin`
//! (recorded routes), `shelf` (variables at a server, whose values are secret). There is one file for each action. What keeps a request within its place is in
//! `farrier-outbound`.
//!
//! **Rule:** the address is the environment's. A step adds segments, parameters, a few headers and a tree, each
//! encoded on its own, and never a piece of an address.

mod certificate;
mod delete;
mod drop_variables;
mod get;
mod parts;
mod request;
mod send;
mod shelf;
mod standin;
mod target;
#[cfg(test)]
mod tests;
mod variables;

use farrier_action::{ActionRegistry, RegistryError};

pub use target::{Http, HttpConfig, HttpReader, HttpWriter};

/// Adds the target kind `http` and its actions.
///
/// # Errors
/// When one of the names is taken.
pub fn register(registry: &mut ActionRegistry) -> Result<(), RegistryError> {
    registry.target::<Http>()?;
    registry.action::<certificate::Certificate>()?;
    registry.action::<delete::Delete>()?;
    registry.action::<drop_variables::DropVariables>()?;
    registry.action::<get::Get>()?;
    registry.action::<request::Request>()?;
    registry.action::<send::Send>()?;
    registry.action::<variables::Variables>()
}
