//! `farrier plugin-runner`: the process between Farrier and a program.
//!
//! It checks the program and makes a sealed copy of it ([`seal`]), takes away what the program does not need
//! ([`confine`]), starts it on the runner's own input and outputs, and ends it with all that it has started: when it is
//! over, when Farrier asks for it (`SIGTERM`), and when nobody reads its output any more, since Farrier is gone then.
//!
//! What a program starts cannot get away. Where this process may make control groups, the program enters one of its own
//! before it becomes what it is, and the whole group is killed at once ([`group`]); a runner that was itself killed leaves it to
//! the next one, or to the next start of Farrier ([`sweep`]). Everywhere, the runner is the subreaper of all of it: whoever loses its parent, by a double
//! fork or otherwise, becomes the runner's own child, in whatever session or process group. The runner ends its children
//! until there are none.
//!
//! How many processes and threads there are at once, and how much memory they occupy together, the runner counts itself, again
//! and again. When it is too much, all are killed.
//!
//! Limits can only be lowered by the process that they hold for. So the runner starts itself once more, and that second
//! one confines itself and becomes the program.

mod confine;
mod seal;

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use farrier_confine::group::{self, Group};
use farrier_model::{Failure, FailureKind};
use farrier_plugin_host::leftovers;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group, wait};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How long a program has between being asked to end and being killed. Farrier waits longer than that for the runner.
const GRACE: Duration = Duration::from_secs(2);

/// The exit code of a runner that ended its program because of too many processes.
pub(crate) const TOO_MANY: i32 = 123;
/// The exit code of a runner that ended its program because of too much memory.
pub(crate) const TOO_MUCH: i32 = 122;

/// The shortest time between two counts.
const COUNTS: Duration = Duration::from_millis(20);
/// Counting may take one part in so many of the runner's time.
const SHARE: u32 = 20;

/// The command of `farrier` that is a runner.
pub(crate) const COMMAND: &str = "plugin-runner";

/// What a runner is told, as the one word of its command line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    pub(crate) program: String,
    pub(crate) sha256: String,
    pub(crate) memory: u64,
    pub(crate) open_files: u64,
    pub(crate) processes: u64,
    pub(crate) processor_seconds: u64,
    pub(crate) network: bool,
    pub(crate) reads: Vec<String>,
    pub(crate) writes: Vec<String>,
    pub(crate) unconfined: bool,
}

impl Order {
    pub(crate) fn word(&self) -> Result<String, Failure> {
        serde_json::to_string(self).map_err(|error| refused(self, "no order", &error))
    }

    fn of(word: &str) -> Option<Order> {
        serde_json::from_str(word).ok()
    }
}

/// In the place of a control group's path.
const NO_GROUP: &str = "none";

/// The first word of a runner's second self.
const BECOME: &str = "become";

/// Does what the words of its command line say, and returns the program's exit code. A refusal is said in the program's
/// place, as its answer.
pub fn main(words: &[String]) -> i32 {
    let done = match words {
        [first, descriptor, folder, group, order] if first == BECOME => {
            let group = Some(Path::new(group)).filter(|group| group.is_absolute());
            Order::of(order).map(|order| Err(become_program(descriptor, Path::new(folder), group, &order)))
        }
        [order] => Order::of(order).map(|order| run(&order)),
        _ => None,
    };
    let Some(done) = done else {
        eprintln!("error: this command is for Farrier itself, which starts programs with it");
        return 64;
    };
    done.unwrap_or_else(|failure| {
        let answer = serde_json::json!({ "failed": failure });
        let mut out = std::io::stdout().lock();
        let told = writeln!(out, "{answer}").and_then(|()| out.flush());
        i32::from(told.is_err())
    })
}

fn refused(order: &Order, what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Refused, format!("cannot start `{}`: {what}: {error}", order.program))
}

/// Returns only when it could not.
fn become_program(descriptor: &str, folder: &Path, group: Option<&Path>, order: &Order) -> Failure {
    // Before there are walls, and so that nothing is ever outside of it.
    if let Some(Err(error)) = group.map(group::enter) {
        return refused(order, "its control group", &error);
    }
    if let Err(failure) = confine::confine(order, folder) {
        return failure;
    }
    if let Err(error) = confine::limit(order) {
        return refused(order, "its limits", &error);
    }
    // A script's interpreter opens the copy by this name once more, so the descriptor stays open in it.
    let mut program = std::process::Command::new(format!("/proc/self/fd/{descriptor}"));
    let error = program.arg0(&order.program).env("TMPDIR", folder).exec();
    refused(order, "the kernel", &error)
}

