//! The `flow` plugin: steps that say something about the run itself. They touch nothing and do the same in a plan as
//! in a run, so a plan already shows which gate would stop it.

mod fail;
mod gate;
mod note;

pub use fail::{Fail, Nothing};
pub use gate::{Check, Gate, Passed};
pub use note::{Note, Noted};

use farrier_action::{ActionRegistry, RegistryError};

/// Adds the plugin's actions.
///
/// # Errors
/// When one of the names is taken.
pub fn register(registry: &mut ActionRegistry) -> Result<(), RegistryError> {
    registry.action::<Fail>()?;
    registry.action::<Gate>()?;
    registry.action::<Note>()
}

#[cfg(test)]
mod testing;
