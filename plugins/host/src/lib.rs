//! The `host` plugin: commands on machines. This version runs them on its own machine only.
//!
//! Read first: [`Run`] (the action), then [`process`] (how a command lives and how it is made to die).
//!
//! **Rule:** a command is a list of arguments that the kernel hands over as they are. No shell reads it.
//!
//! **Rule:** what a command starts ends with its step: it runs in a process group of its own, and the group is ended
//! when the command is over, when the step is cancelled and when it takes too long. What a killed Farrier left behind is
//! ended by the next one ([`leftovers`]).

mod capture;
pub mod leftovers;
mod marks;
mod process;
mod run;
mod target;

pub use run::{Ran, Run};
pub use target::{Host, HostConfig, HostTarget};

use farrier_action::{ActionRegistry, RegistryError};

/// Adds the plugin's target kind and actions.
///
/// # Errors
/// When one of the names is taken.
pub fn register(registry: &mut ActionRegistry) -> Result<(), RegistryError> {
    registry.target::<HostTarget>()?;
    registry.action::<Run>()
}
