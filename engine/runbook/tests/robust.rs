//! No text makes the language panic, and every place that it reports can be shown.

mod support;

use std::path::Path;

use farrier_runbook::{Diagnostics, Node, NodeKind, codes, parse};
use support::{FileKind, catalog, diagnose, examples};

/// A small generator, so that a failure happens again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

/// What is put in: characters that mean something in YAML or in expressions, wide ones, and broken bytes.
const PIECES: [&[u8]; 28] = [
    b":",
    b": ",
    b"- ",
    b"#",
    b" #",
    b"\n",
    b"\n\n",
    b"\r\n",
    b"\t",
    b" ",
    b"  ",
    b"'",
    b"''",
    b"\"",
    b"\\",
    b"\\u",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"|\n",
    b">-\n",
    b"${ x }",
    "é😀".as_bytes(),
    b"&a *a",
    b"\xff",
    b"!!x ",
];

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(3) {
            0 => {
                let end = (at + random.below(6)).min(bytes.len());
                bytes.drain(at..end);
            }
            1 => {
                let piece = PIECES[random.below(PIECES.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
            _ => {
                let end = (at + random.below(30)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
        }
    }
}

/// Every byte of every scalar has a place inside the file, on the boundary of a character.
fn check_places(node: &Node, text: &str) {
    match &node.kind {
        NodeKind::Scalar(scalar) => {
            for (at, c) in scalar.text.char_indices() {
                let span = node.offset_span(at..at + c.len_utf8());
                assert!(span.start <= span.end && span.end as usize <= text.len(), "{span:?} of {text:?}");
                let (start, end) = (span.start as usize, span.end as usize);
                assert!(text.is_char_boundary(start) && text.is_char_boundary(end), "{span:?} of {text:?}");
            }
        }
        NodeKind::List(items) => items.iter().for_each(|item| check_places(item, text)),
        NodeKind::Map(entries) => entries.iter().for_each(|(_, value)| check_places(value, text)),
        NodeKind::Broken => {}
    }
}

/// A line end within a text is read as a space, whose place is one of whole characters also before a wide one.
#[test]
fn a_line_end_before_a_wide_character_has_a_place() {
    for text in ["a: [r\né😀b]", "a: r\n  é😀b\n", "a: \"r\n  é\"\n", "a: >-\n  r\n  é\n"] {
        let mut out = Diagnostics::new();
        let file = out.add_file("x.yaml", text.as_bytes());
        check_places(&parse(file, text.as_bytes(), &mut out).unwrap(), text);
    }
}

#[test]
fn no_text_makes_it_panic() {
    let catalog = catalog();
    let mut seeds: Vec<(FileKind, Vec<u8>)> = Vec::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/invalid");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            seeds.push((
                FileKind::of(path.file_name().unwrap().to_str().unwrap()),
                std::fs::read(&path).unwrap(),
            ));
        }
    }
    for (_, page) in codes::ALL {
        seeds.extend(examples(page).iter().map(|example| (example.kind, example.text.as_bytes().to_vec())));
    }
    let mut random = Random(1);
    let mut read = 0;
    for (kind, seed) in &seeds {
        for _ in 0..20 {
            let mut bytes = seed.clone();
            mutate(&mut bytes, &mut random);
            let found = diagnose(*kind, "x.yaml", &bytes, &catalog);
            let shown = found.render(false);
            assert_eq!(shown.is_empty(), found.is_empty());
            assert!(found.to_json().is_array());
            let mut out = Diagnostics::new();
            let file = out.add_file("x.yaml", &bytes);
            if let Some(node) = parse(file, &bytes, &mut out) {
                read += 1;
                check_places(&node, std::str::from_utf8(&bytes).unwrap());
            }
        }
    }
    assert!(read > 500, "only {read} of the texts were YAML");
}
