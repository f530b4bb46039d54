//! How an event becomes a journal row, and back.
//!
//! The body of a node's event is the JSON of its [`NodeEvent`], of any other the JSON of the [`Event`]. A body above
//! [`INLINE_MAX`] goes to a blob: compressed while it is written, addressed by the SHA-256 of its JSON, so that equal
//! outputs of periodic runs are stored once. An intent's effect id differs in every run; a large intent keeps it out of
//! the blob, in the row's body.

use std::io::{self, Read, Write};
use std::sync::Arc;

use farrier_model::{Event, NodeEvent, NodeName, Value};
use serde_json::to_writer;
use sha2::{Digest as _, Sha256};

/// Bodies up to this size are stored in their row.
pub(crate) const INLINE_MAX: usize = 16 * 1024;

/// The chain's start: what the first entry of a run is linked to.
pub(crate) const NO_LINK: [u8; 32] = [0; 32];

/// What a journal row says, apart from its place in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) node: Option<Arc<str>>,
    pub(crate) attempt: Option<i64>,
    pub(crate) kind: &'static str,
    pub(crate) body: Option<Arc<str>>,
    pub(crate) blob: Option<Blob>,
}

/// A body that is stored by its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    /// SHA-256 of the JSON, hexadecimal.
    pub(crate) digest: Arc<str>,
    pub(crate) zstd: Arc<[u8]>,
    pub(crate) raw_len: i64,
}

impl Row {
    /// The row of `event`.
    pub(crate) fn of(event: &Event) -> Result<Row, serde_json::Error> {
        let mut writer = BodyWriter::default();
        let (node, attempt, effect_id) = match event {
            Event::Node { node, attempt, event } => {
                let mut effect_id = None;
                to_writer(&mut writer, event)?;
                if let (NodeEvent::Intent { effect_id: id, inputs, changes, effect }, true) =
                    (event, writer.is_large())
                {
                    effect_id = Some(Arc::from(id.as_str()));
                    let shared = NodeEvent::Intent {
                        inputs: inputs.clone(),
                        changes: changes.clone(),
                        effect: *effect,
                        effect_id: String::new(),
                    };
                    writer = BodyWriter::default();
                    to_writer(&mut writer, &shared)?;
                }
                (Some(Arc::from(node.to_string())), Some(i64::from(*attempt)), effect_id)
            }
            other => {
                to_writer(&mut writer, other)?;
                (None, None, None)
            }
        };
        let (inline, blob) = writer.finish().map_err(serde_json::Error::io)?;
        Ok(Row { node, attempt, kind: event.name(), body: inline.or(effect_id), blob })
    }
}

/// The event of a stored row. `blob` is the compressed blob, where the row has one.
pub(crate) fn read_event(
    node: Option<&str>,
    attempt: Option<i64>,
    kind: &str,
    body: Option<&str>,
    blob: Option<&[u8]>,
) -> Result<Event, String> {
    let raw;
    let json = match blob {
        Some(blob) => {
            raw = unpack(blob).map_err(|error| format!("the body cannot be decompressed: {error}"))?;
            raw.as_slice()
        }
        None => body.ok_or("the body is missing")?.as_bytes(),
    };
    let unreadable = |error: serde_json::Error| format!("the body cannot be read: {error}");
    let event = match (node, attempt) {
        (Some(node), Some(attempt)) => {
            let node: NodeName = node.parse()?;
            let attempt = u32::try_from(attempt).map_err(|_| format!("`{attempt}` is not an attempt"))?;
            let mut event: NodeEvent = serde_json::from_slice(json).map_err(unreadable)?;
            if let (NodeEvent::Intent { effect_id, .. }, Some(_), Some(stored)) = (&mut event, blob, body) {
                *effect_id = stored.to_string();
            }
            Event::Node { node, attempt, event }
        }
        (None, None) => serde_json::from_slice(json).map_err(unreadable)?,
        _ => return Err("a node without an attempt, or the reverse".into()),
    };
    if event.name() == kind {
        Ok(event)
    } else {
        Err(format!("the row says `{kind}`, its body `{}`", event.name()))
    }
}

/// Decompresses a blob.
pub(crate) fn unpack(zstd: &[u8]) -> io::Result<Vec<u8>> {
    let mut raw = Vec::with_capacity(zstd.len() * 4);
    zstd::stream::read::Decoder::new(zstd)?.read_to_end(&mut raw)?;
    Ok(raw)
}

/// Compresses texts that are stored whole.
pub(crate) fn pack(raw: &[u8]) -> io::Result<Vec<u8>> {
    zstd::stream::encode_all(raw, zstd::DEFAULT_COMPRESSION_LEVEL)
}

