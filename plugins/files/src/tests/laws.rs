//! What the actions do in peace, and the laws that all actions keep.

use farrier_action::harness::Case;
use farrier_model::FailureKind;

use super::*;

fn case<'a>(place: &'a Place, action: &'a str, input: Value, bad_inputs: &[Value]) -> Case<'a> {
    Case {
        registry: &place.registry,
        action,
        input,
        targets: place.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| Box::pin(async { place.world() })),
        disturb: None,
        bad_inputs: bad_inputs.to_vec(),
    }
}

fn with(input: &Value, key: &str, value: &str) -> Value {
    let entries = input.as_map().unwrap().iter().map(|(key, value)| (key.clone(), value.clone()));
    Value::map(entries.filter(|(name, _)| &**name != key).chain([(key.into(), json(value))]))
}

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[tokio::test]
async fn a_tree_is_archived_and_brought_back() {
    for ending in [".tgz", ".tar.gz", ".tar.zst", ".tzst"] {
        let place = Place::new();
        toolforge_home(&place.at("homes/foxes"));
        let owner = if me() == 0 { OWNER } else { me() };
        let input = archive_as("foxes", ending, owner);
        let bad = [
            with(&input, "into", "{'root': 'archives', 'path': ['foxes.zip']}"),
            with(&input, "into", "{'root': 'archives', 'path': ['.tgz']}"),
            with(&input, "into", "{'root': 'archives', 'path': ['..', 'foxes.tgz']}"),
            with(&input, "into", "{'root': 'nothing', 'path': ['foxes.tgz']}"),
            with(&input, "into", "{'root': 'archives', 'path': ['foxes.tgz'], 'if_exists': 'overwrite'}"),
            with(&input, "into", "{'root': 'archives', 'path': ['.farrier-private', 'foxes.tgz']}"),
            with(&input, "source", "{'root': 'tool_homes', 'path': ['a', 'b'], 'owner': 1}"),
            with(&input, "source", "{'root': 'tool_homes', 'path': ['..'], 'owner': 1}"),
            with(&input, "source", "{'root': 'tool_homes', 'path': ['foxes']}"),
            with(&input, "add", "[{'root': 'staging', 'path': ['x'], 'target': 'others'}]"),
            with(&input, "add", "[{'root': 'staging', 'path': ['x'], 'sha256': 'no'}]"),
            with(&input, "max_entries", "0"),
            with(&input, "surprise", "1"),
        ];
        let mut case = case(&place, "files.archive", input, &bad);
        case.disturb = Some(Box::new(|| {
            Box::pin(async {
                fs::rename(place.at("homes/foxes"), place.at("homes/other")).unwrap();
                fs::create_dir(place.at("homes/foxes")).unwrap();
                fs::remove_dir_all(place.at("homes/other")).unwrap();
            })
        }));
        let shown = case.prove().await.unwrap();
        assert_eq!(shown.plan.changes.len(), 2);
        let file = json(&format!("{{'root': 'archives', 'path': ['foxes{ending}']}}"));
        assert_eq!(shown.output.get("file").unwrap(), &file);
        assert!(shown.plan.output.unwrap().get("sha256").unwrap().unknown_after().is_some());
        assert!(shown.plan.notes[0].contains("files in"), "{:?}", shown.plan.notes);
    }
}

