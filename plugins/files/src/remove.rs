//! Deleting a tree that was archived, out of its quarantine.
//!
//! Names are unlinked in open folders only, and nothing is opened but folders. It can be stopped anywhere and called
//! again: what is left is deleted then. The archive is read again before the first name goes, each time.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::OwnedFd;

use farrier_model::{Failure, FailureKind};
use rustix::fs::{
    AtFlags, Dir, FileType, IFlags, Mode, OFlags, RenameFlags, fstat, fsync, ioctl_getflags, ioctl_setflags,
    renameat_with, unlinkat,
};
use rustix::io::Errno;

use crate::place::{Segments, TreePlace};
use crate::quarantine::{DELETING, Quarantine, same};
use crate::store::{Record, check_on_disk, with_digest};
use crate::strict::{LISTED, LOOK, create_strict, failed, look, open_strict};
use crate::walk::{MAX_PATH, reopen, shown};
use crate::work::Work;

/// What is to be deleted.
pub(crate) struct Deletion {
    pub(crate) tree: TreePlace,
    pub(crate) tree_root: OwnedFd,
    /// The root that the archive lies beneath.
    pub(crate) archive_root: OwnedFd,
    pub(crate) record: Record,
    /// Files whose immutable flag is taken off first.
    pub(crate) clear_immutable: Vec<Segments>,
}

/// How a deletion stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The tree, or what is left of it, is in quarantine.
    Left,
    /// All of it is gone.
    Gone,
}

/// The record of the archive by whose digest a tree is to be deleted.
pub(crate) fn archived_as(root: &OwnedFd, tree: &TreePlace, sha256: &str) -> Result<Record, Failure> {
    let refused = |message: String| {
        Failure::new(FailureKind::Refused, message)
            .help("a tree is deleted only after `files.archive` stored it; give the digest of that archive")
    };
    let record = with_digest(root, sha256)?.ok_or_else(|| {
        refused(format!("no archive with the digest {sha256} was made of a tree beneath `{}`", tree.root))
    })?;
    if (&record.tree_root, &record.tree) != (&tree.root, &tree.path.0) {
        let other = format!("{}/{}", record.tree_root, record.tree);
        return Err(refused(format!("the archive `{}` holds `{other}`, not `{tree}`", record.archive)));
    }
    Ok(record)
}

/// Looks how far a deletion is.
pub(crate) fn standing(
    work: &Work,
    root: &OwnedFd,
    tree: &TreePlace,
    record: &Record,
) -> Result<Standing, Failure> {
    let place =
        look(root, &*tree.path.0).map_err(|error| failed(format_args!("cannot look at `{tree}`"), error))?;
    if let Some(stat) = place {
        let what = if (stat.st_dev, stat.st_ino) == (record.identity.device, record.identity.inode) {
            "it was brought back to its place after it was archived"
        } else {
            "there is something else in its place, which is not archived"
        };
        return Err(Failure::new(FailureKind::Drift, format!("`{tree}` is not deleted: {what}"))
            .help("archive what is there, or move it away"));
    }
    let Some(quarantine) = Quarantine::open(work, root, &record.effect)? else { return Ok(Standing::Gone) };
    if let Some((_, identity)) = quarantine.tree(tree)? {
        same(tree, identity, record.identity)?;
    }
    Ok(Standing::Left)
}

/// Deletes what is left of the tree. Says how many names went.
pub(crate) fn delete(work: &Work, job: &Deletion) -> Result<u64, Failure> {
    work.point("before deleting")?;
    if standing(work, &job.tree_root, &job.tree, &job.record)? == Standing::Gone {
        return Ok(0);
    }
    let Some(quarantine) = Quarantine::open(work, &job.tree_root, &job.record.effect)? else { return Ok(0) };
    check_on_disk(work, &job.archive_root, &job.record)?;
    work.point("archive is checked")?;
    mark(&quarantine)?;
    work.point("deletion is marked")?;
    if let Some((tree, identity)) = quarantine.tree(&job.tree)? {
        same(&job.tree, identity, job.record.identity)?;
        for path in &job.clear_immutable {
            clear_immutable(&job.tree, &tree, path)?;
        }
    }
    let mut sweep = Sweep {
        work,
        into: &quarantine.folder,
        root: &job.tree.root,
        moved: 0,
        came_from: HashMap::new(),
        deleted: 0,
        entries: job.record.manifest.entries,
        stuck: None,
    };
    sweep.everything()?;
    let Sweep { deleted, stuck, .. } = sweep;
    if let Some(stuck) = stuck {
        return Err(stuck);
    }
    fsync(&quarantine.folder).map_err(|error| failed("cannot make the deletion durable", error))?;
    work.point("tree is gone")?;
    match unlinkat(&quarantine.folder, DELETING, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(failed("cannot remove the mark of the deletion", error)),
    }
    work.point("mark is gone")?;
    quarantine.remove()?;
    Ok(deleted)
}

