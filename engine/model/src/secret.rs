//! [`Secret`]: text that cannot be printed, compared, serialised or stored.

use std::fmt;

/// A secret in memory. Its `Debug` shows nothing; [`Secret::reveal`] is the one way to the text and easy to search for.
#[derive(Clone, Default)]
pub struct Secret(String);

impl Secret {
    /// Takes the text in.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text, for the one call that sends it to its target.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
