//! Exit codes: one closed list, the same that the manual prints.

use std::process::ExitCode;

/// How the program ends. Numbers are part of the interface and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything is as asked.
    Ok,
    /// An error that has no code of its own; a plan whose read failed.
    Error,
    /// `plan --detailed-exitcode`: there are changes.
    PlanChanges,
    /// `plan --detailed-exitcode`: parts are known only while running.
    PlanUnknown,
    /// The run failed.
    Failed,
    /// The run failed and everything was undone.
    Undone,
    /// The run waits for a person.
    Parked,
    /// The run finished, but a failure was continued over.
    Degraded,
    /// The run was cancelled.
    Cancelled,
    /// The run waits: for a time, a lock, an answer, or a process that takes it up.
    Waiting,
    /// The world or the runbook is not as the plan saw it.
    Drift,
    /// The saved plan has expired, or was carried out before.
    PlanGone,
    /// A guard stopped the changes.
    Guard,
    /// A lock was not free in time, or another run is alive where there may be one.
    LockBusy,
    /// People said no, or did not say yes in time.
    NotApproved,
    /// The data directory is in use by another process.
    StoreBusy,
    /// Tests failed.
    TestsFailed,
    /// The command line is wrong.
    Usage,
    /// A runbook, environment or project file is wrong.
    Invalid,
    /// A target cannot be reached.
    Unreachable,
    /// The data directory cannot be used, or its content is damaged.
    Store,
    /// The disk failed while it was written.
    StoreFailed,
    /// Not allowed here.
    NotAllowed,
}

impl Exit {
    /// Every code, for the manual.
    pub const ALL: [Exit; 23] = [
        Exit::Ok,
        Exit::Error,
        Exit::PlanChanges,
        Exit::PlanUnknown,
        Exit::Failed,
        Exit::Undone,
        Exit::Parked,
        Exit::Degraded,
        Exit::Cancelled,
        Exit::Waiting,
        Exit::Drift,
        Exit::PlanGone,
        Exit::Guard,
        Exit::LockBusy,
        Exit::NotApproved,
        Exit::TestsFailed,
        Exit::Usage,
        Exit::Invalid,
        Exit::Unreachable,
        Exit::StoreBusy,
        Exit::Store,
        Exit::StoreFailed,
        Exit::NotAllowed,
    ];

    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Error => 1,
            Exit::PlanChanges => 2,
            Exit::PlanUnknown => 3,
            Exit::Failed => 10,
            Exit::Undone => 11,
            Exit::Parked => 12,
            Exit::Degraded => 13,
            Exit::Cancelled => 14,
            Exit::Waiting => 15,
            Exit::Drift => 20,
            Exit::PlanGone => 21,
            Exit::Guard => 22,
            Exit::LockBusy => 23,
            Exit::NotApproved => 24,
            Exit::TestsFailed => 30,
            Exit::Usage => 64,
            Exit::Invalid => 65,
            Exit::Unreachable => 69,
            Exit::StoreBusy => 73,
            Exit::Store => 74,
            Exit::StoreFailed => 75,
            Exit::NotAllowed => 77,
        }
    }

    /// One line for the manual.
    pub fn about(self) -> &'static str {
        match self {
            Exit::Ok => "everything is as asked",
            Exit::Error => "an error without a code of its own, such as a plan whose read failed",
            Exit::PlanChanges => "`plan --detailed-exitcode`: there are changes",
            Exit::PlanUnknown => "`plan --detailed-exitcode`: parts are known only while running",
            Exit::Failed => "the run failed",
            Exit::Undone => "the run failed and everything it had done was undone",
            Exit::Parked => "the run waits for a person",
            Exit::Degraded => "the run finished, but a failure was continued over",
            Exit::Cancelled => "the run was cancelled",
            Exit::Waiting => "the run waits: for a time, a lock, an answer, or a process that takes it up",
            Exit::Drift => "the world or the runbook is not as the plan saw it; nothing was overwritten",
            Exit::PlanGone => "the saved plan has expired, or was carried out before",
            Exit::Guard => "a guard stopped the changes",
            Exit::LockBusy => "a lock was not free in time, or another run is alive where there may be one",
            Exit::NotApproved => "people said no, or did not say yes in time",
            Exit::TestsFailed => "tests failed",
            Exit::Usage => "the command line is wrong",
            Exit::Invalid => "a runbook, environment or project file is wrong",
            Exit::Unreachable => "a target cannot be reached",
            Exit::StoreBusy => "the data directory is in use by another process",
            Exit::Store => "the data directory cannot be used, or its content is damaged",
            Exit::StoreFailed => {
                "the disk failed or was full while it was written; nothing is acknowledged that is not on it"
            }
            Exit::NotAllowed => "not allowed",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_every_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../site/manual/running.md");
        let page = std::fs::read_to_string(path).unwrap();
        let rows: String =
            Exit::ALL.iter().map(|exit| format!("| {} | {} |\n", exit.code(), exit.about())).collect();
        let table = format!("| code | meaning |\n|---|---|\n{rows}");
        let (_, from_table) = page.split_once("| code | meaning |\n").unwrap();
        let from_table: String =
            from_table.split_inclusive('\n').take_while(|line| line.starts_with('|')).collect();
        assert_eq!(format!("| code | meaning |\n{from_table}"), table, "the table of running.md");
    }

    #[test]
    fn no_two_codes_are_equal() {
        let mut codes = Exit::ALL.map(Exit::code);
        codes.sort_unstable();
        assert!(codes.windows(2).all(|pair| pair[0] < pair[1]), "{codes:?}");
    }
}
