//! Programs that are not what they were, and programs that do not want to behave.

#![expect(clippy::unwrap_used, reason = "tests panic")]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use common::{Place, lives};
use farrier_confine::group::Group;
use farrier_model::FailureKind;
use farrier_testkit::wait_until;
use serde_json::json;

/// The plan's failure, of a program that must not even have begun.
async fn refused(place: &Place) -> String {
    let failure = place.plan().await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Denied, "{failure}");
    assert_eq!(place.read("began"), "", "it was started all the same");
    failure.message
}

#[tokio::test]
async fn a_program_that_is_not_the_pinned_one_is_not_started() {
    let script = "note('began', 1); planned()";
    let place = Place::script(script);
    place.plan().await.unwrap();
    assert_eq!(place.read("began"), "1\n", "the refusals below are for their own reasons");

    let place = Place::script(script);
    let mut file = fs::OpenOptions::new().append(true).open(place.path("program")).unwrap();
    file.write_all(b"\nnote('began', 2)\n").unwrap();
    assert!(refused(&place).await.contains("the environment says"));

    let place = Place::script(script);
    fs::set_permissions(place.path("program"), fs::Permissions::from_mode(0o775)).unwrap();
    assert!(refused(&place).await.contains("others than its owner can write to it"));

    let place = Place::script(script);
    fs::rename(place.path("program"), place.path("real")).unwrap();
    symlink(place.path("real"), place.path("program")).unwrap();
    assert!(refused(&place).await.contains("symlink"));
}

const SECRET: &str = "correct horse/battery+staple";

/// A script that gets the secret, in a place where the environment has it.
fn secretive(script: &str) -> Place {
    let asks = "say({'secret': 'token'}); token = json.loads(sys.stdin.readline())['value']\n";
    let place = Place::script(&format!("import base64, urllib.parse\n{asks}{script}"));
    fs::write(place.path("token"), SECRET).unwrap();
    fs::set_permissions(place.path("token"), fs::Permissions::from_mode(0o600)).unwrap();
    let file = place.path("token");
    place.with("secrets", json!({ "token": { "file": file } }))
}

#[tokio::test]
async fn secrets_do_not_come_out_again() {
    // It does get it; only a digest says so.
    let place = secretive("import hashlib; planned(hashlib.sha256(token.encode()).hexdigest())");
    let output = place.plan().await.unwrap().output.unwrap().to_json();
    assert!(output.contains(&hex::encode(<sha2::Sha256 as sha2::Digest>::digest(SECRET))), "{output}");

    let parts = ["correct horse", "battery", "staple", "correct%20horse"].map(str::to_owned);
    let coded = base64::engine::general_purpose::STANDARD.encode(SECRET);
    let inner = &coded[8..coded.len() - 8];
    for script in [
        "planned(token)",
        "planned({token: [1, {'x': 'a' + token}]}, notes=[token])",
        "planned(base64.b64encode(('user:' + token).encode()).decode())",
        "planned(urllib.parse.quote(token))",
        "planned(token.encode().hex())",
        "say({'failed': {'kind': 'denied', 'message': 'not with ' + token, 'help': token}})",
        "print(token, file=sys.stderr, flush=True); sys.exit(1)",
        "print('x' * 1000000 + token + 'y' * 400, file=sys.stderr, flush=True); sys.exit(1)",
        "print('no json ' + token, flush=True)",
        "say({token: 1})",
        "say({'secret': token})",
    ] {
        let place = secretive(script);
        let shown = format!("{:?}", place.plan().await);
        let hexed = hex::encode(SECRET);
        for piece in parts.iter().map(String::as_str).chain([inner, &hexed]) {
            assert!(!shown.contains(piece), "{script}: `{piece}` in {shown}");
        }
    }
}

/// The number of a process, once it has told it.
fn number_in(place: &Place, name: &str) -> String {
    wait_until("it is told", || place.read(name).ends_with('\n'));
    place.read(name)
}

