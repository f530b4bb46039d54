//! Files that steps of other plugins make, such as the dump of a database.
//!
//! Another plugin's action has a [`Destination`] in its input, `into: { target: homes, root: staging, path: [a, b] }`, and
//! hands what it writes to [`deposit`]. It gets what archives get: no link is followed, nothing is ever overwritten, and
//! nobody meets half a file. The order is what makes a crash harmless:
//!
//! 1. the content goes into a private file under the effect's id, which is synced, read back and checked;
//! 2. it is recorded, by the effect's id and by its digest;
//! 3. the private file takes its final name, which must be free.
//!
//! An attempt that finds a record makes no second file: it goes on with 3 or is done.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use farrier_action::Target;
use farrier_model::{Failure, FailureKind, Secret, Value};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, fchmod, fchown, fstat, fsync, mkdirat,
    renameat_with, unlinkat,
};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::place::{FilePlace, Segments};
use crate::private::{
    make_own, make_private, open_own, open_private, read_record, remove, sync_folder, write_record,
};
use crate::store::{final_folder, must_be_free};
use crate::strict::{FOLDER, LISTED, create_strict, failed, io_failed, look, open_strict};
use crate::target::{Files, FilesTarget};
use crate::verify::file_digest;
use crate::work::{Work, do_blocking};

/// Files of other plugins: what is known of them, and what is on its way.
const DEPOSITS: &str = "deposits";
/// In the folder of an effect: the file until it takes its place.
const PART: &str = "part";
/// In the folder of an effect: what is known of the file that it made.
const RECEIPT: &str = "receipt.json";

/// Where a step of another plugin puts a file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// The target with the folders.
    target: Target<FilesTarget>,
    /// The root, one of those that the environment names.
    root: String,
    /// The path beneath it, as a list of segments. Folders on the way that are not there are made, for Farrier's account
    /// alone.
    path: Segments,
}

/// A folder whose deposits are looked up by digest.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shelf {
    /// The target with the folders.
    target: Target<FilesTarget>,
    /// The root, one of those that the environment names.
    root: String,
}

/// A file that a step of another plugin made. `files.archive` takes it as it is under `add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deposited {
    /// The target with the folders.
    pub target: String,
    /// The root.
    pub root: String,
    /// The path beneath it.
    #[schemars(with = "Vec<String>")]
    path: Segments,
    /// The SHA-256 of the file.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

/// What is kept of a deposited file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Where it lies, and what it is.
    pub file: Deposited,
    /// What its maker says of it.
    pub about: Value,
    device: u64,
    inode: u64,
    /// The step that made it.
    effect: String,
    /// Folders that were made for it, the outermost first.
    folders: Vec<String>,
}

impl Destination {
    /// The target with the folders.
    pub fn target(&self) -> &Target<FilesTarget> {
        &self.target
    }

    /// The path's last segment.
    pub fn name(&self) -> &str {
        self.path.0.last().map_or("", String::as_str)
    }

    fn place(&self) -> FilePlace {
        FilePlace { root: self.root.clone(), path: self.path.clone() }
    }

    /// As plans name it.
    pub fn shown(&self) -> String {
        self.place().to_string()
    }
}

impl Shelf {
    /// The target with the folders.
    pub fn target(&self) -> &Target<FilesTarget> {
        &self.target
    }
}

impl Receipt {
    fn place(&self) -> FilePlace {
        FilePlace { root: self.file.root.clone(), path: self.file.path.clone() }
    }

    /// As plans name it.
    pub(crate) fn shown(&self) -> String {
        self.place().to_string()
    }

    /// The step that made it.
    pub(crate) fn effect(&self) -> &str {
        &self.effect
    }

    fn is_file(&self, stat: &Stat) -> bool {
        (stat.st_dev, stat.st_ino, stat.st_size as u64) == (self.device, self.inode, self.file.bytes)
    }
}

/// A disk's error while `doing` something, sorted into our kinds.
pub fn disk_failure(doing: impl std::fmt::Display, error: &io::Error) -> Failure {
    io_failed(doing, error)
}

