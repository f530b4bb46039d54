//! Landlock: which folders a process may work in, and that it calls nobody.

use std::path::Path;

use farrier_model::Failure;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

use crate::refused;

/// How much of it the kernel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confined {
    /// All.
    Wholly,
    /// Files, and not all else: an old Landlock.
    Partly,
    /// Nothing: there is no Landlock.
    Not,
}

/// Leaves nothing but the folders, in which everything may be read and changed. No program is started from there, and nothing
/// but files, folders, links and pipes is made. No other process is signalled or reached, and nobody on the network.
///
/// # Errors
/// A kernel that can confine refuses to.
pub fn only(folders: &[&Path]) -> Result<Confined, Failure> {
    let status = restrict(folders).map_err(|error| refused("Landlock", &error))?;
    Ok(match status {
        RulesetStatus::FullyEnforced => Confined::Wholly,
        RulesetStatus::PartiallyEnforced => Confined::Partly,
        RulesetStatus::NotEnforced => Confined::Not,
    })
}

fn restrict(folders: &[&Path]) -> Result<RulesetStatus, RulesetError> {
    // Of the newest kernels, what this one has: that is how the crate asks by default.
    let newest = ABI::V6;
    let all = AccessFs::from_all(newest);
    let needed = all & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
    let mut rules = Ruleset::default()
        .handle_access(all)?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?
        .create()?;
    for folder in folders {
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

    /// Set where the kernel is known to have no Landlock, so that its absence is no surprise.
    const NO_LANDLOCK: &str = "FARRIER_TEST_NO_LANDLOCK";

    #[test]
    fn nothing_outside_of_the_folders_is_reached() {
        let inside = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        for folder in [&inside, &outside] {
            fs::write(folder.path().join("file"), "content").unwrap();
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        // Of this thread alone.
        let found = std::thread::scope(|scope| {
            let confined = scope.spawn(|| {
                crate::privileges().unwrap();
                let confined = only(&[inside.path()]).unwrap();
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
                assert!(
                    std::env::var_os(NO_LANDLOCK).is_some(),
                    "this kernel has no Landlock, so nothing was tested; set {NO_LANDLOCK}=1 where that is known"
                );
            }
        }
    }
}
