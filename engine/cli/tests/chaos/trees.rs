//! A runbook that archives a tree, reads the archive back and deletes the tree, killed at any point.

use std::fs;

use serde_json::json;

use crate::blows::{Blow, count, strike};
use crate::common::Project;
use crate::form::Form;
use crate::world::{resume_to_the_end, stored_run};

const ARGS: [&str; 5] = ["run", "archive", "--env", "test", "--yes"];

fn world() -> Project {
    let project = Project::new();
    let owner = rustix::process::getuid().as_raw();
    project.write(
        "runbooks/archive.yaml",
        &format!(
            "runbook: archive\nsummary: Archive, check, delete\nowner: tests\nrisk: destructive\n\
             targets: {{ homes: files }}\nsteps:\n  archive:\n    uses: files.archive\n    with:\n      target: homes\n\
             \x20     source: {{ root: homes, path: [foxes], owner: {owner} }}\n\
             \x20     into: {{ root: archives, path: [foxes.tgz], if_exists: fail }}\n    undo: restore\n\
             \x20 checked:\n    uses: files.check_archive\n\
             \x20   with: {{ target: homes, archive: '${{ steps.archive.file }}', \
             manifest: '${{ steps.archive.manifest }}' }}\n    expect:\n\
             \x20     - {{ that: result.sha256 == steps.archive.sha256, otherwise: it is another archive }}\n\
             \x20 delete:\n    uses: files.delete_tree\n    needs: [checked]\n    with:\n      target: homes\n\
             \x20     tree: {{ root: homes, path: [foxes] }}\n      archived_as: '${{ steps.checked.sha256 }}'\n\
             \x20   commit_point: true\n    undo: none\n"
        ),
    );
    project.write("homes/foxes/www/page", "a page");
    for file in 0..20 {
        project.write(&format!("homes/foxes/data/{file}"), &"numbers ".repeat(200 * file));
    }
    fs::create_dir(project.path("archives")).unwrap();
    let roots = json!({ "homes": project.path("homes"), "archives": project.path("archives") });
    project.environment(&json!({ "homes": { "kind": "files", "roots": roots } }));
    project
}

fn archive(project: &Project) -> Option<Vec<u8>> {
    fs::read(project.path("archives/foxes.tgz")).ok()
}

/// The files of the tree, in its place or in quarantine.
fn files_left(project: &Project) -> usize {
    fn count(folder: &std::path::Path) -> usize {
        fs::read_dir(folder).map_or(0, |entries| {
            entries
                .map(|entry| entry.unwrap().path())
                .map(|path| if path.is_dir() { count(&path) } else { 1 })
                .sum()
        })
    }
    let quarantine = project.path("homes/.farrier-private/quarantine");
    count(&project.path("homes/foxes")) + count(&quarantine)
}

#[test]
fn killed_while_archiving_and_deleting_there_is_one_archive_and_nothing_is_deleted_without_it() {
    let form = Form::of(4);
    let whole = world();
    let commits = count(&whole, &ARGS, "fsync", 0);
    let files = files_left(&world());
    assert_eq!((files_left(&whole), archive(&whole).is_some()), (0, true), "undisturbed");
    let mut blows: Vec<Blow> =
        form.points(8, commits).into_iter().map(|nth| Blow::Call("fsync", nth)).collect();
    // Calls of the actions themselves: moving into quarantine and to the final name, and deleting.
    blows.extend((1..=4).map(|nth| Blow::Call("renameat2", nth)));
    blows.extend([1, 2, 5, 12, 20].map(|nth| Blow::Call("unlinkat", nth)));
    blows.extend([1, 3].map(|nth| Blow::Call("openat2", 10 * nth)));
    let (mut tried, mut killed) = (0, 0);
    for blow in blows {
        if form.is_over() {
            break;
        }
        let project = world();
        let died = strike(&project, &ARGS, blow);
        let dead = died.signal == Some(9);
        assert!(dead || died.code == Some(0), "{blow:?}: {died}");
        (tried, killed) = (tried + 1, killed + u32::from(dead));
        let at_death = archive(&project);
        assert!(at_death.is_some() || files_left(&project) == files, "{blow:?}: deleted without an archive");
        match stored_run(&project) {
            None => drop(project.farrier(&ARGS).expect(0)),
            Some(run) => {
                let end = resume_to_the_end(&project, &run, ToOwned::to_owned, |args| project.farrier(args));
                assert_eq!(end["state"], "succeeded", "{blow:?}: {end:#}");
            }
        }
        let now = archive(&project).unwrap();
        assert!(at_death.is_none_or(|first| first == now), "{blow:?}: the archive was written again");
        let names: Vec<_> =
            fs::read_dir(project.path("archives")).unwrap().map(|e| e.unwrap().file_name()).collect();
        let archives = names.iter().filter(|name| *name != ".farrier-private").count();
        assert_eq!((archives, files_left(&project)), (1, 0), "{blow:?}: {names:?}");
        project.farrier(&["fsck"]).expect(0);
    }
    eprintln!("killed {killed} times of {tried}");
    assert!(form.is_over() || killed >= 10, "too few deaths: {killed} of {tried}");
}
