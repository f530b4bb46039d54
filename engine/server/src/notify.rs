//! Tells systemd how the service is: one datagram per word, as `sd_notify(3)` describes.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager, when there is one that wants to know.
#[derive(Debug, Default)]
pub struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// As the service manager says in the environment.
    pub fn from_env() -> Notify {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let watchdog = var("WATCHDOG_USEC").and_then(|text| text.parse().ok()).map(Duration::from_micros);
        let ours = var("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        Notify::at(var("NOTIFY_SOCKET").as_deref(), watchdog.filter(|_| ours))
    }

    /// A socket by its address, where `@` begins an abstract one.
    pub fn at(address: Option<&str>, watchdog: Option<Duration>) -> Notify {
        let open = |address: &str| {
            let to = match address.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name),
                None => SocketAddr::from_pathname(address),
            };
            Some((UnixDatagram::unbound().ok()?, to.ok()?))
        };
        Notify { socket: address.and_then(open), watchdog }
    }

    /// Half of the time after which silence counts as death.
    pub fn watchdog(&self) -> Option<Duration> {
        self.socket.as_ref().and(self.watchdog).map(|time| time / 2)
    }

    /// Sends lines such as `READY=1`. A manager that does not listen changes nothing.
    pub fn send(&self, state: &str) {
        if let Some((socket, to)) = &self.socket {
            let _ = socket.send_to_addr(state.as_bytes(), to);
        }
    }

    /// A reload has begun.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_arrive_at_paths_and_abstract_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("farrier-test-{}", uuid::Uuid::new_v4());
        let listeners = [
            (UnixDatagram::bind(&path).unwrap(), path.display().to_string()),
            (
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
                format!("@{name}"),
            ),
        ];
        for (listener, address) in listeners {
            let notify = Notify::at(Some(&address), Some(Duration::from_secs(4)));
            notify.send("READY=1");
            notify.reloading();
            let mut buffer = [0; 100];
            let read = listener.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..read], b"READY=1");
            let read = listener.recv(&mut buffer).unwrap();
            assert!(buffer[..read].starts_with(b"RELOADING=1\nMONOTONIC_USEC="));
            assert_eq!(notify.watchdog(), Some(Duration::from_secs(2)));
        }
        let nobody = Notify::at(None, Some(Duration::from_secs(1)));
        nobody.send("READY=1");
        assert_eq!(nobody.watchdog(), None);
    }
}
