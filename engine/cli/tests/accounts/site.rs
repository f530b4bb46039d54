//! The servers.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use farrier_testkit::find_program;
use farrier_testkit::mariadb::{Database, MariaDb};
use farrier_testkit::slapd::{self, Slapd};
use serde_json::{Value, json};

use crate::api::{Api, Variables};
use crate::common::{Answer, Project, Started};

/// Database servers, each of its own, because accounts are the server's. The list of accounts is on ToolsDB's.
pub(crate) struct Servers {
    pub(crate) project: Project,
    pub(crate) accounts: Database,
    pub(crate) s1: Database,
    pub(crate) s2: Database,
    _running: Vec<MariaDb>,
}

impl Servers {
    /// The tables as they are in use, without rows; and the role of replicas.
    pub(crate) fn start() -> Servers {
        let servers: Vec<MariaDb> = (0..3).map(|_| MariaDb::start()).collect();
        let databases: Vec<Database> = servers.iter().map(MariaDb::fresh_database).collect();
        let [accounts, s1, s2] = databases.try_into().unwrap();
        accounts.exec(
            "CREATE TABLE account (id int unsigned AUTO_INCREMENT PRIMARY KEY, mysql_username varchar(255) NOT NULL, \
             type enum('tool', 'user', 'paws') NOT NULL, username varchar(255) NOT NULL, \
             password_hash binary(41) NOT NULL, UNIQUE (type, username));
             CREATE TABLE account_host (id int unsigned AUTO_INCREMENT PRIMARY KEY, account_id int unsigned NOT NULL, \
             hostname varchar(255) NOT NULL, status enum('present', 'absent') NOT NULL, UNIQUE (account_id, hostname))",
        );
        for replica in [&s1, &s2] {
            make_role(replica);
        }
        Servers { project: Project::demo(), accounts, s1, s2, _running: servers }
    }

    /// One server of the environment.
    pub(crate) fn target(&self, name: &str, database: &Database) -> Value {
        let url = database.url();
        let (scheme, rest) = url.split_once("://").unwrap();
        let (account, place) = rest.split_once('@').unwrap();
        let (user, password) = account.split_once(':').unwrap();
        json!({
            "kind": "sql", "url": format!("{scheme}://{user}@{place}"), "server_name": format!("{name}:3306"),
            "password": self.project.secret(&format!("{name}.secret"), password),
        })
    }

    /// The targets of harvest-replicas. With `s3`, there is a third replica, which is down.
    pub(crate) fn targets(&self, s3: bool) -> Value {
        let target = |name: &str, database: &Database| self.target(name, database);
        let down = format!("mysql://a@127.0.0.1:{}/a", farrier_testkit::free_port());
        let mut replicas = vec!["s1", "s2"];
        replicas.extend(s3.then_some("s3"));
        json!({
            "accounts": target("m5", &self.accounts),
            "toolsdb": target("toolsdb", &self.accounts),
            "s1": target("s1", &self.s1),
            "s2": target("s2", &self.s2),
            "s3": { "kind": "sql", "url": down, "server_name": "s3:3306" },
            "replicas": { "group": replicas },
            "legacy": { "group": ["toolsdb"] },
        })
    }

    /// How many servers have how many accounts in which state.
    pub(crate) fn recorded(&self) -> String {
        self.accounts.exec(
            "SELECT hostname, status, COUNT(*) FROM account_host GROUP BY hostname, status ORDER BY hostname, status",
        )
    }

    /// How many statements that write each server has been sent.
    pub(crate) fn writes(&self) -> [usize; 3] {
        [self.accounts.writes(), self.s1.writes(), self.s2.writes()].map(|all| all.len())
    }

    /// What `show` says of the newest run of a runbook.
    #[track_caller]
    pub(crate) fn last_of(&self, runbook: &str) -> Value {
        let runs = self.project.farrier(&["runs", "-o", "json"]).expect(0).json();
        let is_one = |run: &&Value| run["runbook"] == runbook;
        let run = runs.as_array().unwrap().iter().find(is_one).unwrap_or_else(|| panic!("no run: {runs}"));
        self.project.farrier(&["show", run["id"].as_str().unwrap(), "-o", "json"]).expect(0).json()
    }

