//! A home whose disk has snapshots: blocks that were copied while nothing was written, as a volume manager copies them.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use farrier_testkit::wait_until;
use serde_json::json;

use crate::common::Project;
use crate::far::{helper_of, roots_file};
use crate::steps::{is_archived_and_deleted, project};

/// A disk in a file; unmounted when it is dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(image: &Path, at: &Path, options: &str) -> Result<Disk, String> {
        fs::create_dir_all(at).unwrap();
        let output =
            Command::new("mount").args(["-t", "ext4", "-o", options]).args([image, at]).output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        Ok(Disk(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn run(program: &str, words: &[&Path]) {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The project with its homes on a disk of their own; nothing, and it is said, where nobody may mount.
fn on_a_disk() -> Option<(Project, Disk, PathBuf)> {
    let project = project();
    let (image, homes) = (project.path("disk"), project.path("world/homes"));
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    run("mke2fs", &[Path::new("-q"), Path::new("-F"), &image]);
    let kept = project.path("world/kept");
    fs::rename(&homes, &kept).unwrap();
    match Disk::mount(&image, &homes, "loop") {
        Ok(disk) => {
            run("cp", &[Path::new("-a"), &kept.join("foxes"), &homes]);
            Some((project, disk, image))
        }
        Err(why) => {
            eprintln!("NOT TESTED, since nothing can be mounted on this machine: {why}");
            None
        }
    }
}

#[test]
fn what_is_written_after_the_snapshot_is_not_in_the_archive() {
    let Some((project, disk, image)) = on_a_disk() else { return };
    fs::create_dir(project.path("snapshots")).unwrap();
    roots_file(&project, &[("tool_homes", "world/homes"), ("archives", "world/archives")]);
    let snapshots = fs::canonicalize(project.path("snapshots")).unwrap();
    project
        .write("roots", &format!("{}snapshots tool_homes {}\n", project.read("roots"), snapshots.display()));
    project.environment(&json!({ "homes": { "kind": "files", "via": { "helper": helper_of(&project) } } }));
    project.farrier(&["plan", "retire", "--env", "test"]).expect(0).says("from a snapshot in");
    // Someone has a file of the home open, and keeps it.
    let text = project.path("world/homes/foxes/data/text");
    let mut held = fs::OpenOptions::new().append(true).open(&text).unwrap();

    std::thread::scope(|scope| {
        let running = scope.spawn(|| project.farrier(&["run", "retire", "--env", "test", "--yes"]));
        wait_until("the home is taken", || !text.exists());
        let quarantine = project.path("world/homes/.farrier-private/quarantine");
        wait_until("it is in quarantine", || {
            let mut effects = fs::read_dir(&quarantine).unwrap().flatten();
            effects.any(|effect| effect.path().join("foxes").exists())
        });
        held.write_all(b", before the snapshot").unwrap();
        let copy = project.path("copy");
        run("fsfreeze", &[Path::new("-f"), &disk.0]);
        run("cp", &[&image, &copy]);
        run("fsfreeze", &[Path::new("-u"), &disk.0]);
        held.write_all(b", after it").unwrap();
        held.sync_all().unwrap();
        let snapshot = Disk::mount(&copy, &snapshots.join("monday"), "loop,ro,noload").unwrap();
        running.join().unwrap().expect(0);
        drop(snapshot);
    });
    is_archived_and_deleted(&project);
    let archive = project.path("world/archives/foxes.tgz");
    let output = Command::new("tar").arg("-xOzf").arg(&archive).arg("foxes/data/text").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "the owner's own, before the snapshot");
    let outputs = &project.show_last()["outputs"];
    assert_eq!(outputs["snapshot"], "monday", "{outputs}");
}