/// From here on the tree is not whole, and undoing its archive would lose it.
fn mark(quarantine: &Quarantine) -> Result<(), Failure> {
    let cannot = |error| failed("cannot mark that the deletion begins", error);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW;
    let mark = create_strict(&quarantine.folder, DELETING, flags, Mode::RUSR | Mode::WUSR).map_err(cannot)?;
    fsync(mark).map_err(cannot)?;
    fsync(&quarantine.folder).map_err(cannot)
}

/// Takes the flag off one file or folder of the tree. One that is not there needs none taken off.
fn clear_immutable(place: &TreePlace, tree: &OwnedFd, path: &Segments) -> Result<(), Failure> {
    use std::os::fd::AsFd as _;
    let cannot = |error| failed(format_args!("cannot make `{place}/{path}` mutable"), error);
    let fd = match open_strict(tree, &*path.joined(), LOOK) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(error) => return Err(cannot(error)),
    };
    let opened = match FileType::from_raw_mode(fstat(&fd).map_err(cannot)?.st_mode) {
        FileType::RegularFile => reopen(fd.as_fd()),
        FileType::Directory => open_strict(&fd, ".", LISTED),
        // Nothing else is opened, and nothing else can have the flag set by its owner.
        _ => return Ok(()),
    };
    let opened = opened.map_err(cannot)?;
    let flags = match ioctl_getflags(&opened) {
        Ok(flags) => flags,
        // A file system without such flags.
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(cannot(error)),
    };
    let protected = IFlags::IMMUTABLE | IFlags::APPEND;
    if !flags.intersects(protected) {
        return Ok(());
    }
    ioctl_setflags(&opened, flags - protected).map_err(cannot)?;
    File::from(opened)
        .sync_all()
        .map_err(|error| crate::strict::io_failed("cannot keep the flag off", &error))
}

/// Deeper folders are moved up before they are gone into, so that few are open at a time.
const MAX_OPEN: usize = 64;
/// Names that are listed before they are deleted and the folder is listed again.
const LIST: usize = 10_000;
/// A folder that is listed this often and still not empty is being filled as fast as it is emptied.
const MAX_LISTS: usize = 10_000;

/// The deletion of everything in the quarantine of one effect.
struct Sweep<'a> {
    work: &'a Work,
    into: &'a OwnedFd,
    root: &'a str,
    moved: u64,
    /// Where folders were that this attempt moved up, as far as that can still be told in a message.
    came_from: HashMap<CString, Vec<u8>>,
    deleted: u64,
    /// How many the archive has, and so about how many there are.
    entries: u64,
    /// The first thing that could not be deleted; the rest was, as far as possible.
    stuck: Option<Failure>,
}

/// An open folder on the way down.
struct Frame {
    folder: OwnedFd,
    /// Its name in the folder above.
    name: CString,
    names: Vec<CString>,
    lists: usize,
    /// Something in it stays.
    stuck: bool,
}

