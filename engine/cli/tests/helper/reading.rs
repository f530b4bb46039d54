//! `updatetools` with its homes on another host: the same plan and the same rows as with mounted ones, and a reading that
//! breaks off is a failure and never an empty answer.

use std::os::unix::fs::symlink;

use farrier_testkit::mariadb::{Database, MariaDb};
use farrier_testkit::slapd::Slapd;
use farrier_testkit::sshd::{Options, Sshd};
use farrier_testkit::wait_until;
use farrier_toolforge::{Dialect, DriftCounts, Tables, World};
use serde_json::{Value, json};

use crate::common::{Project, Started, directory, expected_tables, planned, rows, rows_of, same_rows, site};
use crate::far::{Held, behind, helper_of, kill_helpers, roots_file};

/// When the old rows were written.
const BEFORE: i64 = 1_700_000_000;

/// A directory, and projects that bring a database of their own up to date.
struct Toolforge {
    world: World,
    server: Slapd,
    sshd: Sshd,
    now: Tables,
}

impl Toolforge {
    fn new(tools: usize) -> Toolforge {
        let world = World::generate(tools, 21);
        let now = expected_tables(&world, 0);
        let server = directory(&world, Some(500));
        Toolforge { world, server, sshd: Sshd::start(Options::default()), now }
    }

    /// A database that is behind, and a project for it whose homes are mounted.
    fn project(&self) -> (Project, Database) {
        let project = Project::demo();
        let counts = DriftCounts { added: 5, changed: 20, removed: 3, renamed: 2 };
        let drifted = self.now.drifted(counts, 21, BEFORE);
        let database = MariaDb::shared().fresh_database();
        database.exec(&Dialect::MariaDb.schema());
        database.exec(&drifted.tables.insert_sql(Dialect::MariaDb));
        site(&project, &self.world, &self.server, &self.server.url(), &database.url());
        (project, database)
    }

    /// The same with homes on another host.
    fn remote(&self) -> (Project, Database) {
        let (project, database) = self.project();
        self.put_behind(&project);
        (project, database)
    }

    fn put_behind(&self, project: &Project) {
        roots_file(project, &[("tool_homes", "homes")]);
        let mut environment: Value = serde_json::from_str(&project.read("environments/test.yaml")).unwrap();
        environment["targets"]["homes"] = behind(&self.sshd, project, &helper_of(project));
        project.write("environments/test.yaml", &environment.to_string());
    }
}

/// Takes out when rows were brought up to date, to the second: two plans are made one after the other.
fn without_moments(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("updated");
            fields.values_mut().for_each(without_moments);
        }
        Value::Array(items) => items.iter_mut().for_each(without_moments),
        _ => {}
    }
}

const RUN: [&str; 6] = ["run", "updatetools", "--env", "test", "--yes", "--accept-guards"];

#[test]
fn a_toolforge_whose_homes_are_on_another_host() {
    let toolforge = Toolforge::new(600);
    let (project, mounted) = toolforge.project();
    let plan = |project: &Project| {
        let plan = project.farrier(&["plan", "updatetools", "--env", "test", "-o", "json"]).expect(0);
        let mut steps = plan.json()["steps"].clone();
        without_moments(&mut steps);
        steps
    };
    let here = plan(&project);
    toolforge.put_behind(&project);
    assert_eq!(toolforge.sshd.logins(), 0);
    let there = plan(&project);
    assert!(toolforge.sshd.logins() > 0, "it was not asked over SSH: {}", toolforge.sshd.log());
    assert_eq!(here, there);
    assert!(
        !planned(&json!({ "steps": here }), "tools_table").updated.is_empty(),
        "there is something to do"
    );

    // One database is brought up to date with each, and they are the same to the byte.
    let (other, remote) = toolforge.remote();
    other.farrier(&RUN).expect(0);
    same_rows(&rows_of(&remote), &rows(&toolforge.now), "by what was read on another host");
    site(&project, &toolforge.world, &toolforge.server, &toolforge.server.url(), &mounted.url());
    project.farrier(&RUN).expect(0);
    same_rows(&rows_of(&mounted), &rows_of(&remote), "by what was read here");
    let (one, two) = (project.show_last(), other.show_last());
    assert_eq!(one["outputs"], two["outputs"]);
    other.farrier(&RUN).expect(0).says("updatetools succeeded: no changes");
}

