//! [`Known`]: the secrets that a program has been told, and their removal from all that it says afterwards.
//!
//! A secret is found as it is, and as programs like to show it: in base64 at any offset, in hexadecimal, with percent
//! signs, and with JSON's escapes. It is removed before anything is cut off, so that no cut leaves half of one. A program
//! that wants to give a secret away can; this is for those that print their whole configuration when something is wrong.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use farrier_model::{Secret, Value};

/// What stands where a secret stood.
const INSTEAD: &str = "«secret»";

/// Forms of secrets, longest first.
#[derive(Clone, Default)]
pub(crate) struct Known(Vec<String>);

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Known({})", self.0.len())
    }
}

impl Known {
    /// Adds a secret.
    pub(crate) fn learn(&mut self, secret: &Secret) {
        for form in forms(secret.reveal()) {
            if !self.0.contains(&form) {
                self.0.push(form);
            }
        }
        self.0.sort_by_key(|form| std::cmp::Reverse(form.len()));
    }

    /// Adds all that another knows.
    pub(crate) fn join(&mut self, other: &Known) {
        let new = other.0.iter().filter(|form| !self.0.contains(form));
        let new: Vec<String> = new.cloned().collect();
        self.0.extend(new);
        self.0.sort_by_key(|form| std::cmp::Reverse(form.len()));
    }

    /// The text without secrets.
    pub(crate) fn text(&self, text: &str) -> String {
        let mut clean = text.to_owned();
        for form in &self.0 {
            if clean.contains(form) {
                clean = clean.replace(form, INSTEAD);
            }
        }
        clean
    }

    /// The same of everything in a value: names, texts, and numbers, which a secret may be as well.
    pub(crate) fn value(&self, value: &Value) -> Value {
        match value {
            _ if self.0.is_empty() => value.clone(),
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

    fn occurs(&self, text: &str) -> bool {
        self.0.iter().any(|form| text.contains(form))
    }
}

/// How a secret may be shown.
fn forms(secret: &str) -> Vec<String> {
    let bytes = secret.as_bytes();
    let mut forms = vec![secret.to_owned(), hex::encode(bytes), hex::encode_upper(bytes)];
    // Inside a longer text that is encoded as a whole, a secret begins at one of three offsets. The characters at either
    // end depend on their neighbours too, and are left out.
    for before in 0..3 {
        for engine in [&STANDARD, &URL_SAFE] {
            let padded: Vec<u8> = [vec![0; before], bytes.to_vec()].concat();
            let text = engine.encode(&padded);
            let whole = padded.len() / 3 * 4;
            let start = if before == 0 { 0 } else { 4 };
            forms.extend(text.get(start..whole).map(str::to_owned));
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
    forms.extend([percent(unreserved, true), percent(unreserved, false), percent(path, true)]);
    if let Ok(quoted) = serde_json::to_string(secret) {
        forms.push(quoted[1..quoted.len() - 1].to_owned());
    }
    // Shorter pieces would be found in texts that have nothing to do with it.
    forms.retain(|form| form.len() >= 6);
    forms.sort();
    forms.dedup();
    forms
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
        ] {
            let clean = known.text(&format!("before {shown} after"));
            assert!(clean.contains(INSTEAD), "{shown}: {clean}");
            assert!(clean.starts_with("before ") && clean.ends_with(" after"), "{clean}");
        }
        assert_eq!(known.text("nothing of it"), "nothing of it");
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

    proptest! {
        /// Whatever stands around it, a secret does not survive in base64.
        #[test]
        fn base64_gives_nothing_away(secret in "[!-~]{8,40}", before in "\\PC{0,9}", after in "\\PC{0,9}") {
            let shown = STANDARD.encode(format!("{before}{secret}{after}"));
            let clean = known(&secret).text(&shown);
            let pieces: Vec<&str> = clean.split(INSTEAD).collect();
            prop_assert!(pieces.len() > 1);
        }
    }
}
