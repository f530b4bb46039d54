//! The data directory: private, on a local disk, and owned by one process at a time.
//!
//! The lock is a `flock` on `farrier.lock`, so it goes away with its process however that ends. The file holds the
//! process id for whoever is turned away.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock, statfs};
use rustix::io::Errno;

use crate::StoreError;

const LOCK_FILE: &str = "farrier.lock";
const DATABASE_FILE: &str = "farrier.db";
/// How long the lock of a dead owner is waited for. A process that was being started when its Farrier was killed holds
/// the lock until its program begins, which is when the file closes.
const PATIENCE: Duration = Duration::from_secs(1);

/// File systems on which neither `flock` nor SQLite's shared memory can be trusted between machines: NFS, SMB, CIFS,
/// SMB2, AFS, Ceph.
const NETWORK: [u64; 6] = [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x5346_414f, 0x00c3_6400];

/// Exclusive ownership of a data directory, for as long as it lives.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    /// Held open: closing it gives the lock up.
    _file: File,
}

/// The files that everything rests on, as they were when the store was opened. A database whose name is gone, or means
/// another file, would take every commit and lose it.
#[derive(Debug, Default)]
pub(crate) struct Anchors(Vec<(PathBuf, u64, u64)>);

impl Anchors {
    /// Database, write-ahead log and lock, which must all be there.
    pub(crate) fn of(dir: &Path) -> io::Result<Anchors> {
        let log = format!("{DATABASE_FILE}-wal");
        [DATABASE_FILE, &log, LOCK_FILE]
            .into_iter()
            .map(|name| {
                let path = dir.join(name);
                fs::symlink_metadata(&path).map(|found| (path, found.dev(), found.ino()))
            })
            .collect::<io::Result<_>>()
            .map(Anchors)
    }

    /// What is not as it was; a few microseconds when all is well.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (path, dev, ino) in &self.0 {
            let name = path.display();
            match fs::symlink_metadata(path) {
                Ok(now) if (now.dev(), now.ino()) != (*dev, *ino) => {
                    return Err(format!("`{name}` was replaced by another file while it was in use"));
                }
                Ok(now) if now.mode() & 0o222 == 0 => {
                    return Err(format!("`{name}` was made read-only while it was in use"));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(format!("`{name}` was deleted or moved away while it was in use"));
                }
                Err(error) => return Err(format!("`{name}` cannot be looked at any more: {error}")),
            }
        }
        Ok(())
    }
}

/// Makes the names of the files in a data directory durable, and remembers the files.
pub(crate) fn anchor(dir: &Path) -> io::Result<Anchors> {
    File::open(dir)?.sync_all()?;
    Anchors::of(dir)
}

/// Where the database of a data directory is.
pub(crate) fn database(dir: &Path) -> PathBuf {
    dir.join(DATABASE_FILE)
}

