//! What real machines are asked, as commands: the same for this machine and for those behind SSH.
//!
//! Where one question needs several commands, a small script of the plugin's own asks it, with the values as its
//! arguments: they are never part of the script's text.

use std::time::Duration;

use farrier_model::{Failure, FailureKind};
use sha2::{Digest as _, Sha256};

use crate::marks::Marks;
use crate::transport::{Command, Ended, Facts, RemoteFile, Service, Transport, Verb};
use crate::words;

/// Runs one of the plugin's own commands; anything but success is a failure.
async fn ask<T: Transport + ?Sized>(
    transport: &T,
    host: &str,
    command: &Command<'_>,
) -> Result<String, Failure> {
    let finished = transport.run(host, command).await?;
    let (stdout, stderr) = (finished.stdout.text(), finished.stderr.text());
    match finished.ended {
        Ended::Code(0) => Ok(stdout),
        Ended::Code(DRIFT) if stderr.trim() == "farrier: changed" => {
            Err(drift(host, command.argv.get(4).copied().unwrap_or_default()))
        }
        ended => {
            let said = words::last_of(if stderr.trim().is_empty() { &stdout } else { &stderr });
            // One of our own scripts goes by its name.
            let program = if command.argv[0] == "/bin/sh" { command.argv[3] } else { command.argv[0] };
            Err(Failure::new(
                FailureKind::Refused,
                format!("on `{host}`, `{program}` {}: {said}", ended.text()),
            ))
        }
    }
}

const FACTS: &str = r#"
cat /proc/sys/kernel/random/boot_id || exit 1
read -r up rest </proc/uptime && echo "$up" || exit 1
uname -n; uname -r; uname -m
( . /etc/os-release 2>/dev/null || . /usr/lib/os-release 2>/dev/null; printf '%s\n%s\n' "$ID" "$VERSION_ID" )
getconf _NPROCESSORS_ONLN
while read -r name number unit; do [ "$name" = MemTotal: ] && echo "$number"; done </proc/meminfo
:
"#;

pub(crate) async fn facts<T: Transport + ?Sized>(
    transport: &T,
    host: &str,
    marks: &Marks,
) -> Result<Facts, Failure> {
    let command = Command::new(&["/bin/sh", "-c", FACTS, "facts"], marks).reading();
    let answer = ask(transport, host, &command).await?;
    let lines: Vec<&str> = answer.lines().map(str::trim).collect();
    let [boot_id, uptime, hostname, kernel, architecture, os, os_version, processors, memory] = *lines else {
        return Err(unreadable(host, "the facts", &answer));
    };
    let (Ok(uptime), Ok(processors), Ok(memory)) =
        (uptime.parse::<f64>(), processors.parse(), memory.parse::<u64>())
    else {
        return Err(unreadable(host, "the facts", &answer));
    };
    Ok(Facts {
        boot_id: boot_id.into(),
        uptime: Duration::try_from_secs_f64(uptime).unwrap_or_default(),
        hostname: hostname.into(),
        kernel: kernel.into(),
        architecture: architecture.into(),
        os: os.into(),
        os_version: os_version.into(),
        processors,
        memory_bytes: memory.saturating_mul(1024),
    })
}

pub(crate) async fn service<T: Transport + ?Sized>(
    transport: &T,
    host: &str,
    unit: &str,
    marks: &Marks,
) -> Result<Option<Service>, Failure> {
    let argv = ["systemctl", "show", "--property=LoadState,ActiveState,UnitFileState", "--", unit];
    let answer = ask(transport, host, &Command::new(&argv, marks).reading()).await?;
    let value = |name: &str| {
        answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default().trim()
    };
    let running = match (value("LoadState"), value("ActiveState")) {
        ("not-found", _) => return Ok(None),
        (_, "active" | "reloading") => true,
        (_, "inactive" | "failed") => false,
        // It is neither up nor down now, and a plan must not guess.
        (_, state @ ("activating" | "deactivating" | "maintenance")) => {
            return Err(Failure::new(
                FailureKind::Conflict,
                format!("the service `{unit}` of the host `{host}` is just {state}"),
            ));
        }
        _ => return Err(unreadable(host, &format!("the state of the service `{unit}`"), &answer)),
    };
    let enabled = match value("UnitFileState") {
        "enabled" => Some(true),
        "disabled" => Some(false),
        _ => None,
    };
    Ok(Some(Service { running, enabled, failed: value("ActiveState") == "failed" }))
}

