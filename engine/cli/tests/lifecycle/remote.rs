//! A tool is archived with its databases and deleted while every folder is on another host, behind a real sshd; and whatever is
//! killed on either side, nothing is lost, and no file is half written under its name.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use farrier_testkit::sshd::{Options, Sshd};
use farrier_testkit::wait_until;
use serde_json::{Value, json};

use crate::blows::{Blow, count, kill_after, strike};
use crate::common::{FARRIER, Started};
use crate::far::{behind, kill_helpers, roots_file};
use crate::kills::{holds, words};
use crate::site::{Site, Tool};

const TOOLS: [Tool; 5] = [
    Tool { name: "basalt", number: 53_001 },
    Tool { name: "chalk", number: 53_002 },
    Tool { name: "flint", number: 53_003 },
    Tool { name: "gneiss", number: 53_004 },
    Tool { name: "granite", number: 53_005 },
];

/// A site whose folders are on another host.
struct Remote {
    site: Site,
    sshd: Sshd,
}

impl Remote {
    /// One with these tools, whose time is over.
    fn with(tools: &[Tool]) -> Remote {
        let (site, sshd) = (Site::new(), Sshd::start(Options::default()));
        let roots = [("tool_homes", "homes"), ("archives", "archives"), ("staging", "staging")];
        roots_file(&site.project, &roots);
        let helper = doomed(&site);
        let mut environment: Value =
            serde_json::from_str(&site.project.read("environments/test.yaml")).unwrap();
        environment["targets"]["homes"] = behind(&sshd, &site.project, &helper);
        site.project.write("environments/test.yaml", &environment.to_string());
        // What is tried again is tried at once.
        let runbook = site.project.read("runbooks/lifecycle/tool-delete.yaml");
        let quick = runbook.replace("backoff: 5s..15m", "backoff: 1s..2s");
        site.project.write("runbooks/lifecycle/tool-delete.yaml", &quick);
        for tool in tools {
            site.create(*tool);
            site.run("tool-disable", &[&format!("tool={}", tool.name)]).expect(0);
        }
        site.on_day(41, 0);
        Remote { site, sshd }
    }

    /// Every dump that has its name is one that was recorded, to the last byte.
    #[track_caller]
    fn dumps_are_whole(&self, when: &str) {
        let staging = self.site.project.path("staging");
        let recorded = names(&staging.join(".farrier-private/deposits"));
        for tool in names(&staging).iter().filter(|name| *name != ".farrier-private") {
            for dump in names(&staging.join(tool)) {
                let sum = Command::new("sha256sum").arg(staging.join(tool).join(&dump)).output().unwrap();
                let sum = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
                assert!(recorded.contains(&format!("sha256-{sum}.json")), "{when}: {dump} is not whole");
            }
        }
    }

    /// Nothing of a tool is left in staging, and nothing is on its way anywhere.
    #[track_caller]
    fn nothing_is_left(&self, when: &str) {
        assert_eq!(names(&self.site.project.path("staging")), [".farrier-private"], "{when}");
        for folder in ["staging/.farrier-private/deposits", "homes/.farrier-private/quarantine"] {
            assert_eq!(names(&self.site.project.path(folder)), [""; 0], "{when}: {folder}");
        }
        let archives = names(&self.site.project.path("archives/.farrier-private/archives"));
        assert!(!archives.iter().any(|name| name.contains(".part")), "{when}: {archives:?}");
    }

