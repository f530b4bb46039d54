//! With a person at the terminal, whom `ssh` would gladly ask: the terminal is made by `script`, and the home of the account is
//! one of the test's own, mounted for its process alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use farrier_model::FailureKind;
use farrier_testkit::sshd::{Options, Sshd};
use serde_json::json;

use super::tests::{reading, run};
use crate::tests::World;

/// Names the folder of the test to the process at the terminal.
const AT_A_TERMINAL: &str = "FARRIER_TEST_AT_A_TERMINAL";

/// What is shown before and after the time in which nothing may be shown.
const QUIET: [&str; 2] = ["from here on nothing is asked", "that was all"];

/// `$1` the folder, `$2` the program. The program may be somewhere in the home that is covered.
const SCRIPT: &str = r#"
set -e
touch "$1/program"
mount --bind "$2" "$1/program"
home=$(getent passwd "$(id -u)" | cut -d: -f6)
mount -t tmpfs none "$home"
mkdir -m 700 "$home/.ssh"
cp "$1/known_at_home" "$home/.ssh/known_hosts"
command="'$1/program' --exact --nocapture ssh::terminal_tests::a_key_that_only_the_user_knows_is_not_asked_about"
# Whoever is asked here waits for ever.
exec timeout 60 script --quiet --return --echo never --command "$command" /dev/null
"#;

/// Hosts whose keys the account knows in its `~/.ssh`, and the environment does not: of one it knows none, of the other one
/// that is not the host's any more. Both are refused before anyone logs in, and nobody is asked.
#[tokio::test]
async fn a_key_that_only_the_user_knows_is_not_asked_about() {
    if let Some(folder) = std::env::var_os(AT_A_TERMINAL) {
        at_a_terminal(&PathBuf::from(folder)).await;
        return;
    }
    let mut server = Sshd::start(Options::default());
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("known_hosts", &server.known_hosts("changed"));
    server.change_host_key();
    let hosts = ["unknown", "changed"];
    write("known_at_home", &hosts.map(|name| server.known_hosts(name)).concat());
    let config = hosts.map(|name| server.client_config(name)).concat();
    let user = Command::new("id").arg("-un").output().unwrap().stdout;
    let user = String::from_utf8(user).unwrap();
    write("ssh_config", &format!("User {user}StrictHostKeyChecking ask\n{config}"));
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", SCRIPT, "sh"])
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .env(AT_A_TERMINAL, folder.path())
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{shown}");
    let quiet = shown.split_once(QUIET[0]).and_then(|(_, rest)| rest.split_once(QUIET[1]));
    assert_eq!(quiet.map(|(between, _)| between.trim()), Some(""), "{shown}");
    assert_eq!(server.logins(), 1, "only the one that shows that the keys at home would do");
}

async fn at_a_terminal(folder: &Path) {
    std::fs::File::open("/dev/tty").expect("there is a terminal");
    let mut ssh = Command::new("ssh");
    let own = ssh.arg("-F").arg(folder.join("ssh_config")).args(["unknown", "true"]).status().unwrap();
    assert!(own.success(), "ssh by itself goes by the keys at home");
    let config = json!({ "ssh": { "known_hosts": "known_hosts", "config": "ssh_config" } });
    let world = World::new(&config.to_string(), |world| {
        for file in ["known_hosts", "ssh_config"] {
            std::fs::copy(folder.join(file), world.join(file)).unwrap();
        }
    });
    println!("{}", QUIET[0]);
    for (host, reason) in [
        ("unknown", "its host key is not in `known_hosts`"),
        ("changed", "it shows another host key than the one in `known_hosts`"),
    ] {
        let failure = run(&world, &reading(host, &["true"])).await.unwrap_err();
        assert!(failure.message.contains(reason), "{failure}");
        assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Denied, false));
    }
    println!("{}", QUIET[1]);
}
