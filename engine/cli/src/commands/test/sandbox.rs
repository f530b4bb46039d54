//! The world of one case: a copy of its environment's folder in a temporary place.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use farrier_action::{ActionRegistry, Now, Targets};
use farrier_exec::driver::World;
use farrier_model::{Digest, Text, Value};
use farrier_runbook::Diagnostics;
use farrier_runbook::environment::{Approvals, TargetBindings, read_environment};
use farrier_runbook::graph::Guard;
use farrier_runbook::testfile::Test;

use super::super::Problem;
use farrier_project::{bind, shown};

/// The folder of one case; removed with it.
pub(super) struct Sandbox {
    folder: tempfile::TempDir,
    /// The copy of the environment's folder.
    pub(super) copy: PathBuf,
    pub(super) bindings: TargetBindings,
    guards: Vec<Guard>,
    approvals: Approvals,
    people: BTreeMap<Text, Vec<Text>>,
}

impl Sandbox {
    /// Copies the environment's folder for `test`, which stands in `file`.
    pub(super) fn of(registry: &ActionRegistry, file: &Path, test: &Test) -> Result<Sandbox, Problem> {
        let test_folder = file.parent().unwrap_or(Path::new("."));
        let mut bindings = TargetBindings::default();
        let mut from = test_folder.to_path_buf();
        let (mut guards, mut approvals, mut people) = (Vec::new(), Approvals::default(), BTreeMap::new());
        if let Some(environment) = &test.environment {
            let path = test_folder.join(environment.as_str());
            let bytes = std::fs::read(&path).map_err(|error| Problem::file(&path, error))?;
            let mut diagnostics = Diagnostics::new();
            let id = diagnostics.add_file(shown(&path), &bytes);
            let environment = read_environment(id, &bytes, registry.catalog(), &mut diagnostics)
                .ok_or_else(|| Problem::Mistakes(Box::new(diagnostics)))?;
            bindings = environment.targets;
            guards = environment.guards;
            approvals = environment.approvals;
            people.extend(
                environment.people.iter().map(|(group, members)| (text(group.as_str()), texts(members))),
            );
            from = path.parent().unwrap_or(test_folder).to_path_buf();
        }
        for binding in &test.bindings.bindings {
            bindings.bindings.retain(|known| *known.alias != *binding.alias);
            bindings.bindings.push(binding.clone());
        }
        bindings.groups.extend(test.bindings.groups.clone());
        for binding in &bindings.bindings {
            let stand_in = registry.is_stand_in(&binding.kind, &binding.config);
            if !stand_in.is_ok_and(|stand_in| stand_in) {
                return Err(Problem::Usage(format!(
                    "{}: test `{}`: target `{}` is not a stand-in, and tests use nothing else",
                    shown(file),
                    *test.name,
                    *binding.alias
                )));
            }
        }
        people.extend(test.people.iter().map(|(group, members)| (text(group.as_str()), texts(members))));
        let folder = tempfile::Builder::new().prefix("farrier-test-").tempdir().map_err(|error| {
            Problem::Other(anyhow::Error::new(error).context("cannot make a temporary folder"))
        })?;
        // Not at its top, so that paths such as `../.farrier/…` stay inside.
        let copy = folder.path().join("a").join("b").join("c");
        copy_tree(&from, &copy).map_err(|error| Problem::file(&from, error))?;
        let approvals = test.approvals.clone().unwrap_or(approvals);
        Ok(Sandbox { folder, copy, bindings, guards, approvals, people })
    }

    /// Its targets, unconnected, at a time of their own.
    pub(super) fn world(&self, now: Now) -> World {
        let targets: Targets = bind(&self.copy, &self.bindings).at(now);
        World {
            guards: self.guards.clone(),
            approvals: self.approvals.clone(),
            people: Arc::new(self.people.clone()),
            ..World::new("test", Arc::new(targets))
        }
    }