    /// None of the texts, in either case, is anywhere where Farrier keeps something, or in what it said.
    #[track_caller]
    pub(crate) fn nowhere(&self, secrets: &[String], said: &[&Answer]) {
        let mut kept: Vec<(String, Vec<u8>)> = fs::read_dir(self.project.path(".farrier"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .map(|path| (path.display().to_string(), fs::read(path).unwrap()))
            .collect();
        assert!(kept.iter().any(|(name, _)| name.ends_with("farrier.db")), "there is no store");
        kept.extend(said.iter().map(|answer| ("an answer".into(), answer.to_string().into_bytes())));
        for secret in secrets {
            for text in [secret.to_uppercase(), secret.to_lowercase(), secret.clone()] {
                for (name, bytes) in &kept {
                    let holds = bytes.windows(text.len()).any(|part| part == text.as_bytes());
                    assert!(!holds, "{name} holds a secret");
                }
            }
        }
    }
}

/// The role of those who may read a replica.
pub(crate) fn make_role(replica: &Database) {
    replica.exec(&format!(
        "CREATE ROLE labsdbuser; GRANT labsdbuser TO {}@'127.0.0.1' WITH ADMIN OPTION",
        replica.name()
    ));
}

/// Accounts whose names begin as in `like`, with their hashes in small letters, limits and grants, as the server tells them.
pub(crate) fn accounts_of(server: &Database, like: &str) -> Vec<String> {
    let names = server.exec(&format!(
        "SELECT User, LOWER(JSON_VALUE(Priv, '$.authentication_string')), \
         COALESCE(JSON_VALUE(Priv, '$.max_user_connections'), 0) \
         FROM mysql.global_priv WHERE User RLIKE '{like}' AND COALESCE(JSON_VALUE(Priv, '$.is_role'), 0) = 0 ORDER BY User",
    ));
    let lines: Vec<&str> = names.lines().collect();
    let user = |line: &str| line.split('\t').next().unwrap().to_owned();
    // One question for all of them: a client for each account would take longer than what is tested.
    let asked = |line: &&str| format!("SELECT '---'; SHOW GRANTS FOR '{}'@'%';", user(line));
    let told = server.exec(&lines.iter().map(asked).collect::<String>());
    let told: Vec<&str> = told.split("---\n").skip(1).collect();
    assert_eq!(told.len(), lines.len(), "{told:?}");
    let grants = |(line, told): (&&str, &str)| {
        let mut grants: Vec<&str> = told.lines().filter(|grant| !grant.contains("ON *.*")).collect();
        grants.sort_unstable();
        format!("{line} {}", grants.join(" "))
    };
    lines.iter().zip(told).map(grants).collect()
}

/// Database servers with a directory, homes, and the service that keeps their files.
pub(crate) struct Toolforge {
    pub(crate) servers: Servers,
    pub(crate) api: Api,
    directory: Slapd,
}

/// Somebody with an account.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) account: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) name: &'static str,
    /// Where the file with the credentials is in the project.
    pub(crate) file: &'static str,
    pub(crate) number: u32,
}

impl Owner {
    /// A tool's name without the project, by which its variables are kept.
    pub(crate) fn tool(self) -> Option<&'static str> {
        self.name.strip_prefix("tools.")
    }

    /// Whether there is an account on ToolsDB.
    pub(crate) fn is_on_toolsdb(self) -> bool {
        self.kind != "paws"
    }
}

/// Those of the shipped example who have a home, by the names of their accounts. Those of PAWS all belong to one number.
#[rustfmt::skip]
pub(crate) const OWNERS: [Owner; 9] = [
    Owner { account: "p4711", kind: "paws", name: "4711", file: "environments/dbusers/paws_homes/4711/.my.cnf", number: 52_771 },
    Owner { account: "p4712", kind: "paws", name: "4712", file: "environments/dbusers/paws_homes/4712/.my.cnf", number: 52_771 },
    Owner { account: "s50014", kind: "tool", name: "tools.wm-lol", file: "environments/dbusers/homes/wm-lol/replica.my.cnf", number: 50_014 },
    Owner { account: "s50107", kind: "tool", name: "tools.citation-checker", file: "environments/dbusers/homes/citation-checker/replica.my.cnf", number: 50_107 },
    Owner { account: "s50112", kind: "tool", name: "tools.commons-map", file: "environments/dbusers/homes/commons-map/replica.my.cnf", number: 50_112 },
    Owner { account: "s50126", kind: "tool", name: "tools.edit-pulse", file: "environments/dbusers/homes/edit-pulse/replica.my.cnf", number: 50_126 },
    Owner { account: "u100101", kind: "user", name: "amara", file: "environments/dbusers/user_homes/amara/replica.my.cnf", number: 100_101 },
    Owner { account: "u100102", kind: "user", name: "bogdan", file: "environments/dbusers/user_homes/bogdan/replica.my.cnf", number: 100_102 },
    Owner { account: "u100103", kind: "user", name: "chidi", file: "environments/dbusers/user_homes/chidi/replica.my.cnf", number: 100_103 },
];

