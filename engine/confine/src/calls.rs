//! seccomp: system calls that a process has no use for, and whose refusal it survives.

use std::collections::BTreeMap;

use farrier_model::Failure;
use seccompiler::{SeccompAction, SeccompFilter, SeccompRule, apply_filter};

use crate::refused;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// No sockets: neither the network nor the services of this machine are reached, Farrier's own among them.
///
/// # Errors
/// The kernel has no seccomp, or refuses.
pub fn no_sockets() -> Result<(), Failure> {
    let refuse = [NEVER_FILTERED, &[libc::SYS_socket]].concat();
    apply(whole(&refuse)).map_err(|error| refused("no sockets", &*error))
}

/// A program's own work: no look into other processes, no mounts and namespaces, no change of the kernel or the clock; and
/// without `sockets` none of these.
///
/// # Errors
/// The kernel has no seccomp, or refuses.
pub fn own_work(sockets: bool) -> Result<(), Failure> {
    let socket: &[i64] = if sockets { &[] } else { &[libc::SYS_socket] };
    apply(whole(&[NEVER_FILTERED, OTHERS, MACHINE, socket].concat()))
        .map_err(|error| refused("system calls", &*error))
}

/// Open files only: no mode, owner, time or attribute of a file by its name, no socket, no other program, no look into other
/// processes, no mounts and namespaces, no change of the kernel or the clock.
///
/// # Errors
/// The kernel has no seccomp, or refuses.
pub fn only_files() -> Result<(), Failure> {
    let refuse = [NEVER_FILTERED, PROGRAMS, NETWORK, OTHERS, MACHINE, BY_NAME, BY_NAME_OF_OLD].concat();
    apply(whole(&refuse)).map_err(|error| refused("system calls", &*error))
}

/// Its operations are not system calls, so no filter would see them.
const NEVER_FILTERED: &[i64] = &[libc::SYS_io_uring_setup];
const PROGRAMS: &[i64] = &[libc::SYS_execve, libc::SYS_execveat];
/// Landlock does not ask about these: with a superuser's powers over files they would reach every file of the machine. The same is
/// done to open files, and Landlock does ask when they are opened.
const BY_NAME: &[i64] = &[
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    SETXATTRAT,
    REMOVEXATTRAT,
    libc::SYS_utimensat,
    FILE_SETATTR,
];
/// Of kernels newer than the library; from number 424 on all architectures have the same.
const FCHMODAT2: i64 = 452;
const SETXATTRAT: i64 = 463;
const REMOVEXATTRAT: i64 = 466;
const FILE_SETATTR: i64 = 469;
/// What only architectures of long ago have.
#[cfg(target_arch = "x86_64")]
const BY_NAME_OF_OLD: &[i64] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
];
#[cfg(not(target_arch = "x86_64"))]
const BY_NAME_OF_OLD: &[i64] = &[];
/// A pair of sockets that are connected with each other reaches nobody, and the runtime has one.
const NETWORK: &[i64] = &[
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
];
const OTHERS: &[i64] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_perf_event_open,
    libc::SYS_fanotify_init,
];
const MACHINE: &[i64] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    // Opens files by number, past every folder.
    libc::SYS_open_by_handle_at,
    libc::SYS_bpf,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_userfaultfd,
    libc::SYS_personality,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
];

/// Whatever the arguments are.
fn whole(calls: &[i64]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

fn apply(rules: Rules) -> Result<(), Box<dyn std::error::Error>> {
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, std::env::consts::ARCH.try_into()?)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    Ok(apply_filter(&program)?)
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Write as _};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// What a thread of its own, which alone is confined, gets.
    fn confined<T: Send>(confine: fn() -> Result<(), Failure>, tried: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                crate::privileges().unwrap();
                confine().unwrap();
                tried()
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn files_alone_are_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let named = folder.path().join("named");
        std::fs::write(&named, "someone else's").unwrap();
        let (written, others) = confined(only_files, || {
            let mode = std::fs::Permissions::from_mode(0o600);
            let mut file = std::fs::File::create(folder.path().join("file")).unwrap();
            let written = file.write_all(b"content").is_ok() && file.set_permissions(mode.clone()).is_ok();
            let opened_up = std::fs::set_permissions(&named, mode);
            let given = std::os::unix::fs::lchown(&named, Some(rustix::process::getuid().as_raw()), None);
            let now = rustix::fs::UTIME_NOW;
            let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: now };
            let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
            let dated = rustix::fs::utimensat(rustix::fs::CWD, &named, &times, rustix::fs::AtFlags::empty());
            let dated = dated.map_err(std::io::Error::from);
            let at = rustix::fs::chmodat(
                rustix::fs::CWD,
                &named,
                rustix::fs::Mode::RWXU,
                rustix::fs::AtFlags::empty(),
            )
            .map_err(std::io::Error::from);
            let program = std::process::Command::new("/bin/true").status().map(drop);
            let unix = std::os::unix::net::UnixListener::bind(&path).map(drop);
            let network = std::net::TcpListener::bind("127.0.0.1:0").map(drop);
            let changed = rustix::process::chroot(folder.path()).map_err(std::io::Error::from);
            let own = rustix::process::getpid();
            let opened = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty())
                .map(drop)
                .map_err(std::io::Error::from);
            let others = [program, unix, network, changed, opened, opened_up, given, dated, at];
            (written, others.map(|result| result.map_err(|error| error.kind())))
        });
        assert!(written);
        assert_eq!(others, [Err(ErrorKind::PermissionDenied); 9]);
    }

    #[test]
    fn without_sockets_programs_are_started_and_nobody_is_reached() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let (reached, program, pair) = confined(no_sockets, || {
            let network = std::net::TcpListener::bind("127.0.0.1:0").map(drop);
            let machine = std::os::unix::net::UnixStream::connect(&path).map(drop);
            let program =
                std::process::Command::new("/bin/true").status().is_ok_and(|status| status.success());
            let pair = std::os::unix::net::UnixStream::pair().is_ok();
            ([network, machine].map(|result| result.map_err(|error| error.kind())), program, pair)
        });
        assert_eq!(reached, [Err(ErrorKind::PermissionDenied); 2]);
        assert!(program && pair);
    }
}
