//! What a mail is made of: [`Letter`]; and whom it may go to: [`People`].

use std::collections::BTreeMap;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use farrier_model::time::Timestamp;
use farrier_model::{Failure, FailureKind};
use lettre::Address;
use lettre::message::header::{ContentType, HeaderName, HeaderValue, MIME_VERSION_1_0};
use lettre::message::{Mailbox, Message};

/// A mail is for people; nobody reads more.
const LONGEST_TEXT: usize = 1 << 20;
const MOST_ADDRESSES: usize = 100;

/// A mail, ready to be sent.
pub(crate) struct Letter {
    pub(crate) from: Address,
    pub(crate) to: Vec<Address>,
    /// Made of the effect id, so that a mail that was sent twice can be found.
    pub(crate) effect_id: String,
    /// Headers and text.
    pub(crate) bytes: Vec<u8>,
}

/// Who sends, and whom mail may go to.
#[derive(Debug, Clone)]
pub(crate) struct People {
    pub(crate) from: Address,
    pub(crate) names: BTreeMap<String, Vec<Address>>,
    pub(crate) only_to: Option<Vec<String>>,
}

/// What is to be said to whom, checked.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) to: Vec<Address>,
    pub(crate) cc: Vec<Address>,
    pub(crate) subject: String,
    pub(crate) text: String,
}

fn input(message: String) -> Failure {
    Failure::new(FailureKind::Input, message)
}

/// An address without a name, in ASCII: the part that every mail server takes.
pub(crate) fn parse_address(field: &str, text: &str) -> Result<Address, Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.@".contains(c);
    let fits = text.chars().all(plain) && text.len() <= 254;
    fits.then(|| text.parse::<Address>().ok())
        .flatten()
        .ok_or_else(|| input(format!("`{field}`: {text:?} is not an address such as `name@example.org`")))
}

impl People {
    /// The addresses behind names and addresses, each once.
    pub(crate) fn addresses(&self, field: &str, texts: &[&str]) -> Result<Vec<Address>, Failure> {
        let mut found: Vec<Address> = Vec::new();
        for text in texts {
            let addresses = if text.contains('@') {
                let address = parse_address(field, text)?;
                self.check(field, &address)?;
                vec![address]
            } else {
                self.names.get(*text).cloned().ok_or_else(|| {
                    let known: Vec<&str> = self.names.keys().map(String::as_str).collect();
                    input(format!("`{field}`: this environment knows nobody called {text:?}")).help(format!(
                        "add the name to `people` of the target; known are: {}",
                        known.join(", ")
                    ))
                })?
            };
            for address in addresses {
                if !found.contains(&address) {
                    found.push(address);
                }
            }
        }
        Ok(found)
    }

    fn check(&self, field: &str, address: &Address) -> Result<(), Failure> {
        let Some(only) = &self.only_to else { return Ok(()) };
        let domain = address.domain();
        let listed = only
            .iter()
            .any(|entry| entry.eq_ignore_ascii_case(domain) || entry.eq_ignore_ascii_case(address.as_ref()));
        let known = self.names.values().flatten().any(|known| known == address);
        if listed || known {
            return Ok(());
        }
        Err(input(format!("`{field}`: this environment sends no mail to {address}"))
            .help("add its domain or the address to `only_to` of the target"))
    }

    /// Checks what is to be said to whom.
    pub(crate) fn draft(
        &self,
        to: &[&str],
        cc: &[&str],
        subject: &str,
        text: &str,
    ) -> Result<Draft, Failure> {
        let to = self.addresses("to", to)?;
        let mut cc = self.addresses("cc", cc)?;
        cc.retain(|address| !to.contains(address));
        if to.is_empty() {
            return Err(input("`to` names nobody".into()));
        }
        if to.len() + cc.len() > MOST_ADDRESSES {
            return Err(input(format!("the mail would go to more than {MOST_ADDRESSES} addresses")));
        }
        if subject.trim().is_empty() || subject.len() > 500 || subject.chars().any(char::is_control) {
            return Err(input(format!(
                "`subject` is {subject:?}; it must be one line of at most 500 bytes without control characters"
            )));
        }
        if text.contains('\0') || text.len() > LONGEST_TEXT {
            return Err(input("`text` must be without NUL characters and no longer than 1 MiB".into()));
        }
        Ok(Draft { to, cc, subject: subject.to_owned(), text: text.to_owned() })
    }

    /// The name by which a mail can be found.
    pub(crate) fn message_id(&self, effect_id: &str) -> String {
        format!("<{effect_id}@{}>", self.from.domain())
    }

    /// The mail itself.
    pub(crate) fn letter(
        &self,
        draft: &Draft,
        effect_id: &str,
        run: &str,
        now: Timestamp,
    ) -> Result<Letter, Failure> {
        let header = |name, value: &str| HeaderValue::new(HeaderName::new_from_ascii_str(name), value.into());
        let mut builder = Message::builder()
            .message_id(Some(self.message_id(effect_id)))
            .date(SystemTime::from(now))
            .from(Mailbox::new(None, self.from.clone()))
            .raw_header(header("Auto-Submitted", "auto-generated"))
            .raw_header(header("X-Farrier-Run", run))
            .header(MIME_VERSION_1_0)
            .header(ContentType::TEXT_PLAIN);
        builder = if draft.subject.contains("=?") {
            builder.raw_header(encoded_subject(&draft.subject))
        } else {
            builder.subject(draft.subject.clone())
        };
        for address in &draft.to {
            builder = builder.to(Mailbox::new(None, address.clone()));
        }
        for address in &draft.cc {
            builder = builder.cc(Mailbox::new(None, address.clone()));
        }
        let message = builder.body(draft.text.clone()).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("the mail cannot be written: {error}"))
        })?;
        Ok(Letter {
            from: self.from.clone(),
            to: draft.to.iter().chain(&draft.cc).cloned().collect(),
            effect_id: effect_id.to_owned(),
            bytes: message.formatted(),
        })
    }
}

