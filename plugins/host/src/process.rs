//! One command: started, fed, listened to, and ended with everything it started (see [`crate::group`]).

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::capture::Capture;
use crate::group::{Ending, Group, kill, listen, over};
use crate::transport::{Ended, Finished};

/// How long output may still come after the command itself is over, from something it left running.
const OUTPUT_GRACE: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Debug)]
pub(crate) struct Spec<'a> {
    /// Absolute.
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<&'a str>,
    /// The whole environment.
    pub(crate) env: Vec<(&'a str, &'a str)>,
    pub(crate) cwd: &'a Path,
    pub(crate) stdin: Option<&'a str>,
    /// Bytes kept of the beginning and of the end of each output.
    pub(crate) max_output: usize,
}

/// Runs a command to its end.
///
/// # Errors
/// It cannot be started; the error is the kernel's.
pub(crate) async fn run(spec: Spec<'_>) -> io::Result<Finished> {
    // Only what keeps std on `posix_spawn`: no `pre_exec`, no user or group, no relative program.
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.arguments)
        .env_clear()
        .envs(spec.env.iter().copied())
        .current_dir(spec.cwd)
        .stdin(if spec.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut group = Ending::start(command)?;
    let Some(Group { child, stdout, stderr, pidfd }) = &mut group.0 else {
        return Err(io::Error::other("the command is gone"));
    };
    let stdin = child.stdin.take();
    let mut finished_stdout = Capture::new(spec.max_output);
    let mut finished_stderr = Capture::new(spec.max_output);
    {
        let feed = async {
            if let (Some(mut stdin), Some(text)) = (stdin, spec.stdin) {
                // A command may end, or close its input, without having read all of it.
                let _ = stdin.write_all(text.as_bytes()).await;
            }
        };
        let hear_stdout = listen(stdout, |bytes| finished_stdout.push(bytes));
        let hear_stderr = listen(stderr, |bytes| finished_stderr.push(bytes));
        let talk = async { tokio::join!(feed, hear_stdout, hear_stderr) };
        tokio::pin!(talk);
        tokio::select! {
            biased;
            _ = &mut talk => over(child, pidfd.as_ref()).await,
            () = over(child, pidfd.as_ref()) => {
                if tokio::time::timeout(OUTPUT_GRACE, &mut talk).await.is_err() {
                    kill(child, Signal::KILL);
                    // Something that left the group may still hold the pipe; it is not waited for.
                    let _ = tokio::time::timeout(OUTPUT_GRACE, &mut talk).await;
                }
            }
        }
    }
    kill(child, Signal::KILL);
    let status = child.wait().await?;
    group.0 = None;
    let ended = match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, signal) => Ended::Signal(signal.unwrap_or_default()),
    };
    Ok(Finished { ended, stdout: finished_stdout, stderr: finished_stderr })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::process::Pid;

    use super::*;

    fn shell<'a>(script: &'a str, arguments: &[&'a str]) -> Spec<'a> {
        Spec {
            program: "/bin/sh".into(),
            arguments: ["-c", script, "sh"].iter().chain(arguments).copied().collect(),
            env: vec![("PATH", crate::local::PATH)],
            cwd: Path::new("/"),
            stdin: None,
            max_output: 1000,
        }
    }

    /// Whether a process still does anything; one that nobody has waited for is over.
    fn lives(pid: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
    }

    /// Waits for a condition; gives up only so that a defect does not hang the suite.
    async fn until(condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.expect("the condition never came true");
    }

    /// Starts a script that writes the ids of its processes to a file, drops it, and waits until they are all over.
    async fn dropped(script: &str, processes: usize) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let pids = || -> Vec<String> {
            fs::read_to_string(&file).unwrap_or_default().lines().map(str::to_owned).collect()
        };
        let running = run(shell(script, &[file.to_str().unwrap()]));
        tokio::select! {
            result = running => panic!("ended by itself: {result:?}"),
            () = until(|| pids().len() == processes) => {}
        }
        let pids = pids();
        until(|| !pids.iter().any(|pid| lives(pid))).await;
    }

    #[tokio::test]
    async fn a_dropped_command_ends_with_all_it_started() {
        dropped("sleep 1000 & (sleep 1000 & echo $! >>$1; wait) & echo $! >>$1; echo $$ >>$1; wait", 3).await;
    }

    #[tokio::test]
    async fn a_command_that_does_not_want_to_end_is_killed() {
        dropped("trap '' TERM; sh -c 'trap \"\" TERM; echo $$ >>$1; while :; do sleep 0.1; done' sh $1 & echo $$ >>$1; while :; do sleep 0.1; done", 2)
            .await;
    }

    #[tokio::test]
    async fn a_dropped_command_may_clean_up() {
        let dir = tempfile::tempdir().unwrap();
        let (ready, clean) = (dir.path().join("ready"), dir.path().join("clean"));
        let script = "trap 'touch $2; exit' TERM; touch $1; while :; do sleep 0.01; done";
        tokio::select! {
            result = run(shell(script, &[ready.to_str().unwrap(), clean.to_str().unwrap()])) => panic!("{result:?}"),
            () = until(|| ready.exists()) => {}
        }
        until(|| clean.exists()).await;
    }

    #[test]
    fn the_end_of_the_runtime_kills_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let path = file.to_str().unwrap().to_owned();
        runtime.spawn(async move {
            run(shell("trap '' TERM; echo $$ >$1; while :; do sleep 0.1; done", &[&path])).await
        });
        let pid = || fs::read_to_string(&file).unwrap_or_default();
        runtime.block_on(until(|| pid().ends_with('\n')));
        drop(runtime);
        while lives(&pid()) {
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn what_a_finished_command_left_running_ends_too() {
        // The second one holds the output open; it must not hold up the step.
        for script in ["sleep 1000 >/dev/null 2>&1 & echo $!", "sleep 1000 & echo $!"] {
            let finished = run(shell(script, &[])).await.unwrap();
            assert_eq!(finished.ended, Ended::Code(0));
            let pid = finished.stdout.text();
            until(|| !lives(&pid)).await;
        }
    }

    #[tokio::test]
    async fn an_output_held_by_something_that_left_the_group_is_not_waited_for() {
        let finished = run(shell("setsid sleep 1000 & echo $!", &[])).await.unwrap();
        let pid: i32 = finished.stdout.text().trim().parse().unwrap();
        // It is ours to end: it left the group on purpose.
        let _ = rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        until(|| !lives(&pid.to_string())).await;
    }

    #[tokio::test]
    async fn input_and_both_outputs_flow_at_the_same_time() {
        let text = "0123456789\n".repeat(100_000);
        let spec = Spec { stdin: Some(&text), max_output: 2 << 20, ..shell("tee /dev/stderr", &[]) };
        let finished = run(spec).await.unwrap();
        assert_eq!(finished.stdout.text(), text);
        assert_eq!(finished.stderr.text(), text);
        // One that does not read its input is no error.
        let spec = Spec { stdin: Some(&text), ..shell("exit 3", &[]) };
        assert_eq!(run(spec).await.unwrap().ended, Ended::Code(3));
    }
}
