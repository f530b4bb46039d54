//! A folder that stands in for a mail server: each mail is a file, `NUMBER-EFFECT.eml`, numbered in the order of sending.
//!
//! A file appears whole or not at all. As with a server, a mail that is sent twice is there twice, with one
//! `Message-ID`.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use farrier_model::{Failure, FailureKind};

use crate::letter::Letter;
use crate::target::Outbox;

/// A folder of mails.
pub(crate) struct Folder {
    path: PathBuf,
    refuse: Vec<String>,
}

impl Folder {
    pub(crate) fn new(path: PathBuf, refuse: Vec<String>) -> Folder {
        Folder { path, refuse }
    }
}

#[async_trait]
impl Outbox for Folder {
    async fn deliver(&self, letter: &Letter) -> Result<(), Failure> {
        for address in &letter.to {
            let text: &str = address.as_ref();
            let refused = |entry: &String| entry == "*" || entry.eq_ignore_ascii_case(text);
            if self.refuse.iter().any(refused) {
                return Err(Failure::new(
                    FailureKind::Refused,
                    format!("the server refuses {address}: 550 no such person (recorded); nothing was sent"),
                ));
            }
        }
        let (path, effect_id, bytes) = (self.path.clone(), letter.effect_id.clone(), letter.bytes.clone());
        let put = move || put(&path, &effect_id, &bytes).map_err(|error| (path, error));
        match tokio::task::spawn_blocking(put).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err((path, error))) => Err(Failure::new(
                FailureKind::Unreachable,
                format!("cannot put a mail into {}: {error}", path.display()),
            )),
            Err(error) => {
                Err(Failure::new(FailureKind::Internal, format!("the folder of mails stopped: {error}"))
                    .in_doubt())
            }
        }
    }
}

fn put(folder: &Path, effect_id: &str, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let lock = File::open(folder)?;
    lock.lock()?;
    let mut last = 0_u64;
    for item in std::fs::read_dir(folder)? {
        let name = item?.file_name();
        let number =
            name.to_str().and_then(|name| name.split_once('-')).and_then(|(digits, _)| digits.parse().ok());
        last = last.max(number.unwrap_or(0));
    }
    // The effect id is ours, letters and digits; anything else stays out of the name.
    let safe: String = effect_id.chars().filter(char::is_ascii_alphanumeric).take(64).collect();
    let name = format!("{:04}-{safe}.eml", last + 1);
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, folder.join(&name))
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written?;
    lock.sync_all()
}
