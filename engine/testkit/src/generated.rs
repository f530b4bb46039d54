//! Files of the repository that are made from the code.

use std::path::Path;

/// Set where such files are to be written anew; `cargo xtask generate` sets it.
pub const WRITE_VARIABLE: &str = "FARRIER_GENERATE";

/// Holds that the file, named from the repository's root, is what the code makes it; or writes it anew.
///
/// # Panics
/// When it is not.
pub fn is_current(file: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
    if std::env::var_os(WRITE_VARIABLE).is_some() {
        std::fs::write(&path, made).unwrap_or_else(|error| panic!("cannot write {file}: {error}"));
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(made == stored, "{file} is not what the code says; `cargo xtask generate` makes it again");
}
