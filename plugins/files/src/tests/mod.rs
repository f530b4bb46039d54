//! Tests of the actions, and of what is done for other plugins' steps.

mod crash;
mod deposits;
mod hostile;
mod laws;
mod races;
mod read_many;
mod snapshots;
mod unpack;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use farrier_action::harness::World;
use farrier_action::{ActionRegistry, Binding, NodeInfo, Planned, Probe, ReadCx, Target, Targets, WriteCx};
use farrier_model::{Change, Failure, NodeName, RunId, Scope, Value, ids};

use crate::archive::planned_identity;
use crate::private::PRIVATE;
use crate::remove;
use crate::store::{self, Record};
use crate::work::Work;

/// The number of the account whose home is archived.
pub(super) const OWNER: u32 = 52_503;

pub(super) fn json(text: &str) -> Value {
    Value::from_json(&text.replace('\'', "\"")).unwrap()
}

/// These tests give files to other accounts, make devices and set flags that only the superuser may. They say so
/// instead of passing without having looked.
pub(super) fn must_be_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test gives files to other accounts and makes devices: run it as root"
    );
}

/// Roots in a folder that goes away with the test.
pub(super) struct Place {
    dir: PathBuf,
    /// Removes the folder at the end, if it is this place's to remove.
    kept: Option<tempfile::TempDir>,
    registry: ActionRegistry,
    targets: Arc<Targets>,
    /// The same folders without a helper between.
    direct: Arc<Targets>,
}

/// A test that is done twice: by this process, and as a helper does it.
macro_rules! both_ways {
    ($name:ident, $new:expr, |$place:ident| $body:block) => {
        mod $name {
            use super::*;

            async fn on($place: Place) $body

            #[tokio::test]
            async fn here() {
                must_be_root();
                on($new).await;
            }

            #[tokio::test]
            async fn through_the_helper() {
                must_be_root();
                on($new.through_the_helper()).await;
            }
        }
    };
}
pub(super) use both_ways;

pub(super) const ROOTS: &str =
    "{'roots': {'tool_homes': 'homes', 'archives': 'archives', 'staging': 'staging', 'gone': 'nowhere'}}";

impl Place {
    pub(super) fn new() -> Place {
        Place::in_dir(tempfile::tempdir().unwrap())
    }

    /// In memory, where syncing costs nothing.
    pub(super) fn in_memory() -> Place {
        Place::in_dir(tempfile::tempdir_in("/dev/shm").unwrap())
    }

