//! [`Workspace`]: which files a project has, and each of them read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use farrier_model::Digest;
use farrier_model::spec::Catalog;
use farrier_runbook::environment::{Store as StorePlace, read_environment};
use farrier_runbook::project::{Project, matches, reaches, read_project};
use farrier_runbook::{Alerts, Bundle, Compiled, Diagnostics, Source, compile, compile_alerts};
use farrier_store::{Keep, Retention};

use crate::{ProjectError, Site};

/// The name of the project file.
const PROJECT_FILE: &str = "farrier.yaml";
/// Where runs are kept when nobody says otherwise, from the project's folder.
const DATA_DIR: &str = ".farrier";
/// Nobody finds a runbook that lies deeper.
const MAX_DEPTH: usize = 64;
/// Folders that never hold authored files.
const IGNORED_FOLDERS: [&str; 4] = [".git", ".farrier", "target", "node_modules"];

/// A project on disk.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// The folder of the project file.
    pub root: PathBuf,
    project: Project,
    /// Of the project file's text.
    digest: Digest,
    files: Vec<PathBuf>,
}

impl Workspace {
    /// The project around `from`: in its folder or one above.
    pub fn find(from: &Path) -> Result<Workspace, ProjectError> {
        let start = from.canonicalize().map_err(|error| ProjectError::file(from, error))?;
        let root = start
            .ancestors()
            .find(|folder| folder.join(PROJECT_FILE).is_file())
            .ok_or_else(|| ProjectError::NoProject { from: start.clone() })?
            .to_path_buf();
        let path = root.join(PROJECT_FILE);
        let bytes = std::fs::read(&path).map_err(|error| ProjectError::file(&path, error))?;
        let mut diagnostics = Diagnostics::new();
        let file = diagnostics.add_file(shown(&path), &bytes);
        let project = read_project(file, &bytes, &mut diagnostics);
        let project = project.ok_or_else(|| ProjectError::Mistakes(Box::new(diagnostics)))?;
        let mut files = Vec::new();
        walk(&root, &project, &mut files)?;
        files.sort();
        Ok(Workspace { root, project, digest: Digest::of(&bytes), files })
    }