impl Toolforge {
    /// The tools, people and homes of the shipped example, and no account yet. With `s3`, a replica that is down.
    pub(crate) fn start(s3: bool) -> Toolforge {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test gives files to other accounts: run it as root"
        );
        let servers = Servers::start();
        let example = servers.project.read("environments/dbusers/directory.ldif");
        let is_theirs = |entry: &&str| entry.starts_with("dn: uid=") || entry.starts_with("dn: cn=project-");
        let entries: Vec<&str> = example.split("\n\n").filter(is_theirs).collect();
        let entries = entries.join("\n\n");
        let directory = Slapd::start(slapd::Options { entries, ..slapd::Options::default() });
        let api = Api::start(servers.project.path("environments/dbusers"));
        let site = Toolforge { servers, api, directory };
        site.environment(s3);
        site
    }

    /// Writes the environment, with or without the replica that is down.
    pub(crate) fn environment(&self, s3: bool) {
        self.write_environment(self.servers.targets(s3));
    }

    /// The replica that was down is there.
    pub(crate) fn s3_is_up(&self, s3: &Database) {
        let mut targets = self.servers.targets(true);
        targets["s3"] = self.servers.target("s3", s3);
        self.write_environment(targets);
    }

    fn write_environment(&self, mut targets: Value) {
        let project = &self.servers.project;
        let root = |name: &str| project.path("environments/dbusers").join(name).display().to_string();
        let mut add = |name: &str, target: Value| targets[name] = target;
        add(
            "directory",
            json!({
                "kind": "ldap", "url": self.directory.url(),
                "read_as": {
                    "dn": self.directory.reader_dn,
                    "password": project.secret("reader.secret", &self.directory.reader_password),
                },
            }),
        );
        let roots = json!({ "tool_homes": root("homes"), "user_homes": root("user_homes") });
        add("homes", json!({ "kind": "files", "roots": roots }));
        add("paws_homes", json!({ "kind": "files", "roots": { "paws_homes": root("paws_homes") } }));
        let account =
            json!({ "basic": { "user": "farrier", "password": project.secret("api.secret", "api") } });
        let service =
            |url: String| json!({ "kind": "http", "url": url, "read_as": account, "write_as": account });
        add("credentials", service(self.api.url()));
        add("paws", service(self.api.url()));
        add("envvars", service(self.api.url()));
        project.environment(&targets);
    }

    /// A run of a runbook, begun.
    #[track_caller]
    pub(crate) fn start_run(&self, runbook: &str) -> Started {
        Started::from(self.servers.project.command(&["run", runbook, "--env", "test", "--yes"]))
    }

    /// Runs a runbook to its end.
    #[track_caller]
    pub(crate) fn run(&self, runbook: &str, inputs: &[&str]) -> Answer {
        let inputs: Vec<&str> = inputs.iter().flat_map(|input| ["-i", *input]).collect();
        self.servers.project.farrier(&[&["run", runbook, "--env", "test", "--yes"][..], &inputs].concat())
    }

    pub(crate) fn path(&self, owner: Owner) -> PathBuf {
        self.servers.project.path(owner.file)
    }

    /// The password in the file of credentials, which are for this account.
    #[track_caller]
    pub(crate) fn password(&self, owner: Owner) -> String {
        let text = self.servers.project.read(owner.file);
        let password = text
            .strip_prefix(&format!("[client]\nuser = {}\npassword = ", owner.account))
            .and_then(|rest| rest.strip_suffix('\n'))
            .unwrap_or_else(|| panic!("{owner:?} has no file of credentials"));
        assert!(password.len() == 16 && password.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        password.to_owned()
    }

    /// The variables that a tool should have besides its own, by what is in its file.
    #[track_caller]
    pub(crate) fn wanted_variables(&self, owner: Owner) -> Variables {
        let (user, password) = (owner.account.to_owned(), self.password(owner));
        ["TOOLSDB", "REPLICA"]
            .into_iter()
            .flat_map(|server| [(server, "USER", &user), (server, "PASSWORD", &password)])
            .map(|(server, what, value)| (format!("TOOL_{server}_{what}"), value.clone()))
            .collect()
    }

    /// The hash of a password, as the server makes it and the list keeps it.
    pub(crate) fn hash(&self, password: &str) -> String {
        self.servers.accounts.exec(&format!("SELECT LOWER(PASSWORD('{password}'))")).trim().to_owned()
    }

    /// The row in the list: type, name and hash, in the case in which it is kept.
    pub(crate) fn row(&self, owner: Owner) -> String {
        let account = owner.account;
        self.servers.accounts.exec(&format!(
            "SELECT type, username, password_hash FROM account WHERE mysql_username = '{account}'"
        ))
    }
}

/// Whether the server lets somebody in.
pub(crate) fn lets_in(server: &Database, account: &str, password: &str) -> bool {
    let url = server.url();
    let port = url.rsplit_once(':').unwrap().1.split('/').next().unwrap().to_owned();
    let output = Command::new(find_program("mariadb").unwrap())
        .args(["--no-defaults", "--protocol=tcp", "--host=127.0.0.1", "--batch", "--execute=SELECT 1"])
        .args([format!("--port={port}"), format!("--user={account}")])
        .env("MYSQL_PWD", password)
        .output()
        .unwrap();
    output.status.success()
}
