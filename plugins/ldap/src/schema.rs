//! What the plugin knows of attributes without asking a server: other names, syntaxes, how values compare.
//!
//! Read first: [`syntax`], [`Syntax::key`]. A server's own schema decides in the end; this is what comparing states,
//! escaping and the embedded directory need.

use std::borrow::Cow;

use crate::dn::Dn;

/// How the values of an attribute compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syntax {
    /// Text in which case and repeated spaces do not matter.
    CaseIgnore,
    /// Text, byte by byte.
    CaseExact,
    /// A whole number.
    Integer,
    /// `TRUE` or `FALSE`.
    Boolean,
    /// A generalized time.
    Time,
    /// The name of an entry.
    Name,
    /// Bytes.
    Octets,
}

/// Attributes that RFC 4519 gives two names: the long one and the short one.
const TWO_NAMES: [(&str, &str); 14] = [
    ("commonname", "cn"),
    ("surname", "sn"),
    ("userid", "uid"),
    ("gn", "givenname"),
    ("countryname", "c"),
    ("localityname", "l"),
    ("stateorprovincename", "st"),
    ("streetaddress", "street"),
    ("organizationname", "o"),
    ("organizationalunitname", "ou"),
    ("domaincomponent", "dc"),
    ("rfc822mailbox", "mail"),
    ("emailaddress", "email"),
    ("pkcs9email", "email"),
];

/// The other name of an attribute called by its long one.
fn short(attribute: &str) -> Option<&'static str> {
    TWO_NAMES.iter().find(|(long, _)| long.eq_ignore_ascii_case(attribute)).map(|(_, short)| *short)
}

/// The short name of an attribute that has two, in lower case; of any other, its lower case.
pub(crate) fn canonical(attribute: &str) -> Cow<'_, str> {
    match short(attribute) {
        Some(short) => Cow::Borrowed(short),
        None if attribute.bytes().any(|byte| byte.is_ascii_uppercase()) => {
            Cow::Owned(attribute.to_ascii_lowercase())
        }
        None => Cow::Borrowed(attribute),
    }
}

/// Whether two attribute names mean the same attribute.
pub(crate) fn same_attribute(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
        || match (short(one), short(other)) {
            (None, None) => false,
            (one_short, other_short) => {
                one_short.unwrap_or(one).eq_ignore_ascii_case(other_short.unwrap_or(other))
            }
        }
}

/// Whether `name` can be an attribute's name: a word or a dotted number, with `;options`.
pub(crate) fn is_attribute_name(name: &str) -> bool {
    let mut parts = name.split(';');
    let kind = parts.next().unwrap_or_default();
    let word = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let named = kind.starts_with(|c: char| c.is_ascii_alphabetic()) && word(kind);
    let numbered = kind.split('.').all(|part| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'))
    });
    (named || numbered) && parts.all(word)
}

/// The syntax of an attribute; text in which case does not matter when it is not a known one.
pub(crate) fn syntax(attribute: &str) -> Syntax {
    let base = attribute.split(';').next().unwrap_or_default();
    match &*canonical(base) {
        "member" | "uniquemember" | "memberof" | "owner" | "seealso" | "manager" | "secretary"
        | "roleoccupant" | "pwdpolicysubentry" | "creatorsname" | "modifiersname" | "entrydn"
        | "subschemasubentry" | "aliasedobjectname" | "distinguishedname" | "documentauthor"
        | "associatedname" => Syntax::Name,
        "uidnumber"
        | "gidnumber"
        | "shadowlastchange"
        | "shadowmin"
        | "shadowmax"
        | "shadowwarning"
        | "shadowinactive"
        | "shadowexpire"
        | "shadowflag"
        | "pwdmaxage"
        | "pwdminage"
        | "pwdmaxfailure"
        | "pwdminlength"
        | "pwdinhistory"
        | "pwdlockoutduration"
        | "pwdexpirewarning"
        | "pwdgraceauthnlimit"
        | "wikimediaglobalaccountid"
        | "numsubordinates"
        | "sudoorder" => Syntax::Integer,
        "pwdlockout" | "pwdmustchange" | "pwdallowuserchange" | "pwdsafemodify" | "pwdreset"
        | "hassubordinates" => Syntax::Boolean,
        "pwdaccountlockedtime"
        | "createtimestamp"
        | "modifytimestamp"
        | "pwdchangedtime"
        | "pwdfailuretime"
        | "pwdgraceusetime"
        | "pwdlastsuccess"
        | "sudonotbefore"
        | "sudonotafter" => Syntax::Time,
        "homedirectory"
        | "loginshell"
        | "memberuid"
        | "sudouser"
        | "sudohost"
        | "sudocommand"
        | "sudooption"
        | "sudorunasuser"
        | "sudorunasgroup"
        | "sudorunas"
        | "labeleduri"
        | "entrycsn"
        | "wikimediaglobalaccountname" => Syntax::CaseExact,
        "sshpublickey"
        | "userpassword"
        | "jpegphoto"
        | "photo"
        | "usercertificate"
        | "cacertificate"
        | "audio"
        | "usersmimecertificate"
        | "userpkcs12" => Syntax::Octets,
        _ => Syntax::CaseIgnore,
    }
}

/// Whether the values of an attribute are secrets, which enter neither outputs nor plans nor the journal.
pub(crate) fn is_secret(attribute: &str) -> bool {
    let base = attribute.split(';').next().unwrap_or_default();
    matches!(
        &*canonical(base),
        "userpassword"
            | "authpassword"
            | "pwdhistory"
            | "userpkcs12"
            | "sambantpassword"
            | "sambalmpassword"
            | "sambapasswordhistory"
            | "krbprincipalkey"
            | "oathsecret"
            | "unicodepwd"
            | "clearpassword"
    )
}

