//! The project file, `farrier.yaml`: where runbooks, alerts and environments are, and how long runs are kept.

use std::collections::BTreeMap;
use std::time::Duration;

use farrier_model::time::parse_duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::at::At;
use crate::authored::DurationText;
use crate::codes;
use crate::compile::duration;
use crate::diagnostic::{Diagnostic, Diagnostics, FileId, quoted};
use crate::read::read;
use crate::yaml::parse;

/// Where the parts of a project are. Each entry is a folder, which stands for every `.yaml` file below it, or a path
/// with `*` (within one name) and `**` (any number of folders). All start at the folder of the project file.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Project {
    /// Runbooks. Their tests, `NAME.test.yaml`, stand beside them.
    #[schemars(length(min = 1))]
    pub runbooks: Vec<At<String>>,
    /// Alert rules and routes.
    #[serde(default)]
    pub alerts: Vec<At<String>>,
    /// Environments.
    #[serde(default)]
    pub environments: Vec<At<String>>,
    /// Where runs are kept on this machine, when the environment does not say.
    pub data_dir: Option<At<String>>,
    /// How long finished runs are kept. Without it, for ever.
    pub retention: Option<Retention>,
}

/// How long finished runs are kept, with the runs that they started. What is not finished is always kept.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// So long after its end a run is kept.
    keep: DurationText,
    /// And so many of each runbook, the newest, however old they are.
    #[serde(default)]
    at_least: u32,
    /// Other rules, by runbook.
    #[serde(default)]
    runbooks: BTreeMap<String, Kept>,
}

/// How long the finished runs of one runbook are kept.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// So long after its end a run is kept.
    keep: DurationText,
    /// And so many, the newest, however old they are.
    #[serde(default)]
    at_least: u32,
}

impl Retention {
    /// The rule for runbooks that are not named: how long, and at least how many.
    pub fn others(&self) -> (Duration, u32) {
        rule(&self.keep, self.at_least)
    }

    /// The rules of single runbooks.
    pub fn runbooks(&self) -> impl Iterator<Item = (&str, (Duration, u32))> {
        self.runbooks.iter().map(|(name, kept)| (name.as_str(), rule(&kept.keep, kept.at_least)))
    }
}

/// A text that was no duration has been refused with its file; until then it keeps everything.
fn rule(keep: &DurationText, at_least: u32) -> (Duration, u32) {
    (parse_duration(keep.text()).unwrap_or(Duration::MAX), at_least)
}

/// Reads a project file. Nothing is returned when something in it is wrong.
pub fn read_project(file: FileId, bytes: &[u8], out: &mut Diagnostics) -> Option<Project> {
    let node = parse(file, bytes, out)?;
    let project = read::<Project>(&node, out)?;
    for pattern in project.runbooks.iter().chain(&project.alerts).chain(&project.environments) {
        if pattern.starts_with('/') || pattern.split('/').any(|part| part == "..") {
            out.push(
                Diagnostic::new(
                    codes::OUTSIDE_PROJECT,
                    pattern.span,
                    format!("{} leaves the project", quoted(pattern)),
                )
                .help("write a path below the folder of this file"),
            );
        }
    }
    if let Some(retention) = &project.retention {
        for keep in std::iter::once(&retention.keep).chain(retention.runbooks.values().map(|kept| &kept.keep))
        {
            duration(keep, out);
        }
    }
    (!out.has_errors_in(file)).then_some(project)
}

/// Whether `path`, with `/` between its parts and from the project's folder, is meant by an entry of the project file.
pub fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, any_yaml) = parts_of(pattern);
    let path = parts(path);
    (!any_yaml || path.last().is_some_and(|last| is_yaml(last))) && parts_match(&pattern, &path)
}

/// Whether something below `folder` can be meant by an entry of the project file.
pub fn reaches(pattern: &str, folder: &str) -> bool {
    let (pattern, _) = parts_of(pattern);
    let folder = parts(folder);
    for (position, name) in folder.iter().enumerate() {
        match pattern.get(position) {
            Some(part) if part == "**" => return true,
            Some(part) if part_matches(part, name) => {}
            _ => return false,
        }
    }
    folder.len() < pattern.len()
}

