//! `harvest-replicas` on real MariaDB servers: one with the list of accounts, two replicas, and a third that is down.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use std::fs;

use common::{Project, Started};
use farrier_testkit::mariadb::{Database, MariaDb};
use farrier_testkit::wait_until;
use serde_json::json;

/// What `PASSWORD('password')` is, as the list keeps it.
const HASH: &str = "*2470c0c06dee42fd1618bb99005adca2ec9d1e19";

/// The servers, each of its own, because accounts are the server's.
struct Site {
    project: Project,
    accounts: Database,
    s1: Database,
    s2: Database,
    _servers: Vec<MariaDb>,
}

fn site(count: usize) -> Site {
    let servers: Vec<MariaDb> = (0..3).map(|_| MariaDb::start()).collect();
    let databases: Vec<Database> = servers.iter().map(MariaDb::fresh_database).collect();
    let [accounts, s1, s2] = databases.try_into().unwrap();
    accounts.exec(
        "CREATE TABLE account (id int unsigned AUTO_INCREMENT PRIMARY KEY, mysql_username varchar(255) NOT NULL, \
         type enum('tool', 'user', 'paws') NOT NULL, username varchar(255) NOT NULL, password_hash binary(41) NOT NULL, \
         UNIQUE (type, username));
         CREATE TABLE account_host (id int unsigned AUTO_INCREMENT PRIMARY KEY, account_id int unsigned NOT NULL, \
         hostname varchar(255) NOT NULL, status enum('present', 'absent') NOT NULL, UNIQUE (account_id, hostname))",
    );
    let rows: Vec<String> =
        (0..count).map(|n| format!("('s{}', 'tool', 'tools.t{n}', '{HASH}')", 50_000 + n)).collect();
    accounts.exec(&format!(
        "INSERT INTO account (mysql_username, type, username, password_hash) VALUES {}",
        rows.join(", ")
    ));
    for replica in [&s1, &s2] {
        replica.exec(&format!(
            "CREATE ROLE labsdbuser; GRANT labsdbuser TO {}@'127.0.0.1' WITH ADMIN OPTION",
            replica.name()
        ));
    }
    let project = Project::demo();
    let target = |name: &str, database: &Database| {
        let url = database.url();
        let (scheme, rest) = url.split_once("://").unwrap();
        let (account, place) = rest.split_once('@').unwrap();
        let (user, password) = account.split_once(':').unwrap();
        json!({
            "kind": "sql", "url": format!("{scheme}://{user}@{place}"), "server_name": format!("{name}:3306"),
            "password": project.secret(&format!("{name}.secret"), password),
        })
    };
    let down = format!("mysql://a@127.0.0.1:{}/a", farrier_testkit::free_port());
    project.environment(&json!({
        "accounts": target("m5", &accounts),
        "toolsdb": target("toolsdb", &accounts),
        "s1": target("s1", &s1),
        "s2": target("s2", &s2),
        "s3": { "kind": "sql", "url": down },
        "replicas": { "group": ["s1", "s2", "s3"] },
        "legacy": { "group": ["toolsdb"] },
    }));
    Site { project, accounts, s1, s2, _servers: servers }
}

/// Accounts with their hashes, limits and grants, as the server tells them.
fn accounts_of(server: &Database) -> Vec<String> {
    let names = server.exec(
        "SELECT User, JSON_VALUE(Priv, '$.authentication_string'), COALESCE(JSON_VALUE(Priv, '$.max_user_connections'), 0) \
         FROM mysql.global_priv WHERE User LIKE 's5%' ORDER BY User",
    );
    let grants = |line: &str| {
        let user = line.split('\t').next().unwrap();
        let grants = server.exec(&format!("SHOW GRANTS FOR '{user}'@'%'"));
        let mut grants: Vec<&str> = grants.lines().filter(|grant| !grant.contains("ON *.*")).collect();
        grants.sort_unstable();
        format!("{line} {}", grants.join(" "))
    };
    names.lines().map(grants).collect()
}