#[tokio::test]
async fn the_archive_holds_the_tree_as_it_was() {
    must_be_root();
    for ending in [".tgz", ".tar.zst"] {
        let place = Place::new();
        toolforge_home(&place.at("homes/foxes"));
        let mut before = Vec::new();
        describe(&place.at("homes/foxes"), &place.at("homes/foxes"), &mut before);
        fs::create_dir(place.at("staging/tools.foxes")).unwrap();
        fs::write(place.at("staging/tools.foxes/s52503__data.sql.zst"), "dump").unwrap();
        let digest = "4b7a1f4ebeb0ef4cda5da4a8f2aa8d7e6ff3b8bbd3b1c5ea8e7d26c0b5f7c9d1";
        let added = |more: &str| {
            format!(
                "[{{'target': 'homes', 'root': 'staging', 'path': ['tools.foxes', 's52503__data.sql.zst']{more}}}]"
            )
        };
        // A dump that is not what its step said stops everything.
        let input = archive_as("foxes", ending, OWNER);
        let wrong = with(&input, "add", &added(&format!(", 'sha256': '{digest}'")));
        let failure = place.step("files.archive", "wrong", &wrong).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
        let changes = json_changes(&place, "wrong", &wrong).await;
        place.undo("files.archive", "wrong", &wrong, &changes).await.unwrap();

        let archived =
            place.step("files.archive", "archive", &with(&input, "add", &added(""))).await.unwrap();
        let archive = place.at(format!("archives/foxes{ending}"));
        let mode = fs::metadata(&archive).unwrap();
        assert_eq!((mode.mode() & 0o7777, mode.uid()), (0o600, 0));
        let bytes = fs::read(&archive).unwrap();
        let magic: &[u8] = if ending == ".tgz" { &[0x1f, 0x8b] } else { &[0x28, 0xb5, 0x2f, 0xfd] };
        assert_eq!(&bytes[..magic.len()], magic);
        use sha2::Digest as _;
        assert_eq!(text(&archived, "sha256"), hex::encode(sha2::Sha256::digest(&bytes)));

        let unpacked = unpack(&archive);
        let mut after = Vec::new();
        describe(&unpacked.path().join("foxes"), &unpacked.path().join("foxes"), &mut after);
        assert_eq!(after, before);
        assert_eq!(
            fs::read(unpacked.path().join("_added/staging/tools.foxes/s52503__data.sql.zst")).unwrap(),
            b"dump"
        );
        let lines = manifest_lines(unpacked.path());
        let manifest = archived.get("manifest").unwrap();
        assert_eq!(manifest.get("entries").unwrap().as_int(), Some(lines.len() as i64 - 1));
        assert_eq!(manifest.get("not_stored").unwrap().as_int(), Some(0));
        assert_eq!(lines[0]["tree"], "tool_homes/foxes");

        let checked = place.step("files.check_archive", "checked", &check_input(&archived)).await.unwrap();
        assert_eq!(checked.get("sha256"), archived.get("sha256"));
        assert_eq!(names(&place.at("archives")), [PRIVATE.to_owned(), format!("foxes{ending}")]);
        assert!(!place.at("homes/foxes").exists());
    }
}

async fn json_changes(place: &Place, step: &str, input: &Value) -> Vec<Change> {
    place.plan("files.archive", step, input).await.unwrap().changes
}

#[tokio::test]
async fn nothing_is_archived_that_is_not_what_was_meant() {
    must_be_root();
    let place = Place::new();
    toolforge_home(&place.at("homes/foxes"));
    let fails = async |input: &Value, words: &str, kind: FailureKind| {
        let failure = place.step("files.archive", "archive", input).await.unwrap_err();
        assert!(failure.message.contains(words) && failure.kind == kind, "{failure:?}");
        assert_eq!(failure.target.as_deref(), Some("homes"));
        assert!(place.at("homes/foxes/toolinfo.json").exists());
    };
    fails(&archive_input("nobody"), "there is no `tool_homes/nobody`", FailureKind::Refused).await;
    fails(&archive_as("foxes", ".tgz", 1), "belongs to 52503, not to 1", FailureKind::Refused).await;
    fails(&with(&archive_input("foxes"), "max_entries", "3"), "more than 3 entries", FailureKind::Limit)
        .await;
    fails(&with(&archive_input("foxes"), "max_bytes", "3"), "more than `max_bytes`", FailureKind::Limit)
        .await;
    let into = "{'root': 'archives', 'path': ['no', 'foxes.tgz']}";
    fails(&with(&archive_input("foxes"), "into", into), "cannot open the folder", FailureKind::Refused).await;
    fs::write(place.at("archives/foxes.tgz"), "an older archive").unwrap();
    fails(&archive_input("foxes"), "exists already", FailureKind::Refused).await;
    assert_eq!(fs::read(place.at("archives/foxes.tgz")).unwrap(), b"an older archive");
    fs::remove_file(place.at("archives/foxes.tgz")).unwrap();

    fs::write(place.at("homes/file"), "").unwrap();
    fails(&archive_input("file"), "is a regular file, not a folder", FailureKind::Refused).await;
    symlink("foxes", place.at("homes/link")).unwrap();
    fails(&archive_input("link"), "is a link, not a folder", FailureKind::Refused).await;

    // The name is taken between plan and apply.
    let changes = json_changes(&place, "archive", &archive_input("foxes")).await;
    symlink("/dev/null", place.at("archives/foxes.tgz")).unwrap();
    let failure =
        place.apply("files.archive", "archive", &archive_input("foxes"), &changes).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
    assert!(place.at("homes/foxes/toolinfo.json").exists(), "the tree was not taken for it");
}

