//! The target kind `files`.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use farrier_action::{ConnectCx, TargetKind};
use farrier_model::{Failure, FailureKind};
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::helper::roots::Folders;
use crate::helper::via::{Via, ViaConfig};
use crate::pool;
use crate::snapshot::{self, Snapshots};

/// Folders of this machine (local or mounted), under names that runbooks use.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesConfig {
    /// Each root's name and folder. A relative folder starts at the environment's file. Left out with `via`.
    #[serde(default)]
    roots: BTreeMap<String, String>,
    /// By root, the folder with the snapshots that its file system keeps, or that folder, `/*/` and where the root is in each:
    /// `/srv/tools/.zfs/snapshot`, `/srv/snapshots/*/tools`. Trees of such a root are archived from a snapshot.
    #[serde(default)]
    snapshots: BTreeMap<String, String>,
    /// For stand-ins, whose folders are copies and belong to whoever copied them: by root and folder name, the number
    /// of the account that owns it in the world it stands for.
    #[serde(default)]
    owners: BTreeMap<String, BTreeMap<String, u32>>,
    /// Do all work with these files through `farrier files-helper`, which has its own file with the roots:
    /// `{ helper: PATH }` on this machine, `{ ssh: HOST, known_hosts: FILE }` on the one with the disk.
    #[serde(default)]
    via: Option<ViaConfig>,
}

/// The kind.
#[derive(Debug)]
pub struct FilesTarget;

/// Where a root is.
#[derive(Debug, Clone)]
struct Root {
    /// The environment's folder.
    base: PathBuf,
    /// As configured.
    folder: String,
    /// No link leads to it.
    stand_in: bool,
}

/// A connected `files` target.
#[derive(Debug)]
pub struct Files {
    roots: BTreeMap<String, Root>,
    /// Where each root has its snapshots.
    snapshots: BTreeMap<String, Root>,
    owners: BTreeMap<String, BTreeMap<String, u32>>,
    via: Option<Via>,
    /// Threads that were given up while the kernel kept them waiting for a file.
    hanging: Arc<AtomicUsize>,
}

impl Root {
    fn shown(&self) -> String {
        self.base.join(&self.folder).components().collect::<PathBuf>().display().to_string()
    }

    fn open(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if !self.stand_in {
            return open(self.base.join(&self.folder), flags, Mode::empty());
        }
        // The way to the environment may have links; the way on from there may not, because a link in a copy of the
        // environment leads out of the copy.
        let base = open(&self.base, flags, Mode::empty())?;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(&base, &*self.folder, flags, Mode::empty(), resolve) {
            Err(Errno::NOSYS) => open(self.base.join(&self.folder), flags, Mode::empty()),
            other => other,
        }
    }
}

impl TargetKind for FilesTarget {
    const KIND: &'static str = "files";
    type Config = FilesConfig;
    type Reader = Files;
    type Writer = Files;

    fn identity(config: &FilesConfig) -> String {
        if let Some(via) = &config.via {
            return format!("files via {}", via.shown());
        }
        let roots: Vec<String> =
            config.roots.iter().map(|(name, folder)| format!("{name}={folder}")).collect();
        format!("files {}", roots.join(" "))
    }

    /// Folders of the environment's own are as good as a stand-in: there is no server behind them, and a copy of the
    /// environment's folder is a world of its own.
    fn is_stand_in(config: &FilesConfig) -> bool {
        config.via.is_none() && config.roots.values().all(|folder| stays_near(folder))
    }

    async fn reader(config: FilesConfig, cx: &ConnectCx) -> Result<Files, Failure> {
        Files::new(config, cx)
    }

    async fn writer(config: FilesConfig, cx: &ConnectCx) -> Result<Files, Failure> {
        Files::new(config, cx)
    }
}

impl Files {
    fn new(config: FilesConfig, cx: &ConnectCx) -> Result<Files, Failure> {
        let via = config.via.as_ref().map(|via| via.way(cx)).transpose()?;
        match (via.is_some(), config.roots.is_empty()) {
            _ if via.is_some() && !config.snapshots.is_empty() => {
                return Err(Failure::new(FailureKind::Input, "`via` and `snapshots` exclude each other")
                    .help("write `snapshots NAME FOLDER` into the helper's own file"));
            }
            (true, false) => {
                return Err(Failure::new(FailureKind::Input, "`via` and `roots` exclude each other")
                    .help("remove `roots`: the helper's own file says which folders there are"));
            }
            (false, true) => {
                return Err(Failure::new(FailureKind::Input, "it names no root").help("add `roots`"));
            }
            _ => {}
        }
        let stand_in = FilesTarget::is_stand_in(&config);
        if !stand_in && !config.owners.is_empty() {
            return Err(Failure::new(
                FailureKind::Input,
                "`owners` is for stand-ins, and some of its roots are real folders",
            )
            .help("remove `owners`: the owners of real folders are those on disk"));
        }
        if stand_in && !config.snapshots.is_empty() {
            return Err(Failure::new(
                FailureKind::Input,
                "`snapshots` is for real folders, and all of its roots are a stand-in's",
            )
            .help("remove `snapshots`: nobody else writes to a stand-in's trees"));
        }
        if let Some(root) = config.snapshots.keys().find(|root| !config.roots.contains_key(*root)) {
            let message = format!("`snapshots` names the root `{root}`, which is not there");
            return Err(Failure::new(FailureKind::Input, message));
        }
        for (root, names) in &config.owners {
            if !config.roots.contains_key(root) {
                let names: Vec<&str> = names.keys().map(String::as_str).collect();
                let message =
                    format!("`owners` names the root `{root}` ({}), which is not there", names.join(", "));
                return Err(Failure::new(FailureKind::Input, message));
            }
        }
        let root = |folder| Root { base: cx.path("."), folder, stand_in };
        let named = |folders: BTreeMap<String, String>| {
            folders.into_iter().map(|(name, folder)| (name, root(folder))).collect()
        };
        Ok(Files {
            roots: named(config.roots),
            snapshots: named(config.snapshots),
            owners: config.owners,
            via,
            hanging: Arc::default(),
        })
    }

