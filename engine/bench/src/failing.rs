//! How soon a process ends after its disk has failed: `strace` makes a sync fail, and tells when.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::report::{Report, show, write};

/// Steps after each other in a run.
const STEPS: usize = 24;
/// Syncs that fail, one in each process, of each kind of process.
const MOMENTS: usize = 12;
/// Between two of them.
const APART: usize = 3;
/// The exit code of a process whose store has failed.
const FAILED: &str = "+++ exited with 75 +++";

/// Measures `farrier run` and `farrier serve`.
pub fn measure(report: &mut Report, binary: &Path) -> Result<()> {
    for (what, words) in [
        ("`farrier run`", &["run", "lines", "--env", "bench", "--yes", "--quiet"][..]),
        ("`farrier serve`", &["serve", "--env", "bench", "--quiet"]),
    ] {
        let mut times = Vec::new();
        for moment in 0..MOMENTS {
            // Not among the first, which make the store, and not all of them among those that tidy up.
            times.extend(ends_after(binary, words, 10 + moment * APART)?);
        }
        ensure!(times.len() > MOMENTS / 2, "{what}: only {} of {MOMENTS} syncs failed in time", times.len());
        times.sort();
        let worst = times.last().copied().unwrap_or_default();
        report.row(
            &format!("{what}: from a sync that fails to the end of the process, {} moments", times.len()),
            &show(times[times.len() / 2]),
            &show(worst),
            "under strace; limit 2 s",
        );
    }
    Ok(())
}

/// Runs a process whose syncs fail from number `nth` on; gives how long it lived after the first, but for those of folders, at
/// which SQLite does not look. Nothing when it came to its end before.
fn ends_after(binary: &Path, words: &[&str], nth: usize) -> Result<Option<Duration>> {
    let folder = tempfile::tempdir()?;
    let steps: String = (0..STEPS)
        .map(|at| {
            let needs = if at == 0 { String::new() } else { format!("line_{}", at - 1) };
            format!(
                "  line_{at}: {{ uses: host.run, undo: none, needs: [{needs}], with: {{ target: here, argv: ['true'] }} }}\n"
            )
        })
        .collect();
    write(
        &folder.path().join("farrier.yaml"),
        "runbooks: [runbooks]\nenvironments: [bench.yaml]\ndata_dir: data\n",
    )?;
    write(
        &folder.path().join("bench.yaml"),
        "environment: bench\ntargets: { here: { kind: host, local: true } }\n",
    )?;
    write(
        &folder.path().join("runbooks/lines.yaml"),
        &format!(
            "runbook: lines\nsummary: Lines\nowner: bench\nrisk: destructive\ntargets: {{ here: host }}\ntriggers:\n  - {{ every: \
             1s, overlap: allow, catch_up: latest }}\nsteps:\n{steps}"
        ),
    )?;
    let trace = folder.path().join("trace");
    let status = Command::new("strace")
        .args(["-f", "-q", "-y", "-ttt", "--seccomp-bpf", "-e", "trace=fsync,fdatasync", "-e"])
        .arg(format!("inject=fsync,fdatasync:error=EIO:when={nth}+"))
        .arg("-o")
        .arg(&trace)
        .arg(binary)
        .args(words)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("strace is missing: apt-get install strace")?;
    let trace = std::fs::read_to_string(trace)?;
    let failed = trace.lines().find(|line| line.contains("(INJECTED)") && !line.contains("/data>)"));
    let (Some(failed), true) = (failed, trace.contains(FAILED)) else { return Ok(None) };
    ensure!(status.code() == Some(75), "a sync failed, and it ended with {status}");
    let ended = trace.lines().rfind(|line| line.contains(FAILED)).context("it has ended")?;
    Ok(Some(Duration::from_secs_f64((moment(ended)? - moment(failed)?).max(0.0))))
}

/// The time in a line of `strace`, in seconds.
fn moment(line: &str) -> Result<f64> {
    line.split_ascii_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("`{line}` has no time"))
}
