//! The small script under which every command runs on the other side.
//!
//! A command there does not end because its connection did, and SSH has no way to say that it should. So the script keeps
//! its standard input, behind the command's own, as a line to Farrier: when that line ends, because the step was cancelled
//! or because Farrier or the connection is gone, the script ends the command and everything in its process group. It does
//! the same when the time limit is over, which a broken network does not keep from passing.
//!
//! The command's own input is read first, and whole: a command never works on half of it.
//!
//! On both outputs, the script says a mark before the command begins and one with the exit code when it is over. What
//! comes before was said by the start-up files of the account's shell. What comes after is not waited for: something that
//! left the process group may hold an output open for ever. And an output that ends without the second mark was cut off,
//! whatever SSH says about it: `ssh` gives an exit status before the output is all there, and drops the rest when asked for
//! nothing more.
//!
//! The process group is `timeout`'s own: that of GNU begins one by itself. Others may not, so where `timeout` is not surely
//! GNU's (on another system than Linux, or a link to a program of many names, such as busybox), `setsid` begins it.

use std::time::Duration;

use crate::capture::Capture;
use crate::local::PATH;
use crate::ssh::quote;
use crate::transport::Command;

/// How many bytes before a mark are kept, in case that it never comes.
const BEFORE: usize = 16 << 10;

/// `$1` the mark, `$2` time limit in seconds, `$3` bytes of input, `$4` folder; then the environment and the command.
const SCRIPT: &str = r#"
LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mark=$1 limit=$2 size=$3 folder=$4
shift 4
stop() { echo "$mark stop $*" >&2; exit 125; }
apart='setsid timeout'
if [ -f /proc/self/stat ] && [ -f /usr/bin/timeout ] && [ ! -L /usr/bin/timeout ]; then apart=/usr/bin/timeout; fi
for tool in $apart head env sleep; do command -v $tool >/dev/null || stop "there is no $tool"; done
exec 3<&0 </dev/null
if [ "$size" -gt 0 ]; then
    input=$(head -c "$size" <&3; echo x)
    input=${input%x}
    [ "${#input}" -eq "$size" ] || stop "its input did not arrive whole"
fi
cd -- "$folder" 2>/dev/null || stop folder
set -- env -i "HOME=$HOME" "USER=$USER" "LOGNAME=$LOGNAME" "$@"
echo "$mark begin"
echo "$mark begin" >&2
if [ "$size" -gt 0 ]; then
    printf %s "$input" 2>/dev/null 3<&- | $apart -k 5 "$limit" "$@" 3<&- &
else
    $apart -k 5 "$limit" "$@" </dev/null 3<&- &
fi
command=$!
(read -r _; kill -s TERM -- "-$command" || kill -s TERM "$command"; sleep 5; kill -s KILL -- "-$command") <&3 >/dev/null 2>&1 3<&- &
watch=$!
exec 3<&-
wait "$command"
code=$?
kill -s KILL -- "-$command" 2>/dev/null
kill -s KILL "$watch" 2>/dev/null
echo "$mark end $code"
echo "$mark end $code" >&2
exit $code
"#;

/// The text that the other side's shell gets.
pub(crate) fn command_line(command: &Command<'_>, mark: &str) -> String {
    let limit = seconds(command.time_limit).to_string();
    let size = command.stdin.map_or(0, str::len).to_string();
    let path = format!("PATH={PATH}");
    let marks = command.marks.variables();
    let variables: Vec<String> =
        marks.iter().chain(&command.env).map(|(name, value)| format!("{name}={value}")).collect();
    let mut words =
        vec!["/bin/sh", "-c", SCRIPT, "farrier", mark, &limit, &size, command.cwd, &path, "LANG=C.UTF-8"];
    words.extend(variables.iter().map(String::as_str));
    words.extend(&command.argv);
    format!("exec {}", quote::line(&words))
}

/// Whole seconds, and never none, which would mean no limit.
pub(crate) fn seconds(limit: Duration) -> u64 {
    limit.as_secs() + u64::from(limit.subsec_nanos() > 0 || limit.is_zero())
}

/// One output, between the marks.
#[derive(Debug)]
pub(crate) struct Marked {
    mark: String,
    /// What may still be part of a mark, or comes before the first.
    pending: Vec<u8>,
    state: State,
    pub(crate) capture: Capture,
}

/// How far an output is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// The script has said nothing yet.
    Before,
    /// The command was not started, for this reason.
    Stopped(String),
    /// It was.
    Begun,
    /// It ended with this code.
    Over(i32),
}

