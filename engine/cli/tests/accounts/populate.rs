//! `maintain-dbusers-populate` for tools, users and PAWS.

use std::os::unix::fs::MetadataExt as _;

use farrier_testkit::mariadb::{Database, MariaDb};

use crate::site::{OWNERS, Owner, Toolforge, accounts_of, lets_in, make_role};

const POPULATE: [&str; 3] = ["maintain-dbusers-populate", "--env", "test"];

/// Everything about an owner's account is as it should be: the file, the row, and the account on each server.
#[track_caller]
pub(crate) fn is_whole(site: &Toolforge, owner: Owner) {
    let Owner { account, kind, name, number, .. } = owner;
    let (password, file) = (site.password(owner), std::fs::metadata(site.path(owner)).unwrap());
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (number, number, 0o440), "{owner:?}");
    let hash = site.hash(&password);
    assert_eq!(site.row(owner), format!("{kind}\t{name}\t{hash}\n"));
    let there = |server: &Database| accounts_of(server, &format!("^{account}$"));
    for replica in [&site.servers.s1, &site.servers.s2] {
        let wanted = format!(
            "{account}\t{hash}\t10 GRANT `labsdbuser` TO `{account}`@`%` SET DEFAULT ROLE `labsdbuser` FOR `{account}`@`%`"
        );
        assert_eq!(there(replica), [wanted]);
        assert!(lets_in(replica, account, &password), "{owner:?}");
    }
    let toolsdb = &site.servers.accounts;
    assert_eq!(lets_in(toolsdb, account, &password), owner.is_on_toolsdb(), "{owner:?}");
    if let Some(tool) = owner.tool() {
        assert_eq!(site.api.variables(tool), site.wanted_variables(owner), "{owner:?}");
    }
    if owner.is_on_toolsdb() {
        // On ToolsDB everyone may do everything with databases of their own, and those alone.
        let wanted = format!(
            r"{account}	{hash}	0 GRANT ALL PRIVILEGES ON `{account}\\_\\_%`.* TO `{account}`@`%` GRANT SELECT, SHOW VIEW ON `%\\_p`.* TO `{account}`@`%`"
        );
        assert_eq!(there(toolsdb), [wanted]);
    } else {
        assert_eq!(there(toolsdb), [""; 0]);
    }
}

fn recorded_on(servers: &[&str]) -> String {
    servers.iter().map(|server| format!("{server}:3306\tpresent\t{}\n", OWNERS.len())).collect()
}

#[test]
fn tools_users_and_paws_while_a_server_is_down() {
    let site = Toolforge::start(true);
    let project = &site.servers.project;
    let plan = project.farrier(&[&["plan"], &POPULATE[..]].concat()).expect(0);
    assert_eq!(site.servers.writes(), [0; 3], "a plan writes nothing");
    assert!(OWNERS.iter().all(|owner| !site.path(*owner).exists()), "a plan makes no file");
    assert_eq!(site.api.written(), [""; 0], "a plan sets no variable");
    for owner in OWNERS {
        assert!(plan.out.contains(&format!("mysql_username={}", owner.account)), "{plan}");
    }

    let ended = site.run("maintain-dbusers-populate", &[]).expect(13);
    assert!(ended.to_string().contains("s3"), "{ended}");
    for owner in OWNERS {
        is_whole(&site, owner);
    }
    // Those of PAWS are recorded for ToolsDB all the same.
    // What the server that is down should have is recorded, as what it does not have.
    let recorded = recorded_on(&["s1", "s2", "toolsdb"]);
    assert_eq!(site.servers.recorded(), recorded.replace("toolsdb", "s3:3306\tabsent\t9\ntoolsdb"));
    let outputs = &site.servers.last_of("maintain-dbusers-populate")["outputs"];
    assert_eq!(outputs["without_a_home"], serde_json::json!(["s50155"]));
    assert_eq!(outputs["users_without_a_home"], serde_json::json!(["u100104"]));
    assert_eq!(outputs["paws_without_a_home"], serde_json::json!(["p4713"]));

    // The second time nothing is left to do but what waits for the server that is down.
    let (before, passwords) = (site.servers.writes(), OWNERS.map(|owner| site.password(owner)));
    let asked = site.api.written();
    site.run("maintain-dbusers-populate", &[]).expect(13);
    assert_eq!((site.servers.writes(), site.api.written()), (before, asked));
    assert_eq!(OWNERS.map(|owner| site.password(owner)), passwords);

    // What somebody took away comes back, on the servers that are there.
    site.servers.s1.exec("REVOKE labsdbuser FROM 'u100101'@'%'; SET DEFAULT ROLE NONE FOR 'p4712'@'%'");
    site.servers.s2.exec("DROP USER 'p4711'@'%'");
    site.servers.accounts.exec(r"REVOKE ALL PRIVILEGES ON `u100102\_\_%`.* FROM 'u100102'@'%'");
    site.run("harvest-replicas", &[]).expect(13);
    for owner in OWNERS {
        is_whole(&site, owner);
    }
    site.run("harvest-replicas", &[]).expect(13);
    let repaired = site.servers.writes();
    site.run("harvest-replicas", &[]).expect(13);
    assert_eq!(site.servers.writes(), repaired);

    // Once it is there, the next run makes what it lacks, though nobody is new, and then there is peace.
    let server = MariaDb::start();
    let s3 = server.fresh_database();
    make_role(&s3);
    site.s3_is_up(&s3);
    site.run("maintain-dbusers-populate", &[]).expect(0);
    for owner in OWNERS {
        assert!(lets_in(&s3, owner.account, &site.password(owner)), "{owner:?}");
    }
    assert_eq!(site.servers.recorded(), recorded_on(&["s1", "s2", "s3", "toolsdb"]));
    let (all, there) = (site.servers.writes(), s3.writes());
    site.run("maintain-dbusers-populate", &[]).expect(0);
    assert_eq!((site.servers.writes(), s3.writes()), (all, there));

    let hashes = passwords.each_ref().map(|password| site.hash(password)[1..].to_owned());
    site.servers.nowhere(&[passwords, hashes].concat(), &[&plan, &ended]);
    project.farrier(&["fsck"]).expect(0).says("everything is whole");
}
