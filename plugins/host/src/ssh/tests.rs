//! Against real servers on loopback.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use farrier_model::{Failure, FailureKind, NodeName, RunId, Value};
use farrier_testkit::sshd::{Options, Sshd};
use serde_json::json;

use super::*;
use crate::marks::Marks;
use crate::tests::World;

/// A target whose hosts are all the same server.
pub(super) fn world(server: &Sshd, names: &[&str]) -> World {
    world_with(server, names, &json!({}), "")
}

pub(super) fn world_with(server: &Sshd, names: &[&str], more: &serde_json::Value, config: &str) -> World {
    let mut ssh = json!({
        "known_hosts": "known_hosts", "config": "ssh_config", "key_exchange": ["curve25519-sha256"],
        // Those that are still open when the tests end close soon.
        "idle_close": "5s",
    });
    ssh.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let config_of_target = json!({ "ssh": ssh }).to_string();
    World::new(&config_of_target, |folder| {
        let known: String = names.iter().map(|name| server.known_hosts(name)).collect();
        std::fs::write(folder.join("known_hosts"), known).unwrap();
        let hosts: String = names.iter().map(|name| server.client_config(name)).collect();
        std::fs::write(folder.join("ssh_config"), format!("{config}{hosts}")).unwrap();
    })
}

/// The server that tests share which break nothing.
fn shared() -> &'static Sshd {
    static SERVER: LazyLock<Sshd> = LazyLock::new(|| Sshd::start(Options::default()));
    &SERVER
}

pub(super) fn reading(hosts: &str, argv: &[&str]) -> serde_json::Value {
    json!({ "target": "nodes", "hosts": hosts, "argv": argv, "read_only": true })
}

pub(super) async fn run(world: &World, input: &serde_json::Value) -> Result<Value, Failure> {
    world.run("host.run", input).await
}

pub(super) fn field(output: &Value, name: &str) -> String {
    output.get(name).unwrap().to_string()
}

/// Whether a process still does anything.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), wait).await.expect("the condition never came true");
}

fn pids(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// What a command must be like on any machine, this one included: one suite for all.
async fn is_a_machine(world: &World, host: serde_json::Value) {
    let input = |argv: &[&str], more: serde_json::Value| {
        let mut input = json!({ "target": "nodes", "argv": argv, "read_only": true });
        if !host.is_null() {
            input["hosts"] = host.clone();
        }
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        input
    };
    let output =
        run(world, &input(&["printf", "%s|", "a  b", "$HOME", "", "it's \"\\"], json!({}))).await.unwrap();
    assert_eq!(field(&output, "stdout"), "a  b|$HOME||it's \"\\|");
    let output =
        run(world, &input(&["sh", "-c", "echo out; echo err >&2; exit 3"], json!({ "ok_codes": [3] })))
            .await
            .unwrap();
    assert_eq!((field(&output, "stdout"), field(&output, "stderr")), ("out\n".into(), "err\n".into()));
    assert_eq!(output.get("code"), Some(&Value::Int(3)));
    for code in [1, 2, 124, 125, 126, 127, 128, 143, 255] {
        let script = format!("exit {code}");
        let failure = run(world, &input(&["sh", "-c", &script], json!({}))).await.unwrap_err();
        assert_eq!(failure.message, format!("`sh -c '{script}'` ended with code {code}"));
        assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Exit, false));
    }
    let more = json!({ "cwd": "/usr", "stdin": "é in\n\n", "env": { "WORD": "a 'b' $c" } });
    let output = run(world, &input(&["sh", "-c", "pwd; cat; echo \"$WORD $LANG\""], more)).await.unwrap();
    assert_eq!(field(&output, "stdout"), "/usr\né in\n\na 'b' $c C.UTF-8\n");
    let names = run(world, &input(&["sh", "-c", "env | cut -d= -f1 | sort"], json!({}))).await.unwrap();
    let known = [
        "FARRIER_EFFECT",
        "FARRIER_NODE",
        "FARRIER_RUN",
        "HOME",
        "LANG",
        "LOGNAME",
        "OLDPWD",
        "PATH",
        "PWD",
        "USER",
    ];
    let unknown: Vec<String> = field(&names, "stdout")
        .lines()
        .filter(|name| !known.contains(name) && !["_", "SHLVL"].contains(name))
        .map(str::to_owned)
        .collect();
    assert_eq!(unknown, Vec::<String>::new());
    assert!(field(&names, "stdout").contains("FARRIER_RUN"));
    let text = "0123456789\n".repeat(50_000);
    let more = json!({ "stdin": text, "max_output": 1 << 20 });
    let output = run(world, &input(&["tee", "/dev/stderr"], more)).await.unwrap();
    for name in ["stdout", "stderr"] {
        let got = field(&output, name);
        let differ = got.bytes().zip(text.bytes()).position(|(one, other)| one != other);
        assert!(
            got == text,
            "{name}: {} bytes of {}, the first other one at {differ:?}",
            got.len(),
            text.len()
        );
    }
    // A command that does not read its input is none the worse.
    run(world, &input(&["true"], json!({ "stdin": text }))).await.unwrap();
    let output = run(world, &input(&["cat"], json!({}))).await.unwrap();
    assert_eq!(field(&output, "stdout"), "", "there is no input but the one that is given");
    let output = run(world, &input(&["seq", "1", "100000"], json!({ "max_output": 20 }))).await.unwrap();
    assert!(
        field(&output, "stdout").ends_with("99999\n100000\n")
            && output.get("cut") == Some(&Value::Bool(true))
    );
    for (argv, more, kind, expected) in [
        (["no-such-program"], json!({}), FailureKind::Refused, "there is no program `no-such-program`"),
        (["/etc/passwd"], json!({}), FailureKind::Denied, "cannot start `/etc/passwd`"),
        (
            ["true"],
            json!({ "cwd": "/no/folder" }),
            FailureKind::Refused,
            "there is no folder `/no/folder` to run in",
        ),
    ] {
        let failure = run(world, &input(&argv, more)).await.unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.contains(expected) && !failure.in_doubt, "{failure}");
    }
    let failure = run(world, &input(&["sleep", "1000"], json!({ "time_limit": "1s" }))).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert!(failure.message.contains("because it took longer than its `time_limit`"), "{failure}");
    // What it left running ends with it, and holds nothing up.
    for script in ["sleep 1000 >/dev/null 2>&1 & echo $!", "sleep 1000 & echo $!"] {
        let output = run(world, &input(&["sh", "-c", script], json!({}))).await.unwrap();
        until(|| !lives(&field(&output, "stdout"))).await;
    }
}

