//! One command on two hundred hosts over SSH, against `clush` and `ansible`, with the same key exchange: twenty servers on
//! loopback, each under ten names. Cold opens every connection; warm has them open, the peers by OpenSSH's own sharing.

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

    /// With no module of its own: the command as it stands, as the others do it.
    fn ansible(&self, python: &Path, config: &str) -> Result<Cost> {
        let mut command = Command::new(python);
        command.args(["-m", "ansible", "adhoc", "-i", &format!("{},", names().join(","))]);
        command.args(["-m", "ansible.builtin.raw", "-a", "true", "-f", &AT_ONCE.to_string()]);
        // Without arguments of its own, it would share connections by itself.
        let arguments = format!("-F {} -o BatchMode=yes", self.config(config).display());
        command.args(["--ssh-common-args", &arguments, "-e", "ansible_ssh_args=''", "all"]);
        run(command.env("ANSIBLE_HOME", self.config("ansible")))
            .context("ansible is needed: the packages of benches/peer/requirements.txt")
    }

    /// Ends the connections that clush shared.
    fn close(&self) {
        for name in names() {
            let mut ssh = Command::new("ssh");
            ssh.arg("-F").arg(self.config("warm")).args(["-O", "exit", &name]);
            // One that was never opened is closed already.
            let _ = ssh.output();
        }
    }
}

fn names() -> Vec<String> {
    (1..=HOSTS).map(|at| format!("w-{at}")).collect()
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

/// The times of one way to do it, and the most memory that it took.
#[derive(Default)]
struct Measured {
    times: Vec<Duration>,
    peak: u64,
}

impl Measured {
    fn add(&mut self, cost: Cost) {
        self.times.push(cost.time);
        self.times.sort();
        self.peak = self.peak.max(cost.peak);
    }

    fn median(&self) -> Duration {
        self.times[self.times.len() / 2]
    }

    fn worst(&self) -> Duration {
        self.times[self.times.len() - 1]
    }
}

/// Measures all three, cold and warm, by turns: what else the machine does meets them alike.
pub fn measure(report: &mut Report, binary: &Path, python: &str) -> Result<()> {
    let hosts = Hosts::start()?;
    let python = Path::new(python);
    let (mut ours, mut clush, mut ansible) = (Measured::default(), Measured::default(), Measured::default());
    for _ in 0..report.rounds {
        ours.add(hosts.ours(binary, "once")?);
        clush.add(hosts.clush("cold")?);
        ansible.add(hosts.ansible(python, "cold")?);
    }
    rows(report, "connections opened", &ours, &clush, &ansible);
    let single = hosts.ours(binary, "single")?.peak;
    let per_host = ours.peak.saturating_sub(single) / (HOSTS as u64 - 1);
    let peaks = format!(
        "peak {} MiB, clush {} MiB, ansible {} MiB",
        ours.peak >> 20,
        clush.peak >> 20,
        ansible.peak >> 20
    );
    report.row(
        "memory for each further host, of the process itself",
        &format!("{} KiB", per_host >> 10),
        "",
        &peaks,
    );
    let warm = hosts.clush("warm").and_then(|_| {
        let (mut ours, mut clush, mut ansible) =
            (Measured::default(), Measured::default(), Measured::default());
        for _ in 0..report.rounds {
            let (many, once) = (hosts.ours(binary, "again")?, hosts.ours(binary, "once")?.time);
            let passes = u32::try_from(WARM).unwrap_or(1);
            ours.add(Cost { time: many.time.saturating_sub(once) / passes, peak: many.peak });
            clush.add(hosts.clush("warm")?);
            ansible.add(hosts.ansible(python, "warm")?);
        }
        Ok((ours, clush, ansible))
    });
    hosts.close();
    let (ours, clush, ansible) = warm?;
    rows(report, "connections open already", &ours, &clush, &ansible);
    Ok(())
}

fn rows(report: &mut Report, what: &str, ours: &Measured, clush: &Measured, ansible: &Measured) {
    let (time, others) = (ours.median(), [("clush", clush), ("ansible", ansible)]);
    let title = format!("`true` on {HOSTS} hosts over SSH, {AT_ONCE} at a time, {what}");
    let held = others.map(|(name, other)| format!("{} of {name}", ratio(time, other.median()))).join(", ");
    report.row(&title, &show(time), &show(ours.worst()), &held);
    for (name, other) in others {
        report.row(&format!("the same with {name}, {what}"), &show(other.median()), &show(other.worst()), "");
    }
}
