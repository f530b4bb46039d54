//! What hostile callers send: the right refusal, no run, and a good client is still answered.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use farrier_testkit::wait_until;
use serde_json::json;

use crate::common::Project;
use crate::service::{Serving, answer};

const RUNS: &str = "/api/v1/runbooks/waits/runs";

#[test]
fn bodies_that_are_not_what_was_asked_for() {
    let serving = Serving::start();
    let operator = Some(serving.token("operator"));
    let good = json!({ "environment": "test" }).to_string();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_input = format!("{{\"environment\":\"test\",\"inputs\":{{\"a\":{deep}}}}}");
    let cases: [(&str, &str, u16); 9] = [
        ("", "", 400),
        ("", "{", 400),
        ("", &deep, 400),
        ("", &deep_input, 400),
        ("", "{\"environment\":\"test\",\"file\":\"/etc/passwd\"}", 400),
        ("Content-Type: text/plain\r\n", &good, 415),
        ("Content-Type: application/x-www-form-urlencoded\r\n", &good, 415),
        ("Content-Encoding: gzip\r\n", &good, 415),
        ("Content-Encoding: identity\r\n", &good, 415),
    ];
    for (more, body, status) in cases {
        let answered = serving.ask_with("POST", RUNS, operator, Some(body), more);
        let start: String = body.chars().take(40).collect();
        assert_eq!(answered.status, status, "{more} {start}: {answered:?}");
        assert!(answered.json()["error"]["code"].is_string(), "{answered:?}");
    }
    for path in [RUNS, "/webhooks/alertmanager/main"] {
        let token = if path == RUNS { operator } else { Some(serving.token("main")) };
        for (token, status) in [(token, 413), (None, 401), (Some("other"), 401)] {
            // Its length alone is enough; nothing of it is waited for.
            let auth = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\n{auth}Content-Type: application/json\r\nContent-Length: 104857600\r\n\r\n"
            );
            assert_eq!(serving.raw(head.as_bytes()).status, status, "{path} {token:?}");
        }
    }
    assert_eq!(serving.runs(), 0);
    serving.is_well();
}

/// A body that says nothing of its length is read up to the limit and no further.
#[test]
fn a_body_without_end_is_cut_off() {
    let serving = Serving::start();
    let mut stream = TcpStream::connect(serving.address).unwrap();
    let head = format!(
        "POST {RUNS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
        serving.token("operator")
    );
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let mut sent = 0;
    while sent < 100 * 1024 * 1024 && stream.write_all(chunk.as_bytes()).is_ok() {
        sent += 0x10000;
    }
    assert!(sent < 100 * 1024 * 1024, "all of it was taken");
    let answered = answer(&mut stream);
    assert!(matches!(answered.status, 413 | 0), "{answered:?}");
    assert_eq!(serving.runs(), 0);
    serving.is_well();
}

#[test]
fn heads_that_are_too_much() {
    let serving = Serving::start();
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
    let many: String = (0..1_000).map(|n| format!("X-{n}: y\r\n")).collect();
    let many = format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{many}\r\n");
    for request in [long.as_bytes(), many.as_bytes(), b"\x16\x03\x01\x00\xa5\x01", b"GET /healthz\r\n\r\n"] {
        let answered = serving.raw(request);
        assert!(matches!(answered.status, 0 | 400 | 414 | 431), "{answered:?}");
    }
    serving.is_well();
}

