//! Rounds of `tools-archive-and-delete` on the stand-ins, hours and days apart: a tool that cannot be deleted stands in nobody's
//! way, nor does one whose run waits for a person, one that another run is at is left to it, and the limit of a day holds across rounds.

use std::fs;
use std::time::Duration;

use farrier_model::time::Timestamp;
use farrier_testkit::clock::Clock;
use serde_json::{Value, json};

use crate::common::{Answer, Project};

const ROUND: &str = "tools-archive-and-delete";
const HOUR: u64 = 60 * 60;
/// Why the first tool cannot be deleted.
const SICK: &str = "runbook `tool-delete`: its home belongs to account 50001 and not to 51001; is it a tool of another project?";

/// The first tools of the shipped example `lifecycle-many`, and its clock.
struct Rounds {
    project: Project,
    clock: Clock,
}

impl Rounds {
    /// `disabled`: for each of the tools, how many hours ago.
    fn of(disabled: &[i64]) -> Rounds {
        let mut project = Project::demo();
        let directory = project.read("environments/lifecycle-many/directory.ldif");
        let number = |entry: &str| {
            let name = entry.lines().next()?.split("tools.bulk-").nth(1)?;
            name.split(',').next()?.parse::<usize>().ok()
        };
        let entry = |entry: &str| match number(entry).map(|number| disabled.get(number - 1)) {
            None => Some(entry.to_owned()),
            Some(None) => None,
            Some(Some(hours)) => {
                let time = Timestamp::now() - Duration::from_secs(hours.unsigned_abs() * HOUR);
                let time = format!("pwdAccountLockedTime: {}.000000Z", time.strftime("%Y%m%d%H%M%S"));
                Some(entry.replace("pwdAccountLockedTime: 20260101000000Z", &time))
            }
        };
        let directory: Vec<String> = directory.split("\n\n").filter_map(entry).collect();
        project.write("environments/lifecycle-many/directory.ldif", &directory.join("\n\n"));
        let clock = Clock::start();
        project.goes_by(&clock);
        let rounds = Rounds { project, clock };
        // Who owns the first one's home is settled later.
        rounds.replace("environments/lifecycle-many.yaml", "bulk-1: 51001,", "bulk-1: 50001,");
        rounds
    }

    fn replace(&self, file: &str, from: &str, to: &str) {
        let text = self.project.read(file);
        assert!(text.contains(from), "{file}: {text}");
        self.project.write(file, &text.replace(from, to));
    }

    fn after(&self, hours: u64) {
        self.clock.set_ahead(Duration::from_secs(hours * HOUR));
    }

    fn run(&self, runbook: &str, inputs: &[&str]) -> Answer {
        let inputs: Vec<&str> = inputs.iter().flat_map(|input| ["-i", *input]).collect();
        let words = ["run", runbook, "--env", "lifecycle-many", "--yes"];
        self.project.farrier(&[&words[..], &inputs].concat())
    }

    /// A round: its exit code, and what it found due and left alone.
    #[track_caller]
    fn round(&self, code: i32, due: &[&str], resting: &[(&str, &str)]) -> Answer {
        let ran = self.run(ROUND, &[]).expect(code);
        self.says(due, resting);
        ran
    }

    /// What the newest round found due and left alone.
    #[track_caller]
    fn says(&self, due: &[&str], resting: &[(&str, &str)]) {
        let found = self.step("due")["rows"].clone();
        let found: Vec<&Value> = found.as_array().unwrap().iter().map(|row| &row["tool"]).collect();
        assert_eq!(json!(found), json!(due));
        let left = self.step("resting")["rows"].clone();
        let left: Vec<Value> =
            left.as_array().unwrap().iter().map(|row| json!([row["tool"], row["reason"]])).collect();
        assert_eq!(json!(left), json!(resting));
    }

    /// What a step of the newest round gave.
    fn step(&self, step: &str) -> Value {
        let runs = self.project.farrier(&["runs", "-o", "json"]).expect(0).json();
        let round = runs.as_array().unwrap().iter().find(|run| run["runbook"] == ROUND).unwrap();
        let run = round["id"].as_str().unwrap();
        let journal = self.project.farrier(&["logs", run, "-o", "json"]).expect(0).json();
        let mut events = journal.as_array().unwrap().iter().map(|entry| &entry["event"]["node"]);
        let output = events.find_map(|event| {
            let gave = event["event"]["succeeded"].get("output");
            gave.filter(|_| event["node"] == step).cloned()
        });
        output.unwrap_or_else(|| panic!("`{step}` gave nothing: {journal:#}"))
    }

