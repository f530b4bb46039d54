//! Whole steps by the helper, and the helper's own life.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use farrier_testkit::sshd::{Options, Sshd};
use farrier_testkit::wait_until;
use serde_json::{Value, json};

use crate::common::{FARRIER, Project};
use crate::far::{behind, helper_of, roots_file};

const RUNBOOK: &str = "runbook: retire
summary: Archive a home, read the archive back, then delete the home
owner: testers
risk: destructive
targets: { homes: files }
steps:
  size:
    uses: files.usage
    with: { target: homes, root: tool_homes, path: [foxes] }
    expect: [{ that: result.exists, otherwise: there is no home }]
  archive:
    uses: files.archive
    needs: [size]
    with:
      target: homes
      source: { root: tool_homes, path: [foxes], owner: 52503 }
      into: { root: archives, path: [foxes.tgz], if_exists: fail }
    undo: restore
  checked:
    uses: files.check_archive
    with: { target: homes, archive: \"${ steps.archive.file }\", manifest: \"${ steps.archive.manifest }\" }
  delete:
    uses: files.delete_tree
    needs: [checked]
    commit_point: true
    with:
      target: homes
      tree: { root: tool_homes, path: [foxes] }
      archived_as: ${ steps.checked.sha256 }
    undo: none
  told:
    uses: files.write
    needs: [delete]
    with: { target: homes, file: { root: archives, path: [foxes.txt] }, content: archived, mode: \"0600\" }
    undo: restore
outputs:
  entries: ${ steps.archive.manifest.entries }
  not_stored: ${ steps.archive.manifest.not_stored }
  snapshot: ${ steps.archive.manifest.snapshot | default(none) }
";

/// A home of another account, and a project whose files are behind a helper.
pub(crate) fn project() -> Project {
    assert!(rustix::process::geteuid().is_root(), "this test gives files to other accounts: run it as root");
    let project = Project::new();
    for folder in ["world/homes/foxes/data", "world/archives"] {
        fs::create_dir_all(project.path(folder)).unwrap();
    }
    fs::write(project.path("world/homes/foxes/data/text"), "the owner's own").unwrap();
    symlink("/etc/shadow", project.path("world/homes/foxes/shadow")).unwrap();
    for path in ["world/homes/foxes", "world/homes/foxes/data", "world/homes/foxes/data/text"] {
        chown(project.path(path), Some(52503), Some(52503)).unwrap();
    }
    roots_file(&project, &[("tool_homes", "world/homes"), ("archives", "world/archives")]);
    project.write("runbooks/retire.yaml", RUNBOOK);
    project.environment(&json!({ "homes": { "kind": "files", "via": { "helper": helper_of(&project) } } }));
    project
}

/// The deleted home, unpacked by its owner: the superuser is refused.
fn comes_back(project: &Project) {
    let archive = project.path("world/archives/foxes.tgz");
    let folder = project.path("world/restored");
    fs::create_dir(&folder).unwrap();
    chown(&folder, Some(52503), Some(52503)).unwrap();
    for folder in [project.path(""), project.path("world")] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // The program may lie where only the superuser looks.
    let farrier = folder.join("farrier");
    fs::copy(FARRIER, &farrier).unwrap();
    let unpack = |owner: u32| {
        let mut command = std::process::Command::new(&farrier);
        command.args(["unpack", "-", "--into", "foxes"]).current_dir(&folder).uid(owner).gid(owner);
        command.stdin(fs::File::open(&archive).unwrap());
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, _, refused) = unpack(0);
    assert_eq!(code, Some(1), "{refused}");
    assert!(refused.contains("not unpacked by the superuser") && refused.contains("sudo -u"), "{refused}");
    let (code, told, error) = unpack(52503);
    assert_eq!(code, Some(0), "{error}");
    assert!(told.contains("foxes: 4 entries of `tool_homes/foxes`, which belonged to 52503"), "{told}");
    let text = folder.join("foxes/foxes/data/text");
    assert_eq!(fs::read_to_string(&text).unwrap(), "the owner's own");
    assert_eq!(fs::metadata(&text).unwrap().uid(), 52503);
}

#[test]
fn a_home_is_archived_and_deleted_by_the_helper() {
    let project = project();
    project.farrier(&["check"]).expect(0);
    project.farrier(&["plan", "retire", "--env", "test"]).expect(0).says("archives/foxes.tgz");
    assert!(project.path("world/homes/foxes/data/text").exists());
    project.farrier(&["run", "retire", "--env", "test", "--yes"]).expect(0);
    assert!(!project.path("world/homes/foxes").exists());
    assert!(project.path("world/archives/foxes.tgz").exists());
    assert_eq!(project.read("world/archives/foxes.txt"), "archived");
    comes_back(&project);
}

#[test]
fn a_helper_that_is_not_there_changes_nothing() {
    let project = project();
    project.environment(&json!({ "homes": { "kind": "files", "via": { "helper": "/nowhere/farrier" } } }));
    let run = project.farrier(&["run", "retire", "--env", "test", "--yes"]);
    assert_ne!(run.code, Some(0));
    assert!(format!("{}{}", run.out, run.err).contains("cannot start the files helper `/nowhere/farrier`"));
    assert!(project.path("world/homes/foxes/data/text").exists());
}

/// A helper, and both ends of its talk.
struct Helper {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Helper {
    fn start(roots: &PathBuf) -> Helper {
        let mut child = std::process::Command::new(FARRIER)
            .args(["files-helper", "--roots"])
            .arg(roots)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Helper { child, stdin, stdout }
    }

    fn say(&mut self, text: &str) {
        // One that has ended already says so in its answer.
        let _ = self.stdin.as_mut().unwrap().write_all(text.as_bytes());
    }

    /// The answer, empty when there is none, and how it ended.
    fn hear(mut self) -> (String, Option<i32>) {
        let mut answer = String::new();
        self.stdout.read_line(&mut answer).unwrap();
        drop(self.stdin.take());
        (answer, self.child.wait().unwrap().code())
    }
}

fn request(job: &str, wanted: &Value) -> String {
    format!("{}\n", json!({ "version": 3, "job": { job: wanted } }))
}

fn plan(input: &Value) -> Value {
    json!({
        "phase": "plan", "input": input, "run": "00000000-0000-7000-8000-000000000000", "node": "size",
        "attempt": 1, "effect": "x",
    })
}

#[test]
fn a_helper_does_what_its_own_file_allows_and_nothing_else() {
    let project = project();
    let roots = project.path("roots");
    let home = json!({ "target": "homes", "root": "tool_homes", "path": ["foxes"] });
    let mut helper = Helper::start(&roots);
    helper.say(&request("usage", &plan(&home)));
    let (answer, code) = helper.hear();
    assert!(answer.contains("\"exists\":true"), "{answer}");
    assert_eq!(code, Some(0));
    let other = |field: &str, value: Value| {
        let mut other = home.clone();
        other[field] = value;
        other
    };
    let reading = |root: &str| {
        json!({
            "reading": {
                "root": root, "parallel": 1, "timeout": { "secs": 5, "nanos": 0 }, "max_bytes": 100,
                "max_total_bytes": 100,
            },
            "shared": [["text"]],
        })
    };
    let making = |path: Value| json!({ "target": "homes", "place": { "root": "archives", "path": path }, "effect": "e" });
    let secret = |path: Value| json!([{ "place": { "root": "tool_homes", "path": path }, "owner": 1 }]);
    for (job, wanted, expected) in [
        ("usage", plan(&other("root", json!("etc"))), "there is no root `etc`"),
        ("usage", plan(&other("root", json!("/etc"))), "there is no root `/etc`"),
        ("usage", plan(&other("path", json!(["..", "archives"]))), "`..`"),
        ("usage", plan(&other("more", json!(true))), "more"),
        ("exec", plan(&home), "unknown variant `exec`"),
        ("read_many", reading("etc"), "there is no root `etc`"),
        ("with_digest", json!({ "root": "etc", "sha256": "00" }), "there is no root `etc`"),
        ("deposited", making(json!(["..", "x"])), "`..`"),
        ("deposit", making(json!([".farrier-private", "x"])), "no path leads there"),
        ("withdraw", making(json!([])), "no segments"),
        ("look_at_secrets", secret(json!(["..", "etc", "shadow"])), "`..`"),
        ("look_at_secrets", secret(json!(["foxes", "shadow"])), "there is a link on the way"),
    ] {
        let mut helper = Helper::start(&roots);
        helper.say(&request(job, &wanted));
        // A body without anything in it.
        helper.say("\0\0\0\0");
        let (answer, _) = helper.hear();
        assert!(answer.contains(expected), "{job} {wanted}: {answer}");
        assert!(!answer.contains("root:"), "{job} {wanted}: {answer}");
    }
    for (frame, expected) in [
        ("[[\"../archives\",[]]]", "`..`"),
        ("[[\".farrier-private\",[]]]", "no path leads there"),
        ("[[\"foxes\",[[\"shadow\"]]]]", "too few or too many places"),
        ("7", "these are no items"),
    ] {
        let mut helper = Helper::start(&roots);
        helper.say(&request("read_many", &reading("tool_homes")));
        helper.say(&format!("\0\0\0{}{frame}", char::from(u8::try_from(frame.len()).unwrap())));
        helper.say("\0\0\0\0");
        let (answer, _) = helper.hear();
        assert!(answer.starts_with("{\"failed\":") && answer.contains(expected), "{frame}: {answer}");
    }
    let mut helper = Helper::start(&roots);
    helper.say("{\"version\": 1, \"verb\": \"usage\"}\n");
    let (answer, _) = helper.hear();
    assert!(answer.contains("the helper speaks version 3, and the request version 1"), "{answer}");
}

#[test]
fn a_helper_whose_caller_is_gone_ends_and_says_nothing() {
    let project = project();
    let roots = project.path("roots");
    for said in ["", "{\"version\": 1", "no line"] {
        let mut helper = Helper::start(&roots);
        helper.say(said);
        drop(helper.stdin.take());
        let (answer, code) = helper.hear();
        assert_eq!(answer, "", "{said}");
        assert_ne!(code, Some(0), "{said}");
    }
}

#[test]
fn roots_that_others_can_write_are_not_believed() {
    let project = project();
    fs::set_permissions(project.path("roots"), fs::Permissions::from_mode(0o666)).unwrap();
    let (answer, code) = Helper::start(&project.path("roots")).hear();
    assert_eq!(answer, "");
    assert_ne!(code, Some(0));
}

/// A program in the helper's place: it calls the helper, except once, as `mode` says.
fn in_between(project: &Project, mode: &str) -> PathBuf {
    let script = format!(
        "#!/usr/bin/python3
import os, subprocess, sys
folder, helper = {folder:?}, [{FARRIER:?}, 'files-helper', '--roots', {roots:?}]
line = sys.stdin.buffer.readline()
once = b'\"delete_tree\":{{\"phase\":\"apply\"' in line and not os.path.exists(folder + '/once')
if once:
    open(folder + '/once', 'w').close()
    if {mode:?} == 'before':
        open(folder + '/now', 'w').close()
        sys.stdin.read()
        sys.exit(1)
running = subprocess.Popen(helper, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
running.stdin.write(line)
running.stdin.flush()
if once and {mode:?} == 'killed':
    running.kill()
answer = running.stdout.readline()
running.stdin.close()
running.wait()
if once and {mode:?} == 'after':
    open(folder + '/now', 'w').close()
    sys.stdin.read()
    sys.exit(1)
sys.stdout.buffer.write(answer)
",
        folder = project.path("").display().to_string(),
        roots = project.path("roots").display().to_string(),
    );
    let path = project.path("in-between");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The project with its files on another host, where `helper` is called.
fn remote(sshd: &Sshd, project: &Project, helper: &Value) {
    project.environment(&json!({ "homes": behind(sshd, project, helper) }));
}

pub(crate) fn is_archived_and_deleted(project: &Project) {
    assert!(!project.path("world/homes/foxes").exists());
    assert!(project.path("world/archives/foxes.tgz").exists());
    assert_eq!(project.read("world/archives/foxes.txt"), "archived");
}

#[test]
fn a_helper_on_another_host_does_the_same() {
    let (project, sshd) = (project(), Sshd::start(Options::default()));
    remote(&sshd, &project, &helper_of(&project));
    project.farrier(&["plan", "retire", "--env", "test"]).expect(0).says("archives/foxes.tgz");
    assert!(project.path("world/homes/foxes/data/text").exists());
    project.farrier(&["run", "retire", "--env", "test", "--yes"]).expect(0);
    is_archived_and_deleted(&project);
    assert!(sshd.logins() > 5, "it was not asked over SSH: {}", sshd.log());
}

#[test]
fn a_host_with_another_key_is_not_asked() {
    let (project, mut sshd) = (project(), Sshd::start(Options::default()));
    remote(&sshd, &project, &helper_of(&project));
    sshd.change_host_key();
    let run = project.farrier(&["run", "retire", "--env", "test", "--yes"]);
    assert_ne!(run.code, Some(0));
    assert!(
        format!("{}{}", run.out, run.err).contains("Host key verification failed"),
        "{}{}",
        run.out,
        run.err
    );
    assert_eq!(sshd.logins(), 0);
    assert!(project.path("world/homes/foxes/data/text").exists());
}

/// The deletion is in doubt, since no answer came; the host is asked, and the run goes on to its end.
#[test]
fn a_connection_that_is_cut_leaves_a_doubt_that_the_host_dispels() {
    for mode in ["before", "after"] {
        let (project, sshd) = (project(), Sshd::start(Options::default()));
        let between = in_between(&project, mode);
        remote(&sshd, &project, &json!([between]));
        let now = project.path("now");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                wait_until("the deletion is at work", || now.exists());
                sshd.cut();
            });
            project.farrier(&["run", "retire", "--env", "test", "--yes"]).expect(0);
        });
        is_archived_and_deleted(&project);
        project.farrier(&["logs", &project.last_run(), "-o", "json"]).expect(0).says("in_doubt");
    }
}

#[test]
fn a_helper_that_is_killed_leaves_a_doubt_as_well() {
    let project = project();
    let between = in_between(&project, "killed");
    project.environment(&json!({ "homes": { "kind": "files", "via": { "helper": [between] } } }));
    project.farrier(&["run", "retire", "--env", "test", "--yes"]).expect(0);
    is_archived_and_deleted(&project);
    project.farrier(&["logs", &project.last_run(), "-o", "json"]).expect(0).says("in_doubt");
}

#[test]
fn a_helper_gives_up_what_it_does_not_need_before_it_is_asked() {
    let project = project();
    let mut helper = Helper::start(&project.path("roots"));
    let status = format!("/proc/{}/status", helper.child.id());
    // The last thing that it gives up; a filter of system calls is mode 2.
    wait_until("the helper has no system calls but those it needs", || {
        fs::read_to_string(&status).unwrap().contains("Seccomp:\t2")
    });
    let status = fs::read_to_string(&status).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    // Those over files: chown, dac_override, dac_read_search, fowner, fsetid, linux_immutable.
    for line in ["CapPrm:\t000000000000021f", "CapEff:\t000000000000021f", "CapInh:\t0000000000000000"] {
        assert!(status.contains(line), "{line}\n{status}");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", helper.child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    drop(helper.stdin.take());
    helper.hear();
}