impl Marked {
    pub(crate) fn new(mark: &str, limit: usize) -> Marked {
        let capture = Capture::new(limit);
        Marked { mark: format!("{mark} "), pending: Vec::new(), state: State::Before, capture }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Adds what came next.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        while !matches!(self.state, State::Over(_) | State::Stopped(_)) {
            let mark = self.mark.as_bytes();
            let Some(at) = find(&self.pending, mark) else {
                // A mark may have begun at the end.
                let settled = self.pending.len().saturating_sub(mark.len() - 1);
                self.settle(settled);
                return;
            };
            let rest = &self.pending[at + mark.len()..];
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                self.settle(at);
                return;
            };
            let said = String::from_utf8_lossy(&rest[..end]).into_owned();
            let next = at + mark.len() + end + 1;
            if self.state == State::Begun {
                self.capture.push(&self.pending[..at]);
            }
            self.pending.drain(..next);
            self.state = match said.split_once(' ').unwrap_or((&said, "")) {
                ("begin", _) => State::Begun,
                ("stop", reason) => State::Stopped(reason.to_owned()),
                (_, code) => State::Over(code.parse().unwrap_or(-1)),
            };
        }
    }

    /// There is no more to come.
    pub(crate) fn close(&mut self) {
        if self.state == State::Begun {
            self.settle(self.pending.len());
        }
    }

    /// What was said before any mark.
    pub(crate) fn before(&self) -> String {
        String::from_utf8_lossy(&self.pending).trim().to_owned()
    }

    /// The first bytes that wait are no part of a mark. Before the first mark, the last of them are kept.
    fn settle(&mut self, count: usize) {
        let gone = if self.state == State::Before { count.saturating_sub(BEFORE) } else { count };
        if self.state == State::Begun {
            self.capture.push(&self.pending[..gone]);
        }
        self.pending.drain(..gone);
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = *wanted.first()?;
    let mut from = 0;
    while let Some(at) = bytes.get(from..)?.iter().position(|byte| *byte == first) {
        if bytes[from + at..].starts_with(wanted) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&[u8]]) -> (State, String) {
        let mut output = Marked::new("MARK", 1 << 20);
        for piece in pieces {
            output.push(piece);
        }
        output.close();
        (output.state, output.capture.text())
    }

    #[test]
    fn only_what_is_between_the_marks_counts() {
        let noise = "x".repeat(3 * BEFORE);
        let over = |code| State::Over(code);
        for (pieces, state, expected) in [
            (&["MARK begin\nout\nMARK end 0\n"][..], over(0), "out\n"),
            (&["welcome\nMARK begin\nout", "put", "MARK end 3\nlater"], over(3), "output"),
            (&["welcomeMA", "RK", " begin", "\noutM", "ARK", " end 25", "5\n"], over(255), "out"),
            (&[&noise, "MARK begin\n", "MAR", "K"], State::Begun, "MARK"),
            (&["MARK begin\nMARK end 0\n"], over(0), ""),
            (&["welcome"], State::Before, ""),
            (&["x\nMARK stop folder\n"], State::Stopped("folder".into()), ""),
        ] {
            let pieces: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes()).collect();
            assert_eq!(read(&pieces), (state, expected.to_owned()), "{pieces:?}");
        }
        let mut output = Marked::new("MARK", 100);
        output.push(b"not today\n");
        assert_eq!(output.before(), "not today");
    }

    /// Both ways to a process group of its own: `timeout` as this machine has it, and as a link.
    #[test]
    fn when_the_line_to_farrier_ends_so_does_the_command() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("timeout");
        std::os::unix::fs::symlink("/usr/bin/timeout", &link).unwrap();
        for timeout in ["/usr/bin/timeout", link.to_str().unwrap()] {
            let file = folder.path().join(timeout.replace('/', "_"));
            let script =
                "echo $$ >>$0; sleep 1000 & echo $! >>$0; ps -o pgid= -p $$ >>$0; echo whole >>$0; wait";
            let mut child = std::process::Command::new("/bin/sh")
                .args(["-c", &SCRIPT.replace("/usr/bin/timeout", timeout), "farrier", "MARK", "60", "0", "/"])
                .args(["PATH=/usr/bin:/bin", "sh", "-c", script, file.to_str().unwrap()])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let wrote = || std::fs::read_to_string(&file).unwrap_or_default();
            while !wrote().ends_with("whole\n") {
                assert!(child.try_wait().unwrap().is_none(), "{timeout}: it ended by itself");
                std::thread::sleep(Duration::from_millis(10));
            }
            drop(child.stdin.take());
            let output = child.wait_with_output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), "MARK begin\nMARK end 143\n", "{timeout}");
            let wrote = wrote();
            let numbers: Vec<&str> = wrote.lines().map(str::trim).collect();
            let group = rustix::process::getpgrp().as_raw_nonzero().to_string();
            assert_ne!(numbers[2], group, "{timeout}: its process group is ours");
            let lives = |pid: &&str| {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                !stat.is_empty() && !stat.contains(") Z ")
            };
            while numbers[..2].iter().any(lives) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    proptest! {
        /// However the pieces fall, the result is that of one piece.
        #[test]
        fn pieces_do_not_matter(noise in "[MAR K\n]{0,20}", out in "[MAR K\n]{0,40}", step in 1..9_usize) {
            let text = format!("{noise}MARK begin\n{out}MARK end 7\nmore");
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(step).collect();
            prop_assert_eq!(read(&pieces), read(&[text.as_bytes()]));
            if !noise.contains("MARK ") && !out.contains("MARK ") {
                prop_assert_eq!(read(&pieces), (State::Over(7), out));
            }
        }
    }
}