pub(crate) async fn set_service<T: Transport + ?Sized>(
    transport: &T,
    host: &str,
    unit: &str,
    verb: Verb,
    marks: &Marks,
) -> Result<(), Failure> {
    let mut command = Command::new(&["systemctl", "--no-ask-password", verb.name(), "--", unit], marks);
    command.time_limit = Duration::from_secs(600);
    ask(transport, host, &command).await.map(drop)
}

/// How the write script says that the file is not what was planned for.
const DRIFT: i32 = 9;

/// `state PATH LIMIT` prints what the file is in one line; defined for both scripts.
macro_rules! state_function {
    () => {
        r#"
fail() { echo "$*" >&2; exit 1; }
state() {
    d=$(dirname -- "$1")
    [ -d "$d" ] || fail "there is no folder $d"
    [ -x "$d" ] || fail "may not look into $d"
    if [ -h "$1" ]; then fail "it is a symbolic link"; fi
    if [ ! -e "$1" ]; then echo none; return; fi
    [ -f "$1" ] || fail "it is not a regular file"
    set -- "$1" "$(stat -c '%a %U %G %s' -- "$1")" || fail "cannot look at it"
    [ "${2##* }" -le "$LIMIT" ] || { echo "large ${2##* }"; return; }
    sum=$(sha256sum <"$1") || fail "cannot read it"
    echo "file ${2% *} ${sum%% *}"
}
"#
    };
}

const READ: &str = concat!(
    state_function!(),
    r#"
LIMIT=$2
before=$(state "$1") || exit 1
echo "$before"
case $before in file*) cat -- "$1" || exit 1;; esac
[ "$(state "$1")" = "$before" ] || fail "it changes all the time"
"#
);

/// `$1` path, `$2` what it must be now, `$3` mode, `$4` owner, `$5` group, `$6` sum of the new content on the standard
/// input, or nothing to remove the file.
const WRITE: &str = concat!(
    state_function!(),
    r#"
LIMIT=16777216
umask 077
d=$(dirname -- "$1")
owner=$(stat -c '%u %a' -- "$d") || exit 1
case $owner in "0 "*|"$(id -u) "*) ;; *) fail "the folder $d belongs to another account";; esac
case $owner in *[2367]) fail "anyone may write in the folder $d";; esac
changed() { echo "farrier: changed" >&2; exit 9; }
if [ -z "$6" ]; then
    now=$(state "$1") || exit 1
    [ "$now" = "$2" ] || changed
    rm -f -- "$1" || exit 1
else
    new=$(mktemp -- "$d/.farrier.XXXXXXXX") || exit 1
    trap 'rm -f -- "$new"' EXIT
    cat >"$new" || exit 1
    sum=$(sha256sum <"$new") || exit 1
    [ "${sum%% *}" = "$6" ] || fail "the content did not arrive whole"
    [ "$4$5" = "" ] || [ "$(stat -c '%U:%G' -- "$new")" = "$4:$5" ] || chown -- "$4:$5" "$new" || exit 1
    chmod -- "$3" "$new" || exit 1
    sync -- "$new" || exit 1
    now=$(state "$1") || exit 1
    [ "$now" = "$2" ] || changed
    if [ "$2" = none ]; then ln -T -- "$new" "$1" || changed
    else mv -f -T -- "$new" "$1" || exit 1
    fi
fi
sync -- "$d"
"#
);

pub(crate) async fn read_file<T: Transport + ?Sized>(
    transport: &T,
    host: &str,
    path: &str,
    limit: usize,
    marks: &Marks,
) -> Result<Option<RemoteFile>, Failure> {
    let shown_limit = limit.to_string();
    let mut command =
        Command::new(&["/bin/sh", "-c", READ, "read file", path, &shown_limit], marks).reading();
    command.max_output = limit + 1024;
    let at_file = |failure: Failure| Failure { message: format!("`{path}`: {}", failure.message), ..failure };
    let answer = ask(transport, host, &command).await.map_err(at_file)?;
    let (state, content) = answer.split_once('\n').unwrap_or((&answer, ""));
    let words: Vec<&str> = state.split(' ').collect();
    match *words {
        ["none"] => Ok(None),
        ["large", _] => Err(too_large(host, path, limit)),
        ["file", mode, owner, group, sum] => {
            // Bytes that are not text would come back as others.
            if hex(content) != sum {
                return Err(Failure::new(
                    FailureKind::Refused,
                    format!("`{path}` of the host `{host}` is not UTF-8 text"),
                ));
            }
            Ok(Some(RemoteFile {
                content: content.into(),
                mode: format!("{mode:0>4}"),
                owner: owner.into(),
                group: group.into(),
            }))
        }
        _ => Err(unreadable(host, &format!("the state of `{path}`"), state)),
    }
}

