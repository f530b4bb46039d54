//! Sets are whole, numbered, and replaced only by better ones.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use farrier_action::ActionRegistry;
use farrier_model::time::Timestamp;
use farrier_project::{ProjectError, Set, Watched, Workspace};

const NOTE: &str = "runbook: NAME\nsummary: Says a word\nowner: roots\nrisk: read_only\nsteps:\n  \
                    one: { uses: data.let, with: { value: 1 } }\n";

fn runbook(root: &Path, place: &str, name: &str) {
    fs::write(root.join(place), NOTE.replace("NAME", name)).unwrap();
}

fn project(root: &Path) {
    for folder in ["runbooks/area", "environments"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("farrier.yaml"), "runbooks: [runbooks]\nenvironments: [environments/*.yaml]\n")
        .unwrap();
    fs::write(root.join("environments/here.yaml"), "environment: here\n").unwrap();
    fs::write(root.join("environments/apart.yaml"), "environment: apart\nstore: { sqlite: elsewhere }\n")
        .unwrap();
    runbook(root, "runbooks/area/quiet.yaml", "quiet");
}

fn registry() -> Arc<ActionRegistry> {
    let mut registry = ActionRegistry::default();
    farrier_plugin_data::register(&mut registry).unwrap();
    Arc::new(registry)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

#[test]
fn a_set_has_runbooks_environments_and_what_is_served() {
    let dir = tempfile::tempdir().unwrap();
    project(dir.path());
    let set = Set::load(dir.path(), &registry(), &[], 7).unwrap();
    assert_eq!(set.number, 7);
    assert_eq!(set.bundle("quiet").unwrap().graph().name.as_ref(), "quiet");
    assert_eq!(set.folders["quiet"], "runbooks/area");
    assert_eq!(set.sites.len(), 2);
    let served: Vec<&str> = set.served().map(|site| site.environment.name.as_str()).collect();
    assert_eq!(served, ["here"], "the other keeps its runs elsewhere");
    assert_eq!(set.data_dir, set.workspace.root.join(".farrier"));

    let apart = Set::load(dir.path(), &registry(), &["apart".into()], 1).unwrap();
    assert_eq!(apart.data_dir, apart.workspace.root.join("environments/elsewhere"));
    let both = Set::load(dir.path(), &registry(), &["apart".into(), "here".into()], 1).unwrap_err();
    assert!(matches!(both, ProjectError::Apart { .. }), "{both}");
    let unknown = Set::load(dir.path(), &registry(), &["hre".into()], 1).unwrap_err();
    assert_eq!(unknown.help().unwrap(), "did you mean `here`?");
}

#[test]
fn all_data_directories_are_found_even_beside_a_broken_environment() {
    let dir = tempfile::tempdir().unwrap();
    project(dir.path());
    fs::write(dir.path().join("environments/broken.yaml"), "environment: [").unwrap();
    let workspace = Workspace::find(dir.path()).unwrap();
    let dirs = workspace.data_dirs(registry().catalog()).unwrap();
    assert_eq!(dirs, [workspace.root.join(".farrier"), workspace.root.join("environments/elsewhere")]);
}

/// A tree whose innermost paths are longer than the kernel takes. Made from inside out, since nothing can be made there.
fn endless(at: &Path) {
    let (inner, outer) = (at.with_extension("inner"), at.with_extension("outer"));
    fs::create_dir(&inner).unwrap();
    for _ in 0..25 {
        fs::create_dir(&outer).unwrap();
        fs::rename(&inner, outer.join("d".repeat(200))).unwrap();
        fs::rename(&outer, &inner).unwrap();
    }
    fs::rename(&inner, at).unwrap();
}

#[test]
fn other_trees_in_the_project_stop_nothing() {
    let dir = tempfile::tempdir().unwrap();
    project(dir.path());
    endless(&dir.path().join("homes"));
    fs::create_dir(dir.path().join("environments/world")).unwrap();
    endless(&dir.path().join("environments/world/homes"));
    std::os::unix::fs::symlink("..", dir.path().join("runbooks/loop")).unwrap();
    let set = Set::load(dir.path(), &registry(), &[], 1).unwrap();
    assert_eq!(set.workspace.runbook_files(), [set.workspace.root.join("runbooks/area/quiet.yaml")]);

    let deep = dir.path().join("runbooks/area").join("d/".repeat(64));
    fs::create_dir_all(&deep).unwrap();
    let error = Workspace::find(dir.path()).unwrap_err();
    assert!(matches!(&error, ProjectError::TooDeep { path } if path.ends_with("d/d")), "{error}");
    assert!(error.help().unwrap().contains("`runbooks`"), "{error}");
}

#[test]
fn mistakes_of_all_files_are_found_at_once() {
    let dir = tempfile::tempdir().unwrap();
    project(dir.path());
    fs::write(dir.path().join("environments/here.yaml"), "environment: here\nfreez: true\n").unwrap();
    fs::write(dir.path().join("runbooks/area/quiet.yaml"), NOTE.replace("data.let", "data.lte")).unwrap();
    let error = Set::load(dir.path(), &registry(), &[], 1).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ProjectError::Mistakes(_)));
    assert!(text.contains("freez") && text.contains("data.lte"), "{text}");
}

