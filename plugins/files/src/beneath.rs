//! Opening and reading files beneath a folder that others may write to.
//!
//! The kernel resolves the path with `openat2` and refuses to leave the folder, also by way of links that are swapped
//! in between. A link that stays inside the folder is followed, since people do link `public_html`; one that leaves it
//! is refused, and so is every absolute one. Where the kernel has no `openat2`, no link is followed at all.
//!
//! What is there is looked at before it is opened for reading, because opening alone can hang (a pipe) or do something
//! (a device).

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

use crate::path::SafePath;
use crate::pool::{Outcome, Source};

/// A folder as it is opened: only to look things up in it.
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Resolution that loses a race against a rename asks to be repeated.
const RACES: usize = 8;

/// The files beneath one root.
pub(crate) struct Beneath {
    root: OwnedFd,
    max_bytes: u64,
}

impl Beneath {
    pub(crate) fn new(root: OwnedFd, max_bytes: u64) -> Beneath {
        Beneath { root, max_bytes }
    }
}

impl Source for Beneath {
    type Folder = OwnedFd;

    fn folder(&self, path: &SafePath) -> Result<OwnedFd, Outcome> {
        open_beneath(self.root.as_fd(), path, FOLDER).map_err(outcome_of)
    }

    fn read(&self, folder: &OwnedFd, path: &SafePath) -> Outcome {
        read_text(folder.as_fd(), path, self.max_bytes).unwrap_or_else(outcome_of)
    }
}

/// What an error of the kernel means for one file. Only ours (too few descriptors, no memory) is worth failing for:
/// it would make every file look unreadable.
fn outcome_of(error: Errno) -> Outcome {
    match error {
        Errno::NOENT | Errno::NOTDIR => Outcome::Missing,
        Errno::ACCESS | Errno::PERM => Outcome::Unreadable("permission denied".into()),
        Errno::XDEV => Outcome::Unreadable("it is a link that leaves its folder".into()),
        Errno::LOOP => Outcome::Unreadable("it is a link that cannot be followed".into()),
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => Outcome::OwnLimit(error.to_string()),
        other => Outcome::Unreadable(format!("it cannot be read: {other}")),
    }
}

fn read_text(folder: BorrowedFd<'_>, path: &SafePath, max_bytes: u64) -> Result<Outcome, Errno> {
    let seen = fstat(open_beneath(folder, path, OFlags::PATH | OFlags::CLOEXEC)?)?;
    let refused = match FileType::from_raw_mode(seen.st_mode) {
        FileType::RegularFile => None,
        FileType::Directory => Some("a folder"),
        FileType::Fifo => Some("a pipe"),
        FileType::Socket => Some("a socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
        FileType::Symlink => Some("a link that cannot be followed"),
        FileType::Unknown => Some("of unknown type"),
    };
    if let Some(what) = refused {
        return Ok(Outcome::Unreadable(format!("it is {what}, not a regular file")));
    }
    let too_large = || Outcome::Unreadable(format!("it is larger than {max_bytes} bytes"));
    if seen.st_size as u64 > max_bytes {
        return Ok(too_large());
    }
    // Should a pipe or device have taken its place meanwhile, this neither hangs nor becomes our terminal.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = open_beneath(folder, path, flags)?;
    let opened = fstat(&file)?;
    if (opened.st_dev, opened.st_ino) != (seen.st_dev, seen.st_ino)
        || FileType::from_raw_mode(opened.st_mode) != FileType::RegularFile
    {
        return Ok(Outcome::Unreadable("it was replaced while it was read".into()));
    }
    // One byte more than allowed, so that a file that grows while it is read shows.
    let mut bytes = Vec::with_capacity(seen.st_size as usize + 1);
    if let Err(error) = File::from(file).take(max_bytes + 1).read_to_end(&mut bytes) {
        return match error.raw_os_error() {
            Some(code) => Err(Errno::from_raw_os_error(code)),
            None => Ok(Outcome::Unreadable(format!("it cannot be read: {error}"))),
        };
    }
    if bytes.len() as u64 > max_bytes {
        return Ok(too_large());
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Outcome::Text(text),
        Err(error) => {
            Outcome::Unreadable(format!("it is not UTF-8 text at byte {}", error.utf8_error().valid_up_to()))
        }
    })
}

