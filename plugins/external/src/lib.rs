//! The `external` plugin: any program that speaks lines of JSON, as an action.
//!
//! Read first: [`Run`] (the action), then `wire` (what is said, both ways), then `talk` (one program's life, seen from
//! Farrier) and [`runner`] (the process between the two).
//!
//! **Rule:** the environment says which program, by path and digest, and what may be made of it; the program is believed
//! only about its own work. What it says is bounded, checked, and searched for secrets before anybody sees it.
//!
//! **Rule:** without a whole answer of the right kind from a program that then ends well, a step that changes something is
//! in doubt.

mod run;
pub mod runner;
mod standin;
mod talk;
mod target;
mod wire;

pub use run::{Answered, Run};
pub use talk::use_runner;
pub use target::{External, ExternalConfig};

use farrier_action::{ActionRegistry, RegistryError};

/// Adds the plugin's target kind and action.
///
/// # Errors
/// When one of the names is taken.
pub fn register(registry: &mut ActionRegistry) -> Result<(), RegistryError> {
    registry.target::<External>()?;
    registry.action::<Run>()
}
