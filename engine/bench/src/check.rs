//! Checking five hundred runbooks, and starting the program.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::report::{Report, run, show, write};

const RUNBOOKS: usize = 500;

/// Measures `farrier check`, `farrier --version` and the binary's size.
pub fn measure(report: &mut Report, binary: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let updatetools = std::fs::read_to_string("runbooks/directory/updatetools.yaml")?;
    write(&folder.path().join("farrier.yaml"), "runbooks: [runbooks]\nenvironments: []\n")?;
    for at in 0..RUNBOOKS {
        let text = updatetools.replacen("runbook: updatetools", &format!("runbook: updatetools-{at}"), 1);
        write(&folder.path().join(format!("runbooks/updatetools-{at}.yaml")), &text)?;
    }
    let (check, check_worst) = report.times(|| {
        run(Command::new(binary).arg("-C").arg(folder.path()).arg("check")).map(|cost| cost.time)
    })?;
    report.row(
        "`farrier check` of 500 runbooks of updatetools' size",
        &show(check),
        &show(check_worst),
        "limit 300 ms",
    );
    let (start, start_worst) =
        report.times(|| run(Command::new(binary).arg("--version")).map(|cost| cost.time))?;
    report.row("`farrier --version`", &show(start), &show(start_worst), "limit 10 ms");
    let size = std::fs::metadata(binary)?.len();
    report.row("size of the binary", &format!("{:.1} MB", size as f64 / 1e6), "", "limit 40 MB");
    Ok(())
}
