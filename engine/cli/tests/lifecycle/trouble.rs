//! T40 on real servers: the archives are full, an archive does not read back as it was written, a dump
//! fails or is cut. Nothing is deleted,
//! all that was stopped comes back, and the people who are to hear of it do.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use farrier_testkit::exim::Exim;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::common::small_disk::SmallDisk;
use crate::common::{Answer, Started};
use crate::site::{ENTRIES, Site, Tool};

/// Has a web service and a scheduled job; its databases take more room than the archives have.
const OLD_MAP: Tool = Tool { name: "old-map", number: 50_031 };
/// Its archive changes before it is read back.
const HEATH: Tool = Tool { name: "heath", number: 50_037 };
/// One of its dumps is cut before it is archived.
const MOOR: Tool = Tool { name: "moor", number: 50_039 };
/// One of its dumps is cut when it is archived.
const FEN: Tool = Tool { name: "fen", number: 50_040 };
/// One of its databases cannot be dumped.
const MARSH: Tool = Tool { name: "marsh", number: 50_038 };
const ALL: [Tool; 5] = [OLD_MAP, HEATH, MOOR, FEN, MARSH];

#[test]
fn t40_a_full_disk_a_changed_archive_and_a_dump_that_fails_delete_nothing_and_people_hear_of_it() {
    let site = Site::new();
    let exim = Exim::start();
    for tool in ALL {
        site.create(tool);
        // As the programs of Toolforge disable one. Its web service goes on, which is stopped for sure later.
        site.directory.change_ldif(&format!(
            "dn: uid=tools.{},ou=people,ou=servicegroups,dc=wikimedia,dc=org\nchangetype: modify\n\
             replace: pwdAccountLockedTime\npwdAccountLockedTime: 20260101000000.000000Z\n-\n\
             replace: pwdPolicySubentry\npwdPolicySubentry: cn=disabled,ou=ppolicies,dc=wikimedia,dc=org\n-\n\
             replace: loginShell\nloginShell: /bin/disabledtoolshell\n",
            tool.name
        ));
    }
    let cluster = include_str!("../../../../environments/lifecycle/cluster.yaml");
    let quick =
        cluster.replace("nodeName: worker-1,", "nodeName: worker-1, terminationGracePeriodSeconds: 1,");
    site.project.write("environments/test/cluster.yaml", &quick);
    let runbook = site.project.read("runbooks/lifecycle/tool-delete.yaml").replace("every: 15s", "every: 1s");
    let runbook = runbook.replace("backoff: 5s..15m", "backoff: 10ms..20ms");
    site.project.write("runbooks/lifecycle/tool-delete.yaml", &runbook);
    site.on_day(41, 0);

    // The home alone would fit.
    site.toolsdb.exec(
        "CREATE TABLE s50031__maps.tiles (id int PRIMARY KEY, tile blob);
         INSERT INTO s50031__maps.tiles SELECT seq, RANDOM_BYTES(1024) FROM seq_1_to_3000",
    );
    let disk = SmallDisk::new(&site.project.path("archives"), "2m");
    assert!(disk.is_some(), "this test mounts a file system in memory: run it as root");
    let ran = site.run("tool-delete", &["tool=old-map", "number=50031"]).expect(11);
    let full = ran.err.contains("No space left") || ran.err.contains("no space left");
    assert!(full, "{ran}");
    is_disabled_and_whole(&site, OLD_MAP);
    drop(disk);
    let cluster = site.project.read("environments/test/cluster.yaml");
    let of_old_map = cluster.split("\n---").filter(|object| object.contains("tool-old-map"));
    let of_old_map = of_old_map.collect::<Vec<_>>().join("\n");
    assert!(of_old_map.contains("replicas: 1") && !of_old_map.contains("suspend: true"), "{of_old_map}");

    // A bit of the archive flips between writing and reading.
    let run = paused(&site, &runbook, HEATH, "archive", "checked");
    let archive = fs::File::options().read(true).write(true).open(site.archive(HEATH)).unwrap();
    let middle = archive.metadata().unwrap().len() / 2;
    let mut byte = [0];
    archive.read_exact_at(&mut byte, middle).unwrap();
    archive.write_all_at(&[byte[0] ^ 1], middle).unwrap();
    go_on(&site, &run).expect(11);
    assert_eq!(states(&site, ["archive", "checked", "delete_home"]), ["undone", "failed", "blocked"]);
    is_disabled_and_whole(&site, HEATH);

    // A dump is cut before it is archived, and one after it.
    let run = paused(&site, &runbook, MOOR, "dump", "archive");
    let cut = cut_a_dump(&site, MOOR);
    go_on(&site, &run).expect(11);
    let dump = "dump[s50039__links]";
    assert_eq!(
        states(&site, ["lock_account", dump, "archive", "checked"]),
        ["undone", "undone", "undone", "blocked"]
    );
    // What is not as it was made is nothing that may be removed: it is left to people.
    fs::remove_file(cut).unwrap();
    is_disabled_and_whole(&site, MOOR);
    let run = paused(&site, &runbook, FEN, "claimed", "delete_home");
    cut_a_dump(&site, FEN);
    go_on(&site, &run).expect(20);
    assert_eq!(
        states(&site, ["delete_home", "drop_databases", "delete_account"]),
        ["succeeded", "failed", "blocked"]
    );
    assert_eq!((site.databases(FEN).len(), site.entries(FEN)), (2, ENTRIES), "there is no whole dump of one");
    site.project.write("runbooks/lifecycle/tool-delete.yaml", &runbook);

    // The first database was dumped by then.
    site.toolsdb.exec("CREATE TABLE s50038__maps.past (id int PRIMARY KEY) WITH SYSTEM VERSIONING");
    site.run("tool-delete", &["tool=marsh", "number=50038"]).expect(11);
    assert_eq!(states(&site, ["lock_account", "archive", "delete_home"]), ["undone", "blocked", "blocked"]);
    is_disabled_and_whole(&site, MARSH);

    // Who is to hear of it hears of each; nothing starts by itself meanwhile.
    let mut environment: Value = serde_json::from_str(&site.project.read("environments/test.yaml")).unwrap();
    environment["freeze"] = json!(true);
    environment["targets"]["post"]["url"] = json!(format!("smtp://127.0.0.1:{}", exim.port()));
    environment["notify"]["toolforge-roots"] = json!({ "mail": "roots@example.org" });
    site.project.write("environments/test.yaml", &environment.to_string());
    let service = Started::from(site.project.command(&["serve", "--env", "test", "--quiet"]));
    let mails: Vec<String> = exim.mails(ALL.len()).iter().map(|mail| mail.replace("=\n", "")).collect();
    kill_process(Pid::from_raw(service.child.id().cast_signed()).unwrap(), Signal::TERM).unwrap();
    service.end().expect(0);
    for tool in ALL {
        let title = format!("delete tools.{}", tool.name);
        let mail = mails.iter().find(|mail| mail.contains(&title));
        let mail = mail.unwrap_or_else(|| panic!("nobody hears of {title}: {mails:?}"));
        assert!(mail.contains("roots@example.org"), "{mail}");
    }
    site.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

/// As it was when the run began: disabled, and with all that it has.
#[track_caller]
fn is_disabled_and_whole(site: &Site, tool: Tool) {
    assert!(site.home_is_whole(tool), "{tool:?}");
    assert_eq!(site.databases(tool).len(), 2, "{tool:?}");
    assert_eq!(site.entries(tool), ENTRIES, "{tool:?}");
    assert!(!site.is_locked(tool), "{tool:?}");
    assert!(!site.archive(tool).exists(), "{tool:?}");
    assert!(site.account(tool).contains("loginShell: /bin/disabledtoolshell"), "{}", site.account(tool));
    let staged = site.project.path("staging").join(format!("tools.{}-{}", tool.name, tool.number));
    let left = fs::read_dir(staged).map_or(0, Iterator::count);
    assert_eq!(left, 0, "a dump of {tool:?} is left");
}

fn last(site: &Site) -> Value {
    let runs = site.project.farrier(&["runs", "-n", "1", "-o", "json"]).expect(0).json();
    site.project.farrier(&["show", runs[0]["id"].as_str().unwrap(), "-o", "json"]).expect(0).json()
}

/// The states of steps of the last run.
fn states<const N: usize>(site: &Site, steps: [&str; N]) -> [String; N] {
    let run = last(site);
    steps.map(|step| {
        let found = run["steps"].as_array().unwrap().iter().find(|shown| shown["node"] == step);
        found.unwrap_or_else(|| panic!("no step `{step}`: {run:#}"))["state"].as_str().unwrap().to_owned()
    })
}

/// A run that waits between two steps of the runbook; its id.
#[track_caller]
fn paused(site: &Site, runbook: &str, tool: Tool, before: &str, after: &str) -> String {
    let signals = "signals:\n  - { name: go_on, who: [], then: continue }\n";
    let pause =
        format!("  pause:\n    uses: flow.wait\n    needs: [{before}]\n    with: {{ signal: go_on }}\n");
    let (top, rest) = runbook.split_once(&format!("\n  {after}:\n")).unwrap();
    let end = rest.find("\n\n").unwrap();
    let (step, below) = rest.split_at(end);
    // Whatever it needed, it needs the pause as well.
    let step = if step.contains("    needs: [") {
        step.replace("    needs: [", "    needs: [pause, ")
    } else {
        format!("    needs: [pause]\n{step}")
    };
    let text = format!("{top}\n{pause}  {after}:\n{step}{below}").replace("signals:\n", signals);
    site.project.write("runbooks/lifecycle/tool-delete.yaml", &text);
    site.run("tool-delete", &[&format!("tool={}", tool.name), &format!("number={}", tool.number)]).expect(15);
    last(site)["id"].as_str().unwrap().to_owned()
}

#[track_caller]
fn go_on(site: &Site, run: &str) -> Answer {
    site.project.farrier(&["signal", run, "go_on"]).expect(0);
    site.project.farrier(&["resume", run, "--yes"])
}

/// Half of one dump is gone; its file.
fn cut_a_dump(site: &Site, tool: Tool) -> PathBuf {
    let folder = site.project.path("staging").join(format!("tools.{}-{}", tool.name, tool.number));
    let path = folder.join(format!("s{}__links.sql.zst", tool.number));
    let dump = fs::File::options().write(true).open(&path).unwrap();
    dump.set_len(dump.metadata().unwrap().len() / 2).unwrap();
    path
}
