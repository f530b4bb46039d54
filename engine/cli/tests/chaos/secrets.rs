//! Passwords that are easy to recognise, on targets that refuse, cut, garble and never answer: they are found nowhere.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use farrier_testkit::slapd::{self, Slapd};
use farrier_testkit::wait_until;
use serde_json::{Value, json};

use crate::common::{Answer, Project, Started};
use crate::tattlers::Tattler;

/// With characters that differ when they are encoded.
pub(crate) const CANARY: &str = "Canary+/7~?&=Kanarienvogel>>";
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
    /// What it was sent, with all headers, stands in the text of its error, as some servers for development do it.
    Echoes,
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
        Manner::Echoes => {
            let mut request = vec![0; 65_536];
            let length = stream.read(&mut request).unwrap_or(0);
            let head =
                format!("HTTP/1.1 500 Oops\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n");
            let _ = stream.write_all(&[head.as_bytes(), &request[..length]].concat());
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
targets: { directory: ldap, maria: sql, postgres: sql, web: http, post: mail, metrics: prometheus, alerts: alertmanager }
steps:
  search: { uses: ldap.search, on_failure: continue, timeout: 1s, with: { target: directory, base: 'dc=wikimedia,dc=org', filter: '(uid=a)', attributes: { uid: string } } }
  maria: { uses: sql.query, on_failure: continue, timeout: 1s, with: { target: maria, sql: SELECT 1 AS one, columns: { one: int } } }
  postgres: { uses: sql.query, on_failure: continue, timeout: 1s, with: { target: postgres, sql: SELECT 1 AS one, columns: { one: int } } }
  get: { uses: http.get, on_failure: continue, timeout: 1s, with: { target: web, path: [a] } }
  query: { uses: prometheus.query, on_failure: continue, timeout: 1s, with: { target: metrics, query: up } }
  alerts: { uses: alertmanager.alerts, on_failure: continue, timeout: 1s, with: { target: alerts, match: [a=b] } }
  silence: { uses: alertmanager.silence, on_failure: continue, timeout: 1s, undo: none, with: { target: alerts, match: [a=b], for: 1h, comment: a } }
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
        "alerts": {
            "kind": "alertmanager", "url": format!("http://127.0.0.1:{port}/"), "networks": networks,
            "read_as": { "bearer": secret }, "write_as": basic,
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
    use Manner::{Cuts, Echoes, Garbles, HangsUp, NeverAnswers, Refuses};
    for manner in [Refuses, HangsUp, Garbles, Cuts, Echoes, NeverAnswers] {
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

/// Servers of every kind that are told the password and repeat it in all its forms.
#[test]
fn servers_that_repeat_a_password_are_not_quoted_with_it() {
    let tattlers = [Tattler::smtp(), Tattler::mysql(), Tattler::postgres(), Tattler::ldap()];
    let [mail, maria, postgres, ldap] = &tattlers;
    let project = Project::new();
    let secret = project.secret("canary.secret", CANARY);
    // Nobody here is late on purpose.
    project.write("runbooks/leaky.yaml", &STEPS.replace("timeout: 1s", "timeout: 1m"));
    let directory = format!("ldap://127.0.0.1:{}", ldap.port);
    let mut targets =
        environment(server(Manner::Echoes), &directory, "cn=reader,dc=wikimedia,dc=org", &secret);
    targets["post"]["url"] = json!(format!("smtp://127.0.0.1:{}", mail.port));
    targets["maria"]["url"] = json!(format!("mysql://farrier@127.0.0.1:{}/a", maria.port));
    targets["postgres"]["url"] = json!(format!("postgres://farrier@127.0.0.1:{}/a", postgres.port));
    project.environment(&targets);
    keeps_to_itself(&project, "a server that repeats");
    for (name, tattler) in ["mail", "maria", "postgres", "ldap"].iter().zip(&tattlers) {
        assert!(tattler.told() > 0, "{name} was never told the password");
    }
    // What they said is there, without it.
    let said = watched(&project, &["logs", &project.last_run(), "-o", "json"]).out;
    let entries: Vec<Value> = serde_json::from_str(&said).unwrap();
    let entries: Vec<String> = entries.iter().map(Value::to_string).collect();
    for step in ["mail", "maria", "postgres", "search", "get"] {
        let mut of_step = entries.iter().filter(|entry| entry.contains(&format!("\"{step}\"")));
        assert!(
            of_step.any(|entry| entry.contains("«secret»")),
            "the refusal of `{step}` is not there: {said}"
        );
    }
}

/// What can be planned without a look, so that a plan can be saved.
const BLIND: &str = "runbook: blind
summary: Tells everyone
owner: tests
risk: recoverable
targets: { web: http, post: mail }
steps:
  post: { uses: http.request, on_failure: continue, timeout: 1s, undo: none, with: { target: web, method: POST, path: [a], json: { a: 1 } } }
  mail: { uses: mail.send, on_failure: continue, timeout: 1s, undo: none, with: { target: post, to: [admins], subject: a, text: b } }
";

#[test]
fn a_saved_plan_holds_no_password_and_neither_does_its_run() {
    let project = Project::new();
    let secret = project.secret("canary.secret", CANARY);
    project.write("runbooks/blind.yaml", BLIND);
    let port = server(Manner::Echoes);
    project.environment(&environment(port, &format!("ldap://127.0.0.1:{port}"), "cn=reader", &secret));
    watched(&project, &["plan", "blind", "--env", "test", "--out", "plan.json"]).expect_one_of(&[0, 2, 3]);
    assert!(project.path("plan.json").exists());
    search(&project.path(""));
    watched(&project, &["apply", "plan.json", "--yes"]).expect_one_of(&[12, 13]);
    search(&project.path(""));
}

/// A password in the memory of a process that dies is not to end up in a file.
#[test]
fn a_process_that_dies_leaves_no_core_file() {
    let project = Project::new();
    project.write(
        "runbooks/waits.yaml",
        "runbook: waits\nsummary: Waits\nowner: tests\nrisk: destructive\ntargets: { here: host }\nsteps:\n  one: { uses: \
         host.run, needs: [], undo: none, with: { target: here, argv: [sh, -c, 'touch begun; sleep 600'] } }\n",
    );
    project.environment(&json!({ "here": { "kind": "host", "local": true } }));
    let begun = project.path("begun").display().to_string();
    let text = project.read("runbooks/waits.yaml").replace("touch begun", &format!("touch {begun}"));
    project.write("runbooks/waits.yaml", &text);
    let ours = project.command(&["run", "waits", "--env", "test", "--yes"]);
    let mut command = std::process::Command::new("prlimit");
    command.args(["--core=unlimited:unlimited", "--"]).arg(ours.get_program()).args(ours.get_args());
    command.current_dir(project.path(""));
    let mut started = Started::from(command);
    wait_until("a step is at work", || project.path("begun").exists());
    let limits = fs::read_to_string(format!("/proc/{}/limits", started.child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    started.child.kill().unwrap();
    started.end();
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
