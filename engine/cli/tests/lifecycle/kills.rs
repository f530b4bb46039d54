//! T39: `kill -9` at twenty points while a tool is archived and deleted. There is one archive, the first one; it is never
//! written again; nothing is deleted before it is whole; and what was begun is finished.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::Duration;

use crate::blows::{Blow, count, kill_after, strike};
use crate::common::Started;
use crate::site::{ENTRIES, Site, Tool};

/// Nothing is long enough to be hit by chance alone: commits, moves and removals are hit by their number.
const CALLS: [(&str, usize); 3] = [("fsync", 11), ("unlinkat", 4), ("renameat2", 3)];
/// And so many at any moment.
const MOMENTS: usize = 8;

const NAMES: [&str; 31] = [
    "alder", "ash", "aspen", "beech", "birch", "box", "cedar", "cherry", "elder", "elm", "fir", "hazel",
    "holly", "larch", "lime", "maple", "oak", "pine", "plane", "poplar", "rowan", "spruce", "willow", "yew",
    "alerce", "baobab", "cacao", "ebony", "fig", "ginkgo", "juniper",
];

fn tool(index: usize) -> Tool {
    Tool { name: NAMES[index], number: 51_000 + u32::try_from(index).unwrap() }
}

pub(crate) fn words(tool: Tool) -> Vec<String> {
    let inputs = [format!("tool={}", tool.name), format!("number={}", tool.number)];
    let begin = ["run", "tool-delete", "--env", "test", "--yes"].map(ToOwned::to_owned);
    begin.into_iter().chain(inputs.into_iter().flat_map(|input| ["-i".to_owned(), input])).collect()
}

/// What an archive is: which file, when it was written, and what is in it.
pub(crate) type Seen = (u64, i64, String);

/// What must hold at every moment; gives the archive, if there is one.
#[track_caller]
pub(crate) fn holds(site: &Site, tool: Tool, first: Option<&Seen>, when: &str) -> Option<Seen> {
    let seen = fs::metadata(site.archive(tool)).ok().map(|file| {
        let sum = Command::new("sha256sum").arg(site.archive(tool)).output().unwrap();
        (file.ino(), file.mtime(), String::from_utf8(sum.stdout).unwrap()[..64].to_owned())
    });
    if let Some(first) = first {
        assert_eq!(seen.as_ref(), Some(first), "{when}: the archive is not the first one any more");
    }
    // An archive under its name is whole, whatever the moment.
    if seen.is_some() {
        assert!(site.listed(tool).contains("_manifest.jsonl"), "{when}: {}", site.listed(tool));
    }
    assert!(
        seen.is_some() || site.home_is_somewhere(tool),
        "{when}: there is neither a whole home nor an archive"
    );
    let deleted = site.databases(tool).len() < 2 || site.entries(tool) < ENTRIES;
    assert!(!deleted || seen.is_some(), "{when}: something was deleted and is not archived");
    seen
}

#[test]
fn t39_killed_at_twenty_points_there_is_one_archive_and_everything_is_finished() {
    let site = Site::new();
    for index in 0..NAMES.len() {
        site.create(tool(index));
        site.run("tool-disable", &[&format!("tool={}", tool(index).name)]).expect(0);
    }
    let neighbour = Tool { name: "birds", number: 510_001 };
    site.create(neighbour);
    site.on_day(41, 0);
    let mut next = 0;
    let mut fresh = || {
        next += 1;
        tool(next - 1)
    };

    let mut blows = Vec::new();
    for (call, points) in CALLS {
        let tool = fresh();
        let words = words(tool);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let calls = count(&site.project, &words, call, 0);
        site.is_archived_and_gone(tool);
        assert!(calls >= points, "{calls} calls of {call} are too few");
        // What comes after the archive is the shorter part, and the one that matters most: the points lie closer there.
        let place = |point: usize| {
            calls - calls * (points - point) * (points - point) / ((points + 1) * (points + 1))
        };
        blows.extend((0..points).map(|point| Blow::Call(call, place(point).max(1))));
    }
    let begun = std::time::Instant::now();
    let unharmed = fresh();
    let ran = site
        .run("tool-delete", &[&format!("tool={}", unharmed.name), &format!("number={}", unharmed.number)]);
    ran.expect(0);
    let length = begun.elapsed() / 2;
    blows.extend((1..=MOMENTS).map(|part| Blow::After(length * u32::try_from(part).unwrap() / 9)));
    assert!(blows.len() >= 20);

    let (mut killed, mut with_archive, mut without) = (0, 0, 0);
    for blow in blows {
        let tool = fresh();
        let when = format!("{blow:?}, {}", tool.name);
        let words = words(tool);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let died = strike(&site.project, &words, blow);
        killed += usize::from(died.code != Some(0));
        let mut first = holds(&site, tool, None, &when);
        *(if first.is_some() { &mut with_archive } else { &mut without }) += 1;
        eprintln!(
            "{when}: ended with {:?}, {} an archive",
            died.code,
            if first.is_some() { "with" } else { "without" }
        );
        let runs = site.project.farrier(&["runs", "-n", "1", "-o", "json"]).expect(0).json();
        let stored =
            site.project.farrier(&["show", runs[0]["id"].as_str().unwrap(), "-o", "json"]).expect(0).json();
        let ours = runs[0]["runbook"] == "tool-delete" && stored["inputs"]["tool"] == tool.name;
        if !ours {
            // It died before the run was promised to anyone.
            assert!(site.home_is_whole(tool) && first.is_none(), "{when}");
            site.project.farrier(&words).expect(0);
        } else if stored["state"] != "succeeded" {
            let id = stored["id"].as_str().unwrap();
            // The second life is cut short as well.
            let again = Started::from(site.project.command(&["resume", id, "--yes"]));
            kill_after(again, Duration::from_millis(60));
            first = holds(&site, tool, first.as_ref(), &when);
            let state = site.project.farrier(&["show", id, "-o", "json"]).expect(0).json()["state"].clone();
            if state != "succeeded" {
                let resumed = site.project.farrier(&["resume", id, "--yes"]);
                assert_eq!(resumed.code, Some(0), "{when}: {resumed}");
            }
            holds(&site, tool, first.as_ref(), &when);
        }
        site.is_archived_and_gone(tool);
        let digest = holds(&site, tool, first.as_ref(), &when).unwrap().2;
        let shown = site.project.show_last();
        assert_eq!(shown["outputs"]["sha256"], digest.as_str(), "{when}: what was verified is what is there");
    }
    site.is_alive(neighbour);
    assert_eq!(
        fs::read_dir(site.project.path("archives"))
            .unwrap()
            .filter(|entry| { entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".tgz") })
            .count(),
        next,
        "one archive for each"
    );
    assert!(killed >= 20, "too few were killed in the middle: {killed}");
    assert!(with_archive >= 4 && without >= 4, "{with_archive} after the archive, {without} before");
    eprintln!("{killed} killed, {with_archive} of them after the archive was there");
    site.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}
