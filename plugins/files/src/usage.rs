//! `files.usage`.

use farrier_action::{Action, Planned, ReadCx, Target};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, FailureKind};
use rustix::fs::{FileType, fstat, fstatvfs};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::count::{Size, count_tree};
use crate::place::Segments;
use crate::private::PRIVATE;
use crate::strict::{FOLDER, LISTED, failed, look, open_strict};
use crate::target::{Files, FilesTarget};
use crate::walk::MAX_ENTRIES;
use crate::work::{Work, do_telling};

/// Counts and measures what lies in a folder, and the space that is left on its disk.
///
/// No link is followed and no other file system entered. What cannot be looked at is counted in `passed`, as is what lies
/// more than 256 folders deep. A folder that is not there is no error: `exists` is false.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// The target with the folder.
    pub(crate) target: Target<FilesTarget>,
    /// The root, one of those that the environment names.
    root: String,
    /// The folder beneath it, as a list of segments; the root itself when left out.
    #[serde(default)]
    path: Option<Segments>,
    /// Measures each folder in it on its own as well.
    #[serde(default)]
    each_folder: bool,
    /// More entries fail the step; ten million at most.
    #[serde(default = "default_max_entries")]
    max_entries: u64,
}

fn default_max_entries() -> u64 {
    MAX_ENTRIES
}

/// What there is.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Used {
    /// Whether the folder is there.
    pub exists: bool,
    /// How much lies in it.
    pub total: Amount,
    /// The number of the account that the folder belongs to; null when it is not there.
    pub owner: Option<u32>,
    /// By name, each folder directly in it; empty unless `each_folder` is set.
    pub folders: std::collections::BTreeMap<String, Amount>,
    /// How many bytes of its disk are free for use.
    pub disk_free: u64,
    /// How many bytes its disk has.
    pub disk_size: u64,
}

/// Counts and sizes.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Amount {
    /// Regular files.
    pub files: u64,
    /// Folders, with the one that was asked for.
    pub folders: u64,
    /// Symbolic links.
    pub links: u64,
    /// Pipes, devices and sockets.
    pub others: u64,
    /// The sizes that files say they have, holes included.
    pub bytes: u64,
    /// What the files take on disk.
    pub disk_bytes: u64,
    /// What was not looked at.
    pub passed: u64,
}

impl Amount {
    fn of(size: &Size) -> Amount {
        Amount {
            files: size.files,
            folders: size.folders,
            links: size.links,
            others: size.others,
            bytes: size.bytes,
            disk_bytes: size.stored,
            passed: size.passed,
        }
    }

    fn add(&mut self, other: &Amount) {
        self.files += other.files;
        self.folders += other.folders;
        self.links += other.links;
        self.others += other.others;
        self.bytes += other.bytes;
        self.disk_bytes += other.disk_bytes;
        self.passed += other.passed;
    }
}

/// A size for people.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

impl Usage {
    fn measure(&self, work: &Work, files: &Files) -> Result<(Used, Option<String>), Failure> {
        let root = files.open(&self.root)?;
        let shown = match &self.path {
            None => self.root.clone(),
            Some(path) => format!("{}/{path}", self.root),
        };
        let path = self.path.as_ref().map_or_else(|| ".".into(), Segments::joined);
        let cannot = |error| failed(format_args!("cannot open `{shown}`"), error);
        let folder = match open_strict(&root, &*path, FOLDER) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok((Used::default(), None)),
            Err(error) => return Err(cannot(error)),
        };
        let space = fstatvfs(&folder).map_err(cannot)?;
        let said = self.path.as_ref().and_then(|path| match &*path.0 {
            [name] => files.said_owner(&self.root, name),
            _ => None,
        });
        let mut used = Used {
            exists: true,
            owner: Some(said.map_or_else(|| fstat(&folder).map(|stat| stat.st_uid), Ok).map_err(cannot)?),
            disk_free: space.f_bavail.saturating_mul(space.f_frsize),
            disk_size: space.f_blocks.saturating_mul(space.f_frsize),
            ..Used::default()
        };
        let own = self.path.is_none();
        // Farrier's own folder is no part of what people keep here, so then the root is gone through by hand.
        let with_private = own && look(&root, PRIVATE).is_ok_and(|found| found.is_some());
        if !(self.each_folder || with_private) {
            let size = count_tree(work, &folder, &shown, self.max_entries)?;
            used.total = Amount::of(&size);
            return Ok((used, size.first_passed));
        }
        used.total.folders = 1;
        let mut first = None;
        let mut left = self.max_entries;
        let listed = open_strict(&folder, ".", LISTED).map_err(cannot)?;
        for entry in rustix::fs::Dir::read_from(&listed).map_err(cannot)? {
            let name = entry.map_err(cannot)?.file_name().to_owned();
            let bytes = name.as_bytes();
            if bytes == b"." || bytes == b".." || (own && bytes == PRIVATE.as_bytes()) {
                continue;
            }
            let path = format!("{shown}/{}", crate::walk::shown(bytes));
            let opened = open_strict(&folder, name.as_c_str(), crate::strict::LOOK)
                .and_then(|fd| Ok((fstat(&fd)?, fd)));
            let (stat, fd) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    used.total.passed += 1;
                    first.get_or_insert_with(|| format!("`{path}`: {error}"));
                    continue;
                }
            };
            let size = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                count_tree(work, &fd, &path, left)?
            } else {
                one(&stat)
            };
            left = left.saturating_sub(size.files + size.folders + size.links + size.others);
            if left == 0 {
                let message = format!("`{shown}` has more than {} entries", self.max_entries);
                return Err(Failure::new(FailureKind::Limit, message));
            }
            let amount = Amount::of(&size);
            used.total.add(&amount);
            first = first.or(size.first_passed);
            if self.each_folder && size.folders > 0 {
                used.folders.insert(crate::walk::shown(bytes), amount);
            }
        }
        Ok((used, first))
    }
}

/// Something that is no folder.
fn one(stat: &rustix::fs::Stat) -> Size {
    let mut size = Size::default();
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            size.files = 1;
            size.bytes = stat.st_size as u64;
            size.stored = stat.st_blocks as u64 * 512;
        }
        FileType::Symlink => size.links = 1,
        _ => size.others = 1,
    }
    size
}

impl Action for Usage {
    const NAME: &'static str = "files.usage";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
size:
  uses: files.usage
  with: { target: homes, root: tool_homes, path: [example] }
";
    type Output = Used;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Used>, Failure> {
        if self.max_entries == 0 || self.max_entries > MAX_ENTRIES {
            let message = format!("`max_entries` is {}, not 1 to {MAX_ENTRIES}", self.max_entries);
            return Err(Failure::new(FailureKind::Input, message));
        }
        let files = cx.reader(&self.target).await?;
        let this = self.clone();
        let (used, first) = do_telling(cx, move |work| this.measure(work, &files))
            .await
            .map_err(|failure| failure.at(self.target.alias()))?;
        let passed = used.total.passed;
        let planned = Planned::known(used);
        Ok(match first {
            Some(first) => planned.note(format!("{passed} entries are passed by, the first: {first}")),
            None => planned,
        })
    }
}
