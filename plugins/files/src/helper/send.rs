//! Farrier's side of what is more than one question and one answer.

use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
use std::sync::Arc;

use farrier_model::{Failure, FailureKind, Value};
use sha2::{Digest as _, Sha256};

use super::listen::head;
use super::talk::{Talk, odd};
use super::via::{Via, unanswered};
use super::wire::{Answer, Closing, Job, LONGEST_FRAME, LONGEST_ITEMS, ReadMany, Wanted};
use crate::deposit::{Making, Receipt, agree};
use crate::path::SafePath;
use crate::pool::{Found, Item};
use crate::reading::Reading;
use crate::work::{Work, do_blocking};

/// So much goes into one frame, and for items then the rest of the item.
const FRAME: usize = 128 << 10;

impl Via {
    /// Reads items, whose texts have the places of `shared` where that has some.
    pub(crate) async fn read_many(
        &self,
        reading: Reading,
        shared: &[Option<Arc<[SafePath]>>],
        items: Vec<Item>,
    ) -> Result<Vec<Found>, Failure> {
        let limit = |message: String| Failure::new(FailureKind::Limit, message).help("read fewer at a time");
        let (count, max_total) = (items.len(), reading.max_total_bytes);
        let mut frames = Vec::new();
        let (mut frame, mut bytes) = (String::new(), 0);
        for Item { folder, texts } in items {
            let own = texts.iter().zip(shared).filter(|(_, shared)| shared.is_none());
            let own = own.map(|(places, _)| places.to_vec()).collect();
            let item = serde_json::to_string(&Wanted(folder, own))
                .map_err(|error| Failure::new(FailureKind::Internal, format!("no request: {error}")))?;
            bytes += item.len() + 1;
            // A frame has a beginning, and an end.
            if item.len() + 2 + FRAME > LONGEST_FRAME || bytes > LONGEST_ITEMS {
                return Err(limit(format!("the paths of {count} items are too long for the files helper")));
            }
            frame.push(if frame.is_empty() { '[' } else { ',' });
            frame.push_str(&item);
            if frame.len() >= FRAME {
                frame.push(']');
                frames.push(std::mem::take(&mut frame));
            }
        }
        if !frame.is_empty() {
            frame.push(']');
            frames.push(frame);
        }
        let shared = shared.iter().map(|places| places.as_ref().map(|places| places.to_vec())).collect();
        let mut talk = self.begin(Job::ReadMany(ReadMany { reading, shared })).await?;
        for frame in frames {
            talk.say_frame(frame.as_bytes()).await?;
        }
        talk.say_frame(b"").await?;
        let (mut found, mut read): (Vec<Found>, u64) = (Vec::with_capacity(count), 0);
        loop {
            let (part, is_last) = match talk.hear::<Vec<Found>>().await? {
                Answer::Part(part) => (part, false),
                Answer::Done(part) => (part, true),
                Answer::Failed(failure) => return Err(failure),
                Answer::Ready {} | Answer::Progress(_) => return Err(odd()),
            };
            let texts = part.iter().flat_map(|found| &found.texts);
            read += texts.filter_map(|(text, _)| text.as_ref()).map(|text| text.len() as u64).sum::<u64>();
            found.extend(part);
            if found.len() > count || read > max_total || (is_last && found.len() < count) {
                return Err(odd());
            }
            if is_last {
                return Ok(found);
            }
        }
    }

    /// Has the helper make a file of what `write` writes. `check` reads all of it on its way.
    pub(crate) async fn deposit(
        &self,
        making: Making,
        write: impl FnOnce(&mut (dyn Write + Send)) -> Result<Value, Failure> + Send + 'static,
        check: impl FnOnce(&mut dyn Read) -> Result<Value, Failure> + Send + 'static,
    ) -> Result<Receipt, Failure> {
        let mut talk = self.begin(Job::Deposit(making)).await?;
        match talk.hear::<Receipt>().await.map_err(unanswered)? {
            // Of an earlier attempt.
            Answer::Done(receipt) => return Ok(receipt),
            Answer::Failed(failure) => return Err(unanswered(failure)),
            Answer::Part(_) | Answer::Progress(_) => return Err(odd()),
            Answer::Ready {} => {}
        }
        let to = talk.lend()?;
        match do_blocking(move |work| Ok(send(work, to, write, check))).await? {
            Ok(()) => talk.done().await.map_err(unanswered),
            Err(Unsent::Here(failure)) => Err(failure),
            // It knows why.
            Err(Unsent::There) => Err(unanswered(no_end(&mut talk).await)),
        }
    }
}

