//! The files of the stand-in: YAML documents, each an object or a `List` of them.
//!
//! **Rules.** The files are the truth. A change rewrites the documents of the objects that changed; the others keep
//! their bytes and comments. A file is replaced whole, or not at all. One document more, of kind `StandIn`, holds the
//! counter of changes, so that no `resourceVersion` is given twice.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use farrier_action::world_file::{self, unreadable};
use farrier_model::{Failure, FailureKind};
use serde_json::{Value as Json, json};

use super::kinds::Kind;
use super::meta;
use super::world::{Key, World, text};

/// The API version of the document with the counter.
const STAND_IN: &str = "farrier.run/v1";

/// The files as they were read or written last.
#[derive(Debug, Default)]
pub(crate) struct Files {
    files: Vec<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    stamp: Stamp,
    documents: Vec<Document>,
}

/// The text of a document, and which objects it holds.
#[derive(Debug, Clone)]
struct Document {
    text: String,
    keys: Vec<Key>,
    counter: bool,
}

/// A file, and what tells whether it is still the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(path: &Path) -> Result<Stamp, Failure> {
        let metadata = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        Ok(Stamp::with(path, &metadata))
    }

    fn with(path: &Path, metadata: &Metadata) -> Stamp {
        Stamp {
            inode: metadata.ino(),
            length: metadata.len(),
            modified: metadata.modified().ok(),
            path: path.to_owned(),
        }
    }
}

impl Files {
    /// Whether the files at `path` are those that were read or written last.
    pub(crate) fn are_current(&self, path: &Path) -> Result<bool, Failure> {
        let stamps = stamps(path)?;
        Ok(!self.files.is_empty() && self.files.iter().map(|file| &file.stamp).eq(&stamps))
    }

    /// Reads everything.
    pub(crate) fn load(path: &Path) -> Result<(Files, World), Failure> {
        let mut world = World::default();
        world.revision = 1;
        let mut files = Vec::new();
        for stamp in stamps(path)? {
            let shown = stamp.path.display().to_string();
            let whole =
                std::fs::read_to_string(&stamp.path).map_err(|error| unreadable(&stamp.path, &error))?;
            let mut documents = Vec::new();
            for (line, text) in split(&whole) {
                let wrong = |reason: String| {
                    Failure::new(FailureKind::Input, format!("{shown}, document at line {line}: {reason}"))
                };
                documents.push(read(text, &mut world).map_err(wrong)?);
            }
            files.push(Loaded { stamp, documents });
        }
        meta::complete(&mut world);
        world.floor = world.revision;
        world.dirty.clear();
        Ok((Files { files }, world))
    }

    /// Writes what changed since the last time.
    pub(crate) fn save(&mut self, world: &mut World) -> Result<(), Failure> {
        if world.dirty.is_empty() {
            return Ok(());
        }
        let dirty = std::mem::take(&mut world.dirty);
        let saved = self.write(world, &dirty);
        if saved.is_err() {
            world.dirty = dirty;
        }
        saved
    }

    fn write(&mut self, world: &World, dirty: &std::collections::BTreeSet<Key>) -> Result<(), Failure> {
        let mut new: Vec<Key> = dirty.iter().filter(|key| world.get(key).is_some()).cloned().collect();
        let mut next: Vec<Option<Vec<Document>>> = Vec::new();
        for (number, file) in self.files.iter().enumerate() {
            let mut touched = number == 0;
            let mut documents = Vec::with_capacity(file.documents.len());
            for document in &file.documents {
                if document.counter {
                    continue;
                }
                if !document.keys.iter().any(|key| dirty.contains(key)) {
                    documents.push(document.clone());
                    continue;
                }
                touched = true;
                for key in &document.keys {
                    new.retain(|other| other != key);
                    documents.extend(render(world, key)?);
                }
            }
            if number == 0 {
                documents.push(counter(world.revision)?);
            }
            next.push(touched.then_some(documents));
        }
        // The counter stands last, so that new objects go before it.
        if let Some(Some(first)) = next.first_mut() {
            let end = first.len().saturating_sub(1);
            for (place, key) in new.iter().enumerate() {
                if let Some(document) = render(world, key)? {
                    first.insert((end + place).min(first.len()), document);
                }
            }
        }
        for (file, documents) in self.files.iter_mut().zip(next) {
            let Some(documents) = documents else { continue };
            let whole: Vec<&str> = documents.iter().map(|document| document.text.as_str()).collect();
            let path = file.stamp.path.clone();
            let metadata = world_file::replace(&path, &whole.join("---\n")).map_err(|error| {
                Failure::new(FailureKind::Unreachable, format!("cannot write {}: {error}", path.display()))
            })?;
            *file = Loaded { stamp: Stamp::with(&path, &metadata), documents };
        }
        Ok(())
    }
}

