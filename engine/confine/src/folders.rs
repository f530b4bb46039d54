//! Landlock: which files a process may read and change, and that it calls nobody.

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

/// What is left to a process of files and of the network.
#[derive(Debug, Default)]
pub struct Left<'a> {
    /// Files, and folders with all that is in them, that may be read and executed.
    pub reads: Vec<&'a Path>,
    /// The same, that may be read and changed, and not executed. Nothing but files, folders, links and pipes is made there.
    pub writes: Vec<&'a Path>,
    /// Whether it may reach others by their addresses.
    pub network: bool,
}

impl Left<'_> {
    /// Leaves this and nothing else. No other process is signalled or looked into.
    ///
    /// # Errors
    /// A kernel that can confine refuses to.
    pub fn alone(&self) -> Result<Confined, Failure> {
        let status = self.restrict().map_err(|error| refused("Landlock", &error))?;
        Ok(match status {
            RulesetStatus::FullyEnforced => Confined::Wholly,
            RulesetStatus::PartiallyEnforced => Confined::Partly,
            RulesetStatus::NotEnforced => Confined::Not,
        })
    }

    fn restrict(&self) -> Result<RulesetStatus, RulesetError> {
        // Of the newest kernels, what this one has: that is how the crate asks by default.
        let newest = ABI::V6;
        let all = AccessFs::from_all(newest);
        let mut rules = Ruleset::default().handle_access(all)?.scope(Scope::from_all(newest))?;
        if !self.network {
            rules = rules.handle_access(AccessNet::from_all(newest))?;
        }
        let mut rules = rules.create()?;
        let reads = AccessFs::from_read(newest);
        let writes =
            all & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
        let left = self.reads.iter().map(|path| (path, reads));
        for (path, access) in left.chain(self.writes.iter().map(|path| (path, writes))) {
            // One that is not there is told of when it is asked for.
            if let Ok(open) = PathFd::new(path) {
                // What is for folders would make the rule of a file a rule that is kept in part.
                let access = if path.is_dir() { access } else { access & AccessFs::from_file(newest) };
                rules = rules.add_rule(PathBeneath::new(open, access))?;
            }
        }
        Ok(rules.restrict_self()?.ruleset)
    }
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
                let confined = Left { writes: vec![inside.path()], ..Left::default() }.alone().unwrap();
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