/// The hexadecimal digest by which a blob is addressed.
pub(crate) fn blob_digest(raw: &[u8]) -> String {
    hex::encode(Sha256::digest(raw))
}

/// Where and when a row stands in its journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) run: &'a str,
    pub(crate) seq: i64,
    pub(crate) epoch: i64,
    pub(crate) at: i64,
    pub(crate) entry_id: &'a [u8],
    pub(crate) part: i64,
}

/// What a row says, as stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said<'a> {
    pub(crate) node: Option<&'a str>,
    pub(crate) attempt: Option<i64>,
    pub(crate) kind: &'a str,
    pub(crate) body: Option<&'a str>,
    pub(crate) blob: Option<&'a str>,
}

impl Row {
    /// The stored columns.
    pub(crate) fn said(&self) -> Said<'_> {
        Said {
            node: self.node.as_deref(),
            attempt: self.attempt,
            kind: self.kind,
            body: self.body.as_deref(),
            blob: self.blob.as_ref().map(|blob| &*blob.digest),
        }
    }
}

/// The link of a row in its run's hash chain: over the link before it and every column, so that no row can be changed,
/// dropped, added or moved without breaking all links after it.
pub(crate) fn link(before: &[u8], place: Place<'_>, said: Said<'_>) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(before);
    for number in [place.seq, place.epoch, place.at, place.part, said.attempt.unwrap_or(-1)] {
        hasher.update(number.to_be_bytes());
    }
    let texts = [Some(place.run), said.node, Some(said.kind), said.body, said.blob];
    for text in texts.map(|text| text.map(str::as_bytes)).into_iter().chain([Some(place.entry_id)]) {
        // An absent text differs from an empty one.
        hasher.update(text.map_or(u64::MAX, |text| text.len() as u64).to_be_bytes());
        hasher.update(text.unwrap_or_default());
    }
    hasher.finalize().into()
}

/// Whether writing the body takes long enough to keep it off the async threads. A guess that stops early.
pub(crate) fn looks_large(events: &[Event]) -> bool {
    let mut budget = 64 * 1024;
    events.iter().any(|event| {
        let mut values: Vec<&Value> = Vec::new();
        match event {
            Event::Created { inputs, .. } => values.push(inputs),
            Event::Finished { outputs, .. } => values.push(outputs),
            Event::Node { event, .. } => match event {
                NodeEvent::Intent { inputs, changes, .. } => {
                    values.push(inputs);
                    values.extend(changes.iter().flat_map(|change| [&change.before, &change.after]));
                }
                NodeEvent::Applied { output } | NodeEvent::Succeeded { output, .. } => values.push(output),
                _ => {}
            },
            _ => {}
        }
        values.into_iter().any(|value| exhausts(value, &mut budget))
    })
}

fn exhausts(value: &Value, budget: &mut usize) -> bool {
    let size = value.as_str().map_or(8, str::len);
    let Some(rest) = budget.checked_sub(size) else { return true };
    *budget = rest;
    match (value.as_list(), value.as_map()) {
        (Some(items), _) => items.iter().any(|item| exhausts(item, budget)),
        (_, Some(map)) => map.iter().any(|(_, item)| exhausts(item, budget)),
        _ => false,
    }
}

/// Takes JSON as it is written: keeps it while it is small, hashes and compresses it once it is not.
#[derive(Default)]
struct BodyWriter {
    /// The whole body while it is small; then what the encoder has not seen yet.
    pending: Vec<u8>,
    large: Option<Large>,
}

struct Large {
    encoder: zstd::stream::write::Encoder<'static, Vec<u8>>,
    hasher: Sha256,
    raw_len: i64,
}

impl BodyWriter {
    fn is_large(&self) -> bool {
        self.large.is_some()
    }

    fn spill(&mut self) -> io::Result<()> {
        let large = match &mut self.large {
            Some(large) => large,
            None => self.large.insert(Large {
                encoder: zstd::stream::write::Encoder::new(Vec::new(), zstd::DEFAULT_COMPRESSION_LEVEL)?,
                hasher: Sha256::new(),
                raw_len: 0,
            }),
        };
        large.hasher.update(&self.pending);
        large.encoder.write_all(&self.pending)?;
        large.raw_len += self.pending.len() as i64;
        self.pending.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<(Option<Arc<str>>, Option<Blob>)> {
        if self.large.is_some() {
            self.spill()?;
        }
        match self.large {
            Some(large) => {
                let blob = Blob {
                    digest: Arc::from(hex::encode(large.hasher.finalize())),
                    zstd: Arc::from(large.encoder.finish()?),
                    raw_len: large.raw_len,
                };
                Ok((None, Some(blob)))
            }
            None => {
                let text = String::from_utf8(self.pending).map_err(io::Error::other)?;
                Ok((Some(Arc::from(text)), None))
            }
        }
    }
}

impl Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() > INLINE_MAX {
            self.spill()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farrier_model::Effect;

