//! The embedded directory: LDIF files with a directory's behaviour and no server.
//!
//! Read first: [`LdifDirectory`], then [`tree::Tree`] (what a directory holds and refuses) and [`ldif`] (the files).
//!
//! It knows scopes, filters, operational attributes on request, `memberOf`, size limits, the Assertion control, and of
//! the schema as much as keeps a runbook honest (see [`rules`]). It has no access rules; its accounts are the
//! plain `userPassword`s in the files, by which people log in. It does not know which attributes a server's schema lacks or that one character can be written in several ways. One suite runs against it and against OpenLDAP.
//!
//! **Rules.** The files are the truth: each operation sees what is in them now. A write holds a lock on the folder,
//! and replaces a file whole, or not at all; the other records of the file keep their bytes and comments.

pub(crate) mod ldif;
mod rules;
pub(crate) mod tree;

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use farrier_action::world_file::{self, unreadable};
use farrier_model::{Failure, FailureKind, Secret};

use crate::directory::{Attribute, Directory, Each, Edit, Query, Refusal, WritableDirectory, code, fetch};
use crate::dn::Dn;
use crate::filter::Filter;
use tree::{Tree, Written};

/// A directory in an LDIF file, or in all `*.ldif` files of a folder.
#[derive(Clone)]
pub(crate) struct LdifDirectory(Arc<Inner>);

struct Inner {
    path: PathBuf,
    lock_wait: Duration,
    loaded: Mutex<Option<Loaded>>,
}

/// What the files held when they were last read.
#[derive(Clone)]
struct Loaded {
    tree: Arc<Tree>,
    files: Vec<Stamped>,
}

/// A file, and what tells whether it is still the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamped {
    path: PathBuf,
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
}

impl Stamped {
    fn of(path: PathBuf) -> Result<Stamped, Failure> {
        let metadata = std::fs::metadata(&path).map_err(|error| unreadable(&path, &error))?;
        Ok(Stamped::with(path, &metadata))
    }

    fn with(path: PathBuf, metadata: &Metadata) -> Stamped {
        Stamped { inode: metadata.ino(), length: metadata.len(), modified: metadata.modified().ok(), path }
    }
}

impl LdifDirectory {
    /// Reads the files once, so that mistakes in them show at once.
    pub(crate) fn open(path: &Path, lock_wait: Duration) -> Result<LdifDirectory, Failure> {
        let inner = Inner { path: path.to_owned(), lock_wait, loaded: Mutex::new(None) };
        inner.current()?;
        Ok(LdifDirectory(Arc::new(inner)))
    }

    async fn current(&self) -> Result<Arc<Tree>, Failure> {
        let inner = self.0.clone();
        blocking(move || inner.current().map(|loaded| loaded.tree)).await
    }

    async fn write(
        &self,
        change: impl FnOnce(&mut Tree) -> Result<Written, Refusal> + Send + 'static,
    ) -> Result<(), Refusal> {
        let inner = self.0.clone();
        blocking(move || Ok(inner.write(change))).await?
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Failure::new(FailureKind::Internal, format!("the embedded directory stopped: {error}"))
    })?
}

#[async_trait]
impl Directory for LdifDirectory {
    async fn search(&self, query: &Query, each: &mut Each<'_>) -> Result<(), Refusal> {
        let tree = self.current().await?;
        tree.search(query, each)
    }

    /// Passwords stand in the files as they are. What is hashed there opens nothing, and neither does an account that is locked.
    async fn accepts(&self, dn: &Dn, password: &Secret) -> Result<bool, Failure> {
        let wanted = ["userPassword", "pwdAccountLockedTime"].map(ToOwned::to_owned).to_vec();
        let Some(entry) = fetch(self, dn, wanted).await? else { return Ok(false) };
        let is_theirs = |value: &Vec<u8>| !value.starts_with(b"{") && value == password.reveal().as_bytes();
        let is_locked = !entry.values("pwdAccountLockedTime").is_empty();
        Ok(!is_locked && !password.reveal().is_empty() && entry.values("userPassword").iter().any(is_theirs))
    }
}

#[async_trait]
impl WritableDirectory for LdifDirectory {
    fn asserts(&self) -> bool {
        true
    }