    /// The folders of a helper.
    pub(crate) fn over(folders: &Folders) -> Files {
        let root = |folder: &String| Root { base: "/".into(), folder: folder.clone(), stand_in: false };
        let named = |folders: &BTreeMap<String, String>| {
            folders.iter().map(|(name, folder)| (name.clone(), root(folder))).collect()
        };
        Files {
            roots: named(&folders.roots),
            snapshots: named(&folders.snapshots),
            owners: BTreeMap::new(),
            via: None,
            hanging: Arc::default(),
        }
    }

    /// Opens a root, anew for each step: what is mounted there may change while Farrier runs.
    pub(crate) async fn root(&self, name: &str, timeout: Duration) -> Result<OwnedFd, Failure> {
        let root = self.find(name)?;
        let shown = root.shown();
        let root = root.clone();
        let opened = pool::answer_within(timeout, &self.hanging, move || root.open());
        let error = match opened.await? {
            Some(Ok(root)) => return Ok(root),
            Some(Err(error)) => error,
            None => {
                let message = format!("the root `{name}` ({shown}) did not answer within {timeout:?}");
                return Err(Failure::new(FailureKind::Unreachable, message));
            }
        };
        Err(cannot_open(name, &shown, error))
    }

    /// The same for work that has a thread of its own and waits as long as the disk needs.
    pub(crate) fn open(&self, name: &str) -> Result<OwnedFd, Failure> {
        let root = self.find(name)?;
        root.open().map_err(|error| cannot_open(name, &root.shown(), error))
    }

    /// The snapshots of a root, if the environment says where they are.
    pub(crate) fn snapshots(&self, root: &str) -> Result<Option<Snapshots>, Failure> {
        let Some(at) = self.snapshots.get(root) else { return Ok(None) };
        let (folder, within) = snapshot::parts(&at.folder);
        let shown = at.shown();
        Root { folder: folder.to_owned(), ..at.clone() }
            .open()
            .map(|folder| Some(Snapshots::new(folder, within, shown.clone())))
            .map_err(|error| {
                let Failure { kind, help, .. } = cannot_open(root, &shown, error);
                let message = format!("cannot open the snapshots of the root `{root}` ({shown}): {error}");
                Failure { help, ..Failure::new(kind, message) }
            })
    }

    /// The way to the helper that does the work, if there is one.
    pub(crate) fn via(&self) -> Option<&Via> {
        self.via.as_ref()
    }

    fn find(&self, name: &str) -> Result<&Root, Failure> {
        self.roots.get(name).ok_or_else(|| {
            let known: Vec<String> = self.roots.keys().map(|name| format!("`{name}`")).collect();
            Failure::new(
                FailureKind::Input,
                format!("there is no root `{name}`; there is {}", known.join(", ")),
            )
            .help("name it under `roots:` of this target in the environment file")
        })
    }

    /// Who owns a folder beneath a root in the world that a stand-in stands for, if it says so.
    pub(crate) fn said_owner(&self, root: &str, name: &str) -> Option<u32> {
        self.owners.get(root)?.get(name).copied()
    }

    pub(crate) fn hanging(&self) -> &Arc<AtomicUsize> {
        &self.hanging
    }
}

/// A path that begins at the environment's folder and leads at most two levels above it, as far as a test copies its
/// surroundings.
fn stays_near(folder: &str) -> bool {
    let mut depth = 0;
    for component in Path::new(folder).components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => depth -= 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
        if depth < -2 {
            return false;
        }
    }
    true
}

fn cannot_open(name: &str, shown: &str, error: Errno) -> Failure {
    let kind = match error {
        Errno::ACCESS | Errno::PERM => FailureKind::Denied,
        Errno::LOOP => FailureKind::Refused,
        _ => FailureKind::Unreachable,
    };
    let failure = Failure::new(kind, format!("cannot open the root `{name}` ({shown}): {error}"));
    match error {
        Errno::LOOP => {
            failure.help("a stand-in's folders are reached through no link, so that tests work on copies")
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stand_in_stays_with_its_environment() {
        for near in ["demo/homes", "./homes", "../.farrier/demo", "a/../../b", "../../x"] {
            assert!(stays_near(near), "{near}");
        }
        for far in ["/srv/homes", "../../../x", "a/../../../../x", "/"] {
            assert!(!stays_near(far), "{far}");
        }
    }
}
