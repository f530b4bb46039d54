//! `farrier export` and `farrier import`: runs as lines of JSON, from one data directory to another.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use farrier_model::RunId;
use farrier_store::{RunRecord, SqliteStore, StoreError};

use super::{App, Problem};
use crate::exit::Exit;
use crate::render;
use crate::stores;
use farrier_project::shown;

#[derive(Debug, Args)]
pub(super) struct Export {
    /// The runs, by the beginning of their ids. All, when none is named.
    runs: Vec<String>,
    /// The file; standard output when left out.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// A file that `farrier export` has written; `-` for standard input.
    file: PathBuf,
}

impl Export {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let store = stores::read_of(&app.workspace()?, None).await?;
        let mut runs = Vec::new();
        for prefix in &self.runs {
            runs.push(stores::find_in(&store, prefix).await?.id);
        }
        if self.runs.is_empty() {
            let (all, damage) = store.run_ids().await?;
            if let Some(damage) = damage {
                return Err(Problem::Store(damage));
            }
            runs = all;
        }
        let (written, unreadable) = write(&store, &runs, self.out.as_deref(), false).await?;
        if self.out.is_some() {
            eprintln!("{} exported", render::many(written, "run"));
        }
        Ok(if unreadable == 0 { Exit::Ok } else { Exit::Store })
    }
}

/// Writes runs as lines: how many, and how many could not be read. `salvage` goes on after one that cannot.
pub(super) async fn write(
    store: &SqliteStore,
    runs: &[RunId],
    out: Option<&Path>,
    salvage: bool,
) -> Result<(u64, u64), Problem> {
    let mut target = Target::open(out)?;
    let (mut written, mut unreadable) = (0, 0);
    for run in runs {
        let record = match store.export(*run).await {
            Ok(record) => record,
            Err(error @ StoreError::Closed) => return Err(error.into()),
            Err(error) if salvage => {
                eprintln!("not exported: {error}");
                unreadable += 1;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(owner) = &record.owned_by {
            eprintln!(
                "run {run} is being worked on by `{owner}`: what it does from now on is not in the export"
            );
        }
        target.line(&record.line().map_err(anyhow::Error::from)?)?;
        written += 1;
    }
    target.finish()?;
    Ok((written, unreadable))
}

/// Where lines go: standard output, or a file that is there whole or not at all.
enum Target {
    Out,
    File(PathBuf, BufWriter<tempfile::NamedTempFile>),
}

impl Target {
    fn open(out: Option<&Path>) -> Result<Target, Problem> {
        let Some(path) = out else { return Ok(Target::Out) };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::NamedTempFile::new_in(folder).map_err(|error| unwritable(path, error))?;
        Ok(Target::File(path.to_path_buf(), BufWriter::new(file)))
    }

    fn line(&mut self, line: &str) -> Result<(), Problem> {
        match self {
            Target::Out => Ok(render::line(line)?),
            Target::File(path, file) => writeln!(file, "{line}").map_err(|error| unwritable(path, error)),
        }
    }

    fn finish(self) -> Result<(), Problem> {
        let Target::File(path, file) = self else { return Ok(()) };
        let finish = || -> io::Result<()> {
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        finish().map_err(|error| unwritable(&path, error))
    }
}

fn unwritable(path: &Path, source: io::Error) -> Problem {
    Problem::Unwritable { path: path.to_path_buf(), source }
}

impl Import {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let lines: Box<dyn io::BufRead> = if self.file.as_os_str() == "-" {
            Box::new(BufReader::new(io::stdin()))
        } else {
            let file = File::open(&self.file).map_err(|error| Problem::file(&self.file, error))?;
            Box::new(BufReader::new(file))
        };
        let store = stores::own_of(&app.workspace()?, None).await?;
        let imported = self.import(&store, lines).await;
        store.close().await;
        let (new, known) = imported?;
        let known = if known == 0 { String::new() } else { format!("; {known} stored already") };
        eprintln!("{} imported{known}", render::many(new, "run"));
        Ok(Exit::Ok)
    }

    async fn import(&self, store: &SqliteStore, lines: Box<dyn io::BufRead>) -> Result<(u64, u64), Problem> {
        let (mut new, mut known) = (0, 0);
        for (line, number) in lines.lines().zip(1..) {
            let place = |reason: String| Problem::BadLine { file: shown(&self.file), line: number, reason };
            let line = line.map_err(|error| Problem::file(&self.file, error))?;
            if line.trim().is_empty() {
                continue;
            }
            let record = RunRecord::parse(&line).map_err(place)?;
            match store.import(record).await {
                Ok(true) => new += 1,
                Ok(false) => known += 1,
                Err(error @ (StoreError::Invalid { .. } | StoreError::KeyTaken { .. })) => {
                    return Err(place(error.to_string()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((new, known))
    }
}
