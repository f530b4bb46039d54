//! Every route with every role, and every spelling of every route.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::io::{Read as _, Write as _};

use farrier_server::rights::Role;
use farrier_server::routes::{Needs, TABLE};
use serde_json::json;

use crate::service::{PEOPLE, Serving, project, request};

/// What each route needs, as it was agreed on. A route that is added or changed is written here too, by hand.
const POLICY: &str = "\
GET /healthz: nothing
GET /readyz: nothing
GET /metrics: viewer somewhere
GET /api/v1/openapi.json: nothing
GET /api/v1/session: anyone
POST /api/v1/login: nothing
POST /api/v1/logout: anyone
GET /api/v1/runbooks: viewer somewhere
GET /api/v1/runbooks/{runbook}: viewer there
POST /api/v1/runbooks/{runbook}/plan: operator there
POST /api/v1/runbooks/{runbook}/runs: operator there
POST /api/v1/runbooks/{runbook}/pause: operator there
POST /api/v1/runbooks/{runbook}/unpause: operator there
POST /api/v1/runbooks/{runbook}/unfuse: operator there
GET /api/v1/schedules: viewer somewhere
GET /api/v1/incidents: viewer somewhere
GET /api/v1/runs: viewer somewhere
GET /api/v1/runs/{run}: viewer there
GET /api/v1/runs/{run}/journal: viewer there
GET /api/v1/runs/{run}/events: viewer there
POST /api/v1/runs/{run}/approve: approver there
POST /api/v1/runs/{run}/reject: approver there
POST /api/v1/runs/{run}/signal: operator there
POST /api/v1/runs/{run}/cancel: operator there
POST /api/v1/runs/{run}/resume: operator there
POST /api/v1/runs/{run}/resolve: operator there
GET /api/v1/events: viewer somewhere
GET /api/v1/locks: viewer somewhere
GET /api/v1/audit: admin everywhere
POST /api/v1/reload: admin everywhere
POST /webhooks/alertmanager/{receiver}: receiver
";

fn policy_of(needs: Needs) -> String {
    let name = |role: Role| format!("{role:?}").to_lowercase();
    match needs {
        Needs::Nothing => "nothing".into(),
        Needs::Anyone => "anyone".into(),
        Needs::Somewhere(role) => format!("{} somewhere", name(role)),
        Needs::Runbook(role) | Needs::Run(role) => format!("{} there", name(role)),
        Needs::Everywhere(role) => format!("{} everywhere", name(role)),
        Needs::Receiver => "receiver".into(),
        Needs::Metrics => "viewer somewhere".into(),
    }
}

#[test]
fn the_table_of_routes_is_the_policy() {
    let table: String = TABLE
        .iter()
        .map(|route| format!("{} {}: {}\n", route.method, route.path, policy_of(route.needs)))
        .collect();
    assert_eq!(table, POLICY);
}

/// Whether somebody may pass, by what the policy says in words.
fn may(who: &str, policy: &str) -> bool {
    let rank =
        |role: &str| ["viewer", "operator", "approver", "admin"].iter().position(|other| *other == role);
    let (role, place) = policy.split_once(' ').unwrap_or((policy, ""));
    match (role, place, who) {
        ("nothing", ..) => true,
        ("receiver", _, who) => who == "main",
        (_, _, "nobody" | "stranger" | "main") => false,
        ("anyone", ..) => true,
        // An admin of `files`, while everything asked for is in `lifecycle`.
        (_, place, "elsewhere") => place == "somewhere",
        (role, _, who) => rank(who) >= rank(role),
    }
}

/// Guards "nothing passes that the policy does not name": each cell is answered as it says, by status alone.
#[test]
fn every_route_with_every_role() {
    let serving = Serving::start();
    let run = serving.waiting_run();
    for line in POLICY.lines() {
        let (route, policy) = line.split_once(": ").unwrap();
        let (method, path) = route.split_once(' ').unwrap();
        let path = path.replace("{runbook}", "waits").replace("{run}", &run).replace("{receiver}", "main");
        // A stream does not end by itself, and has a test of its own.
        let path = if path.ends_with("/events") { continue } else { path };
        let callers = PEOPLE.iter().map(|(name, _)| *name).chain(["nobody", "stranger", "main"]);
        for who in callers {
            let token = match who {
                "nobody" => None,
                "stranger" => Some("farrier_00000000000000000000000000000000"),
                who => Some(serving.token(who)),
            };
            for method in if method == "GET" { vec!["GET", "HEAD"] } else { vec![method] } {
                // What follows is refused as malformed wherever it would change something.
                let body = (method == "POST").then_some("[]");
                let answered = serving.ask(method, &path, token, body);
                let allowed = may(who, policy);
                let passed = !matches!(answered.status, 401 | 403);
                assert_eq!(passed, allowed, "{method} {path} as {who}: {answered:?}");
                assert!(
                    answered.status != 0 && answered.status != 500,
                    "{method} {path} as {who}: {answered:?}"
                );
                if !allowed {
                    let expected = if ["nobody", "stranger"].contains(&who)
                        || token == Some(serving.token("main"))
                        || policy == "receiver"
                    {
                        401
                    } else {
                        403
                    };
                    assert_eq!(answered.status, expected, "{method} {path} as {who}: {answered:?}");
                }
                if method == "HEAD" {
                    assert_eq!(answered.body, "");
                }
            }
        }
    }
    assert_eq!(serving.runs(), 1);
    serving.until(&run, "waiting");
}

