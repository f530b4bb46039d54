//! What an action is: the [`Action`] trait, the targets it reaches the world through, the registry, and the harness
//! that proves every action keeps the same laws.
//!
//! Read first: [`Action`] (the contract), then [`ReadCx`] and [`WriteCx`] (what an action may touch), then
//! [`TargetKind`] (how a plugin connects to the world).
//!
//! **Rule:** an action reaches the world only through its context. A [`ReadCx`] has no way to a writer, so a plan
//! cannot write, by type.

mod action;
mod context;
pub mod duration;
pub mod harness;
mod history;
mod known;
mod progress;
mod registry;
pub mod rest;
mod secrets;
mod target;
pub mod text;
pub mod world_file;

pub use action::{Action, Planned, Probe, WaitFor};
pub use context::{NodeInfo, ReadCx, WriteCx};
pub use farrier_model as model;
pub use history::{EarlierRun, FailedNode, History};
pub use known::{Known, SharedKnown, told};
pub use progress::Progress;
pub use registry::{ActionRegistry, BoundAction, RegistryError};
pub use secrets::SecretRef;
pub use target::{Binding, ConnectCx, Now, Target, TargetKind, Targets};
