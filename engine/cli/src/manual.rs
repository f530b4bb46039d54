//! The manual is true: its files are read by the code that reads files, its commands by the command line, and its
//! tutorial is walked through.
//!
//! A block in a page that begins with three backticks, `yaml`, a kind of file and perhaps a path is a whole file of that
//! kind. Other blocks of YAML are parts of one and are not tried.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use farrier_runbook::Diagnostics;
use farrier_runbook::environment::read_environment;
use farrier_runbook::project::read_project;
use farrier_runbook::service::read_service;
use farrier_runbook::testfile::read_tests;

use crate::commands::{Cli, dispatch};
use crate::exit::Exit;

/// A block of a page.
struct Block {
    page: String,
    /// The words behind the backticks.
    words: Vec<String>,
    text: String,
}

fn pages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../site/manual")
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for entry in fs::read_dir(pages()).unwrap() {
        let path = entry.unwrap().path();
        let page = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let mut parts = text.split("```");
        while let (Some(_), Some(block)) = (parts.next(), parts.next()) {
            let (head, text) = block.split_once('\n').unwrap_or((block, ""));
            let words = head.split_whitespace().map(str::to_owned).collect();
            blocks.push(Block { page: page.clone(), words, text: text.to_owned() });
        }
    }
    assert!(blocks.len() > 30, "the pages of the manual are gone");
    blocks
}

#[test]
fn every_file_in_the_manual_is_without_mistakes() {
    let registry = crate::plugins::registry().unwrap();
    let catalog = registry.catalog();
    let mut tried = 0;
    let mut wrong = Vec::new();
    for Block { page, words, text } in blocks() {
        let mut found = Diagnostics::new();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["yaml", "runbook", path] => {
                let stem = Path::new(path).file_stem().unwrap().to_str().unwrap();
                let sources = [(stem.into(), text.as_str().into())].into();
                if let Err(mistakes) = farrier_runbook::compile_bundle(stem, &sources, catalog) {
                    wrong.push(format!("{page}: {}", mistakes.render(false)));
                }
            }
            ["yaml", "environment", ..] => {
                let file = found.add_file(page.as_str(), text.as_bytes());
                read_environment(file, text.as_bytes(), catalog, &mut found);
            }
            ["yaml", "tests", ..] => {
                let file = found.add_file(page.as_str(), text.as_bytes());
                read_tests(file, text.as_bytes(), catalog, &mut found);
            }
            ["yaml", "project", ..] => {
                let file = found.add_file(page.as_str(), text.as_bytes());
                read_project(file, text.as_bytes(), &mut found);
            }
            ["yaml", "service", ..] => {
                let file = found.add_file(page.as_str(), text.as_bytes());
                read_service(file, text.as_bytes(), &mut found);
            }
            // Read by the plugin that it is for, in that plugin's tests.
            ["yaml", "stand-in", _] => continue,
            ["yaml", kind, ..] => wrong.push(format!("{page}: there is no kind of file `{kind}`")),
            _ => continue,
        }
        tried += 1;
        if found.has_errors() {
            wrong.push(format!("{page}: {}", found.render(false)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried >= 8, "only {tried} files were found");
}

/// The words of a shell's line; enough for the manual.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for letter in line.chars() {
        match letter {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            _ => words.last_mut().unwrap().push(letter),
        }
    }
    words.retain(|word| !word.is_empty());
    let end = words.iter().position(|word| word == "#" || word == ">").unwrap_or(words.len());
    words.truncate(end);
    words
}

#[test]
fn every_command_in_the_manual_is_one() {
    let mut tried = 0;
    for Block { page, words: kind, text } in blocks() {
        let commands = text.lines().filter_map(|line| line.strip_prefix("$ farrier "));
        for line in commands.filter(|_| kind.first().is_some_and(|kind| kind == "console")) {
            let line = words(line);
            if line[0] == "help" {
                continue;
            }
            if let Err(error) = Cli::try_parse_from(std::iter::once("farrier".to_owned()).chain(line)) {
                panic!("{page}: {error}");
            }
            tried += 1;
        }
    }
    assert!(tried > 20, "only {tried} commands were found");
}

