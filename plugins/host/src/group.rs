//! Process groups that end with the future that started them.
//!
//! A command leads a process group. The group is signalled only while its leader is not yet waited for: until then
//! the kernel keeps the group's number, so that the signal cannot reach a stranger that got the same number. The end of
//! the leader is therefore seen through a pidfd first, then the rest of the group is killed, and then it is waited for.
//!
//! Dropping an [`Ending`] (cancel, timeout) asks the group to end, and kills it when it does not.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, Interest};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// How long a group has between being asked to end and being killed.
const TERM_GRACE: Duration = if cfg!(test) { Duration::from_secs(2) } else { Duration::from_secs(5) };

/// The group of a future that may be dropped at any time: then it has [`TERM_GRACE`] to end by itself.
#[derive(Debug)]
pub struct Ending(pub(crate) Option<Group>);

impl Ending {
    /// Starts a command that leads a group, with its outputs piped.
    ///
    /// # Errors
    /// It cannot be started; the error is the kernel's.
    pub fn start(mut command: Command) -> io::Result<Ending> {
        let child = command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Ok(Ending(Some(Group::of(child))))
    }

    /// Its input, where that is piped, and its outputs. Once each.
    pub fn pipes(&mut self) -> (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>) {
        self.0.as_mut().map_or((None, None, None), |group| {
            (group.child.stdin.take(), group.stdout.take(), group.stderr.take())
        })
    }

    /// Waits until the leader is over; what it left running still runs then.
    pub async fn over(&mut self) {
        if let Some(Group { child, pidfd, .. }) = &mut self.0 {
            over(child, pidfd.as_ref()).await;
        }
    }

    /// Asks the group to end, kills what is left of it after its grace, and says how its leader ended.
    ///
    /// # Errors
    /// The kernel does not say how it ended.
    pub async fn stop(mut self) -> io::Result<ExitStatus> {
        if let Some(Group { child, .. }) = &self.0 {
            kill(child, Signal::TERM);
        }
        let _ = tokio::time::timeout(TERM_GRACE, self.over()).await;
        self.finish().await
    }

    /// Kills what is left of the group and says how its leader ended.
    ///
    /// # Errors
    /// The kernel does not say how it ended.
    pub async fn finish(mut self) -> io::Result<ExitStatus> {
        let Some(Group { child, .. }) = &mut self.0 else {
            return Err(io::Error::other("the command is gone"));
        };
        kill(child, Signal::KILL);
        let status = child.wait().await?;
        self.0 = None;
        Ok(status)
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let Some(mut group) = self.0.take() else { return };
        kill(&group.child, Signal::TERM);
        // Without a runtime, or with one that is shutting down, the group is dropped and so killed at once.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let Group { child, stdout, stderr, pidfd } = &mut group;
                // What it still says is read, or a shell would die of its first word before it has cleaned up.
                let ignore = async {
                    tokio::join!(listen(stdout, |_| ()), listen(stderr, |_| ()));
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    _ = tokio::time::timeout(TERM_GRACE, over(child, pidfd.as_ref())) => {}
                    () = ignore => {}
                }
                kill(child, Signal::KILL);
                let _ = child.wait().await;
            });
        }
    }
}

/// Reads a pipe to its end.
pub(crate) async fn listen(pipe: &mut Option<impl AsyncRead + Unpin>, mut hear: impl FnMut(&[u8])) {
    let Some(pipe) = pipe else { return };
    let mut buffer = vec![0; 8192];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        hear(&buffer[..count]);
        if count == buffer.len() && buffer.len() < 64 << 10 {
            buffer.resize(64 << 10, 0);
        }
    }
}

/// Waits until the leader is over, leaving it unwaited-for where the kernel has pidfds.
pub(crate) async fn over(child: &mut Child, pidfd: Option<&AsyncFd<OwnedFd>>) {
    match pidfd {
        Some(pidfd) => drop(pidfd.readable().await),
        None => drop(child.wait().await),
    }
}

/// Signals the group. A child that was waited for has no id any more, and then nothing is sent.
pub(crate) fn kill(child: &Child, signal: Signal) {
    let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(leader) = leader {
        let _ = kill_process_group(leader, signal);
    }
}

/// A running group. Dropped, it is killed at once; tokio waits for the leader.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) child: Child,
    pub(crate) stdout: Option<ChildStdout>,
    pub(crate) stderr: Option<ChildStderr>,
    pub(crate) pidfd: Option<AsyncFd<OwnedFd>>,
}

impl Group {
    fn of(mut child: Child) -> Group {
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let pidfd = leader.and_then(|leader| pidfd_open(leader, PidfdFlags::empty()).ok());
        #[expect(
            deprecated,
            reason = "its successor is an unsafe function, which this workspace forbids; what that asks of its caller, \
                      an `OwnedFd` that the `AsyncFd` keeps always meets"
        )]
        let pidfd = pidfd.and_then(|pidfd| AsyncFd::with_interest(pidfd, Interest::READABLE).ok());
        Group { child, stdout, stderr, pidfd }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        kill(&self.child, Signal::KILL);
    }
}