/// Opens `path` beneath `folder`.
fn open_beneath(folder: BorrowedFd<'_>, path: &SafePath, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RACES {
        match openat2(folder, path.as_str(), flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOSYS) => return open_walking(folder, path, flags),
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// The same for kernels without `openat2`: one segment after the other, following no link.
fn open_walking(folder: BorrowedFd<'_>, path: &SafePath, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut segments = path.segments().peekable();
    let mut at = openat(folder, ".", FOLDER, Mode::empty())?;
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        let this = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = openat(&at, segment, this, Mode::empty())?;
        if FileType::from_raw_mode(fstat(&next)?.st_mode) == FileType::Symlink {
            return Err(Errno::LOOP);
        }
        // Looked up again to be opened as asked; a link that took its place meanwhile is refused by `NOFOLLOW`.
        at = if last { openat(&at, segment, flags | OFlags::NOFOLLOW, Mode::empty())? } else { next };
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use rustix::fs::{CWD, mknodat, open};

    use super::*;

    /// A home as its owner may leave it, and a neighbour's.
    fn hostile_tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["home", "home/public_html", "home/real_html", "neighbour"] {
            fs::create_dir(at(folder)).unwrap();
        }
        fs::write(at("neighbour/secret"), "password").unwrap();
        fs::write(at("home/text"), "ä 🦊\nline").unwrap();
        fs::write(at("home/empty"), "").unwrap();
        fs::write(at("home/exact"), "x".repeat(64)).unwrap();
        fs::write(at("home/large"), "x".repeat(65)).unwrap();
        fs::File::create(at("home/huge")).unwrap().set_len(1 << 40).unwrap();
        fs::write(at("home/bytes"), b"ok\xff\xfe").unwrap();
        fs::write(at("home/cut"), &"🦊".as_bytes()[..3]).unwrap();
        fs::write(at("home/real_html/page"), "page").unwrap();
        mknodat(CWD, at("home/pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        symlink("text", at("home/link_inside")).unwrap();
        symlink("../home/text", at("home/link_around")).unwrap();
        symlink("../neighbour/secret", at("home/link_out")).unwrap();
        symlink(at("home/text"), at("home/link_absolute")).unwrap();
        symlink("link_loop", at("home/link_loop")).unwrap();
        symlink("gone", at("home/link_gone")).unwrap();
        symlink("pipe", at("home/link_pipe")).unwrap();
        symlink("real_html", at("home/linked_html")).unwrap();
        symlink("../neighbour", at("home/linked_out")).unwrap();
        symlink("/proc/self/root/etc/passwd", at("home/link_proc")).unwrap();
        drop(UnixListener::bind(at("home/socket")).unwrap());
        dir
    }

    fn folder(path: &Path) -> OwnedFd {
        open(path, FOLDER, Mode::empty()).unwrap()
    }

    fn check(home: &OwnedFd, path: &str, expected: &str) {
        let found =
            read_text(home.as_fd(), &SafePath::of(path.split('/')).unwrap(), 64).unwrap_or_else(outcome_of);
        let found = match found {
            Outcome::Text(text) => format!("text {text}"),
            other => format!("{other:?}"),
        };
        assert!(
            found.starts_with(expected) || found.contains(expected),
            "{path}: {found}, expected {expected}"
        );
    }

    #[test]
    fn only_regular_text_inside_the_folder_is_read() {
        let tree = hostile_tree();
        let home = folder(&tree.path().join("home"));
        for (path, expected) in [
            ("text", "text ä 🦊\nline"),
            ("empty", "text "),
            ("exact", "text xxx"),
            ("link_inside", "text ä"),
            ("linked_html/page", "text page"),
            ("nothing", "Missing"),
            ("text/below", "Missing"),
            ("no_folder/below", "Missing"),
            ("link_gone", "Missing"),
            ("public_html", "it is a folder"),
            ("pipe", "it is a pipe"),
            ("link_pipe", "it is a pipe"),
            ("socket", "it is a socket"),
            ("large", "it is larger than 64 bytes"),
            ("huge", "it is larger than 64 bytes"),
            ("bytes", "not UTF-8 text at byte 2"),
            ("cut", "not UTF-8 text at byte 0"),
            ("link_around", "leaves its folder"),
            ("link_out", "leaves its folder"),
            ("link_absolute", "leaves its folder"),
            ("linked_out/secret", "leaves its folder"),
            ("link_proc", "leaves its folder"),
            ("link_loop", "cannot be followed"),
        ] {
            check(&home, path, expected);
        }
    }

    #[test]
    fn without_openat2_no_link_is_followed() {
        let tree = hostile_tree();
        let home = folder(&tree.path().join("home"));
        let walk = |path: &str| {
            let path = SafePath::of(path.split('/')).unwrap();
            open_walking(home.as_fd(), &path, OFlags::RDONLY | OFlags::NONBLOCK).map(|file| {
                let mut text = String::new();
                File::from(file).read_to_string(&mut text).unwrap();
                text
            })
        };
        assert_eq!(walk("text").unwrap(), "ä 🦊\nline");
        assert_eq!(walk("real_html/page").unwrap(), "page");
        for path in
            ["link_inside", "link_out", "link_absolute", "linked_html/page", "linked_out/secret", "link_loop"]
        {
            assert_eq!(walk(path).unwrap_err(), Errno::LOOP, "{path}");
        }
        assert_eq!(walk("nothing").unwrap_err(), Errno::NOENT);
        assert_eq!(walk("text/below").unwrap_err(), Errno::NOTDIR);
        assert!(open_walking(home.as_fd(), &SafePath::of([]).unwrap(), FOLDER).is_ok());
    }

    #[test]
    fn devices_and_forbidden_files_are_noted() {
        let tree = hostile_tree();
        let home = folder(&tree.path().join("home"));
        if mknodat(&home, "device", FileType::CharacterDevice, Mode::RWXU, rustix::fs::makedev(1, 3)).is_ok()
        {
            check(&home, "device", "it is a device");
        }
        let path = tree.path().join("home/forbidden");
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        // The superuser reads everything, so what is expected depends on who asks.
        check(
            &home,
            "forbidden",
            if rustix::process::geteuid().is_root() { "text x" } else { "permission denied" },
        );
        assert!(
            matches!(outcome_of(Errno::ACCESS), Outcome::Unreadable(note) if note == "permission denied")
        );
        assert!(matches!(outcome_of(Errno::IO), Outcome::Unreadable(_)));
        assert!(matches!(outcome_of(Errno::MFILE), Outcome::OwnLimit(_)));
    }

    #[test]
    fn a_file_that_grows_while_it_is_read_stops_at_the_limit() {
        // Its size is 0 to `fstat`, and reading it gives more: what a file that grows in between looks like.
        let proc = folder(Path::new("/proc/self"));
        check(&proc, "status", "it is larger than 64 bytes");
    }
}
