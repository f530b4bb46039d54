//! How much a tree holds.

use std::collections::HashSet;
use std::os::fd::OwnedFd;

use farrier_model::Failure;
use rustix::fs::FileType;

use crate::usage::human;
use crate::walk::{Seen, shown, walk};
use crate::work::Work;

/// Counts and sizes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) files: u64,
    pub(crate) folders: u64,
    pub(crate) links: u64,
    /// Pipes, devices and sockets.
    pub(crate) others: u64,
    /// The sizes that files say they have; holes count, and a file with several names counts once.
    pub(crate) bytes: u64,
    /// What they take on disk.
    pub(crate) stored: u64,
    /// Folders that could not be looked into, or are passed by.
    pub(crate) passed: u64,
    /// The first of those, and why.
    pub(crate) first_passed: Option<String>,
}

impl Size {
    pub(crate) fn in_words(&self, what: &str) -> String {
        let passed = match &self.first_passed {
            Some(first) => format!("; {} entries are passed by, the first: {first}", self.passed),
            None => String::new(),
        };
        format!("`{what}`: {} files in {} folders, {}{passed}", self.files, self.folders, human(self.stored))
    }
}

/// Counts a tree, which may be changing.
pub(crate) fn count_tree(
    work: &Work,
    top: &OwnedFd,
    prefix: &str,
    max_entries: u64,
) -> Result<Size, Failure> {
    let mut size = Size::default();
    let mut several = HashSet::new();
    walk(work, top, prefix, max_entries, &mut |path, seen| {
        let mut pass = |why: String| {
            size.passed += 1;
            size.first_passed.get_or_insert_with(|| {
                let path: String = shown(path).chars().take(200).collect();
                format!("`{path}`: {why}")
            });
        };
        let stat = match seen {
            Seen::Entry(_, stat) => stat,
            Seen::Passed(_, why) => {
                pass(why);
                return Ok(());
            }
            Seen::Unreadable(error) => {
                pass(error.to_string());
                return Ok(());
            }
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                size.files += 1;
                work.tell_of_many(size.files, 0, || "files counted".into());
                if stat.st_nlink == 1 || several.insert(stat.st_ino) {
                    size.bytes += stat.st_size as u64;
                    size.stored += stat.st_blocks as u64 * 512;
                }
            }
            FileType::Directory => size.folders += 1,
            FileType::Symlink => size.links += 1,
            _ => size.others += 1,
        }
        Ok(())
    })?;
    Ok(size)
}
