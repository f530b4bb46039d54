//! The SSH server that tests get: who is let in, its keys, and how connections end.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::process::{Command, Output, Stdio};

use farrier_testkit::sshd::{Options, Sshd};
use farrier_testkit::{temp_dir, wait_until};

fn ssh(server: &Sshd, known: &str, command: &str) -> Output {
    let folder = temp_dir();
    let (config, known_hosts) = (folder.path().join("config"), folder.path().join("known_hosts"));
    std::fs::write(&config, server.client_config("worker")).unwrap();
    std::fs::write(&known_hosts, known).unwrap();
    Command::new("ssh")
        .args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-F"])
        .arg(config)
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", known_hosts.display()))
        .args(["worker", command])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn it_lets_its_client_in_and_has_a_key_of_its_own() {
    let mut server = Sshd::start(Options::default());
    let known = server.known_hosts("worker");
    let answer = ssh(&server, &known, "echo hello; exit 3");
    assert_eq!((answer.status.code(), answer.stdout.as_slice()), (Some(3), &b"hello\n"[..]), "{answer:?}");
    assert_eq!(server.logins(), 1);
    assert!(
        String::from_utf8_lossy(&ssh(&server, "", "true").stderr).contains("Host key verification failed")
    );
    server.change_host_key();
    assert!(String::from_utf8_lossy(&ssh(&server, &known, "true").stderr).contains("HAS CHANGED"));
    assert_eq!(server.logins(), 1);
    assert!(ssh(&server, &server.known_hosts("worker"), "true").status.success());
}

#[test]
fn another_shell_can_read_the_commands() {
    let server = Sshd::start(Options { shell: Some("dash".into()), ..Options::default() });
    let answer = ssh(&server, &server.known_hosts("worker"), "echo \"$0\" 'a  b'");
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "dash a  b\n");
}

#[test]
fn connections_can_be_cut() {
    let server = Sshd::start(Options::default());
    let known = server.known_hosts("worker");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| ssh(&server, &known, "sleep 30"));
        wait_until("the client to be let in", || server.log().contains("Starting session: command"));
        server.cut();
        assert_eq!(waiting.join().unwrap().status.code(), Some(255));
    });
    assert!(ssh(&server, &known, "true").status.success(), "it goes on listening");
}