fn as_wanted(server: &Database, count: usize) {
    let found = accounts_of(server);
    assert_eq!(found.len(), count);
    for (n, line) in found.iter().enumerate() {
        let user = format!("s{}", 50_000 + n);
        let wanted = format!(
            "{user}\t{}\t10 GRANT `labsdbuser` TO `{user}`@`%` SET DEFAULT ROLE `labsdbuser` FOR `{user}`@`%`",
            HASH.to_uppercase()
        );
        // A server keeps the digits as they were given; ours are given in capitals.
        assert_eq!(line.to_uppercase(), wanted.to_uppercase());
    }
}

fn recorded(site: &Site) -> String {
    site.accounts.exec(
        "SELECT hostname, status, COUNT(*) FROM account_host GROUP BY hostname, status ORDER BY hostname, status",
    )
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
    assert_eq!(recorded(&site), "s1:3306\tpresent\t12\ns2:3306\tpresent\t12\ntoolsdb:3306\tpresent\t12\n");
    let made = site.s1.writes();
    assert_eq!(made.iter().filter(|sql| sql.starts_with("CREATE USER")).count(), 1, "{made:?}");
    // On ToolsDB everyone may do everything with databases of their own, and those alone.
    let grants = site.accounts.exec("SHOW GRANTS FOR 's50007'@'%'");
    assert!(grants.contains(r"GRANT ALL PRIVILEGES ON `s50007\\_\\_%`.*"), "{grants}");
    assert!(grants.contains(r"GRANT SELECT, SHOW VIEW ON `%\\_p`.*"), "{grants}");

    // The second time nothing is left to do, and one server is still down.
    let writes =
        |site: &Site| [site.accounts.writes(), site.s1.writes(), site.s2.writes()].map(|all| all.len());
    let before = writes(&site);
    site.project.farrier(&run).expect(13);
    assert_eq!(writes(&site), before);

    // The hash, which opens accounts to whoever can guess, is nowhere but on the servers.
    let stored = fs::read(site.project.path(".farrier/farrier.db")).unwrap();
    let wal = fs::read(site.project.path(".farrier/farrier.db-wal")).unwrap_or_default();
    for text in [HASH.to_owned(), HASH.to_uppercase(), HASH[1..].to_owned()] {
        let holds = |bytes: &[u8]| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(!holds(&stored) && !holds(&wal), "the hash is stored");
        assert!(!plan.out.contains(&text) && !ended.to_string().contains(&text), "the hash is shown");
    }
    site.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

#[test]
fn killed_in_the_middle_it_goes_on_and_makes_no_account_twice() {
    let site = site(400);
    let args = ["run", "harvest-replicas", "--env", "test", "--yes", "--accept-guards"];
    let mut started = Started::from(site.project.command(&args));
    let made = || site.s1.exec("SELECT COUNT(*) FROM mysql.global_priv WHERE User LIKE 's5%'");
    wait_until("the first accounts", || made().trim().parse::<u64>().unwrap() >= 20);
    started.child.kill().unwrap();
    let ended = started.end();
    assert_eq!(ended.signal, Some(9), "{ended}");
    let before: u64 = made().trim().parse().unwrap();
    assert!(before < 400, "it was killed too late to show anything");

    let runs = site.project.farrier(&["runs", "-o", "json"]).expect(0).json();
    let parent = runs
        .as_array()
        .unwrap()
        .iter()
        .find(|run| run["runbook"] == "harvest-replicas")
        .unwrap_or_else(|| panic!("the run is there: {runs}"));
    let id = parent["id"].as_str().unwrap();
    site.project.farrier(&["resume", id]).expect(13);
    as_wanted(&site.s1, 400);
    as_wanted(&site.s2, 400);
    assert_eq!(recorded(&site), "s1:3306\tpresent\t400\ns2:3306\tpresent\t400\ntoolsdb:3306\tpresent\t400\n");
    let statements = site.s1.writes();
    let created: Vec<&String> = statements.iter().filter(|sql| sql.starts_with("CREATE USER")).collect();
    assert_eq!(created.len(), 400, "each account is made once");
    site.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}
