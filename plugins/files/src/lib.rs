//! The `files` plugin: folders of other people's files, read, archived and deleted without trusting what lies in them.
//!
//! Read first: [`Files`] (the target: named roots), then the actions, one file each. Beneath them: `beneath` opens
//! texts for [`ReadMany`], and `pool` keeps a file that never answers from stopping anything else. `strict` opens
//! for everything that writes, `walk` goes through a tree, `store` tells the life of an archive, `remove` that of a
//! deletion, `private` where both keep what they need. None of those know of runs: they are plain functions. `helper` has
//! them done by another process, which may do more or is where the disk is. [`deposit`] is for other plugins, whose steps
//! put files beneath a root; [`unpack()`] is for the command line.
//!
//! **Rule:** every path is made of checked segments beneath a root, and the kernel refuses to leave it. Nothing but a
//! regular file is ever opened for reading, and nothing but an open folder written to.
//!
//! Whose files they are matters: the owner of a tool decides what its home contains and may put a link, a pipe or a
//! file without end where text is expected, and may change all of it while we look. That costs one text or one entry,
//! with a note, and never the run or a file elsewhere.

mod archive;
mod beneath;
mod check_archive;
mod count;
mod delete_tree;
pub mod deposit;
mod discard;
pub mod helper;
mod manifest;
pub mod options;
mod pack;
mod path;
mod place;
mod pool;
mod private;
mod quarantine;
mod read_many;
mod reading;
mod remove;
mod snapshot;
mod store;
mod strict;
mod target;
mod unpack;
mod usage;
mod verify;
mod walk;
mod work;
mod write;

pub use archive::{Archive, Archived};
pub use check_archive::{CheckArchive, Checked};
pub use delete_tree::{DeleteTree, DeletedTree};
pub use discard::{Discard, Discarded};
pub use manifest::{Manifest, NotStored};
pub use place::FilePlace;
pub use read_many::{Lines, Note, ReadMany, Texts, Timeout};
pub use target::{Files, FilesConfig, FilesTarget};
pub use unpack::{Unpacked, unpack};
pub use usage::{Amount, Usage, Used};
pub use write::{Write, Written};

use farrier_action::{ActionRegistry, RegistryError};

use crate::helper::through::Through;

/// Adds the plugin's target kind and actions.
///
/// # Errors
/// When one of the names is taken.
pub fn register(registry: &mut ActionRegistry) -> Result<(), RegistryError> {
    registry.target::<FilesTarget>()?;
    registry.action::<Through<Archive>>()?;
    registry.action::<Through<CheckArchive>>()?;
    registry.action::<Through<DeleteTree>>()?;
    registry.action::<Through<Discard>>()?;
    registry.action::<ReadMany>()?;
    registry.action::<Through<Usage>>()?;
    registry.action::<Through<Write>>()
}

#[cfg(test)]
mod tests;
