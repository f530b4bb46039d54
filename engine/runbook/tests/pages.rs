//! The pages under `site/errors` tell the truth: each wrong example yields the page's code, each right one nothing.

mod support;

use farrier_runbook::codes;
use support::{FileKind, catalog, diagnose};

/// Codes whose wrong example cannot be printed on a page, or needs a second file. Other tests make them: the first six
/// in `yaml.rs`, E0214 in `read.rs`, the last two in `testfile.rs`.
const WITHOUT_EXAMPLE: [&str; 9] =
    ["E0101", "E0102", "E0103", "E0104", "E0115", "E0116", "E0214", "E0904", "E0905"];

struct Example<'a> {
    wrong: bool,
    kind: FileKind,
    text: &'a str,
}

fn examples(page: &str) -> Vec<Example<'_>> {
    let mut found = Vec::new();
    for block in page.split("\n```yaml ").skip(1) {
        let (info, rest) = block.split_once('\n').expect("a fence has a first line");
        let (text, _) = rest.split_once("\n```").expect("the fence is closed");
        let (verdict, kind) = info.split_once(' ').expect("`yaml wrong|right KIND`");
        let wrong = match verdict {
            "wrong" => true,
            "right" => false,
            other => panic!("`{other}` is neither wrong nor right"),
        };
        found.push(Example { wrong, kind: FileKind::of(kind), text });
    }
    found
}

/// A runbook must have its file's name.
fn file_name(example: &Example<'_>) -> String {
    let name = example.text.lines().find_map(|line| line.strip_prefix("runbook: ")).unwrap_or("example");
    format!("{name}.yaml")
}

#[test]
fn every_example_is_what_its_page_says() {
    let catalog = catalog();
    let mut lies = String::new();
    for (code, page) in codes::ALL {
        let examples = examples(page);
        let needs_wrong = !WITHOUT_EXAMPLE.contains(&code.as_str());
        if needs_wrong && !examples.iter().any(|example| example.wrong) {
            lies.push_str(&format!("{code}: no wrong example\n"));
        }
        if !examples.iter().any(|example| !example.wrong) {
            lies.push_str(&format!("{code}: no right example\n"));
        }
        for example in &examples {
            let text = format!("{}\n", example.text);
            let out = diagnose(example.kind, &file_name(example), text.as_bytes(), &catalog);
            let found: Vec<&str> = out.sorted().iter().map(|diagnostic| diagnostic.code.as_str()).collect();
            let checked = example.wrong && needs_wrong;
            if checked && !found.contains(&code.as_str()) || !example.wrong && !out.is_empty() {
                lies.push_str(&format!(
                    "{code}: {}\nyields {found:?}\n{}\n",
                    example.text,
                    out.render(false)
                ));
            }
        }
    }
    assert!(lies.is_empty(), "{lies}");
}
