//! The direction of dependencies, the licences and the bans, as checks over `cargo tree`.
//!
//! `deny.toml` is for cargo-deny, which also knows advisories. Its licences and bans are read from the same file here,
//! because not every machine that builds Farrier can install cargo-deny.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};

use crate::tools;

/// Which of our crates each of our crates may use, tests aside. A name that ends in `*` stands for all that begin so.
const ALLOWED: &[(&str, &[&str])] = &[
    ("farrier-model", &[]),
    ("farrier-action", &["farrier-model"]),
    ("farrier-alert", &["farrier-model"]),
    ("farrier-runbook", &["farrier-alert", "farrier-model"]),
    ("farrier-schedule", &["farrier-model"]),
    ("farrier-store", &["farrier-alert", "farrier-model"]),
    (
        "farrier-exec",
        &[
            "farrier-action",
            "farrier-alert",
            "farrier-model",
            "farrier-runbook",
            "farrier-schedule",
            "farrier-store",
        ],
    ),
    (
        "farrier-project",
        &[
            "farrier-action",
            "farrier-alert",
            "farrier-exec",
            "farrier-model",
            "farrier-runbook",
            "farrier-schedule",
            "farrier-store",
        ],
    ),
    (
        "farrier-server",
        &[
            "farrier-action",
            "farrier-alert",
            "farrier-exec",
            "farrier-model",
            "farrier-project",
            "farrier-runbook",
            "farrier-schedule",
            "farrier-store",
        ],
    ),
    ("farrier-resident", &[]),
    // What plugins share whose processes work with what others control.
    ("farrier-confine", &["farrier-model"]),
    // What plugins that speak HTTP share.
    ("farrier-outbound", &["farrier-action", "farrier-model"]),
    // Its dumps go beneath the roots of a `files` target.
    ("farrier-plugin-sql", &["farrier-action", "farrier-model", "farrier-plugin-files"]),
    // It sets at an API what a file of credentials says.
    ("farrier-plugin-http", &["farrier-action", "farrier-model", "farrier-outbound", "farrier-plugin-files"]),
    // Its programs live and die as the commands of `host` do.
    (
        "farrier-plugin-external",
        &["farrier-action", "farrier-confine", "farrier-model", "farrier-plugin-host"],
    ),
    // Its helper works as the superuser in other people's folders.
    ("farrier-plugin-files", &["farrier-action", "farrier-confine", "farrier-model"]),
    ("farrier-plugin-*", &["farrier-action", "farrier-model", "farrier-outbound"]),
    (
        "farrier",
        &[
            "farrier-action",
            "farrier-alert",
            "farrier-exec",
            "farrier-model",
            "farrier-plugin-*",
            "farrier-project",
            "farrier-resident",
            "farrier-runbook",
            "farrier-schedule",
            "farrier-server",
            "farrier-store",
        ],
    ),
    // Not part of the binary: helpers of tests and benchmarks.
    ("farrier-testkit", &[]),
    ("farrier-toolforge", &[]),
    ("farrier-xtask", &["farrier-testkit"]),
    ("farrier-bench", &["farrier-*"]),
];

/// What crates that do no I/O must not name, tests aside.
const PURE: &[&str] = &["farrier-model", "farrier-runbook", "farrier-schedule", "farrier-alert"];
const IMPURE: &[&str] = &["tokio", "sqlx", "ldap3", "hyper", "openssh", "reqwest"];

/// Breaches of the direction of dependencies.
pub(crate) fn direction(root: &Path) -> Result<Vec<String>> {
    let tree = tools::capture(&mut tools::cargo(
        root,
        "tree --quiet --workspace --depth 1 --edges normal,build --prefix depth --format {p}",
    ))?;
    Ok(breaches(&edges(&tree)))
}

/// Crates under a licence that `deny.toml` does not allow, or that it bans.
pub(crate) fn licences_and_bans(root: &Path) -> Result<Vec<String>> {
    let settings = std::fs::read_to_string(root.join("deny.toml")).context("cannot read `deny.toml`")?;
    let allowed = list(&settings, "allow");
    let banned = list(&settings, "deny");
    let tree = tools::capture(&mut tools::cargo(
        root,
        "tree --quiet --workspace --edges normal,build,dev --prefix none --format {p}|{l}",
    ))?;
    let lines: BTreeSet<&str> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    let mut breaches = Vec::new();
    for (package, licence) in lines.iter().filter_map(|line| line.split_once('|')) {
        let name = package.split(' ').next().unwrap_or_default();
        if banned.iter().any(|other| other == name) {
            breaches.push(format!(
                "{package}: banned in `deny.toml`; `cargo tree -i {name}` shows who brings it"
            ));
        }
        if !licence_allowed(licence, &allowed) {
            breaches.push(format!("{package}: its licence `{licence}` is not allowed in `deny.toml`"));
        }
    }
    Ok(breaches)
}

