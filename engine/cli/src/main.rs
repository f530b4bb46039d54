//! The binary `farrier`: plan, run and inspect runbooks.
//!
//! Read first: `app.rs` (what every command has at hand), `plugins.rs` (what this binary can do), `stores.rs` (where runs
//! are), then the command of interest under `commands/`. Results go to standard output, progress and errors to standard
//! error; exit codes are in `exit.rs`.

#![allow(unreachable_pub, reason = "a binary has no callers; `pub` says what a module offers to the others")]

mod app;
mod client;
mod commands;
mod directory;
mod exit;
mod interact;
mod leftovers;
mod logging;
mod logins;
#[cfg(test)]
mod manual;
mod plugins;
mod problem;
mod progress;
mod render;
mod resting;
mod stores;
mod telemetry;

use std::process::ExitCode;

use clap::Parser;

use crate::commands::Cli;
use crate::exit::Exit;
use crate::problem::Problem;
use crate::render::style::Style;
use crate::telemetry::Spans;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    leave_no_core_file();
    small_pages(true);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` are not mistakes.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Ok };
            let _ = error.print();
            return exit.into();
        }
    };
    small_pages(cli.stays());
    let spans = cli.serves().then(Spans::default);
    logging::start(cli.log.as_deref(), cli.log_format, spans.clone());
    match commands::dispatch(cli, spans) {
        Ok(exit) => exit.into(),
        Err(problem) => {
            report(&problem);
            problem.exit().into()
        }
    }
}

/// A service waits most of its life, and the kernel would give it two megabytes for each few kilobytes that it uses: so it, and
/// what it starts, has small pages, from its first one on. A kernel that knows no others refuses, and is right.
fn small_pages(only: bool) {
    let _ = rustix::thread::disable_transparent_huge_pages(only);
}

/// Passwords are in this process's memory while they are in use, and a core file would keep them. Programs that it starts can
/// ask for one again.
fn leave_no_core_file() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let allowed = getrlimit(Resource::Core);
    // A limit can always be lowered.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), ..allowed });
}

/// Prints a problem with its causes and what to do next.
fn report(problem: &Problem) {
    let style = Style::stderr();
    if matches!(problem, Problem::Mistakes(_)) {
        // Each of them begins as an error does.
        eprintln!("{problem}");
    } else {
        eprintln!("{} {problem}", style.bad("error:"));
    }
    let mut cause = std::error::Error::source(problem);
    while let Some(source) = cause {
        eprintln!("  {} {source}", style.dim("because"));
        cause = source.source();
    }
    if let Some(help) = problem.help() {
        eprintln!("{} {help}", style.bold("next:"));
    }
}
