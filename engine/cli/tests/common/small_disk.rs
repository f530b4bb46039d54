//! A disk that is soon full.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system in memory; unmounted when it is dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None, and it is said, where nobody may mount.
    pub fn new(path: &Path, size: &str) -> Option<SmallDisk> {
        fs::create_dir_all(path).unwrap();
        let options = format!("size={size},mode=0700");
        let ran =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(path).output().unwrap();
        if ran.status.success() {
            return Some(SmallDisk(path.to_path_buf()));
        }
        let complaint = String::from_utf8_lossy(&ran.stderr);
        eprintln!("NOT TESTED, since nothing can be mounted on this machine: {}", complaint.trim());
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Writes a file until nothing more fits.
pub fn fill(path: &Path) {
    let mut file = fs::File::options().create(true).append(true).open(path).unwrap();
    for size in [65_536, 4_096] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}