fn parts(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect()
}

fn is_yaml(name: &str) -> bool {
    matches!(name.rsplit_once('.'), Some((_, "yaml" | "yml")))
}

/// The parts of an entry, and whether it is a folder, which stands for every `.yaml` file below it.
fn parts_of(pattern: &str) -> (Vec<String>, bool) {
    let mut pattern = parts(pattern);
    let names_files =
        pattern.last().is_some_and(|last| last != "**" && (last.contains('*') || is_yaml(last)));
    if !names_files {
        pattern.push("**".into());
    }
    (pattern, !names_files)
}

/// Greedy with one point to return to, so the work is at most the product of the lengths.
fn wild<P, T>(
    pattern: &[P],
    text: &[T],
    is_star: impl Fn(&P) -> bool,
    fits: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        if p < pattern.len() && is_star(&pattern[p]) {
            back = Some((p, t));
            p += 1;
        } else if p < pattern.len() && fits(&pattern[p], &text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star, from)) = back {
            p = star + 1;
            t = from + 1;
            back = Some((star, from + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(is_star)
}

fn parts_match(pattern: &[String], path: &[String]) -> bool {
    wild(pattern, path, |part| part == "**", |part, name| part_matches(part, name))
}

fn part_matches(part: &str, name: &str) -> bool {
    let (part, name): (Vec<char>, Vec<char>) = (part.chars().collect(), name.chars().collect());
    wild(&part, &name, |c| *c == '*', |c, found| *c == '?' || c == found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_that_may_hold_a_meant_file_are_reached() {
        for (pattern, folder, reached) in [
            ("runbooks", "runbooks", true),
            ("runbooks", "runbooks/area/below", true),
            ("runbooks", "homes", false),
            ("runbooks", "homes/runbooks", false),
            ("environments/*.yaml", "environments", true),
            ("environments/*.yaml", "environments/demo", false),
            ("environments/*.yaml", "environments/demo.yaml", false),
            ("teams/*/alerts/*.yaml", "teams/roots", true),
            ("teams/*/alerts/*.yaml", "teams/roots/alerts", true),
            ("teams/*/alerts/*.yaml", "teams/roots/homes", false),
            ("**/runbooks/*.yaml", "any/where", true),
            ("./runbooks/", "runbooks/area", true),
            (".", "any", true),
            ("one.yaml", "one", false),
        ] {
            assert_eq!(reaches(pattern, folder), reached, "{pattern} {folder}");
        }
    }

    #[test]
    fn entries_mean_folders_and_patterns() {
        for (pattern, path, expected) in [
            ("runbooks", "runbooks/lifecycle/tool-delete.yaml", true),
            ("runbooks/", "runbooks/a.yaml", true),
            ("./runbooks", "runbooks/a.yml", true),
            ("runbooks", "runbooks/README.md", false),
            ("runbooks", "other/a.yaml", false),
            ("runbooks", "runbooks-old/a.yaml", false),
            ("runbooks/*.yaml", "runbooks/a.yaml", true),
            ("runbooks/*.yaml", "runbooks/deep/a.yaml", false),
            ("runbooks/**/*.yaml", "runbooks/deep/er/a.yaml", true),
            ("runbooks/**/*.yaml", "runbooks/a.yaml", true),
            ("runbooks/**", "runbooks/deep/a.yaml", true),
            ("runbooks/tool-*.yaml", "runbooks/tool-delete.yaml", true),
            ("runbooks/tool-?.yaml", "runbooks/tool-ab.yaml", false),
            ("a.yaml", "a.yaml", true),
            ("a.yaml", "b/a.yaml", false),
            ("**/**/**/**/*a*a*a*a.yaml", "x/x/x/x/x/aaaaaaaaaaaaaaaaaaaaaaaaaaaab.yaml", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }
}