/// The file that this step made and that has its name; nothing when there is none yet. When the name is taken by
/// something else, the step cannot succeed and the failure says so.
pub async fn deposited(
    files: Arc<Files>,
    into: Destination,
    effect: String,
) -> Result<Option<Receipt>, Failure> {
    do_blocking(move |_| {
        let root = files.open(&into.root)?;
        let receipt = match own_folder(&root, &effect)? {
            Some(own) => read_record::<Receipt>(&own, RECEIPT)?,
            None => None,
        };
        let Some((folder, name)) = existing_folder(&root, &into.place())? else { return Ok(None) };
        if let Some(receipt) = receipt {
            same_place(&receipt, &into)?;
            let found = look(&folder, name.as_str())
                .map_err(|error| failed(format_args!("cannot look at `{}`", into.shown()), error))?;
            if found.is_some_and(|stat| receipt.is_file(&stat)) {
                return Ok(Some(receipt));
            }
        }
        must_be_free(&folder, &name, &into.place())
            .map_err(|failure| Failure { kind: FailureKind::Refused, ..failure })?;
        Ok(None)
    })
    .await
}

/// Makes the file, or goes on where an earlier attempt stopped.
///
/// `write` writes the content and says what is to be known of it; `check` reads it back from the disk. Both run in a
/// thread that may wait. Writing fails when the step was stopped meanwhile.
pub async fn deposit(
    files: Arc<Files>,
    into: Destination,
    effect: String,
    write: impl FnOnce(&mut (dyn Write + Send)) -> Result<Value, Failure> + Send + 'static,
    check: impl FnOnce(&mut dyn Read, &Value) -> Result<(), Failure> + Send + 'static,
) -> Result<Receipt, Failure> {
    do_blocking(move |work| {
        let root = files.open(&into.root)?;
        let own = make_own(make_private(&root, DEPOSITS)?, &effect)?;
        crate::strict::lock(work, &own, format_args!("the making of `{}`", into.shown()))?;
        if let Some(receipt) = read_record::<Receipt>(&own, RECEIPT)? {
            same_place(&receipt, &into)?;
            return place(work, &root, &own, &receipt).map(|()| receipt);
        }
        work.point("before the deposit")?;
        if let Some((folder, name)) = existing_folder(&root, &into.place())? {
            must_be_free(&folder, &name, &into.place())?;
        }
        // Of an attempt that did not come to its end.
        remove(&own, PART)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = create_strict(&own, PART, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|error| failed(format_args!("cannot create `{}`", into.shown()), error))?;
        let mut writing = Writing { work, file, sha256: Sha256::new(), bytes: 0 };
        let about = write(&mut writing)?;
        let Writing { file, sha256, bytes, .. } = writing;
        let sha256 = hex::encode(sha256.finalize());
        work.point("deposit is written")?;
        file.sync_all()
            .map_err(|error| io_failed(format_args!("cannot write `{}`", into.shown()), &error))?;
        read_back(work, &file, &sha256, &about, check)?;
        work.point("deposit is checked")?;
        let stat = fstat(&file).map_err(|error| failed("cannot look at the new file", error))?;
        let (target, path) = (into.target.alias().to_owned(), into.path.clone());
        let receipt = Receipt {
            file: Deposited { target, root: into.root.clone(), path, sha256, bytes },
            about,
            device: stat.st_dev,
            inode: stat.st_ino,
            effect: effect.clone(),
            folders: missing_folders(&root, &into.place())?,
        };
        write_record(&own, RECEIPT, &receipt)?;
        work.point("deposit is recorded")?;
        place(work, &root, &own, &receipt)?;
        Ok(receipt)
    })
    .await
}

/// Takes back what [`deposit`] did: the file goes if it is the one that was made, then the folders made for it.
pub async fn withdraw(files: Arc<Files>, into: Destination, effect: String) -> Result<(), Failure> {
    do_blocking(move |work| take_away(work, &files.open(&into.root)?, &effect, &into.shown())).await
}

/// Removes what the effect made, shown as `shown`, and what is known of it.
pub(crate) fn take_away(work: &Work, root: &OwnedFd, effect: &str, shown: &str) -> Result<(), Failure> {
    let Some(own) = own_folder(root, effect)? else { return Ok(()) };
    crate::strict::lock(work, &own, format_args!("the making of `{shown}`"))?;
    let cannot = |error| failed(format_args!("cannot remove `{shown}`"), error);
    if let Some(receipt) = read_record::<Receipt>(&own, RECEIPT)? {
        if let Some((folder, name)) = existing_folder(root, &receipt.place())?
            && look(&folder, name.as_str()).map_err(cannot)?.is_some_and(|stat| receipt.is_file(&stat))
        {
            // Moved first and looked at again, so that no other file is removed that took the name in between.
            renameat_with(&folder, name.as_str(), &own, PART, RenameFlags::NOREPLACE).map_err(cannot)?;
            if !look(&own, PART).map_err(cannot)?.is_some_and(|stat| receipt.is_file(&stat)) {
                renameat_with(&own, PART, &folder, name.as_str(), RenameFlags::NOREPLACE).map_err(cannot)?;
                let message = format!("`{shown}` was replaced while it was to be removed; it stays");
                return Err(Failure::new(FailureKind::Drift, message));
            }
            fsync(&folder).map_err(cannot)?;
        }
        for made in receipt.folders.iter().rev() {
            // One that holds something by now stays.
            let _ = unlinkat(root, made.as_str(), AtFlags::REMOVEDIR);
        }
        let digest = by_digest(&receipt.file.sha256);
        if with_name(root, &digest)?.is_some_and(|known| known.effect == effect)
            && let Some(deposits) = open_private(root, DEPOSITS)?
        {
            remove(&deposits, &digest)?;
        }
    }
    remove(&own, PART)?;
    remove(&own, RECEIPT)?;
    let Some(deposits) = open_private(root, DEPOSITS)? else { return Ok(()) };
    unlinkat(&deposits, effect, AtFlags::REMOVEDIR)
        .and_then(|()| fsync(&deposits))
        .map_err(|error| failed("cannot tidy the private folder", error))
}

