//! A power cut: what the store wrote is recorded call by call, and the disk is made anew as it is after a cut at any of
//! them: with everything that was synced, and with any part of what was not.
//!
//! Names of files are taken to be durable at once; what is lost is what is in them. Cuts begin when the store has its
//! write-ahead log, with the first run in it.

use std::collections::{BTreeMap, BTreeSet};

use crate::blows::traced;
use crate::common::{Project, Started};
use crate::form::Form;
use crate::mixed;
use crate::world::{args, journal, words};

/// What the store asked of the disk.
enum Op {
    Write { at: usize, bytes: Vec<u8> },
    Truncate(usize),
    Sync,
    Unlink,
}

/// One call, when it began, and its file's name.
struct Call {
    at: f64,
    file: String,
    op: Op,
}

/// What was recorded: the calls, and when each command with an effect began.
struct Record {
    calls: Vec<Call>,
    begun: Vec<(f64, String)>,
    run: String,
}

/// The bytes of a string as `strace -xx` writes it.
fn bytes(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).filter_map(|hex| u8::from_str_radix(hex.get(..2)?, 16).ok()).collect()
}

fn text(hex: &str) -> String {
    String::from_utf8_lossy(&bytes(hex)).into_owned()
}

fn between<'a>(line: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let rest = line.split_once(from)?.1;
    Some(rest.split_once(to)?.0)
}

/// A call on a file of the store.
fn call(line: &str) -> Option<Call> {
    let (at, call) = line.split_once(' ')?;
    let (name, rest) = call.split_once('(')?;
    let path = if name == "unlink" { between(rest, "\"", "\"")? } else { between(rest, "<", ">")? };
    let path = text(path);
    let file = path.rsplit_once('/')?.1.to_owned();
    if !file.starts_with("farrier.db") || file.ends_with("-shm") {
        return None;
    }
    let last = |rest: &str| rest.rsplit_once(") = ")?.0.rsplit_once(", ")?.1.parse::<usize>().ok();
    let op = match name {
        "pwrite64" => Op::Write { at: last(rest)?, bytes: bytes(between(rest, "\"", "\"")?) },
        "ftruncate" => Op::Truncate(last(rest)?),
        "fsync" | "fdatasync" => Op::Sync,
        "unlink" => Op::Unlink,
        _ => return None,
    };
    Some(Call { at: at.parse().ok()?, file, op })
}

fn record(project: &Project) -> Record {
    let traces = project.path("traces");
    std::fs::create_dir(&traces).unwrap();
    let prefix = traces.join("t");
    let how =
        ["-ff", "-ttt", "-y", "-xx", "-s", "1000000", "-e", "signal=none", "-o", prefix.to_str().unwrap()];
    let trace = ["-e", "trace=pwrite64,fsync,fdatasync,ftruncate,unlink,execve"];
    let command = traced(project, &args(&words(project, "mixed")), &[&how[..], &trace].concat());
    let ended = Started::from(command).end().expect(0);
    let run = ended.err.lines().find_map(|line| line.strip_prefix("run ")).unwrap().to_owned();
    let (mut calls, mut begun) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(&traces).unwrap() {
        let lines = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in lines.lines() {
            calls.extend(call(line));
            if line.contains("execve(") {
                let words: Vec<String> = line.split('"').skip(1).step_by(2).map(text).collect();
                // Only a shell has an effect; `grep` looks.
                if words.first().is_some_and(|program| program.ends_with("/sh")) {
                    let at: f64 = line.split_once(' ').unwrap().0.parse().unwrap();
                    begun.push((at, words.last().unwrap().clone()));
                }
            }
        }
    }
    calls.sort_by(|one, other| one.at.total_cmp(&other.at));
    begun.sort_by(|one, other| one.0.total_cmp(&other.0));
    Record { calls, begun, run }
}

