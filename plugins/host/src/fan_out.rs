//! One piece of work on many hosts: how many at once, how many may fail, and what came of it.

use std::borrow::Cow;
use std::future::Future;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use farrier_action::ReadCx;
use farrier_action::duration::Length;
use farrier_model::{Failure, FailureKind};
use futures_util::future::join_all;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

/// So many hosts at once unless the step says otherwise.
const AT_ONCE: usize = 32;

/// A number of hosts, or a share of them such as `30%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    Hosts(u32),
    Percent(u32),
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Share, D::Error> {
        struct NumberOrPercent;
        impl serde::de::Visitor<'_> for NumberOrPercent {
            type Value = Share;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of hosts, or a share such as `30%`")
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Share, E> {
                u32::try_from(number).map(Share::Hosts).map_err(E::custom)
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Share, E> {
                u32::try_from(number).map(Share::Hosts).map_err(E::custom)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Share, E> {
                if let Ok(number) = text.parse() {
                    return Ok(Share::Hosts(number));
                }
                let percent = text.strip_suffix('%').and_then(|number| number.trim().parse().ok());
                match percent {
                    Some(percent @ 0..=100) => Ok(Share::Percent(percent)),
                    _ => Err(E::custom(format!("`{text}` is no number of hosts and no share such as `30%`"))),
                }
            }
        }
        deserializer.deserialize_any(NumberOrPercent)
    }
}

impl JsonSchema for Share {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "share".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "integer", "minimum": 0 },
            { "type": "string", "pattern": "^[0-9]+%?$" },
        ] })
    }
}

/// How work is spread over hosts, for a certain number of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    at_once: usize,
    whole_batches: bool,
    pause: Duration,
    may_fail: usize,
}

impl Pace {
    /// For `total` hosts.
    pub(crate) fn new(
        total: usize,
        batch: Option<Share>,
        whole_batches: bool,
        pause: Option<Length>,
        must_succeed: Option<Share>,
    ) -> Result<Pace, Failure> {
        let at_once = match batch {
            None => AT_ONCE,
            Some(Share::Hosts(number)) => number as usize,
            // Rounded as Cumin does, so that `30%` of ten hosts is three.
            Some(Share::Percent(percent)) => (total * percent as usize + 50) / 100,
        };
        if at_once == 0 {
            return Err(Failure::new(FailureKind::Input, "`batch` is less than one host"));
        }
        let must = match must_succeed {
            None => total,
            Some(Share::Hosts(number)) => (number as usize).min(total),
            // In whole numbers: 80 % of ten hosts is eight of them, and of nine hosts eight as well.
            Some(Share::Percent(percent)) => (total * percent as usize).div_ceil(100),
        };
        let pause = pause.map_or(Duration::ZERO, |pause| pause.0);
        Ok(Pace { at_once: at_once.min(total.max(1)), whole_batches, pause, may_fail: total - must })
    }

    pub(crate) fn allows(&self, failed: usize) -> bool {
        failed <= self.may_fail
    }
}

/// Does `work` for every host, in order, and gives what came of it; nothing for hosts that were not begun because too
/// many had failed before. Hosts already at work finish. Dropping the future drops the work. `tell` hears how many are done
/// and how many of these failed, see [`telling`].
pub(crate) async fn fan_out<T, F: Future<Output = T>>(
    hosts: &[String],
    pace: Pace,
    work: impl Fn(usize) -> F,
    has_failed: impl Fn(&T) -> bool,
    tell: impl Fn(usize, usize),
) -> Vec<Option<T>> {
    tell(0, 0);
    let results: Mutex<Vec<Option<T>>> = Mutex::new(hosts.iter().map(|_| None).collect());
    let stopped = AtomicBool::new(false);
    let one = async |at: usize| {
        let outcome = work(at).await;
        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
        results[at] = Some(outcome);
        let failed = results.iter().flatten().filter(|outcome| has_failed(outcome)).count();
        tell(results.iter().flatten().count(), failed);
        if !pace.allows(failed) {
            stopped.store(true, Ordering::Relaxed);
        }
    };
    let next = Mutex::new(0..hosts.len());
    let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
    if pace.whole_batches {
        loop {
            let batch: Vec<usize> = std::iter::from_fn(take).take(pace.at_once).collect();
            let last = batch.last().is_none_or(|at| at + 1 == hosts.len());
            join_all(batch.into_iter().map(one)).await;
            if last || stopped.load(Ordering::Relaxed) {
                break;
            }
            farrier_action::rest::sleep(pace.pause).await;
        }
    } else {
        // Each place takes the next host when its own is done.
        let place = async || {
            while let Some(at) = take() {
                one(at).await;
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let more = !next.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
                if more && !pace.pause.is_zero() {
                    farrier_action::rest::sleep(pace.pause).await;
                }
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
            }
        };
        join_all((0..pace.at_once).map(|_| place())).await;
    }
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Tells whoever watches a step how many of its hosts are done.
pub(crate) fn telling(cx: &ReadCx, total: usize) -> impl Fn(usize, usize) + '_ {
    move |done, failed| {
        if total > 1 {
            cx.progress(done, total, || match failed {
                0 => "hosts".into(),
                failed => format!("hosts, {failed} failed"),
            });
        }
    }
}

