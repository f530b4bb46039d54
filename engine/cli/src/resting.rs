//! A service that rests gives back what only work needs.

use std::time::Duration;

use farrier_store::SqliteStore;

/// For so long nothing may have been written: runs that go on renew their leases more often.
const REST: Duration = Duration::from_secs(10);

/// Lets go of the code that has run, each time that the service has come to rest.
pub(crate) async fn give_back(store: SqliteStore) {
    let (mut before, mut given) = (store.counts().commits, None);
    loop {
        tokio::time::sleep(REST).await;
        let now = store.counts().commits;
        if now == before && given != Some(now) {
            match farrier_resident::let_go_of_code() {
                Ok(bytes) => tracing::debug!(bytes, "at rest: the pages of the code are let go"),
                Err(error) => {
                    tracing::debug!(%error, "the pages of the code cannot be let go");
                    return;
                }
            }
            given = Some(now);
        }
        before = now;
    }
}
