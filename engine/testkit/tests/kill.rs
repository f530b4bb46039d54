//! Nothing that a test started outlives its process, even when that is killed.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use farrier_testkit::mariadb::MariaDb;
use farrier_testkit::postgres::Postgres;
use farrier_testkit::slapd::{Options, Slapd};
use farrier_testkit::wait_until;

const CHILD: &str = "FARRIER_TESTKIT_KILLED_CHILD";

/// Runs twice: as the test, and as the process that the test kills.
#[test]
fn servers_and_folders_of_a_killed_test_process_go() {
    if std::env::var_os(CHILD).is_some() {
        let (slapd, maria, postgres) =
            (Slapd::start(Options::default()), MariaDb::start(), Postgres::start());
        let ids = [slapd.process_id(), maria.process_id(), postgres.process_id()].map(Option::unwrap);
        println!("\nstarted {} {} {}", ids[0], ids[1], ids[2]);
        // Until the kill: the other end stays open.
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    // Apart from other tests' folders, so that an empty one can be waited for.
    let temporary = tempfile::Builder::new().permissions(open_to_all()).tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "servers_and_folders_of_a_killed_test_process_go", "--nocapture"])
        .env(CHILD, "1")
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut started = lines.filter_map(|line| line.strip_prefix("started ").map(str::to_owned));
    let started = started.next().expect("the servers start");
    let servers: Vec<u32> = started.split(' ').map(|id| id.parse().unwrap()).collect();
    assert!(servers.len() == 3 && servers.iter().all(|id| exists(*id)), "{servers:?}");

    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the servers to end", || !servers.iter().any(|id| exists(*id)));
    let left = || {
        let entries = std::fs::read_dir(temporary.path()).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("farrier-test-")).count()
    };
    wait_until("the folders to go", || left() == 0);
}

fn exists(process: u32) -> bool {
    Path::new(&format!("/proc/{process}")).exists()
}

/// The servers' own accounts have to reach their folders.
fn open_to_all() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o755)
}