/// The file with this digest, read again to its last byte where it lies.
///
/// A digest that no deposit beneath this root has, and a file that is gone or is another one by now, are failures.
pub async fn with_digest(files: Arc<Files>, shelf: Shelf, sha256: String) -> Result<Receipt, Failure> {
    do_blocking(move |work| {
        made(work, &files.open(&shelf.root)?, &shelf.root, &sha256)?
            .map_err(|gone| Failure::new(FailureKind::Refused, gone))
    })
    .await
}

/// The file with this digest, or why there is none any more.
pub(crate) fn made(
    work: &Work,
    root: &OwnedFd,
    name_of_root: &str,
    sha256: &str,
) -> Result<Result<Receipt, String>, Failure> {
    if !crate::archive::is_digest(sha256) {
        return Err(Failure::new(
            FailureKind::Input,
            format!("`{}` is not a SHA-256 in hexadecimal digits", sha256.escape_debug()),
        ));
    }
    let sha256 = sha256.to_ascii_lowercase();
    let Some(receipt) = with_name(root, &by_digest(&sha256))? else {
        return Ok(Err(format!("no file beneath `{name_of_root}` was made with the digest {sha256}")));
    };
    let place = receipt.place();
    let gone = || format!("`{place}`, which was made, is not there any more");
    let Some((folder, name)) = existing_folder(root, &place)? else { return Ok(Err(gone())) };
    let file = match open_strict(&folder, name.as_str(), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW)
    {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(Err(gone())),
        Err(error) => return Err(failed(format_args!("cannot open `{place}`"), error)),
    };
    let (found, _) = file_digest(work, file, &place.to_string())?;
    if found != sha256 {
        let message = format!("`{place}` is not what was written: its digest is {found}, and was {sha256}");
        return Err(Failure::new(FailureKind::Drift, message));
    }
    Ok(Ok(receipt))
}

/// Whether the very file that was made has its place still, and not a copy of it.
pub(crate) fn in_place(root: &OwnedFd, receipt: &Receipt) -> Result<bool, Failure> {
    let Some((folder, name)) = existing_folder(root, &receipt.place())? else { return Ok(false) };
    let found = look(&folder, name.as_str())
        .map_err(|error| failed(format_args!("cannot look at `{}`", receipt.place()), error))?;
    Ok(found.is_some_and(|stat| receipt.is_file(&stat)))
}

fn by_digest(sha256: &str) -> String {
    format!("sha256-{sha256}.json")
}

/// The folder of an effect, if it has begun.
fn own_folder(root: &OwnedFd, effect: &str) -> Result<Option<OwnedFd>, Failure> {
    match open_private(root, DEPOSITS)? {
        Some(deposits) => open_own(&deposits, effect),
        None => Ok(None),
    }
}

fn with_name(root: &OwnedFd, name: &str) -> Result<Option<Receipt>, Failure> {
    match open_private(root, DEPOSITS)? {
        Some(deposits) => read_record(&deposits, name),
        None => Ok(None),
    }
}