    fn in_dir(dir: tempfile::TempDir) -> Place {
        for folder in ["homes", "archives", "staging"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let mut place = Place::over(dir.path());
        place.kept = Some(dir);
        place
    }

    /// One that another process made.
    pub(super) fn over(dir: &Path) -> Place {
        let direct = targets(dir, ROOTS);
        Place { dir: dir.to_owned(), kept: None, registry: registry(), targets: direct.clone(), direct }
    }

    /// The same, with steps that ask a helper.
    pub(super) fn through_the_helper(mut self) -> Place {
        self.targets = targets(&self.dir, &format!("{{'via': {{'helper': 'here:{}'}}}}", self.dir.display()));
        self
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The target, connected.
    pub(super) async fn files(&self) -> Arc<crate::Files> {
        cx(self.direct.clone(), "any").reader(&Target::<crate::FilesTarget>::new("homes")).await.unwrap()
    }

    /// Archives as the step of this name would, with work that the test chose.
    pub(super) async fn make(
        &self,
        work: &Work,
        step: &str,
        input: &Value,
        changes: &[Change],
    ) -> Result<Record, Failure> {
        let action: crate::Archive = input.read().unwrap();
        let planned = planned_identity(changes, "tool_homes/foxes")?;
        let job = action.job(&*self.files().await, &self.cx(step).node().effect_id, planned)?;
        store::make(work, &job)
    }

    /// The same for undoing it.
    pub(super) async fn unmake(
        &self,
        work: &Work,
        step: &str,
        input: &Value,
        changes: &[Change],
    ) -> Result<(), Failure> {
        let action: crate::Archive = input.read().unwrap();
        let planned = planned_identity(changes, "tool_homes/foxes")?;
        let job = action.job(&*self.files().await, &self.cx(step).node().effect_id, planned)?;
        store::unmake(work, &job)
    }

    /// The same for deleting.
    pub(super) async fn delete(
        &self,
        work: &Work,
        input: &Value,
        changes: &[Change],
    ) -> Result<u64, Failure> {
        let action: crate::DeleteTree = input.read().unwrap();
        remove::delete(work, &action.job(&*self.files().await, changes)?)
    }

    pub(super) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.join(path)
    }

    /// A context for the step of this name.
    pub(super) fn cx(&self, step: &str) -> ReadCx {
        cx(self.targets.clone(), step)
    }

    pub(super) async fn plan(
        &self,
        action: &str,
        step: &str,
        input: &Value,
    ) -> Result<Planned<Value>, Failure> {
        self.registry.bind(action, input)?.plan(&self.cx(step)).await
    }

    pub(super) async fn apply(
        &self,
        action: &str,
        step: &str,
        input: &Value,
        changes: &[Change],
    ) -> Result<Value, Failure> {
        self.registry.bind(action, input)?.apply(&WriteCx::after_intent(self.cx(step)), changes).await
    }

    pub(super) async fn undo(
        &self,
        action: &str,
        step: &str,
        input: &Value,
        changes: &[Change],
    ) -> Result<(), Failure> {
        self.registry.bind(action, input)?.undo(&WriteCx::after_intent(self.cx(step)), changes).await
    }

    pub(super) async fn probe(
        &self,
        step: &str,
        input: &Value,
        changes: &[Change],
    ) -> Result<Probe, Failure> {
        self.registry.bind("files.delete_tree", input)?.probe(&self.cx(step), changes).await
    }

    /// Plans a step and applies what was planned, as a run does.
    pub(super) async fn step(&self, action: &str, step: &str, input: &Value) -> Result<Value, Failure> {
        let planned = self.plan(action, step, input).await?;
        if planned.changes.is_empty() {
            return Ok(planned.output.unwrap());
        }
        self.apply(action, step, input, &planned.changes).await
    }

    /// Everything beneath the roots but Farrier's own, by the names that changes use.
    pub(super) fn world(&self) -> World {
        let mut world = World::new();
        for (root, folder) in [("tool_homes", "homes"), ("archives", "archives"), ("staging", "staging")] {
            for entry in fs::read_dir(self.at(folder)).unwrap() {
                let entry = entry.unwrap();
                if entry.file_name().as_bytes() == PRIVATE.as_bytes() {
                    continue;
                }
                let mut seen = Vec::new();
                describe(&entry.path(), &entry.path(), &mut seen);
                let name = format!("{root}/{}", entry.file_name().to_string_lossy());
                world.insert(name, Value::list(seen.into_iter().map(Value::text).collect()));
            }
        }
        world
    }

    /// Names in the quarantine.
    pub(super) fn quarantine(&self) -> Vec<String> {
        names(&self.at("homes").join(PRIVATE).join("quarantine"))
    }
}

pub(super) fn registry() -> ActionRegistry {
    let mut registry = ActionRegistry::default();
    crate::register(&mut registry).unwrap();
    registry
}

pub(super) fn targets(base: &Path, config: &str) -> Arc<Targets> {
    let binding = Binding { alias: "homes".into(), kind: "files".into(), config: json(config) };
    Arc::new(Targets::new(base.to_owned(), vec![binding], BTreeMap::new()))
}

pub(super) fn cx(targets: Arc<Targets>, step: &str) -> ReadCx {
    let (run, node) = (RunId::at(0, [7; 10]), NodeName::step(step));
    let effect_id = ids::effect_id(run, &node, "do");
    ReadCx::new(targets, Scope::default(), NodeInfo { run, node, attempt: 1, effect_id })
}

pub(super) fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// One line per thing in a tree: path, type, mode, owner, and what it holds.
pub(super) fn describe(top: &Path, path: &Path, lines: &mut Vec<String>) {
    use sha2::Digest as _;
    let metadata = fs::symlink_metadata(path).unwrap();
    let kind = metadata.file_type();
    let content = if kind.is_symlink() {
        format!("-> {:?}", fs::read_link(path).unwrap())
    } else if kind.is_file() && metadata.len() < 1 << 30 {
        hex::encode(sha2::Sha256::digest(fs::read(path).unwrap()))
    } else if kind.is_file() {
        format!("{} bytes", metadata.len())
    } else {
        format!("device {}", metadata.rdev())
    };
    let name = path.strip_prefix(top).unwrap();
    let (mode, owner) = (metadata.mode(), metadata.uid());
    lines.push(format!("{} {mode:o} {owner} {content}", name.as_os_str().as_bytes().escape_ascii()));
    if kind.is_dir() {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for entry in entries {
            describe(top, &entry, lines);
        }
    }
}

/// A home as tools leave it: a web page, sources, logs, keys, and the files that the platform puts there.
pub(super) fn toolforge_home(home: &Path) {
    let at = |name: &str| home.join(name);
    for folder in ["", "public_html", "www/python/src", "logs", ".kube", "data"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    let write = |name: &str, text: &str, mode: u32| {
        fs::write(at(name), text).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    write(".description", "Counts foxes 🦊\n", 0o644);
    write("toolinfo.json", "{\"name\": \"foxes\"}\n", 0o644);
    write("public_html/index.php", "<?php echo 'foxes';\n", 0o644);
    write("www/python/src/app.py", "app = None\n", 0o755);
    write("service.manifest", "backend: kubernetes\nversion: 2\n", 0o664);
    write(".kube/config", "apiVersion: v1\n", 0o600);
    write("k8s.disabled", "", 0o644);
    write("logs/error.log", &"a line of the log\n".repeat(20_000), 0o640);
    write("data/numbers", &(0..50_000).map(|n| format!("{n}\n")).collect::<String>(), 0o644);
    fs::hard_link(at("data/numbers"), at("data/again")).unwrap();
    symlink("www/python/src", at("source")).unwrap();
    symlink("/etc/passwd", at("data/outside")).unwrap();
    if rustix::process::geteuid().is_root() {
        give(home, OWNER);
        // The platform's own.
        write("replica.my.cnf", "[client]\nuser = s52503\n", 0o400);
        chown(at("k8s.disabled"), Some(0), Some(0)).unwrap();
    }
}

/// Gives a tree to an account.
pub(super) fn give(path: &Path, owner: u32) {
    std::os::unix::fs::lchown(path, Some(owner), Some(owner)).unwrap();
    if fs::symlink_metadata(path).unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), owner);
        }
    }
}

