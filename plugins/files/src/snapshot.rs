//! Snapshots of a root: the tree as it stood at a moment after it was taken, while who holds a folder of it open may still
//! be writing to it.
//!
//! A snapshot counts when it has the tree in its quarantine, beneath this effect's name: then it is one of this root, it was
//! made after the tree was taken, and nothing that was written until then is missing. An older one has the tree in its
//! place, and does not count. No clock is asked.
//!
//! Who makes it: some file systems do when a folder is made among the snapshots, and that is tried first, under a name with
//! the effect's id. Otherwise it comes by itself, from whoever makes snapshots of that disk, and is waited for.

use std::os::fd::OwnedFd;
use std::time::Duration;

use farrier_model::{Failure, FailureKind};
use rustix::fs::{AtFlags, Dir, Mode, fstat, mkdirat, unlinkat};
use rustix::io::Errno;

use crate::place::TreePlace;
use crate::private::{PRIVATE, QUARANTINE};
use crate::strict::{Identity, LISTED, failed, look, open_mounted, open_strict};
use crate::work::Work;

/// How long until the snapshots are looked through again.
const PAUSE: Duration = Duration::from_secs(2);
/// How often is heard meanwhile whether to go on.
const BREATH: Duration = Duration::from_millis(100);

/// The snapshots of one root, open.
pub(crate) struct Snapshots {
    /// It has an entry for each.
    folder: OwnedFd,
    /// Where the root is in each.
    within: String,
    /// For messages.
    shown: String,
}

/// A tree in a snapshot.
pub(crate) struct Held {
    /// The snapshot's name.
    pub(crate) name: String,
    pub(crate) tree: OwnedFd,
}

/// The two parts of `FOLDER` or `FOLDER/*/REST`: the folder with the snapshots, and where the root is in each.
pub(crate) fn parts(folder: &str) -> (&str, &str) {
    folder.split_once("/*/").unwrap_or((folder.strip_suffix("/*").unwrap_or(folder), "."))
}

impl Snapshots {
    pub(crate) fn new(folder: OwnedFd, within: &str, shown: String) -> Snapshots {
        Snapshots { folder, within: within.to_owned(), shown }
    }

    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// The tree as a snapshot has it that was made after the tree was taken; waits for one.
    pub(crate) fn held(
        &self,
        work: &Work,
        effect: &str,
        tree: &TreePlace,
        taken: Identity,
    ) -> Result<Held, Failure> {
        if let Some(held) = self.holding(effect, tree, taken)? {
            return Ok(held);
        }
        let own = own_name(effect);
        let made = mkdirat(&self.folder, &*own, Mode::RWXU).is_ok();
        work.point("a snapshot is asked for")?;
        loop {
            if let Some(held) = self.holding(effect, tree, taken)? {
                return Ok(held);
            }
            if made {
                // It is a folder and no snapshot.
                self.forget(effect)?;
            }
            work.tell(0, 1, || format!("snapshot in {} since `{tree}` was taken", self.shown));
            let mut waited = Duration::ZERO;
            while waited < PAUSE {
                work.point("waiting for a snapshot")?;
                std::thread::sleep(BREATH);
                waited += BREATH;
            }
        }
    }

    /// The same, if there is one.
    pub(crate) fn holding(
        &self,
        effect: &str,
        tree: &TreePlace,
        taken: Identity,
    ) -> Result<Option<Held>, Failure> {
        let cannot = |error| failed(format_args!("cannot list the snapshots in {}", self.shown), error);
        let mut names = Vec::new();
        for entry in open_strict(&self.folder, ".", LISTED).and_then(Dir::new).map_err(cannot)? {
            let name = entry.map_err(cannot)?.file_name().to_owned();
            if let Ok(name) = name.into_string()
                && name != "."
                && name != ".."
            {
                names.push(name);
            }
        }
        // Dates in names make the last one the newest.
        names.sort_unstable_by(|a, b| b.cmp(a));
        let path = format!("{}/{PRIVATE}/{QUARANTINE}/{effect}/{}", self.within, tree.path.0);
        for name in names {
            // What cannot be opened is not the tree: another one may have it.
            let Ok(snapshot) = open_mounted(&self.folder, &name) else { continue };
            let Ok(found) = open_mounted(&snapshot, &path) else { continue };
            let found_in = fstat(&found).map(|stat| Identity::of(&stat)).map_err(cannot)?;
            if (found_in.inode, found_in.owner) == (taken.inode, taken.owner) {
                return Ok(Some(Held { name, tree: found }));
            }
        }
        Ok(None)
    }

    /// Removes the snapshot that [`Snapshots::held`] made, if it made one: it would keep what is deleted.
    pub(crate) fn forget(&self, effect: &str) -> Result<(), Failure> {
        let own = own_name(effect);
        let cannot = |error| {
            failed(format_args!("cannot remove the snapshot `{own}` in {}", self.shown), error)
                .help("it was made for this step and keeps what the step archived")
        };
        match look(&self.folder, &*own).map_err(cannot)? {
            None => Ok(()),
            Some(_) => match unlinkat(&self.folder, &*own, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(Errno::BUSY) => Err(Failure { kind: FailureKind::Conflict, ..cannot(Errno::BUSY) }),
                Err(error) => Err(cannot(error)),
            },
        }
    }
}

fn own_name(effect: &str) -> String {
    format!("farrier-{effect}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_a_snapshot_or_in_it() {
        assert_eq!(parts("/srv/.zfs/snapshot"), ("/srv/.zfs/snapshot", "."));
        assert_eq!(parts("/srv/.zfs/snapshot/*"), ("/srv/.zfs/snapshot", "."));
        assert_eq!(parts("/srv/.zfs/snapshot/*/tools/project"), ("/srv/.zfs/snapshot", "tools/project"));
    }
}
