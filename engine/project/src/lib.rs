//! A project on disk: its files, compiled and bound to environments as one set that is replaced as a whole.
//!
//! Read first: [`Workspace`] (which files there are), [`Site`] (an environment with its place), then [`Set`] (all of it at one
//! moment, without a mistake) and [`Watched`] (the set of now). Commands that do one thing read what they need through a
//! workspace; the service holds a set.
//!
//! **Rule:** a set is whole or is not made. Whoever holds one sees files of one moment, whatever is written meanwhile.

mod error;
mod set;
mod site;
mod watched;
mod workspace;

pub use error::ProjectError;
pub use set::Set;
pub use site::{Site, bind};
pub use watched::{Trouble, Watched};
pub use workspace::{Workspace, compile_files, shown, tested};
