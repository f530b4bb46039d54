//! What of a schema the embedded directory enforces, with the result codes that OpenLDAP gives.

use crate::directory::{Attribute, code};
use crate::dn::{Dn, Rdn};
use crate::schema::{Syntax, canonical, same_attribute, syntax};

/// Attributes that an object class needs.
const MUST: [(&str, &[&str]); 12] = [
    ("person", &["cn", "sn"]),
    ("posixaccount", &["cn", "uid", "uidNumber", "gidNumber", "homeDirectory"]),
    ("shadowaccount", &["uid"]),
    ("posixgroup", &["cn", "gidNumber"]),
    ("groupofnames", &["cn", "member"]),
    ("groupofuniquenames", &["cn", "uniqueMember"]),
    ("organizationalunit", &["ou"]),
    ("organizationalrole", &["cn"]),
    ("domain", &["dc"]),
    ("sudorole", &["cn"]),
    ("pwdpolicy", &["pwdAttribute"]),
    ("account", &["uid"]),
];

/// The class above an object class.
const ABOVE: [(&str, &str); 4] = [
    ("inetorgperson", "organizationalperson"),
    ("organizationalperson", "person"),
    ("residentialperson", "person"),
    ("domainrelatedobject", "top"),
];

/// Attributes that have at most one value.
const SINGLE: [&str; 22] = [
    "uidnumber",
    "gidnumber",
    "homedirectory",
    "loginshell",
    "gecos",
    "dc",
    "shadowlastchange",
    "shadowmin",
    "shadowmax",
    "shadowwarning",
    "shadowinactive",
    "shadowexpire",
    "shadowflag",
    "pwdaccountlockedtime",
    "pwdpolicysubentry",
    "pwdchangedtime",
    "pwdattribute",
    "pwdlockout",
    "pwdmaxage",
    "employeenumber",
    "displayname",
    "wikimediaglobalaccountname",
];

/// Attributes that only the directory itself sets.
const NOT_BY_USERS: [&str; 8] = [
    "entryuuid",
    "entrycsn",
    "entrydn",
    "createtimestamp",
    "modifytimestamp",
    "creatorsname",
    "modifiersname",
    "structuralobjectclass",
];

/// Attributes that no two entries of a class may share a value of.
pub(super) const UNIQUE: [(&str, &str); 3] =
    [("posixAccount", "uidNumber"), ("posixAccount", "cn"), ("posixGroup", "gidNumber")];

/// Whether an entry with `class` also is one of `wanted`.
pub(super) fn is_class(mut class: &str, wanted: &str) -> bool {
    loop {
        if class.eq_ignore_ascii_case(wanted) || wanted.eq_ignore_ascii_case("top") {
            return true;
        }
        match ABOVE.iter().find(|(name, _)| name.eq_ignore_ascii_case(class)) {
            Some((_, above)) => class = above,
            None => return false,
        }
    }
}

/// What only the directory sets.
pub(super) fn check_settable(name: &str) -> Result<(), (u32, String)> {
    if NOT_BY_USERS.contains(&&*canonical(name)) {
        return Err((code::CONSTRAINT_VIOLATION, format!("{name}: no user modification allowed")));
    }
    Ok(())
}

/// What every written entry must be.
pub(super) fn check_entry(dn: &Dn, attributes: &[Attribute]) -> Result<(), (u32, String)> {
    let values = |name: &str| {
        attributes
            .iter()
            .find(|attribute| same_attribute(&attribute.name, name))
            .map_or(&[][..], |a| &a.values)
    };
    let classes = values("objectClass");
    if classes.is_empty() {
        return Err((code::OBJECT_CLASS_VIOLATION, "no objectClass attribute".into()));
    }
    for attribute in attributes {
        let (name, syntax) = (&attribute.name, syntax(&attribute.name));
        if SINGLE.contains(&&*canonical(name)) && attribute.values.len() > 1 {
            return Err((code::CONSTRAINT_VIOLATION, format!("{name}: multiple values provided")));
        }
        for (number, value) in attribute.values.iter().enumerate() {
            if value.is_empty() || syntax.key(value).is_none() {
                return Err((code::INVALID_SYNTAX, format!("{name}: value #{number} invalid per syntax")));
            }
        }
        let mut keys: Vec<_> = attribute.values.iter().map(|value| syntax.key(value)).collect();
        keys.sort();
        if keys.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err((code::VALUE_EXISTS, format!("{name}: a value is provided more than once")));
        }
    }
    for (attribute, value) in dn.rdn().into_iter().flat_map(Rdn::parts) {
        let syntax = match syntax(attribute) {
            Syntax::Octets => Syntax::CaseExact,
            other => other,
        };
        let wanted = syntax.key(value.as_bytes());
        if !values(attribute).iter().any(|value| syntax.key(value) == wanted) {
            let text = format!("naming attribute `{attribute}` is not present in the entry");
            return Err((code::NAMING_VIOLATION, text));
        }
    }
    for class in classes.iter().filter_map(|class| std::str::from_utf8(class).ok()) {
        for (needing, needed) in MUST.iter().filter(|(name, _)| is_class(class, name)) {
            if let Some(missing) = needed.iter().find(|name| values(name).is_empty()) {
                let text = format!("object class `{needing}` requires attribute `{missing}`");
                return Err((code::OBJECT_CLASS_VIOLATION, text));
            }
        }
    }
    Ok(())
}
