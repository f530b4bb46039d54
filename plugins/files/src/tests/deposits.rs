//! Files and credentials of other plugins' steps, by this process and by a helper.

use std::io::{Read, Write};

use farrier_model::{FailureKind, Secret};

use super::*;
use crate::deposit::{
    Destination, Found, Receipt, SecretPlace, Shelf, deposit, deposited, with_digest, withdraw,
};

/// Several frames long, and no multiple of any.
const LENGTH: usize = (3 << 20) + 7;

fn into(name: &str) -> Destination {
    json(&format!("{{'target': 'homes', 'root': 'staging', 'path': ['tools.foxes', '{name}']}}"))
        .read()
        .unwrap()
}

fn shelf() -> Shelf {
    json("{'target': 'homes', 'root': 'staging'}").read().unwrap()
}

impl Place {
    /// The target as steps have it.
    async fn reached(&self) -> Arc<crate::Files> {
        self.cx("any").reader(&Target::<crate::FilesTarget>::new("homes")).await.unwrap()
    }
}

type Told = Result<Value, Failure>;

#[expect(clippy::unnecessary_wraps, reason = "it is what its callers return")]
fn length(bytes: usize) -> Told {
    Ok(Value::Int(i64::try_from(bytes).unwrap()))
}

fn content(out: &mut dyn Write) -> Told {
    let bytes: Vec<u8> = (0..LENGTH).map(|index| (index % 251) as u8).collect();
    for some in bytes.chunks(100_001) {
        out.write_all(some).unwrap();
    }
    length(LENGTH)
}

fn check(file: &mut dyn Read) -> Told {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert!(bytes.iter().enumerate().all(|(index, byte)| *byte == (index % 251) as u8));
    length(bytes.len())
}

async fn made(place: &Place, name: &str, effect: &str) -> Result<Receipt, Failure> {
    deposit(place.reached().await, into(name), effect.into(), |out| content(out), check).await
}

both_ways!(a_file_is_made_once_and_found_by_its_digest, Place::in_memory(), |place| {
    use sha2::Digest as _;
    assert!(deposited(place.reached().await, into("a"), "one".into()).await.unwrap().is_none());
    let receipt = made(&place, "a", "one").await.unwrap();
    let path = place.at("staging/tools.foxes/a");
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), LENGTH);
    assert_eq!(receipt.file.sha256, hex::encode(sha2::Sha256::digest(&bytes)));
    assert_eq!((receipt.file.target.as_str(), receipt.file.bytes), ("homes", LENGTH as u64));
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.nlink()), (0o600, 1));
    // Another attempt of the step makes no second file, and does not even write.
    let nothing = |_: &mut (dyn Write + Send)| -> Told { panic!("it is there") };
    let again = deposit(place.reached().await, into("a"), "one".into(), nothing, check).await.unwrap();
    assert_eq!(again, receipt);
    assert_eq!(
        deposited(place.reached().await, into("a"), "one".into()).await.unwrap(),
        Some(receipt.clone())
    );
    let sha256 = receipt.file.sha256.clone();
    let found = with_digest(place.reached().await, shelf(), sha256.clone()).await.unwrap();
    assert_eq!(found, receipt);
    // Another step does not overwrite it.
    let failure = made(&place, "a", "two").await.unwrap_err();
    assert!(failure.message.contains("exists already"), "{failure}");
    let failure = deposited(place.reached().await, into("a"), "two".into()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    let failure = with_digest(place.reached().await, shelf(), "0".repeat(64)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    // One that was changed on the disk is not taken for it.
    fs::write(&path, &bytes[1..]).unwrap();
    let failure = with_digest(place.reached().await, shelf(), sha256.clone()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
    fs::write(&path, &bytes).unwrap();
    withdraw(place.reached().await, into("a"), "two".into()).await.unwrap();
    withdraw(place.reached().await, into("a"), "one".into()).await.unwrap();
    assert_eq!(names(&place.at("staging")), [PRIVATE]);
    assert_eq!(names(&place.at("staging").join(PRIVATE).join("deposits")), [""; 0]);
    withdraw(place.reached().await, into("a"), "one".into()).await.unwrap();
});

both_ways!(what_is_not_whole_gets_no_name, Place::in_memory(), |place| {
    let broken = || Failure::new(FailureKind::Unreachable, "the server went away");
    let half = move |out: &mut (dyn Write + Send)| -> Told {
        out.write_all(&vec![0; 300_000]).unwrap();
        Err(broken())
    };
    let damaged = || Failure::new(FailureKind::Drift, "it is damaged");
    let wrong = move |_: &mut dyn Read| -> Told { Err(damaged()) };
    let wrong_at_its_end = move |file: &mut dyn Read| -> Told {
        file.read_to_end(&mut Vec::new()).unwrap();
        Err(damaged())
    };
    let other = |_: &mut dyn Read| -> Told { length(7) };
    let fails = async |kind: FailureKind, words: &str, result: Result<Receipt, Failure>| {
        let failure = result.unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.contains(words), "{failure}");
        assert!(!place.at("staging/tools.foxes/a").exists());
        assert!(deposited(place.reached().await, into("a"), "one".into()).await.unwrap().is_none());
    };
    let files = place.reached().await;
    let result = deposit(files.clone(), into("a"), "one".into(), half, |_| length(0)).await;
    fails(FailureKind::Unreachable, "the server went away", result).await;
    // Whoever writes and whoever reads both fail: the first cause is told.
    let result = deposit(files.clone(), into("a"), "one".into(), half, wrong_at_its_end).await;
    fails(FailureKind::Unreachable, "the server went away", result).await;
    let written = |out: &mut (dyn Write + Send)| -> Told {
        // It stops taking what nobody reads any more, and whoever writes passes that on.
        let all = out.write_all(&vec![1; LENGTH]);
        all.map_err(|error| Failure::new(FailureKind::Refused, error.to_string()))?;
        length(LENGTH)
    };
    let result = deposit(files.clone(), into("a"), "one".into(), written, wrong).await;
    fails(FailureKind::Drift, "it is damaged", result).await;
    let result = deposit(files.clone(), into("a"), "one".into(), written, other).await;
    fails(FailureKind::Drift, "it is 7, and was 3145735", result).await;
    // The next attempt finds nothing in its way.
    made(&place, "a", "one").await.unwrap();
    assert_eq!(names(&place.at("staging/tools.foxes")), ["a"]);
});

