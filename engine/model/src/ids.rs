//! Identities: runs, steps, nodes, digests.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::value::Text;

/// One execution of a runbook. Version 7 for runs that people start (so they sort by time), version 5 for child runs
/// (so that starting one twice creates it once).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub Uuid);

impl RunId {
    /// A new id; `unix_ms` is the time of creation.
    pub fn at(unix_ms: i64, random: [u8; 10]) -> RunId {
        RunId(uuid::Builder::from_unix_timestamp_millis(unix_ms.max(0).cast_unsigned(), &random).into_uuid())
    }

    /// No run: what plans say of a run that nobody is to carry out.
    pub const NONE: RunId = RunId(Uuid::nil());

    /// The id of the child run that `node` of this run starts.
    pub fn child(self, node: &NodeName) -> RunId {
        RunId(Uuid::new_v5(&self.0, node.to_string().as_bytes()))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RunId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<RunId, uuid::Error> {
        Uuid::from_str(text).map(RunId)
    }
}

/// The id of a step within its runbook: `[a-z][a-z0-9_]*`.
pub type StepId = Text;

/// One vertex of a run: a step, or one item of a `for_each` step.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct NodeName {
    /// The step.
    pub step: StepId,
    /// The item's key, for a node of a `for_each` step.
    pub item: Option<Text>,
}

impl NodeName {
    /// The node of a plain step.
    pub fn step(step: impl Into<StepId>) -> NodeName {
        NodeName { step: step.into(), item: None }
    }

    /// The node of one item.
    pub fn item(step: impl Into<StepId>, key: impl Into<Text>) -> NodeName {
        NodeName { step: step.into(), item: Some(key.into()) }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.item {
            Some(key) => write!(f, "{}[{key}]", self.step),
            None => f.write_str(&self.step),
        }
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> String {
        name.to_string()
    }
}

impl TryFrom<String> for NodeName {
    type Error = String;
    fn try_from(text: String) -> Result<NodeName, String> {
        text.parse()
    }
}

impl FromStr for NodeName {
    type Err = String;
    /// `step` or `step[key]`; the key is everything up to the last bracket.
    fn from_str(text: &str) -> Result<NodeName, String> {
        match text.split_once('[') {
            None => Ok(NodeName::step(text)),
            Some((step, rest)) => match rest.strip_suffix(']') {
                Some(key) => Ok(NodeName::item(step, key)),
                None => Err(format!("`{text}` is not a node name; write `step` or `step[key]`")),
            },
        }
    }
}

/// A SHA-256 digest, shown as hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: impl AsRef<[u8]>) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The digest of parts whose boundaries count: `("ab", "c")` differs from `("a", "bc")`.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a str>) -> Digest {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        Digest(hasher.finalize().into())
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first twelve digits, enough for a person to tell two apart.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Digest, String> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(&text, &mut bytes).map_err(|_| format!("`{text}` is not a SHA-256 digest"))?;
        Ok(Digest(bytes))
    }
}

/// The key under which an effect is submitted to the world: the same for every attempt at it, so that a target which
/// remembers keys performs it once. `direction` is `do` or `undo`.
pub fn effect_id(run: RunId, node: &NodeName, direction: &str) -> String {
    Digest::of_parts([&*run.to_string(), &node.to_string(), direction]).to_string()[..32].to_string()
}
