//! The helper's side of what is more than one question and one answer.

use std::io::Write as _;
use std::sync::Arc;

use farrier_model::{Failure, FailureKind};
use sha2::{Digest as _, Sha256};

use super::listen::Body;
use super::serve::Out;
use super::wire::{Answer, Closing, LONGEST_ITEMS, Looked, Plain, ReadMany, RemoveSecret, Wanted};
use crate::deposit::{Found, Making, SecretPlace};
use crate::pool::{self, Item};
use crate::private::PRIVATE;
use crate::target::Files;
use crate::work::do_blocking;

/// So much text goes into one line of an answer, and then the rest of the item that it belongs to.
const PART: usize = 1 << 20;

/// Reads the items of the body.
pub(super) async fn read_many(
    files: &Files,
    wanted: ReadMany,
    mut body: Body,
    out: &Out,
) -> Result<(), Failure> {
    let input = |message: String| Failure::new(FailureKind::Input, message);
    let shared: Vec<Option<Arc<[_]>>> =
        wanted.shared.into_iter().map(|places| places.map(Arc::from)).collect();
    let (mut items, mut bytes) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await? {
        bytes += frame.len();
        if bytes > LONGEST_ITEMS {
            return Err(input(format!("the items take more than {LONGEST_ITEMS} bytes")));
        }
        let some: Vec<Wanted> = serde_json::from_slice(&frame)
            .map_err(|error| input(format!("these are no items to read: {error}")))?;
        for Wanted(folder, own) in some {
            if folder.segments().next() == Some(PRIVATE) {
                return Err(input(format!("`{PRIVATE}` is Farrier's own, and no path leads there")));
            }
            let mut own = own.into_iter().map(Arc::from);
            let texts: Vec<Arc<[_]>> =
                shared.iter().filter_map(|shared| shared.clone().or_else(|| own.next())).collect();
            if texts.len() != shared.len() || own.next().is_some() {
                return Err(input("an item has too few or too many places".into()));
            }
            items.push(Item { folder, texts });
        }
    }
    let mut found = wanted.reading.here(files, items).await?.into_iter();
    loop {
        let (mut part, mut bytes) = (Vec::new(), 0);
        for one in found.by_ref() {
            bytes += size(&one);
            part.push(one);
            if bytes >= PART {
                break;
            }
        }
        if found.len() == 0 {
            return out.done(part);
        }
        out.say(&Answer::Part(part))?;
    }
}

fn size(found: &pool::Found) -> usize {
    let texts = found.texts.iter();
    // More than the brackets and marks that come with each.
    texts.map(|(text, notes)| 32 + text.as_ref().map_or(0, String::len) + 256 * notes.len()).sum()
}

/// Makes the file of the body, unless it is there by now.
pub(super) async fn deposit(
    files: Arc<Files>,
    making: Making,
    mut body: Body,
    out: &Out,
) -> Result<(), Failure> {
    let ready = out.clone();
    let receipt = do_blocking(move |work| {
        let receive = |file: &mut crate::deposit::Writing<'_>| {
            ready.say::<()>(&Answer::Ready {})?;
            while let Some(frame) = body.next_frame()? {
                file.write_all(&frame).map_err(|error| making.unwritten(&error))?;
            }
            let closing: Closing = body.closing()?;
            if closing.sha256 != file.digest() {
                let message = "what arrived is not what was sent: its digest is another one";
                return Err(Failure::new(FailureKind::Drift, message));
            }
            Ok(closing.about)
        };
        // Whoever sends it has read it while it was sent; here it is compared with that, as it lies on the disk.
        crate::deposit::make(work, &files, &making, receive, |_, _| Ok(()))
    });
    out.done(receipt.await?)
}

pub(super) async fn look_at_secrets(
    files: Arc<Files>,
    places: Vec<SecretPlace>,
) -> Result<Vec<Result<Looked, Failure>>, Failure> {
    let looked = |found| match found {
        Found::NoFolder => Looked::NoFolder,
        Found::Nothing => Looked::Nothing,
        Found::Text(text) => Looked::Text(Plain(text)),
    };
    let found = SecretPlace::look_at_all(files, places).await?;
    Ok(found.into_iter().map(|found| found.map(looked)).collect())
}

pub(super) async fn remove_secret(files: Arc<Files>, wanted: RemoveSecret) -> Result<(), Failure> {
    let RemoveSecret { place, sha256 } = wanted;
    place.remove(files, move |text| hex::encode(Sha256::digest(text.reveal())) == sha256).await
}