    fn matching<'a>(
        &'a self,
        patterns: &'a [farrier_runbook::At<String>],
    ) -> impl Iterator<Item = &'a PathBuf> {
        self.files.iter().filter(move |file| {
            let relative = file.strip_prefix(&self.root).unwrap_or(file).to_string_lossy();
            patterns.iter().any(|pattern| matches(pattern, &relative))
        })
    }

    /// Every runbook file.
    pub fn runbook_files(&self) -> Vec<PathBuf> {
        self.matching(&self.project.runbooks).filter(|file| !is_test(file)).cloned().collect()
    }

    /// Every test file.
    pub fn test_files(&self) -> Vec<PathBuf> {
        self.matching(&self.project.runbooks).filter(|file| is_test(file)).cloned().collect()
    }

    /// Every environment file.
    pub fn environment_files(&self) -> Vec<PathBuf> {
        self.matching(&self.project.environments).cloned().collect()
    }

    /// Compiles every runbook of the project.
    pub fn compile(&self, catalog: &Catalog) -> Result<Compiled, ProjectError> {
        compile_files(&self.runbook_files(), catalog)
    }

    /// A runbook with all it can start. `name` may also be the path of a file.
    pub fn bundle(&self, name: &str, catalog: &Catalog) -> Result<Bundle, ProjectError> {
        let mut files = self.runbook_files();
        let mut name = name.to_owned();
        let given = Path::new(&name).to_path_buf();
        if given.extension().is_some_and(|extension| extension == "yaml") {
            let path = given.canonicalize().map_err(|error| ProjectError::file(&given, error))?;
            name = stem(&path);
            files.retain(|file| stem(file) != name);
            files.push(path);
        }
        if !files.iter().any(|file| stem(file) == name) {
            let known: Vec<String> = files.iter().map(|file| stem(file)).collect();
            return Err(ProjectError::NoRunbook { name, known });
        }
        let compiled = compile_files(&files, catalog)?;
        compiled.bundle(&name).ok_or_else(|| ProjectError::Mistakes(Box::new(compiled.diagnostics)))
    }

    /// Every file with alert rules or routes.
    pub fn alert_files(&self) -> Vec<PathBuf> {
        self.matching(&self.project.alerts).filter(|file| !is_test(file)).cloned().collect()
    }

    /// Reads every file of alerts against the compiled runbooks. Mistakes are in what is returned.
    pub fn alerts(&self, compiled: &Compiled) -> Result<Alerts, ProjectError> {
        self.read_alerts(compiled).map(|(alerts, _)| alerts)
    }

    /// As [`alerts`](Workspace::alerts), with the digest of the texts.
    pub(crate) fn read_alerts(&self, compiled: &Compiled) -> Result<(Alerts, Digest), ProjectError> {
        let mut sources = Vec::new();
        let mut mistakes = Diagnostics::new();
        for path in self.alert_files() {
            let bytes = std::fs::read(&path).map_err(|error| ProjectError::file(&path, error))?;
            match Source::from_bytes(shown(&path), &bytes) {
                Ok(source) => sources.push(source),
                Err(found) => mistakes.append(found),
            }
        }
        let digest = Digest::of_parts(sources.iter().flat_map(|source| [&*source.path, &*source.text]));
        let mut alerts = compile_alerts(&sources, compiled);
        alerts.diagnostics.append(mistakes);
        Ok((alerts, digest))
    }

    /// An environment by name.
    pub fn site(&self, name: &str, catalog: &Catalog) -> Result<Site, ProjectError> {
        let files = self.environment_files();
        let path = files.iter().find(|file| stem(file) == name).ok_or_else(|| {
            let known = files.iter().map(|file| stem(file)).collect();
            ProjectError::NoEnvironment { name: name.to_owned(), known }
        })?;
        let mut diagnostics = Diagnostics::new();
        let (site, _) = self.read_site(path, catalog, &mut diagnostics)?;
        site.ok_or_else(|| ProjectError::Mistakes(Box::new(diagnostics)))
    }

    /// Reads one environment; also gives the digest of its text. No site when there are mistakes in it.
    pub(crate) fn read_site(
        &self,
        path: &Path,
        catalog: &Catalog,
        diagnostics: &mut Diagnostics,
    ) -> Result<(Option<Site>, Digest), ProjectError> {
        let bytes = std::fs::read(path).map_err(|error| ProjectError::file(path, error))?;
        let file = diagnostics.add_file(shown(path), &bytes);
        let environment = read_environment(file, &bytes, catalog, diagnostics);
        let folder = path.parent().unwrap_or(&self.root).to_path_buf();
        Ok((environment.map(|environment| Site { environment, folder }), Digest::of(&bytes)))
    }

    /// The digest of the project file's text.
    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    /// What changes when an authored file does: names, sizes and times of all of them, cheap enough to be asked for every
    /// few seconds. Test files do not count.
    pub fn stamp(&self) -> Digest {
        let mut parts = String::new();
        let mut files = self.runbook_files();
        files.extend(self.alert_files());
        files.extend(self.environment_files());
        files.push(self.root.join(PROJECT_FILE));
        for file in files {
            use std::os::unix::fs::MetadataExt as _;
            let Ok(found) = std::fs::metadata(&file) else { continue };
            let (size, ino) = (found.size(), found.ino());
            let (seconds, nanoseconds) = (found.mtime(), found.mtime_nsec());
            parts.push_str(&format!("{} {size} {ino} {seconds} {nanoseconds}\n", file.display()));
        }
        Digest::of(parts)
    }

    /// Where runs are kept: the environment's word, then the project's, then `.farrier`.
    pub fn data_dir(&self, site: Option<&Site>) -> Result<PathBuf, ProjectError> {
        if let Some(dir) = std::env::var_os("FARRIER_DATA_DIR").filter(|dir| !dir.is_empty()) {
            return Ok(PathBuf::from(dir));
        }
        match site.and_then(|site| site.environment.store.as_ref().map(|store| (site, store))) {
            Some((site, StorePlace::Sqlite(path))) => return Ok(site.folder.join(path)),
            Some((site, StorePlace::Postgres(_))) => {
                return Err(ProjectError::NotYet(format!(
                    "environment `{}` keeps runs in PostgreSQL, and this version keeps them in SQLite only",
                    site.environment.name
                )));
            }
            None => {}
        }
        let dir = self.project.data_dir.as_ref().map_or(DATA_DIR, |dir| dir.as_str());
        Ok(self.root.join(dir))
    }

    /// Every place where runs of this project are kept: the project's own first, then those of environments that have one of
    /// their own. An environment that cannot be read has no say.
    pub fn data_dirs(&self, catalog: &Catalog) -> Result<Vec<PathBuf>, ProjectError> {
        let mut dirs = vec![self.data_dir(None)?];
        for path in self.environment_files() {
            let read = self.read_site(&path, catalog, &mut Diagnostics::new());
            let Ok((Some(site), _)) = read else { continue };
            if let Ok(dir) = self.data_dir(Some(&site))
                && !dirs.contains(&dir)
            {
                dirs.push(dir);
            }
        }
        Ok(dirs)
    }

    /// How long finished runs are kept, if the project says so.
    pub fn retention(&self) -> Option<Retention> {
        let rules = self.project.retention.as_ref()?;
        let keep = |(keep, at_least): (Duration, u32)| Keep { keep, at_least: at_least.into() };
        Some(Retention {
            others: Some(keep(rules.others())),
            runbooks: rules.runbooks().map(|(name, rule)| (name.to_owned(), keep(rule))).collect(),
        })
    }
}

