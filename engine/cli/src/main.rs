//! The binary `farrier`: plan, run and inspect runbooks.
//!
//! Read first: `plugins.rs` (what this binary can do), `stores.rs` (where runs are), then the command of interest
//! under `commands/`. Results go to standard output, progress and errors to standard error; exit codes are in `exit.rs`.

#![allow(unreachable_pub, reason = "a binary has no callers; `pub` says what a module offers to the others")]

mod client;
mod commands;
mod directory;
mod exit;
mod interact;
mod leftovers;
mod logins;
#[cfg(test)]
mod manual;
mod plugins;
mod progress;
mod render;
mod stores;

use std::process::ExitCode;

use clap::Parser;

use crate::commands::{Cli, LogFormat, Problem};
use crate::exit::Exit;
use crate::render::style::Style;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    leave_no_core_file();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` are not mistakes.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Ok };
            let _ = error.print();
            return exit.into();
        }
    };
    start_logging(cli.log.as_deref(), cli.log_format);
    match commands::dispatch(cli) {
        Ok(exit) => exit.into(),
        Err(problem) => {
            report(&problem);
            problem.exit().into()
        }
    }
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
    eprintln!("{} {problem}", style.bad("error:"));
    let mut cause = std::error::Error::source(problem);
    while let Some(source) = cause {
        eprintln!("  {} {source}", style.dim("because"));
        cause = source.source();
    }
    if let Some(help) = problem.help() {
        eprintln!("{} {help}", style.bold("next:"));
    }
}

fn start_logging(filter: Option<&str>, format: LogFormat) {
    let filter = filter.map(str::to_owned).or_else(|| std::env::var("FARRIER_LOG").ok());
    if format == LogFormat::Json {
        let _ = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_env_filter(tracing_subscriber::EnvFilter::new(filter.unwrap_or_else(|| "info".into())))
            .with_writer(std::io::stderr)
            .try_init();
        return;
    }
    let Some(filter) = filter else { return };
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(Style::stderr().has_colour())
        .try_init();
}