/// Only the end of what a program says is kept, and less of it is shown. Neither cut leaves a part of a secret, wherever the
/// secret lies.
#[tokio::test]
async fn no_cut_leaves_a_part_of_a_secret() {
    let told = 64 << 10;
    let shown = 470..=502;
    // Here the secret crosses the place where the kept text begins, and the rest is blank.
    let kept = (told - 30..=told + 2).step_by(4);
    let texts = shown.map(|after| format!("token + 'y' * {after}"));
    for text in texts
        .chain(kept.map(|after| format!("'x' * {} + token + ' ' * {after}", 3 * told - after - SECRET.len())))
    {
        let place = secretive(&format!("sys.stderr.write({text}); sys.stderr.flush(); sys.exit(1)"));
        let failure = place.plan().await.unwrap_err();
        assert!(failure.message.contains("ended without an answer"), "{failure}");
        for piece in SECRET.as_bytes().windows(4) {
            let piece = std::str::from_utf8(piece).unwrap();
            assert!(!failure.message.contains(piece), "{text}: `{piece}` in {failure}");
        }
    }
}

#[tokio::test]
async fn secrets_are_given_to_whom_they_are_for() {
    let place = secretive("planned()");
    let file = place.path("token");
    let place = place.with("secrets", json!({})).with("write_secrets", json!({ "token": { "file": file } }));
    let failure = place.plan().await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Denied);
    assert!(
        failure.message.contains("asks for the secret `token`, which the environment does not give"),
        "{failure}"
    );
    let place = secretive("planned()");
    fs::write(place.path("token"), "short").unwrap();
    assert!(place.plan().await.unwrap_err().message.contains("could not be kept out"));
}

#[tokio::test]
async fn what_a_program_leaves_behind_is_over_before_its_answer_counts() {
    let place = Place::script(
        "
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        sys.stdout = None
        for descriptor in (0, 1, 2): os.close(descriptor)
        note('pids', os.getpid())
        os.execve('/bin/sleep', ['sleep', '1000'], {})
    os._exit(0)
while not os.path.exists(folder + '/pids') or os.stat(folder + '/pids').st_size == 0: time.sleep(0.01)
planned()
",
    );
    place.plan().await.unwrap();
    let pid = place.read("pids");
    assert!(!pid.is_empty(), "there was no daemon");
    assert!(!lives(&pid), "the daemon outlived the step");
}

#[tokio::test]
async fn a_program_that_ignores_signals_is_over_when_its_time_is() {
    let place = Place::script(
        "
import signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
note('pids', os.getpid())
while True: time.sleep(0.1)
",
    )
    .with("timeout", json!("10s"));
    let failure = place.apply().await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Timeout, true), "{failure}");
    let pid = place.read("pids");
    assert!(!pid.is_empty(), "it had not begun");
    assert!(!lives(&pid), "it outlived the step");
}

#[tokio::test]
async fn a_step_that_is_cancelled_ends_its_program() {
    let place = Place::script("note('pids', os.getpid())\nwhile True: time.sleep(0.1)");
    let path = place.path("pids");
    let begun = tokio::task::spawn_blocking(move || {
        wait_until("the program has begun", || {
            fs::read_to_string(&path).is_ok_and(|text| text.ends_with('\n'))
        });
    });
    tokio::select! {
        result = place.plan() => panic!("ended by itself: {result:?}"),
        _ = begun => {}
    }
    let pid = place.read("pids");
    tokio::task::spawn_blocking(move || wait_until("the program is over", || !lives(&pid))).await.unwrap();
}

