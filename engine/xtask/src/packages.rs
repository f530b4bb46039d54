//! The Debian packages that the tests need, and their installation where that is allowed.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use farrier_testkit::find_program;

use crate::parts::Outcome;
use crate::tools;

/// A program that the tests start, and the package that brings it. A new kind of server in the testkit adds its line.
const NEEDED: &[(&str, &str)] = &[
    ("slapd", "slapd"),
    ("ldapmodify", "ldap-utils"),
    ("mariadbd", "mariadb-server"),
    ("mariadb", "mariadb-client"),
    ("postgres", "postgresql"),
    ("psql", "postgresql-client"),
    ("prometheus", "prometheus"),
    ("prometheus-alertmanager", "prometheus-alertmanager"),
    ("exim4", "exim4-daemon-light"),
    ("openssl", "openssl"),
    ("sshd", "openssh-server"),
    ("ssh", "openssh-client"),
    ("setpriv", "util-linux"),
    ("script", "bsdutils"),
    ("strace", "strace"),
    ("faketime", "faketime"),
    ("systemd-analyze", "systemd"),
    ("curl", "curl"),
];

/// Run by root. A machine that installs a server must not start it: the tests start their own.
const INSTALL: &str = r#"
set -e
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# A mail server of the machine's own must not go because the tests want theirs.
apt-get install -q -y --no-remove --no-install-recommends "$@"
"#;

/// Installs what is missing when this account may; otherwise says what to install.
pub(crate) fn ensure_installed() -> Result<Outcome> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(Outcome::Passed);
    }
    let by_hand = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    let Some(mut command) = as_root() else {
        return Ok(Outcome::Failed(format!("may not install packages; run: sudo {by_hand}")));
    };
    eprintln!("installing {}", missing.join(", "));
    tools::show(command.args(["-c", INSTALL, "install"]).args(&missing).stdin(Stdio::null()))?;
    let still = self::missing();
    ensure!(still.is_empty(), "installed, but nowhere to be found: {}", still.join(", "));
    Ok(Outcome::Passed)
}

fn missing() -> Vec<&'static str> {
    NEEDED.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect()
}

fn is_there(program: &str) -> bool {
    // Debian keeps PostgreSQL's server off the PATH, in a folder per version.
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    find_program(program).is_some()
        || (program == "postgres"
            && versions.into_iter().any(|version| version.path().join("bin/postgres").exists()))
}

/// A shell with root's rights: our own, or by sudo where that asks for no password.
fn as_root() -> Option<Command> {
    if !Path::new("/usr/bin/apt-get").exists() {
        return None;
    }
    let user = Command::new("id").arg("-u").output().ok()?;
    if user.stdout.trim_ascii() == b"0" {
        return Some(Command::new("sh"));
    }
    let sudo = Command::new("sudo").args(["-n", "true"]).stdin(Stdio::null()).stderr(Stdio::null()).status();
    sudo.is_ok_and(|status| status.success()).then(|| {
        let mut command = Command::new("sudo");
        command.args(["-n", "sh"]);
        command
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installation_script_is_valid_shell() {
        let checked = Command::new("sh").args(["-n", "-c", INSTALL]).status().unwrap();
        assert!(checked.success());
    }

    #[test]
    fn programs_are_found_or_not() {
        assert!(is_there("sh"));
        assert!(!is_there("no-such-program"));
    }
}
