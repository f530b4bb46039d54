//! [`HostSet`]: a set of hosts in an environment, written there or kept in a file beside it.
//!
//! A file has one host or pattern on each line, such as `worker-[1-80]`; `#` begins a comment. It is read when a run first
//! uses the target. A file that names no host is an error: whoever writes it may have failed.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use farrier_action::ConnectCx;
use farrier_model::{Failure, FailureKind};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::hosts::{self, Groups};

/// A longer file is no list of hosts.
const LONGEST: u64 = 1 << 20;

/// A set of hosts.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum HostSet {
    /// The set, such as `worker-[1-80], bastion-[1-2]`.
    Written(String),
    /// The file that it is in.
    Kept(Kept),
}

/// Where a set is kept.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    /// The file, from the folder of the environment file: one host or pattern on each line, `#` for comments.
    file: String,
}

impl HostSet {
    /// Whether it is in a file, so that other sets can build upon it.
    pub(crate) fn is_kept(&self) -> bool {
        matches!(self, HostSet::Kept(_))
    }

    /// Its hosts; `field` is where it stands in the environment.
    pub(crate) fn hosts(&self, field: &str, known: &Groups, cx: &ConnectCx) -> Result<Vec<String>, Failure> {
        match self {
            HostSet::Written(text) => {
                hosts::select(text, known).map_err(|reason| hosts::wrong_set(field, text, &reason))
            }
            HostSet::Kept(Kept { file }) => read(&cx.path(file)).map_err(|reason| {
                Failure::new(FailureKind::Input, format!("`{field}`: {file}{reason}"))
                    .help("write one host or pattern such as `worker-[1-80]` on each line")
            }),
        }
    }
}

/// The hosts of a file, or what follows its name in an error: a place and a reason.
fn read(path: &Path) -> Result<Vec<String>, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| format!(": {error}"))?;
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(|error| format!(": {error}"))?;
    if text.len() as u64 > LONGEST {
        return Err(format!(": it is longer than {LONGEST} bytes"));
    }
    let mut all = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let end = line.char_indices().find(|(at, letter)| {
            *letter == '#' && line[..*at].chars().next_back().is_none_or(char::is_whitespace)
        });
        let pattern = end.map_or(line, |(end, _)| &line[..end]).trim_end();
        let column = pattern.chars().take_while(|letter| letter.is_whitespace()).count() + 1;
        let pattern = pattern.trim_start();
        if pattern.is_empty() {
            continue;
        }
        let more = hosts::expand(pattern);
        more.and_then(|more| hosts::join(&mut all, more))
            .map_err(|reason| format!(":{}:{column}: {reason}", at + 1))?;
    }
    if all.is_empty() {
        return Err(": it names no host".into());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &[u8]) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn lines_are_hosts_and_patterns() {
        let text =
            b"# the old ones\nworker-[1-3]   # and no more\n\n\tbastion-1.example.org\r\nworker-2\nweb#1\n";
        assert_eq!(
            of(&text[..text.len() - 6]).unwrap(),
            ["worker-1", "worker-2", "worker-3", "bastion-1.example.org"]
        );
        assert!(of(text).unwrap_err().starts_with(":6:1: \"web#1\" is not the name of a host"));
    }

    #[test]
    fn mistakes_have_a_place() {
        for (text, expected) in [
            (&b""[..], ": it names no host"),
            (b"# nothing\n\n", ": it names no host"),
            (b"a\n  b-[3-1]\n", ":2:3: `b-[3-1]`: `[3-1]` is an empty range"),
            (b"a\nb, c\n", ":2:1: \"b, c\" is not the name of a host"),
            (b"@all\n", ":1:1: \"@all\" is not the name of a host"),
            (b"a[1-9999]\nb[1-9999]\n", ":2:1: these are more than 10000 hosts"),
            (b"\xff\n", ": stream did not contain valid UTF-8"),
        ] {
            let reason = of(text).unwrap_err();
            assert!(reason.starts_with(expected), "{reason}");
        }
        assert!(read(Path::new("/nowhere/hosts")).unwrap_err().contains("No such file"));
        assert!(of(&b"a\n".repeat(600_000)).unwrap_err().contains("longer than"));
    }
}