/// The most memory that this process has ever used, in bytes.
fn high_water() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn endless_output_does_not_become_memory() {
    for script in [
        "while True: sys.stdout.write('x' * 65536)",
        "while True: sys.stdout.write(json.dumps({'secret': 'x' * 60000}) + '\\n')",
        "\nplanned()\nwhile True: sys.stdout.write('x' * 65536)",
    ] {
        let place = Place::script(script).with("max_output", json!(1 << 20));
        let before = high_water();
        let failure = place.apply().await.unwrap_err();
        assert!(failure.in_doubt, "{script}: {failure}");
        assert!(matches!(failure.kind, FailureKind::Limit | FailureKind::Denied), "{script}: {failure}");
        assert!(high_water() - before < 64 << 20, "{script}");
    }
    // What is said beside the protocol may be long, and is not kept.
    let script = "
import subprocess
subprocess.run(['dd', 'if=/dev/zero', 'of=/dev/stderr', 'bs=1M', 'count=10240', 'status=none'], check=True)
planned('done')";
    let before = high_water();
    Place::script(script).plan().await.unwrap();
    assert!(high_water() - before < 64 << 20, "ten gigabytes on standard error");
}

#[tokio::test]
async fn without_a_whole_answer_a_change_is_in_doubt() {
    for (script, kind, expected) in [
        ("print('{no json', flush=True)", FailureKind::Refused, "no line of the protocol"),
        ("print('[' * 100000, flush=True)", FailureKind::Refused, "no line of the protocol"),
        ("sys.stdout.buffer.write(b'\\xff\\n')", FailureKind::Refused, "no text"),
        ("pass", FailureKind::Exit, "ended without an answer (exit status: 0)"),
        ("sys.exit(3)", FailureKind::Exit, "ended without an answer (exit status: 3)"),
        (
            "sys.stdout.write('{\"applied\"'); sys.stdout.flush(); os.kill(os.getpid(), 9)",
            FailureKind::Exit,
            "in the middle of its answer to `apply` (exit status: 137)",
        ),
        ("say({'applied': {}}); sys.exit(1)", FailureKind::Exit, "ended badly after its answer"),
        ("say({'applied': {}}); say({'applied': {}})", FailureKind::Refused, "says more after its answer"),
        ("say({'undone': {}})", FailureKind::Refused, "asked to `apply` and answered `undone`"),
        ("say({'failed': {'kind': 'guard', 'message': ''}})", FailureKind::Refused, "not its own"),
        ("sys.stderr.write('the disk is full'); sys.exit(1)", FailureKind::Exit, "it said: the disk is full"),
    ] {
        let failure = Place::script(script).apply().await.unwrap_err();
        assert_eq!((failure.kind, failure.in_doubt), (kind, true), "{script}: {failure}");
        assert!(failure.message.contains(expected), "{script}: {failure}");
    }
    // What it says itself is believed.
    let failure =
        Place::script("say({'failed': {'kind': 'drift', 'message': 'it moved'}})").apply().await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Drift, false));
    // One that stays after its answer is ended, and its answer counts.
    Place::script("say({'applied': {}})\nwhile True: time.sleep(1)").apply().await.unwrap();
}