    /// The numbers of the tools that have a home.
    fn homes(&self) -> Vec<u32> {
        let entries = fs::read_dir(self.project.path("environments/lifecycle-many/homes")).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut numbers: Vec<u32> = names
            .filter_map(|name| name.strip_prefix("bulk-")?.parse().ok())
            .filter(|number| *number < 7)
            .collect();
        numbers.sort_unstable();
        numbers
    }
}

#[test]
fn a_tool_that_cannot_be_deleted_rests_for_a_day_and_takes_nobodys_place() {
    let day = 24;
    // Five and six are due in eleven and in twelve hours.
    let rounds = Rounds::of(&[60 * day, 50 * day, 50 * day, 42 * day, 40 * day + 13, 40 * day + 12]);
    rounds.replace(&format!("runbooks/lifecycle/{ROUND}.yaml"), "at_most: 20", "at_most: 4");

    let ran = rounds.round(10, &["bulk-1", "bulk-2", "bulk-3", "bulk-4"], &[]);
    assert!(ran.err.contains("its home belongs to account 50001 and not to 51001"), "{ran}");
    assert_eq!(rounds.homes(), [1, 5, 6], "one tool's trouble is its own");
    // In the next round nobody is due, and nobody is told again.
    rounds.after(1);
    rounds.round(0, &[], &[("bulk-1", SICK)]);
    // The sick one is none of the four of this day.
    rounds.after(11);
    rounds.round(0, &["bulk-5"], &[("bulk-1", SICK)]);
    assert_eq!(rounds.homes(), [1, 6]);
    // The fifth of the day waits for a person, and so does the round.
    rounds.after(13);
    rounds.round(12, &["bulk-6"], &[("bulk-1", SICK)]);
    assert_eq!(rounds.homes(), [1, 6]);
    rounds.run(ROUND, &[]).expect(23);
    let runs = rounds.project.farrier(&["runs", "-n", "1", "-o", "json"]).expect(0).json();
    let parked = runs[0]["id"].as_str().unwrap();
    rounds.project.farrier(&["resume", parked, "--yes", "--accept-guards"]).expect(0);
    assert_eq!(rounds.homes(), [1]);
    // A day after it was tried it is tried again. Then somebody mends it, and need not wait for another day.
    rounds.after(25);
    rounds.round(10, &["bulk-1"], &[]);
    rounds.replace("environments/lifecycle-many.yaml", "bulk-1: 50001,", "bulk-1: 51001,");
    rounds.after(26);
    rounds.round(0, &[], &[("bulk-1", SICK)]);
    rounds.run("tool-delete", &["tool=bulk-1", "number=51001"]).expect(0);
    assert_eq!(rounds.homes(), [0_u32; 0]);
    rounds.round(0, &[], &[]);
}

