//! `files.check_archive`.

use std::fs::File;

use farrier_action::{Action, Planned, ReadCx, Target};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, FailureKind};
use rustix::fs::{FileType, OFlags, fstat};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;
use crate::pack::Format;
use crate::place::FilePlace;
use crate::store::final_folder;
use crate::strict::{failed, kind_in_words, open_strict};
use crate::target::{Files, FilesTarget};
use crate::verify::{Found, read_archive};
use crate::work::{Work, do_telling};

/// Reads an archive from disk, to the last byte, and compares it with what its step said of it.
///
/// Counts, sizes and digests of the entries and of the archive's own list are compared; a difference fails the step.
/// Compare `sha256` in an `expect` with that of the step that made the archive.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckArchive {
    /// The target with the archive.
    pub(crate) target: Target<FilesTarget>,
    /// The archive: `${ steps.archive.file }`.
    archive: FilePlace,
    /// What it must hold: `${ steps.archive.manifest }`.
    manifest: Manifest,
}

/// What was read.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Checked {
    /// Where the archive lies.
    pub file: FilePlace,
    /// The SHA-256 of the compressed file, as it is on disk now.
    pub sha256: String,
    /// The size of the compressed file.
    pub bytes: u64,
    /// How many entries it has.
    pub entries: u64,
    /// How many entries were found when it was made and are not in it.
    pub not_stored: u64,
    /// How many files changed while they were read into it.
    pub changed: u64,
}

impl CheckArchive {
    fn read(&self, work: &Work, files: &Files) -> Result<Found, Failure> {
        let root = files.open(&self.archive.root)?;
        let (folder, name) = final_folder(&root, &self.archive)?;
        let format = Format::of_name(name).ok_or_else(|| {
            Failure::new(
                FailureKind::Input,
                format!("`archive.path`: `{name}` does not end as an archive does"),
            )
        })?;
        let cannot = |error| failed(format_args!("cannot open the archive `{}`", self.archive), error);
        let file = open_strict(&folder, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW)
            .map_err(cannot)?;
        let stat = fstat(&file).map_err(cannot)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            let message = format!("`{}` is {}, not an archive", self.archive, kind_in_words(&stat));
            return Err(Failure::new(FailureKind::Refused, message));
        }
        let found = read_archive(work, File::from(file), format, &mut |_| Ok(()))?;
        found.compare(&self.manifest)?;
        Ok(found)
    }
}

impl Action for CheckArchive {
    const NAME: &'static str = "files.check_archive";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
checked:
  uses: files.check_archive
  with: { target: homes, archive: \"${ steps.archive.file }\", manifest: \"${ steps.archive.manifest }\" }
  expect:
    - { that: result.sha256 == steps.archive.sha256, otherwise: the archive on disk is not what was written }
";
    type Output = Checked;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Checked>, Failure> {
        let files = cx.reader(&self.target).await?;
        let this = self.clone();
        let found = do_telling(cx, move |work| this.read(work, &files))
            .await
            .map_err(|failure| failure.at(self.target.alias()))?;
        Ok(Planned::known(Checked {
            file: self.archive.clone(),
            sha256: found.sha256,
            bytes: found.bytes,
            entries: found.entries,
            not_stored: self.manifest.not_stored,
            changed: self.manifest.changed,
        }))
    }
}