both_ways!(a_name_that_is_taken_in_between_stays_what_it_is, Place::in_memory(), |place| {
    let path = place.at("staging/tools.foxes/a");
    let taken = path.clone();
    let written = move |out: &mut (dyn Write + Send)| -> Told {
        content(out)?;
        fs::create_dir_all(taken.parent().unwrap()).unwrap();
        symlink("/etc/passwd", &taken).unwrap();
        length(LENGTH)
    };
    let result = deposit(place.reached().await, into("a"), "one".into(), written, check).await;
    let failure = result.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("/etc/passwd"));
});

both_ways!(credentials_are_made_once, Place::in_memory(), |place| {
    let new = |path: &str| SecretPlace::new("tool_homes", &json(path), Some(OWNER)).unwrap();
    let files = place.reached().await;
    let file = new("['foxes', 'replica.my.cnf']");
    assert!(matches!(file.look(files.clone()).await.unwrap(), Found::NoFolder));
    fs::create_dir(place.at("homes/foxes")).unwrap();
    assert!(matches!(file.look(files.clone()).await.unwrap(), Found::Nothing));
    let text = "[client]\npassword = \u{e9}\"\\\n";
    file.make(files.clone(), "one".into(), Secret::new(text)).await.unwrap();
    let path = place.at("homes/foxes/replica.my.cnf");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o440, OWNER, OWNER));
    let Found::Text(found) = file.look(files.clone()).await.unwrap() else { panic!("it is there") };
    assert_eq!(found.reveal(), text);
    let failure = file.make(files.clone(), "two".into(), Secret::new("other")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
    assert!(!format!("{failure:?}").contains("other"));
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    file.remove(files.clone(), |_| false).await.unwrap();
    assert!(path.exists());
    file.remove(files.clone(), |found| found.reveal().starts_with("[client]")).await.unwrap();
    assert!(!path.exists());
    file.remove(files.clone(), |_| true).await.unwrap();
    // What is no small text is not taken for credentials.
    symlink("/etc/passwd", &path).unwrap();
    assert_eq!(file.look(files.clone()).await.unwrap_err().kind, FailureKind::Refused);
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"\xff").unwrap();
    assert_eq!(file.look(files.clone()).await.unwrap_err().kind, FailureKind::Refused);
});
