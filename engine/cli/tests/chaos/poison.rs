//! A run that kills its process every time is parked in the end, and takes no other run with it.

use crate::common::Started;
use crate::world::{append, args, head, ledger, project, show, words};

/// Goes up from a command to the Farrier that started it, and kills that. Nothing that is no ancestor is touched.
const MURDER: &str = "p=$PPID; while [ $p -gt 1 ]; do \
                      if [ $(cat /proc/$p/comm) = farrier ]; then kill -9 $p; exit 0; fi; \
                      p=$(cut -d\" \" -f4 /proc/$p/stat); done; exit 1";

/// Removed, to see it fail: the count of claims in `decide`, which parks the run; and `is_suspicious` in the engine, which
/// keeps the others from being parked in its place.
#[test]
fn a_run_that_kills_its_process_every_time_is_parked_and_others_are_not_affected() {
    let project = project(0);
    let killer = format!("[sh, -c, '{MURDER}']");
    project.write(
        "runbooks/poison.yaml",
        &format!(
            "{}steps:\n  a: {{ uses: host.run, undo: none, with: {{ target: here, argv: {killer}, read_only: true }} }}\n",
            head("poison", "here: host")
        ),
    );
    // They take longer than the killer does, so they die with it each time that they are under way together.
    for other in 0..4 {
        project.write(
            &format!("runbooks/good_{other}.yaml"),
            &format!(
                "{}steps:\n  wait: {{ uses: host.run, undo: none, with: {{ target: here, argv: {}, unless: [grep, \
                 -qx, 'good {other}', '${{ inputs.ledger }}'] }} }}\n",
                head(&format!("good_{other}"), "here: host"),
                append(&format!("good {other}")).replace("echo", "sleep 0.5; echo")
            ),
        );
    }
    let detached = |runbook: &str| {
        let mut words = words(&project, runbook);
        words.retain(|word| word != "--yes");
        words.push("--detach".into());
        project.farrier(&args(&words)).expect(0).out.trim().to_owned()
    };
    let mut good = vec![detached("good_0"), detached("good_1")];
    let poison = detached("poison");
    good.extend([detached("good_2"), detached("good_3")]);

    let mut deaths = 0;
    loop {
        let answer = Started::from(project.command(&["serve", "--until-idle"])).end();
        if answer.signal != Some(9) {
            answer.expect(0);
            break;
        }
        deaths += 1;
        assert!(deaths < 20, "it is never parked: {:#}", show(&project, &poison));
    }
    assert_eq!(deaths, 6, "the first owner and five takeovers");
    let parked = show(&project, &poison);
    assert_eq!(parked["state"], "parked", "{parked:#}");
    let reason = parked["parked"].to_string();
    assert!(reason.contains("its owner died 6 times"), "{parked:#}");
    for run in &good {
        assert_eq!(show(&project, run)["state"], "succeeded");
    }
    let mut lines = ledger(&project);
    lines.sort();
    assert_eq!(lines, ["good 0", "good 1", "good 2", "good 3"]);
    project.farrier(&["fsck"]).expect(0);
}
