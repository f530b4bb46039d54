//! Mail: send; by a mail server, or into a folder that stands in for one.
//!
//! Read first: `target` (what an environment says), `letter` (what a mail is made of), then `smtp` (when a mail is sent,
//! not sent, or in doubt) and `folder` (the stand-in).
//!
//! **Rule:** a header ends where it ends. Addresses and subjects with control characters are refused, and everything
//! else is encoded by the library that writes the mail.

mod folder;
mod letter;
mod send;
mod smtp;
mod target;
#[cfg(test)]
mod tests;

use farrier_action::{ActionRegistry, RegistryError};

pub use target::{Mail, MailConfig, MailReader, MailWriter};

/// Adds the target kind `mail` and its action.
///
/// # Errors
/// When one of the names is taken.
pub fn register(registry: &mut ActionRegistry) -> Result<(), RegistryError> {
    registry.target::<Mail>()?;
    registry.action::<send::Send>()
}
