//! What each chore runs, in order.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use farrier_testkit::generated;
use farrier_testkit::kube::{KUBECONFIG_VARIABLE, KubeApi};
use farrier_testkit::mariadb::{self, MariaDb};
use farrier_testkit::postgres::{self, Postgres};

use crate::parts::{Counts, Outcome, Report};
use crate::{dependencies, kube, packages, tidy, tools};

/// How many worlds the simulator of `engine/exec/tests/simulator.rs` goes through in the full test run.
const SIMULATOR_SEEDS: &str = "10000";

/// The servers that the tests share, ended when dropped.
#[derive(Default)]
struct Servers {
    mariadb: Option<MariaDb>,
    postgres: Option<Postgres>,
    kube: Option<KubeApi>,
}

impl Servers {
    /// Names the servers to the tests that `command` runs.
    fn named_to<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if let Some(server) = &self.mariadb {
            command.env(mariadb::URL_VARIABLE, server.url());
        }
        if let Some(server) = &self.postgres {
            command.env(postgres::URL_VARIABLE, server.url());
        }
        if let Some(server) = &self.kube {
            command.env(KUBECONFIG_VARIABLE, server.kubeconfig());
        }
        command
    }
}

/// Everything.
pub(crate) fn test(root: &Path) -> Report {
    let mut report = house_rules(root);
    format_and_lint(&mut report, root);
    report.run("packages", packages::ensure_installed);
    let mut servers = Servers::default();
    report.run("servers", || {
        servers.mariadb = Some(MariaDb::try_start().context("cannot start MariaDB")?);
        servers.postgres = Some(Postgres::try_start().context("cannot start PostgreSQL")?);
        Ok(Outcome::Passed)
    });
    report.run("Kubernetes API server", || {
        servers.kube = kube::start(root)?;
        Ok(match (&servers.kube, std::env::var_os(KUBECONFIG_VARIABLE)) {
            (None, None) => Outcome::NotRun(
                "plugins/k8s was tested on its stand-in alone; `cargo xtask kube` builds a server".to_owned(),
            ),
            _ => Outcome::Passed,
        })
    });
    let mut counts = Counts::default();
    let has_nextest = tools::has_cargo_command(root, "nextest");
    report.run(if has_nextest { "tests (nextest)" } else { "tests" }, || {
        let arguments = if has_nextest {
            "nextest run --workspace --no-fail-fast"
        } else {
            "test --workspace --lib --bins --tests --no-fail-fast"
        };
        let mut command = tools::cargo(root, arguments);
        command.env("FARRIER_SIM_SEEDS", SIMULATOR_SEEDS);
        run_tests(servers.named_to(&mut command), &mut counts)
    });
    report.run("tests in documentation", || {
        run_tests(
            servers.named_to(&mut tools::cargo(root, "test --workspace --doc --no-fail-fast")),
            &mut counts,
        )
    });
    report.count(counts);
    report.run("stopping servers", || {
        drop(servers);
        Ok(Outcome::Passed)
    });
    report.run("documentation", || {
        let mut command = tools::cargo(root, "doc --workspace --no-deps --document-private-items --quiet");
        // Private items may be linked: these pages are for the people who work on them.
        tools::show(command.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"))?;
        Ok(Outcome::Passed)
    });
    report.run("cargo deny", || {
        if !tools::has_cargo_command(root, "deny") {
            return Ok(Outcome::NotRun(
                "cargo-deny is not installed: advisories were not checked".to_owned(),
            ));
        }
        tools::show(&mut tools::cargo(root, "deny check"))?;
        Ok(Outcome::Passed)
    });
    report
}

/// What a developer runs before a commit.
pub(crate) fn check(root: &Path) -> Report {
    let mut report = house_rules(root);
    format_and_lint(&mut report, root);
    let mut counts = Counts::default();
    report.run("unit tests", || {
        run_tests(&mut tools::cargo(root, "test --workspace --lib --bins"), &mut counts)
    });
    report.count(counts);
    report.run("tests with servers", || Ok(Outcome::NotRun("`cargo xtask test` runs them".to_owned())));
    report
}

/// The long form of the chaos tests.
pub(crate) fn chaos(root: &Path, minutes: u32, seed: Option<u32>) -> Report {
    let mut report = Report::default();
    let seed = seed.unwrap_or_else(std::process::id);
    println!("each test has {minutes} min; to repeat: cargo xtask chaos --minutes {minutes} --seed {seed}");
    let mut counts = Counts::default();
    report.run("chaos", || {
        // Not by nextest, which keeps to itself what a test that passed has to say.
        let arguments = "test --package farrier --test chaos --no-fail-fast -- --nocapture";
        let mut command = tools::cargo(root, arguments);
        command.env("FARRIER_CHAOS_MINUTES", minutes.to_string());
        run_tests(command.env("FARRIER_CHAOS_SEED", seed.to_string()), &mut counts)
    });
    report.count(counts);
    report
}

/// The house rules alone.
pub(crate) fn house_rules(root: &Path) -> Report {
    let mut report = Report::default();
    report.run("house rules", || Ok(none(&tidy::breaches(root)?)));
    report.run("dependency direction", || Ok(none(&dependencies::direction(root)?)));
    report.run("licences and bans", || Ok(none(&dependencies::licences_and_bans(root)?)));
    report
}

/// Writes the generated files: the tests that hold them current do, when they are asked to.
pub(crate) fn generate(root: &Path) -> Result<()> {
    let mut command = tools::cargo(root, "test --quiet --workspace --lib --bins -- _is_current _are_current");
    tools::show(command.env(generated::WRITE_VARIABLE, "1"))
}

/// Runs the benchmark program.
pub(crate) fn bench(root: &Path, arguments: &[String]) -> Result<ExitCode> {
    // The program under measurement, and the peers that it is held against.
    tools::show(&mut tools::cargo(root, "build --release --package farrier"))?;
    let mut command = tools::cargo(root, "run --release --package farrier-bench --");
    let status = command.args(arguments).stdin(Stdio::inherit()).status().context("cannot start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn format_and_lint(report: &mut Report, root: &Path) {
    report.run("formatting", || {
        tools::show(&mut tools::cargo(root, "fmt --all --check"))?;
        Ok(Outcome::Passed)
    });
    report.run("lints", || {
        tools::show(&mut tools::cargo(root, "clippy --workspace --all-targets --quiet -- -D warnings"))?;
        Ok(Outcome::Passed)
    });
}

pub(crate) fn run_tests(command: &mut Command, counts: &mut Counts) -> Result<Outcome> {
    let (found, succeeded) = tools::run_tests(command)?;
    counts.passed += found.passed;
    counts.failed += found.failed;
    counts.skipped += found.skipped;
    Ok(judge(found, succeeded))
}

/// What a test runner's counts and exit say together.
fn judge(found: Counts, succeeded: bool) -> Outcome {
    let all = found.passed + found.failed;
    match (succeeded, found.failed) {
        (true, 0) if all > 0 => Outcome::Passed,
        (true, 0) => Outcome::Failed("no test ran".to_owned()),
        (_, 0) => Outcome::Failed("the tests do not build, or a test program ended early".to_owned()),
        (_, failed) => Outcome::Failed(format!("{failed} of {all} tests failed")),
    }
}

fn none(breaches: &[String]) -> Outcome {
    for breach in breaches {
        eprintln!("{breach}");
    }
    match breaches.len() {
        0 => Outcome::Passed,
        1 => Outcome::Failed(breaches.concat()),
        more => Outcome::Failed(format!("{more} breaches, listed above")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_pass_only_when_some_ran_and_none_failed() {
        let cases = [
            ((3, 0), true, Outcome::Passed),
            ((2, 1), false, Outcome::Failed("1 of 3 tests failed".to_owned())),
            ((0, 0), true, Outcome::Failed("no test ran".to_owned())),
            (
                (3, 0),
                false,
                Outcome::Failed("the tests do not build, or a test program ended early".to_owned()),
            ),
        ];
        for ((passed, failed), succeeded, expected) in cases {
            let outcome = judge(Counts { passed, failed, skipped: 1 }, succeeded);
            assert_eq!(outcome, expected, "{passed} {failed} {succeeded}");
        }
    }

    #[test]
    fn breaches_fail_a_part() {
        assert_eq!(none(&[]), Outcome::Passed);
        assert_eq!(none(&["one".into()]), Outcome::Failed("one".into()));
        assert_eq!(none(&["one".into(), "two".into()]), Outcome::Failed("2 breaches, listed above".into()));
    }

    #[test]
    fn servers_are_named_to_tests_only_when_they_run() {
        let mut command = Command::new("true");
        Servers::default().named_to(&mut command);
        assert_eq!(command.get_envs().count(), 0);
    }
}
