//! The life of an archive: made from a tree in quarantine, read back, given its name, found again, and undone.
//!
//! The order is what makes a crash harmless:
//!
//! 1. the tree goes into quarantine, under the effect's id;
//! 2. it, or where its root has snapshots the first one that has it there, is packed into a private file, which is synced, read back and compared with its manifest;
//! 3. the archive is recorded, by its digest beside the tree and by the effect's id beside the archive;
//! 4. the private file takes its final name, which must be free.
//!
//! An attempt that finds no record starts again at 2. One that finds a record makes no other archive: it goes on with 4
//! or, when the final name is the recorded file, is done. So there is one archive per effect, and never a second digest.

use std::fs::File;
use std::os::fd::OwnedFd;

use farrier_model::{Failure, FailureKind};
use rustix::fs::{FileType, Mode, OFlags, RenameFlags, Stat, fstat, fsync, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::manifest::{ADDED, Head, Manifest};
use crate::pack::{Format, Packed, Packer};
use crate::place::{FilePlace, TreePlace};
use crate::private::{ARCHIVES, DIGESTS, make_private, open_private, read_record, remove, write_record};
use crate::quarantine::{Quarantine, open_tree, same};
use crate::snapshot::{Held, Snapshots};
use crate::strict::{Identity, LISTED, LOOK, create_strict, failed, io_failed, look, open_strict};
use crate::verify::{compare_with_lines, file_digest};
use crate::walk::{reopen, walk};
use crate::work::Work;

/// What is to be archived, and as what.
pub(crate) struct Job {
    /// The effect's id, part of every private name.
    pub(crate) effect: String,
    pub(crate) tree: TreePlace,
    pub(crate) tree_root: OwnedFd,
    /// Which folder the plan saw.
    pub(crate) planned: Identity,
    pub(crate) into: FilePlace,
    pub(crate) into_root: OwnedFd,
    pub(crate) format: Format,
    pub(crate) add: Vec<Added>,
    /// Where the tree's root has snapshots.
    pub(crate) snapshots: Option<Snapshots>,
    pub(crate) max_bytes: u64,
    pub(crate) max_entries: u64,
}

/// A file that goes into the archive beside the tree.
pub(crate) struct Added {
    pub(crate) root: OwnedFd,
    pub(crate) file: FilePlace,
    pub(crate) sha256: Option<String>,
}

/// What is kept of a finished archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) effect: String,
    pub(crate) tree_root: String,
    pub(crate) tree: String,
    /// Which folder it was.
    pub(crate) identity: Identity,
    /// The archive's final place.
    pub(crate) archive: FilePlace,
    /// Its file, whatever its name.
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    pub(crate) manifest: Manifest,
}

impl Record {
    fn is_file(&self, stat: &Stat) -> bool {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && (stat.st_dev, stat.st_ino, stat.st_size as u64) == (self.device, self.inode, self.bytes)
    }
}

fn part_name(effect: &str) -> String {
    format!("{effect}.part")
}

fn lines_name(effect: &str) -> String {
    format!("{effect}.manifest")
}

fn effect_record(effect: &str) -> String {
    format!("{effect}.json")
}

fn digest_record(sha256: &str) -> String {
    format!("{sha256}.json")
}

/// The record of the archive that an effect made; nothing when it made none.
pub(crate) fn made_by(into_root: &OwnedFd, effect: &str) -> Result<Option<Record>, Failure> {
    match open_private(into_root, ARCHIVES)? {
        Some(archives) => read_record(&archives, &effect_record(effect)),
        None => Ok(None),
    }
}

/// Whether the recorded archive has its final name.
pub(crate) fn is_named(into_root: &OwnedFd, record: &Record) -> Result<bool, Failure> {
    let (folder, name) = final_folder(into_root, &record.archive)?;
    look(&folder, name)
        .map(|found| found.is_some_and(|stat| record.is_file(&stat)))
        .map_err(|error| failed(format_args!("cannot look at `{}`", record.archive), error))
}

/// The record of the archive with this digest, of a tree beneath this root.
pub(crate) fn with_digest(tree_root: &OwnedFd, sha256: &str) -> Result<Option<Record>, Failure> {
    match open_private(tree_root, DIGESTS)? {
        Some(digests) => read_record(&digests, &digest_record(sha256)),
        None => Ok(None),
    }
}

