//! The `host` plugin: commands, services, files and reboots on machines: Farrier's own, those behind SSH, and scripted
//! ones that stand in for machines.
//!
//! Read first: [`Run`] (the action), then `transport` (what differs between machines), then `process` and `ssh` (how
//! a command lives and how it is made to die).
//!
//! **Rule:** a command is a list of arguments that reach the program as they are. The one shell that SSH puts in between
//! gets them from one quoting function.
//!
//! **Rule:** what a command starts ends with its step: it runs in a process group of its own, and the group is ended
//! when the command is over, when the step is cancelled and when it takes too long. What a killed Farrier left behind is
//! ended by the next one ([`leftovers`]).

mod capture;
mod facts;
mod fan_out;
mod file;
pub mod group;
mod host_file;
mod hosts;
pub mod leftovers;
mod local;
pub mod marks;
mod outcome;
mod posix;
mod process;
mod reboot;
mod run;
mod script;
mod scripted;
mod service;
mod ssh;
mod target;
mod transport;
mod words;

#[cfg(test)]
mod tests;

pub use facts::{Facts, Found, HostFacts};
pub use file::{File, Written};
pub use outcome::{Group, HostResult, Ran, State};
pub use reboot::{Back, Reboot};
pub use run::Run;
pub use script::Script;
pub use service::{Service, ServiceState, Services};
pub use ssh::config::SshConfig;
pub use target::{Host, HostConfig, HostTarget};

use farrier_action::{ActionRegistry, RegistryError};

/// Adds the plugin's target kind and actions.
///
/// # Errors
/// When one of the names is taken.
pub fn register(registry: &mut ActionRegistry) -> Result<(), RegistryError> {
    registry.target::<HostTarget>()?;
    registry.action::<Facts>()?;
    registry.action::<File>()?;
    registry.action::<Reboot>()?;
    registry.action::<Run>()?;
    registry.action::<Script>()?;
    registry.action::<Service>()
}
