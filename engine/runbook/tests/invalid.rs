//! Every file of `testdata/invalid` is wrong in the way its name says; the snapshot is what the author sees. The name
//! also says what the file is: `.environment.yaml`, `.project.yaml`, `.test.yaml`, or else a runbook.

mod support;

use std::path::Path;

use support::{FileKind, catalog, diagnose};

fn shows_its_mistakes(path: &Path) -> datatest_stable::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or("a name in UTF-8")?;
    let bytes = std::fs::read(path)?;
    let out = diagnose(FileKind::of(name), name, &bytes, &catalog());
    assert!(out.has_errors(), "{name} is accepted");
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name.trim_end_matches(".yaml"), out.render(false)));
    Ok(())
}

datatest_stable::harness! {
    { test = shows_its_mistakes, root = "../../testdata/invalid", pattern = r"^[^/]*\.yaml$" },
}
