//! Control groups: a program and all that it starts, as one thing that is ended at once and that nothing gets out of.
//!
//! Where the kernel has a second hierarchy (cgroup v2) and this process may make groups beneath its own, as the superuser and
//! as a service with `Delegate=yes` may, a group is made for one process, the *keeper*. Its name says whose it is, so a group whose
//! keeper was killed is known as such by whoever comes next ([`sweep`]).
//!
//! Nobody has to have this: who gets no group ends processes one by one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// What the names of our groups begin with.
const PREFIX: &str = "farrier-program-";
/// How long killed processes may take to be gone. One that hangs in the kernel takes longer, and its group stays.
const PATIENCE: Duration = Duration::from_secs(5);

/// A group of this process's own making.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Group {
    /// Makes a group beneath that of this process, which is its keeper; nothing where that cannot be.
    pub fn make() -> Option<Group> {
        let keeper = std::process::id();
        let path = own()?.join(format!("{PREFIX}{keeper}-{}", started(keeper)?));
        fs::create_dir(&path).ok()?;
        let group = Group(path);
        // A kernel before 5.14 cannot end it as one.
        if group.0.join("cgroup.kill").exists() {
            return Some(group);
        }
        let _ = fs::remove_dir(&group.0);
        None
    }

    /// Where it is, for [`enter`].
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Ends all that is in it, at once.
    pub fn kill(&self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
    }

    /// Ends all that is in it and removes it; says whether it is gone. Children of this process are gone when it has waited
    /// for them.
    pub fn remove(self) -> bool {
        remove(&self.0)
    }
}

/// Puts this process, and all that it starts from now on, into a group.
///
/// # Errors
/// The kernel refuses.
pub fn enter(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), "0")
}

/// Ends what is left in groups whose keepers are gone, and removes these. Says how many processes were still in them.
pub fn sweep() -> usize {
    let Some(folders) = own().and_then(|own| fs::read_dir(own).ok()) else { return 0 };
    let mut ended = 0;
    for folder in folders.flatten() {
        let name = folder.file_name();
        let keeper = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split_once('-'));
        let Some((keeper, since)) = keeper else { continue };
        let is_there = keeper.parse().ok().and_then(started).is_some_and(|started| started == since);
        if !is_there {
            let left = fs::read_to_string(folder.path().join("cgroup.procs")).unwrap_or_default();
            ended += left.lines().count();
            remove(&folder.path());
        }
    }
    ended
}

fn remove(group: &Path) -> bool {
    let begun = Instant::now();
    loop {
        let _ = fs::write(group.join("cgroup.kill"), "1");
        match fs::remove_dir(group) {
            Ok(()) => return true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
            Err(_) if begun.elapsed() > PATIENCE => return false,
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// When a process was started, in the kernel's own count, as text; with its number this names it for good.
fn started(process: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // A name may have blanks and brackets in it. Of what follows it, it is the twentieth.
    let rest = stat.rsplit_once(") ")?.1;
    if rest.starts_with(['Z', 'X']) {
        return None;
    }
    rest.split(' ').nth(19).map(str::to_owned)
}

/// The group of this process.
fn own() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    own_of(&mounts, &groups)
}

fn own_of(mounts: &str, groups: &str) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (mount, of) = line.split_once(" - ")?;
        let mut words = mount.split(' ').skip(3);
        let (root, at) = (words.next()?, words.next()?);
        // Only a part of the hierarchy may be mounted, as in containers.
        let within = Path::new(group).strip_prefix(root).ok()?;
        of.starts_with("cgroup2 ").then(|| Path::new(at).join(within))
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_own_group_is_found_wherever_it_is_mounted() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let groups = "4:memory:/elsewhere\n0::/system.slice/farrier.service\n";
        let found = own_of(hybrid, groups).unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup/unified/system.slice/farrier.service"));
        let container = "41 31 0:38 /pod/one /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        assert_eq!(own_of(container, "0::/pod/one/service\n").unwrap(), Path::new("/sys/fs/cgroup/service"));
        assert_eq!(own_of(container, "0::/other\n"), None);
        assert_eq!(own_of("", groups), None);
        assert_eq!(own_of(hybrid, "4:memory:/\n"), None);
    }

    #[test]
    fn a_group_ends_as_one_and_is_gone() {
        let Some(group) = Group::make() else {
            eprintln!("NOT TESTED, since this process may make no groups (cgroup v2)");
            return;
        };
        let path = group.path().to_owned();
        let script = format!("(echo 0 > {}/cgroup.procs && exec setsid sleep 600) & wait", path.display());
        let mut child = Command::new("sh").args(["-c", &script]).stdout(Stdio::null()).spawn().unwrap();
        // The shell's job enters by itself.
        let begun = Instant::now();
        while fs::read_to_string(path.join("cgroup.procs")).unwrap().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody has entered");
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(sweep(), 0, "its keeper is there");
        assert!(path.exists());
        assert!(group.remove() && !path.exists());
        child.wait().unwrap();
    }
}