/// Each package with those it names directly, from a tree of depth one whose lines begin with their depth.
fn edges(tree: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut package = String::new();
    for line in tree.lines() {
        let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        if let Some(line) = line.strip_prefix('0') {
            package = name(line);
            edges.entry(package.clone()).or_default();
        } else if let Some(line) = line.strip_prefix('1') {
            edges.entry(package.clone()).or_default().insert(name(line));
        }
    }
    edges
}

fn breaches(edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let matches = |pattern: &str, name: &str| {
        pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
    };
    let mut breaches = Vec::new();
    for (package, uses) in edges {
        let Some((_, allowed)) = ALLOWED.iter().find(|(pattern, _)| matches(pattern, package)) else {
            breaches.push(format!("{package}: has no place in the list of engine/xtask/src/dependencies.rs"));
            continue;
        };
        for used in uses {
            let is_ours = edges.contains_key(used);
            if is_ours && !allowed.iter().any(|pattern| matches(pattern, used)) {
                breaches.push(format!("{package} uses {used}: against the direction of dependencies"));
            }
            if PURE.contains(&package.as_str()) && IMPURE.contains(&used.as_str()) {
                breaches.push(format!("{package} uses {used}: this crate does no I/O"));
            }
        }
    }
    breaches
}

/// The quoted strings of the list `key = […]` in a TOML text; of tables in it, the first string of each line.
fn list(settings: &str, key: &str) -> Vec<String> {
    let start = format!("{key} = [");
    let lines = settings.lines().skip_while(|line| !line.starts_with(&start)).skip(1);
    let lines = lines.take_while(|line| !line.starts_with(']'));
    lines.filter_map(|line| Some(line.split('#').next()?.split('"').nth(1)?.to_owned())).collect()
}

/// Whether a licence expression (SPDX, and the older form with `/`) can be met with the allowed licences. Parentheses
/// are opened from the inside out.
fn licence_allowed(expression: &str, allowed: &[String]) -> bool {
    let mut expression = expression.replace('/', " OR ");
    while let Some((before, inner, after)) = innermost(&expression) {
        let met = if licence_allowed(&inner, allowed) { "MET" } else { "UNMET" };
        expression = format!("{before}{met}{after}");
    }
    let met = |licence: &str| licence == "MET" || allowed.iter().any(|other| other == licence);
    expression.split(" OR ").any(|choice| choice.split(" AND ").all(|licence| met(licence.trim())))
}

fn innermost(expression: &str) -> Option<(String, String, String)> {
    let close = expression.find(')')?;
    let open = expression[..close].rfind('(')?;
    Some((
        expression[..open].to_owned(),
        expression[open + 1..close].to_owned(),
        expression[close + 1..].to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_against_the_direction_are_found() {
        let tree = "0farrier-model v0.1.0 (/x)\n1serde v1.0\n1tokio v1\n\n0farrier-store v0.1.0 (/x)\n1farrier-model v0.1.0\n\
                    0farrier-exec v0.1.0\n1farrier-plugin-ldap v0.1.0\n1farrier-store v0.1.0 (/x) (*)\n\
                    0farrier-plugin-ldap v0.1.0\n1farrier-action v0.1.0\n1farrier-store v0.1.0\n1ldap3 v0.12\n\
                    0farrier-action v0.1.0\n0farrier-novelty v0.1.0\n";
        assert_eq!(
            breaches(&edges(tree)),
            [
                "farrier-exec uses farrier-plugin-ldap: against the direction of dependencies",
                "farrier-model uses tokio: this crate does no I/O",
                "farrier-novelty: has no place in the list of engine/xtask/src/dependencies.rs",
                "farrier-plugin-ldap uses farrier-store: against the direction of dependencies",
            ]
        );
    }

    #[test]
    fn licence_expressions_are_judged() {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned);
        let cases = [
            ("MIT", true),
            ("GPL-3.0 OR MIT", true),
            ("Unlicense/MIT", true),
            ("Apache-2.0 / MIT", true),
            ("(MIT OR GPL-3.0) AND Unicode-3.0", true),
            ("(ISC OR (GPL-3.0 OR MIT)) AND Unicode-3.0", true),
            ("MIT AND ISC", false),
            ("(MIT OR Apache-2.0) AND GPL-3.0", false),
            ("GPL-3.0", false),
            ("", false),
        ];
        for (expression, expected) in cases {
            assert_eq!(licence_allowed(expression, &allowed), expected, "{expression}");
        }
    }

    #[test]
    fn lists_are_read_from_the_settings() {
        let settings = "[licenses]\nallow = [\n    \"MIT\", # short\n    # \"GPL\"\n    \"ISC\",\n]\n\
                        [bans]\ndeny = [\n    { crate = \"openssl\", reason = \"one provider\" },\n]\n";
        assert_eq!(list(settings, "allow"), ["MIT", "ISC"]);
        assert_eq!(list(settings, "deny"), ["openssl"]);
    }
}
