//! What a program does not get: files that are none of its business, new privileges, a core file, the network, and more than
//! its share of the machine.

use std::io;
use std::path::Path;

use farrier_confine::folders::{Confined, Left};
use farrier_model::{Failure, FailureKind};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Order;

/// What programs and their interpreters are made of, and what they look up about the machine. Of `/etc` only what is no
/// secret: Farrier's own configuration stands there. `/proc` shows a confined process nothing of others but what anybody sees.
const MACHINE: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/proc",
    "/sys/devices/system/cpu",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/timezone",
];
/// Of devices, those that hold nothing.
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// For this thread and all that it starts: no set-user-ID program raises them, without `network` there are no sockets, of the
/// files there are those of the machine, the order's, and `folder`, where the program may work, and of a superuser's powers
/// those that this needs.
pub(crate) fn confine(order: &Order, folder: &Path) -> Result<(), Failure> {
    const KNOWN: &str = "in the environment, so that it is known";
    farrier_confine::privileges()?;
    if order.unconfined {
        if order.network {
            return Ok(());
        }
        let refused = farrier_confine::calls::no_sockets();
        return refused.map_err(|failure| {
            failure.help(format!("where the kernel cannot do this, say `network: true` {KNOWN}"))
        });
    }
    let confined = || {
        files(order, folder)?;
        farrier_confine::capabilities::keep(farrier_confine::capabilities::PROGRAMS)?;
        farrier_confine::calls::own_work(order.network)
    };
    confined().map_err(|failure: Failure| {
        failure.help(format!(
            "use Linux 5.13 or newer with Landlock and seccomp on, or say `unconfined: true` {KNOWN}"
        ))
    })
}

fn files(order: &Order, folder: &Path) -> Result<(), Failure> {
    let own = |paths: &'static [&'static str]| paths.iter().map(Path::new).collect::<Vec<_>>();
    let mut left = Left { reads: own(MACHINE), writes: own(DEVICES), network: order.network };
    left.reads.extend(order.reads.iter().map(Path::new));
    left.writes.push(folder);
    left.writes.extend(order.writes.iter().map(Path::new));
    match left.alone()? {
        // What an old Landlock leaves out, the network, is refused without it.
        Confined::Wholly | Confined::Partly => Ok(()),
        Confined::Not => {
            let message =
                "this kernel has no Landlock, so the program could read every file of Farrier's account";
            Err(Failure::new(FailureKind::Refused, message))
        }
    }
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
