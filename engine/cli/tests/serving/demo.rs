//! `farrier demo`: what it prints works when it is pasted.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::process::{Command, Stdio};

use farrier_testkit::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::Project;
use crate::service::Ends;

/// Runs a line as a person's shell does.
fn paste(line: &str) -> Value {
    let output = Command::new("sh").args(["-c", line]).stderr(Stdio::inherit()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
}

#[test]
fn the_lines_that_the_demo_prints_post_an_alert_and_show_the_result() {
    let project = Project::demo();
    let out = project.path("demo.out");
    let mut command = project.command(&["demo", "--listen", "127.0.0.1:0"]);
    command.stdin(Stdio::null()).stdout(std::fs::File::create(&out).unwrap()).stderr(Stdio::null());
    let mut demo = Ends(command.spawn().unwrap());
    let said = || std::fs::read_to_string(&out).unwrap_or_default();
    wait_until("the demo says what to try", || said().contains("farrier incidents"));
    let said = said();
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect();
    let [post, look] = lines[..] else { panic!("{said}") };

    let runs = || paste(look)["runs"].as_array().unwrap().clone();
    let first = |runs: &[Value]| runs.last().map(|run| run["state"].clone());
    wait_until("the first run has ended well", || first(&runs()) == Some("succeeded".into()));
    paste(post);
    let incidents = || project.farrier(&["incidents", "--all", "-o", "json"]).expect(0).json();
    let opened = incidents();
    assert_eq!(opened.as_array().unwrap().len(), 1, "{opened}");
    assert_eq!(opened[0]["alert"], "ToolsListStale");
    let run = opened[0]["run"].as_str().unwrap();
    wait_until("the alert's run has ended well", || {
        runs().iter().any(|known| known["id"] == run && known["state"] == "succeeded")
    });
    // The same alert again belongs to the same incident, and starts nothing.
    paste(post);
    assert_eq!(incidents().as_array().unwrap().len(), 1);
    assert_eq!(incidents()[0]["run"], run);

    let schedule = || {
        let all = project.farrier(&["schedules", "-o", "json"]).expect(0).json();
        let ours = all.as_array().unwrap().iter().find(|one| one["schedule"] == "demo/updatetools").cloned();
        ours.unwrap()
    };
    assert!(schedule()["next"].is_string());
    project.farrier(&["pause", "demo/updatetools", "--reason", "a look around"]).expect(0);
    assert_eq!(schedule()["paused_because"], "a look around");
    project.farrier(&["unpause", "demo/updatetools"]).expect(0);
    assert!(schedule()["paused_because"].is_null());

    let pid = Pid::from_raw(demo.0.id().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert!(demo.0.wait().unwrap().success());
    project.farrier(&["fsck"]).expect(0);
}
