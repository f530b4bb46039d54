//! One command on two hundred hosts over SSH, against `clush`, with the same key exchange: twenty servers on loopback, each
//! under ten names. Cold opens every connection; warm has them open, clush by OpenSSH's own sharing.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use farrier_testkit::sshd::{Options, Sshd};
use tempfile::TempDir;

use crate::report::{Cost, Report, ratio, run, show, write};

const SERVERS: usize = 20;
const NAMES: usize = 10;
const HOSTS: usize = SERVERS * NAMES;
/// Hosts at once, on both sides.
const AT_ONCE: usize = 32;
/// Passes over open connections in one run of ours; their share of its time is one warm pass.
const WARM: usize = 5;
const KEY_EXCHANGE: &str = "curve25519-sha256";

/// The servers, and what leads to them.
struct Hosts {
    folder: TempDir,
    _servers: Vec<Sshd>,
}

impl Hosts {
    fn start() -> Result<Hosts> {
        let folder = tempfile::tempdir()?;
        let options =
            || Options { configuration: "MaxStartups 200\nMaxSessions 50".into(), ..Options::default() };
        let servers = (0..SERVERS).map(|_| Sshd::try_start(&options())).collect::<Result<Vec<_>>>()?;
        let (mut config, mut known) = (String::new(), String::new());
        for at in 0..HOSTS {
            let (server, name) = (&servers[at % SERVERS], format!("w-{}", at + 1));
            config.push_str(&server.client_config(&name));
            let _ = writeln!(known, "{}", server.known_hosts(&name).trim());
        }
        let known_hosts = folder.path().join("known_hosts");
        write(&known_hosts, &known)?;
        let common = format!(
            "Host *\n    UserKnownHostsFile {}\n    StrictHostKeyChecking yes\n    BatchMode yes\n    \
             KexAlgorithms {KEY_EXCHANGE}\n    LogLevel ERROR\n",
            known_hosts.display()
        );
        write(&folder.path().join("cold"), &format!("{config}{common}"))?;
        let sockets = folder.path().join("s");
        std::fs::create_dir(&sockets)?;
        let sharing = format!(
            "    ControlMaster auto\n    ControlPath {}/%n\n    ControlPersist 10m\n",
            sockets.display()
        );
        write(&folder.path().join("warm"), &format!("{config}{common}{sharing}"))?;
        let project = folder.path().join("project");
        write(&project.join("farrier.yaml"), "runbooks: [runbooks]\nenvironments: [environments]\n")?;
        write(
            &project.join("environments/loopback.yaml"),
            &format!(
                "environment: loopback\ntargets:\n  nodes:\n    kind: host\n    hosts: w-[1-{HOSTS}]\n    ssh: {{ \
                 known_hosts: {}, config: {}, key_exchange: [{KEY_EXCHANGE}], opening: {AT_ONCE} }}\n",
                known_hosts.display(),
                folder.path().join("cold").display()
            ),
        )?;
        for (name, passes, hosts) in [("once", 1, HOSTS), ("again", 1 + WARM, HOSTS), ("single", 1, 1)] {
            write(&project.join(format!("runbooks/{name}.yaml")), &runbook(name, passes, hosts))?;
        }
        Ok(Hosts { folder, _servers: servers })
    }

    fn config(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ours(&self, binary: &Path, runbook: &str) -> Result<Cost> {
        let mut command = Command::new(binary);
        command.arg("-C").arg(self.folder.path().join("project"));
        run(command.args(["run", runbook, "--env", "loopback", "--yes", "--quiet"]))
    }

    fn clush(&self, config: &str) -> Result<Cost> {
        let options = format!("-F {}", self.config(config).display());
        let mut command = Command::new("clush");
        command.args(["-S", "-b", "-f", &AT_ONCE.to_string(), "-o", &options]);
        run(command.args(["-w", &format!("w-[1-{HOSTS}]"), "true"]))
            .context("clush is needed: apt-get install clustershell")
    }

    /// Ends the connections that clush shared.
    fn close(&self) {
        for at in 1..=HOSTS {
            let mut ssh = Command::new("ssh");
            ssh.arg("-F").arg(self.config("warm")).args(["-O", "exit", &format!("w-{at}")]);
            // One that was never opened is closed already.
            let _ = ssh.output();
        }
    }
}

/// A command on all hosts, `passes` times one after the other.
fn runbook(name: &str, passes: usize, hosts: usize) -> String {
    let mut text = format!(
        "runbook: {name}\nsummary: one command on many hosts\nowner: nobody\nrisk: read_only\ntargets: {{ nodes: host \
         }}\nsteps:\n"
    );
    for pass in 0..passes {
        let needs = if pass == 0 { String::new() } else { format!("    needs: [p{}]\n", pass - 1) };
        let _ = write!(
            text,
            "  p{pass}:\n    uses: host.run\n{needs}    with: {{ target: nodes, select: \"w-[1-{hosts}]\", argv: ['true'], \
             read_only: true, batch: {AT_ONCE} }}\n"
        );
    }
    text
}

/// Measures both, cold and warm.
pub fn measure(report: &mut Report, binary: &Path) -> Result<()> {
    let hosts = Hosts::start()?;
    let (mut most, mut theirs_most) = (0, 0);
    let cold = report.times(|| {
        let cost = hosts.ours(binary, "once")?;
        most = most.max(cost.peak);
        Ok(cost.time)
    })?;
    let single = hosts.ours(binary, "single")?.peak;
    let warm = report.times(|| {
        let (many, once) = (hosts.ours(binary, "again")?.time, hosts.ours(binary, "once")?.time);
        Ok(many.saturating_sub(once) / u32::try_from(WARM).unwrap_or(1))
    })?;
    let clush_cold = report.times(|| {
        let cost = hosts.clush("cold")?;
        theirs_most = theirs_most.max(cost.peak);
        Ok(cost.time)
    })?;
    let opened = hosts.clush("warm");
    let clush_warm = opened.and_then(|_| report.times(|| Ok::<Duration, _>(hosts.clush("warm")?.time)));
    hosts.close();
    let clush_warm = clush_warm?;
    for (what, ours, clush) in
        [("connections opened", cold, clush_cold), ("connections open already", warm, clush_warm)]
    {
        let title = format!("`true` on {HOSTS} hosts over SSH, {AT_ONCE} at a time, {what}");
        report.row(&title, &show(ours.0), &show(ours.1), &format!("{} of clush", ratio(ours.0, clush.0)));
        report.row(&format!("the same with clush, {what}"), &show(clush.0), &show(clush.1), "");
    }
    let per_host = most.saturating_sub(single) / (HOSTS as u64 - 1);
    report.row(
        "memory for each further host, of the process itself",
        &format!("{} KiB", per_host >> 10),
        "",
        &format!("peak {} MiB, clush {} MiB", most >> 20, theirs_most >> 20),
    );
    Ok(())
}
