//! Running other programs: output shown as it comes, test counts picked out of it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::parts::Counts;

/// `cargo` with these arguments, separated by spaces, in the repository's root.
pub(crate) fn cargo(root: &Path, arguments: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments.split(' ')).current_dir(root).stdin(Stdio::null());
    // Cargo names this crate to this program; the programs it starts are told about their own crates.
    for variable in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION", "CARGO_MANIFEST_PATH"] {
        command.env_remove(variable);
    }
    if std::io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    command
}

/// Whether `cargo NAME` is an installed subcommand.
pub(crate) fn has_cargo_command(root: &Path, name: &str) -> bool {
    let output =
        cargo(root, &format!("{name} --version")).stdout(Stdio::null()).stderr(Stdio::null()).status();
    output.is_ok_and(|status| status.success())
}

/// Runs a command that must succeed, showing its output.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", line(command)))?;
    ensure!(status.success(), "{} failed ({status})", line(command));
    Ok(())
}

/// Runs a command that must succeed, and returns what it prints; its error output is shown.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", line(command)))?;
    ensure!(output.status.success(), "{} failed ({})", line(command), output.status);
    String::from_utf8(output.stdout).with_context(|| format!("{} does not print UTF-8", line(command)))
}

/// Runs a test runner, showing its output, and returns the counts it printed and whether it succeeded.
pub(crate) fn run_tests(command: &mut Command) -> Result<(Counts, bool)> {
    run_tests_onto(command, std::io::stdout(), std::io::stderr())
}

fn run_tests_onto(
    command: &mut Command,
    own_stdout: impl Write + Send,
    own_stderr: impl Write + Send,
) -> Result<(Counts, bool)> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", line(command)))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let counts = std::thread::scope(|scope| {
        let stdout = scope.spawn(move || stdout.map(|from| pass_on(from, own_stdout)).unwrap_or_default());
        let stderr = scope.spawn(move || stderr.map(|from| pass_on(from, own_stderr)).unwrap_or_default());
        [stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default()].concat()
    });
    let status = child.wait().with_context(|| format!("cannot wait for {}", line(command)))?;
    let sum = |pick: fn(&Counts) -> usize| counts.iter().map(pick).sum();
    let counts = Counts {
        passed: sum(|one| one.passed),
        failed: sum(|one| one.failed),
        skipped: sum(|one| one.skipped),
    };
    Ok((counts, status.success()))
}

/// The command as a person would type it.
fn line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(OsStr::new("?")).to_string_lossy();
    let arguments = command.get_args().map(OsStr::to_string_lossy);
    let words: Vec<_> = std::iter::once(program).chain(arguments).collect();
    format!("`{}`", words.join(" "))
}

fn pass_on(from: impl Read, mut to: impl Write) -> Vec<Counts> {
    let mut found = Vec::new();
    let mut reader = BufReader::new(from);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
        let _ = to.write_all(&bytes);
        found.extend(counts_in(&String::from_utf8_lossy(&bytes)));
        bytes.clear();
    }
    found
}

/// The counts in a closing line of `cargo test` or of nextest.
fn counts_in(line: &str) -> Option<Counts> {
    let line = without_colours(line);
    // nextest repeats what a failed test said, indented: that is in its own count already.
    let is_closing = line.starts_with("test result: ")
        || (line.trim_start().starts_with("Summary [") && line.contains(" run: "));
    let before = |word: &str| -> usize {
        let words: Vec<&str> =
            line.split([' ', ';', ',', '(', ')']).filter(|word| !word.is_empty()).collect();
        // `test result: ok. 3 passed` and `4 tests run: 3 passed (1 slow), 1 failed`
        let at = words.iter().position(|other| other.trim_end() == word);
        at.and_then(|at| words.get(at.checked_sub(1)?)).and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    is_closing.then(|| Counts {
        passed: before("passed"),
        failed: before("failed") + before("timed"),
        skipped: before("skipped") + before("ignored"),
    })
}

fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\x1b') {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_closing_lines() {
        let cases = [
            (
                "test result: ok. 28 passed; 0 failed; 1 ignored; 0 measured; 5 filtered out; finished in 0.16s",
                (28, 0, 1),
            ),
            ("test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured\n", (2, 3, 0)),
            ("     Summary [   1.2s] 20 tests run: 18 passed (2 slow), 2 failed, 4 skipped\n", (18, 2, 4)),
            (
                "\x1b[32;1m     Summary\x1b[0m [ 0.1s] \x1b[1m1\x1b[0m tests run: \x1b[1m1\x1b[0m passed, 0 skipped",
                (1, 0, 0),
            ),
            ("     Summary [  61s] 3 tests run: 1 passed, 1 failed, 1 timed out, 0 skipped", (1, 2, 0)),
        ];
        for (line, (passed, failed, skipped)) in cases {
            assert_eq!(counts_in(line), Some(Counts { passed, failed, skipped }), "{line}");
        }
        let repeated = "    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 13 filtered out";
        for other in [repeated, "test a ... ok", "Summary of 3 passed", "4 passed, 0 failed"] {
            assert_eq!(counts_in(other), None, "{other}");
        }
    }

    #[test]
    fn tests_are_run_shown_and_counted_in_both_streams() {
        let script = "echo 'test result: ok. 3 passed; 0 failed; 1 ignored'; \
                      echo '  Summary [ 1s] 2 tests run: 1 passed, 1 failed, 0 skipped' >&2; exit 1";
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (counts, succeeded) =
            run_tests_onto(Command::new("sh").args(["-c", script]), &mut stdout, &mut stderr).unwrap();
        assert_eq!(counts, Counts { passed: 4, failed: 1, skipped: 1 });
        assert!(!succeeded);
        assert!(stdout.starts_with(b"test result: ok.") && stderr.starts_with(b"  Summary"));
    }

    #[test]
    fn a_failing_command_is_named_as_typed() {
        let error = show(Command::new("/bin/false").arg("--now")).unwrap_err().to_string();
        assert!(error.starts_with("`false --now` failed"), "{error}");
        assert_eq!(capture(Command::new("echo").arg("a")).unwrap(), "a\n");
    }
}
