//! A superuser's powers, cut down.

use farrier_model::Failure;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::refused;

/// To read, change, give away and remove files of all accounts, and nothing else.
pub const OTHER_PEOPLES_FILES: CapabilitySet = CapabilitySet::DAC_READ_SEARCH
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::LINUX_IMMUTABLE);

/// That, and to become another account or to answer at a low port: what a program may need, but for the machine itself.
pub const PROGRAMS: CapabilitySet = OTHER_PEOPLES_FILES
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// Keeps of what the calling thread has no more than these.
///
/// # Errors
/// The kernel refuses.
pub fn keep(kept: CapabilitySet) -> Result<(), Failure> {
    let cut = || {
        let had = capabilities(None)?;
        set_capabilities(
            None,
            CapabilitySets {
                effective: had.effective & kept,
                permitted: had.permitted & kept,
                inheritable: CapabilitySet::empty(),
            },
        )
    };
    cut().map_err(|error| refused("capabilities", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_is_gone_for_good() {
        let (first, second, left) = std::thread::spawn(|| {
            let had = capabilities(None).unwrap().permitted;
            keep(OTHER_PEOPLES_FILES).unwrap();
            let left = capabilities(None).unwrap();
            let again = set_capabilities(
                None,
                CapabilitySets { effective: had, permitted: had, inheritable: CapabilitySet::empty() },
            );
            (had, again.is_ok(), left)
        })
        .join()
        .unwrap();
        assert_eq!(left.permitted, first & OTHER_PEOPLES_FILES);
        assert_eq!(left.effective & !OTHER_PEOPLES_FILES, CapabilitySet::empty());
        // Nothing was taken from an account that had nothing.
        assert_eq!(second, first == left.permitted);
    }
}
