//! Many small runs under a service that is killed all the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use farrier_action::{ActionRegistry, Targets};
use farrier_exec::driver::{Start, Unobserved, World};
use farrier_exec::{Driver, Halt, Options};
use farrier_model::event::Trigger;
use farrier_model::{RunId, Text, Value};
use farrier_store::{Clock, OpenOptions, SqliteStore};

use crate::blows::kill_after;
use crate::common::{Project, Started};
use crate::form::Form;
use crate::world::{head, holds_at_most_once, ledger, project, requests, resume_to_the_end};

/// A file, a request under a key, a command that can be asked, and for every fourth run one that cannot.
fn runbook() -> String {
    let line = |kind: &str| {
        format!(
            "[sh, -c, 'echo \"$1\" >> \"$0\"', '${{ inputs.ledger }}', \"${{ '{kind} ' ~ inputs.name }}\"]"
        )
    };
    let unless = "[grep, -qx, \"${ 'probed ' ~ inputs.name }\", '${ inputs.ledger }']";
    format!(
        "{}  name: {{ type: string }}\n  risky: {{ type: bool }}\nsteps:\n\
         \x20 file: {{ uses: files.write, undo: none, with: {{ target: notes, file: {{ root: notes, path: \
         ['${{ inputs.name }}'] }}, content: '${{ inputs.name }}' }} }}\n\
         \x20 keyed: {{ uses: http.request, undo: none, needs: [file], with: {{ target: feed, method: POST, path: [sal], \
         json: {{ message: \"${{ 'keyed ' ~ inputs.name }}\" }} }} }}\n\
         \x20 probed: {{ uses: host.run, undo: none, needs: [keyed], with: {{ target: here, argv: {}, unless: {unless} }} }}\n\
         \x20 once: {{ uses: host.run, undo: none, needs: [probed], if: inputs.risky, with: {{ target: here, argv: {} }} }}\n",
        head("small", "feed: http, notes: files, here: host"),
        line("probed"),
        line("once"),
    )
}

/// Puts so many runs on disk through the library, and closes the store.
fn enqueue(project: &Project, count: usize) -> Vec<RunId> {
    let mut registry = ActionRegistry::default();
    farrier_plugin_files::register(&mut registry).unwrap();
    farrier_plugin_host::register(&mut registry).unwrap();
    farrier_plugin_http::register(&mut registry).unwrap();
    let registry = Arc::new(registry);
    let sources = BTreeMap::from([(Text::from("small"), Text::from(runbook()))]);
    let bundle = match farrier_runbook::compile_bundle("small", &sources, registry.catalog()) {
        Ok(bundle) => Arc::new(bundle),
        Err(mistakes) => panic!("{}", mistakes.render(false)),
    };
    let ledger = project.path("ledger").display().to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(&project.path("data"), OpenOptions::default()).await.unwrap();
        let (_stop, halt) = tokio::sync::watch::channel(Halt::No);
        let (options, observer) = (Options::default(), Arc::new(Unobserved));
        let driver = Driver::new(registry, Arc::new(store.clone()), Clock::system(), options, observer, halt);
        let mut runs = Vec::new();
        for run in 0..count {
            let inputs = Value::map([
                ("ledger", Value::text(ledger.as_str())),
                ("name", Value::text(format!("r{run}"))),
                ("risky", Value::Bool(run % 4 == 0)),
            ]);
            let targets = Targets::new(project.path("environments"), Vec::new(), BTreeMap::new());
            let start = Start {
                bundle: bundle.clone(),
                world: World::new("test", Arc::new(targets)),
                inputs,
                trigger: Trigger::Manual { by: "tester".into() },
                plan: None,
            };
            runs.push(driver.enqueue(&start).await.unwrap());
        }
        drop(driver);
        store.close().await;
        runs
    })
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// How long after its start a life claimed its first run, if it came that far.
fn first_claim(project: &Project, begun: u64) -> Option<u64> {
    let select = format!("SELECT MIN(at) FROM journal WHERE kind = 'claimed' AND at >= {begun}");
    project.sqlite("data/farrier.db", &select)[0].parse::<u64>().ok().map(|at| at - begun)
}

/// G1 on the real binary: what was put on disk reaches its end or is parked with a reason, whatever happens to the
/// service; and nothing happens twice.
#[test]
fn g1_runs_under_a_service_that_is_killed_all_the_time_are_neither_lost_nor_repeated() {
    let mut form = Form::of(5);
    let project = project(0);
    project.write("runbooks/small.yaml", &runbook());
    let runs = enqueue(&project, form.count(60, 2_000));
    let (mut deaths, mut restarts) = (0, Vec::new());
    let bound = form.count(40, 4_000);
    loop {
        let begun = now_ms();
        let service = Started::from(project.command(&["serve", "--until-idle", "--quiet", "--runs", "8"]));
        // In the end it may go on undisturbed, so that the test ends on a slow machine as well.
        let wait = if deaths < bound && !form.is_over() { 50 + form.random(450) } else { 600_000 };
        let answer = kill_after(service, Duration::from_millis(wait));
        restarts.extend(first_claim(&project, begun));
        holds_at_most_once(&project, "served");
        if answer.signal != Some(9) {
            answer.expect(0);
            break;
        }
        deaths += 1;
    }
    project.farrier(&["fsck"]).expect(0).says("everything is whole");

    let listed = project.farrier(&["runs", "-n", "100000", "-o", "json"]).expect(0).json();
    let states: BTreeMap<&str, &str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|run| (run["id"].as_str().unwrap(), run["state"].as_str().unwrap()))
        .collect();
    assert_eq!(states.len(), runs.len(), "no run is lost, and none was made twice");
    let (lines, messages) = (ledger(&project), requests(&project));
    let (mut succeeded, mut parked) = (0, Vec::new());
    for (run, id) in runs.iter().enumerate() {
        match states[id.to_string().as_str()] {
            "succeeded" => {
                succeeded += 1;
                assert!(lines.contains(&format!("probed r{run}")), "r{run}");
                assert_eq!(lines.contains(&format!("once r{run}")), run % 4 == 0, "r{run}");
                assert!(messages.contains(&format!("keyed r{run}")), "r{run}");
                assert_eq!(project.read(&format!("notes/r{run}")), format!("r{run}"));
            }
            "parked" => parked.push((run, *id)),
            other => panic!("r{run} is {other} although nothing is due any more"),
        }
    }
    // A person looks at the parked ones, at most at forty of them.
    for (run, id) in parked.iter().take(40) {
        let line = |node: &str| format!("{node} r{run}");
        let end = resume_to_the_end(&project, &id.to_string(), line, |args| project.farrier(args));
        assert_eq!(end["state"], "succeeded", "{end:#}");
    }
    project.farrier(&["fsck"]).expect(0).says("everything is whole");
    restarts.sort_unstable();
    let worst = restarts.last().copied().unwrap_or_default();
    let median = restarts.get(restarts.len() / 2).copied().unwrap_or_default();
    eprintln!(
        "{} runs, {deaths} deaths of the service, {succeeded} succeeded by themselves, {} parked; from the start of a \
         process to its first claim: median {median} ms, worst {worst} ms, of {} restarts",
        runs.len(),
        parked.len(),
        restarts.len()
    );
    assert!(succeeded > runs.len() / 2, "useful work was done: {succeeded} of {}", runs.len());
}