#[tokio::test]
async fn an_archive_that_was_made_and_not_yet_named_is_not_taken_for_done() {
    must_be_root();
    let place = Place::new();
    toolforge_home(&place.at("homes/foxes"));
    let input = archive_input("foxes");
    let changes = json_changes(&place, "archive", &input).await;
    // Someone takes the name between the look and the end of the packing.
    let name = place.at("archives/foxes.tgz");
    let taken = name.clone();
    let hook: crate::work::faults::Hook = Arc::new(move |point| {
        if point == "archive is recorded" {
            fs::write(&taken, "theirs").unwrap();
        }
        Ok(())
    });
    let failure = place.make(&Work::hooked(hook), "archive", &input, &changes).await.unwrap_err();
    assert!(failure.message.contains("exists already"), "{failure}");
    let failure = place.plan("files.archive", "archive", &input).await.unwrap_err();
    assert!(failure.message.contains("exists already"), "{failure}");
    assert_eq!(fs::read(&name).unwrap(), b"theirs");
    fs::remove_file(&name).unwrap();
    let again = place.plan("files.archive", "archive", &input).await.unwrap().changes;
    assert_eq!(again, changes);
    let archived = place.apply("files.archive", "archive", &input, &again).await.unwrap();
    place.step("files.check_archive", "checked", &check_input(&archived)).await.unwrap();
    assert!(place.plan("files.archive", "archive", &input).await.unwrap().changes.is_empty());
}

#[tokio::test]
async fn a_tree_is_deleted_by_the_digest_of_its_archive_alone() {
    must_be_root();
    let place = Place::new();
    toolforge_home(&place.at("homes/foxes"));
    toolforge_home(&place.at("homes/hares"));
    let refused = async |input: &Value, words: &str| {
        let failure = place.step("files.delete_tree", "delete", input).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
        assert!(failure.message.contains(words), "{failure}");
    };
    refused(&delete_input("foxes", &"0".repeat(64)), "no archive with the digest").await;
    let archived = place.step("files.archive", "archive", &archive_input("foxes")).await.unwrap();
    let sha256 = text(&archived, "sha256");
    refused(&delete_input("hares", &sha256), "holds `tool_homes/foxes`, not `tool_homes/hares`").await;
    refused(&delete_input("foxes", &"0".repeat(64)), "no archive with the digest").await;

    let input = delete_input("foxes", &sha256);
    let bad = [delete_input("foxes", ""), delete_input("foxes", "xyz"), delete_input("..", &sha256)];
    let shown = case(&place, "files.delete_tree", input.clone(), &bad).prove().await.unwrap();
    let change = &shown.plan.changes[0];
    assert_eq!((&*change.object, change.kind.name()), ("tool_homes/foxes", "delete"));
    assert_eq!(change.before.get("sha256").unwrap().as_str(), Some(&*sha256));
    assert_eq!(shown.output.get("deleted").unwrap().as_int(), Some(21));
    assert_eq!(place.probe("delete", &input, &shown.plan.changes).await.unwrap(), Probe::Applied);
    assert_eq!(place.quarantine(), Vec::<String>::new());
    assert!(place.at("homes/hares/toolinfo.json").exists() && place.at("archives/foxes.tgz").exists());

    // The archive step, asked again, still knows its archive and makes no other.
    let again = place.step("files.archive", "archive", &archive_input("foxes")).await.unwrap();
    assert_eq!(again, archived);
}

