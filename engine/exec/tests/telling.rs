//! Who hears of what: notices are stored with their reason, and told at least once.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use common::{Bench, runbook};
use farrier_action::{ActionRegistry, Binding, Targets};
use farrier_exec::driver::Start;
use farrier_exec::{Mailing, Post, Recipients};
use farrier_model::{RunState, Value};
use farrier_store::{Fault, NoticeFilter, Outbox, Posted, RunFilter, Store};

const FAILS: &str = "steps:
  look: { uses: fake.read, with: { target: world, object: seen } }
  write: { uses: fake.set, needs: [look], with: { target: world, object: a, value: 1, fail: true }, undo: restore }
";
const ASKS: &str = "steps:
  write: { uses: fake.set, needs: [], with: { target: world, object: a, value: 1 }, undo: restore }
";

fn start(bench: &Bench, name: &str, rest: &str) -> Start {
    bench.start(&[runbook(name, "recoverable", rest)], Value::map::<&str>([]))
}

async fn notices(bench: &Bench) -> Vec<Posted> {
    bench.store.notices(NoticeFilter::default()).await.unwrap()
}

async fn told(name: &str, rest: &str) -> Vec<(String, String)> {
    let bench = Bench::new(name);
    bench.run(&start(&bench, name, rest)).await.unwrap();
    let notices = notices(&bench).await;
    notices.iter().map(|posted| (posted.notice.to.to_string(), posted.notice.occasion.to_string())).collect()
}

fn pair(to: &str, occasion: &str) -> (String, String) {
    (to.to_owned(), occasion.to_owned())
}

#[tokio::test(start_paused = true)]
async fn those_whom_a_runbook_names_hear_of_what_it_names() {
    let escalates = |on: &str| format!("escalate: {{ on: [{on}], to: roots }}\n{FAILS}");
    assert_eq!(told("tell-failed", &escalates("failed")).await, [pair("roots", "failed")]);
    assert_eq!(told("tell-others", &escalates("cancelled, degraded")).await, []);
    assert_eq!(told("tell-nobody", FAILS).await, [], "a failed run is over; nobody asked to hear of it");
}

#[tokio::test(start_paused = true)]
async fn the_owner_hears_of_a_run_that_waits_for_a_person() {
    let guard = |otherwise: &str| {
        format!("guards: [{{ count: [create], at_most: 0, otherwise: {otherwise} }}]\n{ASKS}")
    };
    assert_eq!(told("tell-ask", &guard("ask")).await, [pair("testers", "guard")]);
    let to_roots = "escalate: { on: [guard], to: roots }\n";
    let roots = [pair("roots", "guard")];
    assert_eq!(told("tell-guard", &format!("{to_roots}{}", guard("ask"))).await, roots);
    // `page` is for the owner, whoever else hears of it.
    let both = [pair("roots", "guard"), pair("testers", "guard")];
    assert_eq!(told("tell-page", &format!("{to_roots}{}", guard("page"))).await, both);
    let stopped = format!("{to_roots}{}", guard("stop"));
    assert_eq!(told("tell-stop", &stopped).await, roots, "a guard that stops is an occasion of its own");
}

#[tokio::test(start_paused = true)]
async fn a_notice_says_why_what_was_seen_and_what_to_type() {
    let bench = Bench::new("tell-text");
    bench.world.state.lock().unwrap().objects.insert("seen".into(), Value::text("12 stuck processes"));
    let text = format!("docs: https://example.org/page\nescalate: {{ on: [failed] }}\n{FAILS}");
    let ended = bench.run(&start(&bench, "tell-text", &text)).await.unwrap();
    let [posted] = notices(&bench).await.try_into().unwrap();
    assert_eq!(posted.notice.subject, "tell-text in test: it failed");
    let body = posted.notice.body;
    let run = &ended.run.to_string()[..13];
    for part in ["Why: it was refused", "12 stuck processes", "write failed", "https://example.org/page", run]
    {
        assert!(body.contains(part), "{part}: {body}");
    }
}

/// Also what a step has seen that could have written and found nothing to do, as a command does that says that it only reads.
#[tokio::test(start_paused = true)]
async fn a_notice_shows_what_was_seen_line_by_line_and_no_more_than_a_mail_can_hold() {
    let bench = Bench::new("tell-seen");
    let seen = |name: &str| format!("D 4711 {name}\nD 4712 {name}\n{}", "more\n".repeat(5_000));
    let mut steps = "escalate: { on: [failed], to: roots }\nsteps:\n".to_owned();
    let needs: Vec<String> = (0..12).map(|step| format!("look_{step}")).collect();
    for name in &needs {
        let text = Value::text(seen(name));
        bench.world.state.lock().unwrap().objects.insert(name.clone(), text.clone());
        let with = format!("target: world, object: {name}, value: {}", text.to_json());
        steps.push_str(&format!("  {name}: {{ uses: fake.probed, with: {{ {with} }}, undo: none }}\n"));
    }
    let with = "target: world, object: a, value: 1, fail: true";
    let needs = needs.join(", ");
    steps.push_str(&format!(
        "  write: {{ uses: fake.set, needs: [{needs}], with: {{ {with} }}, undo: restore }}\n"
    ));
    bench.run(&start(&bench, "tell-seen", &steps)).await.unwrap();
    let [posted] = notices(&bench).await.try_into().unwrap();
    let body = posted.notice.body;
    let lines = "  look_0 succeeded\n    value:\n      D 4711 look_0\n      D 4712 look_0\n      more\n";
    assert!(body.contains(lines), "{}", &body[..2_000]);
    assert!(
        body.contains("  look_11 succeeded\n    …\n  write failed: it was refused\n"),
        "the last has no room"
    );
    assert!(body.len() < 100_000, "{}", body.len());
}

