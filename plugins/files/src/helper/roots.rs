//! The file with the folders that a helper may work in.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use farrier_model::{Failure, FailureKind};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

use crate::snapshot::parts;

/// What the file names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Folders {
    /// By name.
    pub(crate) roots: BTreeMap<String, String>,
    /// By name of its root, the folder with the snapshots; see the key of the same name in environments.
    pub(crate) snapshots: BTreeMap<String, String>,
}

impl Folders {
    /// All folders that work is done in.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Path> {
        let snapshots = self.snapshots.values().map(|folder| parts(folder).0);
        self.roots.values().map(String::as_str).chain(snapshots).map(Path::new)
    }
}

/// A longer file is none of ours.
const LONGEST: u64 = 64 << 10;

/// Reads `NAME FOLDER` or `snapshots NAME FOLDER` from each line; `#` begins a comment. The file must belong to the superuser, or to the account
/// that the helper runs as, and nobody else may be able to write to it.
pub(crate) fn read(path: &Path) -> Result<Folders, Failure> {
    let shown = path.display();
    let refused = |why: &dyn std::fmt::Display| {
        Failure::new(FailureKind::Denied, format!("the roots in {shown}: {why}"))
    };
    let file = openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| refused(&error))?;
    let stat = fstat(&file).map_err(|error| refused(&error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused(&"it is no regular file"));
    }
    let own = rustix::process::geteuid().as_raw();
    if stat.st_uid != 0 && stat.st_uid != own {
        return Err(refused(&format_args!("the file belongs to {}, not to the superuser", stat.st_uid)));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(refused(&"others than its owner can write to the file").help("`chmod go-w` it"));
    }
    let mut text = String::new();
    File::from(file).take(LONGEST + 1).read_to_string(&mut text).map_err(|error| refused(&error))?;
    if text.len() as u64 > LONGEST {
        return Err(refused(&format_args!("the file is longer than {LONGEST} bytes")));
    }
    parse(&text).map_err(|why| refused(&why))
}

fn parse(text: &str) -> Result<Folders, String> {
    let mut folders = Folders::default();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = number + 1;
        let words = |line: &'_ str| {
            line.split_once(char::is_whitespace).map(|(name, rest)| (name.to_owned(), rest.trim().to_owned()))
        };
        let Some((mut name, mut folder)) = words(line) else {
            return Err(format!("line {number} is not `NAME FOLDER`"));
        };
        let mut named = &mut folders.roots;
        // A root may have this name as well: then its folder follows.
        if name == "snapshots" && !folder.starts_with('/') {
            (name, folder) = words(&folder).ok_or(format!("line {number} is not `snapshots NAME FOLDER`"))?;
            named = &mut folders.snapshots;
        }
        if !folder.starts_with('/') || folder.contains("/../") || folder.ends_with("/..") {
            return Err(format!("line {number}: `{folder}` is not an absolute path"));
        }
        if named.contains_key(&name) {
            return Err(format!("line {number}: the root `{name}` is there twice"));
        }
        named.insert(name, folder);
    }
    if folders.roots.is_empty() {
        return Err("the file names no root".into());
    }
    if let Some(name) = folders.snapshots.keys().find(|name| !folders.roots.contains_key(*name)) {
        return Err(format!("it has snapshots of `{name}`, and no such root"));
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn lines_are_names_and_folders() {
        let text = "# ours\n\ntool_homes /srv/tools/project\narchives\t/srv/with a blank\nsnapshots /srv/s\n\
                    snapshots tool_homes  /srv/snap shots/*/tools\n";
        let folders = parse(text).unwrap();
        assert_eq!(folders.roots["tool_homes"], "/srv/tools/project");
        assert_eq!(folders.roots["archives"], "/srv/with a blank");
        assert_eq!(folders.roots["snapshots"], "/srv/s");
        assert_eq!(folders.snapshots, [("tool_homes".into(), "/srv/snap shots/*/tools".into())].into());
        let all: Vec<_> = folders.all().collect();
        assert!(all.contains(&Path::new("/srv/snap shots")), "{all:?}");
        for (text, why) in [
            ("", "names no root"),
            ("alone", "line 1 is not"),
            ("a b", "not an absolute path"),
            ("a /b/../c", "not an absolute path"),
            ("a /b\na /c", "twice"),
            ("a /b\nsnapshots a", "line 2 is not `snapshots NAME FOLDER`"),
            ("a /b\nsnapshots a b", "not an absolute path"),
            ("a /b\nsnapshots b /c", "snapshots of `b`, and no such root"),
            ("a /b\nsnapshots a /c\nsnapshots a /d", "twice"),
        ] {
            assert!(parse(text).unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn only_a_file_that_nobody_else_can_write_to_is_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roots");
        std::fs::write(&path, "a /a\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        read(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o664)).unwrap();
        assert!(read(&path).unwrap_err().message.contains("others than its owner"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(read(&link).unwrap_err().kind, FailureKind::Denied);
        assert_eq!(read(folder.path()).unwrap_err().kind, FailureKind::Denied);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(4711), None).unwrap();
            assert!(read(&path).unwrap_err().message.contains("belongs to 4711"));
        }
    }
}