/// What is on the disk after a cut: all that was synced, and of the rest what chance leaves, torn at sectors.
fn disk(calls: &[Call], form: &mut Form, syncs: impl Fn(&Call) -> bool) -> BTreeMap<String, Vec<u8>> {
    let mut synced: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, call) in calls.iter().enumerate() {
        if matches!(call.op, Op::Sync) && syncs(call) {
            synced.insert(&call.file, index);
        }
    }
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (index, call) in calls.iter().enumerate() {
        let safe = synced.get(call.file.as_str()).is_some_and(|sync| index < *sync);
        match &call.op {
            Op::Write { at, bytes } => {
                let length = match form.random(4) {
                    _ if safe => bytes.len(),
                    0 | 1 => bytes.len(),
                    2 => bytes.len() / 2 / 512 * 512,
                    _ => 0,
                };
                let file = files.entry(call.file.clone()).or_default();
                if length > 0 {
                    file.resize(file.len().max(at + length), 0);
                    file[*at..at + length].copy_from_slice(&bytes[..length]);
                }
            }
            Op::Truncate(length) => files.entry(call.file.clone()).or_default().resize(*length, 0),
            Op::Unlink => drop(files.remove(&call.file)),
            Op::Sync => {}
        }
    }
    files
}

/// What is missing after a cut at `at`: intents of commands that had begun, and outcomes of those before them.
fn missing(record: &Record, at: usize, files: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let project = Project::new();
    std::fs::create_dir(project.path("data")).unwrap();
    for (name, bytes) in files {
        std::fs::write(project.path("data").join(name), bytes).unwrap();
    }
    let begun: Vec<&String> = record
        .begun
        .iter()
        .filter(|(begun, _)| *begun <= record.calls[at].at)
        .map(|(_, line)| line)
        .collect();
    let fsck = project.farrier(&["fsck"]);
    // The store may not be complete before the first run is in it.
    if begun.is_empty() && fsck.code == Some(74) {
        return Vec::new();
    }
    if fsck.code != Some(0) {
        return vec![format!("fsck says: {fsck}")];
    }
    if begun.is_empty() {
        return Vec::new();
    }
    if project.farrier(&["show", &record.run]).code != Some(0) {
        return vec!["the whole run".into()];
    }
    let found: BTreeSet<String> = journal(&project, &record.run).into_iter().collect();
    let intents = begun.iter().map(|line| format!("intent {line}"));
    let outcomes = begun[..begun.len() - 1].iter().map(|line| format!("succeeded {line}"));
    intents.chain(outcomes).filter(|event| !found.contains(event)).collect()
}

/// What was acknowledged survives a power cut. Removed, to see it fail: the syncs of the log at each commit, which is
/// what `synchronous=NORMAL` does; the test itself does that, and must find losses.
#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let mut form = Form::of(6);
    let project = mixed::world();
    let record = record(&project);
    assert_eq!(record.begun.len(), 16, "every command is recorded: {:?}", record.begun);
    // The log, and the first run in it.
    let first = record.calls.iter().position(|call| call.file.ends_with("-wal")).unwrap() + 30;
    let cuts = form.points(12, record.calls.len() - first - 1);
    let (mut lost_full, mut lost_normal, mut tried) = (Vec::new(), 0, 0);
    for cut in cuts {
        if form.is_over() {
            break;
        }
        let at = first + cut;
        tried += 1;
        let full = disk(&record.calls[..at], &mut form, |_| true);
        for event in missing(&record, at, &full) {
            lost_full.push(format!("cut at call {at}: {event}"));
        }
        // Half of the cuts are enough to show that the test bites.
        if tried % 2 == 0 {
            let normal = disk(&record.calls[..at], &mut form, |call| !call.file.ends_with("-wal"));
            lost_normal += usize::from(!missing(&record, at, &normal).is_empty());
        }
    }
    eprintln!(
        "{tried} power cuts of {} calls; lost: {}; without syncing each commit, lost at {lost_normal} cuts",
        record.calls.len(),
        lost_full.len()
    );
    assert!(lost_full.is_empty(), "{lost_full:#?}");
    assert!(lost_normal >= 2, "the test finds no losses where there must be some: {lost_normal} of {tried}");
}
