//! The benchmark program behind `BENCHMARKS.md`: measures this machine and prints a Markdown report.
//!
//! Every figure that has a peer is a ratio to that peer in the same run. `cargo xtask bench` builds the release binary and
//! starts this. Each group can be run alone: `cargo xtask bench engine`.

#![allow(unreachable_pub, reason = "a binary has no callers; `pub` says what a module offers to the others")]

mod check;
mod durable;
mod engine;
mod failing;
mod fanout;
mod intake;
mod processes;
mod report;
mod schedules;
mod service;
mod serving;

mod updatetools;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

use crate::report::Report;

/// Measures Farrier.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure; everything without any.
    groups: Vec<Group>,
    /// The release binary.
    #[arg(long, default_value = "target/release/farrier")]
    binary: PathBuf,
    /// How often each measurement is repeated; the report gives the median and the worst.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many runs wait.
    #[arg(long, default_value_t = 1_000_000)]
    sleepers: usize,
    /// For how many seconds the service is watched while nothing happens.
    #[arg(long, default_value_t = 600)]
    idle: u64,
    /// A Python with the packages of benches/peer/requirements.txt, for the comparison with a plain script and with ansible.
    #[arg(long, default_value = "python3")]
    python: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// No-op steps on SQLite: what the engine costs.
    Engine,
    /// Appends to the journal, resuming, and runbook tests.
    Durable,
    /// Alerts: a storm, and sustained.
    Intake,
    /// `farrier serve`: a storm of alerts over HTTP, and what it costs when nothing happens.
    Service,
    /// A store full of runs that wait, under `farrier serve`.
    Waiting,
    /// A hundred thousand schedules: idle, and many due together.
    Schedules,
    /// A disk that fails under a process.
    Failing,
    /// Ten thousand processes, against ninja and make.
    Processes,
    /// One command on two hundred hosts over SSH, against clush and ansible.
    Fanout,
    /// Checking many runbooks; starting the program.
    Check,
    /// updatetools on real servers, against a plain Python script.
    Updatetools,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let binary = arguments.binary.canonicalize().with_context(|| {
        format!("there is no binary at {}; run `cargo build --release`", arguments.binary.display())
    })?;
    ensure!(arguments.rounds > 0, "at least one round is needed");
    let wants = |group| arguments.groups.is_empty() || arguments.groups.contains(&group);
    let mut report = Report::new(arguments.rounds);
    if wants(Group::Engine) {
        engine::measure(&mut report)?;
    }
    if wants(Group::Durable) {
        durable::appends(&mut report)?;
        durable::cases(&mut report, &binary)?;
    }
    if wants(Group::Intake) {
        intake::measure(&mut report)?;
    }
    if wants(Group::Waiting) {
        durable::waiting(&mut report, &binary, arguments.sleepers)?;
    }
    if wants(Group::Service) {
        service::measure(&mut report, &binary)?;
        service::idle(&mut report, &binary, Duration::from_secs(arguments.idle))?;
    }
    if wants(Group::Schedules) {
        schedules::measure(&mut report)?;
    }
    if wants(Group::Failing) {
        failing::measure(&mut report, &binary)?;
    }
    if wants(Group::Processes) {
        processes::measure(&mut report, &binary)?;
    }
    if wants(Group::Fanout) {
        fanout::measure(&mut report, &binary, &arguments.python)?;
    }
    if wants(Group::Check) {
        check::measure(&mut report, &binary)?;
    }
    if wants(Group::Updatetools) {
        updatetools::measure(&mut report, &binary, &arguments.python)?;
    }
    print!("{}", report.finish());
    Ok(())
}
