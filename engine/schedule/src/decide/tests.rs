//! What becomes of due times: catching up, overlap, and clocks that jump.

use proptest::prelude::*;

use super::*;
use crate::spec::{Due, ScheduleId};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn minutely(catch_up: CatchUp) -> Spec {
    Spec { catch_up, ..Spec::new(Due::Every(Duration::from_secs(60))) }
}

fn turn(spec: &Spec, change: impl FnOnce(&mut Pending<'_>)) -> Option<Turn> {
    let calendar = Calendar::new(&ScheduleId::new("e", "r", 1), spec).unwrap();
    let mut pending = Pending {
        spec,
        calendar: &calendar,
        cursor: at("2026-03-01T12:00:00Z"),
        now: at("2026-03-01T12:01:00.010Z"),
        jump: None,
        destructive: false,
        frozen: false,
    };
    change(&mut pending);
    verdicts(&pending)
}

fn counts(turn: &Turn) -> (usize, usize, usize) {
    let count =
        |wanted: fn(&What) -> bool| turn.verdicts.iter().filter(|verdict| wanted(&verdict.what)).count();
    (
        count(|what| matches!(what, What::Start)),
        count(|what| matches!(what, What::Skip(_))),
        count(|what| matches!(what, What::Into(_))),
    )
}

#[test]
fn a_due_time_starts_once_it_has_come_and_not_before() {
    let spec = minutely(CatchUp::None);
    assert_eq!(turn(&spec, |pending| pending.now = at("2026-03-01T12:00:59.999Z")), None);
    let turn = turn(&spec, |_| {}).unwrap();
    assert_eq!(counts(&turn), (1, 0, 0));
    assert_eq!(turn.cursor, at("2026-03-01T12:01:00Z"));
    assert_eq!(turn.next, Some(at("2026-03-01T12:02:00Z")));
}

/// T20b: nobody was there for three due times.
#[test]
fn t20b_what_was_missed_follows_the_policy() {
    let missed = |spec: &Spec| {
        let turn = turn(spec, |pending| pending.now = at("2026-03-01T12:03:59Z")).unwrap();
        assert_eq!(turn.verdicts.len(), 3);
        turn
    };
    let spec = Spec { due: Due::Every(Duration::from_secs(60)), ..minutely(CatchUp::None) };
    // 59 s late is on time; one that began two minutes late is not.
    assert_eq!(counts(&missed(&spec)), (1, 2, 0));
    let sleepy = Spec { due: Due::Every(Duration::from_secs(300)), ..spec };
    let late = turn(&sleepy, |pending| pending.now = at("2026-03-01T12:17:00Z")).unwrap();
    assert_eq!(counts(&late), (0, 3, 0));
    assert!(late.verdicts.iter().all(|verdict| verdict.what == What::Skip(Skip::Missed)));

    let latest = missed(&minutely(CatchUp::Latest));
    assert_eq!(counts(&latest), (1, 0, 2));
    assert_eq!(latest.verdicts[0].what, What::Into(at("2026-03-01T12:03:00Z")));
    assert_eq!(latest.verdicts[2].what, What::Start);

    let two = missed(&Spec { at_most: 2, ..minutely(CatchUp::All) });
    assert_eq!(counts(&two), (2, 1, 0));
    assert_eq!(two.verdicts[0].what, What::Skip(Skip::TooMany));
    assert_eq!(counts(&missed(&minutely(CatchUp::All))), (3, 0, 0));
}

#[test]
fn a_long_absence_takes_several_turns_and_one_record_for_what_is_old() {
    let secondly = Spec::new(Due::Every(Duration::from_secs(1)));
    let calendar = Calendar::new(&ScheduleId::new("e", "r", 1), &secondly).unwrap();
    let (mut cursor, now) = (at("2026-03-01T00:00:00Z"), at("2026-03-31T00:00:00Z"));
    let (mut turns, mut records, mut starts) = (0, 0, 0);
    let mut covered = cursor;
    while let Some(turn) = verdicts(&Pending {
        spec: &secondly,
        calendar: &calendar,
        cursor,
        now,
        jump: None,
        destructive: false,
        frozen: false,
    }) {
        assert!(turn.verdicts.len() <= TURN + 1);
        for verdict in &turn.verdicts {
            let first = verdict.since.unwrap_or(verdict.nominal);
            assert_eq!(calendar.next(covered), Some(first), "a gap");
            covered = verdict.nominal;
            starts += usize::from(verdict.what == What::Start);
        }
        records += turn.verdicts.len();
        turns += 1;
        cursor = turn.cursor;
    }
    // A day of seconds one by one, and one record for the month before it.
    assert_eq!((covered, starts, records, turns), (now, 1, 86_401, 87));
}

#[test]
fn the_latest_due_time_is_caught_up_however_old_it_is() {
    let weekly = Spec::new(Due::Every(Duration::from_secs(7 * 86_400)));
    let turn = turn(&weekly, |pending| pending.now = at("2026-03-07T12:00:00Z")).unwrap();
    assert_eq!(counts(&turn), (1, 0, 0));
}

#[test]
fn a_clock_that_jumps_ahead_starts_one_run_and_nothing_that_destroys() {
    assert!(!is_jump(at("2026-03-01T12:00:00Z"), at("2026-03-02T12:00:00Z")));
    let jump = Jump { from: at("2026-03-01T12:00:30Z"), to: at("2026-03-03T12:00:30Z") };
    assert!(is_jump(jump.from, jump.to));
    let spec = minutely(CatchUp::All);
    let jumped = |destructive: bool| {
        let mut starts = 0;
        let mut cursor = at("2026-03-01T12:00:00Z");
        let mut hold = None;
        while let Some(turn) = turn(&spec, |pending| {
            (pending.cursor, pending.now, pending.jump) = (cursor, jump.to, Some(jump));
            pending.destructive = destructive;
        }) {
            cursor = turn.cursor;
            starts += counts(&turn).0;
            hold = turn.hold.or(hold);
        }
        assert_eq!(cursor, at("2026-03-03T12:00:00Z"));
        (starts, hold)
    };
    assert_eq!(jumped(false), (1, None));
    let (starts, hold) = jumped(true);
    assert_eq!(starts, 0);
    assert!(hold.unwrap().starts_with("the clock went from 2026-03-01T12:00:30Z to 2026-03-03T12:00:30Z"));
}

#[test]
fn a_clock_that_goes_back_waits_until_it_has_passed_the_cursor_again() {
    let spec = minutely(CatchUp::Latest);
    for now in ["2026-03-01T11:00:00Z", "2026-03-01T12:00:00Z", "1970-01-01T00:00:00Z"] {
        assert_eq!(turn(&spec, |pending| pending.now = at(now)), None);
    }
}

#[test]
fn a_frozen_environment_starts_nothing_and_records_it() {
    let turn = turn(&minutely(CatchUp::Latest), |pending| pending.frozen = true).unwrap();
    assert_eq!(turn.verdicts[0].what, What::Skip(Skip::Frozen));
}

fn run(number: u128) -> RunId {
    RunId(format!("00000000-0000-0000-0000-{number:012}").parse().unwrap())
}

#[test]
fn a_run_that_is_still_going_follows_the_policy() {
    let spec = |overlap, catch_up| Spec { overlap, ..minutely(catch_up) };
    let none = Live::default();
    let going = Live { going: vec![run(1)], held: Vec::new() };
    let nominal = at("2026-03-01T12:00:00Z");
    let waiting = Live { going: vec![run(1)], held: vec![(nominal, run(2))] };
    let begun = Decision::Run { held: false, cancel: Vec::new() };
    let held = Decision::Run { held: true, cancel: Vec::new() };
    let all = [Overlap::Skip, Overlap::Queue, Overlap::CancelRunning, Overlap::Allow];
    for overlap in all {
        assert_eq!(settle(&spec(overlap, CatchUp::Latest), What::Start, &none), begun);
    }
    let start = |overlap, live: &Live| settle(&spec(overlap, CatchUp::Latest), What::Start, live);
    assert_eq!(start(Overlap::Skip, &going), Decision::Skipped(Skip::Overlap(run(1))));
    assert_eq!(start(Overlap::Queue, &going), held);
    assert_eq!(start(Overlap::Queue, &waiting), Decision::Coalesced(nominal));
    assert_eq!(settle(&spec(Overlap::Queue, CatchUp::All), What::Start, &waiting), held);
    assert_eq!(start(Overlap::CancelRunning, &going), Decision::Run { held: true, cancel: vec![run(1)] });
    assert_eq!(start(Overlap::CancelRunning, &waiting), Decision::Coalesced(nominal));
    assert_eq!(start(Overlap::Allow, &waiting), begun);
}

proptest! {
    /// Whatever the policy and however long nobody looked: each due time gets one decision, in order, and the cursor is the
    /// last of them.
    #[test]
    fn every_due_time_gets_one_decision(
        seconds in 1..5_000_u64, away in 0..300_000_u64, jitter in 0..4_000_u64, at_most in 1..5_usize,
        catch_up in prop_oneof![Just(CatchUp::None), Just(CatchUp::Latest), Just(CatchUp::All)],
        destructive: bool, frozen: bool, jumped: bool,
    ) {
        let spec = Spec {
            due: Due::Every(Duration::from_secs(seconds)),
            jitter: Duration::from_secs(jitter),
            at_most,
            ..minutely(catch_up)
        };
        let id = ScheduleId::new("e", "r", 1);
        let calendar = Calendar::new(&id, &spec).unwrap();
        let began = at("2026-03-01T12:00:00Z");
        let now = began.checked_add(Duration::from_secs(away)).unwrap();
        let jump = jumped.then_some(Jump { from: began, to: now });
        let (mut cursor, mut starts) = (began, 0);
        while let Some(turn) =
            verdicts(&Pending { spec: &spec, calendar: &calendar, cursor, now, jump, destructive, frozen })
        {
            for verdict in &turn.verdicts {
                prop_assert_eq!(calendar.next(cursor), Some(verdict.since.unwrap_or(verdict.nominal)));
                cursor = verdict.nominal;
                starts += usize::from(verdict.what == What::Start);
                if let What::Into(later) = verdict.what {
                    prop_assert!(later > verdict.nominal);
                }
            }
            prop_assert_eq!(turn.cursor, cursor);
        }
        let next = calendar.next_start(cursor).unwrap();
        prop_assert!(next > now);
        let allowed = if catch_up == CatchUp::All && !jumped { at_most } else { 1 };
        prop_assert!(starts <= allowed);
        if frozen || (jumped && destructive) {
            prop_assert_eq!(starts, 0);
        }
    }
}