/// Guards "a reload makes a new set or keeps the old".
#[test]
fn a_bad_file_keeps_the_old_set_and_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    project(dir.path());
    let watched = Watched::open(dir.path(), registry(), Vec::new()).unwrap();
    let mut told = watched.subscribe();
    let first = watched.current();
    assert!(!watched.reload(at(1)).unwrap(), "nothing was written");
    assert!(!told.has_changed().unwrap());

    let good = fs::read_to_string(dir.path().join("runbooks/area/quiet.yaml")).unwrap();
    runbook(dir.path(), "runbooks/second.yaml", "second");
    fs::write(dir.path().join("runbooks/area/quiet.yaml"), "runbook: quiet\nsteps: {}\nsteps: {}\n").unwrap();
    watched.reload(at(2)).unwrap_err();
    watched.reload(at(3)).unwrap_err();
    let trouble = watched.trouble().unwrap();
    assert_eq!(trouble.since, at(2));
    assert!(trouble.text.contains("quiet.yaml"), "{}", trouble.text);
    assert_eq!(watched.failures(), 2);
    assert!(Arc::ptr_eq(&first, &watched.current()), "also what was right in it is not taken");

    fs::write(dir.path().join("runbooks/area/quiet.yaml"), good).unwrap();
    assert!(watched.reload(at(4)).unwrap());
    assert_eq!(watched.trouble(), None);
    assert!(told.has_changed().unwrap());
    let second = told.borrow_and_update().clone();
    assert_eq!(second.number, 2);
    assert!(second.bundle("second").is_some() && first.bundle("second").is_none());
}

#[test]
fn runs_do_not_move_to_another_store_in_a_reload() {
    let dir = tempfile::tempdir().unwrap();
    project(dir.path());
    let watched = Watched::open(dir.path(), registry(), Vec::new()).unwrap();
    let file = dir.path().join("farrier.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}data_dir: other\n")).unwrap();
    let error = watched.reload(at(1)).unwrap_err();
    assert!(error.to_string().contains("start it again"), "{error}");
}

#[test]
fn the_stamp_changes_with_the_files_that_count() {
    let dir = tempfile::tempdir().unwrap();
    project(dir.path());
    let stamp = || Workspace::find(dir.path()).unwrap().stamp();
    let before = stamp();
    fs::write(dir.path().join("environments/state.ldif"), "x").unwrap();
    runbook(dir.path(), "notes.yaml", "not-a-runbook");
    assert_eq!(stamp(), before);
    runbook(dir.path(), "runbooks/second.yaml", "second");
    assert_ne!(stamp(), before);
}
