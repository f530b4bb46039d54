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
//!
//! `making` has that order, and [`SecretPlace`] does the same for small files of credentials. Where the target says `via`,
//! a helper does all of it, and what is written is sent to it: then its reader reads it on its way, and the helper compares
//! the digest of what lies on its disk with that of what was sent.

mod making;
mod secret;

use std::io::{self, Read, Write};
use std::sync::Arc;

use farrier_action::Target;
use farrier_model::{Failure, FailureKind, Value};
use rustix::fs::Stat;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::helper::wire::{Job, WithDigest};
use crate::place::{FilePlace, Segments};
use crate::strict::io_failed;
use crate::target::{Files, FilesTarget};
use crate::work::do_blocking;

pub(crate) use making::{Making, Writing, in_place, made, make, take_away};
pub use secret::{Found, SecretPlace};

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

    /// As plans name it.
    pub fn shown(&self) -> String {
        self.place().to_string()
    }

    fn place(&self) -> FilePlace {
        FilePlace { root: self.root.clone(), path: self.path.clone() }
    }

    fn making(&self, effect: String) -> Making {
        Making { target: self.target.alias().to_owned(), place: self.place(), effect }
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
    let making = into.making(effect);
    match files.via() {
        Some(via) => via.ask(Job::Deposited(making)).await,
        None => making.deposited(files).await,
    }
}

/// Makes the file, or goes on where an earlier attempt stopped.
///
/// `write` writes the content and says what is to be known of it. `check` reads the content back and says the same, or the
/// file does not get its name. Both run in threads that may wait. Writing fails when the step was stopped meanwhile.
pub async fn deposit(
    files: Arc<Files>,
    into: Destination,
    effect: String,
    write: impl FnOnce(&mut (dyn Write + Send)) -> Result<Value, Failure> + Send + 'static,
    check: impl FnOnce(&mut dyn Read) -> Result<Value, Failure> + Send + 'static,
) -> Result<Receipt, Failure> {
    let making = into.making(effect);
    if let Some(via) = files.via() {
        return via.deposit(making, write, check).await;
    }
    let check = |file: &mut dyn Read, about: &Value| agree(&check(file)?, about);
    do_blocking(move |work| make(work, &files, &making, |file| write(file), check)).await
}

/// Compares what was read with what was written.
pub(crate) fn agree(read: &Value, written: &Value) -> Result<(), Failure> {
    if read == written {
        return Ok(());
    }
    let (read, written) = (read.to_json(), written.to_json());
    let message = format!("the new file is not what was written: it is {read}, and was {written}");
    Err(Failure::new(FailureKind::Drift, message))
}

/// Takes back what [`deposit`] did: the file goes if it is the one that was made, then the folders made for it.
pub async fn withdraw(files: Arc<Files>, into: Destination, effect: String) -> Result<(), Failure> {
    let making = into.making(effect);
    match files.via() {
        Some(via) => via.tell(Job::Withdraw(making)).await,
        None => making.withdraw(files).await,
    }
}

/// The file with this digest, read again to its last byte where it lies.
///
/// A digest that no deposit beneath this root has, and a file that is gone or is another one by now, are failures.
pub async fn with_digest(files: Arc<Files>, shelf: Shelf, sha256: String) -> Result<Receipt, Failure> {
    match files.via() {
        Some(via) => via.ask(Job::WithDigest(WithDigest { root: shelf.root, sha256 })).await,
        None => find(files, shelf.root, sha256).await,
    }
}

/// The same here.
pub(crate) async fn find(files: Arc<Files>, root: String, sha256: String) -> Result<Receipt, Failure> {
    do_blocking(move |work| {
        made(work, &files.open(&root)?, &root, &sha256)?
            .map_err(|gone| Failure::new(FailureKind::Refused, gone))
    })
    .await
}
