//! A home as an owner may leave it who means no good, through the whole program: a run, and the helper as a process of its own.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mkdirat, mknodat, open, openat};

use crate::common::Project;
use crate::steps::{is_archived_and_deleted, project};

/// Sets how many files the home has; a tenth of it is how deep its folders are. As many as seconds allow when not set.
const ENTRIES: &str = "FARRIER_TEST_ENTRIES";

/// What belongs to someone else and may not get into an archive.
const SECRET: &str = "root's own password";

fn sh(script: &str, path: &Path) -> String {
    let output = Command::new("sh").args(["-c", script, "sh"]).arg(path).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Fills the home with everything that is not a plain file of its owner.
fn fill(project: &Project, entries: usize) {
    let home = project.path("world/homes/foxes");
    for folder in 0..entries.div_ceil(10_000) {
        let folder = home.join(format!("many_{folder}"));
        fs::create_dir(&folder).unwrap();
        for file in 0..entries.min(10_000) {
            fs::File::create(folder.join(file.to_string())).unwrap();
        }
    }
    let mut folder = open(&home, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..entries / 10 {
        mkdirat(&folder, "d", Mode::RWXU).unwrap();
        folder = openat(&folder, "d", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    for name in [&b"line\nbreak"[..], b"\xff\xfe not text", b"$(reboot)", b"-rf", b"tab\t\x7f\x01"] {
        fs::write(home.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let holes = fs::File::create(home.join("holes")).unwrap();
    holes.write_at(b"middle", 500 << 30).unwrap();
    holes.set_len(1 << 40).unwrap();
    fs::write(home.join("grows"), "").unwrap();
    fs::write(home.join("setuid"), "#!/bin/sh\n").unwrap();
    sh("chown -hR 52503:52503 \"$1\"", &home);
    fs::set_permissions(home.join("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    for (name, kind, device) in [
        ("pipe", FileType::Fifo, 0),
        ("memory", FileType::CharacterDevice, makedev(1, 1)),
        ("disk", FileType::BlockDevice, makedev(259, 70_000)),
    ] {
        mknodat(CWD, home.join(name), kind, Mode::RWXU, device).unwrap();
    }
    drop(UnixListener::bind(home.join("socket")).unwrap());
    symlink(".", home.join("loop")).unwrap();
    project.write("world/secret", SECRET);
    fs::set_permissions(project.path("world/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(project.path("world/secret"), home.join("exfiltrated")).unwrap();
}

/// A file that grows until this is dropped, wherever it is moved.
struct Growing(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Growing {
    fn of(file: &Path) -> Growing {
        let mut file = fs::OpenOptions::new().append(true).open(file).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let writing = std::thread::spawn({
            let over = over.clone();
            move || {
                while !over.load(Ordering::SeqCst) {
                    file.write_all(&[b'y'; 4096]).unwrap();
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Growing(over, Some(writing))
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        let _ = self.1.take().map(JoinHandle::join);
    }
}

/// Guards T38 with the program as it is shipped: nothing hangs, nothing foreign gets out, and what is left out is told.
#[test]
fn a_hostile_home_is_archived_and_deleted_by_the_helper() {
    let project = project();
    let entries = std::env::var(ENTRIES).map_or(5_000, |number| number.parse().unwrap());
    fill(&project, entries);
    let growing = Growing::of(&project.path("world/homes/foxes/grows"));
    project.farrier(&["run", "retire", "--env", "test", "--yes"]).expect(0);
    drop(growing);
    is_archived_and_deleted(&project);
    let quarantine = fs::read_dir(project.path("world/homes/.farrier-private/quarantine")).unwrap();
    assert_eq!(quarantine.count(), 0, "nothing of it is left");
    assert_eq!(project.read("world/secret"), SECRET);
    assert_eq!(fs::metadata(project.path("world/secret")).unwrap().nlink(), 1);

    let outputs = &project.show_last()["outputs"];
    assert!(outputs["entries"].as_u64().unwrap() > entries as u64, "{outputs}");
    // The socket, the file of root's, and what is more than 256 folders deep.
    assert_eq!(outputs["not_stored"], if entries > 2_560 { 3 } else { 2 }, "{outputs}");
    let archive = project.path("world/archives/foxes.tgz");
    let found = sh(&format!("gzip -dc \"$1\" | grep -c -a -F \"{SECRET}\" || true"), &archive);
    assert_eq!(found, "0", "what belongs to root is in the archive");
    let plain: u64 = sh("gzip -dc \"$1\" | wc -c", &archive).parse().unwrap();
    assert!(plain < (100 << 20) + 2_048 * entries as u64, "the holes of a file take {plain} bytes");
}
