//! Trees as an owner may leave them who means no good, and disks that do not do what they should.

use std::ffi::{CString, OsStr};
use std::io::Read as _;
use std::os::unix::net::UnixListener;
use std::sync::Mutex;

use farrier_model::FailureKind;
use rustix::fs::{
    AtFlags, CWD, FileType, IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags, makedev, mkdirat, mknodat,
    open, openat, statat,
};

use super::*;
use crate::work::faults::Hook;

/// What belongs to someone else and may not get into an archive.
const SECRET: &str = "root's own password";

fn node(path: &Path, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, Mode::RWXU, device).unwrap();
}

/// The tar inside a gzip, as it is.
fn plain(archive: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(fs::File::open(archive).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

/// The names and reasons of what was not stored.
fn not_stored(lines: &[serde_json::Value]) -> BTreeMap<String, String> {
    let reason = |line: &serde_json::Value| Some(line.get("not_stored")?.as_str()?.to_owned());
    lines.iter().filter_map(|line| Some((line["path"].as_str()?.to_owned(), reason(line)?))).collect()
}

both_ways! { a_hostile_tree_is_archived_as_far_as_it_is_safe_and_deleted_as_a_whole, Place::new(), |place| {
    let home = place.at("homes/foxes");
    let at = |name: &str| home.join(name);
    fs::create_dir_all(at("plain")).unwrap();
    fs::write(at("plain/file"), "the owner's own").unwrap();
    node(&at("pipe"), FileType::Fifo, 0);
    node(&at("null"), FileType::CharacterDevice, makedev(1, 3));
    node(&at("disk"), FileType::BlockDevice, makedev(259, 70_000));
    drop(UnixListener::bind(at("socket")).unwrap());
    symlink("/etc/shadow", at("shadow")).unwrap();
    symlink("x".repeat(3000), at("long_link")).unwrap();
    symlink(".", at("loop")).unwrap();
    let odd: [&[u8]; 6] =
        [b"line\nbreak", b"\xff\xfe not text", b"$(reboot)", b"-rf", b"back\\slash", b"tab\t\x7f\x01"];
    for name in odd {
        fs::write(home.join(OsStr::from_bytes(name)), name).unwrap();
    }
    fs::write(home.join(OsStr::from_bytes(&[0xfe; 255])), "long and no text").unwrap();
    fs::write(at("setuid"), "#!/bin/sh\n").unwrap();
    give(&home, OWNER);
    fs::set_permissions(at("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(at("plain"), fs::Permissions::from_mode(0o2775)).unwrap();
    // 300 folders deep, with a file in each, and names that make the path long.
    let mut deep = at("deep");
    for _ in 0..300 {
        fs::create_dir(&deep).unwrap();
        fs::write(deep.join("f"), "deep").unwrap();
        deep.push("d");
    }
    // Nothing in a tebibyte but a few bytes, and the end written.
    let holes = fs::File::create(at("holes")).unwrap();
    use std::os::unix::fs::FileExt as _;
    holes.write_at(b"begin", 0).unwrap();
    holes.write_at(b"middle", 500 << 30).unwrap();
    holes.set_len(1 << 40).unwrap();
    let to_the_end = fs::File::create(at("holes\nto the end")).unwrap();
    to_the_end.write_at(b"end", (1 << 40) - 3).unwrap();
    fs::File::create(at("only_hole")).unwrap().set_len(1 << 20).unwrap();
    // Someone else's file under a name in the tree; one of the owner's under two names; one of root's that has no other.
    fs::write(place.at("secret"), SECRET).unwrap();
    fs::set_permissions(place.at("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(place.at("secret"), at("exfiltrated")).unwrap();
    fs::write(at("one_name"), "two names").unwrap();
    chown(at("one_name"), Some(OWNER), Some(OWNER)).unwrap();
    fs::hard_link(at("one_name"), at("other_name")).unwrap();
    fs::write(at("of_root"), "the platform's").unwrap();

    let archived = place.step("files.archive", "archive", &archive_input("foxes")).await.unwrap();
    let archive = place.at("archives/foxes.tgz");
    let tar = plain(&archive);
    assert!(!tar.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()));
    assert!(tar.len() < 10 << 20, "{} bytes", tar.len());
    place.step("files.check_archive", "checked", &check_input(&archived)).await.unwrap();

    let unpacked = unpack(&archive);
    let out = |name: &str| unpacked.path().join("foxes").join(name);
    for name in odd {
        assert_eq!(fs::read(unpacked.path().join("foxes").join(OsStr::from_bytes(name))).unwrap(), name);
    }
    assert!(unpacked.path().join("foxes").join(OsStr::from_bytes(&[0xfe; 255])).exists());
    assert_eq!(fs::read(out("plain/file")).unwrap(), b"the owner's own");
    assert_eq!(fs::metadata(out("setuid")).unwrap().mode() & 0o7777, 0o6755);
    assert_eq!(fs::metadata(out("plain")).unwrap().mode() & 0o7777, 0o2775);
    assert_eq!(fs::read(out("of_root")).unwrap(), b"the platform's");
    assert_eq!(fs::metadata(out("one_name")).unwrap().ino(), fs::metadata(out("other_name")).unwrap().ino());
    assert_eq!(fs::read_link(out("long_link")).unwrap().as_os_str().len(), 3000);
    assert_eq!(fs::metadata(out("null")).unwrap().rdev(), makedev(1, 3));
    assert_eq!(fs::metadata(out("disk")).unwrap().rdev(), makedev(259, 70_000));
    assert!(fs::symlink_metadata(out("shadow")).unwrap().is_symlink());
    for (name, places) in [
        ("holes", vec![(0, &b"begin"[..]), (500 << 30, b"middle"), (1 << 35, b"\0\0\0")]),
        ("holes\nto the end", vec![((1 << 40) - 3, &b"end"[..]), (0, b"\0")]),
    ] {
        let file = fs::File::open(out(name)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 40);
        assert!(file.metadata().unwrap().blocks() < 1000);
        for (offset, bytes) in places {
            let mut found = vec![1; bytes.len()];
            file.read_exact_at(&mut found, offset).unwrap();
            assert_eq!(found, bytes, "{name:?} at {offset}");
        }
    }
    assert_eq!(fs::read(out("only_hole")).unwrap(), vec![0; 1 << 20]);

    let lines = manifest_lines(unpacked.path());
    let missing = not_stored(&lines);
    assert_eq!(missing.len(), 3, "{missing:?}");
    assert_eq!(missing["foxes/socket"], "it is a socket");
    assert!(missing["foxes/exfiltrated"].contains("owner 0 that has other names"), "{missing:?}");
    let deep = missing.iter().find(|(path, _)| path.starts_with("foxes/deep/")).unwrap();
    assert!(deep.1.contains("256 folders deep"), "{deep:?}");
    let secret = lines.iter().find(|line| line["path"] == "foxes/exfiltrated").unwrap();
    assert_eq!(secret["metadata"]["size"].as_u64(), Some(SECRET.len() as u64));
    assert!(lines.iter().any(|line| line["path"]["hex"] == hex::encode(b"foxes/\xff\xfe not text")));

    let deletion = delete_input("foxes", &text(&archived, "sha256"));
    let planned = place.plan("files.delete_tree", "delete", &deletion).await.unwrap();
    assert!(planned.notes.iter().any(|note| note.starts_with("3 of its entries are not in the archive")));
    place.apply("files.delete_tree", "delete", &deletion, &planned.changes).await.unwrap();
    assert_eq!(place.quarantine(), Vec::<String>::new());
    assert_eq!(fs::read_to_string(place.at("secret")).unwrap(), SECRET);
} }

both_ways! { a_hundred_thousand_folders_deep_is_not_too_deep_to_delete, Place::in_memory(), |place| {
    fs::create_dir(place.at("homes/foxes")).unwrap();
    let mut folder = open(place.at("homes/foxes"), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..100_000 {
        mkdirat(&folder, "d", Mode::RWXU).unwrap();
        folder = openat(&folder, "d", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    mknodat(&folder, "file", FileType::RegularFile, Mode::RWXU, 0).unwrap();
    let archived = place.step("files.archive", "archive", &archive_as("foxes", ".tgz", 0)).await.unwrap();
    assert_eq!(archived.get("manifest").unwrap().get("not_stored").unwrap().as_int(), Some(1));
    let deletion = delete_input("foxes", &text(&archived, "sha256"));
    let deleted = place.step("files.delete_tree", "delete", &deletion).await.unwrap();
    assert_eq!(deleted.get("deleted").unwrap().as_int(), Some(100_002));
    assert_eq!(place.quarantine(), Vec::<String>::new());
} }

both_ways! { many_entries_are_archived_and_deleted, Place::in_memory(), |place| {
    for folder in 0..20 {
        let folder = place.at(format!("homes/foxes/{folder}"));
        fs::create_dir_all(&folder).unwrap();
        for file in 0..2000 {
            fs::File::create(folder.join(file.to_string())).unwrap();
        }
    }
    let archived = place.step("files.archive", "archive", &archive_as("foxes", ".tgz", 0)).await.unwrap();
    assert_eq!(archived.get("manifest").unwrap().get("entries").unwrap().as_int(), Some(40_021));
    let deletion = delete_input("foxes", &text(&archived, "sha256"));
    let deleted = place.step("files.delete_tree", "delete", &deletion).await.unwrap();
    assert_eq!(deleted.get("deleted").unwrap().as_int(), Some(40_021));
} }

both_ways! { how_far_it_has_come_is_told, Place::in_memory(), |place| {
    fs::create_dir(place.at("homes/foxes")).unwrap();
    for file in 0..2100 {
        fs::File::create(place.at(format!("homes/foxes/{file}"))).unwrap();
    }
    let input = archive_as("foxes", ".tgz", 0);
    let planned = place.plan("files.archive", "archive", &input).await.unwrap();
    let (told, latest) = tokio::sync::watch::channel(None);
    let cx = WriteCx::after_intent(place.cx("archive").telling(told));
    let action = place.registry.bind("files.archive", &input).unwrap();
    action.apply(&cx, &planned.changes).await.unwrap();
    let said = latest.borrow().clone().expect("it said nothing");
    assert!(said.text.starts_with("entries ") && said.done >= 1024, "{said}");
} }

/// Sets or clears the immutable flag.
fn immutable(path: &Path, on: bool) {
    let file = fs::File::open(path).unwrap();
    let flags = ioctl_getflags(&file).unwrap();
    ioctl_setflags(&file, if on { flags | IFlags::IMMUTABLE } else { flags - IFlags::IMMUTABLE })
        .unwrap_or_else(|error| panic!("this test needs a file system with immutable files: {error}"));
}

both_ways! { an_immutable_file_is_named_and_can_be_expected, Place::new(), |place| {
    toolforge_home(&place.at("homes/foxes"));
    fs::create_dir(place.at("homes/foxes/data/kept")).unwrap();
    immutable(&place.at("homes/foxes/replica.my.cnf"), true);
    immutable(&place.at("homes/foxes/data/kept"), true);
    let archived = place.step("files.archive", "archive", &archive_input("foxes")).await.unwrap();
    let input = |files: &str| {
        json(&format!(
            "{{'target': 'homes', 'tree': {{'root': 'tool_homes', 'path': ['foxes']}}, 'archived_as': '{}',
              'clear_immutable': [{files}]}}",
            text(&archived, "sha256")
        ))
    };
    let left = || {
        let quarantine = place.at("homes").join(PRIVATE).join("quarantine");
        names(&quarantine.join(&place.quarantine()[0]).join("foxes"))
    };
    let failure = place.step("files.delete_tree", "delete", &input("")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    let named =
        ["replica.my.cnf", "data/kept"].map(|file| format!("cannot delete `tool_homes/foxes/{file}`"));
    assert!(named.iter().any(|named| failure.message.starts_with(named)), "{failure}");
    assert!(failure.message.contains("immutable"), "{failure}");
    assert_eq!(left(), ["data", "replica.my.cnf"]);
    let failure = place.step("files.delete_tree", "delete", &input("['replica.my.cnf']")).await.unwrap_err();
    assert!(failure.message.starts_with(&*named[1]), "{failure}");
    assert_eq!(left(), ["data"]);
    // One that is gone already is no error, and neither is one that never was.
    let all = input("['replica.my.cnf'], ['data', 'kept'], ['no', 'such']");
    place.step("files.delete_tree", "delete", &all).await.unwrap();
    assert_eq!(place.quarantine(), Vec::<String>::new());
} }

both_ways! { clearing_a_flag_follows_no_link, Place::new(), |place| {
    toolforge_home(&place.at("homes/foxes"));
    let outside = place.at("staging/outside");
    fs::write(&outside, "outside").unwrap();
    symlink(place.at("staging"), place.at("homes/foxes/way")).unwrap();
    symlink(&outside, place.at("homes/foxes/direct")).unwrap();
    immutable(&outside, true);
    let archived = place.step("files.archive", "archive", &archive_input("foxes")).await.unwrap();
    let input = |files: &str| {
        let sha256 = text(&archived, "sha256");
        json(&format!(
            "{{'target': 'homes', 'tree': {{'root': 'tool_homes', 'path': ['foxes']}}, 'archived_as': '{sha256}',
              'clear_immutable': [{files}]}}"
        ))
    };
    let failure = place.step("files.delete_tree", "delete", &input("['way', 'outside']")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    place.step("files.delete_tree", "delete", &input("['direct']")).await.unwrap();
    let flags = ioctl_getflags(fs::File::open(&outside).unwrap()).unwrap();
    immutable(&outside, false);
    assert!(flags.contains(IFlags::IMMUTABLE));
} }

#[tokio::test]
async fn files_that_change_while_they_are_read_are_cut_off_or_filled_up() {
    must_be_root();
    let place = Place::new();
    let home = place.at("homes/foxes");
    fs::create_dir_all(&home).unwrap();
    const SIZE: usize = 300_000;
    for name in ["grows", "shrinks", "touched", "vanishes"] {
        fs::write(home.join(name), vec![b'x'; SIZE]).unwrap();
    }
    give(&home, OWNER);
    let input = archive_input("foxes");
    let changes = place.plan("files.archive", "archive", &input).await.unwrap().changes;
    // Before each piece is read, the owner does the next thing: through descriptors opened before the tree was taken.
    let file = |name: &str| {
        fs::OpenOptions::new().write(true).append(name == "grows").open(home.join(name)).unwrap()
    };
    let (grows, shrinks, touched) = (file("grows"), file("shrinks"), file("touched"));
    let folder = open(&home, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let state = Mutex::new((grows, shrinks, touched));
    let hook: Hook = Arc::new(move |point| {
        use std::io::Write as _;
        let mut state = state.lock().unwrap();
        if point == "copying" {
            state.0.write_all(&[b'y'; 10_000]).unwrap();
            if state.1.metadata().unwrap().len() > 100_000 {
                state.1.set_len(100_000).unwrap();
            }
            std::os::unix::fs::FileExt::write_at(&state.2, b"z", 0).unwrap();
            let _ = rustix::fs::unlinkat(&folder, "vanishes", AtFlags::empty());
        }
        Ok(())
    });
    let record = place.make(&Work::hooked(hook), "archive", &input, &changes).await.unwrap();
    assert_eq!((record.manifest.changed, record.manifest.not_stored), (2, 1), "{record:?}");
    let unpacked = unpack(&place.at("archives/foxes.tgz"));
    let lines = manifest_lines(unpacked.path());
    let line = |name: &str| lines.iter().find(|line| line["path"] == format!("foxes/{name}")).unwrap();
    assert!(line("grows")["changed"].as_str().unwrap().contains("grew"), "{lines:?}");
    assert_eq!(fs::read(unpacked.path().join("foxes/grows")).unwrap(), vec![b'x'; SIZE]);
    assert!(line("touched")["changed"].as_str().unwrap().contains("written to"), "{lines:?}");
    assert!(line("vanishes")["not_stored"].as_str().unwrap().contains("vanished"));
    assert!(line("shrinks").get("changed").is_none(), "it had shrunk before it was opened");

    // One that shrinks in the middle of being read.
    let place = Place::new();
    let home = place.at("homes/foxes");
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("shrinks"), vec![b'x'; SIZE]).unwrap();
    give(&home, OWNER);
    let changes = place.plan("files.archive", "archive", &input).await.unwrap().changes;
    let shrinks = fs::OpenOptions::new().write(true).open(home.join("shrinks")).unwrap();
    let hook: Hook = Arc::new(move |point| {
        if point == "copying" {
            shrinks.set_len(1000).unwrap();
        }
        Ok(())
    });
    let record = place.make(&Work::hooked(hook), "archive", &input, &changes).await.unwrap();
    assert_eq!(record.manifest.changed, 1);
    let unpacked = unpack(&place.at("archives/foxes.tgz"));
    let mut expected = vec![b'x'; 1000];
    expected.resize(SIZE, 0);
    assert_eq!(fs::read(unpacked.path().join("foxes/shrinks")).unwrap(), expected);
    let why = manifest_lines(unpacked.path())[2]["changed"].as_str().unwrap().to_owned();
    assert!(why.contains("299000 bytes were filled up"), "{why}");
}

/// Something mounted for the length of a test.
struct Mount(PathBuf);

impl Mount {
    fn new(path: PathBuf, size: &str) -> Mount {
        Mount::call(&["-t", "tmpfs", "-o", &format!("size={size},mode=0755"), "none"], &path);
        Mount(path)
    }

    fn call(arguments: &[&str], path: &Path) {
        let ran = Command::new("mount").args(arguments).arg(path).output().unwrap();
        let complaint = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success(), "this test mounts a file system in memory: {complaint}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let ran = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(std::thread::panicking() || ran.is_ok_and(|status| status.success()));
    }
}

both_ways! { a_full_disk_leaves_no_archive_and_no_deletion, Place::new(), |place| {
    toolforge_home(&place.at("homes/foxes"));
    // Numbers without order: nothing that could be compressed.
    let mut noise = Vec::new();
    fs::File::open("/dev/urandom").unwrap().take(4 << 20).read_to_end(&mut noise).unwrap();
    fs::write(place.at("homes/foxes/data/noise"), &noise).unwrap();
    let _mount = Mount::new(place.at("archives"), "2m");
    let world = place.world();
    let input = archive_input("foxes");
    let planned = place.plan("files.archive", "archive", &input).await.unwrap();
    assert!(
        planned.notes.iter().any(|note| note.contains("free, and the tree may need")),
        "{:?}",
        planned.notes
    );
    for _ in 0..2 {
        let failure = place.apply("files.archive", "archive", &input, &planned.changes).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Limit, "{failure}");
        assert!(failure.message.contains("No space left"), "{failure}");
        assert!(!place.at("archives/foxes.tgz").exists());
        assert_eq!(names(&place.at("homes").join(PRIVATE).join("digests")), Vec::<String>::new());
    }
    place.undo("files.archive", "archive", &input, &planned.changes).await.unwrap();
    assert_eq!(place.world(), world);
    assert_eq!(names(&place.at("archives").join(PRIVATE).join("archives")), Vec::<String>::new());
    // With space, the same step succeeds, on another file system than the tree's.
    Mount::call(&["-o", "remount,size=20m"], &place.at("archives"));
    let archived = place.step("files.archive", "archive", &input).await.unwrap();
    let deletion = delete_input("foxes", &text(&archived, "sha256"));
    place.step("files.delete_tree", "delete", &deletion).await.unwrap();
} }

both_ways! { what_is_mounted_in_the_tree_is_not_entered, Place::new(), |place| {
    toolforge_home(&place.at("homes/foxes"));
    fs::create_dir(place.at("homes/foxes/mounted")).unwrap();
    let quarantine = place.at("homes").join(PRIVATE).join("quarantine");
    let mount = Mount::new(place.at("homes/foxes/mounted"), "1m");
    fs::write(mount.0.join("file"), SECRET).unwrap();
    let archived = place.step("files.archive", "archive", &archive_input("foxes")).await.unwrap();
    let unpacked = unpack(&place.at("archives/foxes.tgz"));
    let missing = not_stored(&manifest_lines(unpacked.path()));
    assert!(missing["foxes/mounted"].contains("another file system"), "{missing:?}");
    let deletion = delete_input("foxes", &text(&archived, "sha256"));
    let failure = place.step("files.delete_tree", "delete", &deletion).await.unwrap_err();
    assert!(failure.message.contains("foxes/mounted`: another file system is mounted there"), "{failure}");
    let now = quarantine.join(&place.quarantine()[0]).join("foxes/mounted");
    assert_eq!(fs::read_to_string(now.join("file")).unwrap(), SECRET);
    drop(mount_moved(mount, now));
    place.step("files.delete_tree", "delete", &deletion).await.unwrap();
    assert_eq!(place.quarantine(), Vec::<String>::new());
    // And a root that has a mount where the tree should be.
    fs::create_dir(place.at("homes/hares")).unwrap();
    let _mount = Mount::new(place.at("homes/hares"), "1m");
    let failure = place.step("files.archive", "hares", &archive_as("hares", ".tgz", 0)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
} }

/// The same mount, at the path where it is now.
fn mount_moved(mount: Mount, now: PathBuf) -> Mount {
    std::mem::forget(mount);
    Mount(now)
}

both_ways! { an_owner_that_changes_after_the_plan_stops_everything, Place::new(), |place| {
    toolforge_home(&place.at("homes/foxes"));
    let input = archive_input("foxes");
    let changes = place.plan("files.archive", "archive", &input).await.unwrap().changes;
    chown(place.at("homes/foxes"), Some(OWNER + 1), None).unwrap();
    let failure = place.apply("files.archive", "archive", &input, &changes).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
    assert!(place.at("homes/foxes/toolinfo.json").exists());
    // Undoing what did nothing does nothing.
    place.undo("files.archive", "archive", &input, &changes).await.unwrap();
    assert!(
        statat(CWD, CString::new(place.at("homes/foxes").as_os_str().as_bytes()).unwrap(), AtFlags::empty())
            .is_ok()
    );
    assert!(!place.at("archives/foxes.tgz").exists());
} }

#[tokio::test]
async fn a_bit_that_flips_before_the_archive_is_named_leaves_none() {
    must_be_root();
    for ending in [".tgz", ".tar.zst"] {
        // At the beginning, in the middle, and in the last byte.
        for part in 0..3 {
            let place = Place::new();
            toolforge_home(&place.at("homes/foxes"));
            let input = archive_as("foxes", ending, OWNER);
            let changes = place.plan("files.archive", "archive", &input).await.unwrap().changes;
            let private = place.at("archives").join(PRIVATE).join(crate::private::ARCHIVES);
            let flipped = Arc::new(std::sync::atomic::AtomicBool::new(false));
            let done = flipped.clone();
            let hook: Hook = Arc::new(move |point| {
                if point == "before reading back" {
                    let files = fs::read_dir(&private).unwrap().map(|entry| entry.unwrap().path());
                    let file = files.filter(|path| path.extension().is_some_and(|end| end == "part"));
                    let [path] = &file.collect::<Vec<_>>()[..] else { panic!("one archive is being made") };
                    let mut bytes = fs::read(path).unwrap();
                    let at = part * (bytes.len() - 1) / 2;
                    bytes[at] ^= 1;
                    fs::write(path, bytes).unwrap();
                    done.store(true, std::sync::atomic::Ordering::SeqCst);
                }
                Ok(())
            });
            let failure = place.make(&Work::hooked(hook), "archive", &input, &changes).await.unwrap_err();
            assert!(flipped.load(std::sync::atomic::Ordering::SeqCst));
            assert_eq!(failure.kind, FailureKind::Drift, "{ending} {part}: {failure}");
            assert!(!place.at(format!("archives/foxes{ending}")).exists());
            // Nothing is lost: what was taken out of its place goes back, whole.
            place.undo("files.archive", "archive", &input, &changes).await.unwrap();
            assert_eq!(
                fs::read_to_string(place.at("homes/foxes/.description")).unwrap(),
                "Counts foxes 🦊\n"
            );
        }
    }
}
