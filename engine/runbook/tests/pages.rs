//! The pages under `site/errors` tell the truth: each wrong example yields the page's code, each right one nothing.

mod support;

use std::fmt::Write as _;

use farrier_runbook::codes;
use support::{catalog, diagnose, examples};

/// Codes whose wrong example cannot be printed on a page, or needs a second file. Other tests make them: the first six
/// in `yaml.rs`, E0214 in `read.rs`, the last three in `testfile.rs`.
const WITHOUT_EXAMPLE: [&str; 10] =
    ["E0101", "E0102", "E0103", "E0104", "E0115", "E0116", "E0214", "E0904", "E0905", "E0906"];

#[test]
fn every_example_is_what_its_page_says() {
    let catalog = catalog();
    let mut lies = String::new();
    for (code, page) in codes::ALL {
        let examples = examples(page);
        let needs_wrong = !WITHOUT_EXAMPLE.contains(&code.as_str());
        if needs_wrong && !examples.iter().any(|example| example.wrong) {
            writeln!(lies, "{code}: no wrong example").unwrap();
        }
        if !examples.iter().any(|example| !example.wrong) {
            writeln!(lies, "{code}: no right example").unwrap();
        }
        for example in &examples {
            let text = format!("{}\n", example.text);
            let out = diagnose(example.kind, &example.file_name(), text.as_bytes(), &catalog);
            let found: Vec<&str> = out.sorted().iter().map(|diagnostic| diagnostic.code.as_str()).collect();
            let checked = example.wrong && needs_wrong;
            if checked && !found.contains(&code.as_str()) || !example.wrong && !out.is_empty() {
                let shown = out.render(false);
                writeln!(lies, "{code}: {}\nyields {found:?}\n{shown}", example.text).unwrap();
            }
        }
    }
    assert!(lies.is_empty(), "{lies}");
}
