//! updatetools on real servers at Toolforge's size and at ten times that, when nothing has changed, against a plain
//! Python script doing the same job on the same servers.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use farrier_testkit::mariadb::MariaDb;
use farrier_testkit::slapd::{Options, Slapd};
use farrier_toolforge::{Dialect, World, oracle};

use crate::report::{Cost, Report, ratio, run, show, write};

/// Where Farrier finds the database's password.
const PASSWORD: &str = "FARRIER_BENCH_PASSWORD";

/// Measures both sizes.
pub fn measure(report: &mut Report, binary: &Path, python: &str) -> Result<()> {
    let mut times = Vec::new();
    for tools in [3_500, 35_000] {
        times.push(one_size(report, binary, python, tools)?);
    }
    if let [small, large] = times[..] {
        report.row(
            "updatetools: growth of time from 3,500 to 35,000 tools",
            &ratio(large.time, small.time),
            "",
            "linear is 10×",
        );
    }
    Ok(())
}

fn one_size(report: &mut Report, binary: &Path, python: &str, tools: usize) -> Result<Cost> {
    let world = World::generate(tools, 7);
    let folder = tempfile::tempdir()?;
    let homes = folder.path().join("homes");
    world.write_homes(&homes)?;
    let ldif = world.ldif();
    let slapd = Slapd::start(Options { entries: world.ldif_to_add(), ..Options::default() });
    let mariadb = MariaDb::shared();
    let database = mariadb.fresh_database();
    database.exec(&Dialect::MariaDb.schema());
    let tables =
        oracle::expected(&ldif, &homes, "tools", 1).tables().map_err(|refused| anyhow!("{refused:?}"))?;
    database.exec(&tables.insert_sql(Dialect::MariaDb));

    let (url, password) = without_password(&database.url());
    let project = folder.path().join("project");
    write(&project.join("farrier.yaml"), "runbooks: [runbooks]\nenvironments: [environments]\n")?;
    let runbook = std::fs::read_to_string("runbooks/directory/updatetools.yaml")
        .context("run this from the project's folder")?;
    write(&project.join("runbooks/updatetools.yaml"), &runbook)?;
    write(
        &project.join("environments/bench.yaml"),
        &format!(
            "environment: bench\ntargets:\n  directory: {{ kind: ldap, url: \"{}\" }}\n  homes: {{ kind: files, roots: {{ tool_homes: \"{}\" }} }}\n  catalogue: {{ kind: sql, url: \"{}\", password: {{ env: {PASSWORD} }} }}\n",
            slapd.url(),
            homes.display(),
            url,
        ),
    )?;

    let mark = slapd.mark();
    let mut costs = Vec::new();
    let (ours, ours_worst) = report.times(|| {
        let mut command = Command::new(binary);
        command.env(PASSWORD, &password).arg("-C").arg(&project).args([
            "run",
            "updatetools",
            "--env",
            "bench",
            "--yes",
            "--quiet",
        ]);
        let cost = run(&mut command)?;
        costs.push(cost);
        Ok(cost.time)
    })?;
    ensure!(slapd.writes_since(mark).is_empty(), "a run without changes wrote to the directory");
    let peak = costs.iter().map(|cost| cost.peak).max().unwrap_or(0);
    let mut script_peak = 0;
    let (script, script_worst) = report.times(|| {
        let mut command = Command::new(python);
        command
            .arg("benches/peer/updatetools.py")
            .args(["--ldap", &slapd.url(), "--database", &url])
            .env("DATABASE_PASSWORD", &password)
            .arg("--homes")
            .arg(&homes);
        let cost = run(&mut command)?;
        script_peak = cost.peak.max(script_peak);
        Ok(cost.time)
    })?;
    let megabytes = |bytes: u64| format!("{:.0} MB", bytes as f64 / 1e6);
    report.row(
        &format!("updatetools without changes, {tools} tools, OpenLDAP and MariaDB"),
        &show(ours),
        &show(ours_worst),
        &format!("{} of the script; peak {}", ratio(ours, script), megabytes(peak)),
    );
    report.row(
        &format!("the same as a plain Python script (ldap3, PyMySQL), {tools} tools"),
        &show(script),
        &show(script_worst),
        &format!("peak {}", megabytes(script_peak)),
    );
    Ok(Cost { time: ours, peak })
}

/// `mysql://user:password@host/name` as an address without, and the password.
fn without_password(url: &str) -> (String, String) {
    let parts = url.split_once("://").and_then(|(scheme, rest)| {
        let (account, place) = rest.split_once('@')?;
        let (user, password) = account.split_once(':')?;
        Some((format!("{scheme}://{user}@{place}"), password.to_owned()))
    });
    parts.unwrap_or_else(|| (url.to_owned(), String::new()))
}
