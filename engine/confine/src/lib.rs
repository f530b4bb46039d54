//! What a process gives up before it works with what others control.
//!
//! Three walls, each of the calling thread and of all that it starts from then on, and none to be taken down again:
//! [`folders`] leaves it some files and no network (Landlock), [`calls`] refuses system calls (seccomp), and
//! [`capabilities`] takes a superuser's powers away but for a few. [`privileges`] comes before: no program that it starts may
//! have more than it.
//!
//! [`group`] is no wall of this process but one around another: a program and all that it starts, to be ended as one.
//!
//! **Rule:** nothing here knows of runs, actions or targets. A kernel that cannot do something says so; who calls decides what
//! that means.

pub mod calls;
pub mod capabilities;
pub mod folders;
pub mod group;

use farrier_model::{Failure, FailureKind};
use rustix::process::{Resource, Rlimit, setrlimit};

/// No more privileges, by whatever program, and no core files, which would hold what others keep secret.
///
/// # Errors
/// The kernel refuses.
pub fn privileges() -> Result<(), Failure> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|error| refused("core files", &error))?;
    rustix::thread::set_no_new_privs(true).map_err(|error| refused("no new privileges", &error))
}

fn refused(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Refused, format!("cannot confine this process: {what}: {error}"))
}
