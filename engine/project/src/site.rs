//! [`Site`]: an environment with its place on disk, and what its targets are there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use farrier_action::{ActionRegistry, Targets};
use farrier_exec::driver::World;
use farrier_runbook::Bundle;
use farrier_runbook::environment::{Environment, TargetBindings};

use crate::ProjectError;

/// An environment with its place.
#[derive(Debug, Clone)]
pub struct Site {
    /// What it says.
    pub environment: Environment,
    /// The folder of its file.
    pub folder: PathBuf,
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
    ) -> Result<BTreeMap<String, String>, ProjectError> {
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
            let identity = registry.identity(&binding.kind, &binding.config).map_err(|failure| {
                ProjectError::Targets {
                    environment: self.environment.name.clone(),
                    problems: vec![format!("`{}`: {failure}", *binding.alias)],
                }
            })?;
            identities.insert(binding.alias.value.clone(), identity);
        }
        Ok(identities)
    }

    /// Checks that the environment has what a runbook uses.
    pub fn check(&self, bundle: &Bundle, registry: &ActionRegistry) -> Result<(), ProjectError> {
        let targets = &self.environment.targets;
        let mut missing = BTreeMap::new();
        for graph in bundle.graphs.values() {
            for (alias, used) in &graph.targets {
                match targets.kind(alias) {
                    there if used.is_met_by(there) => {}
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
            registry.identity(&binding.kind, &binding.config).map_err(|failure| ProjectError::Targets {
                environment: self.environment.name.clone(),
                problems: vec![format!("`{}`: {failure}", *binding.alias)],
            })?;
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(ProjectError::Targets {
            environment: self.environment.name.clone(),
            problems: missing.into_values().collect(),
        })
    }
}

/// The targets of an environment or a test, unconnected.
pub fn bind(folder: &Path, targets: &TargetBindings) -> Targets {
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