/// Makes the archive, or goes on where an earlier attempt stopped.
pub(crate) fn make(work: &Work, job: &Job) -> Result<Record, Failure> {
    work.point("before anything")?;
    if let Some(record) = made_by(&job.into_root, &job.effect)? {
        // Held, so that an attempt that is still on its way out does not come in between.
        let _held = Quarantine::open(work, &job.tree_root, &job.effect)?;
        return finish(work, job, record, false);
    }
    let quarantine = Quarantine::make(work, &job.tree_root, &job.effect)?;
    work.point("quarantine is made")?;
    if let Some(record) = made_by(&job.into_root, &job.effect)? {
        return finish(work, job, record, false);
    }
    if quarantine.is_deleting()? {
        let message = format!("`{}` is being deleted and is not archived again", job.tree);
        return Err(Failure::new(FailureKind::Refused, message));
    }
    let (folder, name) = final_folder(&job.into_root, &job.into)?;
    must_be_free(&folder, name, &job.into)?;
    let archives = make_private(&job.into_root, ARCHIVES)?;
    let tree = quarantine.take(work, &job.tree_root, &job.tree, job.planned)?;
    let held = match &job.snapshots {
        Some(snapshots) => Some(snapshots.held(work, &job.effect, &job.tree, job.planned)?),
        None => None,
    };
    work.point("before packing")?;
    let record = pack(work, job, &tree, held.as_ref(), &archives)?;
    // A snapshot that is open cannot be removed.
    drop(held);
    work.point("before the record")?;
    write_record(&archives, &effect_record(&job.effect), &record)?;
    work.point("archive is recorded")?;
    finish(work, job, record, true)
}

/// Packs the tree into a private file, reads it back, and says what is to be recorded.
fn pack(
    work: &Work,
    job: &Job,
    tree: &OwnedFd,
    held: Option<&Held>,
    archives: &OwnedFd,
) -> Result<Record, Failure> {
    let snapshot = held.map(|held| held.name.clone());
    let tree = held.map_or(tree, |held| &held.tree);
    let (part, lines) = (part_name(&job.effect), lines_name(&job.effect));
    // Of an attempt that did not come to its end.
    remove(archives, &part)?;
    remove(archives, &lines)?;
    let fresh = |name: &str| {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        create_strict(archives, name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|error| failed(format_args!("cannot create the archive of `{}`", job.tree), error))
    };
    let file = fresh(&part)?;
    work.point("file is created")?;
    let kept_lines = fresh(&lines)?;
    let lines_again = kept_lines
        .try_clone()
        .map_err(|error| io_failed("cannot keep the archive's manifest open", &error))?;
    let mut packer = Packer::new(work, job.format, file, kept_lines, job.planned.owner, job.max_bytes)?;
    packer.line(&Head {
        tree: job.tree.to_string(),
        owner: job.planned.owner,
        effect: job.effect.clone(),
        snapshot: snapshot.clone(),
    })?;
    walk(work, tree, &job.tree.path.0, job.max_entries, &mut |path, seen| packer.add(path, seen))?;
    for added in &job.add {
        work.point("adding a file")?;
        add_file(work, &mut packer, added)?;
    }
    work.point("before the manifest")?;
    let Packed { manifest, sha256, bytes, file } = packer.finish()?;
    work.point("before the file is synced")?;
    file.sync_all().map_err(|error| io_failed("cannot make the archive durable", &error))?;
    work.point("before reading back")?;
    let found = {
        use std::io::Seek as _;
        let cannot = |error: &std::io::Error| io_failed("cannot read the archive back", error);
        let mut lines = lines_again;
        lines.rewind().map_err(|error| cannot(&error))?;
        let archive = open_strict(archives, &*part, OFlags::RDONLY | OFlags::NOFOLLOW)
            .map_err(|error| failed("cannot read the archive back", error))?;
        compare_with_lines(work, File::from(archive), job.format, lines)?
    };
    found.compare(&manifest)?;
    if (&found.sha256, found.bytes) != (&sha256, bytes) {
        let message = "the archive on disk is not what was written: its digest is another one";
        return Err(Failure::new(FailureKind::Drift, message));
    }
    let stat = fstat(&file).map_err(|error| failed("cannot look at the archive", error))?;
    Ok(Record {
        effect: job.effect.clone(),
        tree_root: job.tree.root.clone(),
        tree: job.tree.path.0.clone(),
        identity: job.planned,
        archive: job.into.clone(),
        device: stat.st_dev,
        inode: stat.st_ino,
        bytes,
        sha256,
        manifest: Manifest { snapshot, ..manifest },
    })
}