pub(crate) async fn write_file<T: Transport + ?Sized>(
    transport: &T,
    host: &str,
    path: &str,
    before: Option<&RemoteFile>,
    wanted: Option<&RemoteFile>,
    marks: &Marks,
) -> Result<(), Failure> {
    let state = before.map_or_else(
        || "none".to_owned(),
        |file| {
            let mode = file.mode.trim_start_matches('0');
            let mode = if mode.is_empty() { "0" } else { mode };
            format!("file {mode} {} {} {}", file.owner, file.group, hex(&file.content))
        },
    );
    let sum = wanted.map(|file| hex(&file.content)).unwrap_or_default();
    let (mode, owner, group) =
        wanted.map_or(("", "", ""), |file| (file.mode.as_str(), file.owner.as_str(), file.group.as_str()));
    let mut command =
        Command::new(&["/bin/sh", "-c", WRITE, "write file", path, &state, mode, owner, group, &sum], marks);
    command.stdin = wanted.map(|file| file.content.as_str());
    ask(transport, host, &command).await.map(drop)
}

const REBOOT: &str = r#"
[ "$(cat /proc/sys/kernel/random/boot_id)" = "$1" ] || exit 0
shift
command -v setsid >/dev/null || { echo "there is no setsid" >&2; exit 1; }
setsid sh -c 'sleep 1; exec "$@"' sh "$@" </dev/null >/dev/null 2>&1 &
"#;

/// The command goes on by itself, so that the answer arrives before the machine is gone.
pub(crate) async fn reboot<T: Transport + ?Sized>(
    transport: &T,
    host: &str,
    boot_id: &str,
    marks: &Marks,
) -> Result<(), Failure> {
    let command = Command::new(&["/bin/sh", "-c", REBOOT, "reboot", boot_id, "systemctl", "reboot"], marks);
    ask(transport, host, &command).await.map(drop)
}

fn hex(content: &str) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file is not what was planned for.
pub(crate) fn drift(host: &str, path: &str) -> Failure {
    Failure::new(
        FailureKind::Drift,
        format!("`{path}` of the host `{host}` is not as it was planned for; nothing was written"),
    )
}

pub(crate) fn too_large(host: &str, path: &str, limit: usize) -> Failure {
    Failure::new(FailureKind::Limit, format!("`{path}` of the host `{host}` is longer than {limit} bytes"))
}

fn unreadable(host: &str, what: &str, answer: &str) -> Failure {
    let shown = words::shortened(answer.trim(), 200);
    Failure::new(FailureKind::Refused, format!("the host `{host}` did not say {what}, but: {shown}"))
}

