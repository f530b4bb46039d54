//! Files with the passwords of database accounts, on another host: each has the password whose hash is in the table, whatever
//! is killed, and no password is anywhere else.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use farrier_testkit::sshd::{Options, Sshd};
use farrier_testkit::wait_until;
use serde_json::{Value, json};

use crate::common::{FARRIER, Project, Started};
use crate::far::{behind, kill_helpers, roots_file};

/// New accounts of a small Toolforge: where their files are, and whose.
const NEW: [(&str, &str, u32); 3] = [
    ("homes/edit-pulse/replica.my.cnf", "tools.edit-pulse", 0),
    ("user_homes/chidi/replica.my.cnf", "chidi", 0),
    ("paws_homes/4712/.my.cnf", "4712", 52_771),
];

const RUN: [&str; 5] = ["run", "maintain-dbusers-populate", "--env", "dbusers", "--yes"];
const TABLE: &str = ".farrier/dbusers/accounts.sqlite";

/// The environment `dbusers`, with all homes on another host.
fn project(sshd: &Sshd, helper: impl FnOnce(&Project) -> Value) -> Project {
    assert!(rustix::process::geteuid().is_root(), "this test gives files to other accounts: run it as root");
    let project = Project::demo();
    let folder = |name: &str| format!("environments/dbusers/{name}");
    let roots = [("tool_homes", "homes"), ("user_homes", "user_homes"), ("paws_homes", "paws_homes")];
    let roots = roots.map(|(root, name)| (root, folder(name)));
    roots_file(&project, &roots.each_ref().map(|(root, name)| (*root, name.as_str())));
    let homes = behind(sshd, &project, &helper(&project));
    let environment = project.read("environments/dbusers.yaml");
    let lines: Vec<String> = environment
        .lines()
        .map(|line| match line.trim_start().split_once(": { kind: files") {
            Some((alias, _)) => format!("  {alias}: {homes}"),
            None => line.to_owned(),
        })
        .collect();
    assert_ne!(lines.join("\n") + "\n", environment);
    project.write("environments/dbusers.yaml", &lines.join("\n"));
    project
}

/// Every password, when each file has the one of its row.
#[track_caller]
fn passwords(project: &Project) -> Vec<String> {
    NEW.map(|(path, name, owner)| {
        let file = project.path("environments/dbusers").join(path);
        let text = fs::read_to_string(&file).unwrap();
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.nlink()), (0o440, 1), "{path}");
        if owner > 0 {
            assert_eq!((metadata.uid(), metadata.gid()), (owner, owner), "{path}");
        }
        let password = text.lines().find_map(|line| line.strip_prefix("password = ")).unwrap().to_owned();
        assert_eq!(password.len(), 16, "{text}");
        let select = format!("SELECT password_hash FROM account WHERE username = '{name}'");
        assert_eq!(project.sqlite(TABLE, &select), [hash(&password)], "the row of {name}");
        password
    })
    .into()
}

