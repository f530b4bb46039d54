//! [`RunRecord`]: a run outside of a store, as one line of JSON, whole: its row, its texts, and its journal with the hash
//! chain as it was written.
//!
//! A line carries the digest of its record, and the journal its chain: [`RunRecord::parse`] refuses a line that was changed,
//! and [`RunRecord::verify`] one whose journal is not what the chain says or breaks the journal's rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use farrier_model::{Digest, Entry, Event, RunId, RunState, Text};
use serde::{Deserialize, Serialize};

use crate::body::{self, Blob, Place, Row, Said};
use crate::{RunRow, fsck, timestamp};

/// The version of the form.
const FORM: u32 = 1;

/// A stored run, on its way from one store to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRecord {
    /// Its id.
    pub id: RunId,
    /// Name of the runbook.
    pub runbook: Text,
    pub(crate) bundle: Digest,
    pub(crate) environment: Text,
    pub(crate) title: Text,
    pub(crate) parent: Option<RunId>,
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
    /// Who worked on it when it was exported; nobody does where it is imported.
    pub owned_by: Option<String>,
    pub(crate) live_key: Option<String>,
    pub(crate) epoch: i64,
    pub(crate) created_at: i64,
    pub(crate) updated_at: i64,
    pub(crate) finished_at: Option<i64>,
    pub(crate) not_before: Option<i64>,
    pub(crate) texts: Option<Texts>,
    pub(crate) entries: Vec<Recorded>,
    /// The end of the hash chain.
    pub(crate) head: String,
}

/// The texts that a run is pinned to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Texts {
    pub(crate) root: String,
    pub(crate) sources: BTreeMap<Text, Text>,
}

/// A journal entry as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recorded {
    pub(crate) seq: i64,
    pub(crate) epoch: i64,
    pub(crate) at: i64,
    pub(crate) node: Option<String>,
    pub(crate) attempt: Option<i64>,
    pub(crate) kind: String,
    pub(crate) body: Option<String>,
    /// The body where it is stored by its content, unpacked.
    pub(crate) large: Option<String>,
    pub(crate) entry_id: String,
    pub(crate) part: i64,
    pub(crate) hash: String,
}

#[derive(Serialize)]
struct Line<'r> {
    farrier_run: u32,
    digest: Digest,
    run: &'r RunRecord,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadLine {
    farrier_run: u32,
    digest: Digest,
    run: RunRecord,
}

/// A record whose chain holds, as rows.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) record: RunRecord,
    pub(crate) state: RunState,
    pub(crate) head: Vec<u8>,
    pub(crate) rows: Vec<VerifiedRow>,
    pub(crate) events: Vec<Event>,
}

#[derive(Debug)]
pub(crate) struct VerifiedRow {
    pub(crate) seq: i64,
    pub(crate) epoch: i64,
    pub(crate) at: i64,
    pub(crate) entry_id: Vec<u8>,
    pub(crate) part: i64,
    pub(crate) row: Row,
    pub(crate) link: [u8; 32],
}

impl RunRecord {
    /// The record as a line, without the end of the line.
    ///
    /// # Errors
    /// It cannot be written as JSON: a defect.
    pub fn line(&self) -> Result<String, serde_json::Error> {
        let digest = Digest::of(serde_json::to_vec(self)?);
        serde_json::to_string(&Line { farrier_run: FORM, digest, run: self })
    }

    /// Reads a line back.
    ///
    /// # Errors
    /// It is no such line, or was changed.
    pub fn parse(line: &str) -> Result<RunRecord, String> {
        let read: ReadLine =
            serde_json::from_str(line).map_err(|error| format!("it is no exported run: {error}"))?;
        if read.farrier_run != FORM {
            return Err(format!(
                "it has form {}, and this farrier reads form {FORM}; use the one that wrote it",
                read.farrier_run
            ));
        }
        let json = serde_json::to_vec(&read.run).map_err(|error| error.to_string())?;
        if Digest::of(json) != read.digest {
            return Err(format!("run {} was changed after it had been exported", read.run.id));
        }
        Ok(read.run)
    }

    /// How many entries its journal has.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether its journal is empty, which no stored one is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Follows the chain and holds the journal against its rules.
    pub(crate) fn verify(self) -> Result<Verified, String> {
        let state =
            RunState::from_name(&self.state).ok_or_else(|| format!("`{}` is not a run state", self.state))?;
        let name = self.id.to_string();
        let (mut link, mut rows, mut entries) = (body::NO_LINK, Vec::new(), Vec::new());
        for recorded in &self.entries {
            let row =
                recorded.row(&name, &link).map_err(|message| format!("entry {}: {message}", recorded.seq))?;
            link = row.1.link;
            entries.push(row.0);
            rows.push(row.1);
        }
        if hex::encode(link) != self.head {
            return Err("its journal does not end where the run says".into());
        }
        let row = self.row(state);
        if let Some(violation) = fsck::check_run(&row, &entries).first() {
            return Err(violation.to_string());
        }
        let events = entries.into_iter().map(|entry| entry.event).collect();
        Ok(Verified { state, head: link.to_vec(), rows, events, record: self })
    }

    fn row(&self, state: RunState) -> RunRow {
        RunRow {
            id: self.id,
            runbook: self.runbook.clone(),
            bundle: self.bundle,
            environment: self.environment.clone(),
            title: self.title.clone(),
            state,
            owner: None,
            epoch: self.epoch,
            lease_until: None,
            not_before: self.not_before.map(timestamp),
            created_at: timestamp(self.created_at),
            updated_at: timestamp(self.updated_at),
            finished_at: self.finished_at.map(timestamp),
            parent: self.parent,
            reason: self.reason.clone(),
            seq: self.entries.len() as i64,
        }
    }
}

impl Recorded {
    fn row(&self, run: &str, before: &[u8; 32]) -> Result<(Entry, VerifiedRow), String> {
        let entry_id = hex::decode(&self.entry_id).map_err(|error| format!("its id: {error}"))?;
        let blob = match &self.large {
            Some(raw) => {
                let zstd = body::pack(raw.as_bytes()).map_err(|error| error.to_string())?;
                let digest = Arc::from(body::blob_digest(raw.as_bytes()));
                Some(Blob { digest, zstd: Arc::from(zstd), raw_len: raw.len() as i64 })
            }
            None => None,
        };
        let place = Place {
            run,
            seq: self.seq,
            epoch: self.epoch,
            at: self.at,
            entry_id: &entry_id,
            part: self.part,
        };
        let said = Said {
            node: self.node.as_deref(),
            attempt: self.attempt,
            kind: &self.kind,
            body: self.body.as_deref(),
            blob: blob.as_ref().map(|blob| &*blob.digest),
        };
        let link = body::link(before, place, said);
        if hex::encode(link) != self.hash {
            return Err("the hash chain is broken: it or one before it was changed".into());
        }
        let event = body::read_event(
            said.node,
            said.attempt,
            said.kind,
            said.body,
            blob.as_ref().map(|blob| &*blob.zstd),
        )?;
        let row = Row {
            node: self.node.as_deref().map(Arc::from),
            attempt: self.attempt,
            kind: event.name(),
            body: self.body.as_deref().map(Arc::from),
            blob,
        };
        let (seq, epoch, at, part) = (self.seq, self.epoch, self.at, self.part);
        let entry = Entry { seq, epoch, at: timestamp(at), event };
        Ok((entry, VerifiedRow { seq, epoch, at, entry_id, part, row, link }))
    }
}
