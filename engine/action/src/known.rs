//! [`Known`]: secrets that somebody outside has been told, and their removal from all that is heard afterwards.
//!
//! A secret is found as it is, and as servers and programs like to show it: in base64 at any offset, in hexadecimal, with
//! percent signs, and with the escapes of JSON and HTML. It is removed before anything is cut off, so that no cut leaves half
//! of one. Who wants to give a secret away can; this is for those that repeat what they were asked when something is wrong.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use farrier_model::{Failure, Secret, Value};

/// What stands where a secret stood.
const INSTEAD: &str = "«secret»";
/// What is shorter hides nothing, and would tear holes into every text.
const SHORTEST: usize = 4;
/// Shorter pieces of what is encoded would be found in texts that have nothing to do with it.
const SHORTEST_CODED: usize = 6;

/// A failure has no more bytes than this.
const LONGEST_FAILURE: usize = 4096;

/// Secrets in all their forms.
#[derive(Clone, Default)]
pub struct Known {
    forms: Vec<Form>,
    search: Option<AhoCorasick>,
}

#[derive(Clone, PartialEq, Eq)]
struct Form {
    text: String,
    /// A part of something longer that is encoded as a whole.
    base64: bool,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Known({})", self.forms.len())
    }
}

impl Known {
    /// Adds a secret.
    pub fn learn(&mut self, secret: &Secret) {
        self.add(forms(secret.reveal()));
    }

    /// Adds all that another knows.
    pub fn join(&mut self, other: &Known) {
        self.add(other.forms.clone());
    }

    fn add(&mut self, forms: Vec<Form>) {
        let before = self.forms.len();
        for form in forms {
            if !self.forms.contains(&form) {
                self.forms.push(form);
            }
        }
        if self.forms.len() > before {
            self.search = AhoCorasick::builder()
                .kind(Some(AhoCorasickKind::ContiguousNFA))
                .match_kind(MatchKind::LeftmostLongest)
                .build(self.forms.iter().map(|form| &form.text))
                .ok();
        }
    }

    /// How many bytes after a cut have to be seen so that no secret is cut: as many as its longest form has.
    pub fn longest(&self) -> usize {
        self.forms.iter().map(|form| form.text.len() + 2).max().unwrap_or_default()
    }

    /// The text without secrets.
    pub fn text(&self, text: &str) -> String {
        match self.without(text.as_bytes()) {
            Cow::Borrowed(_) => text.to_owned(),
            // Whole characters were replaced by whole characters.
            Cow::Owned(clean) => String::from_utf8_lossy(&clean).into_owned(),
        }
    }

    /// The bytes without secrets.
    pub fn without<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        self.within(bytes, 0..bytes.len())
    }

    /// A part of the bytes without secrets, and without a part of one that crosses its edges, as far as
    /// [`Known::longest`] more bytes are given beyond them.
    pub fn within<'a>(&self, bytes: &'a [u8], part: Range<usize>) -> Cow<'a, [u8]> {
        let part = part.start.min(bytes.len())..part.end.min(bytes.len());
        let mut clean = Vec::new();
        let mut done = part.start;
        for found in self.search.iter().flat_map(|search| search.find_iter(bytes)) {
            let (mut start, mut end) = (found.start(), found.end());
            if self.forms[found.pattern().as_usize()].base64 {
                // The characters at either end depend on the secret, too, and on its neighbours.
                let coded = |at: usize| bytes.get(at).is_some_and(|byte| is_base64(*byte));
                if start > done && coded(start - 1) {
                    start -= 1;
                }
                if coded(end) {
                    end += 1;
                }
            }
            if end <= part.start {
                continue;
            }
            if start >= part.end {
                break;
            }
            clean.extend_from_slice(bytes.get(done..start).unwrap_or_default());
            clean.extend_from_slice(INSTEAD.as_bytes());
            done = end;
        }
        if clean.is_empty() {
            return Cow::Borrowed(bytes.get(part).unwrap_or_default());
        }
        clean.extend_from_slice(bytes.get(done..part.end).unwrap_or_default());
        Cow::Owned(clean)
    }

    /// The same of everything in a value: names, texts, and numbers, which a secret may be as well.
    pub fn value(&self, value: &Value) -> Value {
        match value {
            _ if self.search.is_none() => value.clone(),
            Value::Text(text) if self.occurs(text) => Value::text(self.text(text)),
            Value::Int(number) if self.occurs(&number.to_string()) => Value::text(INSTEAD),
            Value::Float(number) if self.occurs(&number.to_string()) => Value::text(INSTEAD),
            Value::List(items) => Value::list(items.iter().map(|item| self.value(item)).collect()),
            Value::Map(map) => {
                Value::map(map.iter().map(|(name, value)| (self.text(name), self.value(value))))
            }
            _ => value.clone(),
        }
    }

    /// The failure without secrets, and not longer than what people read: a server may say a great deal, and all of it would
    /// stand in every journal.
    pub fn failure(&self, failure: Failure) -> Failure {
        let message = shortened(self.text(&failure.message));
        Failure { message, help: failure.help.map(|help| shortened(self.text(&help))), ..failure }
    }

    fn occurs(&self, text: &str) -> bool {
        self.search.as_ref().is_some_and(|search| search.is_match(text))
    }
}

