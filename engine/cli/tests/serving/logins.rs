//! People who log in with the name and password of a directory: LDIF files, and a real OpenLDAP. One suite for both.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::process::Stdio;

use farrier_testkit::slapd::{Options, Slapd};
use serde_json::{Value, json};

use crate::common::{Answer, Project, Started};
use crate::service::{Answered, Serving, project};

/// Two people with roles, one without; a group for everywhere, one for an area.
const PEOPLE: &str = "\
dn: uid=carol,ou=people,dc=wikimedia,dc=org
objectClass: inetOrgPerson
uid: carol
cn: Carol
sn: Carol
userPassword: carols-word

dn: uid=dan,ou=people,dc=wikimedia,dc=org
objectClass: inetOrgPerson
uid: dan
cn: Dan
sn: Dan
userPassword: dans-word

dn: uid=eve,ou=people,dc=wikimedia,dc=org
objectClass: inetOrgPerson
uid: eve
cn: Eve
sn: Eve
userPassword: eves-word

dn: cn=viewers,ou=groups,dc=wikimedia,dc=org
objectClass: groupOfNames
cn: viewers
member: uid=carol,ou=people,dc=wikimedia,dc=org
member: uid=dan,ou=people,dc=wikimedia,dc=org

dn: cn=lifecycle-admins,ou=groups,dc=wikimedia,dc=org
objectClass: groupOfNames
cn: lifecycle-admins
member: uid=carol,ou=people,dc=wikimedia,dc=org

dn: cn=unknown-here,ou=groups,dc=wikimedia,dc=org
objectClass: groupOfNames
cn: unknown-here
member: uid=eve,ou=people,dc=wikimedia,dc=org
";

const LOGIN: &str = "\
login:
  environment: people
  target: directory
  people: ou=people,dc=wikimedia,dc=org
  person: (&(objectClass=inetOrgPerson)(uid=$name))
  groups: ou=groups,dc=wikimedia,dc=org
  roles:
    viewers: { role: viewer }
    lifecycle-admins: { areas: { lifecycle: approver } }
";

fn with_directory(target: &Value) -> Project {
    let project = project();
    let text = json!({ "environment": "people", "targets": { "directory": target } }).to_string();
    project.write("environments/people.yaml", &text);
    project
}

/// A service whose people are in LDIF files.
pub(crate) fn over_files() -> Serving {
    let project = with_directory(&json!({ "kind": "ldap", "url": "ldif:../directory" }));
    project.write("directory/a.ldif", include_str!("../../../testkit/schema/base.ldif"));
    project.write("directory/b.ldif", PEOPLE);
    Serving::start_in(project, LOGIN)
}

fn log_in(serving: &Serving, name: &str, password: &str) -> Answered {
    let body = json!({ "name": name, "password": password }).to_string();
    serving.ask("POST", "/api/v1/login", None, Some(&body))
}

