//! Chores of this repository: `cargo xtask --help`.
//!
//! Read first: `parts.rs` (what a check consists of and how it is reported), then `suite.rs` (what each chore runs).
//! The house rules themselves are in `tidy.rs` and `dependencies.rs`.

mod dependencies;
mod kube;
mod packages;
mod parts;
mod suite;
mod tidy;
mod tools;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Chores of the Farrier repository")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Everything that continuous integration runs: installs missing servers, then formatting, lints, house rules, all
    /// tests, documentation, dependencies.
    Test,
    /// What to run before a commit: formatting, lints, house rules, and the tests that need no server.
    Check,
    /// The house rules alone; they take a second.
    Tidy,
    /// Kill the real binary for so long: at every commit, at random, at a power cut (engine/cli/tests/chaos).
    Chaos {
        /// How long each test may take; they run beside each other.
        #[arg(long, default_value_t = 30)]
        minutes: u32,
        /// Repeats the choices of an earlier run; without it, they differ each time.
        #[arg(long)]
        seed: Option<u32>,
    },
    /// Write the generated files anew: `site/schema` and the manual's page of actions.
    Generate,
    /// The Kubernetes tests against a real API server too; builds one from Debian's sources when there is none, in ten
    /// minutes.
    Kube,
    /// The benchmarks, in release mode; arguments are passed on.
    Bench {
        /// Arguments for the benchmark program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let chore = Arguments::parse().chore;
    match run(&chore) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: &Chore) -> Result<ExitCode> {
    let root = root()?;
    let report = match chore {
        Chore::Test => suite::test(&root),
        Chore::Check => suite::check(&root),
        Chore::Kube => kube::test(&root),
        Chore::Tidy => suite::house_rules(&root),
        Chore::Chaos { minutes, seed } => suite::chaos(&root, *minutes, *seed),
        Chore::Generate => {
            suite::generate(&root)?;
            return Ok(ExitCode::SUCCESS);
        }
        Chore::Bench { arguments } => return suite::bench(&root, arguments),
    };
    print!("{report}");
    Ok(if report.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The repository's root: two folders above this crate.
fn root() -> Result<PathBuf> {
    let crate_folder = std::env::var_os("CARGO_MANIFEST_DIR").context("run this through `cargo xtask`")?;
    Path::new(&crate_folder).ancestors().nth(2).map(Path::to_owned).context("this crate is not in `engine/`")
}