/// Guards K14: wherever the process dies, the end of a run and the word about it are both there or both missing.
/// Mechanism: notices are part of the batch.
#[tokio::test(start_paused = true)]
async fn the_end_and_its_notice_survive_together() {
    let text = format!("escalate: {{ on: [failed], to: roots }}\n{FAILS}");
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::AnswerLost, Fault::RequestLost] {
        for nth in 1.. {
            let mut bench = Bench::new("tell-crash");
            let start = start(&bench, "tell-crash", &text);
            bench.store.inject(nth, fault);
            let first = bench.run(&start).await;
            let happened = bench.store.pending_faults() == 0;
            if first.is_err() {
                bench.store = bench.store.restart();
                for row in bench.store.runs(RunFilter::default()).await.unwrap() {
                    if !row.state.is_final() {
                        bench
                            .driver()
                            .resume(row.id, &start, &farrier_exec::driver::ProceedAlways, &[])
                            .await
                            .unwrap();
                    }
                }
            }
            let failed = bench.store.runs(RunFilter::default()).await.unwrap();
            let failed = failed.iter().filter(|row| row.state == RunState::Failed).count();
            assert_eq!(notices(&bench).await.len(), failed, "{fault:?} at write {nth}");
            if !happened {
                break;
            }
        }
    }
}

/// A folder that stands in for a mail server.
struct Folder(Arc<Targets>);

impl Recipients for Folder {
    fn mailing(&self, environment: &str, to: &str) -> Result<Mailing, String> {
        if to != "roots" {
            return Err(format!("environment `{environment}` does not say where `{to}` is"));
        }
        let addresses = vec!["roots@example.org".into()];
        Ok(Mailing { targets: self.0.clone(), target: "post".into(), addresses })
    }
}

fn folder(path: &Path, refuse: &[&str]) -> Arc<dyn Recipients> {
    let refuse = refuse.iter().map(|address| Value::text(*address)).collect();
    let config = Value::map([
        ("url", Value::text("folder:mails")),
        ("from", Value::text("farrier@example.org")),
        ("refuse", Value::list(refuse)),
    ]);
    let binding = Binding { alias: "post".into(), kind: "mail".into(), config };
    Arc::new(Folder(Arc::new(Targets::new(path.to_owned(), vec![binding], BTreeMap::new()))))
}

fn mails(path: &Path) -> Vec<String> {
    let folder = std::fs::read_dir(path.join("mails"));
    folder.into_iter().flatten().map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}

#[tokio::test]
async fn a_notice_is_tried_again_until_it_is_sent() {
    let text = format!("escalate: {{ on: [failed], to: roots }}\n{FAILS}");
    let bench = Bench::new("tell-post");
    bench.run(&start(&bench, "tell-post", &text)).await.unwrap();
    let mut registry = ActionRegistry::default();
    farrier_plugin_mail::register(&mut registry).unwrap();
    let registry = Arc::new(registry);
    let place = tempfile::tempdir().unwrap();
    let post = |refuse: &[&str], later: i64| {
        let clock = bench.clock.clone();
        let later = std::time::Duration::from_secs(later.unsigned_abs());
        let clock = farrier_store::Clock::from_fn(move || clock.now() + later);
        Post::new(registry.clone(), Arc::new(bench.store.clone()), folder(place.path(), refuse), clock)
    };

    assert_eq!(post(&["*"], 0).send_due().await.unwrap(), 0);
    let [posted] = notices(&bench).await.try_into().unwrap();
    assert_eq!((posted.attempts, posted.sent_at), (1, None));
    assert!(posted.trouble.unwrap().contains("no such person"));
    assert_eq!(post(&[], 0).send_due().await.unwrap(), 0, "not before its time");
    assert_eq!(post(&[], 60).send_due().await.unwrap(), 1);
    assert_eq!(post(&[], 120).send_due().await.unwrap(), 0, "told once");
    let [mail] = mails(place.path()).try_into().unwrap();
    assert!(mail.contains("Subject: [farrier] tell-post in test: it failed"), "{mail}");
    assert!(mail.contains("To: roots@example.org"), "{mail}");
}

/// What cannot be delivered stays, with the reason, and keeps nothing else from being delivered.
#[tokio::test]
async fn somebody_unknown_keeps_nobody_else_from_hearing() {
    let bench = Bench::new("tell-unknown");
    let text = |to: &str| format!("escalate: {{ on: [failed], to: {to} }}\n{FAILS}");
    bench.run(&start(&bench, "tell-unknown", &text("nobody"))).await.unwrap();
    bench.run(&start(&bench, "tell-unknown", &text("roots"))).await.unwrap();
    let mut registry = ActionRegistry::default();
    farrier_plugin_mail::register(&mut registry).unwrap();
    let place = tempfile::tempdir().unwrap();
    let recipients = folder(place.path(), &[]);
    let post = Post::new(Arc::new(registry), Arc::new(bench.store.clone()), recipients, bench.clock.clone());
    assert_eq!(post.send_due().await.unwrap(), 1);
    let pending = NoticeFilter { pending: true, ..NoticeFilter::default() };
    let [left] = bench.store.notices(pending).await.unwrap().try_into().unwrap();
    assert_eq!(left.trouble.as_deref(), Some("environment `test` does not say where `nobody` is"));
    assert_eq!(mails(place.path()).len(), 1);
}