fn suite(serving: &Serving) {
    let session = log_in(serving, "Carol", "carols-word").expect(200).json();
    assert_eq!((session["name"].as_str(), session["via"].as_str()), (Some("carol"), Some("login")));
    let token = session["token"].as_str().unwrap().to_owned();
    let ask = |method: &str, path: &str, token: &str, body: Option<&str>| {
        serving.ask(method, path, Some(token), body)
    };
    ask("GET", "/api/v1/runs", &token, None).expect(200);
    ask("GET", "/api/v1/audit", &token, None).expect(403);
    let start = json!({ "environment": "test" }).to_string();
    let run = ask("POST", "/api/v1/runbooks/waits/runs", &token, Some(&start)).expect(201).json();
    // An area is an area: writing files is elsewhere.
    ask("POST", "/api/v1/runbooks/writes/runs", &token, Some(&start)).expect(403);
    let dan = log_in(serving, "dan", "dans-word").expect(200).json()["token"].as_str().unwrap().to_owned();
    ask("POST", "/api/v1/runbooks/waits/runs", &dan, Some(&start)).expect(403);
    // The journal bears the name of the directory, not the one that was typed.
    let run = run["run"].as_str().unwrap();
    let journal = serving.get(&format!("/api/v1/runs/{run}/journal"), "admin").expect(200).body;
    assert!(journal.contains("carol") && !journal.contains("Carol"), "{journal}");

    let refusals: Vec<String> = [
        ("carol", "dans-word"),
        ("nobody", "carols-word"),
        ("carol", ""),
        ("*", "carols-word"),
        ("carol)(uid=*", "carols-word"),
        // Known, and of no group that gives a role.
        ("eve", "eves-word"),
    ]
    .into_iter()
    .map(|(name, password)| log_in(serving, name, password).expect(401).body)
    .collect();
    // Which of them was wrong is not told.
    assert!(refusals.iter().all(|refusal| *refusal == refusals[0]), "{refusals:?}");

    // A service reads files again without throwing people out, unless somebody's rights have changed.
    serving.project.write(
        "runbooks/lifecycle/note.yaml",
        &serving.project.read("runbooks/lifecycle/waits.yaml").replace("waits", "note"),
    );
    serving.post("/api/v1/reload", "admin", &json!({})).expect(200);
    ask("GET", "/api/v1/session", &token, None).expect(200);
    ask("POST", "/api/v1/logout", &token, Some("{}")).expect(200);
    ask("GET", "/api/v1/session", &token, None).expect(401);
    let file = serving
        .project
        .read("serve.yaml")
        .replace("viewers: { role: viewer }", "viewers: { role: operator }");
    serving.project.write("serve.yaml", &file);
    serving.post("/api/v1/reload", "admin", &json!({})).expect(200);
    ask("GET", "/api/v1/session", &dan, None).expect(401);
    let dan = log_in(serving, "dan", "dans-word").expect(200).json();
    assert_eq!(dan["role"], "operator");

    // Five wrong ones, and not even the right one is tried for a while; others come in.
    for _ in 0..5 {
        log_in(serving, "dan", "wrong").expect(401);
    }
    let refused = log_in(serving, "DAN", "dans-word").expect(429).json();
    assert_eq!(refused["error"]["code"], "too_many_attempts");
    log_in(serving, "carol", "carols-word").expect(200);

    let acts = serving.get("/api/v1/audit?limit=100", "admin").expect(200).json();
    let logins: Vec<String> = acts["acts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|act| act["via"] == "login" && act["what"] == "POST /api/v1/login")
        .map(|act| format!("{} {}", act["who"].as_str().unwrap(), act["outcome"].as_str().unwrap()))
        .collect();
    let count = |text: &str| logins.iter().filter(|line| *line == text).count();
    assert_eq!(
        ["carol ok", "dan ok", "carol unauthenticated", "dan unauthenticated", "eve not_allowed"].map(count),
        [2, 2, 1, 5, 1],
        "{logins:?}"
    );
    assert_eq!(logins.len(), 11, "names that nobody has are kept nowhere: {logins:?}");
    for secret in ["carols-word", "dans-word", "eves-word"] {
        assert!(!serving.said().contains(secret) && !acts.to_string().contains(secret));
    }
}

#[test]
fn people_of_files_log_in() {
    suite(&over_files());
}

#[test]
fn people_of_a_directory_server_log_in() {
    let slapd = Slapd::start(Options { entries: PEOPLE.into(), ..Options::default() });
    let project = with_directory(&json!({
        "kind": "ldap", "url": slapd.url(),
    }));
    let secret = project.secret("reader", &slapd.reader_password);
    let target = json!({ "kind": "ldap", "url": slapd.url(), "read_as": { "dn": slapd.reader_dn, "password": secret } });
    project.write(
        "environments/people.yaml",
        &json!({ "environment": "people", "targets": { "directory": target } }).to_string(),
    );
    let serving = Serving::start_in(project, LOGIN);
    suite(&serving);
    let mut slapd = slapd;
    slapd.stop();
    log_in(&serving, "carol", "carols-word").expect(503);
    serving.is_well();
}

/// Without `login:`, there is nothing to guess at.
#[test]
fn without_a_directory_nobody_logs_in() {
    let serving = Serving::start();
    log_in(&serving, "carol", "carols-word").expect(404);
}

fn farrier(serving: &Serving, input: &str, args: &[&str]) -> Answer {
    let address = format!("http://{}", serving.address);
    let mut command = serving.project.command(&["--server", &address]);
    command.args(args).env("XDG_STATE_HOME", serving.project.path("state")).env_remove("FARRIER_TOKEN");
    serving.project.write("typed", input);
    let typed = std::fs::File::open(serving.project.path("typed")).unwrap();
    Started::typing(command, Stdio::from(typed)).end()
}

/// `farrier login` keeps a token that nobody else can read, and `--server` uses it.
#[test]
fn a_login_at_the_command_line_is_kept() {
    use std::os::unix::fs::PermissionsExt as _;
    let serving = over_files();
    farrier(&serving, "", &["runs"]).expect(64).complains("login");
    farrier(&serving, "wrong\n", &["login", "--user", "carol"]).expect(77).complains("do not fit");
    farrier(&serving, "\n", &["login", "--user", "carol"]).expect(64).complains("nothing was sent");
    let answer = farrier(&serving, "carols-word\n", &["login", "--user", "carol"])
        .expect(0)
        .complains("logged in as carol");
    drop(answer);
    let folder = serving.project.path("state/farrier/logins");
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&files[0])), (0o700, 0o600));
    assert!(!std::fs::read_to_string(&files[0]).unwrap().contains("carols-word"));
    farrier(&serving, "", &["runs"]).expect(0);
    // It is good for the service that gave it, and for no other at that name.
    let text = std::fs::read_to_string(&files[0]).unwrap();
    std::fs::write(&files[0], text.replace("http://127.0.0.1", "http://127.0.0.2")).unwrap();
    farrier(&serving, "", &["runs"]).expect(64).complains("needs a token");
    std::fs::write(&files[0], &text).unwrap();
    std::fs::set_permissions(&files[0], std::fs::Permissions::from_mode(0o644)).unwrap();
    farrier(&serving, "", &["runs"]).expect(1).complains("can be read by others");
    std::fs::set_permissions(&files[0], std::fs::Permissions::from_mode(0o600)).unwrap();
    farrier(&serving, "", &["logout"]).expect(0).complains("logged out");
    assert!(!files[0].exists());
    farrier(&serving, "", &["runs"]).expect(64);
}

/// What the file says about a directory is checked before the service listens.
#[test]
fn a_directory_that_is_not_there_is_told_at_the_start() {
    let project = with_directory(&json!({ "kind": "ldap", "url": "ldif:../directory" }));
    for (from, to, expected) in [
        ("environment: people", "environment: other", "which there is not"),
        ("target: directory", "target: catalogue", "no target of kind `ldap`"),
        ("uid=$name", "uid=ada", "has no `$name`"),
        ("groups: ou=groups", "groups: groups", "not the name of an entry"),
    ] {
        project.write("serve.yaml", &LOGIN.replace(from, to));
        project.farrier(&["serve", "--until-idle"]).expect(64).complains(expected);
    }
}