    /// Everything in it.
    pub(super) fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        let root = self.folder.path();
        if let Err(error) = look(root, root, &mut tree) {
            tree.insert("?".into(), error.to_string());
        }
        tree
    }

    /// `text` without the temporary place.
    pub(super) fn without_place(&self, text: &str) -> String {
        text.replace(&self.copy.display().to_string(), ".")
    }

    /// What differs between two looks at it. Files that a stand-in makes of its own when it is first opened, and that a
    /// target names, do not count.
    pub(super) fn written(&self, before: &Tree, after: &Tree) -> Vec<String> {
        let named = self.named();
        let is_own = |path: &str| named.iter().any(|name| path.starts_with(name.as_str()));
        let mut written = differing(before, after);
        written.retain(|(path, what)| !(*what == "made" && is_own(path)));
        written.into_iter().map(|(path, what)| format!("{what} {}", self.short(&path))).collect()
    }

    fn short(&self, path: &str) -> String {
        let whole = self.folder.path().join(path);
        whole.strip_prefix(&self.copy).unwrap_or(Path::new(path)).display().to_string()
    }

    /// The paths in the settings of targets, from the sandbox's top.
    fn named(&self) -> Vec<String> {
        fn paths(value: &Value, found: &mut Vec<String>) {
            if let Some(text) = value.as_str() {
                found.push(text.split_once(':').map_or(text, |(_, path)| path).to_owned());
            }
            for item in value.as_list().unwrap_or_default() {
                paths(item, found);
            }
            for (_, item) in value.as_map().into_iter().flat_map(farrier_model::Map::iter) {
                paths(item, found);
            }
        }
        let mut found = Vec::new();
        for binding in &self.bindings.bindings {
            paths(&binding.config, &mut found);
        }
        let inside = |path: &String| {
            let mut whole = PathBuf::new();
            for part in self.copy.strip_prefix(self.folder.path()).ok()?.join(path).components() {
                match part {
                    std::path::Component::ParentDir => {
                        whole.pop();
                    }
                    std::path::Component::CurDir => {}
                    part => whole.push(part),
                }
            }
            Some(whole.display().to_string())
        };
        let whole = ["a", "a/b", "a/b/c", ""];
        found.iter().filter_map(inside).filter(|path| !whole.contains(&path.as_str())).collect()
    }
}

fn text(text: impl AsRef<str>) -> Text {
    text.as_ref().into()
}

fn texts(all: &[String]) -> Vec<Text> {
    all.iter().map(text).collect()
}

/// Paths, and what is there: kind, mode and digest of the content.
pub(super) type Tree = BTreeMap<String, String>;

fn look(root: &Path, folder: &Path, tree: &mut Tree) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let meta = std::fs::symlink_metadata(&path)?;
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        let mode = meta.permissions().mode();
        let what = if meta.is_dir() {
            look(root, &path, tree)?;
            format!("folder {mode:o}")
        } else if meta.is_symlink() {
            format!("link {}", std::fs::read_link(&path)?.display())
        } else if meta.is_file() {
            format!("file {mode:o} {}", Digest::of(std::fs::read(&path)?))
        } else {
            format!("{mode:o}")
        };
        tree.insert(name, what);
    }
    Ok(())
}

/// What was made, changed and removed, in the order of the paths. A folder that was made or removed with what is in it
/// counts once.
fn differing(before: &Tree, after: &Tree) -> Vec<(String, &'static str)> {
    let mut found: Vec<(String, &'static str)> = Vec::new();
    for path in before.keys().chain(after.keys()).collect::<std::collections::BTreeSet<_>>() {
        let what = match (before.get(path), after.get(path)) {
            (Some(_), None) => "removed",
            (None, Some(what)) if what.starts_with("folder") => {
                // Its files are told, and an empty one is nothing that anybody reads.
                continue;
            }
            (None, Some(_)) => "made",
            (Some(before), Some(after)) if before != after => "changed",
            _ => continue,
        };
        found.push((path.clone(), what));
    }
    found
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(entry.path())?, target)?;
        } else if kind.is_file() {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
