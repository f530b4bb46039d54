//! Files behind a helper, on this machine and on another host.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use farrier_testkit::sshd::Sshd;
use serde_json::{Value, json};

use crate::common::{FARRIER, Project};

/// Writes the file with the helper's folders, which are named from the project.
pub(crate) fn roots_file(project: &Project, roots: &[(&str, &str)]) {
    let line = |(name, folder): &(&str, &str)| {
        let path = project.path(folder);
        format!("{name} {}\n", fs::canonicalize(&path).unwrap_or(path).display())
    };
    project.write("roots", &roots.iter().map(line).collect::<String>());
    fs::set_permissions(project.path("roots"), fs::Permissions::from_mode(0o644)).unwrap();
}

/// The words that start the helper with that file.
pub(crate) fn helper_of(project: &Project) -> Value {
    json!([FARRIER, "files-helper", "--roots", project.path("roots")])
}

/// A target whose files are on another host, where `helper` is called.
pub(crate) fn behind(sshd: &Sshd, project: &Project, helper: &Value) -> Value {
    project.write("known_hosts", &sshd.known_hosts(&format!("[127.0.0.1]:{}", sshd.port())));
    json!({ "kind": "files", "via": {
        "ssh": "127.0.0.1", "port": sshd.port(), "user": "root", "identity": sshd.identity(),
        "known_hosts": project.path("known_hosts"), "helper": helper,
    } })
}

/// Ends the helpers that work with this project's folders, at once.
pub(crate) fn kill_helpers(project: &Project) -> usize {
    let roots = project.path("roots").display().to_string();
    let mut killed = 0;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
        if words.first() == Some(&FARRIER.as_bytes()) && words.contains(&roots.as_bytes()) {
            killed += usize::from(
                Command::new("kill").args(["-s", "KILL", &id.to_string()]).status().unwrap().success(),
            );
        }
    }
    killed
}

/// A disk that does not answer for one file: whoever opens it waits, until this is dropped.
pub(crate) struct Held(Child);

impl Held {
    /// Whoever opens `path` is held, and then `project/now` is there.
    pub(crate) fn at(project: &Project, path: &str) -> Held {
        // The kernel asks us for leave before it opens the file, and never hears of us.
        let script = format!(
            "import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
asked = libc.fanotify_init(4, os.O_RDONLY)
libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]
marked = libc.fanotify_mark(asked, 1, 0x10000, -100, {path:?}.encode())
if asked < 0 or marked < 0:
    sys.exit('fanotify: ' + os.strerror(ctypes.get_errno()))
open({ready:?}, 'w').close()
os.read(asked, 4096)
open({now:?}, 'w').close()
sys.stdin.read()
",
            path = project.path(path).display().to_string(),
            ready = project.path("ready").display().to_string(),
            now = project.path("now").display().to_string(),
        );
        for file in ["ready", "now"] {
            let _ = fs::remove_file(project.path(file));
        }
        let child = Command::new("python3").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        let held = Held(child);
        farrier_testkit::wait_until("the file is watched", || project.path("ready").exists());
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
