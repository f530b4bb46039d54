//! [`Set`]: everything that is authored in a project, compiled and checked, at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use farrier_action::ActionRegistry;
use farrier_model::{Digest, Text};
use farrier_runbook::{Bundle, Diagnostics};

use crate::{ProjectError, Site, Workspace};

/// A whole project without a mistake. Never changed: what comes later is another set with a greater number.
#[derive(Debug, Clone)]
pub struct Set {
    /// Counts the sets of one process, from 1.
    pub number: u64,
    /// Equal texts have equal digests.
    pub digest: Digest,
    /// The files it was made from.
    pub workspace: Workspace,
    /// Every runbook with all it can start, by name.
    pub bundles: BTreeMap<Text, Arc<Bundle>>,
    /// The folder of each runbook below the project, such as `runbooks/lifecycle`, by name.
    pub folders: BTreeMap<Text, String>,
    /// Every environment, by name.
    pub sites: BTreeMap<Text, Arc<Site>>,
    /// The environments in which things may start by themselves or by request.
    pub served: BTreeSet<Text>,
    /// Where the runs of the served environments are kept.
    pub data_dir: PathBuf,
}

impl Set {
    /// Reads the project around `root` and all of its files. `served` names environments; when it names none, all are
    /// served that keep their runs where the project does.
    ///
    /// # Errors
    /// Every mistake of every file at once, an environment that is not there, or environments whose runs are kept in
    /// different places.
    pub fn load(
        root: &Path,
        registry: &ActionRegistry,
        served: &[String],
        number: u64,
    ) -> Result<Set, ProjectError> {
        let workspace = Workspace::find(root)?;
        let catalog = registry.catalog();
        let compiled = workspace.compile(catalog)?;
        let mut parts: Vec<String> = vec![workspace.digest().to_string()];
        let mut mistakes = Diagnostics::new();
        let mut sites = BTreeMap::new();
        for path in workspace.environment_files() {
            let mut found = Diagnostics::new();
            let (site, digest) = workspace.read_site(&path, catalog, &mut found)?;
            parts.push(digest.to_string());
            mistakes.append(found);
            if let Some(site) = site {
                sites.insert(Text::from(site.environment.name.as_str()), Arc::new(site));
            }
        }
        mistakes.append(compiled.diagnostics.clone());
        if mistakes.has_errors() {
            return Err(ProjectError::Mistakes(Box::new(mistakes)));
        }
        let (served, data_dir) = serve(&workspace, &sites, served)?;
        parts.extend(served.iter().map(ToString::to_string));
        let mut bundles = BTreeMap::new();
        for name in compiled.graphs.keys() {
            if let Some(bundle) = compiled.bundle(name) {
                parts.push(format!("{name} {}", bundle.digest));
                bundles.insert(name.clone(), Arc::new(bundle));
            }
        }
        let folders = folders(&workspace);
        let digest = Digest::of_parts(parts.iter().map(String::as_str));
        Ok(Set { number, digest, workspace, bundles, folders, sites, served, data_dir })
    }

    /// A runbook with all it can start.
    pub fn bundle(&self, name: &str) -> Option<&Arc<Bundle>> {
        self.bundles.get(name)
    }

    /// An environment, served or not.
    pub fn site(&self, name: &str) -> Option<&Arc<Site>> {
        self.sites.get(name)
    }

    /// The environments that are served.
    pub fn served(&self) -> impl Iterator<Item = &Arc<Site>> {
        self.served.iter().filter_map(|name| self.sites.get(name))
    }
}

/// Which environments are served, and where their runs are.
fn serve(
    workspace: &Workspace,
    sites: &BTreeMap<Text, Arc<Site>>,
    named: &[String],
) -> Result<(BTreeSet<Text>, PathBuf), ProjectError> {
    if named.is_empty() {
        let dir = workspace.data_dir(None)?;
        let is_here = |site: &Site| workspace.data_dir(Some(site)).is_ok_and(|other| other == dir);
        let served = sites.iter().filter(|(_, site)| is_here(site)).map(|(name, _)| name.clone());
        return Ok((served.collect(), dir));
    }
    let mut places: Vec<(String, PathBuf)> = Vec::new();
    for name in named {
        let site = sites.get(name.as_str()).ok_or_else(|| ProjectError::NoEnvironment {
            name: name.clone(),
            known: sites.keys().map(ToString::to_string).collect(),
        })?;
        places.push((name.clone(), workspace.data_dir(Some(site))?));
    }
    let dir = places[0].1.clone();
    if places.iter().any(|(_, other)| *other != dir) {
        return Err(ProjectError::Apart { places });
    }
    Ok((places.iter().map(|(name, _)| Text::from(name.as_str())).collect(), dir))
}

fn folders(workspace: &Workspace) -> BTreeMap<Text, String> {
    let folder = |path: &PathBuf| {
        let name = path.file_stem()?.to_string_lossy().into_owned();
        let folder = path.parent()?.strip_prefix(&workspace.root).ok()?;
        Some((Text::from(name), folder.to_string_lossy().into_owned()))
    };
    workspace.runbook_files().iter().filter_map(folder).collect()
}
