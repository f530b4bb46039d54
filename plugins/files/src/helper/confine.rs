//! What a helper gives up before it reads its request: everything outside its folders, and all that it does not need.
//!
//! Its actions work beneath open folders and trust no name, so this is the second wall: a defect in them reaches no other
//! file, starts no program and calls nobody. Where the kernel has no Landlock, or an old one, the first wall is the only one
//! or the second is lower, and the helper says so on standard error.

use std::collections::BTreeMap;

use farrier_model::{Failure, FailureKind};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use rustix::process::{Resource, Rlimit, setrlimit};

/// How much of it the kernel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confined {
    Wholly,
    Partly,
    Not,
}

/// Confines the calling thread, and all that it starts from then on, to the folders of `roots`.
pub(crate) fn confine(roots: &BTreeMap<String, String>) -> Result<Confined, Failure> {
    let refused = |what: &str, error: &dyn std::fmt::Display| {
        Failure::new(FailureKind::Refused, format!("cannot confine the helper: {what}: {error}"))
    };
    // What it holds in memory belongs to other people.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|error| refused("core files", &error))?;
    rustix::thread::set_no_new_privs(true).map_err(|error| refused("no new privileges", &error))?;
    let status = landlock(roots).map_err(|error| refused("Landlock", &error))?;
    Ok(match status {
        RulesetStatus::FullyEnforced => Confined::Wholly,
        RulesetStatus::PartiallyEnforced => Confined::Partly,
        RulesetStatus::NotEnforced => Confined::Not,
    })
}

fn landlock(roots: &BTreeMap<String, String>) -> Result<RulesetStatus, RulesetError> {
    // Of the newest kernels, what this one has: that is how the crate asks by default.
    let newest = ABI::V6;
    let all = AccessFs::from_all(newest);
    // No program is started from anywhere, and nothing but files, folders, links and pipes is ever made.
    let needed = all & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
    let mut rules = Ruleset::default()
        .handle_access(all)?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?
        .create()?;
    for folder in roots.values() {
        // One that is not there is told of when it is asked for.
        if let Ok(folder) = PathFd::new(folder) {
            rules = rules.add_rule(PathBeneath::new(folder, needed))?;
        }
    }
    Ok(rules.restrict_self()?.ruleset)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn nothing_outside_of_the_folders_is_reached() {
        let inside = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        for folder in [&inside, &outside] {
            fs::write(folder.path().join("file"), "content").unwrap();
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let roots = [("homes".to_owned(), inside.path().display().to_string())].into();
        // Of this thread alone.
        let found = std::thread::scope(|scope| {
            let confined = scope.spawn(|| {
                let confined = confine(&roots).unwrap();
                let within = |folder: &tempfile::TempDir| {
                    let read = fs::read(folder.path().join("file")).map(drop);
                    let write = fs::write(folder.path().join("new"), "new");
                    let moved = fs::rename(folder.path().join("file"), folder.path().join("moved"));
                    [read, write, moved].map(|result| result.map_err(|error| error.kind()))
                };
                let inner = within(&inside);
                let outer = within(&outside);
                let program = std::process::Command::new("/bin/true").status().map(drop);
                let called = std::net::TcpStream::connect(listener.local_addr().unwrap()).map(drop);
                let others = [program, called].map(|result| result.map_err(|error| error.kind()));
                (confined, inner, outer, others)
            });
            confined.join().unwrap()
        });
        let (confined, inner, outer, others) = found;
        assert_eq!(inner, [Ok(()); 3]);
        let denied = Err(ErrorKind::PermissionDenied);
        match confined {
            Confined::Wholly => {
                assert_eq!(outer, [denied; 3]);
                assert_eq!(others, [denied; 2]);
            }
            // Files are part of every Landlock; the network is not.
            Confined::Partly => assert_eq!(outer, [denied; 3]),
            Confined::Not => {
                assert_eq!(outer, [Ok(()); 3], "the kernel has no Landlock, and yet something is denied");
            }
        }
    }
}
