//! Whole entries that come and go: what `ldap.add` applies is what undo of `ldap.delete` does, and the other way round.
//!
//! As in [`crate::compare`], every object is compared before the first write. An entry is deleted only while it is, in
//! all its user attributes, as recorded. A directory without the Assertion control leaves a gap between comparing and
//! deleting in which a change by someone else is lost.

use farrier_model::{Change, Failure, Value};

use crate::compare::{VERSION, drifted, object, of_write, unchanged};
use crate::directory::{Entry, WritableDirectory, fetch};
use crate::dn::Dn;
use crate::schema::{POLICY_ATTRIBUTES, is_operational, is_secret};
use crate::values::Image;

/// The attributes to ask for when an entry as a whole matters.
pub(crate) fn whole_entry() -> Vec<String> {
    std::iter::once("*").chain(POLICY_ATTRIBUTES).chain([VERSION]).map(str::to_owned).collect()
}

/// All that is recorded of an entry: user attributes and those that hold an account locked, without secrets.
pub(crate) fn image(entry: &Entry) -> Image {
    Image::whole(entry, |name| {
        let policy = POLICY_ATTRIBUTES.iter().any(|policy| policy.eq_ignore_ascii_case(name));
        !is_secret(name) && (policy || !is_operational(name))
    })
}

/// The attributes in which an entry is not as recorded, those that the record lacks included.
fn differences(recorded: &Image, entry: &Entry) -> Vec<String> {
    let mut names = recorded.differences(entry);
    let now = image(entry);
    names.extend(
        now.names()
            .filter(|name| !recorded.names().any(|known| known.eq_ignore_ascii_case(name)))
            .map(str::to_owned),
    );
    names
}

/// Adds the entries that are not there. One that is there with other values is drift.
pub(crate) async fn add_all<'a>(
    directory: &dyn WritableDirectory,
    changes: impl Iterator<Item = &'a Change>,
    side: fn(&Change) -> &Value,
) -> Result<(), Failure> {
    let mut missing: Vec<(Dn, Image)> = Vec::new();
    for change in changes {
        let dn = object(change)?;
        let recorded = Image::from_change(side(change), &change.object)?;
        match fetch(directory, &dn, whole_entry()).await? {
            None => missing.push((dn, recorded)),
            Some(entry) => {
                let differences = recorded.differences(&entry);
                if !differences.is_empty() {
                    return Err(drifted(&dn, &differences));
                }
            }
        }
    }
    for (dn, recorded) in missing {
        directory.add(&dn, &recorded.present()).await?;
    }
    Ok(())
}

/// Deletes the entries that are there, all of which must be as recorded.
pub(crate) async fn delete_all<'a>(
    directory: &dyn WritableDirectory,
    changes: impl Iterator<Item = &'a Change>,
    side: fn(&Change) -> &Value,
) -> Result<(), Failure> {
    let mut present = Vec::new();
    for change in changes {
        let dn = object(change)?;
        let recorded = Image::from_change(side(change), &change.object)?;
        let Some(entry) = fetch(directory, &dn, whole_entry()).await? else { continue };
        let differences = differences(&recorded, &entry);
        if !differences.is_empty() {
            return Err(drifted(&dn, &differences));
        }
        present.push((unchanged(directory, &entry, &dn), dn));
    }
    for (only_if, dn) in present {
        directory.delete(&dn, only_if.as_ref()).await.map_err(|refusal| of_write(refusal, &dn))?;
    }
    Ok(())
}