/// What the server's own `PASSWORD` makes of it, in small letters.
fn hash(password: &str) -> String {
    let script = "import hashlib, sys
print('*' + hashlib.sha1(hashlib.sha1(sys.argv[1].encode()).digest()).hexdigest())";
    let output = Command::new("python3").args(["-c", script, password]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The passwords are in the files alone: nothing that the project keeps, prints or starts has them.
#[track_caller]
fn is_kept_secret(project: &Project, said: &str) {
    let passwords = passwords(project);
    let stored = ["farrier.db", "farrier.db-wal"]
        .map(|file| fs::read(project.path(".farrier").join(file)).unwrap_or_default());
    let log = project.farrier(&["logs", &project.last_run(), "-o", "json"]).expect(0).out;
    for password in &passwords {
        let holds = |bytes: &[u8]| bytes.windows(password.len()).any(|part| part == password.as_bytes());
        assert!(!stored.iter().any(|bytes| holds(bytes)), "a password is stored");
        assert!(!said.contains(password) && !log.contains(password), "a password is shown");
    }
}

#[test]
fn each_account_has_its_file_on_the_other_host() {
    let sshd = Sshd::start(Options::default());
    let project =
        project(&sshd, |project| json!([FARRIER, "files-helper", "--roots", project.path("roots")]));
    let plan =
        project.farrier(&["plan", "maintain-dbusers-populate", "--env", "dbusers", "-o", "json"]).expect(0);
    assert!(plan.out.contains("a new one, in tool_homes/edit-pulse/replica.my.cnf"), "{plan}");
    assert!(sshd.logins() > 0, "it was not asked over SSH: {}", sshd.log());
    for (path, ..) in NEW {
        assert!(!project.path("environments/dbusers").join(path).exists(), "a plan made {path}");
    }
    // All that is executed, on both sides, and all that sshd says.
    let trace = project.path("executed");
    let mut command = Command::new("strace");
    let made = project.command(&[]);
    command
        .args(["-f", "-qqq", "-s", "100000", "-e", "trace=execve", "-o"])
        .arg(&trace)
        .arg(FARRIER)
        .args(RUN);
    command.current_dir(made.get_current_dir().unwrap()).env("USER", "tester");
    let ran = Started::from(command).end().expect(0);
    let executed = project.read("executed");
    assert!(executed.contains("files-helper"), "{executed}");
    is_kept_secret(&project, &format!("{ran}{executed}{}", sshd.log()));
    assert!(!project.path("environments/dbusers/homes/nobody").exists());
    // The second time there is nothing to do.
    let before = passwords(&project);
    project.farrier(&RUN).expect(0);
    assert_eq!(passwords(&project), before);
}

/// Calls the helper; kills it once, when it is to make a file of credentials: before it begins, as it is to name the file, or
/// when the file is there and nobody knows.
fn deadly(project: &Project, when: &str) -> Value {
    let script = format!(
        "#!/usr/bin/python3
import os, subprocess, sys, threading
folder, helper = {folder:?}, [{FARRIER:?}, 'files-helper', '--roots', {roots:?}]
line = b''
while not line.endswith(b'\\n'):
    more = os.read(0, 1)
    if not more:
        sys.exit(1)
    line += more
once = b',\"job\":{{\"make_secret\"' in line[:40] and not os.path.exists(folder + '/once')
if once:
    open(folder + '/once', 'w').close()
if once and {when:?} == 'before':
    sys.exit(1)
if once and {when:?} == 'naming':
    helper = ['strace', '-f', '-qqq', '-o', '/dev/null', '-e', 'trace=renameat2', '-e', 'inject=renameat2:signal=KILL'] + helper
running = subprocess.Popen(helper, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def pump():
    try:
        running.stdin.write(line)
        running.stdin.flush()
        while more := os.read(0, 65536):
            running.stdin.write(more)
            running.stdin.flush()
        running.stdin.close()
    except BrokenPipeError:
        pass
threading.Thread(target=pump, daemon=True).start()
answer = running.stdout.read()
running.wait()
if not (once and {when:?} == 'after'):
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
os._exit(1 if once else 0)
",
        folder = project.path("").display().to_string(),
        roots = project.path("roots").display().to_string(),
    );
    let path = project.path("deadly");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    json!([path])
}

#[test]
fn a_helper_that_dies_leaves_no_file_without_a_row() {
    let sshd = Sshd::start(Options::default());
    // Side by side, since each waits for its logins most of the time.
    std::thread::scope(|all| {
        for when in ["before", "naming", "after"] {
            let sshd = &sshd;
            all.spawn(move || {
                let project = project(sshd, |project| deadly(project, when));
                let ran = project.farrier(&RUN);
                assert!(project.path("once").exists(), "{when}: {ran}");
                // Whatever became of that run, the next one finds what is there.
                project.farrier(&RUN).expect(0);
                is_kept_secret(&project, &ran.to_string());
            });
        }
    });
}

#[test]
fn farrier_that_is_killed_leaves_no_file_without_a_row() {
    let sshd = Sshd::start(Options::default());
    let helper = |project: &Project| json!([FARRIER, "files-helper", "--roots", project.path("roots")]);
    for (path, ..) in NEW {
        let project = project(&sshd, helper);
        let file = project.path("environments/dbusers").join(path);
        let mut run = Started::from(project.command(&RUN));
        wait_until("the file is there", || file.exists());
        let _ = run.child.kill();
        let ended = run.end();
        wait_until("no helper is left", || kill_helpers(&project) == 0);
        let runs = project.farrier(&["runs", "-n", "1", "-o", "json"]).expect(0).json();
        if runs[0]["state"] != "succeeded" {
            project.farrier(&["resume", runs[0]["id"].as_str().unwrap()]).expect(0);
        }
        is_kept_secret(&project, &ended.to_string());
        assert_eq!(project.sqlite(TABLE, "SELECT COUNT(*) FROM account"), ["9"]);
    }
}
