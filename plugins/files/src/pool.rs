//! Reading many files with plain threads, of which any may never come back.
//!
//! The kernel can keep a thread waiting for as long as it likes: on a network file system whose server is gone, no
//! call returns and none can be interrupted. So the threads are plain ones, which neither the async runtime nor the
//! end of the process waits for, and a supervisor looks after them:
//!
//! - A thread takes one item after the other and leaves what it has read in its [`Slot`].
//! - The supervisor takes an item away from a thread that is at one file for longer than the timeout, notes it, and
//!   starts another thread in its place. The lost thread ends by itself when its file answers.
//! - When as many threads are lost as may run, the disk does not answer: the step fails, since what it would return is
//!   not "no such file" but "nobody knows".
//!
//! Lost threads are counted for the whole target, so that a periodic task cannot collect them without end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use farrier_model::{Failure, FailureKind};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::path::SafePath;

/// Lost threads of one target beyond which nothing more is tried.
const MAX_HANGING: usize = 64;
/// Reading needs little stack.
const STACK: usize = 256 << 10;

/// What became of one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Text(String),
    Missing,
    /// It is there and cannot be had; why.
    Unreadable(String),
    /// This process ran out of something; the step fails.
    OwnLimit(String),
}

/// Where texts come from.
pub(crate) trait Source: Send + Sync + 'static {
    /// An opened folder.
    type Folder;
    /// Opens an item's folder.
    fn folder(&self, path: &SafePath) -> Result<Self::Folder, Outcome>;
    /// Reads one file in it.
    fn read(&self, folder: &Self::Folder, path: &SafePath) -> Outcome;
}

/// One item: a folder, and for each text the places to look for it.
pub(crate) struct Item {
    pub(crate) folder: SafePath,
    pub(crate) texts: Vec<Arc<[SafePath]>>,
}

/// What became of one item.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    /// Its folder exists.
    pub(crate) folder: bool,
    /// The texts as far as they were read, in order, each with the notes of the places that were passed over.
    pub(crate) texts: Vec<(Option<String>, Vec<String>)>,
}

/// How to go about it.
pub(crate) struct Limits {
    pub(crate) parallel: usize,
    pub(crate) timeout: Duration,
    /// All texts together.
    pub(crate) max_total: u64,
}

/// What one thread is at. Both sides change it under its lock only, so an item ends exactly once.
struct Slot(Mutex<Busy>);

struct Busy {
    item: Option<usize>,
    since: Instant,
    found: Found,
    lost: bool,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Busy> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `change` note progress. False when the supervisor has given this thread up.
    fn progress(&self, change: impl FnOnce(&mut Busy)) -> bool {
        let mut busy = self.lock();
        if !busy.lost {
            change(&mut busy);
            busy.since = Instant::now();
        }
        !busy.lost
    }
}

struct Shared<S> {
    source: S,
    items: Vec<Item>,
    next: AtomicUsize,
    stopped: AtomicBool,
    hanging: Arc<AtomicUsize>,
}

type Report = (usize, Result<Found, String>);

/// The threads at work on one call. They end after the file they are at when it is dropped; until then each counts as
/// hanging, because it may.
struct Crew<S> {
    shared: Arc<Shared<S>>,
    slots: Vec<Arc<Slot>>,
}

