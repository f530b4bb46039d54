//! The data directory: private, on a local disk, and owned by one process at a time.
//!
//! The lock is a `flock` on `farrier.lock`, so it goes away with its process however that ends. The file holds the
//! process id for whoever is turned away.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, statfs};
use rustix::io::Errno;

use crate::StoreError;

const LOCK_FILE: &str = "farrier.lock";
const DATABASE_FILE: &str = "farrier.db";

/// File systems on which neither `flock` nor SQLite's shared memory can be trusted between machines: NFS, SMB, CIFS,
/// SMB2, AFS, Ceph.
const NETWORK: [u64; 6] = [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x5346_414f, 0x00c3_6400];

/// Exclusive ownership of a data directory, for as long as it lives.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    /// Held open: closing it gives the lock up.
    _file: File,
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
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut text = String::new();
            // Who it is only helps; that it is held is certain.
            let _ = file.read_to_string(&mut text);
            return Err(StoreError::Busy { dir: dir.to_path_buf(), pid: text.trim().parse().ok() });
        }
        Err(errno) => return Err(failed(errno.into())),
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
    fn a_file_in_the_way_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, "").unwrap();
        assert!(matches!(own(&path), Err(StoreError::Directory { .. })));
    }
}
