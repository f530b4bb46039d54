//! Passwords that are easy to recognise, on targets that refuse, cut, garble and never answer: they are found nowhere.

mod places;
mod steps;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use farrier_testkit::mariadb::MariaDb;
use farrier_testkit::slapd::{self, Slapd};
use farrier_testkit::wait_until;
use serde_json::{Value, json};

use self::places::{Manner, Places, furnish, server};
use self::steps::Steps;
use crate::common::{Answer, Project, Started};
use crate::serving::{Serving, request};
use crate::tattlers::Tattler;

/// With characters that differ when they are encoded.
pub(crate) const CANARY: &str = "Canary+/7~?&=Kanarienvogel>>";
/// A part of it as it is, in base64 at each of the three offsets, and as in addresses.
const FORMS: [&str; 5] =
    ["Kanarienvogel", "Q2FuYXJ5Ky83fj8m", "NhbmFyeSsvN34/", "YW5hcnkrLzd+PyY9", "Canary%2B%2F7"];

#[track_caller]
fn holds_no_secret(what: &str, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for form in FORMS {
        if let Some(at) = text.find(form) {
            let (before, after) = text.split_at(at);
            let before: String =
                before.chars().rev().take(800).collect::<Vec<_>>().into_iter().rev().collect();
            panic!("`{form}` is in {what}: … {before}{}", after.chars().take(200).collect::<String>());
        }
    }
}

/// Everything below a folder but where the secret is kept.
fn search(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            search(&path);
        } else if path.is_file() && !["canary.secret", "replica.my.cnf"].iter().any(|own| path.ends_with(own))
        {
            holds_no_secret(&path.display().to_string(), &fs::read(&path).unwrap());
        }
    }
}

/// The folders of all processes.
fn processes() -> impl Iterator<Item = fs::DirEntry> {
    let is_process =
        |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
    fs::read_dir("/proc").unwrap().flatten().filter(is_process)
}