#[tokio::test]
async fn a_program_gets_no_more_than_its_share() {
    let script = "
import resource, socket
def attempt(work):
    try:
        work()
        return 'done'
    except (OSError, MemoryError) as error:
        return type(error).__name__
status = open('/proc/self/status').read()
planned({
    'privileges': 'NoNewPrivs:\\t1' in status,
    'core': resource.getrlimit(resource.RLIMIT_CORE),
    'files': resource.getrlimit(resource.RLIMIT_NOFILE),
    'memory': attempt(lambda: bytearray(300 << 20)),
    'inet': attempt(lambda: socket.socket(socket.AF_INET)),
    'netlink': attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    'unix': attempt(lambda: socket.socket(socket.AF_UNIX)),
})
";
    let limited = || Place::script(script).with("memory", json!(200 << 20)).with("open_files", json!(64));
    let found = attempts(limited()).await;
    assert_eq!(found["privileges"], true);
    assert_eq!(found["core"], json!([0, 0]));
    assert_eq!(found["files"], json!([64, 64]));
    assert_eq!(found["memory"], "MemoryError");
    assert_eq!((&found["inet"], &found["netlink"]), (&json!("PermissionError"), &json!("PermissionError")));
    assert_eq!(found["unix"], "PermissionError");
    let output = limited().with("network", json!(true)).plan().await.unwrap().output.unwrap().to_json();
    assert!(output.contains(r#""inet":"done""#), "{output}");
}

/// What became of each attempt, by its name.
async fn attempts(place: Place) -> serde_json::Value {
    let output = place.plan().await.unwrap().output.unwrap().to_json();
    serde_json::from_str::<serde_json::Value>(&output).unwrap()["value"].clone()
}

#[tokio::test]
async fn a_program_finds_no_files_but_the_machines_and_its_own() {
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("file"), "secret").unwrap();
    let listener = std::os::unix::net::UnixListener::bind(other.path().join("socket")).unwrap();
    let script = format!(
        "
import socket, ssl, tempfile
other = '{}'
def attempt(work):
    try:
        return work() or 'done'
    except OSError as error:
        return type(error).__name__
with tempfile.NamedTemporaryFile() as file: own = file.name
planned({{
    'reads': attempt(lambda: open(other + '/file').read()),
    'lists': attempt(lambda: len(os.listdir(other))),
    'writes': attempt(lambda: open(other + '/file', 'a').close()),
    'moves': attempt(lambda: os.rename(folder + '/program', other + '/program')),
    'reaches': attempt(lambda: socket.socket(socket.AF_UNIX).connect(other + '/socket')),
    'shadow': attempt(lambda: open('/etc/shadow').close()),
    'looks': attempt(lambda: open('/proc/%d/environ' % os.getppid(), 'rb').read() and 'read'),
    'kills': attempt(lambda: os.kill(os.getppid(), 0)),
    'works': attempt(lambda: note('file', 1)),
    'null': attempt(lambda: open('/dev/null', 'w').close()),
    'temporary': os.path.dirname(own) == os.environ['TMPDIR'] and not os.path.exists(own),
}})
",
        other.path().display()
    );
    let refused = json!("PermissionError");
    let found = attempts(Place::script(&script)).await;
    for what in ["reads", "lists", "writes", "moves", "reaches", "shadow", "looks", "kills"] {
        assert_eq!(found[what], refused, "{what}: {found}");
    }
    assert_eq!(
        (&found["works"], &found["null"], &found["temporary"]),
        (&json!("done"), &json!("done"), &json!(true))
    );

    let found = attempts(Place::script(&script).with("reads", json!([other.path()]))).await;
    assert_eq!((&found["reads"], &found["writes"]), (&json!("secret"), &refused));
    let mut place = Place::script(&script).with("unconfined", json!(true));
    place.config.as_object_mut().unwrap().remove("writes");
    let found = attempts(place).await;
    assert_eq!(
        (&found["reads"], &found["writes"], &found["reaches"]),
        (&json!("secret"), &json!("done"), &refused)
    );
    drop(listener);
}

#[tokio::test]
async fn memory_is_counted_for_all_that_a_program_starts() {
    let each = "
kept = bytearray(20 << 20)
for _ in range(COUNT):
    if os.fork() == 0:
        WORK
        note('pids', os.getpid())
        time.sleep(SLEEP)
        os._exit(0)
for _ in range(COUNT): os.wait()
planned()
";
    let script = |count: &str, work: &str, sleep: &str| {
        let script = each.replace("COUNT", count).replace("WORK", work).replace("SLEEP", sleep);
        Place::script(&script).with("memory", json!(128 << 20))
    };
    // None of them has too much.
    let place = script("8", "more = bytearray(os.urandom(1 << 20)) * 40", "600");
    let failure = place.apply().await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Limit, true), "{failure}");
    assert!(
        failure.message.ends_with("used more than 134217728 bytes of memory in all, and was ended"),
        "{failure}"
    );
    assert!(!place.read("pids").lines().any(lives), "some outlived the step");
    // What they have in common counts once.
    script("20", "pass", "0.5").plan().await.unwrap();
}

/// Bounded by itself: 256 processes in all, of which each says its number and sleeps.
const BOMB: &str = "
for _ in range(8): os.fork()
note('pids', os.getpid())
time.sleep(600)
";

