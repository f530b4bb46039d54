//! The file with the folders that a helper may work in.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use farrier_model::{Failure, FailureKind};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

/// A longer file is none of ours.
const LONGEST: u64 = 64 << 10;

/// Reads `NAME FOLDER` from each line; `#` begins a comment. The file must belong to the superuser, or to the account
/// that the helper runs as, and nobody else may be able to write to it.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<String, String>, Failure> {
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

fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut roots = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = number + 1;
        let Some((name, folder)) = line.split_once(char::is_whitespace) else {
            return Err(format!("line {number} is not `NAME FOLDER`"));
        };
        let folder = folder.trim();
        if !folder.starts_with('/') || folder.contains("/../") || folder.ends_with("/..") {
            return Err(format!("line {number}: `{folder}` is not an absolute path"));
        }
        if roots.insert(name.to_owned(), folder.to_owned()).is_some() {
            return Err(format!("line {number}: the root `{name}` is there twice"));
        }
    }
    if roots.is_empty() {
        return Err("the file names no root".into());
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn lines_are_names_and_folders() {
        let roots = parse("# ours\n\ntool_homes /srv/tools/project\narchives\t/srv/with a blank\n").unwrap();
        assert_eq!(roots["tool_homes"], "/srv/tools/project");
        assert_eq!(roots["archives"], "/srv/with a blank");
        for (text, why) in [
            ("", "names no root"),
            ("alone", "line 1 is not"),
            ("a b", "not an absolute path"),
            ("a /b/../c", "not an absolute path"),
            ("a /b\na /c", "twice"),
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