    fn intent(effect_id: &str, size: usize) -> Event {
        Event::Node {
            node: NodeName::item("copy", "a b]"),
            attempt: 2,
            event: NodeEvent::Intent {
                inputs: Value::text("x".repeat(size)),
                changes: Vec::new(),
                effect: Effect::Keyed,
                effect_id: effect_id.into(),
            },
        }
    }

    fn read_back(row: &Row) -> Event {
        let said = row.said();
        let blob = row.blob.as_ref().map(|blob| &*blob.zstd);
        read_event(said.node, said.attempt, said.kind, said.body, blob).unwrap()
    }

    #[test]
    fn every_size_reads_back() {
        let events = [
            Event::Claimed { owner: "host:1".into() },
            Event::CancelRequested { by: "ünï\u{0}".into(), undo: false, reason: None },
            Event::Node { node: NodeName::step("a"), attempt: 1, event: NodeEvent::UndoDone },
            intent("small", 10),
            intent("edge", INLINE_MAX),
            intent("large", 1_000_000),
        ];
        for event in events {
            let row = Row::of(&event).unwrap();
            assert_eq!(read_back(&row), event, "{}", event.name());
            if let Some(blob) = &row.blob {
                let raw = unpack(&blob.zstd).unwrap();
                assert_eq!(blob_digest(&raw), *blob.digest);
                assert_eq!(raw.len() as i64, blob.raw_len);
            }
        }
    }

    /// The same large inputs in two runs are one blob, although the effect ids differ.
    #[test]
    fn large_intents_of_two_runs_share_a_blob() {
        let (one, two) =
            (Row::of(&intent("run1", 100_000)).unwrap(), Row::of(&intent("run2", 100_000)).unwrap());
        assert_eq!(one.blob, two.blob);
        assert_ne!(one.body, two.body);
        assert_eq!(read_back(&two), intent("run2", 100_000));
    }

    #[test]
    fn rows_that_contradict_themselves_are_refused() {
        let row = Row::of(&intent("e", 1)).unwrap();
        let said = row.said();
        let cases = [
            (read_event(said.node, said.attempt, "failed", said.body, None), "the row says `failed`"),
            (read_event(said.node, None, said.kind, said.body, None), "a node without an attempt"),
            (read_event(said.node, said.attempt, said.kind, None, None), "the body is missing"),
            (read_event(said.node, said.attempt, said.kind, Some("{"), None), "the body cannot be read"),
            (
                read_event(said.node, said.attempt, said.kind, None, Some(b"no")),
                "the body cannot be decompressed",
            ),
            (read_event(Some("a[b"), said.attempt, said.kind, said.body, None), "`a[b` is not a node name"),
        ];
        for (result, expected) in cases {
            let message = result.unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }

    /// Every column counts in the link, and absent differs from empty.
    #[test]
    fn a_link_covers_every_column() {
        let place = Place { run: "r", seq: 1, epoch: 2, at: 3, entry_id: b"id", part: 0 };
        let said = Said { node: Some("n"), attempt: Some(1), kind: "k", body: Some("b"), blob: None };
        let places = [
            Place { run: "s", ..place },
            Place { seq: 2, ..place },
            Place { epoch: 3, ..place },
            Place { at: 4, ..place },
            Place { entry_id: b"ie", ..place },
            Place { part: 1, ..place },
        ];
        let saids = [
            Said { node: None, ..said },
            Said { attempt: Some(2), ..said },
            Said { kind: "l", ..said },
            Said { body: Some(""), ..said },
            Said { body: None, ..said },
            Said { blob: Some("d"), ..said },
        ];
        let mut links = vec![link(&NO_LINK, place, said), link(&[1; 32], place, said)];
        links.extend(places.map(|place| link(&NO_LINK, place, said)));
        links.extend(saids.map(|said| link(&NO_LINK, place, said)));
        let count = links.len();
        links.sort_unstable();
        links.dedup();
        assert_eq!(links.len(), count);
    }

    #[test]
    fn large_is_guessed_from_all_values() {
        assert!(!looks_large(&[intent("e", 1_000)]));
        assert!(looks_large(&[intent("e", 100_000)]));
        let many = (0..20_000).map(Value::Int).collect();
        let output = Event::Node {
            node: NodeName::step("a"),
            attempt: 1,
            event: NodeEvent::Succeeded { output: Value::list(many), changed: 0 },
        };
        assert!(looks_large(&[output]));
    }
}