fn run(order: &Order) -> Result<i32, Failure> {
    let sealed = seal::load(Path::new(&order.program), &order.sha256)?;
    let folder = tempfile::Builder::new().prefix("farrier-program-").tempdir();
    let folder = folder.map_err(|error| refused(order, "no folder to work in", &error))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| refused(order, "the kernel does not let it be watched", &error))?;
    group::sweep();
    let group = Group::make();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| refused(order, "no runtime", &error))?;
    let ended = runtime.block_on(async {
        let mut asked = signal(SignalKind::terminate()).map_err(|error| refused(order, "signals", &error))?;
        let mut command = Command::new("/proc/self/exe");
        // The first word is what `farrier` calls this command; the runner alone has no such word.
        command.args(std::env::args().nth(1).filter(|word| word == COMMAND));
        command.args([BECOME, &sealed.as_raw_fd().to_string()]).arg(folder.path());
        command.arg(group.as_ref().map_or(Path::new(NO_GROUP), Group::path)).arg(order.word()?);
        let child = command.process_group(0).spawn();
        let mut child = child.map_err(|error| refused(order, "the kernel", &error))?;
        drop(sealed);
        let first = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let status = tokio::select! {
            biased;
            _ = asked.recv() => stopped(&mut child, first).await,
            () = nobody_reads() => stopped(&mut child, first).await,
            exceeded = too_much(order) => {
                // All of a group at once: none of them gets to start another one first.
                group.as_ref().map(Group::kill);
                if let Some(first) = first {
                    let _ = kill_process_group(first, Signal::KILL);
                }
                return Ok(exceeded);
            }
            status = child.wait() => status.ok(),
        };
        Ok(status.map_or(1, code))
    });
    group.as_ref().map(Group::kill);
    end_all();
    group.map(Group::remove);
    ended
}

/// Ends what runners that were killed have left in their control groups, and says how many processes there were.
pub fn sweep() -> usize {
    group::sweep()
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}

/// Asks the program to end and gives it a moment.
async fn stopped(child: &mut Child, group: Option<Pid>) -> Option<ExitStatus> {
    // It is not yet waited for, so the group's number is its own.
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::TERM);
    }
    tokio::time::timeout(GRACE, child.wait()).await.ok()?.ok()
}

/// Returns when the other end of standard output is closed.
async fn nobody_reads() {
    let (tell, told) = oneshot::channel();
    std::thread::spawn(move || {
        let out = std::io::stdout();
        // Without a wish, only the end is reported.
        while poll(&mut [PollFd::new(&out, PollFlags::empty())], None) == Err(rustix::io::Errno::INTR) {}
        let _ = tell.send(());
    });
    let _ = told.await;
}

/// Returns when what this process has started has more than the order gives it, with the exit code that says of what.
async fn too_much(order: &Order) -> i32 {
    loop {
        let begun = Instant::now();
        // A count that fails is no reason to end anything; the kernel's own limits hold.
        if let Ok(share) = leftovers::share(order.memory) {
            if share.threads > order.processes {
                return TOO_MANY;
            }
            if share.memory > order.memory {
                return TOO_MUCH;
            }
        }
        tokio::time::sleep(COUNTS.max(begun.elapsed() * SHARE)).await;
    }
}

/// Kills every child until there is none. Children of the killed become children in turn.
fn end_all() {
    loop {
        // They are not yet waited for, so their numbers are theirs.
        for child in leftovers::children().unwrap_or_default() {
            let _ = kill_process(child, Signal::KILL);
        }
        // All that are over, before anybody is looked for again: a look takes long where there are many processes.
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_they_are_written() {
        let word = concat!(
            r#"{"program":"/opt/x","sha256":"00","memory":1,"open_files":2,"processes":3,"processor_seconds":4,"#,
            r#""network":false,"reads":["/opt/y"],"writes":[],"unconfined":false}"#
        );
        assert_eq!(Order::of(word).unwrap().word().unwrap(), word);
        assert!(Order::of(&word.replace("\"reads\"", "\"reeds\"")).is_none());
        assert_eq!(main(&["perhaps".to_owned()]), 64);
        assert_eq!(main(&[]), 64);
    }
}