/// The folder of a file and its name there; nothing when the folder is not there.
fn existing_folder(root: &OwnedFd, file: &FilePlace) -> Result<Option<(OwnedFd, String)>, Failure> {
    let (folder, name) = file.split();
    match open_strict(root, &*folder, LISTED) {
        Ok(folder) => Ok(Some((folder, name.to_owned()))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(failed(format_args!("cannot open the folder of `{file}`"), error)),
    }
}

/// The folders on the way to a file that are not there, the outermost first.
fn missing_folders(root: &OwnedFd, file: &FilePlace) -> Result<Vec<String>, Failure> {
    let mut missing = Vec::new();
    for count in 1..file.path.0.len() {
        let folder = file.path.0[..count].join("/");
        match open_strict(root, &*folder, FOLDER) {
            Ok(_) => {}
            Err(Errno::NOENT) => missing.push(folder),
            Err(error) => return Err(failed(format_args!("cannot open the folder of `{file}`"), error)),
        }
    }
    Ok(missing)
}

/// Fails when the step's file went to another place: a step makes one file.
fn same_place(receipt: &Receipt, into: &Destination) -> Result<(), Failure> {
    if receipt.place() == into.place() {
        return Ok(());
    }
    let message = format!("this step has already made `{}`", receipt.place());
    Err(Failure::new(FailureKind::Internal, message))
}

/// Gives the private file its final name, unless it has it.
fn place(work: &Work, root: &OwnedFd, own: &OwnedFd, receipt: &Receipt) -> Result<(), Failure> {
    let file = receipt.place();
    // Before the final name: who finds a file under its name can also find it by its digest.
    let digest = by_digest(&receipt.file.sha256);
    if with_name(root, &digest)?.as_ref() != Some(receipt) {
        write_record(&make_private(root, DEPOSITS)?, &digest, receipt)?;
    }
    let waiting = look(own, PART).map_err(|error| failed("cannot look for the new file", error))?;
    if waiting.is_some_and(|stat| receipt.is_file(&stat)) {
        for count in 1..file.path.0.len() {
            let (parent, name) = (file.path.0[..count - 1].join("/"), &file.path.0[count - 1]);
            let parent = if parent.is_empty() { ".".to_owned() } else { parent };
            let cannot = |error| failed(format_args!("cannot make the folder of `{file}`"), error);
            let parent = open_strict(root, &*parent, LISTED).map_err(cannot)?;
            match mkdirat(&parent, name.as_str(), Mode::RWXU) {
                Ok(()) => sync_folder(&parent, name)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(cannot(error)),
            }
        }
        let (folder, name) = final_folder(root, &file)?;
        work.point("before the deposit is named")?;
        renameat_with(own, PART, &folder, name, RenameFlags::NOREPLACE).map_err(|error| match error {
            Errno::EXIST => {
                Failure::new(FailureKind::Drift, format!("`{file}` exists already, and is never overwritten"))
            }
            error => failed(format_args!("cannot name `{file}`"), error),
        })?;
        work.point("deposit is named")?;
        fsync(&folder).map_err(|error| failed(format_args!("cannot make `{file}` durable"), error))?;
    }
    let (folder, name) = final_folder(root, &file)?;
    let found = open_strict(&folder, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW)
        .map_err(|error| failed(format_args!("cannot open `{file}`"), error))?;
    let stat = fstat(&found).map_err(|error| failed(format_args!("cannot look at `{file}`"), error))?;
    if !receipt.is_file(&stat) {
        let message = format!("`{file}` is not the file that this step made");
        return Err(Failure::new(FailureKind::Drift, message));
    }
    fsync(own).map_err(|error| failed("cannot make the private folder durable", error))
}

/// Reads the file from the disk and compares its digest with that of what was written.
fn read_back(
    work: &Work,
    file: &File,
    sha256: &str,
    about: &Value,
    check: impl FnOnce(&mut dyn Read, &Value) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let cannot = |error: &io::Error| io_failed("cannot read the new file back", error);
    let mut again = file.try_clone().map_err(|error| cannot(&error))?;
    again.rewind().map_err(|error| cannot(&error))?;
    check(&mut again, about)?;
    again.rewind().map_err(|error| cannot(&error))?;
    let (found, _) = file_digest(work, again, "the new file")?;
    if found != sha256 {
        let message = "the file on disk is not what was written: its digest is another one";
        return Err(Failure::new(FailureKind::Drift, message));
    }
    Ok(())
}

/// Counts and digests what goes by.
struct Writing<'w> {
    work: &'w Work,
    file: File,
    sha256: Sha256,
    bytes: u64,
}

impl Write for Writing<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.work.check().map_err(|failure| io::Error::other(failure.message))?;
        let written = self.file.write(buffer)?;
        self.sha256.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Where a small file with a secret goes, such as a tool's file with credentials.
#[derive(Debug, Clone)]
pub struct SecretPlace {
    /// The root, and the path beneath it.
    place: FilePlace,
    /// The number of the account and group that it is to belong to.
    owner: Option<u32>,
}

/// What lies there.
#[derive(Debug)]
pub enum Found {
    /// The folder is not there.
    NoFolder,
    /// Nothing yet.
    Nothing,
    /// A file of text.
    Text(Secret),
}