#[tokio::test]
async fn what_took_the_place_of_the_tree_is_never_deleted() {
    must_be_root();
    let place = Place::new();
    toolforge_home(&place.at("homes/foxes"));
    let archived = place.step("files.archive", "archive", &archive_input("foxes")).await.unwrap();
    let input = delete_input("foxes", &text(&archived, "sha256"));
    let changes = place.plan("files.delete_tree", "delete", &input).await.unwrap().changes;
    // Someone logs in, and a new home is made.
    fs::create_dir(place.at("homes/foxes")).unwrap();
    fs::write(place.at("homes/foxes/new"), "new").unwrap();
    for result in [
        place.plan("files.delete_tree", "delete", &input).await.map(|_| ()),
        place.apply("files.delete_tree", "delete", &input, &changes).await.map(|_| ()),
    ] {
        let failure = result.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
        assert!(failure.message.contains("something else in its place"), "{failure}");
    }
    assert_eq!(fs::read(place.at("homes/foxes/new")).unwrap(), b"new");
    // Undoing the archive does not overwrite it either, and keeps the archive.
    let archive_changes = archive_changes(&place);
    let failure =
        place.undo("files.archive", "archive", &archive_input("foxes"), &archive_changes).await.unwrap_err();
    assert!(failure.message.contains("something else has its place"), "{failure}");
    assert!(place.at("archives/foxes.tgz").exists());
    assert_eq!(place.quarantine().len(), 1);
}

/// The changes that a plan of the archive of the tree in quarantine would have shown.
fn archive_changes(place: &Place) -> Vec<Change> {
    let quarantine = place.at("homes").join(PRIVATE).join("quarantine");
    let metadata = fs::metadata(quarantine.join(&place.quarantine()[0]).join("foxes")).unwrap();
    let fingerprint = format!("{}:{}:{}", metadata.dev(), metadata.ino(), metadata.uid());
    vec![Change {
        object: "tool_homes/foxes".into(),
        kind: farrier_model::ChangeKind::Update,
        before: Value::Null,
        after: Value::Null,
        fingerprint: Some(fingerprint.into()),
    }]
}

