//! Ways to kill the binary: at its n-th call of the system, by `strace`, or after a while.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{Answer, FARRIER, Project, Started};

/// When it dies.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Blow {
    /// As it enters its n-th call of this name in one thread. The call does not happen: `fsync` is a commit that is not
    /// acknowledged, because only one thread writes the store.
    Call(&'static str, usize),
    /// After so long.
    After(Duration),
}

/// Starts the binary with `args`, and kills it.
pub(crate) fn strike(project: &Project, args: &[&str], blow: Blow) -> Answer {
    match blow {
        Blow::Call(call, nth) => {
            let inject = format!("inject={call}:signal=KILL:when={nth}");
            Started::from(traced(project, args, &["-e", &format!("trace={call}"), "-e", &inject])).end()
        }
        Blow::After(wait) => kill_after(Started::from(project.command(args)), wait),
    }
}

/// Ends the process with `kill -9` after so long, unless it is over before.
pub(crate) fn kill_after(mut started: Started, wait: Duration) -> Answer {
    let begun = Instant::now();
    while begun.elapsed() < wait && started.child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1).min(wait));
    }
    let _ = started.child.kill();
    started.end()
}

/// How often the thread that calls it most often calls `call`, in a run to its end.
pub(crate) fn count(project: &Project, args: &[&str], call: &str, code: i32) -> usize {
    let file = project.path("trace");
    let (file, trace) = (file.to_str().unwrap(), format!("trace={call}"));
    Started::from(traced(project, args, &["-o", file, "-e", &trace, "-e", "signal=none"])).end().expect(code);
    let text = project.read("trace");
    let mut threads = std::collections::BTreeMap::new();
    for line in text.lines().filter(|line| line.contains(&format!("{call}("))) {
        let thread = line.split_ascii_whitespace().next().unwrap_or_default();
        *threads.entry(thread).or_insert(0) += 1;
    }
    threads.into_values().max().unwrap_or_default()
}

/// The binary under `strace`, in the project as [`Project::command`] would run it.
pub(crate) fn traced(project: &Project, args: &[&str], how: &[&str]) -> Command {
    assert!(Path::new("/usr/bin/strace").exists(), "strace is missing: apt-get install strace");
    let mut command = project.command(&[]);
    let variables: Vec<_> =
        command.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
    let folder = command.get_current_dir().unwrap().to_owned();
    command = Command::new("/usr/bin/strace");
    command.args(["-f", "-qqq"]).args(how).arg(FARRIER).args(args).current_dir(folder);
    for (name, value) in variables {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}