/// Compiles files, whether or not they belong to a project.
pub fn compile_files(files: &[PathBuf], catalog: &Catalog) -> Result<Compiled, ProjectError> {
    let mut sources = Vec::with_capacity(files.len());
    let mut unreadable = Vec::new();
    for file in files {
        let bytes = std::fs::read(file).map_err(|error| ProjectError::file(file, error))?;
        match Source::from_bytes(shown(file), &bytes) {
            Ok(source) => sources.push(source),
            Err(mistakes) => unreadable.push(mistakes),
        }
    }
    let mut compiled = compile(&sources, catalog);
    for mistakes in unreadable {
        compiled.diagnostics.append(mistakes);
    }
    Ok(compiled)
}

/// A path as people see it: from the current folder when it is below.
pub fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

/// The name that a file's name gives to what is in it.
fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The runbook that a file of tests is about: `NAME.test.yaml`, or `NAME.PART.test.yaml` where there are many.
pub fn tested(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.trim_end_matches(".test.yaml");
    name.split('.').next().unwrap_or(name).to_owned()
}

fn is_test(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".test.yaml"))
}

/// Finds what may be an authored file. A project may hold other trees, such as the homes of a stand-in, and nothing in them is
/// looked at where no entry of the project file leads there. No link is followed.
fn walk(root: &Path, project: &Project, files: &mut Vec<PathBuf>) -> Result<(), ProjectError> {
    let wanted = |folder: &Path| {
        let relative = folder.strip_prefix(root).unwrap_or(folder).to_string_lossy();
        let mut entries = project.runbooks.iter().chain(&project.alerts).chain(&project.environments);
        entries.any(|entry| reaches(&entry.value, &relative))
    };
    let mut folders = vec![(root.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        if depth > MAX_DEPTH {
            return Err(ProjectError::TooDeep { path: folder });
        }
        let entries = std::fs::read_dir(&folder).map_err(|error| ProjectError::file(&folder, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| ProjectError::file(&folder, error))?;
            let (name, path) = (entry.file_name(), entry.path());
            let kind = entry.file_type().map_err(|error| ProjectError::file(&path, error))?;
            if kind.is_dir() {
                if !IGNORED_FOLDERS.iter().any(|ignored| name == *ignored) && wanted(&path) {
                    folders.push((path, depth + 1));
                }
            } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "yaml") {
                files.push(path);
            }
        }
    }
    Ok(())
}
