//! Commands that outlived their Farrier: `kill -9` ends Farrier and none of the commands it had started.
//!
//! Every local command carries its run in its environment (`FARRIER_RUN`), and so does what it starts: a new process
//! group, a new session and a daemon's double fork change none of that. What empties its environment is found as long
//! as the process that started it still runs.
//!
//! **Rule:** this is called while the data directory is locked and before a run is claimed. Then nobody else starts
//! commands of these runs, and a step that is tried again never meets its own former attempt at work.
//!
//! Not found are processes that Farrier's account may not look into (those of other accounts, unless Farrier is root)
//! and ones that both emptied their environment and left their parent.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::param::page_size;
use rustix::process::{Pid, PidfdFlags, Signal, getpgrp, getpid, kill_process_group, pidfd_open};

use crate::marks;

/// How long [`end`] waits for killed processes to be gone. One that hangs in the kernel (a dead NFS server) takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A process of an earlier Farrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Its process id.
    pub pid: u32,
    /// The run it belonged to.
    pub run: String,
    /// The node it belonged to.
    pub node: String,
    /// The name of its program; not its arguments, which may be private.
    pub program: String,
    /// Whether it is gone. One that is not hangs in the kernel and ends when it can.
    pub ended: bool,
}

/// Kills every process of the runs that `is_ours` accepts, and their process groups, and waits until they are gone.
///
/// It looks again until it finds none, because a process may start others while it looks; it gives up after ten
/// seconds, and says of each process whether it is gone. This process and its own group are left alone. It blocks.
///
/// # Errors
/// `/proc` cannot be read, so that nobody can say what still runs.
pub fn end(is_ours: impl Fn(&str) -> bool) -> io::Result<Vec<Leftover>> {
    let begun = Instant::now();
    // With the time at which each was started. One whose parent has died before it is not found again while it dies.
    let mut found: Vec<(Leftover, u64)> = Vec::new();
    loop {
        let alive = marked(&is_ours)?;
        for (leftover, started) in &mut found {
            leftover.ended = Status::of(leftover.pid).is_none_or(|status| status.started != *started);
        }
        let over = alive.is_empty() && found.iter().all(|(leftover, _)| leftover.ended);
        if over || begun.elapsed() > PATIENCE {
            return Ok(found.into_iter().map(|(leftover, _)| leftover).collect());
        }
        // A killed process has no command line any more, and one signal may end several: so all names come first.
        for process in &alive {
            let same = |(leftover, started): &(Leftover, u64)| {
                leftover.pid == process.id && *started == process.started && leftover.run == process.run
            };
            if !found.iter().any(same) {
                found.push((process.leftover(), process.started));
            }
        }
        alive.iter().for_each(Marked::kill);
        thread::sleep(Duration::from_millis(5));
    }
}

/// The living children of this process. It does not wait for any, so their ids stay theirs as long as it does not.
///
/// # Errors
/// `/proc` cannot be read.
pub fn children() -> io::Result<Vec<Pid>> {
    let own = getpid().as_raw_nonzero().get().cast_unsigned();
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let id = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let child = id.filter(|id| Status::of(*id).is_some_and(|status| status.parent == own));
        children.extend(child.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
    }
    Ok(children)
}

/// What the living processes have that this process, or one of those, has started. Who has lost its parent counts where this
/// process is the subreaper.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Their threads; each process has one or more.
    pub threads: u64,
    /// The bytes of memory that they occupy. What several use in common counts once.
    pub memory: u64,
}

/// What this process has started has at this moment.
///
/// `memory` is what it should not have more of: only when each process's own count gives more in all is it looked up what they
/// use in common, which takes the kernel longer.
///
/// # Errors
/// `/proc` cannot be read.
pub fn share(memory: u64) -> io::Result<Share> {
    let alive = alive()?;
    let mut below: HashMap<u32, Vec<(u32, &Status)>> = HashMap::new();
    for (id, status) in &alive {
        below.entry(status.parent).or_default().push((*id, status));
    }
    let (mut found, mut all) = (Share::default(), Vec::new());
    let mut parents = vec![getpid().as_raw_nonzero().get().cast_unsigned()];
    while let Some(parent) = parents.pop() {
        // Taken out, so that ids which are reused while we look lead in no circle.
        for (id, status) in below.remove(&parent).unwrap_or_default() {
            found.threads += status.threads;
            found.memory += status.resident;
            parents.push(id);
            all.push(id);
        }
    }
    if found.memory > memory {
        found.memory = all.into_iter().map(proportional).sum();
    }
    Ok(found)
}