/// Streams too: each cell, by the head of the answer, since what follows does not end by itself.
#[test]
fn streams_are_guarded_as_everything_else() {
    let serving = Serving::start();
    let run = serving.waiting_run();
    for path in [format!("/api/v1/runs/{run}/events"), "/api/v1/events".to_owned()] {
        let policy = if path == "/api/v1/events" { "viewer somewhere" } else { "viewer there" };
        for who in PEOPLE.iter().map(|(name, _)| *name).chain(["nobody", "main"]) {
            let token = (who != "nobody").then(|| serving.token(who));
            for method in ["GET", "HEAD"] {
                let head = head_of(&serving, method, &path, token);
                let expected = match (may(who, policy), who) {
                    (true, _) => "200",
                    (false, "nobody" | "main") => "401",
                    (false, _) => "403",
                };
                assert!(
                    head.starts_with(&format!("HTTP/1.1 {expected} ")),
                    "{method} {path} as {who}: {head}"
                );
            }
        }
    }
    serving.post(&format!("/api/v1/runs/{run}/cancel"), "operator", &json!({})).expect(200);
    serving.until(&run, "cancelled");
    let whole = serving.get(&format!("/api/v1/runs/{run}/events"), "viewer").expect(200);
    assert!(whole.body.contains("event: created") && whole.body.contains("event: finished"), "{whole:?}");
}

/// The head of an answer; the connection is dropped then.
fn head_of(serving: &Serving, method: &str, path: &str, token: Option<&str>) -> String {
    let mut stream = std::net::TcpStream::connect(serving.address).unwrap();
    stream.set_read_timeout(Some(farrier_testkit::DEADLINE)).unwrap();
    let asked = request(&serving.address.to_string(), method, path, token, None, "");
    stream.write_all(asked.as_bytes()).unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Guards "a page of another site changes nothing": whatever changes something, for whoever may, however a browser says where
/// the page is from. Reading is left to whoever has the token.
#[test]
fn nothing_that_changes_is_taken_from_other_sites() {
    let serving = Serving::start();
    let run = serving.waiting_run();
    let own = format!("Origin: http://{}", serving.address);
    for route in TABLE.iter() {
        let path =
            route.path.replace("{runbook}", "waits").replace("{run}", &run).replace("{receiver}", "main");
        if route.method == "GET" {
            continue;
        }
        let token = serving.token(if route.needs == Needs::Receiver { "main" } else { "admin" });
        for marks in [
            "Origin: null",
            "Origin: https://evil.example",
            "Origin: https://evil.example\r\nSec-Fetch-Site: same-origin",
            "Sec-Fetch-Site: cross-site",
            "Sec-Fetch-Site: same-site",
            "Sec-Fetch-Site: something-new",
        ] {
            for kind in ["text/plain", "application/x-www-form-urlencoded", "application/json"] {
                let more = format!("{marks}\r\nContent-Type: {kind}\r\n");
                let answered = serving.ask_with("POST", &path, Some(token), Some("{}"), &more);
                assert_eq!(answered.status, 403, "POST {path}, {marks}, {kind}: {answered:?}");
                assert_eq!(answered.json()["error"]["code"], "cross_site");
            }
        }
        // What an old browser sends for a form of another site: it says nothing of where that is, and only sends simple kinds.
        let answered =
            serving.ask_with("POST", &path, Some(token), Some("{}"), "Content-Type: text/plain\r\n");
        assert_eq!(answered.status, 415, "POST {path}: {answered:?}");
        let more = format!("{own}\r\nSec-Fetch-Site: same-origin\r\n");
        let answered = serving.ask_with("POST", &path, Some(token), Some("[]"), &more);
        assert!(!matches!(answered.status, 403 | 415), "POST {path} of our own: {answered:?}");
    }
    assert_eq!(serving.runs(), 1);
    serving.until(&run, "waiting");
}

/// `open_metrics` opens the metrics, whole and for everybody, and nothing else.
#[test]
fn open_metrics_open_nothing_else() {
    let serving = Serving::start_in(project(), "open_metrics: true\n");
    for method in ["GET", "HEAD"] {
        serving.ask(method, "/metrics", None, None).expect(200);
    }
    // A token that is wrong is wrong all the same.
    serving.ask("GET", "/metrics", Some("farrier_0"), None).expect(401);
    for path in
        ["/metrics/", "/metrics%2F", "/Metrics", "/metrics;x", "//metrics", "/configs", "/static/", "/debug"]
    {
        serving.ask("GET", path, None, None).expect(404);
    }
    for path in ["/api/v1/runs", "/api/v1/events", "/api/v1/audit", "/api/v1/session"] {
        serving.ask("GET", path, None, None).expect(401);
    }
}

/// Guards "one spelling only": what is not exactly a route is nothing, for an admin too.
#[test]
fn other_spellings_of_routes_are_nothing() {
    let serving = Serving::start();
    let run = serving.waiting_run();
    let admin = Some(serving.token("admin"));
    for route in TABLE.iter() {
        let path =
            route.path.replace("{runbook}", "waits").replace("{run}", &run).replace("{receiver}", "main");
        let spellings = [
            format!("{path}/"),
            format!("/{path}"),
            path.to_uppercase(),
            path.replacen("/api/v1", "/api%2Fv1", 1).replacen("/healthz", "/%68ealthz/", 1),
            format!("/x/..{path}"),
            format!("{path}%00"),
            format!("{path}%2F"),
            format!("{path};x"),
        ];
        for spelling in spellings.iter().filter(|spelling| **spelling != path) {
            for token in [None, admin] {
                let answered = serving.ask(route.method.as_str(), spelling, token, None);
                // The last part of a path may be a name: then there is no such thing, or nobody is known by it.
                assert!(
                    matches!(answered.status, 400 | 401 | 404) || (token.is_none() && answered.status == 401),
                    "{} {spelling}: {answered:?}",
                    route.method
                );
            }
        }
        for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
            let answered = serving.ask(method, &path, admin, None);
            assert_eq!(answered.status, 405, "{method} {path}: {answered:?}");
        }
    }
    for id in
        [run.to_uppercase(), format!("{{{run}}}"), run.replace('-', ""), "..%2f..%2fetc%2fpasswd".into()]
    {
        serving.get(&format!("/api/v1/runs/{id}"), "admin").expect(404);
    }
    assert_eq!(serving.runs(), 1);
}

