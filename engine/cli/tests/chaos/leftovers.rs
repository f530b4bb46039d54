//! What a killed Farrier left running is ended by the next one, before anything is claimed.

use farrier_testkit::wait_until;

use crate::common::Started;
use crate::world::{append, args, head, is_there, journal, ledger, project, show, words};

/// The commands of a run that were started, as they wrote their ids.
fn pids(project: &crate::common::Project) -> Vec<u32> {
    project.read("pids").lines().filter_map(|line| line.parse().ok()).collect()
}

fn lives(pid: u32) -> bool {
    // A process that nobody has waited for yet is over all the same.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// A command that sleeps, with a daemon in a session of its own, both with their ids in `pids`. The second time, when
/// the file is there, it only writes its line.
fn sleeper(line: &str) -> String {
    let script = "if [ -e \"$0.slept\" ]; then echo \"$1\" >> \"$0\"; exit 0; fi; \
                  p=\"$(dirname \"$0\")/pids\"; (setsid sh -c \"echo \\$\\$ >> $p; exec sleep 60\" &); \
                  echo $$ >> \"$p\"; while [ $(wc -l < \"$p\") -lt 2 ]; do sleep 0.01; done; \
                  touch \"$0.slept\"; sleep 60; echo \"$1\" >> \"$0\"";
    format!("[sh, -c, '{script}', '${{ inputs.ledger }}', '{line}']")
}

/// Removed, to see it fail: the call of `leftovers::end` where an owner opens the store.
#[test]
fn what_a_killed_farrier_left_running_ends_before_anything_is_claimed() {
    for class in ["once", "probed"] {
        let project = project(0);
        let unless = if class == "once" { String::new() } else { format!(", unless: {}", is_there("done")) };
        let sleeper = sleeper("done");
        project.write(
            "runbooks/sleeping.yaml",
            &format!(
                "{}steps:\n  once_sleep: {{ uses: host.run, undo: none, \
                 with: {{ target: here, argv: {sleeper}{unless} }} }}\n",
                head("sleeping", "here: host")
            ),
        );
        project.write(
            "runbooks/other.yaml",
            &format!(
                "{}steps:\n  a: {{ uses: host.run, undo: none, with: {{ target: here, argv: {} }} }}\n",
                head("other", "here: host"),
                append("other")
            ),
        );
        let mut started = Started::from(project.command(&args(&words(&project, "sleeping"))));
        wait_until("the command and its daemon sleep, or it failed", || {
            project.path("ledger.slept").exists() || started.child.try_wait().unwrap().is_some()
        });
        let _ = started.child.kill();
        let killed = started.end();
        assert_eq!(killed.signal, Some(9), "{killed}");
        let pids = pids(&project);
        assert_eq!(pids.len(), 2);
        assert!(pids.iter().all(|pid| lives(*pid)), "kill -9 does not end what was started");
        let run = project.last_run();

        // Somebody who only looks ends nothing.
        show(&project, &run);
        assert!(pids.iter().all(|pid| lives(*pid)));
        // The next owner ends it, although it claims another run or none.
        let mut detached = words(&project, "other");
        detached.push("--detach".into());
        detached.retain(|word| word != "--yes");
        let owner = project.farrier(&args(&detached)).expect(0).complains("it outlived its Farrier");
        assert!(owner.err.contains("of step `once_sleep`"), "{owner}");
        assert!(pids.iter().all(|pid| !lives(*pid)), "{owner}");
        let claims = |run: &str| journal(&project, run).iter().filter(|kind| *kind == "claimed").count();
        assert_eq!(claims(&run), 1, "it was ended before anything was claimed");

        // The step is in doubt by its class.
        let resumed = project.farrier(&["resume", &run, "--yes"]);
        assert!(!resumed.err.contains("outlived"), "there is nothing left to end: {resumed}");
        if class == "once" {
            resumed.expect(12).says("farrier resolve");
            assert_eq!(ledger(&project), [""; 0]);
        } else {
            resumed.expect(0);
            assert_eq!(ledger(&project), ["done"], "the probe said no, and it was run again");
        }
        project.farrier(&["fsck"]).expect(0);
    }
}
