//! `finally` when the run came to its end early: what its steps read may never have been read.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use common::{Bench, runbook};
use farrier_model::{RunState, Value};

/// Runs a runbook one step at a time in which the first read fails, so that the second one is never at work.
async fn first_read_fails(name: &str, finally: &str) -> Bench {
    let mut bench = Bench::new(name);
    bench.options.parallel = 1;
    bench.world.state.lock().unwrap().failing.insert("a".into(), 9);
    let rest = format!(
        "steps:
  a: {{ uses: fake.read, with: {{ target: world, object: a }} }}
  b: {{ uses: fake.read, with: {{ target: world, object: b }} }}
finally:
{finally}"
    );
    let start = bench.start(&[runbook(name, "recoverable", &rest)], Value::map::<&str>([]));
    let ended = bench.run(&start).await.unwrap();
    assert_eq!(ended.state, RunState::Failed);
    let journal = bench.journal(ended.run).await;
    assert!(!journal.contains(&"succeeded b".to_owned()), "{journal:?}");
    bench
}

#[tokio::test]
async fn a_step_that_writes_does_so_though_what_it_reads_was_never_read() {
    let finally = "  tell:
    uses: fake.keyed
    with: { target: world, object: told, value: \"${ steps.b.value | default('not read') }\" }
    undo: none
";
    let bench = first_read_fails("finally_writes", finally).await;
    let state = bench.world.state();
    assert_eq!(state.ledger, ["fake.keyed told"]);
    assert_eq!(state.objects.get("told"), Some(&Value::text("not read")));
}

#[tokio::test]
async fn steps_come_one_after_the_other_though_what_they_read_was_never_read() {
    let finally = "  look: { uses: fake.read, with: { target: world, object: x } }
  see: { uses: fake.read, needs: [look], if: \"steps.b.value | default('') == ''\", with: { target: world, object: y } }
  tell: { uses: fake.keyed, needs: [see], with: { target: world, object: told, value: v }, undo: none }
  more:
    uses: fake.keyed
    for_each: { in: \"${ steps.b.value | default(['p', 'q']) }\", as: name, key: name }
    needs: [tell]
    with: { target: world, object: \"${ name }\", value: v }
    undo: none
";
    let bench = first_read_fails("finally_chain", finally).await;
    let mut ledger = bench.world.state().ledger;
    ledger[1..].sort();
    assert_eq!(ledger, ["fake.keyed told", "fake.keyed p", "fake.keyed q"]);
}
