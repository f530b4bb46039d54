//! Passwords that are easy to recognise, on targets that refuse, cut, garble and never answer: they are found nowhere.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use farrier_testkit::slapd::{self, Slapd};
use serde_json::{Value, json};

use crate::common::{Answer, Project, Started};

/// With characters that differ when they are encoded.
const CANARY: &str = "Canary+/7~?&=Kanarienvogel>>";
/// A part of it as it is, in base64 at each of the three offsets, and as in addresses.
const FORMS: [&str; 5] =
    ["Kanarienvogel", "Q2FuYXJ5Ky83fj8m", "NhbmFyeSsvN34/", "YW5hcnkrLzd+PyY9", "Canary%2B%2F7"];

/// How a server treats whoever comes.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Refuses,
    HangsUp,
    Garbles,
    Cuts,
    NeverAnswers,
}

/// The port of such a server; it lives as long as the test.
fn server(manner: Manner) -> u16 {
    if matches!(manner, Manner::Refuses) {
        return farrier_testkit::free_port();
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let treat = move |mut stream: TcpStream| match manner {
        Manner::HangsUp | Manner::Refuses => {}
        Manner::Garbles => drop(stream.write_all(b"\x16\x03 nothing that anyone speaks\r\n\r\n\0\0\0")),
        Manner::Cuts => {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4000\r\n\r\nhalf of it");
        }
        Manner::NeverAnswers => while stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {},
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || treat(stream));
        }
    });
    port
}

#[track_caller]
fn holds_no_secret(what: &str, bytes: &[u8]) {
    for form in FORMS {
        let found = bytes.windows(form.len()).any(|window| window == form.as_bytes());
        assert!(
            !found,
            "`{form}` is in {what}: {}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(20_000)])
        );
    }
}

/// Everything below a folder but the secret itself.
fn search(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            search(&path);
        } else if !path.ends_with("canary.secret") {
            holds_no_secret(&path.display().to_string(), &fs::read(&path).unwrap());
        }
    }
}

/// Runs the binary with all its logs, looking at the command lines of all processes meanwhile.
fn watched(project: &Project, args: &[&str]) -> Answer {
    let mut command = project.command(args);
    command.env("FARRIER_LOG", "trace");
    let mut started = Started::from(command);
    while started.child.try_wait().unwrap().is_none() {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
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

const STEPS: &str = "runbook: leaky
summary: Asks everyone
owner: tests
risk: recoverable
targets: { directory: ldap, maria: sql, postgres: sql, web: http, post: mail, metrics: prometheus }
steps:
  search: { uses: ldap.search, on_failure: continue, timeout: 1s, with: { target: directory, base: 'dc=wikimedia,dc=org', filter: '(uid=a)', attributes: { uid: string } } }
  maria: { uses: sql.query, on_failure: continue, timeout: 1s, with: { target: maria, sql: SELECT 1 AS one, columns: { one: int } } }
  postgres: { uses: sql.query, on_failure: continue, timeout: 1s, with: { target: postgres, sql: SELECT 1 AS one, columns: { one: int } } }
  get: { uses: http.get, on_failure: continue, timeout: 1s, with: { target: web, path: [a] } }
  query: { uses: prometheus.query, on_failure: continue, timeout: 1s, with: { target: metrics, query: up } }
  post: { uses: http.request, on_failure: continue, timeout: 1s, undo: none, with: { target: web, method: POST, path: [a], json: { a: 1 } } }
  mail: { uses: mail.send, on_failure: continue, timeout: 1s, undo: none, with: { target: post, to: [admins], subject: a, text: b } }
";

fn environment(port: u16, directory: &str, reader: &str, secret: &Value) -> Value {
    let networks = json!(["127.0.0.0/8"]);
    let basic = json!({ "basic": { "user": "farrier", "password": secret } });
    json!({
        "directory": { "kind": "ldap", "url": directory, "read_as": { "dn": reader, "password": secret } },
        "maria": { "kind": "sql", "url": format!("mysql://farrier@127.0.0.1:{port}/a"), "password": secret },
        "postgres": { "kind": "sql", "url": format!("postgres://farrier@127.0.0.1:{port}/a"), "password": secret },
        "web": {
            "kind": "http", "url": format!("http://127.0.0.1:{port}/"), "networks": networks,
            "idempotency_header": "Idempotency-Key", "read_as": { "bearer": secret }, "write_as": basic,
        },
        "metrics": {
            "kind": "prometheus", "url": format!("http://127.0.0.1:{port}/"), "networks": networks, "read_as": basic,
        },
        "post": {
            "kind": "mail", "url": format!("smtp://127.0.0.1:{port}"), "from": "farrier@example.org",
            "people": { "admins": ["admins@example.org"] }, "login": { "user": "farrier", "password": secret },
        },
    })
}

/// Plans, runs and looks everywhere.
fn keeps_to_itself(project: &Project, when: &str) {
    for format in ["table", "json"] {
        watched(project, &["plan", "leaky", "--env", "test", "-o", format]);
    }
    let ran = watched(project, &["run", "leaky", "--env", "test", "--yes"]);
    assert!(matches!(ran.code, Some(12 | 13)), "{when}: every step fails, and the run goes on: {ran}");
    // What is compressed in the store is plain here.
    let run = project.last_run();
    for words in [["logs", &run, "-o", "json"], ["show", &run, "-o", "json"], ["logs", &run, "-o", "table"]] {
        watched(project, &words);
    }
    search(&project.path(""));
}

#[test]
fn passwords_are_found_nowhere_however_their_targets_fail() {
    for manner in [Manner::Refuses, Manner::HangsUp, Manner::Garbles, Manner::Cuts, Manner::NeverAnswers] {
        let project = Project::new();
        let secret = project.secret("canary.secret", CANARY);
        project.write("runbooks/leaky.yaml", STEPS);
        let port = server(manner);
        let directory = format!("ldap://127.0.0.1:{port}");
        project.environment(&environment(port, &directory, "cn=reader,dc=wikimedia,dc=org", &secret));
        keeps_to_itself(&project, &format!("{manner:?}"));
    }
    // A login that a real server refuses.
    let slapd = Slapd::start(slapd::Options::default());
    let project = Project::new();
    let secret = project.secret("canary.secret", CANARY);
    project.write("runbooks/leaky.yaml", STEPS);
    project.environment(&environment(server(Manner::Refuses), &slapd.url(), &slapd.reader_dn, &secret));
    keeps_to_itself(&project, "a wrong password");
}