/// Adds a file from beside the tree, comparing its digest where one is known.
fn add_file(work: &Work, packer: &mut Packer<'_>, added: &Added) -> Result<(), Failure> {
    use std::os::fd::AsFd as _;
    let file = &added.file;
    let cannot = |error| failed(format_args!("cannot add `{file}` to the archive"), error);
    let fd = open_strict(&added.root, &*file.path.joined(), LOOK).map_err(cannot)?;
    let stat = fstat(&fd).map_err(cannot)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        let what = crate::strict::kind_in_words(&stat);
        let message = format!("cannot add `{file}` to the archive: it is {what}, not a regular file");
        return Err(Failure::new(FailureKind::Refused, message));
    }
    let opened = reopen(fd.as_fd()).map_err(cannot)?;
    if let Some(wanted) = &added.sha256 {
        let again = reopen(fd.as_fd()).map_err(cannot)?;
        let (found, _) = file_digest(work, File::from(again), &file.to_string())?;
        if !found.eq_ignore_ascii_case(wanted) {
            let message = format!("`{file}` has the digest {found}, and should have {wanted}");
            return Err(Failure::new(FailureKind::Drift, message));
        }
    }
    packer.content(format!("{ADDED}/{file}").as_bytes(), opened, &stat)
}

/// Records the archive beside its tree and gives it its final name. `fresh`: it was read back just now.
fn finish(work: &Work, job: &Job, record: Record, fresh: bool) -> Result<Record, Failure> {
    if record.archive != job.into || (&record.tree_root, &record.tree) != (&job.tree.root, &job.tree.path.0) {
        let message = format!("this step has already archived `{}/{}`", record.tree_root, record.tree);
        return Err(Failure::new(FailureKind::Internal, message));
    }
    let archives = make_private(&job.into_root, ARCHIVES)?;
    let part = part_name(&job.effect);
    let (folder, name) = final_folder(&job.into_root, &job.into)?;
    let waiting = look(&archives, &*part).map_err(|error| failed("cannot look for the archive", error))?;
    let unnamed = waiting.as_ref().is_some_and(|stat| record.is_file(stat));
    if !unnamed {
        must_be(work, &folder, name, &record)?;
    } else if !fresh {
        must_be(work, &archives, &part, &record)?;
    }
    // Before the final name: who finds an archive under its name can also delete by its digest.
    if with_digest(&job.tree_root, &record.sha256)?.as_ref() != Some(&record) {
        let digests = make_private(&job.tree_root, DIGESTS)?;
        write_record(&digests, &digest_record(&record.sha256), &record)?;
    }
    // Also before: an archive with its name is a step that is done.
    forget_snapshot(job)?;
    work.point("before the archive is named")?;
    if unnamed {
        renameat_with(&archives, &*part, &folder, name, RenameFlags::NOREPLACE).map_err(
            |error| match error {
                Errno::EXIST => exists(&job.into),
                error => failed(format_args!("cannot name the archive `{}`", job.into), error),
            },
        )?;
        work.point("archive is named")?;
    }
    fsync(&folder).map_err(|error| failed(format_args!("cannot make `{}` durable", job.into), error))?;
    fsync(&archives).map_err(|error| failed("cannot make the private folder durable", error))?;
    work.point("archive is durable")?;
    remove(&archives, &lines_name(&job.effect))?;
    Ok(record)
}

/// Removes the snapshot that was made for this effect, if one was.
fn forget_snapshot(job: &Job) -> Result<(), Failure> {
    job.snapshots.as_ref().map_or(Ok(()), |snapshots| snapshots.forget(&job.effect))
}

/// Checks that a file is the recorded one, to the last byte.
fn must_be(work: &Work, folder: &OwnedFd, name: &str, record: &Record) -> Result<(), Failure> {
    let what = &record.archive;
    let file = match open_strict(folder, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW) {
        Ok(file) => file,
        Err(Errno::NOENT) => {
            let message = format!("the archive `{what}`, which was finished, is not there any more");
            return Err(Failure::new(FailureKind::Drift, message));
        }
        Err(error) => return Err(failed(format_args!("cannot open the archive `{what}`"), error)),
    };
    let stat = fstat(&file).map_err(|error| failed(format_args!("cannot look at `{what}`"), error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        let message = format!("the archive `{what}` is {}, not a file", crate::strict::kind_in_words(&stat));
        return Err(Failure::new(FailureKind::Drift, message));
    }
    let (sha256, bytes) = file_digest(work, File::from(file), &what.to_string())?;
    if sha256 != record.sha256 || bytes != record.bytes {
        let message = format!(
            "the archive `{what}` is not what was written: its digest is {sha256}, and was {}",
            record.sha256
        );
        return Err(Failure::new(FailureKind::Drift, message));
    }
    Ok(())
}

/// Checks the archive that a record speaks of where it finally lies.
pub(crate) fn check_on_disk(work: &Work, into_root: &OwnedFd, record: &Record) -> Result<(), Failure> {
    let (folder, name) = final_folder(into_root, &record.archive)?;
    must_be(work, &folder, name, record)
}

/// The open folder that an archive goes into, and its name there.
pub(crate) fn final_folder<'a>(root: &OwnedFd, file: &'a FilePlace) -> Result<(OwnedFd, &'a str), Failure> {
    let (folder, name) = file.split();
    open_strict(root, &*folder, LISTED)
        .map(|folder| (folder, name))
        .map_err(|error| failed(format_args!("cannot open the folder of `{file}`"), error))
}

