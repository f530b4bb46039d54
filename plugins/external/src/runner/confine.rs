//! What a program does not get: new privileges, a core file, the network, and more than its share of the machine.

use std::io;

use farrier_model::Failure;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Order;

/// For this thread and all that it starts: no set-user-ID program raises them, and without `network` there are no sockets
/// but those of this machine's own files.
pub(crate) fn confine(network: bool) -> Result<(), Failure> {
    farrier_confine::privileges()?;
    if !network {
        farrier_confine::calls::no_network().map_err(|failure| {
            failure.help("where the kernel cannot do this, say `network: true` in the environment, so that it is known")
        })?;
    }
    Ok(())
}

/// Limits that nothing below can raise again.
pub(crate) fn limit(order: &Order) -> io::Result<()> {
    for (resource, wanted) in [
        (Resource::Nofile, order.open_files),
        (Resource::Cpu, order.processor_seconds),
        (Resource::Nproc, backstop(order.processes)),
        // Private memory that can be written to; what is only reserved does not count. Last: from here on this process
        // itself may get no more.
        (Resource::Data, order.memory),
    ] {
        let most = getrlimit(resource).maximum.map_or(wanted, |maximum| wanted.min(maximum));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}

/// How many more threads than the machine has now a program's account may have before the kernel refuses it any.
const ROOM: u64 = 1000;

/// The kernel counts what the whole account has, Farrier's and every other step's processes among it, and counts nothing for
/// the superuser. So this is no limit for one program, which the runner counts itself; it only keeps the machine alive
/// between two looks.
fn backstop(processes: u64) -> u64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let all = load.split(' ').nth(3).and_then(|counts| counts.split_once('/')?.1.parse::<u64>().ok());
    all.map_or(u64::MAX, |all| all.saturating_add(processes).saturating_add(ROOM))
}