#[tokio::test]
async fn a_damaged_archive_deletes_nothing() {
    must_be_root();
    for ending in [".tgz", ".tar.zst"] {
        let place = Place::new();
        toolforge_home(&place.at("homes/foxes"));
        let archived =
            place.step("files.archive", "archive", &archive_as("foxes", ending, OWNER)).await.unwrap();
        let path = place.at(format!("archives/foxes{ending}"));
        let good = fs::read(&path).unwrap();
        let input = delete_input("foxes", &text(&archived, "sha256"));
        let tree = || {
            let mut lines = Vec::new();
            let quarantine = place.at("homes").join(PRIVATE).join("quarantine");
            describe(&quarantine, &quarantine, &mut lines);
            lines
        };
        let before = tree();
        // One bit at the beginning, in the middle, near the end; cut short; longer; empty.
        let mut damaged: Vec<Vec<u8>> = [3, 40, good.len() / 2, good.len() - 3]
            .iter()
            .map(|at| {
                let mut bytes = good.clone();
                bytes[*at] ^= 0x10;
                bytes
            })
            .collect();
        damaged.push(good[..good.len() - 1].to_vec());
        damaged.push([&*good, b"\0"].concat());
        damaged.push([&*good, &*good].concat());
        damaged.push(Vec::new());
        for bytes in damaged {
            fs::write(&path, &bytes).unwrap();
            let failure = place.step("files.delete_tree", "delete", &input).await.unwrap_err();
            assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
            assert!(failure.message.contains("not what was written"), "{failure}");
            assert_eq!(tree(), before);
            let checked = place.step("files.check_archive", "checked", &check_input(&archived)).await;
            match checked {
                Err(failure) => assert_eq!(failure.kind, FailureKind::Drift, "{failure}"),
                // What a decoder passes over (an unused header field, what follows the end) the digest tells.
                Ok(checked) => assert_ne!(checked.get("sha256"), archived.get("sha256")),
            }
        }
        fs::remove_file(&path).unwrap();
        let failure = place.step("files.delete_tree", "delete", &input).await.unwrap_err();
        assert!(failure.message.contains("is not there any more"), "{failure}");
        symlink(place.at("elsewhere"), &path).unwrap();
        fs::write(place.at("elsewhere"), &good).unwrap();
        place.step("files.delete_tree", "delete", &input).await.unwrap_err();
        assert_eq!(tree(), before);
        fs::remove_file(&path).unwrap();
        fs::write(&path, &good).unwrap();
        place.step("files.delete_tree", "delete", &input).await.unwrap();
        assert_eq!(place.quarantine(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn undo_removes_only_the_archive_that_the_step_made() {
    must_be_root();
    let place = Place::new();
    toolforge_home(&place.at("homes/foxes"));
    let input = archive_input("foxes");
    let changes = json_changes(&place, "archive", &input).await;
    let world = place.world();
    place.apply("files.archive", "archive", &input, &changes).await.unwrap();
    // Someone keeps it under another name and puts theirs there.
    fs::rename(place.at("archives/foxes.tgz"), place.at("archives/kept.tgz")).unwrap();
    fs::write(place.at("archives/foxes.tgz"), "theirs").unwrap();
    place.undo("files.archive", "archive", &input, &changes).await.unwrap();
    assert_eq!(fs::read(place.at("archives/foxes.tgz")).unwrap(), b"theirs");
    assert_eq!(place.world()["tool_homes/foxes"], world["tool_homes/foxes"]);
    // Another run archives the tree again, under a digest of its own.
    fs::remove_file(place.at("archives/foxes.tgz")).unwrap();
    let first = place.step("files.archive", "one", &input).await.unwrap();
    let changes = archive_changes(&place);
    place.undo("files.archive", "one", &input, &changes).await.unwrap();
    let second = place.step("files.archive", "two", &input).await.unwrap();
    assert_ne!(first.get("sha256"), second.get("sha256"));
    let failure = place
        .plan("files.delete_tree", "delete", &delete_input("foxes", &text(&first, "sha256")))
        .await
        .unwrap_err();
    assert!(failure.message.contains("no archive with the digest"), "{failure}");
}

#[tokio::test]
async fn a_private_folder_that_others_can_reach_is_refused() {
    must_be_root();
    let place = Place::new();
    toolforge_home(&place.at("homes/foxes"));
    let private = place.at("homes").join(PRIVATE);
    fs::create_dir(&private).unwrap();
    for (mode, owner) in [(0o755, 0), (0o700, OWNER)] {
        fs::set_permissions(&private, fs::Permissions::from_mode(mode)).unwrap();
        chown(&private, Some(owner), None).unwrap();
        let failure = place.step("files.archive", "archive", &archive_input("foxes")).await.unwrap_err();
        assert!(failure.message.contains("must be this account's with mode 0700"), "{failure}");
    }
    fs::remove_dir(&private).unwrap();
    symlink(place.at("staging"), &private).unwrap();
    place.step("files.archive", "archive", &archive_input("foxes")).await.unwrap_err();
    assert_eq!(names(&place.at("staging")), Vec::<String>::new());
    assert!(place.at("homes/foxes/toolinfo.json").exists());
}

#[tokio::test]
async fn a_stand_in_says_whose_folders_are() {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["homes/foxes", "archives"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    let config =
        "{'roots': {'tool_homes': 'homes', 'archives': 'archives'}, 'owners': {'tool_homes': {'foxes': 77}}}";
    let registry = registry();
    assert!(registry.is_stand_in("files", &json(config)).unwrap());
    let at = targets(dir.path(), config);
    let plan = async |targets: Arc<Targets>, owner: u32| {
        registry
            .bind("files.archive", &archive_as("foxes", ".tgz", owner))
            .unwrap()
            .plan(&cx(targets, "a"))
            .await
    };
    assert_eq!(plan(at.clone(), 77).await.unwrap().changes.len(), 2);
    assert!(plan(at.clone(), 78).await.unwrap_err().message.contains("belongs to 77, not to 78"));
    // Real folders have real owners.
    let real = format!(
        "{{'roots': {{'tool_homes': '{0}/homes', 'archives': 'archives'}}, 'owners': {{'tool_homes': {{'foxes': 77}}}}}}",
        dir.path().display()
    );
    assert!(!registry.is_stand_in("files", &json(&real)).unwrap());
    assert!(
        plan(targets(dir.path(), &real), 77).await.unwrap_err().message.contains("`owners` is for stand-ins")
    );
    // A copy of the environment copies its links, and they lead to the world that was copied.
    symlink(dir.path().join("homes"), dir.path().join("linked")).unwrap();
    let linked = targets(dir.path(), "{'roots': {'tool_homes': 'linked', 'archives': 'archives'}}");
    let failure = plan(linked, 77).await.unwrap_err();
    assert!(failure.help.unwrap_or_default().contains("no link"), "{}", failure.message);
}

#[tokio::test]
async fn a_file_is_written_and_brought_back() {
    let place = Place::new();
    fs::create_dir(place.at("homes/foxes")).unwrap();
    let input = |more: &str| {
        json(&format!(
            "{{'target': 'homes', 'file': {{'root': 'staging', 'path': ['flag']}}, 'content': 'new ä'{more}}}"
        ))
    };
    let bad = [
        input(", 'mode': '4755'"),
        input(", 'mode': '9'"),
        input(", 'mode': '01777'"),
        input(", 'surprise': 1"),
        with(&input(""), "file", "{'root': 'staging', 'path': ['..', 'flag']}"),
        with(&input(""), "file", "{'root': 'staging', 'path': []}"),
        with(&input(""), "file", "{'root': 'staging', 'path': ['.farrier-private', 'x']}"),
    ];
    for before in [None, Some("old"), Some("")] {
        let path = place.at("staging/flag");
        let _ = fs::remove_file(&path);
        if let Some(before) = before {
            fs::write(&path, before).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        }
        let mut case = case(&place, "files.write", input(", 'mode': '0640'"), &bad);
        case.disturb = Some(Box::new(|| {
            Box::pin(async {
                fs::write(place.at("staging/flag"), "someone else's").unwrap();
            })
        }));
        let shown = case.prove().await.unwrap();
        assert_eq!(shown.plan.changes[0].kind.name(), if before.is_some() { "update" } else { "create" });
        assert_eq!(names(&place.at("staging").join(PRIVATE).join("writing")), Vec::<String>::new());
    }
    // Mode and owner stay as they are when nothing is said of them.
    let path = place.at("staging/flag");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
    place.step("files.write", "write", &input("")).await.unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "new ä");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o604);
    let planned = place.plan("files.write", "write", &input("")).await.unwrap();
    assert!(planned.changes.is_empty());
    if me() == 0 {
        place.step("files.write", "write", &input(", 'owner': {'user': 7, 'group': 8}")).await.unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (7, 8));
    }
}

#[tokio::test]
async fn a_file_is_never_written_through_a_link() {
    let place = Place::new();
    fs::create_dir(place.at("homes/foxes")).unwrap();
    fs::write(place.at("canary"), "canary").unwrap();
    let input = |path: &str| {
        json(&format!(
            "{{'target': 'homes', 'file': {{'root': 'tool_homes', 'path': {path}}}, 'content': 'new'}}"
        ))
    };
    let at = |name: &str| place.at("homes/foxes").join(name);
    symlink(place.at("canary"), at("link")).unwrap();
    symlink("..", at("up")).unwrap();
    symlink(place.at("staging"), at("out")).unwrap();
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("bytes"), b"\xff\xfe").unwrap();
    fs::File::create(at("large")).unwrap().set_len(2 << 20).unwrap();
    fs::write(at("setuid"), "x").unwrap();
    fs::set_permissions(at("setuid"), fs::Permissions::from_mode(0o4755)).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .unwrap();
    for path in [
        "['foxes', 'link']",
        "['foxes', 'up', 'x']",
        "['foxes', 'out', 'x']",
        "['foxes', 'folder']",
        "['foxes', 'bytes']",
        "['foxes', 'large']",
        "['foxes', 'setuid']",
        "['foxes', 'pipe']",
        "['foxes', 'nowhere', 'x']",
    ] {
        let failure = place.step("files.write", "write", &input(path)).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused, "{path}: {failure}");
    }
    // A link that takes the file's place after the plan is put back, and not written through.
    fs::write(at("swapped"), "old").unwrap();
    let swapped = input("['foxes', 'swapped']");
    let changes = place.plan("files.write", "write", &swapped).await.unwrap().changes;
    fs::remove_file(at("swapped")).unwrap();
    symlink(place.at("canary"), at("swapped")).unwrap();
    place.apply("files.write", "write", &swapped, &changes).await.unwrap_err();
    assert_eq!(fs::read(place.at("canary")).unwrap(), b"canary");
    assert!(fs::symlink_metadata(at("swapped")).unwrap().is_symlink());
    assert_eq!(names(&place.at("staging")), Vec::<String>::new());
}

