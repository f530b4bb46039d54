//! What an archive holds: one line of JSON for each thing that was found, and the sum of them.
//!
//! The lines are the archive's last member, [`MEMBER`], so that an archive tells by itself what was not stored and what
//! changed while it was read. The sum, [`Manifest`], is what a run keeps.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::walk::shown;

/// The name of the lines in the archive. No tree can have it: names of trees begin with a letter or digit.
pub(crate) const MEMBER: &str = "_manifest.jsonl";
/// The folder of added files in the archive; the same holds for it.
pub(crate) const ADDED: &str = "_added";
/// How many entries that were not stored the sum names.
const NAMED: usize = 20;

/// What an archive holds, in sum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// How many entries the archive has: files, folders, links, pipes and devices.
    pub entries: u64,
    /// How many of them are regular files.
    pub files: u64,
    /// How many bytes of content it holds. Holes in files are not content.
    pub bytes: u64,
    /// The digest over the entries: path, kind, size and SHA-256 of each, in order.
    pub members: String,
    /// The SHA-256 of the archive's own list, its member `_manifest.jsonl`.
    pub sha256: String,
    /// How many entries were found and not stored, such as sockets.
    pub not_stored: u64,
    /// How many files changed while they were read: what grew was cut off, what shrank was filled up with zeros.
    pub changed: u64,
    /// The first of those that were not stored.
    pub first_not_stored: Vec<NotStored>,
    /// The name of the snapshot that it was made from; left out when it was made from the tree itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
}

/// Something that is not in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NotStored {
    /// Its path, with what is not plain text escaped.
    pub path: String,
    /// Why.
    pub why: String,
}

/// A path or link target: text, or bytes that are none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Name {
    Text(String),
    Bytes { hex: String },
}

impl Name {
    pub(crate) fn of(bytes: &[u8]) -> Name {
        match std::str::from_utf8(bytes) {
            Ok(text) => Name::Text(text.to_owned()),
            Err(_) => Name::Bytes { hex: hex::encode(bytes) },
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Name::Text(text) => text.clone().into_bytes(),
            Name::Bytes { hex } => hex::decode(hex).unwrap_or_default(),
        }
    }
}

/// The first line: which tree it is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) tree: String,
    pub(crate) owner: u32,
    /// The effect that made the archive; so no two archives are equal.
    pub(crate) effect: String,
    /// The snapshot that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot: Option<String>,
}

/// A line: one thing that was found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) path: Name,
    pub(crate) kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<Metadata>,
    /// How many bytes of content its member has; nothing when it is not stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stored: Option<u64>,
    /// Of the member's content. For a sparse file that is the map of its data, and the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
    /// Where a link leads; the first name of a file with several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) not_stored: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) changed: Option<String>,
}

/// What was said of it when it was looked at.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) links: u64,
}

/// The kinds, as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    File,
    SparseFile,
    HardLink,
    Folder,
    Link,
    Pipe,
    Device,
    Socket,
    Unknown,
}

/// One member of an archive, as it was written or read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) path: Vec<u8>,
    /// The type flag of its header.
    pub(crate) flag: u8,
    pub(crate) to: Vec<u8>,
    pub(crate) size: u64,
    pub(crate) sha256: [u8; 32],
}

/// The sum over members, the same when writing and when reading back.
#[derive(Default)]
pub(crate) struct Members {
    pub(crate) entries: u64,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    digest: Sha256,
}

impl Members {
    pub(crate) fn add(&mut self, member: &Member) {
        self.entries += 1;
        self.files += u64::from(member.flag == b'0');
        self.bytes += member.size;
        // Lengths come first, so that no two different members give the same bytes.
        for part in [&*member.path, &*member.to] {
            self.digest.update((part.len() as u64).to_le_bytes());
            self.digest.update(part);
        }
        self.digest.update([member.flag]);
        self.digest.update(member.size.to_le_bytes());
        self.digest.update(member.sha256);
    }

    pub(crate) fn digest(&self) -> String {
        hex::encode(self.digest.clone().finalize())
    }
}

/// What was not stored and what changed, counted.
#[derive(Default)]
pub(crate) struct Remarks {
    pub(crate) not_stored: u64,
    pub(crate) changed: u64,
    pub(crate) first: Vec<NotStored>,
}

impl Remarks {
    pub(crate) fn count(&mut self, line: &Line) {
        self.changed += u64::from(line.changed.is_some());
        if let Some(why) = &line.not_stored {
            self.not_stored += 1;
            if self.first.len() < NAMED {
                // Deep paths are long; their beginning tells where to look.
                let mut path = shown(&line.path.bytes());
                if let Some((cut, _)) = path.char_indices().nth(200) {
                    path.truncate(cut);
                    path.push('…');
                }
                self.first.push(NotStored { path, why: why.clone() });
            }
        }
    }
}
