//! [`ProjectError`]: what can be wrong with a project.

use std::path::{Path, PathBuf};

use farrier_runbook::{Diagnostics, nearest};

/// Why a project, or a part of it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// No project file.
    #[error("there is no `farrier.yaml` in {} or above", from.display())]
    NoProject {
        /// Where the search began.
        from: PathBuf,
    },
    /// No such runbook.
    #[error("there is no runbook `{name}`")]
    NoRunbook {
        /// As asked for.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// No such environment.
    #[error("there is no environment `{name}`")]
    NoEnvironment {
        /// As asked for.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// The environment does not have what a runbook uses.
    #[error("environment `{environment}`: {}", problems.join("; "))]
    Targets {
        /// The environment.
        environment: String,
        /// One sentence each.
        problems: Vec<String>,
    },
    /// Environments that are to be served together keep their runs in different places.
    #[error("environments {} keep their runs in different places", places.iter().map(|(name, dir)| format!("`{name}` ({})", dir.display())).collect::<Vec<_>>().join(", "))]
    Apart {
        /// Each with its data directory.
        places: Vec<(String, PathBuf)>,
    },
    /// Mistakes in authored files, with their places.
    #[error("{}", .0.render(false))]
    Mistakes(Box<Diagnostics>),
    /// A feature of a later version.
    #[error("{0}")]
    NotYet(String),
    /// Folders in folders without end.
    #[error("{} lies more than 64 folders deep", path.display())]
    TooDeep {
        /// The first folder that does.
        path: PathBuf,
    },
    /// A file.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl ProjectError {
    /// A file that cannot be read.
    pub fn file(path: &Path, source: std::io::Error) -> ProjectError {
        ProjectError::File { path: path.to_path_buf(), source }
    }

    /// What to do next.
    pub fn help(&self) -> Option<String> {
        match self {
            ProjectError::NoProject { .. } => Some(
                "create one with `runbooks:` and `environments:`, or name the project's folder with `-C`"
                    .into(),
            ),
            ProjectError::NoRunbook { name, known } => Some(match near(name, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None if known.is_empty() => {
                    "the project has no runbook yet; see `runbooks:` in farrier.yaml".into()
                }
                None => format!("there are: {}", known.join(", ")),
            }),
            ProjectError::NoEnvironment { name, known } => Some(match near(name, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None if known.is_empty() => {
                    "the project has no environment yet; see `environments:` in farrier.yaml".into()
                }
                None => format!("there are: {}", known.join(", ")),
            }),
            ProjectError::Targets { .. } => {
                Some("bind what is missing under `targets:` in the environment file".into())
            }
            ProjectError::Apart { .. } => {
                Some("serve each of them with a process of its own, or give them the same `store:`".into())
            }
            ProjectError::Mistakes(_) => Some("`farrier explain CODE` tells more about a code".into()),
            ProjectError::TooDeep { .. } => Some(
                "it lies below a folder that farrier.yaml names, for `runbooks` as a rule: move it elsewhere"
                    .into(),
            ),
            ProjectError::NotYet(_) | ProjectError::File { .. } => None,
        }
    }
}

fn near<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    nearest(name, known.iter().map(String::as_str))
}
