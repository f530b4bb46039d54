//! [`RecordFile`]: what a stand-in remembers, one JSON line for each thing that happened.
//!
//! The file is the truth: each look reads what is in it now, so the two sides of one process, and processes one after
//! the other, see one world. Each change is made under a lock on the file's folder, and writes the file anew (a
//! temporary file, `fsync`, a rename), so a crash leaves the old text or the new one.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use farrier_model::{Failure, FailureKind, Value};

/// A file of records.
#[derive(Debug, Clone)]
pub struct RecordFile(PathBuf);

impl RecordFile {
    /// The file at `path`, which need not exist yet.
    pub fn new(path: PathBuf) -> RecordFile {
        RecordFile(path)
    }

    /// Every record, oldest first.
    ///
    /// # Errors
    /// [`FailureKind::Unreachable`] when it cannot be read, [`FailureKind::Input`] when a line is no record.
    pub async fn read(&self) -> Result<Vec<Value>, Failure> {
        let path = self.0.clone();
        blocking(move || read(&path).map(|(_, records)| records)).await
    }

    /// Looks at the records and adds those that `decide` returns, with nobody in between.
    ///
    /// # Errors
    /// As [`RecordFile::read`], and what `decide` fails with; then nothing is added.
    pub async fn append<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&[Value]) -> Result<(Vec<Value>, T), Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let path = self.0.clone();
        blocking(move || {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            std::fs::create_dir_all(folder).map_err(|error| trouble("write", &path, &error))?;
            let lock = File::open(folder).map_err(|error| trouble("write", &path, &error))?;
            lock.lock().map_err(|error| trouble("lock", &path, &error))?;
            let (mut text, records) = read(&path)?;
            let (added, result) = decide(&records)?;
            if !added.is_empty() {
                for record in added {
                    text.push_str(&record.to_json());
                    text.push('\n');
                }
                replace(folder, &path, &text).map_err(|error| trouble("write", &path, &error))?;
            }
            Ok(result)
        })
        .await
    }
}

fn read(path: &Path) -> Result<(String, Vec<Value>), Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(trouble("read", path, &error)),
    };
    let records = text
        .lines()
        .enumerate()
        .map(|(index, line)| {
            Value::from_json(line).map_err(|error| {
                Failure::new(
                    FailureKind::Input,
                    format!("{}, line {}: not a record: {error}", path.display(), index + 1),
                )
            })
        })
        .collect::<Result<_, _>>()?;
    Ok((text, records))
}

fn replace(folder: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        // What was written may be a password, so it is its owner's alone.
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    File::open(folder)?.sync_all()?;
    written
}

fn trouble(doing: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(FailureKind::Unreachable, format!("cannot {doing} {}: {error}", path.display()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::new(FailureKind::Internal, format!("the stand-in stopped: {error}")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn many_writers_lose_nothing_and_a_refusal_adds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/state.jsonl");
        let tasks: Vec<_> = (0..20)
            .map(|number| {
                let file = RecordFile::new(path.clone());
                tokio::spawn(async move {
                    file.append(move |known| Ok((vec![Value::Int(number)], known.len()))).await.unwrap()
                })
            })
            .collect();
        let mut places = Vec::new();
        for task in tasks {
            places.push(task.await.unwrap());
        }
        places.sort_unstable();
        assert_eq!(places, (0..20).collect::<Vec<_>>());
        let file = RecordFile::new(path.clone());
        let refusal = Failure::new(FailureKind::Refused, "no");
        file.append(|_| Err::<(Vec<Value>, ()), _>(refusal)).await.unwrap_err();
        assert_eq!(file.read().await.unwrap().len(), 20);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(file.read().await.unwrap_err().kind, FailureKind::Input);
    }
}
