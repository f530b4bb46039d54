//! The servers, and tools that are made on them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use farrier_testkit::clock::Clock;
use farrier_testkit::mariadb::{Database, MariaDb};
use farrier_testkit::slapd::{self, Slapd};
use serde_json::json;

use crate::common::{Answer, Project};

const PEOPLE: &str = "ou=people,ou=servicegroups,dc=wikimedia,dc=org";

/// Entries that are a living tool's, or name it: its account, its group, its sudo rule, and its maintainer.
pub(crate) const ENTRIES: usize = 4;

pub(crate) struct Site {
    pub(crate) project: Project,
    pub(crate) directory: Slapd,
    /// The server's administrator, behind a database that no tool has.
    pub(crate) toolsdb: Database,
    clock: Clock,
    _server: MariaDb,
}

/// A tool by its name and the number of its account.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) number: u32,
}

impl Site {
    /// Servers without tools, and the shipped runbooks.
    pub(crate) fn new() -> Site {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test gives files to other accounts: run it as root"
        );
        let mut project = Project::demo();
        fs::remove_dir_all(project.path("environments")).unwrap();
        for root in ["homes", "archives", "staging"] {
            fs::create_dir_all(project.path(root)).unwrap();
        }
        let entries = "dn: cn=tools,ou=projects,dc=wikimedia,dc=org\nobjectClass: organizationalRole\ncn: tools\n\n\
                       dn: ou=sudoers,cn=tools,ou=projects,dc=wikimedia,dc=org\nobjectClass: organizationalUnit\n\
                       ou: sudoers\n\n\
                       dn: uid=bogdan,ou=people,dc=wikimedia,dc=org\nobjectClass: inetOrgPerson\nuid: bogdan\n\
                       cn: Bogdan\nsn: Bogdan\n\n";
        let directory = Slapd::start(slapd::Options { entries: entries.into(), ..slapd::Options::default() });
        let server = MariaDb::start();
        let toolsdb = server.fresh_database();
        let url = toolsdb.url();
        let (account, place) = url.strip_prefix("mysql://").unwrap().split_once('@').unwrap();
        let (user, password) = account.split_once(':').unwrap();
        let root = |name: &str| project.path(name).display().to_string();
        let homes = json!({
            "kind": "files",
            "roots": { "tool_homes": root("homes"), "archives": root("archives"), "staging": root("staging") },
        });
        project.write("environments/test/cluster.yaml", CLUSTER);
        let mail = json!({ "mail": "admins@example.org" });
        let environment = json!({
            "environment": "test",
            "targets": {
                "directory": {
                    "kind": "ldap", "url": directory.url(),
                    "read_as": {
                        "dn": directory.reader_dn,
                        "password": project.secret("reader.secret", &directory.reader_password),
                    },
                    "write_as": {
                        "dn": directory.writer_dn,
                        "password": project.secret("writer.secret", &directory.writer_password),
                    },
                },
                "homes": homes,
                "cluster": { "kind": "k8s", "url": "objects:test/cluster.yaml" },
                "database": {
                    "kind": "sql", "url": format!("mysql://{user}@{place}"),
                    "password": project.secret("toolsdb.secret", password),
                },
                "post": {
                    "kind": "mail", "url": "folder:../mail", "from": "farrier@example.org",
                    "people": { "toolforge-admins": ["admins@example.org"] },
                },
            },
            "notify": { "toolforge-admins": mail, "toolforge-roots": mail },
        });
        project.write("environments/test.yaml", &environment.to_string());
        let clock = Clock::start();
        project.goes_by(&clock);
        Site { project, directory, toolsdb, clock, _server: server }
    }

    /// Makes a tool as the programs of Toolforge do: account, group and sudo rule in the directory, a home with files of its
    /// own, a database account, and two databases with rows.
    pub(crate) fn create(&self, tool: Tool) {
        let Tool { name, number } = tool;
        self.directory.add_ldif(&format!(
            "dn: uid=tools.{name},{PEOPLE}\nobjectClass: person\nobjectClass: shadowAccount\nobjectClass: posixAccount\n\
             uid: tools.{name}\ncn: tools.{name}\nsn: tools.{name}\nuidNumber: {number}\ngidNumber: {number}\n\
             homeDirectory: /data/project/{name}\nloginShell: /bin/bash\n\n\
             dn: cn=tools.{name},ou=servicegroups,dc=wikimedia,dc=org\nobjectClass: groupOfNames\n\
             objectClass: posixGroup\ncn: tools.{name}\ngidNumber: {number}\n\
             member: uid=bogdan,ou=people,dc=wikimedia,dc=org\n\n\
             dn: cn=runas-tools.{name},ou=sudoers,cn=tools,ou=projects,dc=wikimedia,dc=org\n\
             objectClass: sudoRole\ncn: runas-tools.{name}\nsudoUser: %tools.{name}\n",
        ));
        let home = self.home(tool);
        fs::create_dir_all(home.join("public_html/deep")).unwrap();
        fs::write(home.join("replica.my.cnf"), "[client]\n").unwrap();
        fs::write(home.join("public_html/index.html"), format!("<h1>{name}</h1>\n")).unwrap();
        fs::write(home.join("public_html/deep/data"), vec![b'x'; 300_000]).unwrap();
        symlink("/etc/shadow", home.join("shadow")).unwrap();
        for path in ["", "public_html", "public_html/deep", "public_html/index.html", "public_html/deep/data"]
        {
            chown(home.join(path), Some(number), Some(number)).unwrap();
        }
        let account = format!("s{number}");
        self.toolsdb.exec(&format!(
            "CREATE USER {account}@'%' IDENTIFIED BY 'x';
             CREATE DATABASE {account}__links; CREATE TABLE {account}__links.pages (page int PRIMARY KEY, title text);
             INSERT INTO {account}__links.pages VALUES (1, 'Bridges of {name}'), (2, 'Canals');
             CREATE DATABASE {account}__maps; CREATE TABLE {account}__maps.sheets (sheet varchar(50) PRIMARY KEY, scale int);
             INSERT INTO {account}__maps.sheets VALUES ('north', 25000), ('south', NULL);"
        ));
    }

    /// Runs a runbook to its end.
    #[track_caller]
    pub(crate) fn run(&self, runbook: &str, inputs: &[&str]) -> Answer {
        let inputs: Vec<&str> = inputs.iter().flat_map(|input| ["-i", *input]).collect();
        self.project.farrier(&[&["run", runbook, "--env", "test", "--yes"][..], &inputs].concat())
    }

    /// Moves the clock of everything that Farrier does here to so long after the beginning, and a while. The servers have the
    /// machine's.
    pub(crate) fn on_day(&self, day: u64, hour: u64) {
        self.clock.set_ahead(Duration::from_secs((day * 24 + hour) * 60 * 60));
    }

    pub(crate) fn home(&self, tool: Tool) -> PathBuf {
        self.project.path("homes").join(tool.name)
    }

    pub(crate) fn archive(&self, tool: Tool) -> PathBuf {
        self.project.path("archives").join(format!("tools.{}-{}.tgz", tool.name, tool.number))
    }

    /// The attributes of a tool's account, or nothing.
    pub(crate) fn account(&self, tool: Tool) -> String {
        let attributes = ["loginShell", "pwdAccountLockedTime", "pwdPolicySubentry"];
        self.directory.search(&format!("(uid=tools.{})", tool.name), &attributes)
    }

    /// How many entries of the directory are the tool's, or name it.
    pub(crate) fn entries(&self, tool: Tool) -> usize {
        let dump = self.directory.dump().replace("\n ", "");
        dump.split("\n\n").filter(|entry| entry.contains(&format!("tools.{}", tool.name))).count()
    }

    /// The databases of a tool.
    pub(crate) fn databases(&self, tool: Tool) -> Vec<String> {
        let prefix = format!("s{}__", tool.number);
        let all = self.toolsdb.exec("SHOW DATABASES");
        all.lines().filter(|name| name.starts_with(&prefix)).map(ToOwned::to_owned).collect()
    }

    pub(crate) fn is_locked(&self, tool: Tool) -> bool {
        let shown = self.toolsdb.exec(&format!("SHOW CREATE USER s{}@'%'", tool.number));
        shown.contains("ACCOUNT LOCK")
    }

    /// The home is whole and its owner's.
    pub(crate) fn home_is_whole(&self, tool: Tool) -> bool {
        Site::is_whole(&self.home(tool), tool)
    }

    /// The home is whole, in its place or where it is taken out of everybody's reach.
    pub(crate) fn home_is_somewhere(&self, tool: Tool) -> bool {
        let inside =
            |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let quarantine = self.project.path("homes/.farrier-private/quarantine");
        self.home_is_whole(tool)
            || inside(&quarantine)
                .flat_map(|effect| inside(&effect).collect::<Vec<PathBuf>>())
                .any(|home| Site::is_whole(&home, tool))
    }

    fn is_whole(home: &Path, tool: Tool) -> bool {
        let size = |path: &str| fs::symlink_metadata(home.join(path)).map(|file| file.len());
        fs::metadata(home).is_ok_and(|folder| folder.uid() == tool.number)
            && size("public_html/deep/data").is_ok_and(|size| size == 300_000)
            && size("public_html/index.html").is_ok()
            && size("replica.my.cnf").is_ok()
            && size("shadow").is_ok()
    }

    /// What is in an archive, by `tar`.
    #[track_caller]
    pub(crate) fn listed(&self, tool: Tool) -> String {
        let output = Command::new("tar").arg("-tzf").arg(self.archive(tool)).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A tool is archived, whole, and gone from everywhere else.
    #[track_caller]
    pub(crate) fn is_archived_and_gone(&self, tool: Tool) {
        let listed = self.listed(tool);
        for file in
            ["public_html/index.html", "public_html/deep/data", "replica.my.cnf", "shadow", "_manifest.jsonl"]
        {
            assert!(listed.contains(file), "`{file}` is not in {listed}");
        }
        for database in ["links", "maps"] {
            let dump = format!("s{}__{database}.sql.zst", tool.number);
            assert!(listed.contains(&dump), "`{dump}` is not in {listed}");
        }
        assert!(!self.home(tool).exists(), "the home is there still");
        assert_eq!(self.databases(tool), [""; 0]);
        assert_eq!(self.entries(tool), 0, "{}", self.directory.dump());
        assert!(self.is_locked(tool), "the account of the databases is locked until it is removed");
    }

    /// A tool is as it was made.
    #[track_caller]
    pub(crate) fn is_alive(&self, tool: Tool) {
        assert!(self.home_is_whole(tool), "{tool:?}");
        assert_eq!(self.databases(tool).len(), 2, "{tool:?}");
        assert_eq!(self.entries(tool), ENTRIES, "{tool:?}");
        assert!(!self.is_locked(tool), "{tool:?}");
        assert!(!self.archive(tool).exists(), "{tool:?}");
        let account = self.account(tool);
        assert!(account.contains("loginShell: /bin/bash"), "{account}");
        assert!(
            !account.contains("pwdAccountLockedTime") && !account.contains("pwdPolicySubentry"),
            "{account}"
        );
    }
}

/// A web service and a scheduled job of `old-map`.
const CLUSTER: &str = include_str!("../../../../environments/lifecycle/cluster.yaml");
