//! Taking a tree out of its place, and giving it back.
//!
//! A tree that is to be archived and deleted first goes where nobody but Farrier can reach it by name. Who still holds
//! a folder of it open can go on writing inside, so nothing in it is trusted.

use std::os::fd::{AsFd, OwnedFd};

use farrier_model::{Failure, FailureKind};
use rustix::fs::{AtFlags, FileType, RenameFlags, fstat, fsync, renameat_with, unlinkat};
use rustix::io::Errno;

use crate::place::TreePlace;
use crate::private::{QUARANTINE, make_own, make_private, open_own, open_private, sync_folder};
use crate::strict::{FOLDER, Identity, failed, kind_in_words, lock, look, open_strict};
use crate::work::Work;

/// The mark of a deletion that has begun.
pub(crate) const DELETING: &str = "deleting";

/// The folder of one effect in the quarantine, held by this attempt alone.
pub(crate) struct Quarantine {
    pub(crate) folder: OwnedFd,
    all: OwnedFd,
    effect: String,
}

impl Quarantine {
    /// The effect's folder; nothing when there is none.
    pub(crate) fn open(work: &Work, root: &OwnedFd, effect: &str) -> Result<Option<Quarantine>, Failure> {
        let Some(all) = open_private(root, QUARANTINE)? else { return Ok(None) };
        let Some(folder) = open_own(&all, effect)? else { return Ok(None) };
        Quarantine::held(work, folder, all, effect).map(Some)
    }

    /// The effect's folder, made when there is none.
    pub(crate) fn make(work: &Work, root: &OwnedFd, effect: &str) -> Result<Quarantine, Failure> {
        let all = make_private(root, QUARANTINE)?;
        let folder = make_own(&all, effect)?;
        Quarantine::held(work, folder, all, effect)
    }

    fn held(work: &Work, folder: OwnedFd, all: OwnedFd, effect: &str) -> Result<Quarantine, Failure> {
        let what = format!("the quarantine of `{effect}`");
        lock(work, &folder, &what)?;
        let gone = fstat(&folder).map_or(true, |stat| stat.st_nlink == 0);
        if gone {
            return Err(Failure::new(
                FailureKind::Conflict,
                format!("{what} was emptied by another attempt"),
            ));
        }
        Ok(Quarantine { folder, all, effect: effect.to_owned() })
    }

    /// Whether a deletion has begun here.
    pub(crate) fn is_deleting(&self) -> Result<bool, Failure> {
        look(&self.folder, DELETING)
            .map(|found| found.is_some())
            .map_err(|error| failed("cannot look into the quarantine", error))
    }

    /// The tree, if it is here.
    pub(crate) fn tree(&self, tree: &TreePlace) -> Result<Option<(OwnedFd, Identity)>, Failure> {
        open_tree(&self.folder, tree)
    }

    /// Brings the tree here from its place, unless it is here already.
    pub(crate) fn take(
        &self,
        work: &Work,
        root: &OwnedFd,
        tree: &TreePlace,
        planned: Identity,
    ) -> Result<OwnedFd, Failure> {
        if let Some((folder, identity)) = self.tree(tree)? {
            same(tree, identity, planned)?;
            return Ok(folder);
        }
        let Some((_, identity)) = open_tree(root, tree)? else {
            return Err(Failure::new(FailureKind::Drift, format!("`{tree}` is not there any more")));
        };
        same(tree, identity, planned)?;
        work.point("before the tree is taken")?;
        let name = &*tree.path.0;
        renameat_with(root, name, &self.folder, name, RenameFlags::NOREPLACE)
            .map_err(|error| cannot_move(tree, "take", error))?;
        work.point("after the tree was taken")?;
        self.synced(root)?;
        let Some((folder, identity)) = self.tree(tree)? else {
            return Err(Failure::new(FailureKind::Drift, format!("`{tree}` vanished from the quarantine")));
        };
        if identity != planned {
            // Something else took its place between the look and the move: it goes back where it was.
            self.give_back(work, root, tree)?;
        }
        same(tree, identity, planned)?;
        Ok(folder)
    }

    /// Brings the tree back to its place.
    pub(crate) fn give_back(&self, work: &Work, root: &OwnedFd, tree: &TreePlace) -> Result<(), Failure> {
        let name = &*tree.path.0;
        work.point("before the tree is given back")?;
        renameat_with(&self.folder, name, root, name, RenameFlags::NOREPLACE).map_err(
            |error| match error {
                Errno::EXIST => Failure::new(
                    FailureKind::Drift,
                    format!("`{tree}` cannot go back: something else has its place"),
                )
                .help("move that away; the tree is safe in the quarantine"),
                error => cannot_move(tree, "give back", error),
            },
        )?;
        work.point("after the tree was given back")?;
        self.synced(root)
    }

    fn synced(&self, root: &OwnedFd) -> Result<(), Failure> {
        fsync(&self.folder).map_err(|error| failed("cannot make the quarantine durable", error))?;
        sync_folder(root, "the root")
    }

    /// Removes the effect's folder, which must be empty.
    pub(crate) fn remove(self) -> Result<(), Failure> {
        match unlinkat(&self.all, &*self.effect, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {
                fsync(&self.all).map_err(|error| failed("cannot make the quarantine durable", error))
            }
            Err(error) => Err(failed("cannot remove the emptied quarantine", error)),
        }
    }
}

/// Opens a tree in a folder; nothing when nothing has its name.
pub(crate) fn open_tree(folder: impl AsFd, tree: &TreePlace) -> Result<Option<(OwnedFd, Identity)>, Failure> {
    let name = &*tree.path.0;
    let cannot = |error| failed(format_args!("cannot open `{tree}`"), error);
    match open_strict(folder.as_fd(), name, FOLDER) {
        Ok(opened) => {
            let stat = fstat(&opened).map_err(cannot)?;
            Ok(Some((opened, Identity::of(&stat))))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(error @ (Errno::NOTDIR | Errno::LOOP)) => match look(folder, name).map_err(cannot)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
                let message = format!("`{tree}` is {}, not a folder", kind_in_words(&stat));
                Err(Failure::new(FailureKind::Refused, message))
            }
            _ => Err(cannot(error)),
        },
        Err(error) => Err(cannot(error)),
    }
}

/// Compares a tree with the one that was planned.
pub(crate) fn same(tree: &TreePlace, found: Identity, planned: Identity) -> Result<(), Failure> {
    if found == planned {
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::Drift,
        format!("`{tree}` is another folder than the plan saw: now {found}, then {planned}"),
    ))
}

fn cannot_move(tree: &TreePlace, what: &str, error: Errno) -> Failure {
    let failure = failed(format_args!("cannot {what} `{tree}`"), error);
    match error {
        Errno::INVAL => failure.help(
            "its file system cannot rename without replacing, as NFS cannot: run this where the disk is mounted itself",
        ),
        Errno::PERM => failure.help("is the folder immutable? see `lsattr -d`"),
        _ => failure,
    }
}