/// Longer files hold no credentials.
const SECRET_BYTES: u64 = 16 << 10;

impl SecretPlace {
    /// A place beneath a root, as checked segments.
    ///
    /// # Errors
    /// [`FailureKind::Input`] when the path would lead elsewhere.
    pub fn new(root: &str, path: &Value, owner: Option<u32>) -> Result<SecretPlace, Failure> {
        let path =
            path.read::<Segments>().map_err(|error| Failure::new(FailureKind::Input, error.to_string()))?;
        Ok(SecretPlace { place: FilePlace { root: root.to_owned(), path }, owner })
    }

    /// As plans name it.
    pub fn shown(&self) -> String {
        self.place.to_string()
    }

    /// Reads what lies there, through no link.
    ///
    /// # Errors
    /// What lies there is no small text file, or cannot be read.
    pub async fn look(&self, files: Arc<Files>) -> Result<Found, Failure> {
        let place = self.place.clone();
        do_blocking(move |_| {
            let root = files.open(&place.root)?;
            match existing_folder(&root, &place)? {
                Some((folder, name)) => read_secret(&folder, &name, &place),
                None => Ok(Found::NoFolder),
            }
        })
        .await
    }

    /// Makes the file, for its owner to read and nobody to write, unless something lies there by now.
    ///
    /// # Errors
    /// [`FailureKind::Drift`] when something does.
    pub async fn make(&self, files: Arc<Files>, effect: String, content: Secret) -> Result<(), Failure> {
        let this = self.clone();
        do_blocking(move |work| {
            let place = &this.place;
            let root = files.open(&place.root)?;
            let (folder, name) = final_folder(&root, place)?;
            let own = make_own(make_private(&root, DEPOSITS)?, &effect)?;
            crate::strict::lock(work, &own, format_args!("the making of `{place}`"))?;
            remove(&own, PART)?;
            let cannot = |error| failed(format_args!("cannot write `{place}`"), error);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            let file = create_strict(&own, PART, flags, Mode::RUSR | Mode::WUSR).map_err(cannot)?;
            let mut file = File::from(file);
            file.write_all(content.reveal().as_bytes())
                .map_err(|error| io_failed(format_args!("cannot write `{place}`"), &error))?;
            if let Some(owner) = this.owner.filter(|_| rustix::process::geteuid().is_root()) {
                fchown(&file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner))).map_err(cannot)?;
            }
            fchmod(&file, Mode::RUSR | Mode::RGRP).map_err(cannot)?;
            file.sync_all().map_err(|error| io_failed(format_args!("cannot write `{place}`"), &error))?;
            renameat_with(&own, PART, &folder, name, RenameFlags::NOREPLACE).map_err(
                |error| match error {
                    Errno::EXIST => Failure::new(
                        FailureKind::Drift,
                        format!("`{place}` exists already, and is never overwritten"),
                    ),
                    error => cannot(error),
                },
            )?;
            fsync(&folder).map_err(cannot)
        })
        .await
    }

    /// Removes the file, if it holds what `is_ours` knows.
    ///
    /// # Errors
    /// It cannot be read or removed.
    pub async fn remove(
        &self,
        files: Arc<Files>,
        is_ours: impl FnOnce(&Secret) -> bool + Send + 'static,
    ) -> Result<(), Failure> {
        let place = self.place.clone();
        do_blocking(move |_| {
            let root = files.open(&place.root)?;
            let Some((folder, name)) = existing_folder(&root, &place)? else { return Ok(()) };
            match read_secret(&folder, &name, &place)? {
                Found::Text(text) if is_ours(&text) => unlinkat(&folder, name.as_str(), AtFlags::empty())
                    .and_then(|()| fsync(&folder))
                    .map_err(|error| failed(format_args!("cannot remove `{place}`"), error)),
                _ => Ok(()),
            }
        })
        .await
    }
}

fn read_secret(folder: &OwnedFd, name: &str, place: &FilePlace) -> Result<Found, Failure> {
    let refused = |why: &str| Failure::new(FailureKind::Refused, format!("`{place}` {why}"));
    let file = match open_strict(folder, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(error) => return Err(failed(format_args!("cannot open `{place}`"), error)),
    };
    let stat = fstat(&file).map_err(|error| failed(format_args!("cannot look at `{place}`"), error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size as u64 > SECRET_BYTES {
        return Err(refused("is no small file of text"));
    }
    let mut text = String::new();
    File::from(file)
        .take(SECRET_BYTES)
        .read_to_string(&mut text)
        .map_err(|_| refused("is no small file of text"))?;
    Ok(Found::Text(Secret::new(text)))
}