/// Guards "slow clients keep nobody from an answer": hundreds of connections that never finish what they say.
#[test]
fn five_hundred_slow_clients() {
    let serving = Serving::start();
    let mut slow = Vec::new();
    for n in 0..500 {
        let mut stream = TcpStream::connect(serving.address).unwrap();
        let part = match n % 3 {
            0 => String::new(),
            1 => "GET /healthz HTTP/1.1\r\nHost:".to_owned(),
            _ => format!(
                "POST {RUNS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
                 Content-Length: 100\r\n\r\n{{",
                serving.token("operator")
            ),
        };
        stream.write_all(part.as_bytes()).unwrap();
        slow.push(stream);
        if n % 100 == 0 {
            serving.is_well();
        }
    }
    for _ in 0..20 {
        serving.is_well();
    }
    // Those whose body does not come are told so; the others are closed.
    let mut told = String::new();
    let mut last = slow.pop().unwrap();
    last.set_read_timeout(Some(farrier_testkit::DEADLINE)).unwrap();
    let _ = last.read_to_string(&mut told);
    assert!(told.is_empty() || told.contains(" 408 "), "{told}");
    drop(slow);
    assert_eq!(serving.runs(), 0);
    serving.is_well();
}

/// Guards "a page of another site changes nothing".
#[test]
fn posts_from_other_sites_are_refused() {
    let serving = Serving::start();
    let operator = Some(serving.token("operator"));
    let body = json!({ "environment": "test" }).to_string();
    let own = format!("Origin: http://{}\r\n", serving.address);
    let cases: [(&str, u16); 7] = [
        ("Origin: https://evil.example\r\n", 403),
        ("Origin: null\r\n", 403),
        ("Origin: https://evil.example\r\nContent-Type: text/plain\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\n", 403),
        ("Sec-Fetch-Site: same-site\r\n", 403),
        ("Content-Type: text/plain\r\n", 415),
        (&own, 201),
    ];
    for (more, status) in cases {
        let answered = serving.ask_with("POST", RUNS, operator, Some(&body), more);
        assert_eq!(answered.status, status, "{more}: {answered:?}");
        assert!(!answered.head.to_lowercase().contains("access-control-"), "{answered:?}");
    }
    // An old browser that names no origin has no token either.
    let old = serving.ask_with("POST", RUNS, None, Some(&body), "Content-Type: text/plain\r\n");
    assert_eq!(old.status, 401);
    assert_eq!(serving.runs(), 1);
}

#[test]
fn every_answer_carries_what_browsers_need_to_know() {
    let serving = Serving::start();
    for path in ["/healthz", "/nothing", "/api/v1/runs", "/api/v1/openapi.json"] {
        let head = serving.ask("GET", path, None, None).head.to_lowercase();
        for line in [
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
            "content-security-policy: default-src 'none'; frame-ancestors 'none'",
            "x-request-id: ",
        ] {
            assert!(head.contains(line), "{path} lacks {line}: {head}");
        }
    }
}

/// Guards T25 on its whole way: what a label of an alert holds is one argument of a command, and nothing else.
#[test]
fn a_label_of_an_alert_is_one_argument_whatever_it_holds() {
    // Not more than may start a destructive runbook within an hour.
    let said = [
        "; rm -rf /",
        "$(id)",
        "`id`",
        "two\nlines",
        "-oProxyCommand=id",
        "--",
        "*",
        "'\"$HOME\" \\",
        "${ inputs.said }{{ 7 * 7 }}",
        "🦊\u{202e}",
    ];
    let project = Project::new();
    project
        .write("farrier.yaml", "runbooks: [runbooks]\nenvironments: [environments/*.yaml]\ndata_dir: data\n");
    project.write("said/.keep", "");
    let folder = project.path("said");
    let record = r#"printf '%s\0' "$#" "$@" > "$(mktemp "$0/said.XXXXXX")""#;
    let runbook = json!({
        "runbook": "repeats", "summary": "Repeats what an alert says", "owner": "tests", "risk": "destructive",
        "targets": { "here": "host" }, // Whatever comes is taken, which nobody has by accident: without a pattern such an input is a mistake.
        "inputs": { "said": { "type": "text", "pattern": "(?s).*" } },
        "triggers": [{ "alert": {
            "match": ["alertname=\"Says\""], "per": "alert.labels.instance",
            "inputs": { "said": "${ alert.labels.said }" },
        } }],
        "steps": { "repeat": {
            "uses": "host.run", "undo": "none", "needs": [],
            "with": { "target": "here", "argv": ["/bin/sh", "-c", record, folder, "${ inputs.said }"] },
        } },
    });
    project.write("runbooks/tests/repeats.yaml", &runbook.to_string());
    let environment = json!({ "environment": "test", "targets": { "here": { "kind": "host", "local": true } }, "receivers": ["main"] });
    project.write("environments/test.yaml", &environment.to_string());
    let serving = Serving::start_in(project, "");
    // An old alert would only propose a run.
    let now = jiff::Timestamp::now().to_string();
    let alerts = said.iter().enumerate().map(|(number, said)| {
        json!({
            "status": "firing", "labels": { "alertname": "Says", "instance": format!("n{number}"), "said": said },
            "startsAt": now, "endsAt": "0001-01-01T00:00:00Z",
        })
    });
    let body =
        json!({ "version": "4", "groupKey": "g", "receiver": "main", "alerts": alerts.collect::<Vec<_>>() });
    serving.post("/webhooks/alertmanager/main", "main", &body).expect(200);
    let heard = || -> BTreeSet<String> {
        let files = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
        files.map(|file| std::fs::read_to_string(file).unwrap()).filter(|text| !text.is_empty()).collect()
    };
    wait_until("everything is repeated", || heard().len() == said.len());
    assert_eq!(heard(), said.iter().map(|said| format!("1\0{said}\0")).collect());
}
