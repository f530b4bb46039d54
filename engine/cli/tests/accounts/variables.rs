//! What is in the file of a tool is in its variables, whatever went wrong before.

use std::fs;

use crate::api::Manner;
use crate::site::{OWNERS, Owner, Toolforge};

fn tools() -> Vec<(Owner, &'static str)> {
    OWNERS.into_iter().filter_map(|owner| Some((owner, owner.tool()?))).collect()
}

#[track_caller]
fn all_agree(site: &Toolforge) {
    for (owner, tool) in tools() {
        assert_eq!(site.api.variables(tool), site.wanted_variables(owner), "{tool}");
    }
}

#[test]
fn a_service_that_fails_is_caught_up_with() {
    let site = Toolforge::start(false);
    // One tool is refused: it alone has none, and is named.
    site.api.treat(Manner::RefusesWmLol);
    let refused = site.run("maintain-dbusers-populate", &[]).expect(13);
    assert!(
        refused.to_string().contains("of tools.wm-lol because GET /envvars/v1/tool/wm-lol/envvars"),
        "{refused}"
    );
    assert!(site.api.variables("wm-lol").is_empty());
    assert_eq!(site.api.variables("edit-pulse").len(), 4);
    site.api.treat(Manner::Well);
    site.run("maintain-dbusers-populate", &[]).expect(0);
    all_agree(&site);

    // One variable is gone, one is an earlier password's, and a tool has one of its own.
    site.api.change("wm-lol", "TOOL_TOOLSDB_USER", None);
    site.api.change("edit-pulse", "TOOL_REPLICA_PASSWORD", Some("0fAnEarlierFile1"));
    let mut said = vec![refused];
    for manner in [Manner::Echoes, Manner::Redirects, Manner::HangsUp] {
        site.api.treat(manner);
        said.push(site.run("maintain-dbusers-populate", &[]).expect(13));
        assert!(said[said.len() - 1].to_string().contains("tools could not be set"), "{manner:?}");
    }
    site.api.treat(Manner::Well);
    said.push(site.run("maintain-dbusers-populate", &[]).expect(0));
    all_agree(&site);

    // A file that somebody replaced is what counts.
    let (owner, tool) = tools()[1];
    let text = site.servers.project.read(owner.file).replace(&site.password(owner), "0fTheNewFile1234");
    fs::write(site.path(owner), text).unwrap();
    said.push(site.run("maintain-dbusers-populate", &[]).expect(0));
    assert_eq!(site.api.variables(tool)["TOOL_TOOLSDB_PASSWORD"], "0fTheNewFile1234");
    all_agree(&site);

    let passwords = tools().into_iter().map(|(owner, _)| site.password(owner));
    let secrets: Vec<String> = passwords.chain(["0fAnEarlierFile1".into()]).collect();
    site.servers.nowhere(&secrets, &said.iter().collect::<Vec<_>>());
}

#[test]
fn killed_between_file_and_variables_they_agree_in_the_end() {
    let site = Toolforge::start(false);
    // The service keeps what it is sent and never says so: the run waits for its answer when it is killed.
    site.api.treat(Manner::Stalls);
    let mut started = site.start_run("maintain-dbusers-populate");
    farrier_testkit::wait_until("a variable was sent", || !site.api.written().is_empty());
    started.child.kill().unwrap();
    assert_eq!(started.end().signal, Some(9));
    site.api.treat(Manner::Well);
    let parent = site.servers.last_of("maintain-dbusers-populate");
    site.servers.project.farrier(&["resume", parent["id"].as_str().unwrap()]).expect(0);
    all_agree(&site);
    // Nothing that was made before was made again.
    assert_eq!(
        site.servers.recorded(),
        "s1:3306\tpresent\t9\ns2:3306\tpresent\t9\ntoolsdb:3306\tpresent\t9\n"
    );
    let before = site.api.written();
    site.run("maintain-dbusers-populate", &[]).expect(0);
    assert_eq!(site.api.written(), before);
    site.servers.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}
