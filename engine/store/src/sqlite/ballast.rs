//! Room that is kept for the day on which the disk is full: `farrier.ballast`, really allocated.
//!
//! When a write finds no room, the ballast is freed. What it gives is for what must not be lost: outcomes of effects that
//! have happened, heartbeats, releases. What can wait (new runs, claims, intents, requests) is refused until there is room
//! for a new ballast with a margin, which is looked for on a timer and before each refusal. Nothing needs a restart.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

const BALLAST_FILE: &str = "farrier.ballast";
/// What a few thousand outcomes take.
const MOST: u64 = 16 * 1024 * 1024;
/// On a small file system no more than this part of what it has free.
const PART: u64 = 10;
/// Ballast comes in pages, as room does.
const PAGE: u64 = 4096;

#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    size: u64,
    /// Whether a write found no room, and no new ballast could be made since.
    full: bool,
}

impl Ballast {
    /// The ballast of a data directory; made if there is none. A disk without room for it is not full before a write says
    /// so.
    pub(super) fn keep(dir: &Path) -> Ballast {
        let path = dir.join(BALLAST_FILE);
        let kept = allocated(&path);
        // What was kept from better days stays.
        let size = (free(&path).saturating_add(kept) / PART).max(kept).min(MOST) / PAGE * PAGE;
        let ballast = Ballast { path, size, full: false };
        if kept < size / 2
            && let Err(error) = ballast.make()
        {
            tracing::warn!(%error, file = %ballast.path.display(), "no room is kept for a full disk");
        }
        ballast
    }

    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// A write found no room. Gives the ballast up; false when there was none to give.
    pub(super) fn give_up(&mut self) -> bool {
        if !self.full {
            tracing::error!(
                file = %self.path.display(),
                "the disk is full; outcomes are still recorded, and nothing new begins until there is room"
            );
        }
        self.full = true;
        if allocated(&self.path) == 0 {
            return false;
        }
        let freed = File::options().write(true).open(&self.path).and_then(|file| file.set_len(0));
        if let Err(error) = &freed {
            tracing::warn!(%error, file = %self.path.display(), "the room that was kept cannot be used");
        }
        freed.is_ok()
    }

    /// Looks whether there is room again: for a new ballast, and as much beside it.
    pub(super) fn look(&mut self) {
        if !self.full || free(&self.path) < self.size.max(PAGE) * 2 {
            return;
        }
        match self.make() {
            Ok(()) => {
                tracing::info!(file = %self.path.display(), "the disk has room again");
                self.full = false;
            }
            // Somebody else was faster.
            Err(error) => tracing::debug!(%error, "no new ballast yet"),
        }
    }

    fn make(&self) -> io::Result<()> {
        let made = self.allocate();
        if made.is_err() {
            // A part of it would only take what others need.
            let _ = fs::remove_file(&self.path);
        }
        made
    }

    fn allocate(&self) -> io::Result<()> {
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&self.path)?;
        if self.size == 0 {
            return Ok(());
        }
        match fallocate(&file, FallocateFlags::empty(), 0, self.size) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                // Written out instead, with content that no file system packs.
                let mut state = self.size | 1;
                for _ in 0..self.size / PAGE {
                    let mut page = Vec::with_capacity(PAGE as usize);
                    while page.len() < PAGE as usize {
                        state ^= state << 13;
                        state ^= state >> 7;
                        state ^= state << 17;
                        page.extend_from_slice(&state.to_le_bytes());
                    }
                    file.write_all(&page)?;
                }
                file.sync_data()
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

/// What a file really takes.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

/// What is free where `path` is, for whoever we are.
fn free(path: &Path) -> u64 {
    let dir = path.parent().unwrap_or(path);
    statvfs(dir).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_real_room_and_gives_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut ballast = Ballast::keep(dir.path());
        let path = dir.path().join(BALLAST_FILE);
        assert!(ballast.size > 0 && ballast.size <= MOST);
        assert!(allocated(&path) >= ballast.size, "{} of {}", allocated(&path), ballast.size);
        ballast.look();
        assert!(ballast.give_up());
        assert_eq!(allocated(&path), 0);
        assert!(ballast.is_full());
        assert!(!ballast.give_up(), "there is nothing left to give");
        ballast.look();
        assert!(!ballast.is_full());
        assert!(allocated(&path) >= ballast.size);
    }

    /// A process that was killed while the disk was full leaves an empty file.
    #[test]
    fn it_is_made_anew_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(BALLAST_FILE);
        fs::write(&path, "").unwrap();
        let ballast = Ballast::keep(dir.path());
        assert!(allocated(&path) >= ballast.size);
    }
}