/// Runs the binary with all its logs, looking at the command lines of all processes that come up meanwhile.
fn watched(project: &Project, args: &[&str]) -> Answer {
    let older: HashSet<_> = processes().map(|entry| entry.file_name()).collect();
    let mut command = project.command(args);
    command.env("FARRIER_LOG", "trace");
    let mut started = Started::from(command);
    while started.child.try_wait().unwrap().is_none() {
        for entry in processes().filter(|entry| !older.contains(&entry.file_name())) {
            if let Ok(line) = fs::read(entry.path().join("cmdline")) {
                holds_no_secret(&format!("the command line of {}", entry.path().display()), &line);
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    let answer = started.end();
    holds_no_secret("its output", answer.out.as_bytes());
    holds_no_secret("its errors and logs", answer.err.as_bytes());
    answer
}

/// A project in which every action that can come to know the secret is a step, as far as `wanted` wants it.
struct Stage {
    project: Project,
    steps: Steps,
}

impl Stage {
    fn new(timeout: &str, places: &Places, wanted: impl Fn(&str, &str) -> bool) -> Stage {
        let project = Project::new();
        let secret = project.secret("canary.secret", CANARY);
        furnish(&project);
        let steps = Steps::of(&project, wanted);
        project.write("runbooks/leaky.yaml", &steps.runbook("leaky", timeout));
        project.environment(&steps.environment(|kind, alias| places.of(&project, kind, alias, &secret)));
        Stage { project, steps }
    }

    /// Plans, runs and looks everywhere.
    fn keeps_to_itself(&self, when: &str) {
        let project = &self.project;
        watched(project, &["plan", "leaky", "--env", "test", "-o", "table"]);
        let ran = watched(project, &["run", "leaky", "--env", "test", "--yes"]);
        assert!(matches!(ran.code, Some(12 | 13)), "{when}: every step fails, and the run goes on: {ran}");
        // What is compressed in the store is plain here.
        let run = project.last_run();
        for words in
            [["logs", &run, "-o", "json"], ["show", &run, "-o", "json"], ["logs", &run, "-o", "table"]]
        {
            watched(project, &words);
        }
        search(&project.path(""));
    }

    /// Each step failed with what a server said, from which the secret was taken out; but for those in `quiet`.
    fn were_told(&self, quiet: &[&str]) {
        let said = self.project.farrier(&["logs", &self.project.last_run(), "-o", "json"]).expect(0).json();
        let entries: Vec<String> = said.as_array().unwrap().iter().map(Value::to_string).collect();
        let told = |step: &String| {
            let mut of_step = entries.iter().filter(|entry| entry.contains(&format!("\"{step}\"")));
            of_step.any(|entry| entry.contains("«secret»"))
        };
        let silent: Vec<&String> = self.steps.steps.keys().filter(|step| !told(step)).collect();
        let journal = || entries.iter().filter(|entry| silent.iter().any(|step| entry.contains(&**step)));
        assert_eq!(silent, quiet, "these quote no server: {:#?}", journal().collect::<Vec<_>>());
    }
}

/// Everything that can fail before a server is told a word, or without one that it has said.
#[test]
fn passwords_are_found_nowhere_however_their_targets_fail() {
    use Manner::{Cuts, Echoes, Garbles, HangsUp, NeverAnswers, Refuses};
    thread::scope(|scope| {
        for manner in [Refuses, HangsUp, Garbles, Cuts, Echoes, NeverAnswers] {
            scope.spawn(move || {
                let stage = Stage::new("500ms", &Places::at(server(manner), "dies"), |_, _| true);
                stage.keeps_to_itself(&format!("{manner:?}"));
            });
        }
        // A login that a real server refuses.
        scope.spawn(|| {
            let slapd = Slapd::start(slapd::Options::default());
            let (directory, reader) = (slapd.url(), slapd.reader_dn.clone());
            let places = Places { directory, reader, ..Places::at(server(Manner::Refuses), "dies") };
            Stage::new("500ms", &places, |name, _| name.starts_with("ldap."))
                .keeps_to_itself("a wrong password");
        });
    });
}

/// Those whose plan asks nobody: they meet their server when they write.
const PLAN_ALONE: [&str; 4] = ["http.delete", "http.request", "http.send", "mail.send"];

fn reads(name: &str, _: &str) -> bool {
    !PLAN_ALONE.contains(&name)
}

fn writes(_: &str, effect: &str) -> bool {
    effect != "read"
}

/// To a database one logs in to write as one does to read, so whoever is let in to read needs a real one.
fn is_of_databases(name: &str) -> bool {
    name.starts_with("sql.")
}

/// Servers of every kind that are told the password and repeat it in all its forms, to those who read.
#[test]
fn servers_that_repeat_a_password_are_not_quoted_with_it() {
    let tattlers = [Tattler::smtp(), Tattler::mysql(), Tattler::postgres(), Tattler::ldap(), Tattler::web()];
    let [mail, maria, postgres, ldap, web] = &tattlers;
    let places = Places {
        directory: format!("ldap://127.0.0.1:{}", ldap.port),
        mail: mail.port,
        maria: maria.port,
        postgres: postgres.port,
        ..Places::at(web.port, "tells")
    };
    // Nobody here is late on purpose.
    let stage = Stage::new("1m", &places, reads);
    stage.keeps_to_itself("a server that repeats");
    for (name, tattler) in ["maria", "postgres", "ldap", "web"].iter().zip(&tattlers[1..]) {
        assert!(tattler.told() > 0, "{name} was never told the password");
    }
    // The first says nothing to its server but the handshake; the others know what they set, and quote nobody.
    stage.were_told(&["http_certificate", "http_drop_variables", "http_variables"]);
    seen_by_the_service(stage.project);
}

/// One that says it over and over, so that whoever shortens what it says cuts in the middle of one.
#[test]
fn a_server_that_goes_on_and_on_is_quoted_in_short_and_without_a_part_of_the_password() {
    let flood = Tattler::flooding_web();
    let some = ["http.get", "k8s.get", "prometheus.query"];
    let stage = Stage::new("1m", &Places::at(flood.port, "tells"), |name, _| some.contains(&name));
    stage.keeps_to_itself("a flood");
    stage.were_told(&[]);
    let journal = stage.project.farrier(&["logs", &stage.project.last_run(), "-o", "json"]).expect(0).out;
    assert!(journal.len() < 1 << 18, "a journal of {} bytes", journal.len());
}

/// The same to those who write: whoever reads is let in, so that every action comes as far as its changes.
#[test]
fn servers_that_repeat_a_password_to_those_who_write_are_not_quoted_with_it() {
    let slapd = Slapd::start(slapd::Options { entries: ENTRIES.to_owned(), ..slapd::Options::default() });
    // A request of which nobody knows whether it was carried out parks the run, and nothing else in it begins.
    for of_http in [true, false] {
        let (mail, ldap, web) = (Tattler::smtp(), Tattler::ldap(), Tattler::web_to_read());
        let places = Places {
            directory: slapd.url(),
            reader: String::new(),
            directory_to_write: Some(format!("ldap://127.0.0.1:{}", ldap.port)),
            mail: mail.port,
            ..Places::at(web.port, "plans")
        };
        let stage = Stage::new("1m", &places, |name, effect| {
            writes(name, effect) && !is_of_databases(name) && name.starts_with("http.") == of_http
        });
        stage.keeps_to_itself("a server that repeats what those say who write");
        // The node takes pods already, and whoever waits writes nothing.
        let quiet: &[&str] =
            if of_http { &["http_drop_variables", "http_variables"] } else { &["k8s_uncordon", "k8s_wait"] };
        stage.were_told(quiet);
        seen_by_the_service(stage.project);
    }
}

/// A database whose account sees everything and may change nothing: every action comes as far as its change, which the server
/// refuses. What it quotes of a statement, and what the logs say of it, has no password in it.
#[test]
fn databases_that_refuse_what_is_written_are_not_told_of_with_a_password() {
    let server_of_our_own = MariaDb::start();
    let database = server_of_our_own.fresh_database();
    database.exec(&TABLES.replace("PASSWORD_OF_KEEPER", CANARY));
    let port = database.url().rsplit(':').next().unwrap().split('/').next().unwrap().parse().unwrap();
    let places = Places { maria: port, ..Places::at(server(Manner::Refuses), "plans") };
    // Whoever makes passwords finds no row of the account, and the others find one.
    let rounds: [(&str, &[&str]); 2] = [
        ("DELETE FROM a.account", &["sql.credentials", "sql.sync"]),
        (
            "INSERT INTO a.account (mysql_username, type, username, password_hash) \
             VALUES ('s52503', 'tool', 'tools.example', PASSWORD('other'))",
            &[],
        ),
    ];
    for (sql, alone) in rounds {
        database.exec(sql);
        let stage = Stage::new("1m", &places, |name, effect| {
            writes(name, effect)
                && is_of_databases(name)
                && if alone.is_empty() { name != "sql.credentials" } else { alone.contains(&name) }
        });
        stage.keeps_to_itself("a database that refuses");
        let run = stage.project.last_run();
        let journal = stage.project.farrier(&["logs", &run, "-o", "json"]).expect(0).json();
        let events = || journal.as_array().unwrap().iter().map(|entry| &entry["event"]["node"]);
        let began: BTreeSet<&str> = events()
            .filter(|event| event["event"].get("intent").is_some())
            .filter_map(|event| event["node"].as_str())
            .collect();
        let refused: BTreeSet<&str> = events()
            .filter(|event| event["event"]["failed"]["failure"]["message"].to_string().contains("denied"))
            .filter_map(|event| event["node"].as_str())
            .collect();
        let all: BTreeSet<&str> = stage.steps.steps.keys().map(String::as_str).collect();
        let never: Vec<&str> = all.difference(&began).copied().collect();
        let done: Vec<&str> = began.difference(&refused).copied().collect();
        // Before it removes a database it reads the dump of it, which is another one than the example's. A dump is a file of ours.
        let (others_never, others_done): (&[&str], &[&str]) =
            if alone.is_empty() { (&["sql_drop_databases"], &["sql_dump"]) } else { (&[], &[]) };
        assert_eq!((&*never, &*done), (others_never, others_done), "{journal:#}");
    }
}

/// No action that can come to know a secret is left out of both.
#[test]
fn every_action_that_can_know_a_secret_meets_a_server_that_repeats_it() {
    let project = Project::new();
    let all = Steps::of(&project, |_, _| true);
    let met = Steps::of(&project, |name, effect| reads(name, effect) || writes(name, effect));
    assert_eq!(met.steps.keys().collect::<Vec<_>>(), all.steps.keys().collect::<Vec<_>>());
    for action in ["external.run", "http.variables", "k8s.get", "ldap.add", "mail.send", "sql.account"] {
        assert!(
            all.steps.contains_key(&action.replace('.', "_")),
            "{action} is not there: {:?}",
            all.targets
        );
    }
    assert!(!all.steps.contains_key("files_write"), "its targets have no secrets");
}

/// What the examples of the actions for databases change, and who is to change it.
const TABLES: &str = "CREATE DATABASE a;
CREATE DATABASE s52503__links;
CREATE TABLE s52503__links.pages (id int PRIMARY KEY) ENGINE=InnoDB;
CREATE TABLE a.account (id int AUTO_INCREMENT PRIMARY KEY, mysql_username varchar(255), type varchar(8), username varchar(255), \
password_hash varchar(41), UNIQUE (type, username));
CREATE TABLE a.toolstate (toolname varchar(64) PRIMARY KEY);
INSERT INTO a.toolstate VALUES ('wm-lol');
CREATE TABLE a.tools (name varchar(64) PRIMARY KEY, id int, home text, maintainers text, updated int);
CREATE USER 's52503'@'%' IDENTIFIED BY 'other';
CREATE USER 'keeper'@'%' IDENTIFIED BY 'PASSWORD_OF_KEEPER';
GRANT SELECT, SHOW VIEW, TRIGGER, EVENT, LOCK TABLES, PROCESS ON *.* TO 'keeper'@'%'";

/// What the examples of the actions for directories change.
const ENTRIES: &str = "dn: uid=tools.example,ou=people,ou=servicegroups,dc=wikimedia,dc=org
objectClass: person
objectClass: posixAccount
objectClass: shadowAccount
uid: tools.example
cn: tools.example
sn: tools.example
uidNumber: 51234
gidNumber: 51234
homeDirectory: /data/project/example
loginShell: /bin/bash

dn: cn=tools.other,ou=servicegroups,dc=wikimedia,dc=org
objectClass: groupOfNames
objectClass: posixGroup
cn: tools.other
gidNumber: 51235
member: uid=tools.example,ou=people,ou=servicegroups,dc=wikimedia,dc=org
member: uid=other,ou=people,dc=wikimedia,dc=org
";

/// What a service says of such runs to those who may see them: to every question of its API, and in its streams of events.
fn seen_by_the_service(project: Project) {
    let mut serving = Serving::start_in(project, "");
    let heard_at_the_end = |path: &str| {
        let mut stream = TcpStream::connect(serving.address).unwrap();
        let asked = request("x", "GET", path, Some(serving.token("admin")), None, "");
        stream.write_all(asked.as_bytes()).unwrap();
        thread::spawn(move || {
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard);
            String::from_utf8_lossy(&heard).into_owned()
        })
    };
    // One run of its own, watched from the beginning.
    let before = serving.project.last_run();
    let all_events = heard_at_the_end("/api/v1/events");
    let started =
        serving.post("/api/v1/runbooks/leaky/runs", "admin", &json!({ "environment": "test" })).expect(201);
    let run = started.json()["run"].as_str().unwrap().to_owned();
    let events = heard_at_the_end(&format!("/api/v1/runs/{run}/events"));
    wait_until("the run is over or waits for a person", || {
        let view = serving.get(&format!("/api/v1/runs/{run}"), "admin").expect(200).json();
        ["degraded", "parked"].iter().any(|state| view["state"] == *state)
    });
    let described = serving.get("/api/v1/openapi.json", "admin").expect(200).json();
    let paths = described["paths"].as_object().unwrap().iter().filter(|(_, path)| path.get("get").is_some());
    for (path, _) in paths.filter(|(path, _)| !path.ends_with("/events")) {
        for run in [&before, &run] {
            let path = path.replace("{run}", run).replace("{runbook}", "leaky");
            assert!(!path.contains('{'), "say here what stands in `{path}`");
            let answered = serving.get(&path, "admin").expect(200);
            holds_no_secret(&format!("the answer to GET {path}"), answered.head.as_bytes());
            holds_no_secret(&format!("the answer to GET {path}"), answered.body.as_bytes());
        }
    }
    serving.kill();
    let (events, all_events) = (events.join().unwrap(), all_events.join().unwrap());
    assert!(events.contains("«secret»") || events.contains("in_doubt"), "the stream tells nothing: {events}");
    assert!(all_events.contains(&run), "the stream of all runs tells nothing: {all_events}");
    holds_no_secret("the events of a run", events.as_bytes());
    holds_no_secret("the events of all runs", all_events.as_bytes());
    holds_no_secret("what the service said", serving.said().as_bytes());
    search(&serving.project.path(""));
}

/// What can be planned without a look, so that a plan can be saved.
const BLIND: &str = "runbook: blind
summary: Tells everyone
owner: tests
risk: recoverable
targets: { web: http, post: mail }
steps:
  post: { uses: http.request, on_failure: continue, timeout: 1s, undo: none, with: { target: web, method: POST, path: [a], json: { a: 1 } } }
  mail: { uses: mail.send, on_failure: continue, timeout: 1s, undo: none, with: { target: post, to: [toolforge-admins], subject: a, text: b } }
";

fn with_kind(kind: &str, mut target: Value) -> Value {
    target["kind"] = json!(kind);
    target
}

#[test]
fn a_saved_plan_holds_no_password_and_neither_does_its_run() {
    let project = Project::new();
    let secret = project.secret("canary.secret", CANARY);
    project.write("runbooks/blind.yaml", BLIND);
    let port = server(Manner::Echoes);
    let places = Places::at(port, "tells");
    project.environment(&json!({
        "web": with_kind("http", places.of(&project, "http", "web", &secret)),
        "post": with_kind("mail", places.of(&project, "mail", "post", &secret)),
    }));
    watched(&project, &["plan", "blind", "--env", "test", "--out", "plan.json"]).expect_one_of(&[0, 2, 3]);
    assert!(project.path("plan.json").exists());
    search(&project.path(""));
    watched(&project, &["apply", "plan.json", "--yes"]).expect_one_of(&[12, 13]);
    search(&project.path(""));
}

/// A password in the memory of a process that dies is not to end up in a file, however much the system allows.
#[test]
fn a_process_that_dies_leaves_no_core_file() {
    let project = Project::new();
    let secret = project.secret("canary.secret", CANARY);
    project.write(
        "runbooks/waits.yaml",
        "runbook: waits\nsummary: Waits\nowner: tests\nrisk: read_only\ntargets: { web: http }\nsteps:\n  one: { uses: \
         http.get, with: { target: web, path: [a] } }\n",
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let places = Places::at(listener.local_addr().unwrap().port(), "tells");
    project.environment(&json!({ "web": with_kind("http", places.of(&project, "http", "web", &secret)) }));
    let ours = project.command(&["run", "waits", "--env", "test", "--yes"]);
    let mut command = std::process::Command::new("prlimit");
    command.args(["--core=unlimited:unlimited", "--"]).arg(ours.get_program()).args(ours.get_args());
    command.current_dir(project.path(""));
    let mut started = Started::from(command);
    // What it has said it has in its memory.
    let mut asked = None;
    wait_until("it asks its server", || {
        asked = listener.accept().ok();
        asked.is_some() || started.child.try_wait().unwrap().is_some()
    });
    let (mut stream, _) = asked.unwrap();
    stream.set_nonblocking(false).unwrap();
    let mut request = vec![0; 4096];
    let length = stream.read(&mut request).unwrap();
    assert!(String::from_utf8_lossy(&request[..length]).contains(CANARY), "the password is not said");
    let pid = started.child.id();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let status = std::process::Command::new("kill").args(["-ABRT", &pid.to_string()]).status().unwrap();
    assert!(status.success());
    let status = started.child.wait().unwrap();
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false), "{status}");
    started.end();
    search(&project.path(""));
}

/// Whoever searches and finds nothing may have searched nowhere. So here are leaks, and each is found.
#[test]
fn the_search_finds_what_is_planted() {
    let project = Project::new();
    for (place, form) in FORMS.iter().enumerate() {
        let file = format!("data/planted-{place}");
        project.write(&file, &format!("some text before it {form} and after it"));
        let folder = project.path("");
        let found = std::panic::catch_unwind(|| search(&folder));
        assert!(found.is_err(), "`{form}` was not found");
        fs::remove_file(project.path(&file)).unwrap();
    }
    // A runbook that writes a password into its own text: it is shown, logged and stored, and each of them is looked at.
    let leaky = format!(
        "runbook: leaky\nsummary: Leaks\nowner: tests\nrisk: read_only\nsteps:\n  one: {{ uses: data.let, with: {{ value: \
         '{CANARY}' }} }}\n"
    );
    project.write("runbooks/leaky.yaml", &leaky);
    project.environment(&json!({}));
    project.farrier(&["run", "leaky", "--env", "test", "--yes"]).expect(0);
    fs::remove_file(project.path("runbooks/leaky.yaml")).unwrap();
    let run = project.last_run();
    let looks: [(&str, &dyn Fn()); 2] = [
        ("the store", &|| search(&project.path("data"))),
        ("the journal", &|| drop(watched(&project, &["logs", &run, "-o", "json"]))),
    ];
    for (what, look) in looks {
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(look));
        assert!(found.is_err(), "a password in {what} was not found");
    }
}
