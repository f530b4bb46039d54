//! A clock of their own for programs that a test starts: Debian's `faketime`, which stands between a program and its C library.
//!
//! The time of day goes ahead by as much as the test says, also while the programs run. Their monotonic clock, by which they
//! wait and time things, and the times of files stay as they are.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::process::require_program;
use crate::{or_panic, temp_dir};

/// Holds what programs under the clock share until its standard input ends, that is at the latest with the test process. A
/// program that made it by itself would leave it behind when it is killed.
const HOLDER: &str = r#"printf '%s\n%s\n' "$LD_PRELOAD" "$FAKETIME_SHARED"; read -r end"#;

/// A clock that is ahead of the machine's. It is right until [`Clock::set_ahead`] is called.
#[derive(Debug)]
pub struct Clock {
    folder: TempDir,
    holder: Child,
    library: String,
    shared: String,
}

impl Clock {
    /// A clock that no program goes by yet.
    #[track_caller]
    pub fn start() -> Clock {
        or_panic(Clock::try_start(), "no clock for programs")
    }

    fn try_start() -> Result<Clock> {
        let faketime = require_program("faketime", "faketime")?;
        let mut holder = Command::new(faketime)
            .args(["-m", "-f", "+0", "sh", "-c", HOLDER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(holder.stdout.take().context("its output is a pipe")?).lines();
        let mut line = || lines.next().and_then(Result::ok).unwrap_or_default();
        let (library, shared) = (line(), line());
        ensure!(library.contains("libfaketime"), "`faketime` says nothing of its library: `{library}`");
        let clock = Clock { folder: temp_dir(), holder, library, shared };
        clock.set_ahead(Duration::ZERO);
        Ok(clock)
    }

    /// Moves the clock to so long after the machine's, for programs that run and for those that will.
    #[track_caller]
    pub fn set_ahead(&self, ahead: Duration) {
        // A reader sees the whole line or the one of before.
        let next = self.folder.path().join("next");
        or_panic(std::fs::write(&next, format!("+{}\n", ahead.as_secs())), "the clock cannot be written");
        or_panic(std::fs::rename(next, self.folder.path().join("clock")), "the clock cannot be moved");
    }

    /// The environment of a program that goes by this clock. Its own children inherit it.
    pub fn variables(&self) -> Vec<(String, OsString)> {
        let text = |name: &str, value: &str| (name.to_owned(), OsString::from(value));
        vec![
            text("LD_PRELOAD", &self.library),
            text("FAKETIME_SHARED", &self.shared),
            text("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            // It is looked at whenever a program asks for the time.
            text("FAKETIME_NO_CACHE", "1"),
            text("NO_FAKE_STAT", "1"),
            ("FAKETIME_TIMESTAMP_FILE".to_owned(), self.folder.path().join("clock").into()),
        ]
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::SystemTime;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn seconds() -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
    }

    #[test]
    fn the_clock_of_a_program_moves_while_it_runs_and_nobody_else_s_does() {
        let clock = Clock::start();
        let mut shell = Command::new("bash")
            .args(["-c", r"while read -r ask; do printf '%(%s)T\n' -1; done"])
            .envs(clock.variables())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut ask, mut told) =
            (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()).lines());
        for ahead in [Duration::ZERO, 12 * DAY, 41 * DAY, 40 * DAY] {
            clock.set_ahead(ahead);
            let before = seconds();
            ask.write_all(b"what time is it?\n").unwrap();
            let told: u64 = told.next().unwrap().unwrap().parse().unwrap();
            let told = told - ahead.as_secs();
            assert!((before..=seconds()).contains(&told), "{told} is not between {before} and now");
        }
        drop(ask);
        assert!(shell.wait().unwrap().success());
    }

    #[test]
    fn a_killed_program_leaves_nothing_behind() {
        let clock = Clock::start();
        let name = clock.shared.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
        let shared = || std::path::Path::new("/dev/shm").join(&name).exists();
        let mut program = Command::new("bash")
            .args(["-c", "echo begun; read -r end"])
            .envs(clock.variables())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        BufReader::new(program.stdout.take().unwrap()).lines().next().unwrap().unwrap();
        let own = std::path::Path::new("/dev/shm").join(format!("faketime_shm_{}", program.id()));
        program.kill().unwrap();
        program.wait().unwrap();
        assert!(shared() && !own.exists());
        drop(clock);
        assert!(!shared());
    }
}
