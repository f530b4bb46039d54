//! Ten thousand `/bin/true`, each journaled with intent and outcome, against ninja and make, which keep no journal.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::report::{Report, ratio, run, show, write};

const PROCESSES: usize = 10_000;

/// Measures all three on the same graph: ten thousand independent processes, two at a time.
pub fn measure(report: &mut Report, binary: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut runbook = String::from(
        "runbook: trues\nsummary: processes\nowner: nobody\nrisk: destructive\ntargets: {l: host}\nsteps:\n",
    );
    let mut ninja = String::from("rule t\n  command = /bin/true\n");
    let mut names = String::new();
    for at in 0..PROCESSES {
        let _ =
            writeln!(runbook, "  t{at}: {{uses: host.run,with: {{target: l,argv: [/bin/true]}},undo: none}}");
        let _ = writeln!(ninja, "build t{at}: t");
        let _ = write!(names, " t{at}");
    }
    let project = folder.path().join("farrier");
    write(&project.join("farrier.yaml"), "runbooks: [runbooks]\nenvironments: [environments]\n")?;
    write(&project.join("runbooks/trues.yaml"), &runbook)?;
    write(
        &project.join("environments/here.yaml"),
        "environment: here\ntargets: { l: { kind: host, local: true } }\n",
    )?;
    write(&folder.path().join("ninja/build.ninja"), &ninja)?;
    write(
        &folder.path().join("make/Makefile"),
        &format!("all:{names}\n.PHONY: all{names}\nt%:\n\t@/bin/true\n{names}:\n\t@/bin/true\n"),
    )?;

    let ours = |parallel: &str| {
        report.times(|| {
            let mut command = Command::new(binary);
            command.arg("-C").arg(&project);
            command.args(["run", "trues", "--env", "here", "--yes", "--quiet", "--parallel", parallel]);
            run(&mut command).map(|cost| cost.time)
        })
    };
    let sixteen = ours("16")?;
    let two = ours("2")?;
    let (ninja, ninja_worst) = report
        .times(|| {
            run(Command::new("ninja").args(["-j2", "-C"]).arg(folder.path().join("ninja")))
                .map(|cost| cost.time)
        })
        .context("ninja is needed: apt-get install ninja-build")?;
    let (make, make_worst) = report.times(|| {
        run(Command::new("make").args(["-j2", "-s", "-C"]).arg(folder.path().join("make")))
            .map(|cost| cost.time)
    })?;
    for (name, (median, worst)) in [("sixteen at a time, the default", sixteen), ("two at a time", two)] {
        report.row(
            &format!("10,000 `/bin/true`, intent and outcome of each durable, {name}"),
            &show(median),
            &show(worst),
            &format!("{} of ninja, {} of make", ratio(median, ninja), ratio(median, make)),
        );
    }
    report.row("the same with ninja -j2, no journal", &show(ninja), &show(ninja_worst), "");
    report.row("the same with GNU make -j2, no journal", &show(make), &show(make_worst), "");
    Ok(())
}
