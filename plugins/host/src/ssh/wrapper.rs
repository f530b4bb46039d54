//! The small script under which every command runs on the other side.
//!
//! A command there does not end because its connection did, and SSH has no way to say that it should. So the script keeps
//! its standard input, behind the command's own, as a line to Farrier: when that line ends, because the step was cancelled
//! or because Farrier or the connection is gone, the script ends the command and everything in its process group. It does
//! the same when the time limit is over, which a broken network does not keep from passing.
//!
//! The command's own input is read first, and whole: a command never works on half of it.
//!
//! Before the command begins, the script says a mark on both outputs. What comes before it was said by the start-up files
//! of the account's shell, and is not the command's.

use std::time::Duration;

use crate::capture::Capture;
use crate::local::PATH;
use crate::ssh::quote;
use crate::transport::Command;

/// What a reason not to start the command begins with, on standard error before the mark.
const SAYS: &str = "farrier: ";
/// How many bytes before a mark are kept, in case that it never comes.
const BEFORE: usize = 16 << 10;

/// `$1` the mark, `$2` time limit in seconds, `$3` bytes of input, `$4` folder; then the environment and the command.
const SCRIPT: &str = r#"
LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mark=$1 limit=$2 size=$3 folder=$4
shift 4
stop() { echo "farrier: $*" >&2; exit 125; }
for tool in setsid timeout head env cat sleep; do command -v $tool >/dev/null || stop "there is no $tool"; done
exec 3<&0 </dev/null
if [ "$size" -gt 0 ]; then
    input=$(head -c "$size" <&3; echo x)
    input=${input%x}
    [ "${#input}" -eq "$size" ] || stop "its input did not arrive whole"
fi
cd -- "$folder" 2>/dev/null || stop folder
set -- env -i "HOME=$HOME" "USER=$USER" "LOGNAME=$LOGNAME" "$@"
echo "$mark"
echo "$mark" >&2
if [ "$size" -gt 0 ]; then
    printf %s "$input" 2>/dev/null 3<&- | setsid "$@" 3<&- &
else
    setsid "$@" </dev/null 3<&- &
fi
command=$!
setsid sh -c 'timeout --foreground "$2" cat; kill -s TERM -- "-$1"; sleep 5; kill -s KILL -- "-$1"' sh "$command" "$limit" \
    <&3 >/dev/null 2>&1 3<&- &
watch=$!
exec 3<&-
wait "$command"
code=$?
exec 2>/dev/null
kill -s KILL -- "-$command"
kill -s KILL -- "-$watch"
kill -s KILL "$watch"
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

/// An output from the mark on.
#[derive(Debug)]
pub(crate) struct Marked {
    mark: String,
    before: Vec<u8>,
    begun: bool,
    pub(crate) capture: Capture,
}

impl Marked {
    pub(crate) fn new(mark: &str, limit: usize) -> Marked {
        Marked { mark: format!("{mark}\n"), before: Vec::new(), begun: false, capture: Capture::new(limit) }
    }

    /// Adds what came next.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.begun {
            return self.capture.push(bytes);
        }
        self.before.extend_from_slice(bytes);
        let mark = self.mark.as_bytes();
        match self.before.windows(mark.len()).position(|window| window == mark) {
            Some(at) => {
                self.begun = true;
                self.capture.push(&self.before[at + mark.len()..]);
            }
            None => drop(self.before.drain(..self.before.len().saturating_sub(BEFORE))),
        }
    }

    /// Why the command was not started, in the script's words.
    pub(crate) fn not_started(&self) -> Option<String> {
        if self.begun {
            return None;
        }
        let said = String::from_utf8_lossy(&self.before);
        Some(said.lines().rev().find_map(|line| line.strip_prefix(SAYS)).unwrap_or(said.trim()).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_before_the_mark_is_dropped() {
        let noise = "x".repeat(3 * BEFORE);
        for (pieces, expected) in [
            (&["MARK\nout"][..], "out"),
            (&["welcome\nMARK\nout", "put"], "output"),
            (&["welcomeMA", "RK", "\nout"], "out"),
            (&[&noise, "MARK\n", "MARK\n"], "MARK\n"),
            (&["welcome"], ""),
        ] {
            let mut output = Marked::new("MARK", 100);
            for piece in pieces {
                output.push(piece.as_bytes());
            }
            assert_eq!(output.capture.text(), expected);
        }
        let mut output = Marked::new("MARK", 100);
        output.push(b"welcome\nfarrier: there is no setsid\n");
        assert_eq!(output.not_started().as_deref(), Some("there is no setsid"));
    }
}