#[tokio::test]
async fn this_machine_is_a_machine() {
    is_a_machine(&World::local(), Value::Null.to_json().parse().unwrap()).await;
}

#[tokio::test]
async fn a_host_behind_ssh_is_a_machine() {
    is_a_machine(&world(shared(), &["worker-1"]), json!("worker-1")).await;
}

#[tokio::test]
async fn a_host_with_another_shell_is_a_machine() {
    let server = Sshd::start(Options { shell: Some("dash".into()), ..Options::default() });
    is_a_machine(&world(&server, &["worker-1"]), json!("worker-1")).await;
}

/// An account whose start-up files say something, as many do.
#[tokio::test]
async fn what_a_shell_says_at_its_start_is_not_the_commands() {
    let shell = r#"sh -c 'echo welcome; echo warning >&2; printf more; exec sh "$@"' sh"#;
    let server = Sshd::start(Options { shell: Some(shell.into()), ..Options::default() });
    is_a_machine(&world(&server, &["worker-1"]), json!("worker-1")).await;
    let broken =
        Sshd::start(Options { shell: Some("sh -c 'echo no >&2; exit 7' sh".into()), ..Options::default() });
    let failure = run(&world(&broken, &["worker-1"]), &reading("worker-1", &["true"])).await.unwrap_err();
    assert!(failure.message.starts_with("on `worker-1`: ") && failure.message.ends_with("no"), "{failure}");
}

#[tokio::test]
async fn a_line_that_is_too_long_is_not_sent() {
    let long = "x".repeat(130 << 10);
    let failure =
        run(&world(shared(), &["worker-1"]), &reading("worker-1", &["true", &long])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Limit);
    assert!(failure.message.len() < 300, "{failure}");
}

