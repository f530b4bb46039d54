//! `files.read_many`, by this process and by a helper, with the same results to the letter.

use farrier_action::harness::Case;
use farrier_model::FailureKind;

use super::*;

/// When everything below a folder was last changed.
fn tree(folder: &Path, world: &mut World) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let modified = format!("{:?}", metadata.modified().unwrap());
        world.insert(path.display().to_string(), Value::text(modified));
        if metadata.is_dir() {
            tree(&path, world);
        }
    }
}

async fn read(place: &Place, input: &Value, bad_inputs: &[&str]) -> Result<Value, Failure> {
    let steps = Value::map([("later", Value::Unknown("later".into()))]);
    let case = Case {
        registry: &place.registry,
        action: "files.read_many",
        input: input.clone(),
        targets: place.targets.clone(),
        scope: Scope::new(vec![("steps".into(), steps)]),
        observe: Box::new(|| {
            Box::pin(async {
                let mut world = World::new();
                tree(place.dir(), &mut world);
                world
            })
        }),
        disturb: None,
        bad_inputs: bad_inputs.iter().map(|text| json(text)).collect(),
    };
    Ok(case.prove().await?.output)
}

fn input(more: &str) -> Value {
    json(&format!("{{'target': 'homes', 'root': 'tool_homes', 'as': 'account', {more}}}"))
}

const TOOLS: &str = "'items': [{'cn': 'tools.a'}, {'cn': 'tools.b'}, {'cn': 'tools.c'}, {'cn': 'tools...'}, {'cn': 'tools.x/y'}],
    'key': 'account.cn', 'folder': ['${ account.cn | after(\\\".\\\") }'],
    'read': {'description': '.description', 'toolinfo': ['toolinfo.json', 'public_html/toolinfo.json']}";

fn homes() -> Place {
    let place = Place::in_memory();
    let at = |name: &str| place.at("homes").join(name);
    fs::create_dir_all(at("a/public_html")).unwrap();
    fs::create_dir_all(at("b/public_html")).unwrap();
    fs::write(at("a/.description"), "one\r\ntwo\n\nfour 🦊\n").unwrap();
    fs::write(at("a/toolinfo.json"), "first").unwrap();
    fs::write(at("a/public_html/toolinfo.json"), "second").unwrap();
    fs::write(at("b/public_html/toolinfo.json"), "third").unwrap();
    symlink("../a/.description", at("b/.description")).unwrap();
    fs::write(place.at("secret"), "secret").unwrap();
    place
}

both_ways!(each_item_has_its_texts_and_trouble_its_notes, homes(), |place| {
    let output = read(&place, &input(&format!("{TOOLS}, 'lines': 'joined'")), &[]).await.unwrap();
    let expected = json(
        "{'tools.a': {'description': 'one two  four 🦊', 'toolinfo': 'first'},
          'tools.b': {'description': null, 'toolinfo': 'third'},
          'tools.c': {'description': null, 'toolinfo': null},
          'tools...': {'description': null, 'toolinfo': null},
          'tools.x/y': {'description': null, 'toolinfo': null}}",
    );
    assert_eq!(output.get("files"), Some(&expected));
    for (field, expected) in [("count", 5), ("folders", 2), ("read", 3)] {
        assert_eq!(output.get(field), Some(&Value::Int(expected)), "{field}");
    }
    let mut notes: Vec<String> = output
        .get("notes")
        .and_then(Value::as_list)
        .unwrap()
        .iter()
        .map(|note| ["key", "name", "note"].map(|field| note.get(field).unwrap().to_string()).join(" "))
        .collect();
    notes.sort();
    assert_eq!(
        notes,
        [
            "tools... * `..` cannot be a segment of a path",
            "tools.b description `.description`: it is a link that leaves its folder",
            "tools.x/y * `x/y` contains a slash, and is to be one segment",
        ]
    );
    let kept = read(&place, &input(TOOLS), &[]).await.unwrap();
    let text = kept.get("files").and_then(|files| files.get("tools.a")?.get("description"));
    assert_eq!(text, Some(&Value::text("one\r\ntwo\n\nfour 🦊\n")));
});