#[tokio::test]
async fn a_program_that_multiplies_is_ended_with_all_that_it_started() {
    let threads = "
import threading
for _ in range(100): threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
note('pids', os.getpid())
time.sleep(600)
";
    for script in [BOMB, threads] {
        let place = Place::script(script).with("processes", json!(32)).with("timeout", json!("5m"));
        let failure = place.apply().await.unwrap_err();
        assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Limit, true), "{failure}");
        assert!(
            failure.message.ends_with("had more than 32 processes and threads at once, and was ended"),
            "{failure}"
        );
        assert!(!place.read("pids").lines().any(lives), "some outlived the step");
    }
    // As many as it may have are no trouble.
    let few = "
children = []
for _ in range(20):
    child = os.fork()
    if child == 0:
        time.sleep(0.2)
        os._exit(0)
    children.append(child)
for child in children: os.waitpid(child, 0)
planned(len(children))
";
    let output =
        Place::script(few).with("processes", json!(32)).plan().await.unwrap().output.unwrap().to_json();
    assert!(output.contains("20"), "{output}");
}

#[tokio::test]
async fn a_program_that_takes_memory_or_files_without_end_fails_by_itself() {
    let hog = "kept = []\nwhile True: kept.append(bytearray(8 << 20))";
    let failure = Place::script(hog).with("memory", json!(128 << 20)).apply().await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Exit, true), "{failure}");
    assert!(failure.message.contains("ended without an answer (exit status: 1); it said: "), "{failure}");
    assert!(failure.message.ends_with("MemoryError"), "{failure}");
    let files = "kept = []\nwhile True: kept.append(open('/dev/null'))";
    let failure = Place::script(files).with("open_files", json!(64)).apply().await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Exit, true), "{failure}");
    assert!(failure.message.contains("Too many open files"), "{failure}");
}

/// A runner as Farrier starts it, whose program has its request.
fn runner(place: &Place) -> Child {
    let order = json!({
        "program": place.config["program"], "sha256": place.config["sha256"], "memory": 1 << 30, "open_files": 256,
        "processes": 64, "processor_seconds": 600, "network": false, "reads": [], "writes": [place.path("")],
        "unconfined": false,
    });
    let runner = Command::new(env!("CARGO_BIN_EXE_farrier-plugin-runner"))
        .arg(order.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let request = json!({ "settings": { "folder": place.path("") } });
    writeln!(runner.stdin.as_ref().unwrap(), "{request}").unwrap();
    runner
}

/// A daemon that has left its parent and its environment is not found by what it was. It is by its control group.
#[test]
fn a_runner_that_is_killed_leaves_nothing_to_the_next_one() {
    if Group::make().is_none_or(|group| !group.remove()) {
        eprintln!("NOT TESTED, since this process may make no groups (cgroup v2)");
        return;
    }
    let place = Place::script(
        "
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        note('daemon', os.getpid())
        os.execve('/bin/sleep', ['sleep', '1000'], {})
    os._exit(0)
os.wait()
note('first', os.getpid())
while True: time.sleep(0.1)
",
    );
    let mut runner = runner(&place);
    let pids = ["first", "daemon"].map(|name| number_in(&place, name));
    let alive = pids.each_ref().map(|pid| lives(pid));
    assert_eq!(alive, [true; 2], "{pids:?}");
    runner.kill().unwrap();
    runner.wait().unwrap();
    farrier_plugin_external::runner::sweep();
    assert!(!pids.iter().any(|pid| lives(pid)), "{pids:?} outlived their runner");
}

/// As when Farrier is killed: nobody reads what the program says.
#[test]
fn a_program_ends_when_nobody_hears_it() {
    let place = Place::script("say({'pid': os.getpid()})\nwhile True: time.sleep(0.1)");
    let mut runner = runner(&place);
    let mut said = String::new();
    let mut out = BufReader::new(runner.stdout.take().unwrap());
    out.read_line(&mut said).unwrap();
    let pid = serde_json::from_str::<serde_json::Value>(&said).unwrap()["pid"].to_string();
    assert!(lives(&pid));
    drop(out);
    runner.wait().unwrap();
    assert!(!lives(&pid));
}