/// For a look before the work: nobody counts those.
pub(crate) fn silent(_: usize, _: usize) {}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn hosts(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("h{number}")).collect()
    }

    fn pace(total: usize, batch: Share, whole: bool, pause: u64, must: Share) -> Pace {
        Pace::new(total, Some(batch), whole, Some(Length(Duration::from_secs(pause))), Some(must)).unwrap()
    }

    /// When each host began, in seconds, with work of `seconds`.
    async fn begins(count: usize, pace: Pace, seconds: impl Fn(usize) -> u64) -> Vec<Option<u64>> {
        let begun = Instant::now();
        let work = |at: usize| {
            let seconds = seconds(at);
            async move {
                let at = begun.elapsed().as_secs();
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                at
            }
        };
        fan_out(&hosts(count), pace, work, |_| false, silent).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_finished_host_frees_its_place_after_the_pause() {
        let pace = pace(5, Share::Hosts(2), false, 10, Share::Percent(100));
        let begun = begins(5, pace, |at| if at == 0 { 100 } else { 1 }).await;
        assert_eq!(begun, [0, 0, 11, 22, 33].map(Some));
    }

    #[tokio::test(start_paused = true)]
    async fn whole_batches_wait_for_their_slowest() {
        let pace = pace(5, Share::Hosts(2), true, 10, Share::Percent(100));
        let begun = begins(5, pace, |at| if at == 0 { 100 } else { 1 }).await;
        assert_eq!(begun, [0, 0, 110, 110, 121].map(Some));
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_failures_stop_it_and_hosts_at_work_finish() {
        for (failing, must, expected) in [
            // Ten hosts, 80 %: two may fail, the third stops it.
            (&[0, 1][..], Share::Percent(80), 10),
            (&[0, 1, 2], Share::Percent(80), 3),
            (&[0], Share::Percent(100), 1),
            (&[0, 1, 2], Share::Hosts(7), 10),
            (&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], Share::Hosts(0), 10),
        ] {
            let pace = pace(10, Share::Hosts(1), false, 0, must);
            let results =
                fan_out(&hosts(10), pace, async |at| failing.contains(&at), |failed| *failed, silent).await;
            assert_eq!(results.iter().flatten().count(), expected, "{failing:?} {must:?}");
        }
        let pace = pace(4, Share::Hosts(2), false, 0, Share::Percent(100));
        let told = Mutex::new(Vec::new());
        let work = async |at: usize| {
            tokio::time::sleep(Duration::from_secs(at as u64)).await;
            at == 0
        };
        let tell = |done, failed| told.lock().unwrap().push((done, failed));
        let results = fan_out(&hosts(4), pace, work, |failed| *failed, tell).await;
        assert_eq!(results, [Some(true), Some(false), None, None]);
        assert_eq!(told.into_inner().unwrap(), [(0, 0), (1, 1), (2, 1)]);
    }

    #[test]
    fn shares_are_rounded_as_people_expect() {
        for (total, batch, expected) in [(10, 30, 3), (9, 50, 5), (200, 1, 2), (10, 100, 10)] {
            let pace = Pace::new(total, Some(Share::Percent(batch)), false, None, None).unwrap();
            assert_eq!(pace.at_once, expected, "{batch} % of {total}");
        }
        assert_eq!(Pace::new(3, Some(Share::Hosts(10)), false, None, None).unwrap().at_once, 3);
        for batch in [Share::Hosts(0), Share::Percent(1)] {
            assert_eq!(Pace::new(10, Some(batch), false, None, None).unwrap_err().kind, FailureKind::Input);
        }
        for (total, must, may_fail) in [(10, 80, 2), (9, 80, 1), (1, 80, 0), (3, 0, 3)] {
            let pace = Pace::new(total, None, false, None, Some(Share::Percent(must))).unwrap();
            assert_eq!(pace.may_fail, may_fail, "{must} % of {total}");
        }
    }

    #[test]
    fn shares_are_read() {
        let read = |json: &str| farrier_model::Value::from_json(json).unwrap().read::<Share>();
        assert_eq!(read("3").unwrap(), Share::Hosts(3));
        assert_eq!(read(r#""3""#).unwrap(), Share::Hosts(3));
        assert_eq!(read(r#""30%""#).unwrap(), Share::Percent(30));
        for bad in ["-1", r#""101%""#, r#""many""#, "1.5", r#""""#, r#""%""#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