impl Sweep<'_> {
    fn everything(&mut self) -> Result<(), Failure> {
        let top = open_strict(self.into, ".", LISTED)
            .map_err(|error| failed("cannot list the quarantine", error))?;
        let top = Frame { folder: top, name: CString::default(), names: Vec::new(), lists: 0, stuck: false };
        let mut stack = vec![top];
        while let Some(frame) = stack.last_mut() {
            let Some(name) = frame.names.pop() else {
                if !frame.stuck && self.list(&mut stack)? {
                    continue;
                }
                self.leave(&mut stack)?;
                continue;
            };
            if stack.len() == 1 && name.as_bytes() == DELETING.as_bytes() {
                continue;
            }
            self.work.point("deleting")?;
            self.one(&mut stack, name)?;
        }
        Ok(())
    }

    /// Lists the folder at the end of the stack; false when there is nothing in it that can go.
    fn list(&mut self, stack: &mut [Frame]) -> Result<bool, Failure> {
        let top = stack.len() == 1;
        let Some(frame) = stack.last_mut() else { return Ok(false) };
        frame.lists += 1;
        if frame.lists > MAX_LISTS {
            self.stay(stack, None, "it is filled as fast as it is emptied", FailureKind::Conflict);
            return Ok(false);
        }
        match some_names(&frame.folder, top) {
            Ok(names) => {
                frame.names = names;
                Ok(!frame.names.is_empty())
            }
            Err(error) => {
                Err(failed(format_args!("cannot list `{}/{}`", self.root, self.path_of(stack, None)), error))
            }
        }
    }

    /// Deletes one name, or goes into it.
    fn one(&mut self, stack: &mut Vec<Frame>, name: CString) -> Result<(), Failure> {
        let depth = stack.len();
        let Some(frame) = stack.last_mut() else { return Ok(()) };
        match unlinkat(&frame.folder, &name, AtFlags::empty()) {
            Ok(()) => {
                self.deleted += 1;
                let all = self.entries.max(self.deleted);
                self.work.tell_of_many(self.deleted, all, || "entries deleted".into());
                return Ok(());
            }
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(error) => {
                let is_folder = look(&frame.folder, &name)
                    .ok()
                    .flatten()
                    .is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
                if !is_folder {
                    self.stay_for(stack, Some(&name), error);
                    return Ok(());
                }
            }
        }
        if depth >= MAX_OPEN {
            return self.move_up(stack, &name);
        }
        match open_strict(&frame.folder, name.as_c_str(), LISTED) {
            Ok(folder) => stack.push(Frame { folder, name, names: Vec::new(), lists: 0, stuck: false }),
            // It was a folder, and is none now: what is there is found with the next list.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => self.stay_for(stack, Some(&name), error),
        }
        Ok(())
    }

    /// Moves a deep folder to the top of the quarantine, where it is found with the next list.
    fn move_up(&mut self, stack: &mut [Frame], name: &CStr) -> Result<(), Failure> {
        loop {
            let Some(frame) = stack.last() else { return Ok(()) };
            let up = format!("+{}", self.moved);
            self.moved += 1;
            match renameat_with(&frame.folder, name, self.into, &*up, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    let before = self.path_of(stack, Some(name)).into_bytes();
                    if let (true, Ok(up)) = (before.len() < MAX_PATH, CString::new(up)) {
                        self.came_from.insert(up, before);
                    }
                    return self.work.point("deep folder is moved up");
                }
                Err(Errno::NOENT) => return Ok(()),
                Err(Errno::EXIST) => {}
                Err(error) => {
                    self.stay_for(stack, Some(name), error);
                    return Ok(());
                }
            }
        }
    }

    /// Leaves the folder at the end of the stack, and removes it when nothing stays in it.
    fn leave(&mut self, stack: &mut Vec<Frame>) -> Result<(), Failure> {
        let Some(done) = stack.pop() else { return Ok(()) };
        let Some(above) = stack.last_mut() else { return Ok(()) };
        if done.stuck {
            above.stuck = true;
            return Ok(());
        }
        self.work.point("leaving a folder")?;
        match unlinkat(&above.folder, &done.name, AtFlags::REMOVEDIR) {
            Ok(()) => self.deleted += 1,
            // Something was put in meanwhile, or took its name: the next list finds it.
            Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            Err(error) => self.stay_for(stack, Some(&done.name), error),
        }
        Ok(())
    }

    /// Where something is, or was before it was moved up.
    fn path_of(&self, stack: &[Frame], name: Option<&CStr>) -> String {
        let names = stack.iter().skip(1).map(|frame| frame.name.as_c_str()).chain(name);
        let mut path: Vec<u8> = Vec::new();
        for (place, name) in names.enumerate() {
            let before = self.came_from.get(name).filter(|_| place == 0);
            if place > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(before.map_or(name.to_bytes(), Vec::as_slice));
        }
        shown(&path)
    }

    fn stay_for(&mut self, stack: &mut [Frame], name: Option<&CStr>, error: Errno) {
        let (why, kind) = match error {
            Errno::PERM => (
                "operation not permitted; it or its folder is immutable or append-only".to_owned(),
                FailureKind::Refused,
            ),
            Errno::BUSY | Errno::XDEV => {
                ("another file system is mounted there".to_owned(), FailureKind::Refused)
            }
            Errno::IO | Errno::STALE => (error.to_string(), FailureKind::Unreachable),
            other => (other.to_string(), FailureKind::Refused),
        };
        self.stay(stack, name, &why, kind);
    }

    fn stay(&mut self, stack: &mut [Frame], name: Option<&CStr>, why: &str, kind: FailureKind) {
        let path = self.path_of(stack, name);
        if let Some(frame) = stack.last_mut() {
            frame.stuck = true;
        }
        if self.stuck.is_none() {
            let failure = Failure::new(kind, format!("cannot delete `{}/{path}`: {why}", self.root));
            self.stuck = Some(failure.help(
                "see `lsattr`; `clear_immutable` takes the flag off files that are known to have it. What else there \
                 was is deleted, and the next try goes on with the rest",
            ));
        }
    }
}

/// Up to [`LIST`] names in a folder, without the mark at the top of the quarantine.
fn some_names(folder: &OwnedFd, top: bool) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_owned();
        let own = top && name.as_bytes() == DELETING.as_bytes();
        if name.as_bytes() != b"." && name.as_bytes() != b".." && !own {
            names.push(name);
        }
        if names.len() >= LIST {
            break;
        }
    }
    Ok(names)
}
