//! How the progress of one attempt reaches the [`Observer`](crate::Observer).
//!
//! What a step says goes into a place for the latest word only. It is taken out every so often, beside the step and within its
//! task, so it comes to an end with the step; the observer must return at once.

use std::future::Future;
use std::time::Duration;

use farrier_action::Progress;
use tokio::sync::watch;

/// How long the next word waits after one was passed on.
const PAUSE: Duration = Duration::from_millis(250);

/// Awaits `attempt`, which may tell how far it has come, and passes that on to `hear`: the latest word, and nothing at the end when
/// there was one.
pub(crate) async fn telling<T, F: Future<Output = T>>(
    attempt: impl FnOnce(watch::Sender<Option<Progress>>) -> F,
    hear: impl Fn(Option<&Progress>),
) -> T {
    let (told, mut latest) = watch::channel(None);
    let mut has_told = false;
    let attempt = attempt(told);
    let pass_on = async {
        while latest.changed().await.is_ok() {
            let progress = latest.borrow_and_update().clone();
            has_told = true;
            hear(progress.as_ref());
            tokio::time::sleep(PAUSE).await;
        }
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        biased;
        ended = attempt => ended,
        () = pass_on => unreachable!("it waits for ever when nobody tells any more"),
    };
    if has_told {
        hear(None);
    }
    ended
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_latest_word_is_heard_and_a_flood_is_not() {
        let heard = RefCell::new(Vec::new());
        let attempt = |told: watch::Sender<Option<Progress>>| async move {
            for done in 0..=10_000 {
                told.send_replace(Some(Progress::new(done, 10_000, "hosts")));
                if done % 1000 == 0 {
                    sleep(Duration::from_millis(100)).await;
                }
            }
            sleep(Duration::from_secs(60)).await;
            "done"
        };
        let hear = |told: Option<&Progress>| heard.borrow_mut().push(told.map(|told| told.done));
        assert_eq!(telling(attempt, hear).await, "done");
        let heard = heard.into_inner();
        assert_eq!(heard.first(), Some(&Some(0)));
        assert_eq!(heard[heard.len() - 2..], [Some(10_000), None], "the last word, and the end");
        assert!(heard.len() <= 7, "{heard:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_says_nothing_is_not_heard_of() {
        let heard = RefCell::new(0);
        let attempt = |_| async { sleep(Duration::from_secs(5)).await };
        telling(attempt, |_| *heard.borrow_mut() += 1).await;
        assert_eq!(heard.into_inner(), 0);
    }
}
