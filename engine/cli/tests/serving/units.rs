//! The unit for systemd, as systemd itself reads it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests may panic as tests do")]

use std::path::Path;
use std::process::{Command, Output};

use crate::common::FARRIER;

/// The most that `systemd-analyze security` may find exposed, in tenths.
const EXPOSURE: &str = "20";

/// Runs `systemd-analyze` on the unit that is shipped, with the binary under test in the place of the installed one.
fn analyze(args: &[&str]) -> Output {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd/farrier.service");
    let folder = farrier_testkit::temp_dir();
    let copy = folder.path().join("farrier.service");
    std::fs::write(&copy, std::fs::read_to_string(unit).unwrap().replace("/usr/bin/farrier", FARRIER))
        .unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(args).arg(&copy).env("SYSTEMD_COLORS", "0").env("SYSTEMD_PAGER", "");
    command.output().expect("systemd-analyze is part of Debian's systemd")
}

/// Guards "the unit means what it says": what this systemd does not know it would leave out with a warning, and a service that is not
/// of type `notify` is killed by its own watchdog.
#[test]
fn systemd_understands_the_unit() {
    let output = analyze(&["verify", "--man=no"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn the_unit_exposes_little() {
    let output = analyze(&["security", "--offline=true", "--threshold", EXPOSURE]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