/// An unknown host key, and one that is not the known one, are refused before anyone logs in; and neither what the admin's
/// own configuration says nor what it knows changes that.
#[tokio::test]
async fn only_pinned_host_keys_are_accepted() {
    let mut server = Sshd::start(Options::default());
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("known"), server.known_hosts("*")).unwrap();
    let config = format!(
        "StrictHostKeyChecking no\nUserKnownHostsFile {0}/known\nGlobalKnownHostsFile {0}/known\nUpdateHostKeys yes\n",
        elsewhere.path().display()
    );
    let world = world_with(&server, &["worker-1", "worker-2"], &json!({}), &config);
    let known = std::fs::read_to_string(world.folder().join("known_hosts")).unwrap();
    std::fs::write(world.folder().join("known_hosts"), server.known_hosts("worker-2")).unwrap();
    let failure = run(&world, &reading("worker-1", &["true"])).await.unwrap_err();
    assert_eq!(failure.message, "cannot reach the host `worker-1`: its host key is not in `known_hosts`");
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Denied, false));
    assert_eq!(server.logins(), 0);
    std::fs::write(world.folder().join("known_hosts"), &known).unwrap();
    run(&world, &reading("worker-1", &["true"])).await.unwrap();
    assert_eq!(server.logins(), 1);
    server.change_host_key();
    let failure = run(&world, &reading("worker-1", &["true"])).await.unwrap_err();
    assert!(failure.message.contains("it shows another host key than the one in `known_hosts`"), "{failure}");
    assert_eq!((failure.kind, server.logins()), (FailureKind::Denied, 1));
    assert_eq!(
        std::fs::read_to_string(world.folder().join("known_hosts")).unwrap(),
        known,
        "nothing is learned"
    );
}

#[tokio::test]
async fn hosts_that_cannot_be_reached_are_told_apart() {
    let mut server = Sshd::start(Options::default());
    let world_of = |user: Option<&str>| {
        let more = user.map_or(json!({}), |user| json!({ "user": user }));
        world_with(&server, &["worker-1"], &more, "")
    };
    let failure = run(&world_of(Some("no-such-user")), &reading("worker-1", &["true"])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Denied);
    assert!(failure.message.contains("Permission denied"), "{failure}");
    let world = world_of(None);
    server.stop();
    let failure = run(&world, &reading("worker-1", &["true"])).await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Unreachable, false));
    assert!(failure.message.contains("refused"), "{failure}");
    let failure = run(&world, &reading("no-such-host.invalid", &["true"])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable);
    assert!(failure.message.contains("resolve"), "{failure}");
}

#[tokio::test]
async fn one_connection_serves_all_commands_of_both_sides() {
    let server = Sshd::start(Options::default());
    let world = world(&server, &["worker-1"]);
    let input = reading("worker-1", &["echo", "x"]);
    // More at once than the server allows on one connection.
    let many = (0..30).map(|_| run(&world, &input));
    for output in futures_util::future::join_all(many).await {
        assert_eq!(field(&output.unwrap(), "stdout"), "x\n");
    }
    run(&world, &json!({ "target": "nodes", "hosts": "worker-1", "argv": ["true"] })).await.unwrap();
    assert_eq!(server.logins(), 1);
    drop(world);
    // The last one who needs it closes it.
    until(|| server.log().contains("Disconnected from user") || server.log().contains("Connection closed"))
        .await;
}

#[tokio::test]
async fn a_cut_connection_leaves_doubt_and_ends_the_command() {
    let server = Sshd::start(Options::default());
    let world = world(&server, &["worker-1"]);
    let folder = tempfile::tempdir().unwrap();
    for (read_only, in_doubt) in [(false, true), (true, false)] {
        let file = folder.path().join(format!("pids-{read_only}"));
        let script = "echo $$ >>$0; sleep 1000 & echo $! >>$0; wait";
        let mut input = reading("worker-1", &["sh", "-c", script, file.to_str().unwrap()]);
        input["read_only"] = json!(read_only);
        let cut = async {
            until(|| pids(&file).len() == 2).await;
            server.cut();
        };
        let (outcome, ()) = tokio::join!(run(&world, &input), cut);
        let failure = outcome.unwrap_err();
        assert_eq!(failure.message, "the connection to the host `worker-1` was cut");
        assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Unreachable, in_doubt));
        until(|| !pids(&file).iter().any(|pid| lives(pid))).await;
        // The next command has a new one.
        run(&world, &reading("worker-1", &["true"])).await.unwrap();
    }
    assert_eq!(server.logins(), 3);
}

#[tokio::test]
async fn a_dropped_command_ends_with_all_it_started() {
    let world = world(shared(), &["worker-1"]);
    let folder = tempfile::tempdir().unwrap();
    for (name, script) in [
        ("plain", "echo $$ >>$0; (sleep 1000 & echo $! >>$0; wait) & wait"),
        (
            "deaf",
            "trap '' TERM HUP; echo $$ >>$0; sh -c 'trap \"\" TERM; echo $$ >>$0; while :; do sleep 0.1; done' $0",
        ),
        ("input", "echo $$ >>$0; cat & echo $! >>$0; wait; sleep 1000"),
    ] {
        let file = folder.path().join(name);
        let mut input = reading("worker-1", &["sh", "-c", script, file.to_str().unwrap()]);
        input["stdin"] = json!("x");
        tokio::select! {
            outcome = run(&world, &input) => panic!("{name} ended by itself: {outcome:?}"),
            () = until(|| pids(&file).len() == 2) => {}
        }
        until(|| !pids(&file).iter().any(|pid| lives(pid))).await;
    }
}

