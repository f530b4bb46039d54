//! The `flow` plugin: steps that say something about the run itself or about other ones, or wait. They touch nothing and do the same
//! in a plan as in a run, so a plan already shows which gate would stop it and where it would wait.

mod approval;
mod fail;
mod gate;
mod note;
mod runs;
mod wait;

pub use approval::{Approval, Approved};
pub use fail::{Fail, Nothing};
pub use gate::{Check, Gate, Passed};
pub use note::{Note, Noted};
pub use runs::{FailedStep, Listed, Other, Runs, Standing};
pub use wait::{Wait, Waited};

use farrier_action::{ActionRegistry, RegistryError};

/// Adds the plugin's actions.
///
/// # Errors
/// When one of the names is taken.
pub fn register(registry: &mut ActionRegistry) -> Result<(), RegistryError> {
    registry.action::<Approval>()?;
    registry.action::<Fail>()?;
    registry.action::<Gate>()?;
    registry.action::<Note>()?;
    registry.action::<Runs>()?;
    registry.action::<Wait>()
}

#[cfg(test)]
mod testing;