#[tokio::test]
async fn sizes_and_counts_are_told() {
    let place = Place::new();
    let at = |name: &str| place.at("homes").join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::create_dir_all(at("c")).unwrap();
    fs::write(at("a/one"), vec![1; 10_000]).unwrap();
    fs::hard_link(at("a/one"), at("a/two")).unwrap();
    fs::File::create(at("a/b/hole")).unwrap().set_len(1 << 30).unwrap();
    symlink("/", at("c/root")).unwrap();
    fs::write(at("file"), "12345").unwrap();
    fs::create_dir(at(PRIVATE)).unwrap();
    fs::write(at(PRIVATE).join("x"), "x").unwrap();
    let input = |more: &str| json(&format!("{{'target': 'homes', 'root': 'tool_homes'{more}}}"));
    let bad =
        [input(", 'max_entries': 0"), input(", 'path': ['..']"), input(", 'path': ['.farrier-private']")];
    let number = |value: &Value, name: &str| value.get(name).unwrap().as_int().unwrap();

    let used = case(&place, "files.usage", input(", 'path': ['a']"), &bad).prove().await.unwrap().output;
    let total = used.get("total").unwrap();
    assert_eq!((number(total, "files"), number(total, "folders")), (3, 2));
    assert_eq!(number(total, "bytes"), 10_000 + (1 << 30));
    assert!(number(total, "disk_bytes") >= 10_000 && number(total, "disk_bytes") < 100_000);
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(at("a")).unwrap());
    assert_eq!(number(&used, "owner"), i64::from(owner));
    assert!(number(&used, "disk_free") > 0 && number(&used, "disk_size") >= number(&used, "disk_free"));

    for each in ["", ", 'each_folder': true"] {
        let used = place.step("files.usage", "size", &input(each)).await.unwrap();
        let total = used.get("total").unwrap();
        let counts = ["files", "folders", "links"].map(|name| number(total, name));
        assert_eq!(counts, [4, 4, 1], "the private folder is no part of it");
        let folders = used.get("folders").unwrap().as_map().unwrap();
        let names: Vec<&str> = folders.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, if each.is_empty() { vec![] } else { vec!["a", "c"] });
    }
    let gone = place.step("files.usage", "size", &input(", 'path': ['nothing']")).await.unwrap();
    assert_eq!(gone.get("exists").unwrap().as_bool(), Some(false));
    assert!(gone.get("owner").unwrap().is_null());
    let failure =
        place.step("files.usage", "size", &input(", 'max_entries': 2, 'path': ['a']")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Limit);
    let failure =
        place.step("files.usage", "size", &input(", 'path': ['c', 'root', 'etc']")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
}
