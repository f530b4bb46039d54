//! From a path and a digest to something that can be executed and cannot change any more.
//!
//! The file is opened without following a symlink anywhere on its way, and what is checked is the open file. Its bytes are
//! copied into memory, the copy is sealed by the kernel against every further write, and the digest is that of the sealed
//! copy, which is what the kernel and a script's interpreter read in the end. So it does not matter who writes to the file,
//! or puts another in its place, while it is looked at.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use farrier_model::{Failure, FailureKind};
use rustix::fs::{
    CWD, FileType, MemfdFlags, Mode, OFlags, ResolveFlags, SealFlags, Stat, fcntl_add_seals, fstat,
    memfd_create, openat2, stat,
};
use rustix::io::{FdFlags, fcntl_setfd};
use sha2::{Digest as _, Sha256};

/// A longer program is none.
const LONGEST: u64 = 256 << 20;

/// The program as an open descriptor, which children inherit.
pub(crate) fn load(path: &Path, sha256: &str) -> Result<OwnedFd, Failure> {
    let shown = path.display();
    let denied = |why: String| Failure::new(FailureKind::Denied, format!("the program {shown}: {why}"));
    for above in path.ancestors().skip(1) {
        let found = stat(above).map_err(|error| denied(format!("{}: {error}", above.display())))?;
        // In a sticky folder only a file's owner can put another in its place.
        let sticky = found.st_mode & 0o1000 != 0;
        believed(&found, sticky).map_err(|why| denied(format!("the folder {}: {why}", above.display())))?;
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).map_err(|error| {
        if error == rustix::io::Errno::LOOP {
            return denied("its path leads through a symlink".into())
                .help("write the path that it has in the end, as `realpath` shows it");
        }
        denied(error.to_string())
    })?;
    let found = fstat(&file).map_err(|error| denied(error.to_string()))?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(denied("it is no regular file".into()));
    }
    believed(&found, false).map_err(&denied)?;
    if found.st_mode & 0o111 == 0 {
        return Err(denied("nobody may execute it".into()));
    }
    let copy = memfd_create("farrier-program", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|error| denied(error.to_string()))?;
    let mut copy = File::from(copy);
    let copied = std::io::copy(&mut File::from(file).take(LONGEST + 1), &mut copy);
    if copied.map_err(|error| denied(error.to_string()))? > LONGEST {
        return Err(denied(format!("it is longer than {LONGEST} bytes")));
    }
    let sealed = copy.flush().and_then(|()| copy.rewind()).and_then(|()| {
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        Ok(fcntl_add_seals(&copy, seals)?)
    });
    sealed.map_err(|error| denied(error.to_string()))?;
    let mut hasher = Sha256::new();
    let mut beginning = Vec::new();
    (&copy).take(4096).read_to_end(&mut beginning).map_err(|error| denied(error.to_string()))?;
    hasher.update(&beginning);
    std::io::copy(&mut copy, &mut hasher).map_err(|error| denied(error.to_string()))?;
    let digest = hex::encode(hasher.finalize());
    if digest != sha256 {
        return Err(denied(format!("its sha256 is {digest}, and the environment says {sha256}"))
            .help("read what has changed in it before you write the new digest into the environment"));
    }
    check_interpreter(&beginning).map_err(denied)?;
    let copy = OwnedFd::from(copy);
    fcntl_setfd(&copy, FdFlags::empty())
        .map_err(|error| Failure::new(FailureKind::Denied, error.to_string()))?;
    Ok(copy)
}

/// Whether only the superuser, or the account that Farrier runs as, can write to it.
fn believed(found: &Stat, sticky: bool) -> Result<(), String> {
    let own = rustix::process::geteuid().as_raw();
    if found.st_uid != 0 && found.st_uid != own {
        return Err(format!("it belongs to {}, not to the superuser", found.st_uid));
    }
    if found.st_mode & 0o022 != 0 && !sticky {
        return Err("others than its owner can write to it; `chmod go-w` it".into());
    }
    Ok(())
}

/// The interpreter that a script names is a program just as well. What it loads is not looked at.
fn check_interpreter(beginning: &[u8]) -> Result<(), String> {
    let Some(line) = beginning.strip_prefix(b"#!") else { return Ok(()) };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| "its first line is no text".to_owned())?;
    let interpreter = Path::new(line.split_whitespace().next().unwrap_or_default());
    let plain = |part: Component<'_>| !matches!(part, Component::ParentDir | Component::CurDir);
    if !interpreter.is_absolute() || !interpreter.components().all(plain) {
        return Err(format!("its interpreter `{}` is not an absolute path", interpreter.display()));
    }
    let named = |why: String| format!("its interpreter `{}`: {why}", interpreter.display());
    let found = stat(interpreter).map_err(|error| named(error.to_string()))?;
    believed(&found, false).map_err(named)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn file(folder: &Path, name: &str, text: &str, mode: u32) -> std::path::PathBuf {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn refusal(path: &Path, text: &str) -> String {
        let failure = load(path, &hex::encode(Sha256::digest(text))).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Denied);
        failure.message
    }

    #[test]
    fn only_a_pinned_program_of_ours_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let text = "#!/bin/sh\n";
        let good = file(folder.path(), "good", text, 0o755);
        load(&good, &hex::encode(Sha256::digest(text))).unwrap();
        assert!(load(&good, &"0".repeat(64)).unwrap_err().message.contains("the environment says 000"));
        assert!(refusal(&file(folder.path(), "group", text, 0o775), text).contains("others than its owner"));
        assert!(refusal(&file(folder.path(), "world", text, 0o757), text).contains("others than its owner"));
        assert!(refusal(&file(folder.path(), "plain", text, 0o644), text).contains("nobody may execute"));
        assert!(refusal(folder.path(), text).contains("no regular file"));
        symlink(&good, folder.path().join("link")).unwrap();
        assert!(refusal(&folder.path().join("link"), text).contains("symlink"));
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        file(&inner, "x", text, 0o755);
        symlink(&inner, folder.path().join("way")).unwrap();
        assert!(refusal(&folder.path().join("way/x"), text).contains("symlink"));
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(refusal(&inner.join("x"), text).contains("the folder"));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&good, Some(4711), None).unwrap();
            assert!(refusal(&good, text).contains("belongs to 4711"));
        }
    }

    #[test]
    fn the_interpreter_is_a_program_too() {
        let folder = tempfile::tempdir().unwrap();
        let own = file(folder.path(), "sh", "x", 0o777);
        for (line, why) in [
            ("#!sh\n".to_owned(), "not an absolute path"),
            ("#!/bin/../sh\n".to_owned(), "not an absolute path"),
            ("#!/nowhere/sh\n".to_owned(), "No such file"),
            (format!("#! {} -e\n", own.display()), "others than its owner"),
        ] {
            let script = file(folder.path(), "script", &line, 0o755);
            assert!(refusal(&script, &line).contains(why), "{line}");
        }
    }

    #[test]
    fn what_was_checked_does_not_change_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let text = "#!/bin/sh\necho good\n";
        let path = file(folder.path(), "program", text, 0o755);
        let copy = load(&path, &hex::encode(Sha256::digest(text))).unwrap();
        fs::write(&path, "#!/bin/sh\necho bad\n").unwrap();
        let mut copy = File::from(copy);
        assert!(copy.write_all(b"bad").is_err() && copy.set_len(0).is_err(), "the copy is sealed");
        copy.rewind().unwrap();
        let mut read = String::new();
        copy.read_to_string(&mut read).unwrap();
        assert_eq!(read, text);
    }
}