impl<S> Drop for Crew<S> {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for slot in &self.slots {
            let mut busy = slot.lock();
            if busy.item.is_some() && !busy.lost {
                busy.lost = true;
                self.shared.hanging.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Reads every item.
///
/// # Errors
/// Nothing answers, the texts are too large together, or this process ran out of something.
pub(crate) async fn read_all<S: Source>(
    source: S,
    items: Vec<Item>,
    limits: &Limits,
    hanging: &Arc<AtomicUsize>,
) -> Result<Vec<Found>, Failure> {
    check_hanging(hanging)?;
    let total = items.len();
    let shared = Arc::new(Shared {
        source,
        items,
        next: AtomicUsize::new(0),
        stopped: AtomicBool::new(false),
        hanging: hanging.clone(),
    });
    let mut crew = Crew { shared: shared.clone(), slots: Vec::new() };
    let (reports, mut inbox) = mpsc::unbounded_channel();
    for _ in 0..limits.parallel.min(total) {
        crew.slots.push(start(&shared, &reports)?);
    }

    let mut found = vec![Found::default(); total];
    let mut open = total;
    let mut bytes = 0;
    let mut lost = 0;
    let look_every = (limits.timeout / 8).clamp(Duration::from_millis(1), Duration::from_secs(1));
    let mut looked = Instant::now();
    let mut batch = Vec::new();
    while open > 0 {
        // Nothing for a while is not an error: then the threads are looked after.
        let _ = tokio::time::timeout(look_every, inbox.recv_many(&mut batch, 256)).await;
        if looked.elapsed() >= look_every {
            looked = Instant::now();
            for slot in &mut crew.slots {
                let Some((index, partial)) = give_up(slot, &shared, limits.timeout) else { continue };
                lost += 1;
                if lost > limits.parallel {
                    return Err(Failure::new(
                        FailureKind::Unreachable,
                        format!(
                            "{lost} files did not answer within {:?}, the last in `{}`",
                            limits.timeout, shared.items[index].folder
                        ),
                    )
                    .help("is the file system's server reachable?"));
                }
                batch.push((index, Ok(partial)));
                *slot = start(&shared, &reports)?;
            }
        }
        for (index, result) in batch.drain(..) {
            found[index] = result.map_err(|error| {
                Failure::new(FailureKind::Limit, format!("cannot go on reading: {error}"))
            })?;
            open -= 1;
            bytes += found[index]
                .texts
                .iter()
                .filter_map(|(text, _)| text.as_ref())
                .map(String::len)
                .sum::<usize>() as u64;
            if bytes > limits.max_total {
                let message = format!("the files are larger than {} bytes together", limits.max_total);
                return Err(
                    Failure::new(FailureKind::Limit, message).help("read fewer, or raise `max_total_bytes`")
                );
            }
        }
    }
    Ok(found)
}

fn start<S: Source>(
    shared: &Arc<Shared<S>>,
    reports: &mpsc::UnboundedSender<Report>,
) -> Result<Arc<Slot>, Failure> {
    let busy = Busy { item: None, since: Instant::now(), found: Found::default(), lost: false };
    let slot = Arc::new(Slot(Mutex::new(busy)));
    let (shared, reports, own_slot) = (shared.clone(), reports.clone(), slot.clone());
    spawn(move || {
        if !work(&shared, &own_slot, &reports) {
            shared.hanging.fetch_sub(1, Ordering::Relaxed);
        }
    })?;
    Ok(slot)
}

/// The life of one thread. False when it was given up.
fn work<S: Source>(shared: &Shared<S>, slot: &Slot, reports: &mpsc::UnboundedSender<Report>) -> bool {
    while !shared.stopped.load(Ordering::Relaxed) {
        let index = shared.next.fetch_add(1, Ordering::Relaxed);
        let Some(item) = shared.items.get(index) else { return true };
        slot.progress(|busy| {
            busy.item = Some(index);
            busy.found = Found::default();
        });
        let result = match read_item(&shared.source, item, slot) {
            Ok(true) => Ok(()),
            Ok(false) => return false,
            Err(own_limit) => Err(own_limit),
        };
        let mut done = Found::default();
        if !slot.progress(|busy| {
            busy.item = None;
            done = std::mem::take(&mut busy.found);
        }) {
            return false;
        }
        // Nobody listens any more when the step was cancelled; then `stopped` is set as well.
        let _ = reports.send((index, result.map(|()| done)));
    }
    true
}

/// Reads one item into the slot. False when the thread was given up meanwhile.
fn read_item<S: Source>(source: &S, item: &Item, slot: &Slot) -> Result<bool, String> {
    let folder = match source.folder(&item.folder) {
        Ok(folder) => folder,
        Err(Outcome::OwnLimit(what)) => return Err(what),
        Err(outcome) => {
            let notes = match outcome {
                Outcome::Unreadable(why) => vec![format!("its folder: {why}")],
                _ => Vec::new(),
            };
            let nothing = vec![(None, notes); item.texts.len()];
            return Ok(slot.progress(|busy| busy.found.texts = nothing));
        }
    };
    if !slot.progress(|busy| busy.found.folder = true) {
        return Ok(false);
    }
    for places in &item.texts {
        let mut notes = Vec::new();
        let mut text = None;
        for place in places.iter() {
            match source.read(&folder, place) {
                Outcome::Text(found) => text = Some(found),
                Outcome::Missing => {}
                Outcome::Unreadable(why) => notes.push(format!("`{place}`: {why}")),
                Outcome::OwnLimit(what) => return Err(what),
            }
            if !slot.progress(|_| {}) {
                return Ok(false);
            }
            if text.is_some() {
                break;
            }
        }
        if !slot.progress(|busy| busy.found.texts.push((text, notes))) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes its item from a thread that is at one file for too long, with what it has read of it.
fn give_up<S>(slot: &Slot, shared: &Shared<S>, timeout: Duration) -> Option<(usize, Found)> {
    let mut busy = slot.lock();
    let index = busy.item.filter(|_| busy.since.elapsed() > timeout)?;
    busy.lost = true;
    shared.hanging.fetch_add(1, Ordering::Relaxed);
    let mut found = std::mem::take(&mut busy.found);
    let mut note = format!("it did not answer within {timeout:?}");
    for _ in found.texts.len()..shared.items[index].texts.len() {
        found.texts.push((None, vec![note]));
        note = "it was not read because the file before it did not answer".into();
    }
    Some((index, found))
}

/// Runs one call of the kernel in a thread of its own; nothing when it does not answer in time.
pub(crate) async fn answer_within<T: Send + 'static>(
    timeout: Duration,
    hanging: &Arc<AtomicUsize>,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>, Failure> {
    check_hanging(hanging)?;
    let (answer, waiting) = oneshot::channel();
    let counted = hanging.clone();
    hanging.fetch_add(1, Ordering::Relaxed);
    let spawned = spawn(move || {
        let result = call();
        counted.fetch_sub(1, Ordering::Relaxed);
        let _ = answer.send(result);
    });
    if spawned.is_err() {
        hanging.fetch_sub(1, Ordering::Relaxed);
    }
    spawned?;
    Ok(tokio::time::timeout(timeout, waiting).await.ok().and_then(Result::ok))
}

fn check_hanging(hanging: &AtomicUsize) -> Result<(), Failure> {
    let count = hanging.load(Ordering::Relaxed);
    if count < MAX_HANGING {
        return Ok(());
    }
    let message = format!("{count} earlier reads still wait for a file that does not answer");
    Err(Failure::new(FailureKind::Unreachable, message).help("is the file system's server reachable?"))
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    std::thread::Builder::new().name("files".into()).stack_size(STACK).spawn(work).map(drop).map_err(
        |error| Failure::new(FailureKind::Limit, format!("cannot start a thread to read files: {error}")),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Condvar;

    use super::*;

    /// Files whose name says how they behave; those that hang do so until the test ends.
    #[derive(Clone, Default)]
    struct Told(Arc<(Mutex<bool>, Condvar)>);

    impl Told {
        fn release(&self) {
            *self.0.0.lock().unwrap() = true;
            self.0.1.notify_all();
        }
        fn hang(&self) {
            let mut released = self.0.0.lock().unwrap();
            while !*released {
                released = self.0.1.wait(released).unwrap();
            }
        }
    }

    impl Source for Told {
        type Folder = String;
        fn folder(&self, path: &SafePath) -> Result<String, Outcome> {
            match path.as_str() {
                "gone" => Err(Outcome::Missing),
                "closed" => Err(Outcome::Unreadable("permission denied".into())),
                "hangs" => {
                    self.hang();
                    Err(Outcome::Missing)
                }
                other => Ok(other.into()),
            }
        }
        fn read(&self, folder: &String, path: &SafePath) -> Outcome {
            match path.as_str() {
                "hangs" => {
                    self.hang();
                    Outcome::Text("too late".into())
                }
                "missing" => Outcome::Missing,
                "bad" => Outcome::Unreadable("it is a pipe".into()),
                "limit" => Outcome::OwnLimit("too many open files".into()),
                name => Outcome::Text(format!("{folder}/{name}")),
            }
        }
    }

    fn item(folder: &str, texts: &[&[&str]]) -> Item {
        let path = |name: &str| SafePath::of([name]).unwrap();
        let texts = texts.iter().map(|places| places.iter().map(|place| path(place)).collect()).collect();
        Item { folder: path(folder), texts }
    }

    /// Long for a thread that only has to be scheduled, and short for a test.
    const TIMEOUT: Duration = Duration::from_millis(500);

    fn limits(parallel: usize) -> Limits {
        Limits { parallel, timeout: TIMEOUT, max_total: 100_000 }
    }

    fn text(text: &str) -> (Option<String>, Vec<String>) {
        (Some(text.into()), Vec::new())
    }

    #[tokio::test]
    async fn places_are_tried_in_order_and_trouble_is_noted() {
        let items = vec![
            item("a", &[&["x"], &["missing", "y"], &["bad", "z"], &["missing"], &["bad", "missing"]]),
            item("gone", &[&["x"], &["y"]]),
            item("closed", &[&["x"]]),
        ];
        let found = read_all(Told::default(), items, &limits(2), &Arc::default()).await.unwrap();
        let pipe = || vec!["`bad`: it is a pipe".to_owned()];
        assert_eq!(
            found[0].texts,
            [text("a/x"), text("a/y"), (Some("a/z".into()), pipe()), (None, vec![]), (None, pipe())]
        );
        assert_eq!(found[1], Found { folder: false, texts: vec![(None, vec![]), (None, vec![])] });
        assert_eq!(found[2].texts, [(None, vec!["its folder: permission denied".into()])]);
    }

    #[tokio::test]
    async fn a_file_that_hangs_costs_itself_only() {
        let source = Told::default();
        let hanging = Arc::new(AtomicUsize::new(0));
        let mut items: Vec<Item> = (0..200).map(|i| item(&format!("i{i}"), &[&["x"]])).collect();
        items[3] = item("three", &[&["x"], &["hangs"], &["y"]]);
        items[100] = item("hangs", &[&["x"]]);
        let found = read_all(source.clone(), items, &limits(2), &hanging).await.unwrap();
        for (i, found) in found.iter().enumerate().filter(|(i, _)| ![3, 100].contains(i)) {
            assert_eq!(found.texts, [text(&format!("i{i}/x"))]);
        }
        assert_eq!(found[3].texts[0], text("three/x"), "what was read before is kept");
        assert_eq!(found[3].texts[1], (None, vec!["it did not answer within 500ms".into()]));
        assert!(found[3].texts[2].1[0].contains("not read"), "{:?}", found[3]);
        assert_eq!(found[100].texts, [(None, vec!["it did not answer within 500ms".into()])]);
        assert_eq!(hanging.load(Ordering::Relaxed), 2);
        source.release();
        while hanging.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_is_an_error_and_not_many_missing_files() {
        let source = Told::default();
        let hanging = Arc::new(AtomicUsize::new(0));
        let items = (0..50).map(|_| item("hangs", &[&["x"]])).collect();
        let failure = read_all(source.clone(), items, &limits(2), &hanging).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unreachable);
        assert!(failure.message.contains("did not answer"), "{failure}");
        assert_eq!(hanging.load(Ordering::Relaxed), 4, "two threads and the two in their place");
        source.release();
        while hanging.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn lost_threads_are_not_collected_without_end() {
        let hanging = Arc::new(AtomicUsize::new(MAX_HANGING));
        let failure =
            read_all(Told::default(), vec![item("a", &[&["x"]])], &limits(2), &hanging).await.unwrap_err();
        assert!(failure.message.contains("64 earlier reads"), "{failure}");
        assert!(answer_within(Duration::from_secs(1), &hanging, || 1).await.is_err());
    }

    #[tokio::test]
    async fn own_limits_fail_the_step() {
        let failure = read_all(Told::default(), vec![item("a", &[&["limit"]])], &limits(1), &Arc::default())
            .await
            .unwrap_err();
        assert_eq!(
            (failure.kind, &*failure.message),
            (FailureKind::Limit, "cannot go on reading: too many open files")
        );
        let items = (0..1000).map(|i| item(&format!("i{i}"), &[&["x"]])).collect();
        let limits = Limits { max_total: 1000, ..limits(4) };
        let failure = read_all(Told::default(), items, &limits, &Arc::default()).await.unwrap_err();
        assert!(failure.message.contains("larger than 1000 bytes together"), "{failure}");
    }

    #[tokio::test]
    async fn one_call_can_be_waited_for() {
        let (source, hanging) = (Told::default(), Arc::new(AtomicUsize::new(0)));
        assert_eq!(answer_within(Duration::from_secs(60), &hanging, || 7).await.unwrap(), Some(7));
        let hangs = source.clone();
        assert_eq!(
            answer_within(Duration::from_millis(20), &hanging, move || hangs.hang()).await.unwrap(),
            None
        );
        assert_eq!(hanging.load(Ordering::Relaxed), 1);
        source.release();
    }

    #[tokio::test]
    async fn nothing_to_read_is_read_at_once() {
        assert_eq!(read_all(Told::default(), Vec::new(), &limits(4), &Arc::default()).await.unwrap(), []);
    }
}
