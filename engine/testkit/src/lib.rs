//! Real servers for tests: OpenLDAP, MariaDB, PostgreSQL, OpenSSH, Prometheus, Alertmanager and Exim from the distribution's
//! packages, and a Kubernetes API server built from them, each on loopback, on a free port, in a temporary folder; a proxy that breaks
//! connections on purpose; someone who listens; and a clock that tests move.
//!
//! Read first: [`slapd::Slapd`], [`mariadb::MariaDb`], [`postgres::Postgres`], [`sshd::Sshd`],
//! [`prometheus::Prometheus`], [`exim::Exim`], [`kube::KubeApi`], [`proxy::CutProxy`],
//! [`eavesdropper::Eavesdropper`], [`clock::Clock`].
//!
//! **Rule:** nothing started here outlives the test process, however that ends. Each server runs under a small
//! supervising shell that waits for the test process to close a pipe; the kernel closes it even after `kill -9`. The
//! supervisor then ends the server by its process id and removes the folder.
//!
//! These helpers are for tests, so they panic with a message that says what to do (a missing package, a server's own
//! last words) instead of returning errors. Where a caller has to go on, there is a `try_` form.

mod certificates;
pub mod clock;
mod database;
pub mod eavesdropper;
pub mod exim;
pub mod generated;
pub mod kube;
pub mod mariadb;
pub mod postgres;
mod process;
pub mod prometheus;
pub mod proxy;
mod server_url;
pub mod slapd;
pub mod sshd;
pub mod statements;
mod template;

use std::fmt::Display;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

pub use process::find_program;
pub use tempfile::TempDir;

/// How long anything here waits before it gives up: far longer than a loaded machine needs, so that only a real
/// fault reaches it.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Waits until `condition` holds; panics with `what` when it does not within [`DEADLINE`].
///
/// It blocks its thread. In an asynchronous test call it from `tokio::task::spawn_blocking` or on a runtime of
/// several threads.
#[track_caller]
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    assert!(waited(DEADLINE, condition), "waited {} s in vain for: {what}", DEADLINE.as_secs());
}

/// Whether `condition` came to hold before `deadline` had passed.
fn waited(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// A port on loopback that nothing listens on at this moment.
///
/// Another process can take it before the caller does, so a caller that starts a server tries again with another one.
#[track_caller]
pub fn free_port() -> u16 {
    let listener = or_panic(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)), "no free port on 127.0.0.1");
    or_panic(listener.local_addr(), "a listening socket has no address").port()
}

/// A new empty folder, removed when the value is dropped.
#[track_caller]
pub fn temp_dir() -> TempDir {
    or_panic(tempfile::Builder::new().prefix("farrier-test-").tempdir(), "no temporary folder could be made")
}

/// A name for a database that no other test on the same server has, in any process.
fn unique_name() -> String {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // Each `RandomState` is seeded by the system.
    let random = RandomState::new().hash_one(std::process::id());
    format!("t{random:016x}_{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The value, or a panic that says what was being done and why it failed, cause by cause.
#[track_caller]
fn or_panic<T, E: Into<anyhow::Error> + Display>(result: Result<T, E>, doing: &str) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{doing}: {:#}", error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound() {
        let port = free_port();
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    }

    #[test]
    fn a_temporary_folder_goes_with_its_value() {
        let folder = temp_dir();
        let path = folder.path().to_owned();
        std::fs::write(path.join("a"), "b").unwrap();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn waiting_ends_when_the_condition_holds_or_the_deadline_passes() {
        let mut calls = 0;
        wait_until("the third call", || {
            calls += 1;
            calls == 3
        });
        assert_eq!(calls, 3);
        assert!(!waited(Duration::from_millis(1), || false));
    }
}
