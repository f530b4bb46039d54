//! What alerts do: every decision with its reason.

use std::time::Duration;

use super::*;
use crate::route::{Fuse, Policy, Rate};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn rule() -> Rule {
    let policy = Policy {
        after_success: Duration::from_secs(600),
        after_failure: Duration::from_secs(3600),
        max_active: 3,
        rate: Rate { burst: 2, every: Duration::from_secs(10) },
        fuse: Fuse { runs: 4, failures: 2, within: Duration::from_secs(600) },
        ..Policy::default()
    };
    Rule { policy, owner: "admins".into(), destructive: false, writes: true, frozen: false, doubt: None }
}

fn firing(rule: &Rule, facts: &Facts, now: i64) -> Decision {
    decide(Status::Firing, (Some(at(0)), None), rule, facts, at(now))
}

fn resolved(facts: &Facts, ended: i64) -> Resolution {
    match decide(Status::Resolved, (Some(at(0)), Some(at(ended))), &rule(), facts, at(ended)) {
        Decision::Resolved(resolution) => resolution,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_alert_starts_or_proposes() {
    assert_eq!(firing(&rule(), &Facts::default(), 1), Decision::Start { proposed: false });
    let mut propose = rule();
    propose.policy.mode = Mode::Propose;
    assert_eq!(firing(&propose, &Facts::default(), 1), Decision::Start { proposed: true });
}

/// Guards "an old message destroys nothing by itself": not at once, and not after it was held either.
#[test]
fn what_is_old_or_of_another_time_is_proposed() {
    let destructive = Rule { destructive: true, ..rule() };
    let day = 24 * 60 * 60;
    for (began, now, expected) in [
        (Some(at(0)), day, None),
        (Some(at(0)), day + 1, Some("the alert began 1d1s ago, and `max_age` is 1d")),
        (Some(at(290)), 0, None),
        (Some(at(301)), 0, Some("the alert begins 5m1s from now")),
        (Some(Timestamp::MIN), 0, Some("the alert began")),
        (Some(Timestamp::MAX), 0, Some("the alert begins")),
        (None, 0, Some("the alert does not say when it began")),
    ] {
        let judged = destructive.clone().judging(began, at(now));
        assert_eq!(judged.doubt.is_some(), expected.is_some(), "{began:?}: {judged:?}");
        let decision = firing(&judged, &Facts::default(), now);
        assert_eq!(decision, Decision::Start { proposed: expected.is_some() });
        if let Some(expected) = expected {
            let why = judged.why(&decision);
            assert!(why.starts_with("proposes a run: ") && why.contains(expected), "{why}");
        }
        assert_eq!(release(&judged, &Facts::default(), at(now)), decision);
        assert_eq!(rule().judging(began, at(now)).doubt, None, "what destroys nothing is not held up");
    }
    let mut patient = destructive;
    patient.policy.max_age = Duration::from_secs(1_000_000);
    assert_eq!(patient.judging(Some(at(0)), at(day + 1)).doubt, None);
}

#[test]
fn repeats_join_and_start_again_only_after_the_cooldown() {
    let open = Open { running: true, ..Open::default() };
    let mut facts = Facts { known_since: Some(at(0)), open: Some(open), ..Facts::default() };
    assert!(matches!(firing(&rule(), &facts, 1000), Decision::Joins { .. }));
    facts.open = Some(Open::default());
    facts.last_run = Some((at(30), true));
    // The other Alertmanager's copy of what has been dealt with in half a minute.
    assert!(matches!(firing(&rule(), &facts, 45), Decision::Joins { .. }));
    let Decision::Holds { held: Held::Cooldown, until, .. } = firing(&rule(), &facts, 400) else { panic!() };
    assert_eq!(until, Some(at(630)));
    assert_eq!(firing(&rule(), &facts, 630), Decision::Start { proposed: false });
    facts.last_run = Some((at(30), false));
    let Decision::Holds { until, .. } = firing(&rule(), &facts, 630) else { panic!() };
    assert_eq!(until, Some(at(3630)));
}

#[test]
fn a_copy_without_a_cooldown_starts_nothing_all_the_same() {
    let mut rule = rule();
    rule.policy.after_success = Duration::ZERO;
    let facts = Facts {
        known_since: Some(at(0)),
        open: Some(Open::default()),
        last_run: Some((at(5), true)),
        ..Facts::default()
    };
    assert!(matches!(firing(&rule, &facts, 15), Decision::Joins { .. }));
    assert_eq!(firing(&rule, &facts, 300), Decision::Start { proposed: false });
}

#[test]
fn a_late_copy_opens_nothing_and_a_new_beginning_does() {
    let facts = Facts { known_since: Some(at(0)), ended: Some(at(100)), ..Facts::default() };
    assert_eq!(firing(&rule(), &facts, 110), Decision::Late);
    // An alert that ended only because nothing was heard of it goes on as if it had never ended.
    assert_eq!(firing(&rule(), &facts, 400), Decision::Start { proposed: false });
}

#[test]
fn what_may_not_start_is_held_with_the_reason() {
    let held = |rule: &Rule, counted: Counted| match firing(rule, &Facts { counted, ..Facts::default() }, 5) {
        Decision::Holds { held, blows, .. } => Some((held, blows)),
        Decision::Start { .. } => None,
        other => panic!("{other:?}"),
    };
    let (plain, mut frozen, mut destructive) = (rule(), rule(), rule());
    (frozen.frozen, destructive.destructive) = (true, true);
    assert_eq!(held(&frozen, Counted::default()), Some((Held::Frozen, false)));
    assert_eq!(held(&plain, Counted { active: 3, ..Counted::default() }), Some((Held::Active, false)));
    assert_eq!(held(&plain, Counted { blown: true, ..Counted::default() }), Some((Held::Fused, false)));
    assert_eq!(held(&plain, Counted { runs: 4, ..Counted::default() }), None);
    assert_eq!(held(&destructive, Counted { runs: 4, ..Counted::default() }), Some((Held::Fused, true)));
    assert_eq!(held(&plain, Counted { failures: 2, ..Counted::default() }), Some((Held::Fused, true)));
    let counted = |tokens| Counted { tokens: Some(tokens), counted_at: Some(at(0)), ..Counted::default() };
    assert_eq!(held(&plain, counted(0)), Some((Held::Rate, false)));
    assert_eq!(held(&plain, counted(500)), None, "half of it came in five of ten seconds");
}

#[test]
fn tokens_come_back_up_to_the_burst() {
    let counted = Counted { tokens: Some(0), counted_at: Some(at(0)), ..Counted::default() };
    for (second, tokens) in [(0, 0), (5, 500), (10, 1000), (1000, 2000), (-50, 0)] {
        assert_eq!(counted.tokens_at(&rule(), at(second)), tokens, "{second}");
    }
}

#[test]
fn a_resolution_closes_cancels_or_is_noted() {
    let open = |running, writing, others_fire| Facts {
        open: Some(Open { running, writing, others_fire, fires_since: Some(Some(at(0))) }),
        ..Facts::default()
    };
    assert_eq!(resolved(&Facts::default(), 50), Resolution::Nothing);
    assert_eq!(resolved(&open(false, false, false), 50), Resolution::Closes);
    assert_eq!(resolved(&open(true, false, false), 50), Resolution::Cancels);
    assert_eq!(resolved(&open(true, true, false), 50), Resolution::WithRun);
    assert_eq!(resolved(&open(true, false, true), 50), Resolution::OthersFire);
    assert_eq!(resolved(&open(true, false, false), -50), Resolution::Outdated);
    let other = Facts { open: Some(Open { others_fire: true, ..Open::default() }), ..Facts::default() };
    assert_eq!(resolved(&other, 50), Resolution::OthersFire);
}

#[test]
fn what_was_held_starts_when_the_reason_is_gone() {
    let mut facts = Facts { open: Some(Open::default()), last_run: Some((at(0), true)), ..Facts::default() };
    assert!(matches!(release(&rule(), &facts, at(10)), Decision::Holds { .. }));
    assert_eq!(release(&rule(), &facts, at(600)), Decision::Start { proposed: false });
    facts.open = Some(Open { running: true, ..Open::default() });
    assert!(matches!(release(&rule(), &facts, at(600)), Decision::Joins { .. }));
}
