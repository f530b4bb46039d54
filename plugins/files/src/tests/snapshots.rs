//! Trees of a root that has snapshots.
//!
//! A folder with the tree in its quarantine is as good as a snapshot, so here one is made by moving the tree there: it stays
//! the same folder. Which of two states of it is archived, a real disk shows, in the tests of the command line.

use std::sync::Mutex;

use farrier_model::FailureKind;

use super::*;

/// A place whose root of homes has snapshots.
fn place() -> Place {
    let mut place = Place::new();
    fs::create_dir(place.at("snapshots")).unwrap();
    let at = |folder: &str| place.at(folder).display().to_string();
    place.direct = targets(
        place.dir(),
        &format!(
            "{{'roots': {{'tool_homes': '{}', 'archives': '{}'}}, 'snapshots': {{'tool_homes': '{}/*/disk'}}}}",
            at("homes"),
            at("archives"),
            at("snapshots"),
        ),
    );
    place.targets = place.direct.clone();
    toolforge_home(&place.at("homes/foxes"));
    place
}

/// Where a tree of this effect waits, beneath a root or what stands for it.
fn waiting(root: &Path, effect: &str) -> PathBuf {
    root.join(PRIVATE).join("quarantine").join(effect).join("foxes")
}

/// Takes the tree out of the quarantine into a snapshot, and leaves another one there.
fn snap(place: &Path, name: &str, effect: &str) {
    let from = waiting(&place.join("homes"), effect);
    let to = waiting(&place.join("snapshots").join(name).join("disk"), effect);
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::rename(&from, to).unwrap();
    fs::create_dir(&from).unwrap();
}

fn owner() -> u32 {
    if rustix::process::geteuid().is_root() { OWNER } else { rustix::process::geteuid().as_raw() }
}

/// What an attempt came past, and what the test does there.
fn work(mut at: impl FnMut(&str, usize) + Send + 'static) -> (Work, Arc<Mutex<Vec<&'static str>>>) {
    let points = Arc::<Mutex<Vec<&'static str>>>::default();
    let (seen, at) = (points.clone(), Mutex::new(move |name: &str, nth| at(name, nth)));
    let work = Work::hooked(Arc::new(move |name| {
        let nth = {
            let mut seen = seen.lock().unwrap();
            seen.push(name);
            seen.iter().filter(|seen| **seen == name).count()
        };
        at.lock().unwrap()(name, nth);
        Ok(())
    }));
    (work, points)
}

#[tokio::test]
async fn an_archive_is_made_from_the_first_snapshot_that_has_the_taken_tree() {
    let place = place();
    // One that is older than the quarantine has the tree in its place.
    fs::create_dir_all(place.at("snapshots/yesterday/disk/foxes")).unwrap();
    // A link to a snapshot is none.
    symlink(place.at("homes"), place.at("snapshots/zero")).unwrap();
    let input = archive_as("foxes", ".tgz", owner());
    let planned = place.plan("files.archive", "archive", &input).await.unwrap();
    let note = format!("from a snapshot in {}/*/disk, a new one", place.at("snapshots").display());
    assert!(planned.notes.iter().any(|said| said.contains(&note)), "{:?}", planned.notes);

    let (dir, effect) = (place.dir().to_owned(), place.cx("archive").node().effect_id.clone());
    let (work, points) = work(move |name, nth| {
        if (name, nth) == ("waiting for a snapshot", 2) {
            assert_eq!(names(&dir.join("snapshots")), ["yesterday", "zero"], "a plain folder is no snapshot");
            snap(&dir, "hourly", &effect);
        }
    });
    let record = place.make(&work, "archive", &input, &planned.changes).await.unwrap();
    assert!(points.lock().unwrap().contains(&"waiting for a snapshot"));
    assert_eq!(record.manifest.snapshot.as_deref(), Some("hourly"));
    assert_eq!(names(&place.at("snapshots")), ["hourly", "yesterday", "zero"], "others' snapshots stay");
    let unpacked = unpack(&place.at("archives/foxes.tgz"));
    assert!(unpacked.path().join("foxes/public_html/index.php").exists());
    assert_eq!(manifest_lines(unpacked.path())[0]["snapshot"], "hourly");
}

#[tokio::test]
async fn a_snapshot_that_a_folder_makes_is_removed_again() {
    let place = place();
    let input = archive_as("foxes", ".tgz", owner());
    let planned = place.plan("files.archive", "archive", &input).await.unwrap();
    let (dir, effect) = (place.dir().to_owned(), place.cx("archive").node().effect_id.clone());
    let own = format!("farrier-{effect}");
    let name = own.clone();
    let (work, points) = work(move |point, _| {
        let made = dir.join("snapshots").join(&name);
        match point {
            "a snapshot is asked for" => snap(&dir, &name, &effect),
            // Such a file system removes what is in a snapshot with it.
            "archive is recorded" => {
                fs::remove_dir_all(waiting(&dir.join("homes"), &effect)).unwrap();
                fs::rename(waiting(&made.join("disk"), &effect), waiting(&dir.join("homes"), &effect))
                    .unwrap();
                fs::remove_dir_all(made.join("disk")).unwrap();
            }
            _ => {}
        }
    });
    let record = place.make(&work, "archive", &input, &planned.changes).await.unwrap();
    assert!(!points.lock().unwrap().contains(&"waiting for a snapshot"));
    assert_eq!(record.manifest.snapshot.as_deref(), Some(&*own));
    assert_eq!(names(&place.at("snapshots")), [""; 0]);

    // What an attempt that died left behind goes when it is undone, too.
    fs::create_dir(place.at("snapshots").join(&own)).unwrap();
    place.undo("files.archive", "archive", &input, &planned.changes).await.unwrap();
    assert_eq!(names(&place.at("snapshots")), [""; 0]);
    assert!(place.at("homes/foxes/public_html/index.php").exists());
}

#[tokio::test]
async fn snapshots_are_of_real_roots() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |config: &str| {
        let targets = targets(dir.path(), config);
        async move {
            let target = Target::<crate::FilesTarget>::new("homes");
            cx(targets, "any").reader(&target).await.unwrap_err()
        }
    };
    for (config, why) in [
        ("{'roots': {'a': 'a'}, 'snapshots': {'a': 'snapshots'}}", "`snapshots` is for real folders"),
        ("{'roots': {'a': '/a'}, 'snapshots': {'b': '/s'}}", "`snapshots` names the root `b`"),
        ("{'via': {'helper': 'x'}, 'snapshots': {'a': '/s'}}", "`via` and `snapshots` exclude each other"),
    ] {
        let failure = refused(config).await;
        assert_eq!(failure.kind, FailureKind::Input, "{config}");
        assert!(failure.message.contains(why), "{config}: {failure}");
    }
    let place = place();
    fs::remove_dir(place.at("snapshots")).unwrap();
    let input = archive_as("foxes", ".tgz", owner());
    let failure = place.plan("files.archive", "archive", &input).await.unwrap_err();
    assert!(failure.message.contains("cannot open the snapshots of the root `tool_homes`"), "{failure}");
}