impl Ended {
    /// After "it": how it ended.
    pub(crate) fn text(self) -> String {
        match self {
            Ended::Code(code) => format!("ended with code {code}"),
            Ended::Signal(signal) => format!("was ended by signal {signal}"),
            Ended::Late => "was ended because it took longer than its `time_limit`".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use farrier_model::{NodeName, RunId};

    use super::*;
    use crate::capture::Capture;
    use crate::transport::Finished;

    /// A machine that says what a test wants, and remembers what it was asked.
    struct Says {
        code: i32,
        stdout: &'static str,
        stderr: &'static str,
        asked: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl Transport for Says {
        async fn run(&self, _: &str, command: &Command<'_>) -> Result<Finished, Failure> {
            // The text of the plugin's own scripts says nothing here.
            let argv: Vec<&str> = command.argv.iter().filter(|word| !word.contains('\n')).copied().collect();
            self.asked.lock().unwrap().push(argv.join(" "));
            let output = |text: &str| {
                let mut capture = Capture::new(command.max_output);
                capture.push(text.as_bytes());
                capture
            };
            Ok(Finished {
                ended: Ended::Code(self.code),
                stdout: output(self.stdout),
                stderr: output(self.stderr),
            })
        }
    }

    fn says(code: i32, stdout: &'static str, stderr: &'static str) -> Says {
        Says { code, stdout, stderr, asked: Mutex::default() }
    }

    fn marks() -> Marks {
        Marks::of(&farrier_action::NodeInfo {
            run: RunId::at(0, [1; 10]),
            node: NodeName::step("a"),
            attempt: 1,
            effect_id: "e".into(),
        })
    }

    #[tokio::test]
    async fn the_service_manager_is_understood() {
        let unit = |running, enabled, failed| Some(Service { running, enabled, failed });
        for (load, active, file, expected) in [
            ("loaded", "active", "enabled", unit(true, Some(true), false)),
            ("loaded", "reloading", "enabled-runtime", unit(true, None, false)),
            ("loaded", "inactive", "disabled", unit(false, Some(false), false)),
            ("loaded", "failed", "static", unit(false, None, true)),
            ("not-found", "inactive", "", None),
        ] {
            let text = format!("LoadState={load}\nActiveState={active}\nUnitFileState={file}\n");
            let machine = says(0, text.leak(), "");
            assert_eq!(
                machine.service("a", "exim4", &marks()).await.unwrap(),
                expected,
                "{load} {active} {file}"
            );
            let asked = machine.asked.into_inner().unwrap();
            assert_eq!(asked, ["systemctl show --property=LoadState,ActiveState,UnitFileState -- exim4"]);
        }
        let starting = says(0, "LoadState=loaded\nActiveState=activating\nUnitFileState=enabled\n", "");
        let failure = starting.service("a", "exim4", &marks()).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Conflict);
        // An answer that says nothing is not a service that is not there.
        for machine in [says(0, "", ""), says(1, "", "System has not been booted with systemd")] {
            let failure = machine.service("a", "exim4", &marks()).await.unwrap_err();
            assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
        }
    }

    #[tokio::test]
    async fn the_service_manager_is_told() {
        for verb in [Verb::Start, Verb::Stop, Verb::Restart, Verb::Enable, Verb::Disable] {
            let machine = says(0, "", "");
            machine.set_service("a", "exim4", verb, &marks()).await.unwrap();
            let asked = machine.asked.into_inner().unwrap();
            assert_eq!(asked, [format!("systemctl --no-ask-password {} -- exim4", verb.name())]);
        }
        let machine = says(4, "", "Interactive authentication required.\n");
        let failure = machine.set_service("a", "exim4", Verb::Stop, &marks()).await.unwrap_err();
        assert_eq!(
            failure.message,
            "on `a`, `systemctl` ended with code 4: Interactive authentication required."
        );
    }

    #[tokio::test]
    async fn a_reboot_is_asked_for_with_the_boot_id() {
        let machine = says(0, "", "");
        machine.reboot("a", "1-2-3", &marks()).await.unwrap();
        assert_eq!(machine.asked.into_inner().unwrap(), ["/bin/sh -c reboot 1-2-3 systemctl reboot"]);
    }

    #[tokio::test]
    async fn facts_that_are_not_all_there_are_an_error() {
        for stdout in ["", "id\n1.5\n", "id\nlong\na\nb\nc\nd\ne\n1\n1\n"] {
            let failure = says(0, stdout, "").facts("a", &marks()).await.unwrap_err();
            assert!(failure.message.starts_with("the host `a` did not say the facts"), "{failure}");
        }
        let facts =
            says(0, "id\n90.5\nname\n6.1\nx86_64\n\n\n2\n1000\n", "").facts("a", &marks()).await.unwrap();
        assert_eq!(
            (facts.uptime.as_millis(), facts.memory_bytes, facts.os.as_str()),
            (90_500, 1_024_000, "")
        );
    }

    #[test]
    fn the_scripts_are_valid_shell() {
        for script in [FACTS, READ, WRITE, REBOOT] {
            for shell in ["dash", "bash"] {
                assert!(
                    std::process::Command::new(shell).args(["-n", "-c", script]).status().unwrap().success()
                );
            }
        }
    }
}