both_ways!(paths_may_depend_on_the_item_by_segments, homes(), |place| {
    let more = |place: &str| {
        input(&format!(
            "'items': ['a', 'b', '..'], 'key': 'account', 'folder': [], 'read': {{'text': [{place}]}}"
        ))
    };
    let texts = |output: Value| {
        ["a", "b", ".."]
            .map(|key| output.get("files").unwrap().get(key).unwrap().get("text").unwrap().to_string())
    };
    let output = read(&place, &more("['${ account }', 'public_html', 'toolinfo.json']"), &[]).await.unwrap();
    assert_eq!(texts(output), ["second", "third", "null"]);
    // Data cannot add a folder: it is one segment, whatever it contains.
    let output = read(&place, &more("'${ account ~ \\\"/toolinfo.json\\\" }'"), &[]).await.unwrap();
    assert_eq!(texts(output), ["null", "null", "null"]);
});

both_ways!(bad_input_is_refused_before_the_disk_is_touched, homes(), |place| {
    let bad = |from: &str, to: &str| {
        format!("{{'target': 'homes', 'root': 'tool_homes', 'as': 'account', {TOOLS}}}").replace(from, to)
    };
    let cases = [
        bad("'.description'", "'../.description'"),
        bad("'.description'", "'/etc/passwd'"),
        bad("'.description'", "'a//b'"),
        bad("'.description'", "[]"),
        bad("'.description'", "[['a', '..']]"),
        bad("'.description'", "7"),
        bad("'account.cn'", "'account.cn +'"),
        bad("'account.cn'", "'account.nothing'"),
        bad("'account.cn'", "'\\\"same\\\"'"),
        bad("'as': 'account'", "'as': 'an account'"),
        bad("'tool_homes'", "'elsewhere'"),
        bad("'as':", "'lines': 'all', 'as':"),
        bad("'as':", "'timeout': '0s', 'as':"),
        bad("'as':", "'parallel': -1, 'as':"),
        bad("'target': 'homes'", "'target': 'nowhere'"),
    ];
    let cases: Vec<&str> = cases.iter().map(String::as_str).collect();
    read(&place, &input(TOOLS), &cases).await.unwrap();
});

both_ways!(a_root_that_is_not_there_is_a_failure_and_not_an_empty_answer, homes(), |place| {
    let gone = json(&format!("{{'target': 'homes', 'root': 'gone', 'as': 'account', {TOOLS}}}"));
    let failure = read(&place, &gone, &[]).await.unwrap_err();
    assert_eq!((failure.kind, failure.target.as_deref()), (FailureKind::Unreachable, Some("homes")));
    assert!(failure.message.starts_with("cannot open the root `gone`"), "{failure}");
});

both_ways!(total_size_is_limited, homes(), |place| {
    let failure = read(&place, &input(&format!("{TOOLS}, 'max_total_bytes': 10")), &[]).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Limit);
    let output = read(&place, &input(&format!("{TOOLS}, 'max_bytes': 5")), &[]).await.unwrap();
    assert_eq!(output.get("read"), Some(&Value::Int(2)));
    assert!(output.get("notes").unwrap().to_json().contains("larger than 5 bytes"));
});