/// The step waits for its file long enough for something to happen to it.
fn patient(project: &Project) {
    let runbook = project.read("runbooks/directory/updatetools.yaml");
    let patient = runbook.replace("      lines: joined\n", "      lines: joined\n      timeout: 1h\n");
    assert_ne!(runbook, patient);
    project.write("runbooks/directory/updatetools.yaml", &patient);
}

#[test]
fn a_reading_that_breaks_off_fails_and_changes_nothing() {
    let toolforge = Toolforge::new(60);
    for blow in ["killed", "cut"] {
        let (project, database) = toolforge.remote();
        patient(&project);
        let before = rows_of(&database);
        let home = toolforge.now.tools.iter().find(|tool| tool.description.is_some()).unwrap();
        let home = home.home.rsplit('/').next().unwrap();
        let held = Held::at(&project, &format!("homes/{home}/.description"));
        let run = Started::from(project.command(&RUN));
        wait_until("the helper reads", || project.path("now").exists());
        if blow == "killed" {
            assert!(kill_helpers(&project) > 0);
        } else {
            toolforge.sshd.cut();
        }
        let failed = run.end().expect(69);
        failed.complains("✗ texts").complains("the files helper `ssh` gave no answer");
        drop(held);
        wait_until("no helper is left", || kill_helpers(&project) == 0);
        same_rows(&rows_of(&database), &before, blow);
        assert_eq!(project.show_last()["state"], json!("failed"));
        // The next run reads everything again.
        project.farrier(&RUN).expect(0);
        same_rows(&rows_of(&database), &rows(&toolforge.now), blow);
    }
}

const TEXTS: &str = "runbook: texts
summary: Read what may not be readable
owner: testers
risk: read_only
targets: { homes: files }
steps:
  texts:
    uses: files.read_many
    with:
      target: homes
      root: tool_homes
      items: [plain, hangs, pipe, outside, bytes, long, closed, missing, .., .farrier-private]
      as: tool
      key: tool
      folder: [\"${ tool }\"]
      read: { description: .description, toolinfo: [toolinfo.json, public_html/toolinfo.json] }
      max_bytes: 1000
      timeout: 2s
outputs:
  files: ${ steps.texts.files }
  notes: ${ steps.texts.notes }
  read: ${ steps.texts.read }
  folders: ${ steps.texts.folders }
";

/// Whatever is wrong with a file is told in the same words, also when the disk does not answer for it.
#[test]
fn what_cannot_be_read_is_told_alike() {
    let (project, sshd) = (Project::new(), Sshd::start(Options::default()));
    project.write("runbooks/texts.yaml", TEXTS);
    for home in ["plain", "hangs", "pipe", "outside", "bytes", "long", "closed"] {
        project.write(&format!("homes/{home}/toolinfo.json"), home);
    }
    project.write("homes/plain/.description", "plain");
    project.write("homes/hangs/.description", "hangs");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        project.path("homes/pipe/.description"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    symlink("/etc/passwd", project.path("homes/outside/.description")).unwrap();
    std::fs::write(project.path("homes/bytes/.description"), b"a\xff").unwrap();
    project.write("homes/long/.description", &"x".repeat(1001));
    roots_file(&project, &[("tool_homes", "homes")]);
    let _held = Held::at(&project, "homes/hangs/.description");
    let mut outputs = Vec::new();
    for homes in [
        json!({ "kind": "files", "roots": { "tool_homes": project.path("homes") } }),
        json!({ "kind": "files", "via": { "helper": helper_of(&project) } }),
        behind(&sshd, &project, &helper_of(&project)),
    ] {
        project.environment(&json!({ "homes": homes }));
        project.farrier(&["run", "texts", "--env", "test", "--yes"]).expect(0);
        outputs.push(project.show_last()["outputs"].clone());
    }
    let text = outputs[0].to_string();
    for expected in [
        "it did not answer within 2s",
        "it was not read because the file before it did not answer",
        "it is a pipe",
        "it is a link that leaves its folder",
        "it is not UTF-8 text at byte 1",
        "it is larger than 1000 bytes",
        "`..` cannot be a segment of a path",
        "no path leads there",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert_eq!(outputs[0], outputs[1]);
    assert_eq!(outputs[0], outputs[2]);
    assert_eq!((&outputs[0]["folders"], &outputs[0]["read"]), (&json!(7), &json!(7)), "{text}");
}