    async fn modify(&self, dn: &Dn, edits: &[Edit], only_if: Option<&Filter>) -> Result<(), Refusal> {
        let (dn, edits, only_if) = (dn.clone(), edits.to_vec(), only_if.cloned());
        self.write(move |tree| tree.modify(&dn, &edits, only_if.as_ref())).await
    }

    async fn add(&self, dn: &Dn, attributes: &[Attribute]) -> Result<(), Refusal> {
        let (dn, attributes) = (dn.clone(), attributes.to_vec());
        self.write(move |tree| tree.add(&dn, attributes)).await
    }

    async fn delete(&self, dn: &Dn, only_if: Option<&Filter>) -> Result<(), Refusal> {
        let (dn, only_if) = (dn.clone(), only_if.cloned());
        self.write(move |tree| tree.delete(&dn, only_if.as_ref())).await
    }
}

impl Inner {
    /// What the files hold now.
    fn current(&self) -> Result<Loaded, Failure> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let files = self.files()?;
        if let Some(known) = &*loaded
            && known.files == files
        {
            return Ok(known.clone());
        }
        let mut tree = Tree::default();
        for (number, file) in files.iter().enumerate() {
            let shown = file.path.display();
            let text = std::fs::read_to_string(&file.path).map_err(|error| unreadable(&file.path, &error))?;
            let records = ldif::read(&text).map_err(|(line, reason)| {
                Failure::new(FailureKind::Input, format!("{shown}, line {line}: {reason}"))
            })?;
            for record in records {
                let line = record.line;
                tree.load(record, number, file.modified).map_err(|reason| {
                    Failure::new(FailureKind::Input, format!("{shown}, line {line}: {reason}"))
                })?;
            }
        }
        Ok(loaded.insert(Loaded { tree: Arc::new(tree), files }).clone())
    }

    /// The files, in order of their names.
    fn files(&self) -> Result<Vec<Stamped>, Failure> {
        let mut paths = Vec::new();
        if self.path.is_dir() {
            for item in std::fs::read_dir(&self.path).map_err(|error| unreadable(&self.path, &error))? {
                let path = item.map_err(|error| unreadable(&self.path, &error))?.path();
                if path.extension().is_some_and(|extension| extension == "ldif") {
                    paths.push(path);
                }
            }
            paths.sort();
            if paths.is_empty() {
                return Err(Failure::new(
                    FailureKind::Input,
                    format!("there is no `*.ldif` in {}", self.path.display()),
                ));
            }
        } else {
            paths.push(self.path.clone());
        }
        paths.into_iter().map(Stamped::of).collect()
    }

    fn write(&self, change: impl FnOnce(&mut Tree) -> Result<Written, Refusal>) -> Result<(), Refusal> {
        let _lock = world_file::lock(&self.path, self.lock_wait)?;
        let Loaded { mut tree, mut files } = self.current()?;
        // Nobody else may see the change before it is on disk, and a failure must leave nothing of it behind.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).take();
        let changed = Arc::make_mut(&mut tree);
        let outcome = change(changed);
        let keep = |tree: Arc<Tree>, files: Vec<Stamped>| {
            *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Loaded { tree, files });
        };
        let written = match outcome {
            // A refused change has not touched the tree.
            Err(refusal) => {
                keep(tree, files);
                return Err(refusal);
            }
            Ok(written) => written,
        };
        let path = files[written.file].path.clone();
        let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))?;
        // Someone without the lock, an editor for instance, may have saved the file since it was loaded.
        let as_loaded = Stamped::of(path.clone())? == files[written.file];
        let text =
            ldif::replace(&text, &written.dn, written.attributes.as_deref()).map_err(|(line, reason)| {
                Failure::new(FailureKind::Input, format!("{}, line {line}: {reason}", path.display()))
            })?;
        let metadata = world_file::replace(&path, &text).map_err(|error| {
            Failure::new(FailureKind::Unreachable, format!("cannot write {}: {error}", path.display()))
        })?;
        if as_loaded {
            files[written.file] = Stamped::with(path, &metadata);
            keep(tree, files);
        }
        Ok(())
    }
}

/// A refusal with a result code.
fn refuse(code: u32, doing: &str, text: &str) -> Refusal {
    Refusal::of_code(code, doing, text, "")
}

/// The base or the object of a request does not exist.
fn no_such_object(doing: &str, matched: &str) -> Refusal {
    Refusal::of_code(code::NO_SUCH_OBJECT, doing, "", matched)
}
