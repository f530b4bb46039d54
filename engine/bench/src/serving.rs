//! `farrier serve` as a process, and what it weighs.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

/// A service in a project. Ends with this.
pub struct Serving {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Which figure of a process's memory.
pub enum Memory {
    /// What it holds now.
    Now,
    /// The most that it has held.
    Most,
}

impl Serving {
    /// Starts it on a free port, and returns when it listens.
    pub fn start(binary: &Path, project: &Path, more: &[&str]) -> Result<Serving> {
        let mut child = Command::new(binary)
            .arg("-C")
            .arg(project)
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("farrier serve")?;
        let errors = child.stderr.take().context("stderr")?;
        let mut lines = BufReader::new(errors).lines();
        let mut said = String::new();
        let address = loop {
            let Some(line) = lines.next().transpose()? else {
                let _ = child.wait();
                anyhow::bail!("`farrier serve` has ended: {said}");
            };
            if let Some(address) = line.strip_prefix("listening on http://") {
                break address.parse().context("its address")?;
            }
            said.push_str(&line);
        };
        // What it goes on to say is read, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Serving { child, address })
    }

    /// The memory that it holds, in bytes.
    pub fn resident(&self) -> Result<u64> {
        memory(self.child.id(), Memory::Now)
    }

    /// The most memory that it has held, in bytes.
    pub fn peak(&self) -> Result<u64> {
        memory(self.child.id(), Memory::Most)
    }

    /// The processor time that it has used.
    pub fn processor(&self) -> Result<Duration> {
        // The fields behind the name in brackets, see proc_pid_stat(5): 14 and 15 of all, in ticks of a hundredth second.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum();
        Ok(Duration::from_millis(ticks * 10))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The memory of a process, in bytes.
pub fn memory(process: u32, which: Memory) -> Result<u64> {
    let name = match which {
        Memory::Now => "VmRSS:",
        Memory::Most => "VmHWM:",
    };
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("the process has ended")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}
