//! How a file is made, and found again. Nothing here knows of other plugins or of runs.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use farrier_model::{Failure, FailureKind, Value};
use rustix::fs::{
    Advice, AtFlags, Mode, OFlags, RenameFlags, fadvise, fstat, fsync, mkdirat, renameat_with, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Deposited, Receipt};
use crate::pack::Hashing;
use crate::place::FilePlace;
use crate::private::{
    make_own, make_private, open_own, open_private, read_record, remove, sync_folder, write_record,
};
use crate::store::{final_folder, must_be_free};
use crate::strict::{FOLDER, LISTED, create_strict, failed, io_failed, look, open_strict};
use crate::target::Files;
use crate::verify::file_digest;
use crate::work::{Work, do_blocking};

/// Files of other plugins: what is known of them, and what is on its way.
pub(super) const DEPOSITS: &str = "deposits";
/// In the folder of an effect: the file until it takes its place.
pub(super) const PART: &str = "part";
/// In the folder of an effect: what is known of the file that it made.
const RECEIPT: &str = "receipt.json";

/// A file that a step makes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Making {
    /// What the runbook calls the target, for the receipt.
    pub(crate) target: String,
    pub(crate) place: FilePlace,
    pub(crate) effect: String,
}

impl Making {
    /// The file, if it was made and has its name.
    pub(crate) async fn deposited(self, files: Arc<Files>) -> Result<Option<Receipt>, Failure> {
        do_blocking(move |_| {
            let place = &self.place;
            let root = files.open(&place.root)?;
            let receipt = match own_folder(&root, &self.effect)? {
                Some(own) => read_record::<Receipt>(&own, RECEIPT)?,
                None => None,
            };
            let Some((folder, name)) = existing_folder(&root, place)? else { return Ok(None) };
            if let Some(receipt) = receipt {
                same_place(&receipt, place)?;
                let found = look(&folder, name.as_str())
                    .map_err(|error| failed(format_args!("cannot look at `{place}`"), error))?;
                if found.is_some_and(|stat| receipt.is_file(&stat)) {
                    return Ok(Some(receipt));
                }
            }
            must_be_free(&folder, &name, place)
                .map_err(|failure| Failure { kind: FailureKind::Refused, ..failure })?;
            Ok(None)
        })
        .await
    }

    /// Takes it away again.
    pub(crate) async fn withdraw(self, files: Arc<Files>) -> Result<(), Failure> {
        do_blocking(move |work| {
            take_away(work, &files.open(&self.place.root)?, &self.effect, &self.place.to_string())
        })
        .await
    }

    /// A disk's error while it is written.
    pub(crate) fn unwritten(&self, error: &io::Error) -> Failure {
        io_failed(format_args!("cannot write `{}`", self.place), error)
    }
}

/// Makes the file, or goes on where an earlier attempt stopped. `write` is not called when there is no need to.
pub(crate) fn make(
    work: &Work,
    files: &Files,
    making: &Making,
    write: impl FnOnce(&mut Writing<'_>) -> Result<Value, Failure>,
    check: impl FnOnce(&mut dyn Read, &Value) -> Result<(), Failure>,
) -> Result<Receipt, Failure> {
    let Making { target, place: at, effect } = making;
    let root = files.open(&at.root)?;
    let own = make_own(make_private(&root, DEPOSITS)?, effect)?;
    crate::strict::lock(work, &own, format_args!("the making of `{at}`"))?;
    if let Some(receipt) = read_record::<Receipt>(&own, RECEIPT)? {
        same_place(&receipt, at)?;
        return place(work, &root, &own, &receipt).map(|()| receipt);
    }
    work.point("before the deposit")?;
    if let Some((folder, name)) = existing_folder(&root, at)? {
        must_be_free(&folder, &name, at)?;
    }
    // Of an attempt that did not come to its end.
    remove(&own, PART)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let file = create_strict(&own, PART, flags, Mode::RUSR | Mode::WUSR)
        .map(File::from)
        .map_err(|error| failed(format_args!("cannot create `{at}`"), error))?;
    let mut writing = Writing { work, file, sha256: Sha256::new(), bytes: 0 };
    let about = write(&mut writing)?;
    let sha256 = writing.digest();
    let Writing { file, bytes, .. } = writing;
    work.point("deposit is written")?;
    file.sync_all().map_err(|error| making.unwritten(&error))?;
    read_back(work, &file, &sha256, &about, check)?;
    work.point("deposit is checked")?;
    let stat = fstat(&file).map_err(|error| failed("cannot look at the new file", error))?;
    let file =
        Deposited { target: target.clone(), root: at.root.clone(), path: at.path.clone(), sha256, bytes };
    let receipt = Receipt {
        file,
        about,
        device: stat.st_dev,
        inode: stat.st_ino,
        effect: effect.clone(),
        folders: missing_folders(&root, at)?,
    };
    write_record(&own, RECEIPT, &receipt)?;
    work.point("deposit is recorded")?;
    place(work, &root, &own, &receipt)?;
    Ok(receipt)
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
pub(super) fn existing_folder(
    root: &OwnedFd,
    file: &FilePlace,
) -> Result<Option<(OwnedFd, String)>, Failure> {
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
fn same_place(receipt: &Receipt, place: &FilePlace) -> Result<(), Failure> {
    if receipt.place() == *place {
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

/// Reads the file from the disk, has it checked, and compares its digest with that of what was written.
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
    // Read what is on disk, as far as the kernel lets us, and not what was just written to memory.
    let _ = fadvise(&again, 0, None, Advice::DontNeed);
    let mut again = Hashing::new(again);
    check(&mut again, about)?;
    let mut rest = vec![0; 128 << 10];
    loop {
        work.check()?;
        match again.read(&mut rest) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(cannot(&error)),
        }
    }
    if again.digest() != sha256 {
        let message = "the file on disk is not what was written: its digest is another one";
        return Err(Failure::new(FailureKind::Drift, message));
    }
    Ok(())
}

/// Counts and digests what goes by.
pub(crate) struct Writing<'w> {
    work: &'w Work,
    file: File,
    sha256: Sha256,
    bytes: u64,
}

impl Writing<'_> {
    /// Of all that was written so far.
    pub(crate) fn digest(&self) -> String {
        hex::encode(self.sha256.clone().finalize())
    }
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