    fn last(&self) -> Value {
        let runs = self.site.project.farrier(&["runs", "-n", "1", "-o", "json"]).expect(0).json();
        self.site.project.farrier(&["show", runs[0]["id"].as_str().unwrap(), "-o", "json"]).expect(0).json()
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Calls the helper; kills it once, as the file `doom` of the project says: in this job, as it enters its n-th call of this
/// name. Bodies go through it as they come.
fn doomed(site: &Site) -> Value {
    let script = format!(
        "#!/usr/bin/python3
import os, subprocess, sys, threading
doom, helper = {doom:?}, [{FARRIER:?}, 'files-helper', '--roots', {roots:?}]
line = b''
while not line.endswith(b'\\n'):
    more = os.read(0, 1)
    if not more:
        sys.exit(1)
    line += more
if os.path.exists(doom):
    job, call, nth = open(doom).read().split()
    if ('\"job\":{{\"' + job + '\":{{').encode() in line and (job == 'check_archive' or b'\"phase\":\"plan\"' not in line):
        os.rename(doom, doom + 'ed')
        helper = ['strace', '-f', '-qqq', '-o', '/dev/null', '-e', 'trace=' + call,
                  '-e', 'inject=' + call + ':signal=KILL:when=' + nth] + helper
running = subprocess.Popen(helper, stdin=subprocess.PIPE)
os.close(1)
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
code = running.wait()
os._exit(code if code >= 0 else 1)
",
        doom = site.project.path("doom").display().to_string(),
        roots = site.project.path("roots").display().to_string(),
    );
    let path = site.project.path("doomed-helper");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    json!([path])
}

#[test]
fn a_tool_whose_folders_are_on_another_host_is_archived_and_deleted() {
    let tool = TOOLS[0];
    let remote = Remote::with(&[tool]);
    let site = &remote.site;
    let neighbour = Tool { name: "birds", number: 530_011 };
    site.create(neighbour);
    let inputs = [format!("tool={}", tool.name), format!("number={}", tool.number)];
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let logins = remote.sshd.logins();
    site.run("tool-delete", &inputs).expect(0);
    assert!(remote.sshd.logins() > logins + 8, "it was not asked over SSH: {}", remote.sshd.log());
    site.is_archived_and_gone(tool);
    remote.nothing_is_left("at the end");
    site.is_alive(neighbour);
    // What the step verified is what is there.
    let seen = holds(site, tool, None, "at the end").unwrap();
    assert_eq!(remote.last()["outputs"]["sha256"], seen.2.as_str());
    site.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

#[test]
fn farrier_is_killed_while_the_folders_are_on_another_host() {
    let remote = Remote::with(&TOOLS);
    let site = &remote.site;
    let first = TOOLS[0];
    let first_words = words(first);
    let args: Vec<&str> = first_words.iter().map(String::as_str).collect();
    let calls = count(&site.project, &args, "fsync", 0);
    site.is_archived_and_gone(first);
    let mut blows: Vec<Blow> = [3, 5, 7].map(|part| Blow::Call("fsync", calls * part / 8)).into();
    blows.push(Blow::After(Duration::from_millis(1_500)));
    for (blow, tool) in blows.into_iter().zip(&TOOLS[1..]) {
        let when = format!("{blow:?}, {}", tool.name);
        let tool_words = words(*tool);
        let args: Vec<&str> = tool_words.iter().map(String::as_str).collect();
        let died = strike(&site.project, &args, blow);
        // Whoever it had asked hears of its end, and ends.
        wait_until("no helper is left", || helpers(site) == 0);
        let first = holds(site, *tool, None, &when);
        remote.dumps_are_whole(&when);
        let view = remote.last();
        if view["runbook"] != "tool-delete" || view["inputs"]["tool"] != tool.name {
            assert!(site.home_is_whole(*tool) && first.is_none(), "{when}: {died}");
            site.project.farrier(&args).expect(0);
        } else if view["state"] != "succeeded" {
            let id = view["id"].as_str().unwrap();
            // The second life is cut short as well, with a helper at work.
            let again = Started::from(site.project.command(&["resume", id, "--yes"]));
            kill_after(again, Duration::from_millis(600));
            kill_helpers(&site.project);
            holds(site, *tool, first.as_ref(), &when);
            remote.dumps_are_whole(&when);
            if remote.last()["state"] != "succeeded" {
                site.project.farrier(&["resume", id, "--yes"]).expect(0);
            }
        }
        holds(site, *tool, first.as_ref(), &when);
        site.is_archived_and_gone(*tool);
        remote.nothing_is_left(&when);
    }
    site.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

/// How many helpers are at work for this site.
fn helpers(site: &Site) -> usize {
    let roots = site.project.path("roots").display().to_string();
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .filter(|words| words.split(|byte| *byte == 0).any(|word| word == roots.as_bytes()))
        .count()
}

#[test]
fn the_helper_is_killed_while_it_makes_dumps_and_the_archive() {
    killed(&["deposit fsync 1", "deposit renameat2 1", "archive renameat2 1", "archive renameat2 2"]);
}

#[test]
fn the_helper_is_killed_while_it_reads_them_and_deletes() {
    killed(&[
        "with_digest openat2 4",
        "check_archive openat2 2",
        "delete_tree unlinkat 3",
        "discard renameat2 1",
    ]);
}

#[track_caller]
fn killed(dooms: &[&str]) {
    let remote = Remote::with(&TOOLS[..dooms.len()]);
    let site = &remote.site;
    for (doom, tool) in dooms.iter().copied().zip(&TOOLS) {
        site.project.write("doom", doom);
        let tool_words = words(*tool);
        let args: Vec<&str> = tool_words.iter().map(String::as_str).collect();
        let ran = site.project.farrier(&args);
        assert!(site.project.path("doomed").exists(), "{doom}: no helper was killed: {ran}");
        fs::remove_file(site.project.path("doomed")).unwrap();
        let first = holds(site, *tool, None, doom);
        remote.dumps_are_whole(doom);
        eprintln!("{doom}: ended with {:?}", ran.code);
        if ran.code != Some(0) {
            // Before the way of no return everything is taken back, and the next run does it all.
            assert_eq!(remote.last()["state"], json!("undone"), "{doom}: {ran}");
            assert!(site.home_is_whole(*tool) && first.is_none(), "{doom}: {ran}");
            assert_eq!(site.databases(*tool).len(), 2, "{doom}");
            remote.nothing_is_left(doom);
            site.project.farrier(&args).expect(0);
        }
        holds(site, *tool, first.as_ref(), doom);
        site.is_archived_and_gone(*tool);
        remote.nothing_is_left(doom);
    }
    site.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}