/// The bytes of memory that a process occupies, where of what `n` processes use in common it has the `n`th part. One that may
/// not be looked into has all that it uses; one that ends meanwhile has nothing.
fn proportional(id: u32) -> u64 {
    let part = || {
        let text = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).ok()?;
        let kibibytes =
            text.lines().find_map(|line| line.strip_prefix("Pss:"))?.trim().strip_suffix(" kB")?;
        Some(kibibytes.parse::<u64>().ok()? << 10)
    };
    part().unwrap_or_else(|| Status::of(id).map_or(0, |status| status.resident))
}

/// All living processes.
fn alive() -> io::Result<HashMap<u32, Status>> {
    let mut alive = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let id = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if let Some((id, status)) = id.and_then(|id| Some((id, Status::of(id)?))) {
            alive.insert(id, status);
        }
    }
    Ok(alive)
}

/// A living process of one of the runs.
struct Marked {
    id: u32,
    group: i32,
    started: u64,
    run: String,
    node: String,
}

impl Marked {
    /// A process id may pass to a stranger at any time, so the process is held by a descriptor and looked at once more.
    fn kill(&self) {
        let Some(pid) = i32::try_from(self.id).ok().and_then(Pid::from_raw) else { return };
        let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { return };
        if Status::of(self.id).is_none_or(|status| status.started != self.started) {
            return;
        }
        // As long as it has not ended, its group's number is its own too; so the group comes first.
        if let Some(group) = Pid::from_raw(self.group).filter(|group| self.group > 1 && *group != getpgrp()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = rustix::process::pidfd_send_signal(&held, Signal::KILL);
    }

    fn leftover(&self) -> Leftover {
        let line = fs::read(format!("/proc/{}/cmdline", self.id)).unwrap_or_default();
        let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
        let program = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        Leftover {
            pid: self.id,
            run: self.run.clone(),
            node: self.node.clone(),
            program: String::from_utf8_lossy(program).into_owned(),
            ended: false,
        }
    }
}

/// In the flags of a process, see the kernel's `PF_KTHREAD`: it has no environment and never will.
const KERNEL_THREAD: u32 = 0x0020_0000;
/// Looks, a millisecond apart, at a process that is being started.
const LOOKS: u32 = 1000;

/// What `/proc/ID/stat` says of a living process.
struct Status {
    parent: u32,
    group: i32,
    threads: u64,
    /// Bytes.
    resident: u64,
    /// In clock ticks since the machine was started: with the id, it names a process for good.
    started: u64,
    /// It is being started: the kernel has not set up its environment yet.
    starting: bool,
}

impl Status {
    /// Nothing for a process that is over, waited for or not.
    fn of(id: u32) -> Option<Status> {
        let stat = fs::read(format!("/proc/{id}/stat")).ok()?;
        // The name before the last bracket may contain anything.
        let after = stat.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(stat.get(after + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        if matches!(*fields.first()?, "Z" | "X" | "x") {
            return None;
        }
        let (flags, environment): (u32, u64) = (fields.get(6)?.parse().ok()?, fields.get(48)?.parse().ok()?);
        Some(Status {
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            threads: fields.get(17)?.parse().ok()?,
            resident: fields.get(21)?.parse::<u64>().ok()?.saturating_mul(page_size() as u64),
            started: fields.get(19)?.parse().ok()?,
            starting: environment == 0 && flags & KERNEL_THREAD == 0,
        })
    }
}

/// Every living process that carries the mark of one of the runs, or descends from one that does.
fn marked(is_ours: &impl Fn(&str) -> bool) -> io::Result<Vec<Marked>> {
    let own = getpid().as_raw_nonzero().get().cast_unsigned();
    let alive = alive()?;
    let mut marks: HashMap<u32, Option<(String, String)>> =
        alive.keys().map(|id| (*id, mark(*id).filter(|(run, _)| is_ours(run)))).collect();
    let mut found = Vec::new();
    for id in alive.keys() {
        // Up to the nearest ancestor with a mark. Ids may be reused while we look, so a circle is possible.
        let mut line = vec![*id];
        let mut at = *id;
        while marks.get(&at).is_some_and(Option::is_none) {
            match alive.get(&at).map(|status| status.parent) {
                Some(parent) if at != own && !line.contains(&parent) => at = parent,
                _ => break,
            }
            line.push(at);
        }
        if line.contains(&own) {
            continue;
        }
        if let (Some(Some((run, node))), Some(status)) = (marks.get(&at).cloned(), alive.get(id)) {
            marks.insert(*id, Some((run.clone(), node.clone())));
            found.push(Marked { id: *id, group: status.group, started: status.started, run, node });
        }
    }
    found.sort_by_key(|process| process.started);
    Ok(found)
}

/// The run and the node in a process's environment.
fn mark(id: u32) -> Option<(String, String)> {
    let mut environment = fs::read(format!("/proc/{id}/environ")).ok()?;
    for _ in 0..LOOKS {
        if !environment.is_empty() || !Status::of(id).is_some_and(|status| status.starting) {
            break;
        }
        thread::sleep(Duration::from_millis(1));
        environment = fs::read(format!("/proc/{id}/environ")).ok()?;
    }
    let value = |name: &str| {
        environment.split(|byte| *byte == 0).find_map(|entry| {
            let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(String::from_utf8_lossy(value).into_owned())
        })
    };
    Some((value(marks::RUN)?, value(marks::NODE).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A run that no other test and no other process has.
    fn run_of(test: &str) -> String {
        format!("{test}-{}", std::process::id())
    }

    /// Starts a script with the marks of `run` as [`crate::process`] would, which a killed Farrier then leaves behind.
    fn left(run: &str, script: &str, file: &std::path::Path) -> Child {
        Command::new("/bin/sh")
            .args(["-c", script, "sh"])
            .arg(file)
            .env_clear()
            .envs([("PATH", crate::local::PATH), (marks::RUN, run), (marks::NODE, "drain[a]")])
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn pids(file: &std::path::Path) -> BTreeSet<u32> {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn until(condition: impl Fn() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the condition never came true");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Leaves a script behind that writes the ids of `count` processes, and ends what is left.
    fn check(test: &str, script: &str, count: usize) -> Vec<Leftover> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let run = run_of(test);
        let mut child = left(&run, script, &file);
        until(|| pids(&file).len() == count);
        let stranger = run_of("stranger");
        assert_eq!(end(|found| found == stranger).unwrap(), [], "only the runs that are asked for");
        let wrote = pids(&file);
        assert!(wrote.iter().all(|id| Status::of(*id).is_some()));
        let found = end(|found| found == run).unwrap();
        assert!(wrote.iter().all(|id| Status::of(*id).is_none()), "all are over");
        let ids: BTreeSet<u32> = found.iter().map(|leftover| leftover.pid).collect();
        assert!(ids.is_superset(&wrote), "{found:?} lacks some of {wrote:?}");
        assert!(found.iter().all(|leftover| leftover.ended && leftover.run == run), "{found:?}");
        assert!(found.iter().all(|leftover| leftover.node == "drain[a]"), "{found:?}");
        assert_eq!(end(|found| found == run).unwrap(), [], "there is nothing left");
        child.wait().unwrap();
        found
    }

    #[test]
    fn a_command_and_what_it_started_are_ended() {
        let found =
            check("plain", "sh -c 'echo $$ >>$1; while :; do sleep 0.1; done' sh $1 & echo $$ >>$1; wait", 2);
        assert!(found.iter().any(|leftover| leftover.program == "sh"), "{found:?}");
    }

    #[test]
    fn a_daemon_in_a_session_of_its_own_is_ended() {
        // The shell ends, and so does the one that forked: the daemon belongs to nobody but the machine.
        let script =
            "(setsid sh -c '(echo $(exec sh -c \"echo \\$PPID\") >>$1; exec sleep 1000) & ' sh $1 &)";
        let found = check("daemon", script, 1);
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn one_that_ignores_signals_is_ended() {
        check("ignores", "trap '' TERM HUP INT; echo $$ >>$1; while :; do sleep 0.05; done", 1);
    }

    #[test]
    fn one_that_emptied_its_environment_is_ended_with_its_parent() {
        let script = "setsid env -i /bin/sh -c 'echo $$ >>$1; sleep 1000; :' sh $1 & echo $$ >>$1; wait";
        check("emptied", script, 2);
    }

    #[test]
    fn one_that_starts_others_all_the_time_is_ended() {
        let script = "echo $$ >>$1; i=0; while [ $i -lt 500 ]; do setsid sleep 100 & i=$((i+1)); done; wait";
        check("many", script, 1);
    }

    #[test]
    fn commands_of_the_plugin_are_found() {
        let node = farrier_action::NodeInfo {
            run: farrier_model::RunId::at(1, [9; 10]),
            node: farrier_model::NodeName::item("a", "b\0c"),
            attempt: 1,
            effect_id: "effect".into(),
        };
        let marks = marks::Marks::of(&node);
        // The parent goes on a moment before the kernel has set up the child's environment.
        let mut child = Command::new("/bin/sleep").arg("1000").envs(marks.variables()).spawn().unwrap();
        let found = end(|run| run == node.run.to_string()).unwrap();
        child.wait().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].pid, found[0].node.as_str()), (child.id(), "a[b\u{fffd}c]"));
    }
}