/// Fails when something has the archive's name.
pub(crate) fn must_be_free(folder: &OwnedFd, name: &str, file: &FilePlace) -> Result<(), Failure> {
    match look(folder, name) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(exists(file)),
        Err(error) => Err(failed(format_args!("cannot look at `{file}`"), error)),
    }
}

fn exists(file: &FilePlace) -> Failure {
    Failure::new(FailureKind::Drift, format!("`{file}` exists already, and no archive is ever overwritten"))
        .help("keep it under another name, or archive to another one")
}

/// Takes back what [`make`] did: the tree goes back to its place, then the archive is removed. An archive whose tree is
/// not whole and in its place stays.
pub(crate) fn unmake(work: &Work, job: &Job) -> Result<(), Failure> {
    work.point("before undoing")?;
    let quarantine = Quarantine::open(work, &job.tree_root, &job.effect)?;
    if let Some(quarantine) = &quarantine {
        if quarantine.is_deleting()? {
            let message = format!("`{}` is deleted in part; only its archive has all of it", job.tree);
            return Err(Failure::new(FailureKind::Refused, message)
                .help("unpack the archive, or let the deletion finish"));
        }
        if let Some((_, identity)) = quarantine.tree(&job.tree)? {
            same(&job.tree, identity, job.planned)?;
            quarantine.give_back(work, &job.tree_root, &job.tree)?;
        }
    }
    work.point("tree is back")?;
    if let Some(archives) = open_private(&job.into_root, ARCHIVES)? {
        let record: Option<Record> = read_record(&archives, &effect_record(&job.effect))?;
        if let Some(record) = record {
            match open_tree(&job.tree_root, &job.tree)? {
                Some((_, identity)) => same(&job.tree, identity, job.planned)?,
                None => {
                    let message = format!(
                        "`{}` is neither in its place nor in quarantine; its archive stays",
                        job.tree
                    );
                    return Err(Failure::new(FailureKind::Drift, message));
                }
            }
            remove_archive(work, job, &archives, &record)?;
            if let Some(digests) = open_private(&job.tree_root, DIGESTS)? {
                remove(&digests, &digest_record(&record.sha256))?;
            }
            work.point("digest is forgotten")?;
        }
        remove(&archives, &part_name(&job.effect))?;
        remove(&archives, &lines_name(&job.effect))?;
        remove(&archives, &effect_record(&job.effect))?;
        fsync(&archives).map_err(|error| failed("cannot make the private folder durable", error))?;
    }
    forget_snapshot(job)?;
    work.point("before the quarantine is removed")?;
    match quarantine {
        Some(quarantine) => quarantine.remove(),
        None => Ok(()),
    }
}

/// Removes the final archive, if the file there is the recorded one.
fn remove_archive(work: &Work, job: &Job, archives: &OwnedFd, record: &Record) -> Result<(), Failure> {
    let (folder, name) = final_folder(&job.into_root, &record.archive)?;
    let cannot = |error| failed(format_args!("cannot remove the archive `{}`", record.archive), error);
    match look(&folder, name).map_err(cannot)? {
        Some(stat) if record.is_file(&stat) => {}
        // Gone already, or another file that has the name now and is none of ours.
        _ => return Ok(()),
    }
    // Moved first and looked at again, so that no other file is removed that took the name in between.
    let part = part_name(&job.effect);
    renameat_with(&folder, name, archives, &*part, RenameFlags::NOREPLACE).map_err(cannot)?;
    work.point("archive is unnamed")?;
    if !look(archives, &*part).map_err(cannot)?.is_some_and(|stat| record.is_file(&stat)) {
        renameat_with(archives, &*part, &folder, name, RenameFlags::NOREPLACE).map_err(cannot)?;
        let message = format!("`{}` was replaced while it was to be removed; it stays", record.archive);
        return Err(Failure::new(FailureKind::Drift, message));
    }
    fsync(&folder).map_err(cannot)
}