/// All secrets that the targets of an environment were connected with.
#[derive(Debug, Clone, Default)]
pub struct SharedKnown(Arc<RwLock<Arc<Known>>>);

/// Every secret that any environment was connected with since this process began.
static TOLD: LazyLock<SharedKnown> = LazyLock::new(SharedKnown::default);

/// What this process was told by now, for what it writes down about itself: the libraries that it speaks with log what they
/// hear, and know nothing of secrets.
pub fn told() -> Arc<Known> {
    TOLD.now()
}

impl SharedKnown {
    /// Adds a secret.
    pub fn learn(&self, secret: &Secret) {
        self.add(secret);
        TOLD.add(secret);
    }

    fn add(&self, secret: &Secret) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut known).learn(secret);
    }

    /// What is known now.
    pub fn now(&self) -> Arc<Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The beginning of a text, in which no secret is left that could be cut.
fn shortened(mut text: String) -> String {
    if text.len() > LONGEST_FAILURE {
        let end = (0..=LONGEST_FAILURE).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
        text.push('…');
    }
    text
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/-_".contains(&byte)
}

/// How a secret may be shown.
fn forms(secret: &str) -> Vec<Form> {
    let bytes = secret.as_bytes();
    let mut plain = vec![hex::encode(bytes), hex::encode_upper(bytes)];
    let mut coded = Vec::new();
    // Inside a longer text that is encoded as a whole, a secret begins at one of three offsets. Only the characters that do
    // not depend on its neighbours are looked for.
    for before in 0..3 {
        for engine in [&STANDARD, &URL_SAFE] {
            let padded: Vec<u8> = [vec![0; before], bytes.to_vec()].concat();
            let (start, end) = ((before * 8).div_ceil(6), padded.len() * 8 / 6);
            coded.extend(engine.encode(&padded).get(start..end).map(str::to_owned));
        }
    }
    let percent = |plain: fn(&u8) -> bool, upper: bool| -> String {
        let shown = bytes.iter().map(|byte| match byte {
            byte if plain(byte) => char::from(*byte).to_string(),
            byte if upper => format!("%{byte:02X}"),
            byte => format!("%{byte:02x}"),
        });
        shown.collect()
    };
    let unreserved = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let path = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(byte);
    let form = percent(unreserved, true).replace("%20", "+");
    plain.extend([percent(unreserved, true), percent(unreserved, false), percent(path, true), form]);
    if let Ok(quoted) = serde_json::to_string(secret) {
        let quoted = &quoted[1..quoted.len() - 1];
        // Writers of JSON differ in what else they escape, and how they write digits.
        for (slash, foreign, html, upper) in (0..16).map(|bits| (bits & 1, bits & 2, bits & 4, bits & 8)) {
            let mut escaped = String::new();
            for letter in quoted.chars() {
                if (foreign > 0 && !letter.is_ascii()) || (html > 0 && "<>&".contains(letter)) {
                    for unit in letter.encode_utf16(&mut [0; 2]) {
                        let digits = if upper > 0 { format!("{unit:04X}") } else { format!("{unit:04x}") };
                        escaped.extend(["\\u", &digits]);
                    }
                } else if slash > 0 && letter == '/' {
                    escaped.push_str("\\/");
                } else {
                    escaped.push(letter);
                }
            }
            // A text of JSON within a text of JSON, as in an error that quotes the request.
            let twice = escaped.replace('\\', "\\\\").replace('"', "\\\"");
            if twice != escaped {
                plain.push(twice);
            }
            plain.push(escaped);
        }
    }
    let html = secret.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    plain.extend([html.replace('"', "&quot;"), html]);
    let long = |text: &String| text.len() >= SHORTEST_CODED;
    let plain = plain.into_iter().filter(long).map(|text| Form { text, base64: false });
    let coded = coded.into_iter().filter(long).map(|text| Form { text, base64: true });
    let exact = Some(secret).filter(|secret| secret.len() >= SHORTEST);
    let exact = exact.map(|secret| Form { text: secret.to_owned(), base64: false });
    exact.into_iter().chain(plain).chain(coded).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn known(secret: &str) -> Known {
        let mut known = Known::default();
        known.learn(&Secret::new(secret));
        known
    }

    #[test]
    fn a_secret_is_found_in_its_usual_forms() {
        let secret = "p4ss \"wörd\"/+&";
        let known = known(secret);
        for shown in [
            secret.to_owned(),
            serde_json::to_string(secret).unwrap(),
            hex::encode(secret),
            STANDARD.encode(secret),
            STANDARD.encode(format!("user:{secret}")),
            STANDARD.encode(format!("ab{secret}xyz")),
            "p4ss%20%22w%C3%B6rd%22%2F%2B%26".to_owned(),
            "p4ss+%22w%C3%B6rd%22%2F%2B%26".to_owned(),
            r#"p4ss \"w\u00f6rd\"\/+&"#.to_owned(),
            r#"p4ss \"w\u00f6rd\"/+&"#.to_owned(),
            r#"p4ss \"wörd\"/+\u0026"#.to_owned(),
            "p4ss &quot;wörd&quot;/+&amp;".to_owned(),
            serde_json::to_string(&serde_json::to_string(secret).unwrap()).unwrap(),
            r#"p4ss \\\"w\\u00f6rd\\\"\\/+\\u0026"#.to_owned(),
        ] {
            let clean = known.text(&format!("before {shown} after"));
            assert!(clean.contains(INSTEAD), "{shown}: {clean}");
            assert!(clean.starts_with("before ") && clean.ends_with(" after"), "{clean}");
            assert!(shown.len() <= known.longest() + 32, "{shown}");
            let left = clean.replace(INSTEAD, "");
            assert!(!left.contains("p4ss") && !left.contains("rd"), "{clean}");
        }
        assert_eq!(known.text("nothing of it"), "nothing of it");
    }

    #[test]
    fn what_one_environment_was_told_the_process_knows() {
        let (one, other) = (SharedKnown::default(), SharedKnown::default());
        one.learn(&Secret::new("told-to-one-of-them"));
        assert_eq!(told().text("a told-to-one-of-them b"), "a «secret» b");
        assert_eq!(other.now().text("a told-to-one-of-them b"), "a told-to-one-of-them b");
    }

    #[test]
    fn a_failure_is_shortened_after_its_secrets_are_gone() {
        use farrier_model::FailureKind;
        let known = known("a-long-word-that-is-cut-nowhere");
        for before in LONGEST_FAILURE - 40..LONGEST_FAILURE + 2 {
            let text =
                format!("{}ö a-long-word-that-is-cut-nowhere {}", "x".repeat(before), "y".repeat(1 << 20));
            let failure = known.failure(Failure::new(FailureKind::Refused, text.clone()).help(text));
            for text in [failure.message, failure.help.unwrap()] {
                assert!(text.len() <= LONGEST_FAILURE + "…".len() && text.ends_with('…'), "{}", text.len());
                assert!(!text.contains("a-l"), "{}", &text[before..]);
            }
        }
        let short = Failure::new(FailureKind::Refused, "x".repeat(LONGEST_FAILURE));
        assert_eq!(known.failure(short.clone()), short);
    }

    #[test]
    fn values_are_searched_whole() {
        let known = known("123456789");
        let value =
            Value::from_json(r#"{"123456789": [123456789, "x123456789", {"a": 1, "b": null}]}"#).unwrap();
        let expected = r#"{"«secret»":["«secret»","x«secret»",{"a":1,"b":null}]}"#;
        assert_eq!(known.value(&value).to_json(), expected);
        assert_eq!(format!("{known:?}").find("123456789"), None);
    }

    #[test]
    fn what_is_too_short_to_be_a_secret_tears_no_holes() {
        assert_eq!(known("a").text("a banana"), "a banana");
        assert_eq!(known("").text("a banana"), "a banana");
        assert_eq!(known("banana").text("a banana"), "a «secret»");
    }

    proptest! {
        /// Whatever stands around it, a secret does not survive in base64: of what is left, no character depends on it.
        #[test]
        fn base64_gives_nothing_away(secret in "[!-~]{8,40}", before in "[a-z ]{0,9}", after in "[a-z ]{0,9}") {
            let shown = STANDARD.encode(format!("{before}{secret}{after}"));
            let clean = known(&secret).text(&shown);
            let (left, right) = clean.split_once(INSTEAD).unwrap();
            prop_assert!(left.len() * 6 <= before.len() * 8, "{left} of {shown}");
            let end = (shown.len() - right.len()) * 6;
            prop_assert!(end >= (before.len() + secret.len()) * 8, "{right} of {shown}");
        }
    }
}
