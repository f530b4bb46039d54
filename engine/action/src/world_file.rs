//! The files in which a stand-in keeps its world: read and written by both sides of a process, and by several processes one
//! after the other.

use std::fs::{File, Metadata, TryLockError};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use farrier_model::{Failure, FailureKind};

/// Keeps other processes, and the other side of this one, from writing as long as the answer is held.
///
/// `path` is a file or the folder of several.
///
/// # Errors
/// [`FailureKind::Conflict`] when somebody else holds it for longer than `patience`, [`FailureKind::Unreachable`] when the
/// folder cannot be opened.
pub fn lock(path: &Path, patience: Duration) -> Result<File, Failure> {
    let folder = if path.is_dir() { path } else { folder_of(path) };
    let lock = File::open(folder).map_err(|error| unreadable(folder, &error))?;
    let begun = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if begun.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(TryLockError::WouldBlock) => {
                let message = format!("another process writes in {}", folder.display());
                return Err(Failure::new(FailureKind::Conflict, message));
            }
            Err(TryLockError::Error(error)) => return Err(unreadable(folder, &error)),
        }
    }
}

/// Gives an existing file another content. After a crash it is the old one or the new one, whole.
///
/// # Errors
/// Whatever the file system says; the file is the old one then.
pub fn replace(path: &Path, text: &str) -> std::io::Result<Metadata> {
    let folder = folder_of(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        let mut file = File::create(&temporary)?;
        file.set_permissions(std::fs::metadata(path)?.permissions())?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        file.metadata()
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    File::open(folder)?.sync_all()?;
    written
}

/// That a file or a folder cannot be read.
pub fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(FailureKind::Unreachable, format!("cannot read {}: {error}", path.display()))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
