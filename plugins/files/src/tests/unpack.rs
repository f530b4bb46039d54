//! Archives are unpacked by an ordinary account, as far as that is safe.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use farrier_model::FailureKind;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::*;
use crate::Unpacked;

async fn unpack(archive: &Path, into: &Path) -> Result<Unpacked, Failure> {
    crate::unpack(fs::File::open(archive).unwrap(), into, None).await
}

#[tokio::test]
async fn what_was_archived_is_there_again() {
    must_be_root();
    for ending in [".tgz", ".tar.zst"] {
        let place = Place::new();
        let home = place.at("homes/foxes");
        toolforge_home(&home);
        mknodat(CWD, home.join("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        mknodat(CWD, home.join("null"), FileType::CharacterDevice, Mode::RWXU, makedev(1, 3)).unwrap();
        drop(std::os::unix::net::UnixListener::bind(home.join("socket")).unwrap());
        let holes = fs::File::create(home.join("holes")).unwrap();
        holes.write_at(b"begin", 0).unwrap();
        holes.write_at(b"middle", 500 << 30).unwrap();
        holes.set_len(1 << 40).unwrap();
        fs::File::create(home.join("only_hole")).unwrap().set_len(1 << 20).unwrap();
        let long = format!("long/{}/{}", "a".repeat(120), "b".repeat(120));
        fs::create_dir_all(home.join(&long).parent().unwrap()).unwrap();
        fs::write(home.join(&long), "long").unwrap();
        fs::set_permissions(home.join("www/python/src/app.py"), fs::Permissions::from_mode(0o6755)).unwrap();
        fs::set_permissions(home.join("logs"), fs::Permissions::from_mode(0o555)).unwrap();
        fs::write(place.at("staging/dump.sql"), "a dump").unwrap();
        let mut input = archive_as("foxes", ending, OWNER);
        let added = json("[{'root': 'staging', 'path': ['dump.sql']}]");
        input = Value::map(
            input
                .as_map()
                .unwrap()
                .iter()
                .map(|(k, v)| (k.clone(), v.clone()))
                .chain([("add".into(), added)]),
        );
        let times = |path: &str| fs::metadata(home.join(path)).unwrap().mtime();
        let (app, logs) = (times("www/python/src/app.py"), times("logs"));
        let archived = place.step("files.archive", "archive", &input).await.unwrap();

        let into = place.at("restored");
        let archive = place.at(format!("archives/foxes{ending}"));
        let unpacked = unpack(&archive, &into).await.unwrap();
        let entries = archived.get("manifest").unwrap().get("entries").unwrap().as_int().unwrap();
        assert_eq!((unpacked.tree.as_str(), unpacked.owner), ("tool_homes/foxes", OWNER));
        assert_eq!((unpacked.devices, unpacked.not_stored, unpacked.changed), (1, 1, 0));
        assert_eq!(unpacked.entries, entries.cast_unsigned() - 1);

        let out = |path: &str| into.join("foxes").join(path);
        let numbers = (0..50_000).map(|n| format!("{n}\n")).collect::<String>();
        assert_eq!(fs::read_to_string(out("data/numbers")).unwrap(), numbers);
        let inode = |path: &str| fs::metadata(out(path)).unwrap().ino();
        assert_eq!(inode("data/numbers"), inode("data/again"));
        assert_eq!(fs::read_link(out("data/outside")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(fs::read_to_string(out(&long)).unwrap(), "long");
        assert_eq!(fs::read(out("only_hole")).unwrap(), vec![0; 1 << 20]);
        let holes = fs::File::open(out("holes")).unwrap();
        let mut middle = [1; 8];
        holes.read_exact_at(&mut middle, (500 << 30) - 1).unwrap();
        assert_eq!(&middle, b"\0middle\0");
        assert_eq!(holes.metadata().unwrap().len(), 1 << 40);
        assert!(holes.metadata().unwrap().blocks() < 1000);
        let found = |path: &str| {
            let found = fs::symlink_metadata(out(path)).unwrap();
            (found.mode() & 0o7777, found.uid(), found.mtime())
        };
        let me = rustix::process::geteuid().as_raw();
        assert_eq!(found("www/python/src/app.py"), (0o755, me, app));
        assert_eq!(found("logs"), (0o555, me, logs));
        assert_eq!(found("replica.my.cnf").0, 0o400);
        assert!(!out("null").exists() && !out("socket").exists() && out("pipe").exists());
        assert_eq!(fs::read_to_string(into.join("_added/staging/dump.sql")).unwrap(), "a dump");
        assert!(into.join("_manifest.jsonl").exists());

        let again = unpack(&archive, &into).await.unwrap_err();
        assert_eq!(again.kind, FailureKind::Refused);
        let (other, open) = (place.at("other"), || fs::File::open(&archive).unwrap());
        let wrong = crate::unpack(open(), &other, Some("0".repeat(64))).await.unwrap_err();
        assert_eq!(wrong.kind, FailureKind::Drift);
        assert!(!other.exists() && !place.at("other.part").exists());
        crate::unpack(open(), &other, Some(text(&archived, "sha256"))).await.unwrap();
    }
}

/// A member as someone may write it who can write an archive.
struct Made {
    path: &'static str,
    kind: EntryType,
    to: &'static str,
    content: &'static str,
}

fn file(path: &'static str, content: &'static str) -> Made {
    Made { path, kind: EntryType::Regular, to: "", content }
}

fn link(path: &'static str, kind: EntryType, to: &'static str) -> Made {
    Made { path, kind, to, content: "" }
}

fn lines_of(members: &[Made]) -> String {
    let mut lines = format!("{}\n", serde_json::json!({ "tree": "t", "owner": 1, "effect": "e" }));
    for Made { path, kind, to, content } in members {
        let is_file = *kind == EntryType::Regular;
        let mut line = serde_json::json!({
            "path": path, "kind": if is_file { "file" } else { "link" }, "stored": content.len(),
        });
        if is_file {
            line["sha256"] = hex::encode(Sha256::digest(content)).into();
        }
        if !to.is_empty() {
            line["to"] = (*to).into();
        }
        lines.push_str(&format!("{line}\n"));
    }
    lines
}

fn write_archive(at: &Path, members: &[Made], lines: &str) {
    let mut tar = Vec::new();
    for (path, kind, to, content) in members
        .iter()
        .map(|made| (made.path, made.kind, made.to, made.content))
        .chain([("_manifest.jsonl", EntryType::Regular, "", lines)])
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..to.len()].copy_from_slice(to.as_bytes());
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(content.as_bytes());
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    let mut gzip = flate2::write::GzEncoder::new(fs::File::create(at).unwrap(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    gzip.finish().unwrap();
}

#[tokio::test]
async fn nothing_gets_out_of_the_new_folder() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    let archive = dir.path().join("bad.tgz");
    let beyond: &'static str = Box::leak(format!("{}/new", outside.display()).into_boxed_str());
    let kept: &'static str = Box::leak(format!("{}/kept", outside.display()).into_boxed_str());
    let folder: &'static str = Box::leak(outside.display().to_string().into_boxed_str());
    let symlink = EntryType::Symlink;
    let bad: Vec<(Vec<Made>, &str)> = vec![
        (vec![file("../outside/new", "x")], "no path beneath"),
        (vec![file("a/../../outside/new", "x")], "no path beneath"),
        (vec![file(beyond, "x")], "no path beneath"),
        (vec![file("a//b", "x")], "no path beneath"),
        (vec![file(".", "x")], "no path beneath"),
        (vec![link("l", symlink, folder), file("l/new", "x")], "cannot unpack into `l`"),
        (vec![link("l", symlink, "../outside"), file("l/new", "x")], "cannot unpack into `l`"),
        (vec![link("l", symlink, kept), file("l", "x")], "cannot unpack `l`"),
        (vec![file("f", "x"), file("f", "y")], "cannot unpack `f`"),
        (vec![link("h", EntryType::Link, "../outside/kept")], "no path beneath"),
        (vec![link("h", EntryType::Link, kept)], "no path beneath"),
        (vec![link("l", symlink, folder), link("h", EntryType::Link, "l/kept")], "cannot unpack into `l`"),
        (vec![link("c", EntryType::Continuous, "")], "of a kind"),
    ];
    for (number, (members, why)) in bad.into_iter().enumerate() {
        write_archive(&archive, &members, &lines_of(&members));
        let into = dir.path().join(format!("into{number}"));
        let failure = unpack(&archive, &into).await.unwrap_err();
        assert!(failure.message.contains(why), "{number}: {failure}");
        assert!(failure.help.as_ref().is_some_and(|help| help.contains(".part")), "{failure:?}");
        assert!(!into.exists(), "{number}");
        let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["kept"], "{number}");
        assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "kept");
        assert_eq!(fs::metadata(outside.join("kept")).unwrap().nlink(), 1);
    }
}

#[tokio::test]
async fn what_is_not_whole_is_not_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("a.tgz");
    let into = dir.path().join("into");
    let members = [file("t/a", "content"), file("t/b", "more")];
    let honest = lines_of(&members);
    let others = [
        (lines_of(&[file("t/a", "c0ntent"), file("t/b", "more")]), "another digest"),
        (lines_of(&members[..1]), "not in the manifest"),
        (lines_of(&[file("t/a", "content"), file("t/b", "more"), file("t/c", "")]), "`t/c` is not in it"),
        (lines_of(&[file("t/a", "content"), file("t/c", "more")]), "stands where"),
    ];
    for (lines, why) in others {
        write_archive(&archive, &members, &lines);
        let failure = unpack(&archive, &into).await.unwrap_err();
        assert!(failure.message.contains(why), "{failure}");
        assert!(!into.exists());
        fs::remove_dir_all(dir.path().join("into.part")).unwrap();
    }

    write_archive(&archive, &members, &honest);
    let whole = fs::read(&archive).unwrap();
    for cut in [3, 20, whole.len() / 2, whole.len() - 1] {
        fs::write(&archive, &whole[..cut]).unwrap();
        unpack(&archive, &into).await.unwrap_err();
        // Found before anything is unpacked, so nothing is left.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "cut at {cut}");
    }
    fs::write(&archive, "no archive").unwrap();
    assert!(unpack(&archive, &into).await.unwrap_err().message.contains("neither gzip nor zstd"));
    fs::create_dir(dir.path().join("into.part")).unwrap();
    fs::write(&archive, &whole).unwrap();
    assert!(unpack(&archive, &into).await.unwrap_err().help.unwrap().contains("an attempt that ended early"));
    fs::remove_dir(dir.path().join("into.part")).unwrap();
    unpack(&archive, &into).await.unwrap();
    assert_eq!(fs::read_to_string(into.join("t/b")).unwrap(), "more");
}