const KILLED: &str = "FARRIER_TEST_KILLED_CLIENT";

/// Runs twice: as the test, and as the process that the test kills.
#[tokio::test]
async fn a_killed_farrier_leaves_nothing_running_on_the_other_side() {
    if let Some(folder) = std::env::var_os(KILLED) {
        let folder = Path::new(&folder);
        let config = std::fs::read_to_string(folder.join("target.json")).unwrap();
        let world = World::new(&config, |_| ());
        let script = "echo $$ >>$0; sleep 1000 & echo $! >>$0; wait";
        let file = folder.join("pids");
        run(&world, &reading("worker-1", &["sh", "-c", script, file.to_str().unwrap()])).await.unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let shown = folder.path().display();
    std::fs::write(folder.path().join("known_hosts"), shared().known_hosts("worker-1")).unwrap();
    std::fs::write(folder.path().join("ssh_config"), shared().client_config("worker-1")).unwrap();
    let config = json!({ "ssh": {
        "known_hosts": format!("{shown}/known_hosts"), "config": format!("{shown}/ssh_config"), "idle_close": "5s",
    } });
    std::fs::write(folder.path().join("target.json"), config.to_string()).unwrap();
    let mut client = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ssh::tests::a_killed_farrier_leaves_nothing_running_on_the_other_side"])
        .env(KILLED, folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let file = folder.path().join("pids");
    until(|| pids(&file).len() == 2).await;
    client.kill().unwrap();
    client.wait().unwrap();
    until(|| !pids(&file).iter().any(|pid| lives(pid))).await;
}

#[tokio::test]
async fn a_server_that_takes_no_further_command_says_so() {
    let server = Sshd::start(Options { configuration: "MaxSessions 1".into(), ..Options::default() });
    let world = world(&server, &["worker-1"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pids");
    let first = reading("worker-1", &["sh", "-c", "echo $$ >$0; sleep 1000", file.to_str().unwrap()]);
    let mut second = reading("worker-1", &["true"]);
    second["read_only"] = json!(false);
    let more = async {
        until(|| pids(&file).len() == 1).await;
        run(&world, &second).await.unwrap_err()
    };
    tokio::select! {
        outcome = run(&world, &first) => panic!("ended by itself: {outcome:?}"),
        failure = more => {
            assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Conflict, false), "{failure}");
            assert!(failure.message.contains("takes no further command"), "{failure}");
        }
    }
}

#[tokio::test]
async fn the_machine_itself_ends_what_takes_too_long() {
    let world = world(shared(), &["worker-1"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pids");
    let script = "trap '' TERM; echo $$ >>$0; while :; do sleep 0.1; done";
    let mut input = reading("worker-1", &["sh", "-c", script, file.to_str().unwrap()]);
    input["time_limit"] = json!("500ms");
    let failure = run(&world, &input).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert!(!failure.in_doubt && pids(&file).iter().all(|pid| !lives(pid)), "{failure}");
}

#[tokio::test]
async fn nothing_stays_behind_on_the_other_side() {
    let world = world(shared(), &["worker-1"]);
    let mark = format!("stays-{}", std::process::id());
    for _ in 0..20 {
        let input = json!({
            "target": "nodes", "hosts": "worker-1", "argv": ["true"], "env": { "MARK": mark }, "read_only": true,
        });
        run(&world, &input).await.unwrap();
    }
    // The watch has the mark in no variable, but the wrapper's own shell has it in its arguments.
    let left = || {
        let lines = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            String::from_utf8_lossy(&line).contains(&format!("MARK={mark}")).then_some(())
        });
        lines.count()
    };
    until(|| left() == 0).await;
}

#[tokio::test]
async fn many_hosts_are_asked_at_once_and_grouped() {
    let names: Vec<String> = (1..=24).map(|number| format!("worker-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let server = Sshd::start(Options::default());
    let world = world(&server, &names);
    let input = json!({
        "target": "nodes", "select": "worker-[1-24]", "argv": ["echo", "same"], "read_only": true, "batch": 12,
    });
    let output = run(&world, &input).await.unwrap();
    assert_eq!(field(&output, "stdout"), "== worker-[1-24] (24)\nsame\n");
    assert_eq!(server.logins(), 24);
}

#[tokio::test]
async fn facts_and_files_work_through_ssh() {
    let world = world(shared(), &["worker-1"]);
    let output = world.run("host.facts", &json!({ "target": "nodes", "hosts": "worker-1" })).await.unwrap();
    let host = &output.get("hosts").unwrap().as_list().unwrap()[0];
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(field(host, "boot_id"), boot_id.trim());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it's \"a\" $(file)");
    let content = "$(id) 'é' \\ \n\n";
    let input =
        json!({ "target": "nodes", "hosts": "worker-1", "path": path.to_str().unwrap(), "content": content });
    let plan = world.plan("host.file", &input).await.unwrap();
    assert!(!path.exists());
    world.apply("host.file", &input, &plan.changes).await.unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    assert!(world.plan("host.file", &input).await.unwrap().changes.is_empty());
    std::fs::write(&path, "other").unwrap();
    let failure = world.apply("host.file", &input, &plan.changes).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
    std::fs::write(&path, content).unwrap();
    world.undo("host.file", &input, &plan.changes).await.unwrap();
    assert!(!path.exists());
}

/// Only for a boot that is over: then nothing is started again.
#[tokio::test]
async fn a_reboot_that_happened_is_not_asked_for_again() {
    let world = world(shared(), &["worker-1"]);
    let input = json!({ "target": "nodes", "host": "worker-1" });
    let mut plan = world.plan("host.reboot", &input).await.unwrap();
    let before = [("boot_id", Value::text("00000000-0000-0000-0000-000000000000"))];
    plan.changes[0].before = Value::map(before);
    let output = world.apply("host.reboot", &input, &plan.changes).await.unwrap();
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(field(&output, "boot_id"), boot_id.trim());
}

#[tokio::test]
async fn sockets_are_private_and_short() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("known_hosts"), shared().known_hosts("worker-1")).unwrap();
    std::fs::write(folder.path().join("ssh_config"), shared().client_config("worker-1")).unwrap();
    let config: config::SshConfig =
        Value::from_json(r#"{"known_hosts": "known_hosts", "config": "ssh_config"}"#)
            .unwrap()
            .read()
            .unwrap();
    let cx = farrier_action::ConnectCx {
        alias: "nodes".into(),
        base_dir: folder.path().into(),
        now: farrier_action::Now::default(),
        known: farrier_action::SharedKnown::default(),
    };
    let pool = Pool::of(config.settings(config::Side::Read, &cx).unwrap()).unwrap();
    let slot = pool.slot("worker-1");
    let session = pool.session("worker-1", &slot).await.unwrap();
    let socket = session.control_socket();
    assert!(socket.as_os_str().len() < 80, "{socket:?}");
    let above = socket.parent().unwrap().parent().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&above.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    let above = above.to_owned();
    drop((session, slot, pool));
    assert!(!above.exists());
}

/// The shapes of steps that must be accepted.
#[tokio::test]
async fn steps_of_the_worked_example_fit() {
    let mut registry = farrier_action::ActionRegistry::default();
    crate::register(&mut registry).unwrap();
    for (action, step) in [
        (
            "host.run",
            r#"{"target": "nodes", "hosts": "tools-k8s-worker-1", "read_only": true,
                "argv": ["ps", "-eo", "pid,stat,wchan:32,user,etimes,args", "--no-headers"]}"#,
        ),
        ("host.reboot", r#"{"target": "nodes", "host": "tools-k8s-worker-1", "back_within": "15m"}"#),
    ] {
        registry.bind(action, &Value::from_json(step).unwrap()).map(drop).unwrap();
    }
    let outputs = &registry.catalog().actions;
    assert!(outputs["host.run"].output["properties"].get("stdout").is_some());
    assert!(outputs["host.reboot"].output["properties"].get("back_at").is_some());
}

/// The text that the other side gets holds the marks, as the run's own words.
#[test]
fn the_wrapper_is_valid_shell() {
    let node = farrier_action::NodeInfo {
        run: RunId::at(0, [1; 10]),
        node: NodeName::item("a", "it's"),
        attempt: 1,
        effect_id: "e".into(),
    };
    let marks = Marks::of(&node);
    let line = wrapper::command_line(&Command::new(&["true"], &marks), "mark");
    assert!(line.starts_with("exec '/bin/sh' '-c' '"));
    assert!(line.contains(r"'FARRIER_NODE=a[it'\''s]'"), "{line}");
    for shell in ["dash", "bash"] {
        let checked = std::process::Command::new(shell).args(["-n", "-c", &line]).status().unwrap();
        assert!(checked.success());
    }
}
