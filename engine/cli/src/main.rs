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
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use crate::commands::{Cli, LogFormat};
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
    start_logging(cli.log.as_deref(), cli.log_format, spans.clone());
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

fn start_logging(filter: Option<&str>, format: LogFormat, spans: Option<Spans>) {
    let filter = filter.map(str::to_owned).or_else(|| std::env::var("FARRIER_LOG").ok());
    let log = match format {
        LogFormat::Json => {
            let filter = EnvFilter::new(filter.unwrap_or_else(|| "info".into()));
            let lines = fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
            Some(lines.with_filter(filter).boxed())
        }
        LogFormat::Text => filter.map(|filter| {
            let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(Style::stderr().has_colour());
            lines.with_filter(EnvFilter::new(filter)).boxed()
        }),
    };
    if log.is_none() && spans.is_none() {
        return;
    }
    let of_runs = Targets::new().with_target("farrier_exec", LevelFilter::DEBUG);
    let spans = spans.map(|spans| spans.with_filter(of_runs));
    let _ = tracing_subscriber::registry().with(log).with(spans).try_init();
}
