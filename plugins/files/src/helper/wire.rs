//! What goes in and out of a helper.
//!
//! **In:** the request, one line of JSON. Some requests have a body, which follows as frames: four bytes of length, the
//! most significant first, then so many bytes. A frame without bytes ends the body. After that, standard input says only
//! one thing, its end: that nobody waits for the answer.
//!
//! **Out:** lines of JSON, each an [`Answer`]. The last one is `done` or `failed`.
//!
//! | request | body | answers |
//! |---|---|---|
//! | `read_many` | sent at once: lists of items, as JSON, each in a frame | any number of `part`, then `done` with the rest |
//! | `deposit` | sent when asked for by `ready`: the file, as it is; after its end one more frame with a [`Closing`] | `ready` and `done`, or `done` at once when the file is there |
//! | steps | none | any number of `progress`, then `done` |
//! | all others | none | `done` |
//!
//! A file that a plugin's step makes is not held in memory on either side. A secret travels in these two streams alone: in
//! a request (`make_secret`) and in an answer (`look_at_secrets`), never on a command line.

use farrier_model::{Change, Failure, Fidelity, NodeName, RunId, Secret, Value};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::deposit::{Making, SecretPlace};
use crate::path::SafePath;
use crate::reading::Reading;

/// The version of this language. A helper of another one refuses.
pub(crate) const VERSION: u32 = 3;

/// A longer request is refused. A file that `files.write` writes is the largest part of one.
pub(crate) const LONGEST_REQUEST: usize = 8 << 20;

/// A longer line of an answer is a failure. One text that was read is the largest part of one.
pub(crate) const LONGEST_ANSWER: usize = 64 << 20;

/// A longer frame of a body is an error; senders stay well below.
pub(crate) const LONGEST_FRAME: usize = 1 << 20;

/// Items of one `files.read_many` that take more, as JSON, are refused: some hundred thousand folders.
pub(crate) const LONGEST_ITEMS: usize = 64 << 20;

/// What is wanted.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    pub(crate) version: u32,
    pub(crate) job: Job,
}

/// All that a helper knows to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Job {
    Usage(Step),
    Write(Step),
    Archive(Step),
    CheckArchive(Step),
    DeleteTree(Step),
    Discard(Step),
    /// `files.read_many`. Its expressions are evaluated by then; the body has the items.
    ReadMany(ReadMany),
    /// The four things that `deposit` does for steps of other plugins.
    Deposited(Making),
    Deposit(Making),
    Withdraw(Making),
    WithDigest(WithDigest),
    /// The three things that are done with a file of credentials.
    LookAtSecrets(Vec<SecretPlace>),
    MakeSecret(MakeSecret),
    RemoveSecret(RemoveSecret),
}

/// A phase of a step whose action the helper does as a whole.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    pub(crate) phase: Phase,
    /// What the step says under `with`.
    pub(crate) input: Value,
    /// What was planned; empty in a plan.
    #[serde(default)]
    pub(crate) changes: Vec<Change>,
    pub(crate) run: RunId,
    pub(crate) node: NodeName,
    pub(crate) attempt: u32,
    pub(crate) effect: String,
}

/// What is done of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Plan,
    Apply,
    Undo,
    Probe,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadMany {
    pub(crate) reading: Reading,
    /// For each text, the places to look for it; nothing where each item has its own.
    pub(crate) shared: Vec<Option<Vec<SafePath>>>,
}

/// An item in a body of `read_many`: its folder, and its own places for the texts that share none.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Wanted(pub(crate) SafePath, pub(crate) Vec<Vec<SafePath>>);

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WithDigest {
    pub(crate) root: String,
    pub(crate) sha256: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MakeSecret {
    pub(crate) place: SecretPlace,
    pub(crate) effect: String,
    pub(crate) content: Plain,
}

/// The file goes if its content still is the one with this digest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoveSecret {
    pub(crate) place: SecretPlace,
    pub(crate) sha256: String,
}

/// What its sender says of a file when all of it is sent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Closing {
    pub(crate) sha256: String,
    pub(crate) about: Value,
}

/// What came of a request. A failure to read one may hold what it could not read, so its text goes nowhere.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer<T> {
    /// Send the body.
    Ready {},
    /// The beginning; more comes.
    Part(T),
    /// How far it has come; more comes.
    Progress(Told),
    Done(T),
    Failed(Failure),
}

/// How far a step has come.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) done: u64,
    /// 0 where nobody knows.
    pub(crate) total: u64,
    pub(crate) text: String,
}

/// What was planned.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Planned {
    pub(crate) changes: Vec<Change>,
    pub(crate) output: Option<Value>,
    pub(crate) unknown: Vec<String>,
    pub(crate) fidelity: Fidelity,
    pub(crate) considered: Option<u64>,
    pub(crate) notes: Vec<String>,
}

/// What a probe found.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Probed {
    Applied,
    NotApplied,
    Unknown,
}

/// What lies where credentials are to be.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Looked {
    NoFolder,
    Nothing,
    Text(Plain),
}

/// A secret as it stands between the two processes, and nowhere else.
#[derive(Debug)]
pub(crate) struct Plain(pub(crate) Secret);

impl Serialize for Plain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.reveal())
    }
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Plain, D::Error> {
        // An error of the library's own would show what it found.
        let text = String::deserialize(deserializer).map_err(|_| D::Error::custom("this is no text"))?;
        Ok(Plain(Secret::new(text)))
    }
}