/// The documents of a file with the lines they begin at.
fn split(whole: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut line, mut first) = (0, 1, 1);
    let mut at = 0;
    for text in whole.split_inclusive('\n') {
        let bare = text.trim_end();
        if bare == "---" || bare.starts_with("--- #") {
            documents.push((first, &whole[start..at]));
            start = at + text.len();
            first = line + 1;
        }
        at += text.len();
        line += 1;
    }
    documents.push((first, &whole[start..]));
    // What stands before the first mark is a document only when something is in it.
    documents.retain(|(_, text)| !text.trim().is_empty());
    documents
}

/// Reads one document into the world.
fn read(text: &str, world: &mut World) -> Result<Document, String> {
    let mut document = Document {
        text: if text.ends_with('\n') { text.into() } else { format!("{text}\n") },
        keys: Vec::new(),
        counter: false,
    };
    let object: Json = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if object.is_null() {
        return Ok(document);
    }
    if object["apiVersion"] == STAND_IN && object["kind"] == "StandIn" {
        let revision = object["resourceVersion"].as_str().and_then(|text| text.parse().ok());
        world.revision = world.revision.max(revision.ok_or("its `resourceVersion` is no number")?);
        document.counter = true;
        return Ok(document);
    }
    let items = match &object {
        Json::Object(list) if list.get("kind").is_some_and(|kind| kind == "List") => {
            list.get("items").and_then(Json::as_array).cloned().unwrap_or_default()
        }
        _ => vec![object],
    };
    for item in items {
        let key = load(item, world)?;
        document.keys.push(key);
    }
    Ok(document)
}

fn load(object: Json, world: &mut World) -> Result<Key, String> {
    let api_version = text(&object, &["apiVersion"]).ok_or("`apiVersion` is missing")?;
    let kind = text(&object, &["kind"]).ok_or("`kind` is missing")?;
    let kind = Kind::find(api_version, kind)
        .ok_or_else(|| format!("`{kind}` of `{api_version}` is not a kind that the stand-in knows"))?;
    let (key, object) = meta::from_file(kind, object)?;
    if world.get(&key).is_some() {
        return Err(format!("{} \"{}\" stands in the files twice", key.kind().resource(), key.name));
    }
    let revision = text(&object, &["metadata", "resourceVersion"]).and_then(|text| text.parse().ok());
    world.revision = world.revision.max(revision.unwrap_or(0));
    world.load(key.clone(), object);
    Ok(key)
}

fn render(world: &World, key: &Key) -> Result<Option<Document>, Failure> {
    let Some(object) = world.get(key) else { return Ok(None) };
    Ok(Some(Document { text: yaml(object)?, keys: vec![key.clone()], counter: false }))
}

fn counter(revision: u64) -> Result<Document, Failure> {
    let object =
        json!({ "apiVersion": STAND_IN, "kind": "StandIn", "resourceVersion": revision.to_string() });
    Ok(Document { text: yaml(&object)?, keys: Vec::new(), counter: true })
}

fn yaml(object: &Json) -> Result<String, Failure> {
    let mut text = serde_saphyr::to_string(object)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("cannot write YAML: {error}")))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// The files at a path, in order of their names.
fn stamps(path: &Path) -> Result<Vec<Stamp>, Failure> {
    if !path.is_dir() {
        return Ok(vec![Stamp::of(path)?]);
    }
    let mut paths = Vec::new();
    for item in std::fs::read_dir(path).map_err(|error| unreadable(path, &error))? {
        let path = item.map_err(|error| unreadable(path, &error))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && !hidden {
            paths.push(path);
        }
    }
    paths.sort();
    if paths.is_empty() {
        return Err(Failure::new(FailureKind::Input, format!("there is no `*.yaml` in {}", path.display())));
    }
    paths.iter().map(|path| Stamp::of(path)).collect()
}
