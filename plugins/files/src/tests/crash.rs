//! The process ends anywhere, and what was begun is brought to its end: with one archive, never a second one, and
//! nothing deleted that the archive does not hold.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::work::faults::EVERYWHERE;

const DIED: &str = "died at";

fn died(failure: &Failure) -> bool {
    failure.message.starts_with(DIED)
}

/// A place with one small home, planned to be archived.
async fn ready() -> (Place, Vec<Change>) {
    let place = Place::in_memory();
    let home = place.at("homes/foxes");
    fs::create_dir_all(home.join("www")).unwrap();
    fs::write(home.join("www/page"), "a page").unwrap();
    fs::write(home.join("numbers"), (0..20_000).map(|n| format!("{n}\n")).collect::<String>()).unwrap();
    symlink("www", home.join("public_html")).unwrap();
    give(&home, OWNER);
    let changes = place.plan("files.archive", "archive", &archive_input("foxes")).await.unwrap().changes;
    (place, changes)
}

/// The tree where it is now: in its place, or in quarantine.
fn whole_tree(place: &Place) -> Option<Vec<String>> {
    let quarantine = place.at("homes").join(PRIVATE).join("quarantine");
    let taken = place.quarantine().into_iter().map(|effect| quarantine.join(effect).join("foxes"));
    let mut found = taken.chain([place.at("homes/foxes")]).filter(|tree| tree.exists());
    let tree = found.next()?;
    assert!(found.next().is_none(), "the tree is in two places");
    let mut lines = Vec::new();
    describe(&tree, &tree, &mut lines);
    Some(lines)
}

fn archive_bytes(place: &Place) -> Option<Vec<u8>> {
    fs::read(place.at("archives/foxes.tgz")).ok()
}

fn leftovers(place: &Place) -> Vec<String> {
    let mut left = place.quarantine();
    left.extend(names(&place.at("archives").join(PRIVATE).join("archives")));
    left.extend(names(&place.at("homes").join(PRIVATE).join("digests")));
    left
}

#[tokio::test]
async fn an_archive_that_was_cut_off_is_finished_or_undone() {
    must_be_root();
    let input = archive_input("foxes");
    let mut points = BTreeSet::new();
    for nth in 0.. {
        let (place, changes) = ready().await;
        let tree = whole_tree(&place).unwrap();
        let world = place.world();
        let Err(failure) = place.make(&Work::dying_at(nth), "archive", &input, &changes).await else { break };
        assert!(died(&failure), "{failure}");
        points.insert(failure.message);
        assert_eq!(whole_tree(&place).as_ref(), Some(&tree), "the tree stays whole");
        let at_crash = archive_bytes(&place);
        if nth % 2 == 0 {
            let archived = place.apply("files.archive", "archive", &input, &changes).await.unwrap();
            assert!(
                at_crash.is_none() || at_crash == archive_bytes(&place),
                "the archive is never written twice"
            );
            let checked =
                place.step("files.check_archive", "checked", &check_input(&archived)).await.unwrap();
            assert_eq!(checked.get("sha256"), archived.get("sha256"));
            assert_eq!(names(&place.at("archives")), [PRIVATE, "foxes.tgz"]);
            // Once more, as after an answer that got lost.
            let bytes = archive_bytes(&place);
            let again = place.apply("files.archive", "archive", &input, &changes).await.unwrap();
            assert_eq!((again, archive_bytes(&place)), (archived, bytes));
        } else {
            place.undo("files.archive", "archive", &input, &changes).await.unwrap();
            assert_eq!(place.world(), world);
            assert_eq!(leftovers(&place), Vec::<String>::new());
        }
    }
    assert!(points.len() >= 15, "{points:?}");
}

#[tokio::test]
async fn an_undo_that_was_cut_off_is_finished() {
    must_be_root();
    let input = archive_input("foxes");
    let mut points = 0;
    for nth in 0.. {
        let (place, changes) = ready().await;
        let world = place.world();
        let tree = whole_tree(&place);
        place.apply("files.archive", "archive", &input, &changes).await.unwrap();
        let result = place.unmake(&Work::dying_at(nth), "archive", &input, &changes).await;
        assert_eq!(whole_tree(&place), tree);
        place.undo("files.archive", "archive", &input, &changes).await.unwrap();
        assert_eq!(place.world(), world);
        assert_eq!(leftovers(&place), Vec::<String>::new());
        points += 1;
        match result {
            Ok(()) => break,
            Err(failure) => assert!(died(&failure), "{failure}"),
        }
    }
    assert!(points >= 6, "{points}");
}

#[tokio::test]
async fn a_deletion_that_was_cut_off_is_finished_and_cannot_be_undone() {
    must_be_root();
    let mut points = BTreeSet::new();
    for nth in 0.. {
        let (place, changes) = ready().await;
        let input = archive_input("foxes");
        let archived = place.apply("files.archive", "archive", &input, &changes).await.unwrap();
        let bytes = archive_bytes(&place);
        let tree = whole_tree(&place);
        let deletion = delete_input("foxes", &text(&archived, "sha256"));
        let planned = place.plan("files.delete_tree", "delete", &deletion).await.unwrap().changes;
        let Err(failure) = place.delete(&Work::dying_at(nth), &deletion, &planned).await else { break };
        assert!(died(&failure), "{failure}");
        points.insert(failure.message);
        assert_eq!(archive_bytes(&place), bytes);
        let whole = whole_tree(&place) == tree;
        let probed = place.probe("delete", &deletion, &planned).await.unwrap();
        if nth % 2 == 1 && !whole {
            // An archive whose tree is gone in part is the only copy: it stays.
            let undone = place.undo("files.archive", "archive", &input, &changes).await;
            assert!(undone.is_err(), "undone at point {nth}");
            assert_eq!(archive_bytes(&place), bytes);
        }
        let again = place.plan("files.delete_tree", "delete", &deletion).await.unwrap();
        assert_eq!(again.changes.is_empty(), probed == Probe::Applied);
        assert!(!whole || probed == Probe::NotApplied);
        if !again.changes.is_empty() {
            place.apply("files.delete_tree", "delete", &deletion, &again.changes).await.unwrap();
        }
        assert_eq!(place.quarantine(), Vec::<String>::new());
        assert_eq!(archive_bytes(&place), bytes);
        let after = place.plan("files.delete_tree", "delete", &deletion).await.unwrap();
        assert!(after.changes.is_empty());
    }
    assert!(points.len() >= 7, "{points:?}");
}