/// Operational attributes that an administrator sets: they hold an account locked. A before-image without them would
/// restore a disabled account as an enabled one.
pub(crate) const POLICY_ATTRIBUTES: [&str; 2] = ["pwdAccountLockedTime", "pwdPolicySubentry"];

/// Whether an attribute is operational: left out of answers unless asked for by name.
pub(crate) fn is_operational(attribute: &str) -> bool {
    matches!(
        &*canonical(attribute),
        "pwdaccountlockedtime"
            | "pwdpolicysubentry"
            | "pwdchangedtime"
            | "pwdfailuretime"
            | "pwdhistory"
            | "pwdgraceusetime"
            | "pwdreset"
            | "pwdlastsuccess"
            | "memberof"
            | "entryuuid"
            | "entrycsn"
            | "entrydn"
            | "createtimestamp"
            | "modifytimestamp"
            | "creatorsname"
            | "modifiersname"
            | "structuralobjectclass"
            | "subschemasubentry"
            | "hassubordinates"
            | "numsubordinates"
            | "contextcsn"
    )
}

impl Syntax {
    /// A form in which equal values of this syntax are equal bytes; nothing when `value` is not of this syntax.
    pub(crate) fn key(self, value: &[u8]) -> Option<Vec<u8>> {
        match self {
            Syntax::Octets => Some(value.to_vec()),
            Syntax::CaseExact => Some(squeezed(std::str::from_utf8(value).ok()?).into_bytes()),
            Syntax::CaseIgnore => {
                Some(squeezed(std::str::from_utf8(value).ok()?).to_lowercase().into_bytes())
            }
            Syntax::Integer => {
                let text = std::str::from_utf8(value).ok()?;
                // `007` is not an integer in LDAP, and `+7` neither.
                let digits = text.strip_prefix('-').unwrap_or(text);
                let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                (plain && (digits == "0" || !digits.starts_with('0'))).then(|| value.to_vec())
            }
            Syntax::Boolean => matches!(value, b"TRUE" | b"FALSE").then(|| value.to_vec()),
            Syntax::Time => {
                let text = std::str::from_utf8(value).ok()?;
                farrier_model::time::parse_timestamp(text).map(|time| time.to_string().into_bytes())
            }
            Syntax::Name => Dn::parse(std::str::from_utf8(value).ok()?).ok().map(|dn| dn.key().into_bytes()),
        }
    }
}

impl Syntax {
    /// Whether a value has the key `key`, without making the value's own where that is not needed: a search asks this
    /// of every entry.
    pub(crate) fn has_key(self, value: &[u8], key: &[u8]) -> bool {
        let squeezed =
            !value.starts_with(b" ") && !value.ends_with(b" ") && value.windows(2).all(|pair| pair != b"  ");
        match self {
            Syntax::CaseIgnore if squeezed && value.is_ascii() => value.eq_ignore_ascii_case(key),
            Syntax::CaseExact if squeezed && value.is_ascii() => value == key,
            Syntax::Integer | Syntax::Boolean | Syntax::Octets => value == key,
            Syntax::Name => match (std::str::from_utf8(value), std::str::from_utf8(key)) {
                (Ok(value), Ok(key)) => Dn::has_key(value, key),
                _ => false,
            },
            _ => self.key(value).as_deref() == Some(key),
        }
    }
}

/// Without spaces around, and with one where there were several.
fn squeezed(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_attributes_are_told_from_other_text() {
        for name in ["cn", "uidNumber", "cn;lang-en", "2.5.4.3", "userCertificate;binary", "x-y"] {
            assert!(is_attribute_name(name), "{name}");
        }
        for text in ["", "c n", "1a", "cn;", "a=b", "*", "cn)(x", "2..5", "2.05", "-x", "ä"] {
            assert!(!is_attribute_name(text), "{text}");
        }
        assert!(
            same_attribute("commonName", "CN")
                && same_attribute("userid", "uid")
                && !same_attribute("cn", "sn")
        );
    }

    #[test]
    fn values_compare_in_their_syntax() {
        let same = [
            ("cn", "Foo  Bar", "foo bar", true),
            ("homeDirectory", "/Home", "/home", false),
            ("uidNumber", "7", "7", true),
            ("member", "UID=a, ou=X", "uid=A,ou=x", true),
            ("member", "uid=ab,ou=x", "uid=a,ou=x", false),
            ("member", "uid = a  b ,ou=x", "uid=A B,ou=x", true),
            ("member", "uid=a\\+b,ou=x", "uid=a\\2Bb,ou=x", true),
            ("member", "uid=a+cn=b,ou=x", "cn=B+uid=A,ou=x", true),
            ("member", "uid=a+cn=b,ou=x", "uid=a,ou=x", false),
            ("member", "uid=a", "uid=a,ou=x", false),
            ("pwdAccountLockedTime", "20261122101530Z", "20261122111530+0100", true),
            ("sshPublicKey", "ssh  A", "ssh A", false),
        ];
        for (attribute, one, other, equal) in same {
            let syntax = syntax(attribute);
            assert_eq!(
                syntax.key(one.as_bytes()) == syntax.key(other.as_bytes()),
                equal,
                "{attribute}: {one} and {other}"
            );
            let key = syntax.key(other.as_bytes()).unwrap();
            assert_eq!(syntax.has_key(one.as_bytes(), &key), equal, "{attribute}: {one} and {other}");
        }
        for (attribute, bad) in
            [("uidNumber", "007"), ("uidNumber", "x"), ("pwdLockout", "true"), ("member", "nobody")]
        {
            assert_eq!(syntax(attribute).key(bad.as_bytes()), None, "{attribute}: {bad}");
        }
    }
}
