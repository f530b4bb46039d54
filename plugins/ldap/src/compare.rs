//! Writing only over what the plan saw.
//!
//! Every object of a step is read again and compared before the first write, so drift on one of them leaves all of them
//! alone. Then each write is tied to what was just read: old values are deleted by name, and where the server can
//! compare by itself (Assertion control and `entryCSN`, as OpenLDAP has them) the write happens only if the entry was
//! not touched in between. A server without that control leaves a gap between reading and writing, in which a value
//! that someone adds to the same attribute goes unnoticed; values that the change removes do not.

use farrier_model::{Change, Failure, FailureKind};

use crate::directory::{Edit, Entry, Refusal, WritableDirectory, code, fetch};
use crate::dn::Dn;
use crate::filter::Filter;
use crate::values::Image;

/// The attribute that changes with every write to an entry.
pub(crate) const VERSION: &str = "entryCSN";

/// From `before` to `after`, or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Apply,
    Undo,
}

/// Sets the attributes of existing entries. Entries that are as wanted already are left alone. An attribute with equal
/// values before and after is a condition: apply compares it, undo does not need it.
pub(crate) async fn set_all(
    directory: &dyn WritableDirectory,
    changes: &[Change],
    way: Way,
) -> Result<(), Failure> {
    struct Job {
        dn: Dn,
        edits: Vec<Edit>,
        only_if: Option<Filter>,
    }
    let mut jobs = Vec::new();
    for change in changes {
        let dn = object(change)?;
        let before = Image::from_change(&change.before, &change.object)?;
        let after = Image::from_change(&change.after, &change.object)?;
        let touched = |image: &Image, other: &Image| image.differing_from(other);
        let (condition, from, to) = match way {
            Way::Apply => (before.clone(), touched(&before, &after), touched(&after, &before)),
            Way::Undo => (Image::default(), touched(&after, &before), touched(&before, &after)),
        };
        let names = before.names().map(str::to_owned).chain([VERSION.to_owned()]).collect();
        let entry = fetch(directory, &dn, names).await?.ok_or_else(|| gone(&dn))?;
        if to.differences(&entry).is_empty() {
            continue;
        }
        let mut differences = from.differences(&entry);
        differences.extend(condition.differences(&entry));
        differences.dedup();
        if !differences.is_empty() {
            return Err(drifted(&dn, &differences));
        }
        jobs.push(Job { edits: from.edits_to(&to), only_if: unchanged(directory, &entry, &dn), dn });
    }
    if way == Way::Undo {
        jobs.reverse();
    }
    for job in jobs {
        directory
            .modify(&job.dn, &job.edits, job.only_if.as_ref())
            .await
            .map_err(|refusal| of_write(refusal, &job.dn))?;
    }
    Ok(())
}

/// The entry's name in a change.
pub(crate) fn object(change: &Change) -> Result<Dn, Failure> {
    Dn::parse(&change.object)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("in a recorded change: {error}")))
}

/// Holds as long as nobody writes to the entry; nothing when the directory cannot compare.
///
/// It holds for every other entry too: OpenLDAP holds a request's assertion against the entries that its overlays change along
/// with the request's own, and where it did not hold, `memberOf` of the members would silently stay as it was.
pub(crate) fn unchanged(directory: &dyn WritableDirectory, entry: &Entry, dn: &Dn) -> Option<Filter> {
    let version = entry.values(VERSION).first()?;
    directory.asserts().then(|| {
        let another = Filter::Not(Box::new(Filter::equal("entryDN", dn.to_string())));
        Filter::Or(vec![Filter::equal(VERSION, version.clone()), another])
    })
}

/// The entry is gone since the plan.
pub(crate) fn gone(dn: &Dn) -> Failure {
    Failure::new(FailureKind::Drift, format!("`{dn}` is gone since the plan was made; nothing was changed"))
        .help("plan again")
}

/// The entry is not as planned.
pub(crate) fn drifted(dn: &Dn, attributes: &[String]) -> Failure {
    Failure::new(
        FailureKind::Drift,
        format!("`{}` of `{dn}` is not as the plan saw it; nothing was overwritten", attributes.join("`, `")),
    )
    .help("look at the entry and plan again; if nobody changed it, the accounts of `read_as` and `write_as` see different values")
}

/// A refused write, when the entry was there a moment ago.
pub(crate) fn of_write(refusal: Refusal, dn: &Dn) -> Failure {
    if refusal.code == Some(code::NO_SUCH_OBJECT) { gone(dn) } else { refusal.failure }
}