/// Makes the directory if it is not there, checks that it can hold a store, and locks it.
pub(crate) fn own(dir: &Path) -> Result<DirectoryLock, StoreError> {
    let unusable = |message: String| StoreError::Directory { dir: dir.to_path_buf(), message };
    let failed = |error: io::Error| unusable(error.to_string());
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let metadata = fs::metadata(dir).map_err(failed)?;
    if metadata.mode() & 0o077 != 0 {
        // Journals hold what runbooks read. A directory that is ours alone is tightened; one that is used for something
        // else as well is not touched.
        let ours = dir.join(LOCK_FILE).exists()
            || database(dir).exists()
            || fs::read_dir(dir).map_err(failed)?.next().is_none();
        if !ours {
            let mode = metadata.mode() & 0o777;
            return Err(unusable(format!(
                "others can enter it (mode {mode:o}) and it holds other files; name a directory of its own, or `chmod 700` it"
            )));
        }
        fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed)?;
    }
    let kind = statfs(dir).map_err(|errno| failed(errno.into()))?.f_type;
    // The type is a different integer on each platform; magic numbers are 32 bits.
    #[allow(clippy::unnecessary_cast, reason = "the field's type differs between platforms")]
    if NETWORK.contains(&(kind as u64 & 0xffff_ffff)) {
        return Err(unusable(
            "it lies on a network file system; use a local disk, or PostgreSQL for several machines".into(),
        ));
    }
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join(LOCK_FILE))
        .map_err(failed)?;
    let begun = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // Who it is only helps; that it is held is certain.
                let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
                let pid: Option<u32> = text.trim().parse().ok();
                let is_dead = pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
                if !is_dead || begun.elapsed() > PATIENCE {
                    return Err(StoreError::Busy { dir: dir.to_path_buf(), pid });
                }
                thread::sleep(Duration::from_millis(5));
            }
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    file.set_len(0).map_err(failed)?;
    file.rewind().map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(DirectoryLock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(dir: &Path) -> u32 {
        fs::metadata(dir).unwrap().mode() & 0o777
    }

    #[test]
    fn a_new_or_empty_directory_becomes_private() {
        let parent = tempfile::tempdir().unwrap();
        let fresh = parent.path().join("deep/data");
        let lock = own(&fresh).unwrap();
        assert_eq!(mode(&fresh), 0o700);
        drop(lock);
        fs::set_permissions(&fresh, Permissions::from_mode(0o755)).unwrap();
        own(&fresh).unwrap();
        assert_eq!(mode(&fresh), 0o700);
    }

    #[test]
    fn a_directory_of_others_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("letter"), "dear").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let error = own(dir.path()).unwrap_err().to_string();
        assert!(error.contains("others can enter it (mode 755)"), "{error}");
        assert_eq!(mode(dir.path()), 0o755);
    }

    #[test]
    fn the_second_owner_is_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let lock = own(dir.path()).unwrap();
        let busy = StoreError::Busy { dir: dir.path().to_path_buf(), pid: Some(std::process::id()) };
        assert_eq!(own(dir.path()).unwrap_err(), busy);
        drop(lock);
        own(dir.path()).unwrap();
    }

    #[test]
    fn anchors_notice_what_became_of_their_files() {
        let make = |dir: &Path| {
            for name in [DATABASE_FILE, "farrier.db-wal", LOCK_FILE] {
                fs::write(dir.join(name), "x").unwrap();
            }
            Anchors::of(dir).unwrap()
        };
        /// What is done to a file, and what is said of it.
        type Case = (fn(&Path), &'static str);
        let cases: [Case; 4] = [
            (|file| fs::remove_file(file).unwrap(), "was deleted or moved away"),
            (
                |file| {
                    fs::rename(file, file.with_extension("old")).unwrap();
                    fs::write(file, "x").unwrap();
                },
                "was replaced by another file",
            ),
            (|file| fs::set_permissions(file, Permissions::from_mode(0o400)).unwrap(), "was made read-only"),
            (
                |file| {
                    fs::rename(file.parent().unwrap(), file.parent().unwrap().with_extension("moved"))
                        .unwrap();
                },
                "was deleted or moved away",
            ),
        ];
        for name in [DATABASE_FILE, "farrier.db-wal", LOCK_FILE] {
            for (damage, expected) in cases {
                let parent = tempfile::tempdir().unwrap();
                let dir = parent.path().join("data");
                fs::create_dir(&dir).unwrap();
                let anchors = make(&dir);
                anchors.check().unwrap();
                damage(&dir.join(name));
                let message = anchors.check().unwrap_err();
                assert!(message.contains(expected), "{name}: {message}");
            }
        }
    }

    #[test]
    fn the_lock_of_a_dead_owner_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let lock = own(dir.path()).unwrap();
        // No process has the number of a process that was waited for, for a while.
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        fs::write(dir.path().join(LOCK_FILE), format!("{}\n", dead.id())).unwrap();
        let busy = StoreError::Busy { dir: dir.path().to_path_buf(), pid: Some(dead.id()) };
        assert_eq!(own(dir.path()).unwrap_err(), busy, "in vain, when it is never given up");
        let next = thread::spawn({
            let dir = dir.path().to_path_buf();
            move || own(&dir).map(drop)
        });
        drop(lock);
        next.join().unwrap().unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, "").unwrap();
        assert!(matches!(own(&path), Err(StoreError::Directory { .. })));
    }
}
