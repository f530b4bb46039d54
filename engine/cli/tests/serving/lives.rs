//! How a service lives: what it counts, how it takes in new files, how it streams, how it stops.

use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::service::{Serving, answer, spawn};

#[test]
fn metrics_are_what_prometheus_expects() {
    let serving = Serving::start();
    let run = serving.waiting_run();
    serving.post(&format!("/api/v1/runs/{run}/cancel"), "operator", &json!({})).expect(200);
    serving.until(&run, "cancelled");
    let text = serving.get("/metrics", "viewer").expect(200).body;
    for line in [
        "farrier_build_info{version=",
        "farrier_runs_finished_total{runbook=\"waits\",state=\"cancelled\"} 1",
        "farrier_runs{state=\"waiting\"} 0",
        "farrier_project_set 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    // Every write of the store is measured: a run writes more than the two acts of the audit.
    let commits =
        text.lines().find_map(|line| line.strip_prefix("farrier_store_commit_seconds_count ")).unwrap();
    let acts = serving.get("/api/v1/audit", "admin").expect(200).json()["acts"].as_array().unwrap().len();
    assert_eq!(acts, 2);
    assert!(commits.parse::<usize>().unwrap() > acts + 2, "{commits} commits");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is part of Debian's prometheus");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}");
    let open = serving.ask_with(
        "GET",
        "/metrics",
        Some(serving.token("viewer")),
        None,
        "Accept: application/openmetrics-text\r\n",
    );
    assert!(open.body.trim_end().ends_with("# EOF"), "{open:?}");
}

/// Guards "a reload makes a new set or keeps the old", from outside: by request, by signal and by looking.
#[test]
fn files_are_taken_in_as_a_whole_or_not_at_all() {
    let serving = Serving::start();
    let names = || {
        let list = serving.get("/api/v1/runbooks", "viewer").expect(200).json();
        list.as_array()
            .unwrap()
            .iter()
            .map(|runbook| runbook["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let good = serving.project.read("runbooks/lifecycle/waits.yaml");
    serving
        .project
        .write("runbooks/lifecycle/second.yaml", &good.replace("runbook: waits", "runbook: second"));
    serving.project.write("runbooks/lifecycle/waits.yaml", &good.replace("flow.wait", "flow.wiat"));
    let refused = serving.post("/api/v1/reload", "admin", &json!({})).expect(409).json();
    assert!(refused["error"]["message"].as_str().unwrap().contains("flow.wiat"), "{refused}");
    assert_eq!(names(), ["waits", "writes"]);
    let metrics = serving.get("/metrics", "viewer").expect(200).body;
    assert!(!metrics.contains("farrier_reload_failures_total 0\n"), "{metrics}");
    serving.post("/api/v1/runbooks/waits/runs", "operator", &json!({ "environment": "test" })).expect(201);

    serving.project.write("runbooks/lifecycle/waits.yaml", &good);
    // It looks by itself every few seconds.
    let begun = std::time::Instant::now();
    while names() != ["second", "waits", "writes"] {
        assert!(begun.elapsed() < farrier_testkit::DEADLINE, "{:?}", names());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    std::fs::remove_file(serving.project.path("runbooks/lifecycle/second.yaml")).unwrap();
    serving.signal("HUP");
    serving.until_said("the project was read again");
    while names() != ["waits", "writes"] {
        assert!(begun.elapsed() < farrier_testkit::DEADLINE, "{:?}", names());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Guards "rights that were taken away are gone", also when a runbook has a mistake at the same time.
#[test]
fn a_token_that_is_taken_out_of_the_file_is_refused() {
    let serving = Serving::start();
    let file = serving.project.read("serve.yaml");
    let without: String =
        file.lines().filter(|line| !line.contains("viewer:")).map(|line| format!("{line}\n")).collect();
    serving.project.write("runbooks/lifecycle/waits.yaml", "runbook: [");
    serving.project.write("serve.yaml", &without);
    serving.post("/api/v1/reload", "admin", &json!({})).expect(409);
    serving.get("/api/v1/runs", "viewer").expect(401);
    serving.project.write("serve.yaml", "users: [");
    serving.post("/api/v1/reload", "admin", &json!({})).expect(409);
    serving.get("/api/v1/runs", "admin").expect(200);
}

/// Guards "what a reload cannot take up is said", and that the rest is taken up all the same.
#[test]
fn settings_that_only_a_start_takes_up_are_named() {
    let serving = Serving::start();
    let file = serving.project.read("serve.yaml");
    let without: String =
        file.lines().filter(|line| !line.contains("viewer:")).map(|line| format!("{line}\n")).collect();
    serving.project.write(
        "serve.yaml",
        &format!("{without}\nruns: 7\ntelemetry: {{ traces: 'http://127.0.0.1:9/v1' }}\n"),
    );
    let told = serving.post("/api/v1/reload", "admin", &json!({})).expect(409).json();
    let message = told["error"]["message"].as_str().unwrap();
    assert!(message.contains("only a start takes up a new `runs` and `telemetry`"), "{told}");
    serving.get("/api/v1/runs", "viewer").expect(401);
    let notes = serving.get("/healthz", "admin").expect(200).body;
    assert!(notes.contains("the service file or the certificates on disk are not those in use"), "{notes}");
    serving.project.write("serve.yaml", &file);
    serving.post("/api/v1/reload", "admin", &json!({})).expect(200);
    serving.get("/api/v1/runs", "viewer").expect(200);
}

/// Guards "who comes back goes on where they were": ids of events are places in the journal.
#[test]
fn a_stream_goes_on_where_it_ended() {
    let serving = Serving::start();
    let run = serving.waiting_run();
    let view = serving.get(&format!("/api/v1/runs/{run}/journal"), "viewer").expect(200).json();
    let last = view.as_array().unwrap().len();
    let mut from_query = serving.events(&run, &format!("?after={}", last - 1), "");
    let mut from_header = serving.events(&run, "?after=1", &format!("Last-Event-ID: {last}\r\n"));
    let told = serving.project.command(&["signal", &run, "go"]);
    crate::common::Started::from(told).end().expect(0);
    let ids = |stream: &mut TcpStream| -> Vec<usize> {
        let body = answer(stream).body;
        body.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect()
    };
    let first = ids(&mut from_query);
    let second = ids(&mut from_header);
    assert_eq!(first.first(), Some(&last));
    assert_eq!(second.first(), Some(&(last + 1)));
    assert!(first.windows(2).all(|pair| pair[1] == pair[0] + 1), "{first:?}");
    assert_eq!(first.last(), second.last());
}

/// Guards G5 of a stop: no new intents, leases released, and the next process goes on at once.
#[test]
fn a_stop_lets_go_of_what_is_at_work() {
    let mut serving = Serving::start();
    let long = "runbook: long\nsummary: Takes its time\nowner: tests\nrisk: destructive\ntargets: { here: host }\nsteps:\n  \
                one: { uses: host.run, needs: [], undo: none, with: { target: here, argv: [sh, -c, 'touch begun; while \
                ! test -e go; do sleep 0.01; done'] } }\n  \
                two: { uses: host.run, needs: [one], undo: none, with: { target: here, argv: [touch, after] } }\n";
    let long = long.replace("touch begun", &format!("touch {}", serving.project.path("begun").display()));
    let long = long.replace("-e go", &format!("-e {}", serving.project.path("go").display()));
    let long =
        long.replace("[touch, after]", &format!("[touch, {}]", serving.project.path("after").display()));
    serving.project.write("runbooks/files/long.yaml", &long);
    let environment = json!({
        "place": { "kind": "files", "roots": { "out": "../out" } },
        "here": { "kind": "host", "local": true },
    });
    serving.project.environment(&environment);
    serving.post("/api/v1/reload", "admin", &json!({})).expect(200);
    let started = serving.post("/api/v1/runbooks/long/runs", "operator", &json!({ "environment": "test" }));
    let run = started.expect(201).json()["run"].as_str().unwrap().to_owned();
    let begun = std::time::Instant::now();
    while !serving.project.path("begun").exists() {
        assert!(begun.elapsed() < farrier_testkit::DEADLINE, "{}", serving.said());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    serving.signal("TERM");
    serving.until_said("stopping");
    serving.project.write("go", "");
    assert_eq!(serving.end(), Some(0), "{}", serving.said());
    assert!(!serving.project.path("after").exists(), "nothing new begins");
    let view = serving.project.farrier(&["show", &run, "-o", "json"]).expect(0).json();
    assert_eq!(view["state"], "waiting", "{view}");
    assert_eq!(view["steps"][0]["state"], "succeeded", "what was at work may end, and its outcome is kept");
    let (child, address) = spawn(&serving.project, &[]);
    (serving.child, serving.address) = (child, address);
    serving.until(&run, "succeeded");
    assert!(serving.project.path("after").exists());
    serving.project.farrier(&["fsck"]).expect(0);
}

/// Guards "systemd hears how it is".
#[test]
fn the_service_manager_is_told() {
    use std::os::unix::net::UnixDatagram;
    let project = crate::service::project();
    let socket = project.path("notify");
    let listener = UnixDatagram::bind(&socket).unwrap();
    listener.set_read_timeout(Some(farrier_testkit::DEADLINE)).unwrap();
    let mut command = project.command(&["serve", "--quiet"]);
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "200000");
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let hear = |word: &str| {
        let mut buffer = [0; 256];
        loop {
            let read = listener.recv(&mut buffer).unwrap_or_else(|error| panic!("{word}: {error}"));
            if buffer[..read].starts_with(word.as_bytes()) {
                return;
            }
        }
    };
    let kill = |signal: &str| {
        let status = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(status.success());
    };
    hear("READY=1");
    hear("WATCHDOG=1");
    kill("-HUP");
    hear("RELOADING=1\nMONOTONIC_USEC=");
    hear("READY=1");
    kill("-TERM");
    hear("STOPPING=1");
    assert!(child.wait().unwrap().success());
}