const DIR: &str = "FARRIER_FILES_TEST_DIR";
const POINT: &str = "FARRIER_FILES_TEST_POINT";

/// Archives, checks and deletes as a run does that goes on after a crash: what was intended and what came of it is
/// kept in files. It is killed at one of its points.
async fn be_killed(dir: &str, point: &str) {
    let point: usize = point.parse().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let hook: crate::work::faults::Hook = Arc::new(move |_| {
        if counted.fetch_add(1, Ordering::SeqCst) == point {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
        Ok(())
    });
    assert!(EVERYWHERE.set(hook).is_ok());
    let place = Place::over(Path::new(dir));
    let journal = |name: &str| place.at(format!("journal.{name}"));
    let keep = |name: &str, value: &str| {
        fs::write(journal("new"), value).unwrap();
        fs::rename(journal("new"), journal(name)).unwrap();
    };
    let kept = |name: &str| fs::read_to_string(journal(name)).ok();
    let intended = |text: &str| -> Vec<Change> { serde_json::from_str(text).unwrap() };

    let input = archive_input("foxes");
    let archived = if let Some(output) = kept("archived") {
        Value::from_json(&output).unwrap()
    } else {
        let changes = if let Some(changes) = kept("archive") {
            intended(&changes)
        } else {
            let changes = place.plan("files.archive", "archive", &input).await.unwrap().changes;
            keep("archive", &serde_json::to_string(&changes).unwrap());
            changes
        };
        let output = place.apply("files.archive", "archive", &input, &changes).await.unwrap();
        keep("archived", &serde_json::to_string(&output).unwrap());
        output
    };
    place.step("files.check_archive", "checked", &check_input(&archived)).await.unwrap();
    let deletion = delete_input("foxes", &text(&archived, "sha256"));
    if let Some(changes) = kept("delete") {
        place.probe("delete", &deletion, &intended(&changes)).await.unwrap();
    }
    let changes = place.plan("files.delete_tree", "delete", &deletion).await.unwrap().changes;
    if !changes.is_empty() {
        keep("delete", &serde_json::to_string(&changes).unwrap());
        place.apply("files.delete_tree", "delete", &deletion, &changes).await.unwrap();
    }
    println!("points: {}.", count.load(Ordering::SeqCst));
}

/// Runs this test in a process of its own, which is killed; how many points it came by, or nothing
/// when it was killed.
fn run_until(place: &Place, point: usize) -> Option<usize> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "tests::crash::killed_at_any_point_it_ends_with_one_archive_and_nothing_else",
            "--nocapture",
        ])
        .env(DIR, place.dir())
        .env(POINT, point.to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    if output.status.signal() == Some(9) {
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let (_, rest) = text.split_once("points: ").unwrap();
    Some(rest.split_once('.').unwrap().0.parse().unwrap())
}

#[tokio::test]
async fn killed_at_any_point_it_ends_with_one_archive_and_nothing_else() {
    if let (Ok(dir), Ok(point)) = (std::env::var(DIR), std::env::var(POINT)) {
        return be_killed(&dir, &point).await;
    }
    must_be_root();
    let (place, _) = ready().await;
    let points = run_until(&place, usize::MAX).unwrap();
    assert!(points > 40, "{points}");
    for kill in 0..points {
        let (place, _) = ready().await;
        let tree = whole_tree(&place).unwrap();
        let first: Mutex<Option<Vec<u8>>> = Mutex::default();
        let look = || {
            let now = archive_bytes(&place);
            let mut first = first.lock().unwrap();
            assert!(first.is_none() || *first == now, "kill {kill}: the archive changed");
            *first = now;
            if whole_tree(&place).as_ref() != Some(&tree) {
                let bytes =
                    first.as_ref().unwrap_or_else(|| panic!("kill {kill}: deleted without an archive"));
                let recorded = names(&place.at("homes").join(PRIVATE).join("digests"));
                use sha2::Digest as _;
                assert_eq!(recorded, [format!("{}.json", hex::encode(sha2::Sha256::digest(bytes)))]);
            }
        };
        assert_eq!(run_until(&place, kill), None, "kill {kill}");
        look();
        // A second kill, at another place.
        run_until(&place, (kill * 7) % 40);
        look();
        run_until(&place, usize::MAX).unwrap();
        look();
        assert_eq!(whole_tree(&place), None);
        assert_eq!(place.quarantine(), Vec::<String>::new());
        assert_eq!(names(&place.at("archives")), [PRIVATE, "foxes.tgz"]);
        let unpacked = unpack(&place.at("archives/foxes.tgz"));
        let mut lines = Vec::new();
        describe(&unpacked.path().join("foxes"), &unpacked.path().join("foxes"), &mut lines);
        assert_eq!(lines, tree);
    }
}