/// Guards "who did what is a row", for what was done and for what was refused.
#[test]
fn acts_are_recorded() {
    let serving = Serving::start();
    let run = serving.waiting_run();
    serving.post(&format!("/api/v1/runs/{run}/cancel"), "viewer", &json!({})).expect(403);
    serving.post(&format!("/api/v1/runs/{run}/cancel"), "operator", &json!({})).expect(200);
    let acts = serving.get("/api/v1/audit", "admin").expect(200).json();
    let shown: Vec<String> = acts["acts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|act| format!("{} {} {}", act["who"], act["what"], act["outcome"]).replace('"', ""))
        .collect();
    assert_eq!(
        shown,
        [
            "operator POST /api/v1/runs/{run}/cancel ok",
            "viewer POST /api/v1/runs/{run}/cancel not_allowed",
            "operator POST /api/v1/runbooks/{runbook}/runs ok",
        ]
    );
    assert!(acts["acts"].as_array().unwrap().iter().all(|act| act["object"] == run.as_str()));
    serving.project.farrier(&["audit", "--who", "viewer"]).expect(0).says("not_allowed");
}

/// Guards "requester and approver differ", over the API too.
#[test]
fn nobody_approves_what_they_asked_for() {
    let mut serving = Serving::start();
    let environment = json!({
        "environment": "test", "approvals": { "recoverable": 1 },
        "targets": { "place": { "kind": "files", "roots": { "out": "../out" } } },
    });
    serving.project.write("environments/test.yaml", &environment.to_string());
    serving.post("/api/v1/reload", "admin", &json!({})).expect(200);
    let start = json!({ "environment": "test", "inputs": { "name": "a" } });
    let started = serving.post("/api/v1/runbooks/writes/runs", "approver", &start).expect(201).json();
    let run = started["run"].as_str().unwrap();
    let view = serving.until(run, "waiting");
    let asked = &view["approvals"][0];
    let answer = json!({ "subject": asked["subject"], "digest": asked["digest"] });
    let path = format!("/api/v1/runs/{run}/approve");
    let own = serving.post(&path, "approver", &answer).expect(403).json();
    assert_eq!(own["error"]["code"], "not_yours");
    let other = json!({ "subject": asked["subject"], "digest": "0".repeat(64) });
    serving.post(&path, "admin", &other).expect(409);
    serving.post(&path, "admin", &answer).expect(200);
    serving.until(run, "succeeded");
    assert_eq!(serving.project.read("out/a"), "new");
    serving.signal("TERM");
    assert_eq!(serving.end(), Some(0));
}
