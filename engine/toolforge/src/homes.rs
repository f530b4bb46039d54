//! The tools' homes as files on a disk.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::world::{File, World};

impl World {
    /// Writes every tool's home below `dir`, one folder per tool, named as the tool is.
    ///
    /// # Errors
    /// When the disk refuses, or something is already there.
    pub fn write_homes(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        for tool in &self.tools {
            let Some(home) = &tool.home else { continue };
            let path = dir.join(&tool.name);
            fs::create_dir(&path)?;
            home.description.write(&path, ".description")?;
            home.toolinfo.write(&path, "toolinfo.json")?;
            if home.public_toolinfo != File::Missing {
                fs::create_dir(path.join("public_html"))?;
            }
            home.public_toolinfo.write(&path, "public_html/toolinfo.json")?;
        }
        Ok(())
    }
}

impl File {
    fn write(&self, home: &Path, name: &str) -> io::Result<()> {
        let path = home.join(name);
        match self {
            File::Missing => Ok(()),
            File::Text(text) => fs::write(path, text),
            File::Bytes(bytes) => fs::write(path, bytes),
            File::Unreadable(text) => {
                fs::write(&path, text)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o000))
            }
            File::Pipe => Ok(mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?),
            File::LinkInside(text) => {
                let inside = name.replace('/', "-").trim_start_matches('.').to_owned() + ".real";
                fs::write(home.join(&inside), text)?;
                // Relative, so that the home can be moved; one level up from `public_html`.
                symlink(if name.contains('/') { format!("../{inside}") } else { inside }, path)
            }
            File::LinkOut(to) => symlink(to, path),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileTypeExt;

    use super::*;

    #[test]
    fn homes_hold_what_the_world_says() {
        let world = World::generate(40, 5);
        let dir = tempfile::tempdir().unwrap();
        world.write_homes(dir.path()).unwrap();
        for tool in &world.tools {
            let path = dir.path().join(&tool.name);
            let Some(home) = &tool.home else {
                assert!(!path.exists());
                continue;
            };
            let places = [
                (".description", &home.description),
                ("toolinfo.json", &home.toolinfo),
                ("public_html/toolinfo.json", &home.public_toolinfo),
            ];
            for (name, file) in places {
                let place = path.join(name);
                let meta = fs::symlink_metadata(&place);
                match file {
                    File::Missing => assert!(meta.is_err()),
                    File::Text(text) | File::LinkInside(text) => {
                        assert_eq!(fs::read_to_string(place).unwrap(), *text);
                    }
                    File::Bytes(bytes) => assert_eq!(fs::read(place).unwrap(), *bytes),
                    File::Unreadable(_) => assert_eq!(meta.unwrap().permissions().mode() & 0o777, 0),
                    File::Pipe => assert!(meta.unwrap().file_type().is_fifo()),
                    File::LinkOut(to) => assert_eq!(fs::read_link(place).unwrap(), Path::new(to)),
                }
            }
        }
    }
}
