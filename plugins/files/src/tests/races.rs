//! The owner of the tree changes it while it is archived and deleted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FileType, Mode, OFlags, RenameFlags, mknodat, open, renameat_with};

use super::*;

/// What nobody may read or change, and when it was last read.
struct Canary {
    dir: tempfile::TempDir,
    before: Vec<(String, i64, i64, i64, i64)>,
}

const SECRET: &str = "the canary's song";

impl Canary {
    fn new() -> Canary {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        for file in ["song", "below/song"] {
            fs::write(dir.path().join(file), SECRET).unwrap();
        }
        let mut canary = Canary { dir, before: Vec::new() };
        canary.before = canary.times();
        canary
    }

    fn times(&self) -> Vec<(String, i64, i64, i64, i64)> {
        let of = |name: &str| {
            let metadata = fs::symlink_metadata(self.dir.path().join(name)).unwrap();
            (
                name.to_owned(),
                metadata.atime(),
                metadata.atime_nsec(),
                metadata.ctime(),
                metadata.ctime_nsec(),
            )
        };
        // Of the folders only the change: listing them here would be reading them.
        ["song", "below/song"].into_iter().map(of).collect()
    }

    fn check(&self) {
        assert_eq!(self.times(), self.before, "the canary was read or changed");
    }
}

/// Exchanges names in a folder that it holds open, as fast as it can, until it is dropped.
struct Flipper {
    stop: Arc<AtomicBool>,
    flips: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flipper {
    fn start(folder: &Path, pairs: &'static [(&'static str, &'static str)]) -> Flipper {
        let folder = open(folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let (stop, flips) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), flips.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for (one, other) in pairs {
                    // Fails once one of them is deleted.
                    let flipped = renameat_with(&folder, *one, &folder, *other, RenameFlags::EXCHANGE);
                    counted.fetch_add(u64::from(flipped.is_ok()), Ordering::Relaxed);
                }
            }
        });
        Flipper { stop, flips, thread: Some(thread) }
    }

    fn wait_for_flips(&self) {
        while self.flips.load(Ordering::Relaxed) < 4 {
            std::thread::yield_now();
        }
    }
}

impl Drop for Flipper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

const PAIRS: &[(&str, &str)] = &[("sub", "link"), ("file", "to_song"), ("text", "pipe"), ("sub", "text")];

#[tokio::test]
async fn a_folder_that_becomes_a_link_leads_nowhere() {
    must_be_root();
    swapped(Place::in_memory).await;
}

#[tokio::test]
async fn a_folder_that_becomes_a_link_leads_nowhere_through_the_helper() {
    must_be_root();
    swapped(|| Place::in_memory().through_the_helper()).await;
}

/// A thousand archives and deletions of a folder that becomes a link and a folder again.
async fn swapped(new: impl Fn() -> Place) {
    let canary = Canary::new();
    let mut stored_differently = BTreeMap::new();
    for round in 0..1000 {
        let place = new();
        let dir = place.at("homes/foxes/dir");
        fs::create_dir_all(dir.join("sub/below")).unwrap();
        for file in ["sub/song", "sub/below/song", "file", "text"] {
            fs::write(dir.join(file), "the owner's own").unwrap();
        }
        symlink(canary.dir.path(), dir.join("link")).unwrap();
        symlink(canary.dir.path().join("song"), dir.join("to_song")).unwrap();
        mknodat(rustix::fs::CWD, dir.join("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        give(&place.at("homes/foxes"), OWNER);
        let flipper = Flipper::start(&dir, PAIRS);
        flipper.wait_for_flips();
        let archived = place.step("files.archive", "archive", &archive_input("foxes")).await.unwrap();
        let manifest = archived.get("manifest").unwrap();
        *stored_differently.entry(manifest.get("entries").unwrap().as_int().unwrap()).or_insert(0) += 1;
        let mut plain = Vec::new();
        let archive = fs::File::open(place.at("archives/foxes.tgz")).unwrap();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(archive), &mut plain).unwrap();
        assert!(!plain.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "round {round}");
        let deletion = delete_input("foxes", &text(&archived, "sha256"));
        place.step("files.delete_tree", "delete", &deletion).await.unwrap();
        drop(flipper);
        assert_eq!(place.quarantine(), Vec::<String>::new());
        canary.check();
    }
    assert!(stored_differently.len() > 1, "the race was never met: {stored_differently:?}");
    assert_eq!(fs::read_to_string(canary.dir.path().join("below/song")).unwrap(), SECRET);
}

both_ways! { a_file_that_becomes_a_link_is_not_written_through, Place::in_memory(), |place| {
    let canary = Canary::new();
    let dir = place.at("homes/foxes");
    fs::create_dir_all(&dir).unwrap();
    symlink(canary.dir.path().join("song"), dir.join("other")).unwrap();
    let (mut written, mut refused) = (0, 0);
    fs::write(dir.join("file"), "0").unwrap();
    let flipper = Flipper::start(&dir, &[("file", "other")]);
    flipper.wait_for_flips();
    for round in 0..1000 {
        let input = json(&format!(
            "{{'target': 'homes', 'file': {{'root': 'tool_homes', 'path': ['foxes', 'file']}}, 'content': 'round {round}'}}"
        ));
        match place.step("files.write", "write", &input).await {
            Ok(_) => written += 1,
            Err(_) => refused += 1,
        }
    }
    drop(flipper);
    canary.check();
    assert!(written > 0 && refused > 0, "{written} written, {refused} refused");
    let kinds: Vec<bool> = ["file", "other"]
        .iter()
        .map(|name| fs::symlink_metadata(dir.join(name)).unwrap().is_symlink())
        .collect();
    assert_eq!(kinds.iter().filter(|link| **link).count(), 1, "nothing was lost and nothing doubled");
} }
