//! Matchers, compared with Alertmanager's own reading: what one understands the other does, and both match the same
//! alerts. Debian's Alertmanager knows the classic reading only, so it is that one which is compared.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use farrier_alert::{Matcher, matches_all, read_classic_matchers};

/// Texts whose reading is not obvious.
const TEXTS: &[&str] = &[
    "alertname=DiskFull",
    r#"alertname="DiskFull""#,
    r#"{alertname="DiskFull",severity=~"warning|critical"}"#,
    r#" alertname = "DiskFull" , severity != critical "#,
    r#"alertname="DiskFull","#,
    "alertname=",
    r#"alertname="""#,
    "alertname!=",
    r#"team=~"""#,
    r#"team=~".*""#,
    r#"team=~".+""#,
    r#"team!~".+""#,
    r#"alertname=~"Disk""#,
    r#"alertname=~"Disk.*""#,
    r"alertname=~Disk.*",
    r#"alertname=~"(?i)diskfull""#,
    r#"instance=~"node-\\d+(:.*)?""#,
    r#"instance=~"node-\d+(:.*)?""#,
    r#"instance=~"node-[0-9]{2}:9100""#,
    r#"instance=~"[[:alpha:]]+-12:[\\d]+""#,
    r#"note="a,b""#,
    r#"note="say \"hi\"""#,
    r#"note="a\nb""#,
    r#"note="a\tb""#,
    r"note=a\nb",
    r#"note="back\\slash""#,
    r#"note="back\slash""#,
    r#"note="{{7*7}}""#,
    r#"note="${x}""#,
    "note=höhe",
    r#"note=~"h\\w+he""#,
    r#"note=~"h.he""#,
    r#"note=~"\\Qa.b\\E""#,
    r#"note=~"a{,3}""#,
    r#"note=~"[[]""#,
    r#"note=~"[&]&""#,
    "{note=x",
    "note=x}",
    r#"note="x"}"#,
    "_x:y=z",
    "a=b=c",
    "a==b",
    "a=~b=~c",
    "a=!b",
    "a = ",
    "a",
    "=b",
    "1a=b",
    "a-b=c",
    r#"a="b"#,
    r#"a=b""#,
    r#"a="b"c"#,
    r#"a="b" "c""#,
    r#"a="b\"#,
    r"a=b\",
    r#"a=~"(""#,
    r#"a=~"a**""#,
    r#"a=~"[z-a]""#,
    r#"a=~"(?P<n>x)+""#,
    r#"a=~"x{2,1}""#,
    r#"a=~"*""#,
    "a=b,,c=d",
    ",a=b",
    "a=b c=d",
];

/// Alerts that the texts tell apart.
const ALERTS: &[&[(&str, &str)]] = &[
    &[("alertname", "DiskFull"), ("severity", "warning"), ("instance", "node-12:9100"), ("note", "a,b")],
    &[("alertname", "diskfull"), ("severity", "critical"), ("instance", "node-7"), ("note", "höhe")],
    &[("alertname", "Other"), ("team", "wmcs"), ("note", "a.b"), ("a", "b")],
    &[("note", "say \"hi\""), ("a", "=b"), ("_x:y", "z")],
    &[("note", "a\nb"), ("a", "b=c"), ("instance", "node-\\d")],
    &[("note", "back\\slash"), ("a", "x")],
    &[("note", "{{7*7}}"), ("a", "b\\")],
    &[("note", "x"), ("a", "b c=d")],
    &[("note", "["), ("a", "xx")],
    &[("note", "a{,3}"), ("a", "")],
    &[("note", "&&"), ("a", "~b=~c")],
];

fn labels(alert: &[(&str, &str)]) -> BTreeMap<String, String> {
    alert.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A configuration with one route for each text, whose receiver is the text's number.
fn config(folder: &Path, texts: &[(usize, &str)]) -> std::path::PathBuf {
    let mut text = String::from("route:\n  receiver: none\n  routes:\n");
    let mut receivers = String::from("receivers:\n  - name: none\n");
    for (number, matchers) in texts {
        // JSON's quotes are YAML's.
        let quoted = serde_json::to_string(matchers).unwrap();
        text += &format!("    - {{ receiver: r{number}, continue: true, matchers: [{quoted}] }}\n");
        receivers += &format!("  - name: r{number}\n");
    }
    let path = folder.join("alertmanager.yml");
    std::fs::write(&path, text + &receivers).unwrap();
    path
}

fn amtool() -> Command {
    let mut command = Command::new("amtool");
    command.env("HOME", "/nonexistent");
    command
}

#[test]
fn alertmanager_reads_and_matches_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut understood: Vec<(usize, &str, Vec<Matcher>)> = Vec::new();
    for (number, text) in TEXTS.iter().enumerate() {
        let path = config(folder.path(), &[(number, text)]);
        let output =
            amtool().arg("check-config").arg(&path).output().expect("amtool of prometheus-alertmanager");
        let ours = read_classic_matchers(text);
        assert_eq!(
            ours.is_ok(),
            output.status.success(),
            "`{text}`: {ours:?}\n{}",
            String::from_utf8_lossy(&output.stdout)
        );
        if let Ok(matchers) = ours {
            understood.push((number, text, matchers));
        }
    }
    assert!(understood.len() > 30, "most texts are matchers");
    let texts: Vec<(usize, &str)> = understood.iter().map(|(number, text, _)| (*number, *text)).collect();
    let path = config(folder.path(), &texts);
    for alert in ALERTS {
        let mut command = amtool();
        command.args(["config", "routes", "test", "--config.file"]).arg(&path);
        for (name, value) in *alert {
            // It reads these as it reads matchers.
            command.arg(format!("{name}={}", serde_json::to_string(value).unwrap()));
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{alert:?}: {}", String::from_utf8_lossy(&output.stderr));
        let mut theirs: Vec<String> =
            String::from_utf8(output.stdout).unwrap().trim().split(',').map(str::to_owned).collect();
        let mut ours: Vec<String> = understood
            .iter()
            .filter(|(_, _, matchers)| matches_all(matchers, &labels(alert)))
            .map(|(number, ..)| format!("r{number}"))
            .collect();
        if ours.is_empty() {
            ours.push("none".into());
        }
        theirs.sort();
        ours.sort();
        assert_eq!(ours, theirs, "{alert:?}");
    }
}
