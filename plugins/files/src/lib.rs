//! The `files` plugin: folders of other people's files, read without trusting what lies in them.
//!
//! Read first: [`Files`] (the target: named roots), then [`ReadMany`] (its one action so far). [`beneath`] opens
//! files, [`pool`] keeps a file that never answers from stopping anything else.
//!
//! **Rule:** every path is made of checked segments beneath a root, and the kernel refuses to leave it. Nothing but a
//! regular file is ever opened for reading.
//!
//! Whose files they are matters: the owner of a tool decides what its home contains and may put a link, a pipe or a
//! file without end where text is expected. Each costs that one text, with a note, and never the run.

mod beneath;
mod path;
mod pool;
mod read_many;
mod target;

pub use read_many::{Lines, Note, ReadMany, Texts, Timeout};
pub use target::{Files, FilesConfig, FilesTarget};

use farrier_action::{ActionRegistry, RegistryError};

/// Adds the plugin's target kind and actions.
///
/// # Errors
/// When one of the names is taken.
pub fn register(registry: &mut ActionRegistry) -> Result<(), RegistryError> {
    registry.target::<FilesTarget>()?;
    registry.action::<ReadMany>()
}
