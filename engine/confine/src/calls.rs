//! seccomp: system calls that a process has no use for, and whose refusal it survives.

use std::collections::BTreeMap;

use farrier_model::Failure;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, apply_filter,
};

use crate::refused;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// No sockets but those of this machine's own files.
///
/// # Errors
/// The kernel has no seccomp, or refuses.
pub fn no_network() -> Result<(), Failure> {
    let rules = || {
        let other_than_unix = SeccompCondition::new(
            0,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Ne,
            u64::from(libc::AF_UNIX.cast_unsigned()),
        )?;
        let mut rules: Rules = [(libc::SYS_socket, vec![SeccompRule::new(vec![other_than_unix])?])].into();
        rules.extend(whole(NEVER_FILTERED));
        Ok::<_, seccompiler::BackendError>(rules)
    };
    let rules = rules().map_err(|error| refused("no network", &error))?;
    apply(rules).map_err(|error| refused("no network", &*error))
}

/// Files only: no socket, no other program, no look into other processes, no mounts and namespaces, no change of the kernel or
/// the clock.
///
/// # Errors
/// The kernel has no seccomp, or refuses.
pub fn only_files() -> Result<(), Failure> {
    let refuse = [NEVER_FILTERED, PROGRAMS, NETWORK, OTHERS, MACHINE].concat();
    apply(whole(&refuse)).map_err(|error| refused("system calls", &*error))
}

/// Its operations are not system calls, so no filter would see them.
const NEVER_FILTERED: &[i64] = &[libc::SYS_io_uring_setup];
const PROGRAMS: &[i64] = &[libc::SYS_execve, libc::SYS_execveat];
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
    use std::io::ErrorKind;

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
        let (written, others) = confined(only_files, || {
            let written = std::fs::write(folder.path().join("file"), "content").is_ok();
            let program = std::process::Command::new("/bin/true").status().map(drop);
            let unix = std::os::unix::net::UnixListener::bind(&path).map(drop);
            let network = std::net::TcpListener::bind("127.0.0.1:0").map(drop);
            let changed = rustix::process::chroot(folder.path()).map_err(std::io::Error::from);
            let own = rustix::process::getpid();
            let opened = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty())
                .map(drop)
                .map_err(std::io::Error::from);
            let others = [program, unix, network, changed, opened];
            (written, others.map(|result| result.map_err(|error| error.kind())))
        });
        assert!(written);
        assert_eq!(others, [Err(ErrorKind::PermissionDenied); 5]);
    }

    #[test]
    fn a_program_without_a_network_has_its_own_machine() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (network, unix, program) = confined(no_network, || {
            let network = std::net::TcpListener::bind("127.0.0.1:0").map(drop);
            let unix = std::os::unix::net::UnixListener::bind(&path).is_ok();
            let program =
                std::process::Command::new("/bin/true").status().is_ok_and(|status| status.success());
            (network.map_err(|error| error.kind()), unix, program)
        });
        assert_eq!((network, unix, program), (Err(ErrorKind::PermissionDenied), true, true));
    }
}