#[test]
fn a_tool_that_another_run_is_at_is_left_to_it() {
    let rounds = Rounds::of(&[60 * 24, 60 * 24, 60 * 24]);
    rounds.replace("environments/lifecycle-many.yaml", "bulk-1: 50001,", "bulk-1: 51001,");
    rounds.replace(
        "environments/lifecycle-many.yaml",
        "\npeople:",
        "\napprovals: { destructive: 1 }\npeople:",
    );
    let newest = || {
        let runs = rounds.project.farrier(&["runs", "-n", "1", "-o", "json"]).expect(0).json();
        runs[0]["id"].as_str().unwrap().to_owned()
    };
    let approve = |run: &str| {
        let view = rounds.project.farrier(&["show", run, "-o", "json"]).expect(0).json();
        let digest = view["approvals"][0]["digest"].as_str().unwrap();
        rounds.project.farrier_as("ada", &["approve", run, "--yes", "--digest", digest]).expect(0);
    };
    // A round that waits for approval, and an admin who is quicker with one of the tools.
    rounds.round(15, &["bulk-1", "bulk-2", "bulk-3"], &[]);
    let round = newest();
    rounds.run("tool-delete", &["tool=bulk-2", "number=51002"]).expect(15);
    let by_hand = newest();
    let again = rounds.run("tool-delete", &["tool=bulk-2", "number=51002"]).expect(23);
    assert!(again.err.contains(&by_hand), "it says which run it is: {again}");
    // The round is through with the others, and says what it could not have.
    approve(&round);
    let ran = rounds.project.farrier(&["resume", &round, "--yes"]).expect(10);
    assert!(ran.err.contains(&by_hand), "{ran}");
    assert_eq!(rounds.homes(), [2, 4, 5, 6]);
    // The next one leaves it to the run that is at it.
    rounds.round(0, &[], &[("bulk-2", "another run is waiting")]);
    approve(&by_hand);
    rounds.project.farrier(&["resume", &by_hand, "--yes"]).expect(0);
    assert_eq!(rounds.homes(), [4, 5, 6]);
    rounds.round(0, &[], &[]);
    // Whoever is too late by hand finds nothing to delete.
    let late = rounds.run("tool-delete", &["tool=bulk-2", "number=51002"]).expect(10);
    assert!(late.err.contains("there is no such tool"), "{late}");
    rounds.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

/// The run of the first tool is parked before it deletes anything. The others go, in this round and in the next ones, until somebody
/// answers for the first.
#[test]
fn a_tool_whose_run_waits_for_a_person_holds_up_nobody() {
    let day = 24;
    let rounds = Rounds::of(&[60 * day, 50 * day, 40 * day + 13, 40 * day + 12]);
    rounds.replace("environments/lifecycle-many.yaml", "bulk-1: 50001,", "bulk-1: 51001,");
    rounds.replace(&format!("runbooks/lifecycle/{ROUND}.yaml"), "at_most: 20", "at_most: 3");
    rounds.replace(
        "runbooks/lifecycle/tool-delete.yaml",
        "\n  delete_home:\n    uses: files.delete_tree\n    needs: [claimed]",
        "
  odd:
    uses: flow.fail
    if: inputs.tool == 'bulk-1'
    needs: [claimed]
    with: { message: it is odd }
    on_failure: continue
  delete_home:
    uses: files.delete_tree
    needs: [claimed, { odd: finished }]",
    );
    let notices = || {
        let sql = "SELECT run_id FROM outbox ORDER BY rowid";
        rounds.project.sqlite(".farrier/farrier.db", sql)
    };
    let resting = [("bulk-1", "another run is parked")];

    let ran = rounds.round(10, &["bulk-1", "bulk-2"], &[]);
    assert_eq!(rounds.homes(), [3, 4, 5, 6], "the first one's is set aside, the last two are not disabled");
    let runs = rounds.project.farrier(&["runs", "-o", "json"]).expect(0).json();
    let parked = runs
        .as_array()
        .unwrap()
        .iter()
        .find(|run| run["state"] == "parked")
        .unwrap_or_else(|| panic!("{runs:#}\n{ran}"));
    let parked = parked["id"].as_str().unwrap();
    assert!(ran.err.contains(&format!("child run {parked} of `tool-delete` waits for a person")), "{ran}");
    // The run itself has told, and who started it; no later round does.
    let told = notices();
    assert_eq!((told.len(), told.iter().filter(|run| *run == parked).count()), (2, 1), "{told:?}");
    rounds.after(11);
    rounds.round(0, &["bulk-3"], &resting);
    assert_eq!(rounds.homes(), [4, 5, 6]);
    rounds.after(13);
    // It has one of the three places of its day.
    rounds.round(12, &["bulk-4"], &resting);
    let asking = rounds.project.last_run();
    rounds.project.farrier(&["cancel", &asking]).expect(0);
    // A day after the first round, too, it is left to whoever answers.
    rounds.after(36);
    rounds.round(0, &["bulk-4"], &resting);
    assert_eq!(rounds.homes(), [5, 6]);
    // Two of its steps ask.
    let answer = ["resume", parked, "--yes", "--accept-guards"];
    rounds.project.farrier(&answer).expect(12);
    rounds.project.farrier(&answer).expect(13);
    // Its account is gone.
    rounds.round(0, &[], &[]);
    rounds.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}
