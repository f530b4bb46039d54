//! Database folders that are made once per machine and copied for each server: making one takes seconds, a copy none.

use std::ffi::OsString;
use std::fs::{DirBuilder, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process;

/// Makes `target` a copy of the template `name` of `version`, which `build` makes in an empty folder when this machine
/// has none yet. Owners and modes are kept.
pub(crate) fn copy(
    name: &str,
    version: &str,
    target: &Path,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let template = template(&cache(&std::env::temp_dir())?, name, version, build)?;
    let mut contents = OsString::from(template);
    contents.push("/.");
    std::fs::create_dir_all(target).with_context(|| format!("cannot make `{}`", target.display()))?;
    process::run(Command::new("cp").args(["-a", "--reflink=auto", "--"]).arg(contents).arg(target), "")?;
    Ok(())
}

/// The folder of this account's templates. Its name can be guessed and the folder above is everyone's, so one that
/// another account left there is refused.
fn cache(above: &Path) -> Result<PathBuf> {
    let own_id = std::fs::metadata("/proc/self").context("cannot read /proc/self")?.uid();
    let cache = above.join(format!("farrier-testkit-{own_id}"));
    // Others may pass through: a server's own account has to reach its folder while that is built.
    if let Err(error) = DirBuilder::new().mode(0o711).create(&cache) {
        ensure!(error.kind() == ErrorKind::AlreadyExists, "cannot make `{}`: {error}", cache.display());
    }
    let found =
        std::fs::symlink_metadata(&cache).with_context(|| format!("cannot look at `{}`", cache.display()))?;
    ensure!(
        found.is_dir() && found.uid() == own_id,
        "`{}` belongs to another account; remove it",
        cache.display()
    );
    Ok(cache)
}

/// Where the template stands, made first when it does not stand there. Several processes may do so at once: each
/// builds in a folder of its own, and the first to rename its folder wins.
fn template(
    cache: &Path,
    name: &str,
    version: &str,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    version.hash(&mut hasher);
    let template = cache.join(format!("{name}-{:016x}", hasher.finish()));
    if !template.exists() {
        let workshop = tempfile::Builder::new()
            .prefix("new-")
            .permissions(Permissions::from_mode(0o711))
            .tempdir_in(cache)
            .with_context(|| format!("cannot make a folder in `{}`", cache.display()))?;
        let built = workshop.path().join("template");
        DirBuilder::new().mode(0o700).create(&built).context("cannot make the template's folder")?;
        build(&built).with_context(|| format!("cannot make the template for {name}"))?;
        if let Err(error) = std::fs::rename(&built, &template) {
            ensure!(template.exists(), "cannot move the template for {name} into place: {error}");
        }
    }
    Ok(template)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_built_once_per_version_and_copied_whole() {
        let cache = crate::temp_dir();
        let mut built = 0;
        for version in ["1", "1", "2"] {
            template(cache.path(), "sample", version, |folder| {
                built += 1;
                Ok(std::fs::write(folder.join("file"), version)?)
            })
            .unwrap();
        }
        assert_eq!(built, 2);
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 2, "no workshop is left");
    }

    #[test]
    fn builders_at_once_end_with_one_template() {
        let cache = crate::temp_dir();
        let barrier = std::sync::Barrier::new(4);
        let places: Vec<PathBuf> = std::thread::scope(|scope| {
            let builders: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        template(cache.path(), "sample", "1", |folder| {
                            std::fs::write(folder.join("file"), "x")?;
                            barrier.wait();
                            Ok(())
                        })
                        .unwrap()
                    })
                })
                .collect();
            builders.into_iter().map(|builder| builder.join().unwrap()).collect()
        });
        assert!(places.iter().all(|place| *place == places[0] && place.join("file").exists()), "{places:?}");
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_cache_is_refused_when_it_is_not_a_folder_of_our_own() {
        let above = crate::temp_dir();
        let made = cache(above.path()).unwrap();
        assert_eq!(cache(above.path()).unwrap(), made);
        std::fs::remove_dir(&made).unwrap();
        std::os::unix::fs::symlink("/", &made).unwrap();
        assert!(cache(above.path()).unwrap_err().to_string().contains("remove it"));
    }

    #[test]
    fn a_failed_build_leaves_nothing_behind() {
        let cache = crate::temp_dir();
        let error = template(cache.path(), "sample", "1", |_| anyhow::bail!("no space")).unwrap_err();
        assert_eq!(format!("{error:#}"), "cannot make the template for sample: no space");
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
    }
}
