//! Where things are: the project file, runbooks, environments, and the data directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use farrier_action::{ActionRegistry, Targets};
use farrier_exec::driver::World;
use farrier_model::spec::Catalog;
use farrier_runbook::environment::{Environment, Store as StorePlace, read_environment};
use farrier_runbook::project::{Project, matches, read_project};
use farrier_runbook::{Bundle, Compiled, Diagnostics, Source, compile};
use farrier_store::{Keep, Mode, OpenOptions, Retention, SqliteStore};

use crate::commands::Problem;
use crate::leftovers;

/// The name of the project file.
const PROJECT_FILE: &str = "farrier.yaml";
/// Where runs are kept when nobody says otherwise, from the project's folder.
const DATA_DIR: &str = ".farrier";
/// Folders that never hold authored files.
const IGNORED_FOLDERS: [&str; 4] = [".git", ".farrier", "target", "node_modules"];

/// A project on disk.
pub struct Workspace {
    /// The folder of the project file.
    pub root: PathBuf,
    project: Project,
    files: Vec<PathBuf>,
}

/// An environment with its place.
pub struct Site {
    /// What it says.
    pub environment: Environment,
    /// The folder of its file.
    pub folder: PathBuf,
}

impl Workspace {
    /// The project around `from`: in its folder or one above.
    pub fn find(from: &Path) -> Result<Workspace, Problem> {
        let start = from.canonicalize().map_err(|error| Problem::file(from, error))?;
        let root = start
            .ancestors()
            .find(|folder| folder.join(PROJECT_FILE).is_file())
            .ok_or_else(|| Problem::NoProject { from: start.clone() })?
            .to_path_buf();
        let path = root.join(PROJECT_FILE);
        let bytes = std::fs::read(&path).map_err(|error| Problem::file(&path, error))?;
        let mut diagnostics = Diagnostics::new();
        let file = diagnostics.add_file(shown(&path), &bytes);
        let project = read_project(file, &bytes, &mut diagnostics);
        let project = project.ok_or_else(|| Problem::Mistakes(Box::new(diagnostics)))?;
        let mut files = Vec::new();
        walk(&root, &mut files)?;
        files.sort();
        Ok(Workspace { root, project, files })
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
    pub fn compile(&self, catalog: &Catalog) -> Result<Compiled, Problem> {
        compile_files(&self.runbook_files(), catalog)
    }

    /// A runbook with all it can start. `name` may also be the path of a file.
    pub fn bundle(&self, name: &str, catalog: &Catalog) -> Result<Bundle, Problem> {
        let mut files = self.runbook_files();
        let mut name = name.to_owned();
        let given = Path::new(&name).to_path_buf();
        if given.extension().is_some_and(|extension| extension == "yaml") {
            let path = given.canonicalize().map_err(|error| Problem::file(&given, error))?;
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            files.retain(|file| file.file_stem().unwrap_or_default().to_string_lossy() != stem);
            files.push(path);
            name = stem;
        }
        if !files.iter().any(|file| file.file_stem().is_some_and(|stem| stem.to_string_lossy() == name)) {
            let known: Vec<String> = files
                .iter()
                .map(|file| file.file_stem().unwrap_or_default().to_string_lossy().into_owned())
                .collect();
            return Err(Problem::NoRunbook { name, known });
        }
        let compiled = compile_files(&files, catalog)?;
        compiled.bundle(&name).ok_or_else(|| Problem::Mistakes(Box::new(compiled.diagnostics)))
    }

    /// An environment by name.
    pub fn site(&self, name: &str, catalog: &Catalog) -> Result<Site, Problem> {
        let files = self.environment_files();
        let stem_is = |file: &&PathBuf| file.file_stem().is_some_and(|stem| stem.to_string_lossy() == name);
        let path = files.iter().find(stem_is).ok_or_else(|| Problem::NoEnvironment {
            name: name.to_owned(),
            known: files
                .iter()
                .filter_map(|f| f.file_stem().map(|s| s.to_string_lossy().into_owned()))
                .collect(),
        })?;
        let bytes = std::fs::read(path).map_err(|error| Problem::file(path, error))?;
        let mut diagnostics = Diagnostics::new();
        let file = diagnostics.add_file(shown(path), &bytes);
        let environment = read_environment(file, &bytes, catalog, &mut diagnostics);
        let environment = environment.ok_or_else(|| Problem::Mistakes(Box::new(diagnostics)))?;
        Ok(Site { environment, folder: path.parent().unwrap_or(&self.root).to_path_buf() })
    }

    /// Where runs are kept: the environment's word, then the project's, then `.farrier`.
    pub fn data_dir(&self, site: Option<&Site>) -> Result<PathBuf, Problem> {
        if let Some(dir) = std::env::var_os("FARRIER_DATA_DIR").filter(|dir| !dir.is_empty()) {
            return Ok(PathBuf::from(dir));
        }
        match site.and_then(|site| site.environment.store.as_ref().map(|store| (site, store))) {
            Some((site, StorePlace::Sqlite(path))) => return Ok(site.folder.join(path)),
            Some((site, StorePlace::Postgres(_))) => {
                return Err(Problem::NotYet(format!(
                    "environment `{}` keeps runs in PostgreSQL, and this version keeps them in SQLite only",
                    site.environment.name
                )));
            }
            None => {}
        }
        let dir = self.project.data_dir.as_ref().map_or(DATA_DIR, |dir| dir.as_str());
        Ok(self.root.join(dir))
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

    /// Opens the store. An owner first ends what a killed Farrier left running, so that no step meets its own former
    /// attempt at work.
    pub async fn store(&self, site: Option<&Site>, mode: Mode) -> Result<SqliteStore, Problem> {
        let dir = self.data_dir(site)?;
        let store = SqliteStore::open(&dir, OpenOptions { mode, ..OpenOptions::default() }).await?;
        if mode == Mode::Owner {
            leftovers::end(&store).await?;
        }
        Ok(store)
    }
}

impl Site {
    /// The targets of the environment, unconnected.
    pub fn world(&self) -> World {
        let targets = &self.environment.targets;
        let people = self.environment.people.iter().map(|(group, members)| {
            (group.as_str().into(), members.iter().map(|member| member.as_str().into()).collect())
        });
        World {
            environment: self.environment.name.as_str().into(),
            targets: Arc::new(bind(&self.folder, targets)),
            guards: self.environment.guards.clone(),
            approvals: self.environment.approvals.clone(),
            people: Arc::new(people.collect()),
        }
    }

    /// What each target of a bundle is, by alias; groups by their members. Without secrets.
    pub fn identities(
        &self,
        bundle: &Bundle,
        registry: &ActionRegistry,
    ) -> Result<BTreeMap<String, String>, Problem> {
        let targets = &self.environment.targets;
        let mut aliases: Vec<&str> = Vec::new();
        for alias in bundle.graphs.values().flat_map(|graph| graph.targets.keys()) {
            match targets.groups.get(&**alias) {
                Some(members) => aliases.extend(members.iter().map(String::as_str)),
                None => aliases.push(alias),
            }
        }
        let mut identities = BTreeMap::new();
        for binding in aliases.into_iter().filter_map(|alias| targets.get(alias)) {
            let identity =
                registry.identity(&binding.kind, &binding.config).map_err(|failure| Problem::Targets {
                    environment: self.environment.name.clone(),
                    problems: vec![format!("`{}`: {failure}", *binding.alias)],
                })?;
            identities.insert(binding.alias.value.clone(), identity);
        }
        Ok(identities)
    }

    /// Checks that the environment has what a runbook uses.
    pub fn check(&self, bundle: &Bundle, registry: &ActionRegistry) -> Result<(), Problem> {
        let targets = &self.environment.targets;
        let mut missing = BTreeMap::new();
        for graph in bundle.graphs.values() {
            for (alias, used) in &graph.targets {
                match targets.kind(alias) {
                    Some((kind, group)) if kind == &*used.kind && group == used.group => {}
                    Some((kind, group)) => {
                        let is = if group { format!("a group of `{kind}`") } else { format!("`{kind}`") };
                        let wants = if used.group {
                            format!("a group of `{}`", used.kind)
                        } else {
                            format!("`{}`", used.kind)
                        };
                        missing.insert(
                            alias.to_string(),
                            format!("`{alias}` is {is}, and `{}` needs {wants}", graph.name),
                        );
                    }
                    None => {
                        missing.insert(
                            alias.to_string(),
                            format!(
                                "`{alias}` (of kind `{}`), which `{}` uses, is missing",
                                used.kind, graph.name
                            ),
                        );
                    }
                }
            }
        }
        for binding in &targets.bindings {
            registry.identity(&binding.kind, &binding.config).map_err(|failure| Problem::Targets {
                environment: self.environment.name.clone(),
                problems: vec![format!("`{}`: {failure}", *binding.alias)],
            })?;
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(Problem::Targets {
            environment: self.environment.name.clone(),
            problems: missing.into_values().collect(),
        })
    }
}

/// The targets of an environment or a test, unconnected.
pub fn bind(folder: &Path, targets: &farrier_runbook::environment::TargetBindings) -> Targets {
    let bindings = targets
        .bindings
        .iter()
        .map(|binding| farrier_action::Binding {
            alias: binding.alias.to_string(),
            kind: binding.kind.clone(),
            config: binding.config.clone(),
        })
        .collect();
    Targets::new(folder.to_path_buf(), bindings, targets.groups.clone())
}

/// Compiles files, whether or not they belong to a project.
pub fn compile_files(files: &[PathBuf], catalog: &Catalog) -> Result<Compiled, Problem> {
    let mut sources = Vec::with_capacity(files.len());
    let mut unreadable = Vec::new();
    for file in files {
        let bytes = std::fs::read(file).map_err(|error| Problem::file(file, error))?;
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

fn is_test(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".test.yaml"))
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Problem> {
    let entries = std::fs::read_dir(folder).map_err(|error| Problem::file(folder, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| Problem::file(folder, error))?;
        let name = entry.file_name();
        let kind = entry.file_type().map_err(|error| Problem::file(&entry.path(), error))?;
        if kind.is_dir() {
            if !IGNORED_FOLDERS.iter().any(|ignored| name == *ignored) {
                walk(&entry.path(), files)?;
            }
        } else if kind.is_file() && entry.path().extension().is_some_and(|extension| extension == "yaml") {
            files.push(entry.path());
        }
    }
    Ok(())
}
