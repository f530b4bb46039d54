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
    NAME_IS_NOT_STEM = E0301,
    BAD_ID = E0302,
    SAME_RUNBOOK = E0303,
    SAME_STEP = E0304,
    NO_STEPS = E0305,
    UNKNOWN_ACTION = E0306,
    UNKNOWN_RUNBOOK = E0307,
    RECURSION = E0308,
    CHILD_HAS_ERRORS = E0309,
    UNKNOWN_TARGET_KIND = E0310,
    UNKNOWN_TARGET = E0311,
    WRONG_TARGET = E0312,
    NOT_A_GROUP = E0313,
    UNKNOWN_STEP = E0314,
    UNKNOWN_INPUT = E0315,
    UNKNOWN_VAR = E0316,
    UNKNOWN_FIELD = E0317,
    UNUSED_NAME = E0318,
    SAME_SIGNAL = E0319,
    UNKNOWN_SIGNAL = E0320,

    // E04xx: expressions.
    BAD_EXPRESSION = E0401,
    NOT_BARE = E0402,
    MIXED_TEXT = E0403,
    EXPRESSION_IN_LITERAL = E0404,
    UNKNOWN_PARAM = E0405,
    UNUSED_PARAM = E0406,
    UNKNOWN_NAME = E0407,
    NAME_NOT_HERE = E0408,
    WHOLE_GROUP = E0409,
    TYPE_MISMATCH = E0410,
    NOT_CONSTANT = E0411,
    VARS_CYCLE = E0412,
    FOREIGN_BRACES = E0413,

    // E05xx: the graph.
    CYCLE = E0501,
    NEEDS_FINALLY = E0502,
    ABSENT_OUTPUT = E0503,
    BAD_DEFAULT_OUTPUT = E0504,
    BAD_FOR_EACH = E0505,
    BAD_DURATION = E0506,
    BAD_VERIFY = E0507,

    // E06xx: safety.
    RISK_ABOVE_CEILING = E0601,
    UNDO_MISSING = E0602,
    CANNOT_RESTORE = E0603,
    UNDO_ONCE = E0604,
    RETRY_ONCE = E0605,
    BAD_RETRY = E0606,
    DELETES_WITHOUT_NEEDS = E0607,
    UNDO_AFTER_COMMIT = E0608,
    NOT_IN_FINALLY = E0609,
    BAD_GUARD = E0610,
    BAD_LOCK = E0611,
    BAD_ON_PARKED = E0612,

    // E07xx: inputs and triggers.
    BAD_PATTERN = E0701,
    MIN_ABOVE_MAX = E0702,
    INPUT_RULE = E0703,
    BAD_DEFAULT = E0704,
    ALERT_WITHOUT_PATTERN = E0705,
    BAD_TRIGGER = E0706,
    BAD_CRON = E0707,
    BAD_TIMEZONE = E0708,
    TRIGGER_LACKS_INPUT = E0709,
    BAD_MATCHER = E0720,
    BAD_ALERT_RULE = E0721,
    BAD_ALERT_TEST = E0722,

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
    TEST_UNKNOWN_SIGNAL = E0906,
    TEST_EVENT = E0907,
    TEST_ACTION = E0908,
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