pub(super) fn archive_input(tool: &str) -> Value {
    archive_as(tool, ".tgz", OWNER)
}

pub(super) fn archive_as(tool: &str, ending: &str, owner: u32) -> Value {
    json(&format!(
        "{{'target': 'homes', 'source': {{'root': 'tool_homes', 'path': ['{tool}'], 'owner': {owner}}},
          'into': {{'root': 'archives', 'path': ['{tool}{ending}'], 'if_exists': 'fail'}}}}"
    ))
}

pub(super) fn delete_input(tool: &str, sha256: &str) -> Value {
    json(&format!(
        "{{'target': 'homes', 'tree': {{'root': 'tool_homes', 'path': ['{tool}']}}, 'archived_as': '{sha256}'}}"
    ))
}

/// What the next steps read of an archive's output.
pub(super) fn check_input(archived: &Value) -> Value {
    let part = |name: &str| archived.get(name).unwrap().clone();
    Value::map([("target", Value::text("homes")), ("archive", part("file")), ("manifest", part("manifest"))])
}

pub(super) fn text(value: &Value, name: &str) -> String {
    value.get(name).unwrap().as_str().unwrap().to_owned()
}

/// Unpacks an archive with the system's own program.
pub(super) fn unpack(archive: &Path) -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    let ran = Command::new("tar")
        .args(["--extract", "--preserve-permissions", "--numeric-owner", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(out.path())
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success() && complaints.is_empty(), "tar: {complaints}");
    out
}

/// The manifest in an unpacked archive, one object per line.
pub(super) fn manifest_lines(unpacked: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(unpacked.join("_manifest.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