/// The tutorial's files, written where it says.
fn tutorial() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for tool in [("alpha", "Counts letters\n"), ("beta", "Draws maps\n")] {
        let home = folder.path().join("environments/laptop/homes").join(tool.0);
        fs::create_dir_all(&home).unwrap();
        fs::write(home.join(".description"), tool.1).unwrap();
    }
    fs::create_dir(folder.path().join("runbooks")).unwrap();
    for Block { page, words, text } in blocks() {
        let path = words.last().filter(|path| path.contains('.'));
        if let (true, Some(path)) = (page == "writing-runbooks.md", path) {
            fs::write(folder.path().join(path), text).unwrap();
        }
    }
    folder
}

#[test]
fn the_tutorial_can_be_walked_through() {
    let folder = tutorial();
    let ends = |line: &str, expected: Exit| {
        let place = ["farrier".to_owned(), "-C".to_owned(), folder.path().display().to_string()];
        let cli = Cli::try_parse_from(place.into_iter().chain(words(line))).unwrap();
        let exit = dispatch(cli, None).unwrap_or_else(|problem| panic!("{line}: {problem}"));
        assert_eq!(exit, expected, "{line}");
    };
    ends("check", Exit::Ok);
    ends("test", Exit::Ok);
    ends("plan catalogue --env laptop --detailed-exitcode", Exit::PlanChanges);
    ends("run catalogue --env laptop --yes --quiet", Exit::Ok);
    ends("plan catalogue --env laptop --detailed-exitcode", Exit::Ok);
    ends("plan catalogue --env laptop -i tools=alpha,beta --detailed-exitcode", Exit::PlanChanges);

    // The tests of the page about tests are about the same runbook.
    let tests = folder.path().join("runbooks/catalogue.test.yaml");
    let of_page = |block: &Block| block.page == "testing-runbooks.md" && block.words == ["yaml", "tests"];
    let text = blocks().into_iter().find(of_page).unwrap().text;
    fs::write(&tests, text).unwrap();
    ends("test", Exit::Ok);

    // The guard, where the page says.
    let path = folder.path().join("runbooks/catalogue.yaml");
    let guard = "guards:\n  - { count: [delete], share: 10%, otherwise: ask }\n";
    let page = fs::read_to_string(pages().join("writing-runbooks.md")).unwrap();
    assert!(page.contains(guard));
    let runbook = fs::read_to_string(&path).unwrap();
    fs::write(&path, runbook.replacen("steps:\n", &format!("{guard}steps:\n"), 1)).unwrap();
    ends("run catalogue --env laptop -i tools=alpha --yes --quiet", Exit::Parked);
}

/// What the manual says of the language is all there is: every key of a runbook and of a step, every filter.
#[test]
fn the_page_of_the_language_has_every_key_and_filter() {
    let page = fs::read_to_string(pages().join("language.md")).unwrap();
    let schema = farrier_runbook::schema::runbook_schema(crate::plugins::registry().unwrap().catalog());
    let keys = |schema: &serde_json::Value| -> Vec<String> {
        schema["properties"].as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
    };
    let (top, in_step) = (keys(&schema), keys(&schema["$defs"]["step"]));
    assert!(top.len() >= 20 && in_step.len() >= 16, "{top:?} {in_step:?}");
    let mut wanted: Vec<String> = top.iter().chain(&in_step).map(|key| format!("`{key}`")).collect();
    for (filter, about) in farrier_model::OWN_FILTERS {
        wanted.push(format!("| `{filter}` | {about} |"));
    }
    let missing: Vec<&String> = wanted.iter().filter(|text| !page.contains(text.as_str())).collect();
    assert!(missing.is_empty(), "language.md lacks {missing:?}");
}
