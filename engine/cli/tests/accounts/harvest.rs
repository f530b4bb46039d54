//! `harvest-replicas`: one server has some of the accounts, one has none, and one is down.

use farrier_testkit::mariadb::Database;
use farrier_testkit::wait_until;
use serde_json::json;

use crate::common::Started;
use crate::site::{Servers, accounts_of};

/// What `PASSWORD('password')` is, as the list keeps it.
const HASH: &str = "*2470c0c06dee42fd1618bb99005adca2ec9d1e19";

/// Servers with a list of so many accounts.
fn site(count: usize) -> Servers {
    let site = Servers::start();
    let rows: Vec<String> =
        (0..count).map(|n| format!("('s{}', 'tool', 'tools.t{n}', '{HASH}')", 50_000 + n)).collect();
    site.accounts.exec(&format!(
        "INSERT INTO account (mysql_username, type, username, password_hash) VALUES {}",
        rows.join(", ")
    ));
    site.project.environment(&site.targets(true));
    site
}

fn as_wanted(server: &Database, count: usize) {
    let found = accounts_of(server, "^s5");
    assert_eq!(found.len(), count);
    for (n, line) in found.iter().enumerate() {
        let user = format!("s{}", 50_000 + n);
        let wanted = format!(
            "{user}\t{HASH}\t10 GRANT `labsdbuser` TO `{user}`@`%` SET DEFAULT ROLE `labsdbuser` FOR `{user}`@`%`"
        );
        assert_eq!(*line, wanted);
    }
}

#[test]
fn three_servers_of_which_one_is_down() {
    let site = site(12);
    // s1 has all accounts but one, and one has lost its role; s2 has none.
    for n in (0..12).filter(|n| *n != 7) {
        let user = format!("s{}", 50_000 + n);
        site.s1.exec(&format!(
            "CREATE USER '{user}'@'%' IDENTIFIED BY PASSWORD '{HASH}' WITH MAX_USER_CONNECTIONS 10"
        ));
        if n != 3 {
            site.s1.exec(&format!(
                "GRANT labsdbuser TO '{user}'@'%'; SET DEFAULT ROLE labsdbuser FOR '{user}'@'%'"
            ));
        }
    }
    let plan = site.project.farrier(&["plan", "harvest-replicas", "--env", "test", "-o", "json"]);
    assert!(plan.out.contains("account s50007@%"), "{plan}");
    assert_eq!(site.s1.writes(), [""; 0], "a plan writes nothing");

    let run = ["run", "harvest-replicas", "--env", "test", "--yes"];
    let ended = site.project.farrier(&run).expect(13);
    assert!(ended.to_string().contains("s3"), "{ended}");
    as_wanted(&site.s1, 12);
    as_wanted(&site.s2, 12);
    assert_eq!(
        site.recorded(),
        "s1:3306\tpresent\t12\ns2:3306\tpresent\t12\ns3:3306\tabsent\t12\ntoolsdb:3306\tpresent\t12\n"
    );
    let made = site.s1.writes();
    assert_eq!(made.iter().filter(|sql| sql.starts_with("CREATE USER")).count(), 1, "{made:?}");
    // On ToolsDB everyone may do everything with databases of their own, and those alone.
    let grants = site.accounts.exec("SHOW GRANTS FOR 's50007'@'%'");
    assert!(grants.contains(r"GRANT ALL PRIVILEGES ON `s50007\\_\\_%`.*"), "{grants}");
    assert!(grants.contains(r"GRANT SELECT, SHOW VIEW ON `%\\_p`.*"), "{grants}");

    // The second time nothing is left to do, and one server is still down.
    let before = site.writes();
    site.project.farrier(&run).expect(13);
    assert_eq!(site.writes(), before);

    // What another server has found is said and mended while that one is down.
    site.s1.exec("ALTER USER 's50002'@'%' IDENTIFIED BY 'another'");
    site.project.farrier(&run).expect(13).complains("another password than the recorded one, on s1");
    let told = site.project.show_last()["outputs"]["password_differs"].clone();
    assert_eq!(told, json!([{ "server": "s1", "accounts": ["s50002"] }]));
    site.project.farrier(&[&run[..], &["-i", "set_passwords=true"]].concat()).expect(13);
    as_wanted(&site.s1, 12);

    // The hash, which opens accounts to whoever can guess, is nowhere but on the servers.
    site.nowhere(&[HASH.to_owned(), HASH[1..].to_owned()], &[&plan, &ended]);
    site.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

#[test]
fn killed_in_the_middle_it_goes_on_and_makes_no_account_twice() {
    let site = site(150);
    let args = ["run", "harvest-replicas", "--env", "test", "--yes", "--accept-guards"];
    let mut started = Started::from(site.project.command(&args));
    let made = || site.s1.exec("SELECT COUNT(*) FROM mysql.global_priv WHERE User LIKE 's5%'");
    wait_until("the first accounts", || made().trim().parse::<u64>().unwrap() >= 20);
    started.child.kill().unwrap();
    let ended = started.end();
    assert_eq!(ended.signal, Some(9), "{ended}");
    let before: u64 = made().trim().parse().unwrap();
    assert!(before < 150, "it was killed too late to show anything");

    let parent = site.last_of("harvest-replicas");
    let id = parent["id"].as_str().unwrap_or_else(|| panic!("the run is there: {parent}"));
    site.project.farrier(&["resume", id]).expect(13);
    as_wanted(&site.s1, 150);
    as_wanted(&site.s2, 150);
    assert_eq!(
        site.recorded(),
        "s1:3306\tpresent\t150\ns2:3306\tpresent\t150\ns3:3306\tabsent\t150\ntoolsdb:3306\tpresent\t150\n"
    );
    let statements = site.s1.writes();
    let created: Vec<&String> = statements.iter().filter(|sql| sql.starts_with("CREATE USER")).collect();
    assert_eq!(created.len(), 150, "each account is made once");
    site.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}