/// Why a helper did not take all of a file.
async fn no_end(talk: &mut Talk) -> Failure {
    match talk.done::<Receipt>().await {
        Ok(_) => odd(),
        Err(failure) => failure,
    }
}

/// Why a file was not sent.
enum Unsent {
    /// Writing or checking it failed.
    Here(Failure),
    /// The helper did not take it.
    There,
}

impl From<Failure> for Unsent {
    fn from(failure: Failure) -> Unsent {
        Unsent::Here(failure)
    }
}

/// Sends what `write` writes, and its closing when `check` has found the same in it.
fn send(
    work: &Work,
    to: File,
    write: impl FnOnce(&mut (dyn Write + Send)) -> Result<Value, Failure>,
    check: impl FnOnce(&mut dyn Read) -> Result<Value, Failure> + Send + 'static,
) -> Result<(), Unsent> {
    let internal = |error: &dyn std::fmt::Display| {
        Failure::new(FailureKind::Internal, format!("cannot read a file while it is sent: {error}"))
    };
    let (mut reader, checked) = io::pipe().map_err(|error| internal(&error))?;
    let checking = std::thread::Builder::new()
        .name("files".into())
        .spawn(move || {
            let found = check(&mut reader)?;
            // What it had no need to look at is sent all the same.
            io::copy(&mut reader, &mut io::sink()).map(|_| found).map_err(|error| internal(&error))
        })
        .map_err(|error| internal(&error))?;
    let frame = Vec::with_capacity(FRAME);
    let mut sending =
        Sending { work, to, frame, checked, sha256: Sha256::new(), unsent: false, unread: false };
    let about = write(&mut sending).and_then(|about| match sending.send() {
        Ok(()) => Ok(about),
        Err(error) => Err(internal(&error)),
    });
    let Sending { mut to, checked, sha256, unsent, unread, .. } = sending;
    drop(checked);
    let found = checking.join().unwrap_or_else(|_| Err(internal(&"its thread ended early")));
    if unsent {
        return Err(Unsent::There);
    }
    let about = match about {
        Err(failure) if !unread => return Err(failure.into()),
        about => {
            let found = found?;
            let about = about?;
            agree(&found, &about)?;
            about
        }
    };
    let closing = Closing { sha256: hex::encode(sha256.finalize()), about };
    let closing = serde_json::to_vec(&closing).map_err(|error| internal(&error))?;
    let end = [&head(0), &head(closing.len()), &*closing].concat();
    to.write_all(&end).map_err(|_| Unsent::There)
}

/// Sends what goes by, in frames, and has it read.
struct Sending<'w> {
    work: &'w Work,
    to: File,
    frame: Vec<u8>,
    checked: PipeWriter,
    sha256: Sha256,
    /// The helper took no more.
    unsent: bool,
    /// Whoever reads it took no more.
    unread: bool,
}

impl Sending<'_> {
    fn send(&mut self) -> io::Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        self.work.check().map_err(|failure| io::Error::other(failure.message))?;
        self.sha256.update(&self.frame);
        if let Err(error) = self.checked.write_all(&self.frame) {
            self.unread = true;
            return Err(error);
        }
        let head = head(self.frame.len());
        if let Err(error) = self.to.write_all(&head).and_then(|()| self.to.write_all(&self.frame)) {
            self.unsent = true;
            return Err(error);
        }
        self.frame.clear();
        Ok(())
    }
}

impl Write for Sending<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.frame.len() >= FRAME {
            self.send()?;
        }
        let taken = buffer.len().min(FRAME - self.frame.len());
        self.frame.extend_from_slice(&buffer[..taken]);
        Ok(taken)
    }
    /// What is written is whole only at its end, so that frames need not be.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
