//! `SIGTERM` to the service: nothing new begins, what is at work may end, and the next service goes on.

use farrier_testkit::wait_until;
use rustix::process::{Pid, Signal, kill_process};

use crate::common::Started;
use crate::world::{append, args, head, is_there, journal, ledger, project, show, words};

/// Five commands are at work: four end when they are let, the fifth never does and is cut off after the grace.
#[test]
fn told_to_stop_the_service_begins_nothing_and_the_next_one_goes_on() {
    let project = project(0);
    for run in 0..5 {
        let go = if run < 4 { "go" } else { "never" };
        let script = format!(
            "touch \"$0.begun$1\"; while [ ! -e \"$0.{go}\" ]; do sleep 0.02; done; echo \"once $1\" >> \"$0\""
        );
        project.write(
            &format!("runbooks/slow_{run}.yaml"),
            &format!(
                "{}steps:\n  once_slow: {{ uses: host.run, undo: none, with: {{ target: here, argv: [sh, -c, \
                 '{script}', '${{ inputs.ledger }}', '{run}'] }} }}\n  after: {{ uses: host.run, undo: none, needs: \
                 [once_slow], with: {{ target: here, argv: {}, unless: {} }} }}\n",
                head(&format!("slow_{run}"), "here: host"),
                append(&format!("after {run}")),
                is_there(&format!("after {run}"))
            ),
        );
    }
    let runs: Vec<String> = (0..5)
        .map(|run| {
            let mut words = words(&project, &format!("slow_{run}"));
            words.retain(|word| word != "--yes");
            words.push("--detach".into());
            project.farrier(&args(&words)).expect(0).out.trim().to_owned()
        })
        .collect();
    let service = Started::from(project.command(&["serve"]));
    wait_until("all five are at work", || {
        (0..5).all(|run| project.path(&format!("ledger.begun{run}")).exists())
    });
    let process = Pid::from_raw(i32::try_from(service.child.id()).unwrap()).unwrap();
    kill_process(process, Signal::TERM).unwrap();
    // The request has arrived when a run that is queued now is not taken up; the service says so, but into a pipe.
    std::thread::sleep(std::time::Duration::from_millis(300));
    project.write("ledger.go", "");
    let ended = service.end();
    assert_eq!(ended.code, Some(0), "{ended}");
    assert!(ended.err.contains("what is at work may finish"), "{ended}");

    let mut lines = ledger(&project);
    lines.sort();
    assert_eq!(lines, ["once 0", "once 1", "once 2", "once 3"], "what was at work ended, and nothing began");
    for run in &runs {
        let owner = format!("SELECT owner IS NULL FROM run WHERE run_id = '{run}'");
        assert_eq!(project.sqlite("data/farrier.db", &owner), ["1"], "it was released");
        assert!(!journal(&project, run).iter().any(|kind| kind == "intent after"));
    }

    let next = project.farrier(&["serve", "--until-idle"]).expect(0);
    for run in &runs[..4] {
        assert_eq!(show(&project, run)["state"], "succeeded", "{next}");
    }
    assert_eq!(
        show(&project, &runs[4])["state"],
        "parked",
        "cut off after the grace, and nobody guesses: {next}"
    );
    let mut lines = ledger(&project);
    lines.sort();
    assert_eq!(lines.len(), 8, "{lines:?}");
    project.farrier(&["fsck"]).expect(0);
}