both_ways!(whatever_lies_there_is_told_of, Place::in_memory(), |place| {
    let at = |name: &str| place.at("homes").join(name);
    for folder in ["pipe", "folder/text", "loop", "links", "bytes", "long", "wild", "empty"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("pipe/text"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    symlink("text", at("loop/text")).unwrap();
    symlink("/etc/passwd", at("links/text")).unwrap();
    fs::write(at("bytes/text"), b"good\xffbad").unwrap();
    fs::write(at("long/text"), "x".repeat(101)).unwrap();
    let wild = "\0\u{1}\u{7f}\"\\\u{2028}\u{feff}\u{10ffff}";
    fs::write(at("wild/text"), wild).unwrap();
    fs::write(at("empty/text"), "").unwrap();
    fs::write(at("file"), "no folder").unwrap();
    let names = ["pipe", "folder", "loop", "links", "bytes", "long", "wild", "empty", "file", "nothing"];
    let items: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
    let more = format!(
        "'items': [{}], 'key': 'account', 'folder': ['${{ account }}'], 'read': {{'text': 'text'}}, 'max_bytes': 100",
        items.join(", ")
    );
    let output = read(&place, &input(&more), &[]).await.unwrap();
    let text = |name: &str| output.get("files").unwrap().get(name).unwrap().get("text").unwrap().clone();
    for name in ["pipe", "folder", "loop", "links", "bytes", "long", "file", "nothing"] {
        assert_eq!(text(name), Value::Null, "{name}");
    }
    assert_eq!((text("wild"), text("empty")), (Value::text(wild), Value::text("")));
    let notes: BTreeMap<String, String> = output
        .get("notes")
        .and_then(Value::as_list)
        .unwrap()
        .iter()
        .map(|note| (note.get("key").unwrap().to_string(), note.get("note").unwrap().to_string()))
        .collect();
    let expected = [
        ("bytes", "`text`: it is not UTF-8 text at byte 4"),
        ("folder", "`text`: it is a folder, not a regular file"),
        ("links", "`text`: it is a link that leaves its folder"),
        ("long", "`text`: it is larger than 100 bytes"),
        ("loop", "`text`: it is a link that cannot be followed"),
        ("pipe", "`text`: it is a pipe, not a regular file"),
    ];
    assert_eq!(notes, expected.map(|(key, note)| (key.to_owned(), note.to_owned())).into());
    assert_eq!(output.get("folders"), Some(&Value::Int(8)));
});

// More than one line of an answer holds, and more than one frame of a request.
both_ways!(many_folders_are_read_at_once, Place::in_memory(), |place| {
    let text = "\u{1}".repeat(512 << 10);
    for index in (0..35_000).step_by(1_600) {
        let home = place.at("homes").join(format!("tool-{index}"));
        fs::create_dir(&home).unwrap();
        fs::write(home.join("text"), &text).unwrap();
        fs::write(home.join(format!("of-{index}")), index.to_string()).unwrap();
    }
    let items = Value::list((0..35_000).map(Value::Int).collect());
    let input = json(
        "{'target': 'homes', 'root': 'tool_homes', 'as': 'n', 'key': 'n', 'folder': ['${ \\\"tool-\\\" ~ n }'],
          'read': {'text': 'text', 'own': ['${ \\\"of-\\\" ~ n }']}}",
    );
    let entries = input.as_map().unwrap().iter().map(|(key, value)| (key.clone(), value.clone()));
    let input = Value::map(entries.chain([("items".into(), items)]));
    let planned = place.plan("files.read_many", "homes", &input).await.unwrap();
    let output = planned.output.unwrap();
    for (field, expected) in [("count", 35_000), ("folders", 22), ("read", 44)] {
        assert_eq!(output.get(field), Some(&Value::Int(expected)), "{field}");
    }
    let files = output.get("files").unwrap();
    let last = files.get("33600").unwrap();
    assert_eq!(last.get("own"), Some(&Value::text("33600")));
    assert!(last.get("text") == Some(&Value::text(text.as_str())));
    assert_eq!(files.get("33601").unwrap().get("text"), Some(&Value::Null));
});

#[tokio::test]
async fn what_is_too_long_for_a_helper_is_said() {
    let place = homes().through_the_helper();
    fs::write(place.at("homes/a/toolinfo.json"), "\u{1}".repeat(12 << 20)).unwrap();
    let long = format!("{TOOLS}, 'max_bytes': 100000000");
    let failure = read(&place, &input(&long), &[]).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Limit, "{failure}");
    assert!(failure.message.contains("too long for the files helper"), "{failure}");
    // Segments that no disk has, in so many items that their paths are more than a helper takes in.
    let segment = "x".repeat(60 << 10);
    let items = Value::list((0..1_200).map(Value::Int).collect());
    let folder = Value::list(vec![Value::text(format!("{segment}${{ n }}"))]);
    let input =
        json("{'target': 'homes', 'root': 'tool_homes', 'as': 'n', 'key': 'n', 'read': {'text': 'text'}}");
    let entries = input.as_map().unwrap().iter().map(|(key, value)| (key.clone(), value.clone()));
    let input = Value::map(entries.chain([("items".into(), items), ("folder".into(), folder)]));
    let failure = place.plan("files.read_many", "homes", &input).await.map(drop).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Limit, "{failure}");
    assert!(failure.message.contains("1200 items are too long"), "{failure}");
}
