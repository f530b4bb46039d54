//! Tools from their beginning to their end, and one that came back on the twelfth day. The times of disabling in the directory stay
//! as they were written; it is Farrier's clock that goes on.

use std::time::Instant;

use farrier_testkit::DEADLINE;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::common::Started;
use crate::site::{Site, Tool};

/// Archived by the schedule.
const OLD_MAP: Tool = Tool { name: "old-map", number: 50_031 };
/// Disabled two days later, and archived by hand.
const HARBOUR: Tool = Tool { name: "harbour", number: 50_033 };
/// Enabled again in time.
const RIVER: Tool = Tool { name: "river", number: 50_035 };
/// Its number begins with that of old-map.
const BIRDS: Tool = Tool { name: "birds", number: 500_312 };

const ROUND: &str = "tools-archive-and-delete";

#[test]
fn tools_are_made_disabled_archived_and_deleted_and_their_neighbours_are_left_alone() {
    let site = Site::new();
    for tool in [OLD_MAP, HARBOUR, RIVER, BIRDS] {
        site.create(tool);
        site.is_alive(tool);
    }
    for runbook in ["runbooks/lifecycle/tool-delete.yaml", "runbooks/lifecycle/tool-disable.yaml"] {
        let shorter = site.project.read(runbook).replace("every: 15s", "every: 1s");
        site.project.write(runbook, &shorter);
    }
    let cluster = site.project.read("environments/test/cluster.yaml");
    let quick =
        cluster.replace("nodeName: worker-1,", "nodeName: worker-1, terminationGracePeriodSeconds: 1,");
    site.project.write("environments/test/cluster.yaml", &quick);

    let begun = disable(&site, OLD_MAP);
    // Nothing of it runs any more, on the very day.
    let stopped = site.project.read("environments/test/cluster.yaml");
    assert!(!stopped.contains("kind: Pod") && !stopped.contains("replicas: 1"), "{stopped}");
    assert!(stopped.contains("suspend: true"), "{stopped}");
    disable(&site, RIVER);
    site.on_day(2, 0);
    disable(&site, HARBOUR);

    // On the twelfth day nothing is due. One tool comes back; another is disabled again, and keeps its time.
    site.on_day(12, 0);
    site.run("tool-disable", &["tool=old-map"]).expect(0);
    assert_eq!(site.account(OLD_MAP), begun);
    by_hand(&site, &[]);
    site.run("tool-enable", &["tool=river"]).expect(0);
    site.is_alive(RIVER);

    site.on_day(39, 0);
    by_hand(&site, &[]);
    // The clock goes on under a service, by less than a day at once: more would be a clock that is wrong.
    site.on_day(39, 2);
    let service = Started::from(site.project.command(&["serve", "--env", "test", "--quiet"]));
    wait_until("the schedule is known", &site, |site| {
        site.project.farrier(&["schedules", &format!("test/{ROUND}"), "-o", "json"]).code == Some(0)
    });
    for (day, hour) in [(40, 0), (40, 23)] {
        by_schedule(&site, day, hour, &[]);
        assert_eq!(site.account(OLD_MAP), begun, "on day {day}, hour {hour}");
        assert!(site.home_is_whole(OLD_MAP) && !site.archive(OLD_MAP).exists());
    }
    by_schedule(&site, 41, 1, &["old-map"]);
    site.is_archived_and_gone(OLD_MAP);
    let cluster = site.project.read("environments/test/cluster.yaml");
    assert!(!cluster.contains("tool-old-map") && cluster.contains("tool-quick-go"), "{cluster}");
    kill_process(Pid::from_raw(service.child.id().cast_signed()).unwrap(), Signal::TERM).unwrap();
    service.end().expect(0);
    assert!(site.home_is_whole(HARBOUR) && !site.archive(HARBOUR).exists());

    // The other one was disabled on the second day.
    site.on_day(42, 23);
    by_hand(&site, &[]);
    site.on_day(43, 0);
    let mark = (site.directory.mark(), site.toolsdb.writes().len());
    site.project
        .farrier(&["plan", ROUND, "--env", "test"])
        .expect(0)
        .says("- uid=tools.harbour,ou=people")
        .says("s50033__links");
    assert_eq!(site.directory.writes_since(mark.0), [""; 0], "a plan writes nothing");
    assert_eq!(site.toolsdb.writes().len(), mark.1, "a plan writes nothing");
    assert!(site.home_is_whole(HARBOUR));
    by_hand(&site, &["harbour"]);
    site.is_archived_and_gone(HARBOUR);
    for tool in [RIVER, BIRDS] {
        site.is_alive(tool);
    }
    // The next round finds nothing.
    by_hand(&site, &[]);
    // Directory and disk are looked at side by side; whichever answers first says it.
    let enabled = site.run("tool-enable", &["tool=old-map"]).expect(10);
    let says = |text| enabled.err.contains(text);
    assert!(says("there is no such tool") || says("its home is gone"), "{enabled:?}");
    site.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

/// Disables a tool; gives its account as it is then.
#[track_caller]
fn disable(site: &Site, tool: Tool) -> String {
    site.run("tool-disable", &[&format!("tool={}", tool.name)]).expect(0);
    let account = site.account(tool);
    for line in [
        "loginShell: /bin/disabledtoolshell",
        "pwdPolicySubentry: cn=disabled,ou=ppolicies,dc=wikimedia,dc=org",
        "pwdAccountLockedTime: 20",
    ] {
        assert!(account.contains(line), "`{line}` is not in {account}");
    }
    account
}

/// A round that somebody starts finds these tools due, and is through with them.
#[track_caller]
fn by_hand(site: &Site, tools: &[&str]) {
    site.run(ROUND, &[]).expect(0);
    let runs = site.project.farrier(&["runs", "-o", "json"]).expect(0).json();
    let round = runs.as_array().unwrap().iter().find(|run| run["runbook"] == ROUND).unwrap();
    assert_eq!(shown(site, round["id"].as_str().unwrap())["outputs"]["due"], json!(tools));
}

/// The clock goes on to so long after the beginning, and the running service's next round finds these tools due, and is through
/// with them.
#[track_caller]
fn by_schedule(site: &Site, day: u64, hour: u64, tools: &[&str]) {
    let rounds = || -> Vec<String> {
        let schedule = format!("test/{ROUND}");
        let records = site.project.farrier(&["schedules", &schedule, "-o", "json"]).expect(0).json();
        let runs = records.as_array().unwrap().iter().filter(|record| record["decision"] == "run");
        runs.map(|record| record["run"].as_str().unwrap().to_owned()).collect()
    };
    let before = rounds();
    site.on_day(day, hour);
    let mut round = String::new();
    wait_until("a round by the schedule", site, |_| {
        round = rounds().into_iter().find(|run| !before.contains(run)).unwrap_or_default();
        !round.is_empty()
    });
    wait_until("the end of the round", site, |site| shown(site, &round)["state"] == "succeeded");
    assert_eq!(shown(site, &round)["outputs"]["due"], json!(tools), "on day {day}, hour {hour}");
}

fn shown(site: &Site, run: &str) -> Value {
    site.project.farrier(&["show", run, "-o", "json"]).expect(0).json()
}

/// Waits for something that the service does; when it does not, says what there is.
#[track_caller]
fn wait_until(what: &str, site: &Site, mut condition: impl FnMut(&Site) -> bool) {
    let begun = Instant::now();
    while !condition(site) {
        assert!(
            begun.elapsed() < DEADLINE,
            "waited in vain for {what}: {}{}",
            site.project.farrier(&["runs"]),
            site.project.farrier(&["schedules"])
        );
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
