//! Every code of a diagnostic, with the page that explains it.
//!
//! The page is `site/errors/E0xxx.md`: what the code means, a wrong example, the right one. Its first line gives the
//! title. A code's number is never used for something else.

use std::fmt;

/// The code of a diagnostic. Every code is a constant of this module.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(&'static str);

impl Code {
    /// `E0201`.
    pub fn as_str(self) -> &'static str {
        self.0
    }

    /// The page, in Markdown.
    pub fn page(self) -> &'static str {
        explain(self.0).unwrap_or_default()
    }

    /// What the code is about, in a few words.
    pub fn title(self) -> &'static str {
        let line = self.page().lines().next().unwrap_or_default();
        line.split_once(": ").map_or(line, |(_, title)| title)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The page of a code, in Markdown.
pub fn explain(code: &str) -> Option<&'static str> {
    ALL.binary_search_by_key(&code, |(known, _)| known.0).ok().map(|index| ALL[index].1)
}

macro_rules! codes {
    ($($name:ident = $code:ident),+ $(,)?) => {
        $(
            #[doc = concat!("See `site/errors/", stringify!($code), ".md`.")]
            pub const $name: Code = Code(stringify!($code));
        )+
        /// Every code with its page, by number.
        pub const ALL: &[(Code, &str)] =
            &[$(($name, include_str!(concat!("../../../site/errors/", stringify!($code), ".md")))),+];
    };
}

// Sorted by number: `explain` relies on it.
codes! {
    // E01xx: the text is not YAML as Farrier reads it.
    FILE_TOO_LARGE = E0101,
    NOT_UTF8 = E0102,
    BYTE_ORDER_MARK = E0103,
    CONTROL_CHARACTER = E0104,
    SYNTAX = E0105,
    TAB_INDENT = E0106,
    EMPTY_FILE = E0107,
    SECOND_DOCUMENT = E0108,
    ANCHOR = E0109,
    ALIAS = E0110,
    TAG = E0111,
    MERGE_KEY = E0112,
    DUPLICATE_KEY = E0113,
    KEY_NOT_TEXT = E0114,
    TOO_DEEP = E0115,
    TOO_MANY_NODES = E0116,
    DIRECTIVE = E0117,

    // E02xx: the shape is not that of the type.
    UNKNOWN_KEY = E0201,
    MISSING_KEY = E0202,
    WRONG_TYPE = E0203,
    NOT_BOOL = E0204,
    NOT_NUMBER = E0205,
    NOT_ONE_OF = E0207,
    NO_VALUE = E0208,
    QUOTED = E0209,
    OUT_OF_RANGE = E0210,
    WRONG_FORM = E0211,
    WRONG_LENGTH = E0212,
    NOT_ONE_KEY = E0213,
    REFUSED_VALUE = E0214,

    // E03xx: names and references.

    // E04xx: expressions.

    // E05xx: the graph.

    // E06xx: safety.

    // E07xx: triggers, alerts, schedules.

    // E08xx: environments and the project file.
    UNKNOWN_KIND = E0801,
    KIND_OR_GROUP = E0802,
    SECRET_IN_FILE = E0803,
    UNKNOWN_MEMBER = E0804,
    MIXED_GROUP = E0805,
    OUTSIDE_PROJECT = E0806,
    NO_LIMIT = E0807,

    // E09xx: tests of runbooks.
    EXPECTS_NOTHING = E0901,
    SAME_TEST_NAME = E0902,
    RUN_AFTER_FAILED_PLAN = E0903,
    TEST_UNKNOWN_STEP = E0904,
    TEST_UNKNOWN_INPUT = E0905,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sorted_and_have_titled_pages() {
        for pair in ALL.windows(2) {
            assert!(pair[0].0 < pair[1].0, "{} must stand before {}", pair[1].0, pair[0].0);
        }
        for (code, page) in ALL {
            assert!(
                page.starts_with(&format!("# {code}: ")),
                "the page of {code} begins with its code and title"
            );
            assert!(!code.title().is_empty());
        }
    }

    #[test]
    fn every_page_has_a_code() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../site/errors");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let code = name.strip_suffix(".md").unwrap();
            assert!(explain(code).is_some(), "site/errors/{name} has no code in codes.rs");
        }
    }
}
