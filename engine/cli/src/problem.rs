//! [`Problem`]: what can keep a command from doing its work, with its exit code and what to do next.

use std::path::{Path, PathBuf};

use farrier_exec::{DriverError, Refusal};
use farrier_project::ProjectError;
use farrier_runbook::Diagnostics;
use farrier_server::{ErrorCode, ErrorDetail};
use farrier_store::StoreError;

use crate::exit::Exit;

/// What can keep a command from doing its work.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The project, or something in it.
    #[error(transparent)]
    Project(ProjectError),
    /// Inputs are missing or wrong.
    #[error("inputs of `{runbook}`:{}", problems.iter().map(|p| format!("\n  {p}")).collect::<String>())]
    Inputs {
        /// The runbook.
        runbook: String,
        /// One sentence each.
        problems: Vec<String>,
        /// Those there are.
        known: Vec<String>,
    },
    /// Mistakes in authored files, with their places.
    #[error("{}", .0.render(crate::render::style::Style::stderr().has_colour()))]
    Mistakes(Box<Diagnostics>),
    /// The command line says something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// A file that cannot be written.
    #[error("cannot write {}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that is no saved plan, or not as it was saved.
    #[error("`{file}` cannot be applied: {reason}")]
    BadPlan {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A line of an export that cannot be imported.
    #[error("`{file}` line {line}: {reason}")]
    BadLine {
        /// The file.
        file: String,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A saved plan that is good no more.
    #[error("the plan cannot be applied: {reason}")]
    PlanGone {
        /// Why.
        reason: String,
    },
    /// The world, the runbook or the environment is not as a saved plan saw it.
    #[error("the plan is not true any more; nothing was changed:{}", differences.iter().map(|d| format!("\n  {d}")).collect::<String>())]
    Drift {
        /// One sentence each.
        differences: Vec<String>,
    },
    /// The run does not accept what was asked of it.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The driver.
    #[error(transparent)]
    Driver(DriverError),
    /// A service refused it.
    #[error("{}", .0.message)]
    Service(Box<ErrorDetail>),
    /// A service that was to be asked is not there, or not any more.
    #[error("the service cannot be reached")]
    Gone(#[source] anyhow::Error),
    /// No run fits.
    #[error("no run's id begins with `{0}`")]
    NoRun(String),
    /// Several runs fit.
    #[error("several runs' ids begin with `{0}`; give more of it")]
    AmbiguousRun(String),
    /// Anything else is a defect, or the machine's trouble.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
    /// Work with files that this command does itself.
    #[error("{0}")]
    Failed(#[from] farrier_model::Failure),
}

impl From<ProjectError> for Problem {
    fn from(error: ProjectError) -> Problem {
        match error {
            ProjectError::Mistakes(diagnostics) => Problem::Mistakes(diagnostics),
            other => Problem::Project(other),
        }
    }
}

impl From<DriverError> for Problem {
    fn from(error: DriverError) -> Problem {
        match error {
            DriverError::Store(error @ StoreError::PlanUsed { .. }) => {
                Problem::PlanGone { reason: error.to_string() }
            }
            DriverError::Store(error) => Problem::Store(error),
            other => Problem::Driver(other),
        }
    }
}

impl Problem {
    /// A file that cannot be read.
    pub fn file(path: &Path, source: std::io::Error) -> Problem {
        Problem::Project(ProjectError::file(path, source))
    }

    /// The exit code, exhaustively.
    pub fn exit(&self) -> Exit {
        match self {
            Problem::Project(error) => match error {
                ProjectError::NoProject { .. }
                | ProjectError::NoRunbook { .. }
                | ProjectError::NoEnvironment { .. }
                | ProjectError::Apart { .. } => Exit::Usage,
                ProjectError::Targets { .. } | ProjectError::Mistakes(_) | ProjectError::TooDeep { .. } => {
                    Exit::Invalid
                }
                ProjectError::NotYet(_) | ProjectError::File { .. } => Exit::Error,
            },
            Problem::Inputs { .. }
            | Problem::Usage(_)
            | Problem::NoRun(_)
            | Problem::AmbiguousRun(_)
            | Problem::Refused(Refusal::Now(_)) => Exit::Usage,
            Problem::Mistakes(_) | Problem::BadPlan { .. } | Problem::BadLine { .. } => Exit::Invalid,
            Problem::Unwritable { .. } | Problem::Other(_) | Problem::Failed(_) => Exit::Error,
            Problem::Gone(_) => Exit::Unreachable,
            Problem::Service(error) => match error.code {
                ErrorCode::NotFound
                | ErrorCode::Malformed
                | ErrorCode::InvalidInputs
                | ErrorCode::Refused => Exit::Usage,
                ErrorCode::Unauthenticated
                | ErrorCode::NotAllowed
                | ErrorCode::CrossSite
                | ErrorCode::NotYours => Exit::NotAllowed,
                ErrorCode::MissingTargets => Exit::Invalid,
                ErrorCode::KeyTaken => Exit::LockBusy,
                ErrorCode::Owned => Exit::StoreBusy,
                ErrorCode::Drift => Exit::Drift,
                ErrorCode::PlanGone => Exit::PlanGone,
                ErrorCode::TooMany
                | ErrorCode::TooManyAttempts
                | ErrorCode::Unavailable
                | ErrorCode::TooSlow => Exit::Unreachable,
                ErrorCode::WrongMethod
                | ErrorCode::TooLarge
                | ErrorCode::UnsupportedType
                | ErrorCode::Internal => Exit::Error,
            },
            Problem::PlanGone { .. } | Problem::Store(StoreError::PlanUsed { .. }) => Exit::PlanGone,
            Problem::Drift { .. } => Exit::Drift,
            Problem::Refused(Refusal::Person(_)) => Exit::NotAllowed,
            Problem::Store(StoreError::Busy { .. } | StoreError::Owned { .. }) => Exit::StoreBusy,
            Problem::Store(StoreError::KeyTaken { .. }) => Exit::LockBusy,
            Problem::Store(StoreError::Fatal { .. } | StoreError::Full { .. }) => Exit::StoreFailed,
            Problem::Store(_) => Exit::Store,
            Problem::Driver(error) => match error {
                DriverError::NoRun(_) | DriverError::Inputs { .. } => Exit::Usage,
                DriverError::LetGo(_) => Exit::Waiting,
                DriverError::Driven(_) => Exit::StoreBusy,
                DriverError::Store(_) | DriverError::Replay { .. } | DriverError::Fenced(_) => Exit::Store,
            },
        }
    }

    /// What to type next.
    pub fn help(&self) -> Option<String> {
        match self {
            Problem::Project(error) => error.help(),
            Problem::Service(error) => error.next.clone(),
            Problem::Failed(failure) => failure.help.clone(),
            Problem::Gone(_) => Some("look whether `farrier serve` runs there".into()),
            Problem::Inputs { known, .. } => Some(if known.is_empty() {
                "leave `-i` out: the runbook has no inputs".into()
            } else {
                format!("give them with `-i KEY=VALUE`; there are: {}", known.join(", "))
            }),
            Problem::Mistakes(_) => Some("`farrier explain CODE` tells more about a code".into()),
            Problem::Store(StoreError::Busy { .. }) => {
                Some("wait for that process to end; `farrier runs` and `farrier show` work meanwhile".into())
            }
            Problem::Store(StoreError::Owned { .. }) => {
                Some("wait until it lets go of the run, then try again".into())
            }
            Problem::Store(StoreError::Full { .. }) => Some(
                "free room on that disk; runs under way go on by themselves, others can be started again"
                    .into(),
            ),
            Problem::NoRun(_) => Some("`farrier runs` lists them".into()),
            Problem::BadPlan { .. } => {
                Some("make a new one with `farrier plan … --out FILE`; only its own files are applied".into())
            }
            Problem::BadLine { .. } => {
                Some("the lines before it are imported; export the run again where it came from".into())
            }
            Problem::PlanGone { .. } | Problem::Drift { .. } => {
                Some("read what would happen now: `farrier apply FILE --replan` makes a new plan".into())
            }
            Problem::Store(StoreError::KeyTaken { run, .. }) => {
                Some(format!("farrier show {}", &run.to_string()[..13]))
            }
            _ => None,
        }
    }
}
