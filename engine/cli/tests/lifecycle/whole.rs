//! A tool from its beginning to its end, and one that came back on the twelfth day.

use serde_json::json;

use crate::site::{Site, Tool};

const OLD_MAP: Tool = Tool { name: "old-map", number: 50_031 };
/// Enabled again in time.
const RIVER: Tool = Tool { name: "river", number: 50_035 };
/// Its number begins with that of old-map.
const BIRDS: Tool = Tool { name: "birds", number: 500_312 };

#[test]
fn a_tool_is_made_disabled_archived_and_deleted_and_its_neighbours_are_left_alone() {
    let site = Site::new();
    for tool in [OLD_MAP, RIVER, BIRDS] {
        site.create(tool);
        site.is_alive(tool);
    }
    let shorter = site.project.read("runbooks/lifecycle/tool-delete.yaml").replace("every: 15s", "every: 1s");
    site.project.write("runbooks/lifecycle/tool-delete.yaml", &shorter);
    let cluster = site.project.read("environments/test/cluster.yaml");
    let quick =
        cluster.replace("nodeName: worker-1,", "nodeName: worker-1, terminationGracePeriodSeconds: 1,");
    site.project.write("environments/test/cluster.yaml", &quick);

    for tool in [OLD_MAP, RIVER] {
        site.run("tool-disable", &[&format!("tool={}", tool.name)]).expect(0);
        let account = site.account(tool);
        for line in [
            "loginShell: /bin/disabledtoolshell",
            "pwdPolicySubentry: cn=disabled,ou=ppolicies,dc=wikimedia,dc=org",
            "pwdAccountLockedTime: 20",
        ] {
            assert!(account.contains(line), "`{line}` is not in {account}");
        }
    }
    // Disabled again it keeps its time.
    site.pass_days(OLD_MAP, 12);
    let before = site.account(OLD_MAP);
    site.run("tool-disable", &["tool=old-map"]).expect(0);
    assert_eq!(site.account(OLD_MAP), before);

    // On the twelfth day nothing is due, and one tool comes back.
    site.pass_days(RIVER, 12);
    due(&site, &[]);
    site.run("tool-enable", &["tool=river"]).expect(0);
    site.is_alive(RIVER);

    // On the forty-first day, one is due.
    site.pass_days(OLD_MAP, 41);
    let mark = site.directory.mark();
    site.project
        .farrier(&["plan", "tools-archive-and-delete", "--env", "test"])
        .expect(0)
        .says("- uid=tools.old-map,ou=people")
        .says("s50031__links");
    assert_eq!(site.directory.writes_since(mark), [""; 0], "a plan writes nothing");
    assert_eq!(site.toolsdb.writes(), [""; 0], "a plan writes nothing");
    assert!(site.home_is_whole(OLD_MAP));
    due(&site, &["old-map"]);
    site.is_archived_and_gone(OLD_MAP);
    let cluster = site.project.read("environments/test/cluster.yaml");
    assert!(!cluster.contains("tool-old-map") && cluster.contains("tool-quick-go"), "{cluster}");
    for tool in [RIVER, BIRDS] {
        site.is_alive(tool);
    }
    // The next round finds nothing.
    due(&site, &[]);
    // Directory and disk are looked at side by side; whichever answers first says it.
    let enabled = site.run("tool-enable", &["tool=old-map"]).expect(10);
    let says = |text| enabled.err.contains(text);
    assert!(says("there is no such tool") || says("its home is gone"), "{enabled:?}");
    site.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

/// A round finds these tools due, and is through with them.
#[track_caller]
fn due(site: &Site, tools: &[&str]) {
    site.run("tools-archive-and-delete", &[]).expect(0);
    let runs = site.project.farrier(&["runs", "-o", "json"]).expect(0).json();
    let round =
        runs.as_array().unwrap().iter().find(|run| run["runbook"] == "tools-archive-and-delete").unwrap();
    let view = site.project.farrier(&["show", round["id"].as_str().unwrap(), "-o", "json"]).expect(0).json();
    assert_eq!(view["outputs"]["due"], json!(tools), "{view}");
}
