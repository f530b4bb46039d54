//! House rules that no compiler checks, over the files that git knows or would add.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::tools;

/// What must not stand in Rust code, and what to do instead. The texts are put together here, so that this file does
/// not break the rules it states.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("todo", "!(", "finish it, or leave it out"),
    ("unimplemented", "!(", "finish it, or leave it out"),
    ("dbg", "!(", "use `tracing`"),
    ("#[igno", "re", "a test that cannot run yet belongs in the change that makes it run"),
];

/// Breaches of the house rules, in order of the files.
pub(crate) fn breaches(root: &Path) -> Result<Vec<String>> {
    let listed = tools::capture(
        Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
            .current_dir(root),
    )?;
    let machine_paths = machine_paths(root, std::env::var("HOME").ok().as_deref());
    let mut files: Vec<&str> = listed.split('\0').filter(|file| !file.is_empty()).collect();
    files.sort_unstable();
    let mut breaches = Vec::new();
    for file in files {
        breaches.extend(name_breach(file));
        // A file that was deleted but not committed, a link to nowhere, or a binary file.
        let Ok(text) = std::fs::read_to_string(root.join(file)) else { continue };
        breaches.extend(text_breaches(file, &text, &machine_paths));
    }
    Ok(breaches)
}

/// Paths of this machine that must not get into files: where this checkout stands, and what cargo keeps at home.
fn machine_paths(root: &Path, home: Option<&str>) -> Vec<String> {
    let home = home.filter(|home| home.len() > 1).unwrap_or("/nowhere");
    let mut paths = vec![format!("{home}/.cargo"), format!("{home}/.rustup")];
    // A checkout directly under the root has too short a path to tell from other text.
    paths.extend(Some(format!("{}/", root.display())).filter(|path| path.matches('/').count() > 2));
    paths
}

fn text_breaches(file: &str, text: &str, machine_paths: &[String]) -> Vec<String> {
    let mut breaches = Vec::new();
    let is_rust = Path::new(file).extension().is_some_and(|extension| extension == "rs");
    if is_rust && !text.starts_with("//!") {
        breaches.push(format!("{file}:1: a module opens with `//!` and says what it is for"));
    }
    for (index, line) in text.lines().enumerate() {
        let mut breach = |message: String| breaches.push(format!("{file}:{}: {message}", index + 1));
        if is_rust && !line.trim_start().starts_with("//") {
            for (word, end, instead) in FORBIDDEN {
                if names(line, &format!("{word}{end}")) {
                    breach(format!("`{word}{end}`: {instead}"));
                }
            }
        }
        if let Some(path) = machine_paths.iter().find(|path| line.contains(path.as_str())) {
            breach(format!("a path of one machine: `{path}`"));
        }
    }
    breaches
}

/// Whether `line` has `text` at the beginning of a word, outside a string that begins with it.
fn names(line: &str, text: &str) -> bool {
    line.match_indices(text).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|before| before.is_alphanumeric() || matches!(before, '_' | '"' | '`'))
    })
}

/// Fixtures are named so that they read as sentences and sort, quote and unpack the same everywhere.
fn name_breach(file: &str) -> Option<String> {
    let fixture = file.strip_prefix("testdata/")?;
    let plain = |name: &str| {
        let good = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
        name.chars().all(good) && !name.starts_with('-') && name.len() <= 100
    };
    let snake = |name: &str| !name.chars().any(|letter| letter.is_ascii_uppercase() || letter == '-');
    let is_case = fixture.starts_with("valid/") || fixture.starts_with("invalid/");
    if !fixture.split('/').all(plain) {
        return Some(format!("{file}: a fixture's name has letters, digits, `.`, `_` and `-` only"));
    }
    let name = fixture.rsplit('/').next().unwrap_or_default();
    // A snapshot's name follows from its test's.
    let is_snapshot = Path::new(name).extension().is_some_and(|extension| extension == "snap");
    (is_case && !is_snapshot && !snake(name)).then(|| format!("{file}: a case is named in `snake_case`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, text: &str) -> Vec<String> {
        text_breaches(file, text, &["/srv/checkout/".to_owned()])
    }

    #[test]
    fn unfinished_code_is_found() {
        let code = [
            "//! A module.",
            "fn f() {",
            "    X!(\"later\");",
            "    // X!() in a comment",
            "    my_X!(1); }",
        ];
        for (word, end, _) in &FORBIDDEN[..3] {
            let breaches = found("a.rs", &code.join("\n").replace("X!(", &format!("{word}{end}")));
            assert_eq!(breaches.len(), 1, "{breaches:?}");
            assert!(breaches[0].starts_with(&format!("a.rs:3: `{word}!(`")), "{breaches:?}");
        }
        let breaches = found("a.rs", &format!("//! A module.\n{}\nfn f() {{}}", ["#[igno", "re]"].concat()));
        assert!(breaches[0].starts_with("a.rs:2: "), "{breaches:?}");
    }

    #[test]
    fn a_module_without_a_heading_is_found() {
        assert_eq!(found("a.rs", "use std::fmt;\n").len(), 1);
        assert_eq!(found("a.rs", "//! What it is for.\n"), Vec::<String>::new());
        assert_eq!(found("a.md", "no heading\n"), Vec::<String>::new());
    }

    #[test]
    fn paths_of_a_machine_are_found_anywhere() {
        assert_eq!(
            found("a.yaml", "a: 1\nb: /srv/checkout/x\n"),
            ["a.yaml:2: a path of one machine: `/srv/checkout/`"]
        );
        let paths = machine_paths(Path::new("/srv/checkout"), Some("/home/alice"));
        assert_eq!(paths, ["/home/alice/.cargo", "/home/alice/.rustup", "/srv/checkout/"]);
        assert_eq!(machine_paths(Path::new("/src"), Some("/")).len(), 2, "too short to tell from other text");
    }

    #[test]
    fn names_of_fixtures_are_judged() {
        let cases = [
            ("testdata/invalid/step_needs_unknown_step.yaml", true),
            ("testdata/valid/web.test.yaml", true),
            ("testdata/toolforge/homes/Example-1/replica.my.cnf", true),
            ("site/manual/Any Name.md", true),
            ("testdata/invalid/StepNeeds.yaml", false),
            ("testdata/valid/two-words.yaml", false),
            ("testdata/toolforge/a b.ldif", false),
            ("testdata/toolforge/-rf", false),
        ];
        for (file, expected) in cases {
            assert_eq!(name_breach(file).is_none(), expected, "{file}");
        }
    }
}
