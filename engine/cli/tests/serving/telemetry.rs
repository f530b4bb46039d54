//! Spans of runs and steps, as a collector of OpenTelemetry gets them.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use farrier_testkit::wait_until;
use serde_json::{Value, json};

use crate::service::{Serving, project};

/// Takes what is posted.
struct Sink {
    url: String,
    taken: Arc<Mutex<Vec<Value>>>,
}

impl Sink {
    fn start() -> Sink {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let taken = Arc::new(Mutex::new(Vec::new()));
        let keep = taken.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let (mut head, mut length) = (String::new(), 0);
                while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).unwrap() > 0 {
                    let last = head.lines().last().unwrap_or_default().to_lowercase();
                    if let Some(value) = last.strip_prefix("content-length: ") {
                        length = value.trim().parse().unwrap();
                    }
                }
                assert!(head.starts_with("POST /v1/traces HTTP/1.1"), "{head}");
                assert!(head.to_lowercase().contains("content-type: application/json"), "{head}");
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap();
                keep.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap();
            }
        });
        Sink { url, taken }
    }

    /// All spans, each with its attributes as a map.
    fn spans(&self) -> Vec<(Value, BTreeMap<String, String>)> {
        let mut spans = Vec::new();
        for body in self.taken.lock().unwrap().iter() {
            let resource = &body["resourceSpans"][0];
            assert_eq!(resource["resource"]["attributes"][0]["value"]["stringValue"], "farrier");
            for span in resource["scopeSpans"][0]["spans"].as_array().unwrap() {
                let attributes = span["attributes"].as_array().unwrap().iter().map(|attribute| {
                    let text = |value: &Value| value.as_str().unwrap().to_owned();
                    (text(&attribute["key"]), text(&attribute["value"]["stringValue"]))
                });
                spans.push((span.clone(), attributes.collect()));
            }
        }
        spans
    }
}

const PARENT: &str = "runbook: parent\nsummary: Starts another\nowner: tests\nrisk: read_only\nsteps:\n  first: { uses: data.let, \
                      with: { value: 1 } }\n  child: { uses: runbook.child, needs: [first], with: {} }\n";
const CHILD: &str = "runbook: child\nsummary: Fails\nowner: tests\nrisk: read_only\nsteps:\n  one:\n    uses: data.let\n    with: { \
                     value: 1 }\n    expect: [{ that: result.value == 2, otherwise: it is one }]\n";

/// Guards "a trace is a run with the runs that it starts": places, times, names and failures.
#[test]
fn a_collector_gets_runs_and_steps() {
    let (project, sink) = (project(), Sink::start());
    project.write("runbooks/files/parent.yaml", PARENT);
    project.write("runbooks/files/child.yaml", CHILD);
    let mut serving = Serving::start_in(project, &format!("telemetry: {{ traces: '{}' }}\n", sink.url));
    let start = json!({ "environment": "test" });
    let started = serving.post("/api/v1/runbooks/parent/runs", "operator", &start).expect(201).json();
    let run = started["run"].as_str().unwrap().to_owned();
    serving.until(&run, "failed");
    serving.signal("TERM");
    assert_eq!(serving.end(), Some(0), "{}", serving.said());
    // What was left is sent before the end.
    let spans = sink.spans();
    let find = |name: &str| -> Vec<&(Value, BTreeMap<String, String>)> {
        spans.iter().filter(|(span, _)| span["name"] == name).collect()
    };
    let trace = run.replace('-', "");
    assert!(
        !spans.is_empty() && spans.iter().all(|(span, _)| span["traceId"] == trace.as_str()),
        "{spans:#?}"
    );
    let [(parent, of_parent)] = find("parent")[..] else { panic!("{spans:#?}") };
    assert_eq!(parent.get("parentSpanId"), None);
    assert_eq!((&*of_parent["farrier.run_id"], &*of_parent["farrier.environment"]), (&*run, "test"));
    for name in ["plan first", "plan one"] {
        assert!(!find(name).is_empty(), "{name}: {spans:#?}");
    }
    let (first, _) = find("plan first")[0];
    assert_eq!(first["parentSpanId"], parent["spanId"]);
    assert_eq!(first.get("status"), None);
    let (one, of_one) = find("plan one").into_iter().find(|(span, _)| span.get("status").is_some()).unwrap();
    assert_eq!(one["status"]["code"], 2);
    assert!(one["status"]["message"].as_str().unwrap().contains("it is one"), "{one}");
    assert_eq!((&*of_one["farrier.runbook"], &*of_one["farrier.attempt"]), ("child", "1"));
    let time = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u128>().unwrap();
    for (span, _) in &spans {
        assert!(time(span, "startTimeUnixNano") <= time(span, "endTimeUnixNano"), "{span}");
    }
    assert!(time(parent, "startTimeUnixNano") <= time(first, "startTimeUnixNano"));
}

/// Guards "no run waits for a collector".
#[test]
fn a_collector_that_is_not_there_keeps_nobody_from_work() {
    let free = farrier_testkit::free_port();
    let more = format!("telemetry: {{ traces: 'http://127.0.0.1:{free}/v1/traces' }}\n");
    let serving = Serving::start_in(project(), &more);
    let run = serving.waiting_run();
    serving.post(&format!("/api/v1/runs/{run}/cancel"), "operator", &json!({})).expect(200);
    serving.until(&run, "cancelled");
    let again = serving.waiting_run();
    serving.until(&again, "waiting");
    wait_until("all is well", || serving.ask("GET", "/healthz", None, None).status == 200);
    let other = project();
    other.write("serve.yaml", "telemetry: { traces: 'http://collector.example.org/v1/traces' }\n");
    other.farrier(&["serve", "--until-idle"]).expect(64).complains("in plain text");
}