/// A subject with something in it that readers would take for an encoded word (RFC 2047): then all of it is one, so
/// that it says what it says.
fn encoded_subject(subject: &str) -> HeaderValue {
    // An encoded word has at most 75 characters.
    const LONGEST: usize = 42;
    let mut words: Vec<String> = Vec::new();
    let mut rest = subject;
    while !rest.is_empty() {
        let end = (1..=rest.len().min(LONGEST)).rev().find(|end| rest.is_char_boundary(*end));
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        words.push(format!("=?utf-8?b?{}?=", BASE64.encode(word)));
        rest = after;
    }
    let name = HeaderName::new_from_ascii_str("Subject");
    HeaderValue::dangerous_new_pre_encoded(name, subject.to_owned(), words.join("\r\n "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn people(only_to: Option<&[&str]>) -> People {
        let address = |text: &str| parse_address("x", text).unwrap();
        People {
            from: address("farrier@example.org"),
            names: BTreeMap::from([(
                "admins".to_owned(),
                vec![address("a@example.org"), address("b@elsewhere.org")],
            )]),
            only_to: only_to.map(|only| only.iter().map(|&entry| entry.to_owned()).collect()),
        }
    }

    #[test]
    fn addresses_are_addresses_and_nothing_more() {
        for good in ["a@example.org", "a.b+c@x.example.org", "o'neil@example.org"] {
            assert_eq!(parse_address("to", good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "a",
            "@example.org",
            "a@",
            "a@b@c",
            "a@example.org\r\nRCPT TO:<b@c.org>",
            "a@example.org\n",
            "a@example.org,b@example.org",
            "a <a@example.org>",
            "<a@example.org>",
            "\"a b\"@example.org",
            "a@example.org ",
            "ä@example.org",
            "a\0@example.org",
            "${x}@example.org ",
        ] {
            assert_eq!(parse_address("to", bad).unwrap_err().kind, FailureKind::Input, "{bad:?}");
        }
    }

    #[test]
    fn mail_goes_where_the_environment_allows() {
        let shown = |people: &People, to: &[&str]| {
            people.addresses("to", to).map(|found| found.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let any = people(None);
        assert_eq!(
            shown(&any, &["admins", "c@anywhere.net", "a@example.org"]).unwrap(),
            ["a@example.org", "b@elsewhere.org", "c@anywhere.net"]
        );
        assert!(shown(&any, &["nobody"]).unwrap_err().message.contains("knows nobody called \"nobody\""));
        let some = people(Some(&["example.org", "one@example.net"]));
        assert!(shown(&some, &["admins", "x@EXAMPLE.org", "one@example.net", "b@elsewhere.org"]).is_ok());
        for refused in ["two@example.net", "x@sub.example.org", "x@notexample.org"] {
            assert!(shown(&some, &[refused]).unwrap_err().message.contains("sends no mail to"), "{refused}");
        }
    }

    #[test]
    fn headers_hold_one_line_each() {
        let people = people(None);
        for bad in ["a\r\nBcc: b@example.org", "a\nb", "a\0", "", "  ", "a\u{85}b"] {
            assert!(people.draft(&["admins"], &[], bad, "text").is_err(), "{bad:?}");
        }
        let fake = people.draft(&["admins"], &[], "a =?utf-8?q?=0D=0ABcc:_x?= é", "t").unwrap();
        let letter = people.letter(&fake, "EFFECT", "RUN", Timestamp::UNIX_EPOCH).unwrap();
        let written = String::from_utf8(letter.bytes).unwrap();
        assert!(
            written.contains("Subject: =?utf-8?b?YSA9P3V0Zi04P3E/PTBEPTBBQmNjOl94Pz0gw6k=?=\r\n"),
            "{written}"
        );
        let subject = "é \"quoted\" =?utf-8?q?x?= ${ y } and so on, far longer than one line of a mail may be, to see it folded";
        let text = "first\r\n.\r\nFrom here\n\u{1f98a} ${ x }\n";
        let draft = people.draft(&["admins"], &["a@example.org", "c@example.org"], subject, text).unwrap();
        assert_eq!(draft.cc.len(), 1);
        let letter = people.letter(&draft, "EFFECT", "RUN", Timestamp::UNIX_EPOCH).unwrap();
        assert!(letter.bytes.is_ascii());
        let written = String::from_utf8(letter.bytes).unwrap();
        let (head, _) = written.split_once("\r\n\r\n").unwrap();
        let names: Vec<&str> = head
            .split("\r\n")
            .filter(|line| !line.starts_with([' ', '\t']))
            .map(|line| line.split_once(':').unwrap().0)
            .collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(
            sorted,
            [
                "Auto-Submitted",
                "Cc",
                "Content-Transfer-Encoding",
                "Content-Type",
                "Date",
                "From",
                "MIME-Version",
                "Message-ID",
                "Subject",
                "To",
                "X-Farrier-Run"
            ]
        );
        assert!(head.contains("Message-ID: <EFFECT@example.org>"), "{head}");
        assert!(head.contains("Date: Thu, 01 Jan 1970 00:00:00 +0000"), "{head}");
    }
}
