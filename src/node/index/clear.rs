//! Clears away the rows of a version that is not wanted any more.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::store::Store;
use crate::client::Client;
use crate::codec::keyspace;
use crate::index::checkpoint_key;
use crate::rpc::v1;
use crate::rpc::v1::index_catalogue_request::What;
use crate::types::{Direction, Error, ErrorKind, ReadAt, Result, TxnWrite};

/// Rows that one transaction removes.
const ROWS: usize = 1_000;
/// How long one transaction, and the reading before it, may take.
const WITHIN: Duration = Duration::from_secs(10);
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Removes all rows of a version, and says so in the catalogue. Begins anew until that is done.
pub(super) async fn run(store: Store, client: Client, name: String, (id, version): (u64, u32)) {
    while let Err(error) = clear(&store, id, version).await {
        tracing::debug!(index = name, version, %error, "the rows of an index can't be cleared away now; trying on");
        sleep(PAUSE).await;
    }
    let cleared =
        || What::Cleared(v1::NamedVersion { name: name.clone(), id, version, reason: String::new() });
    while let Err(error) = client.about_indexes(cleared()).await {
        tracing::debug!(index = name, version, %error, "that an index is cleared away can't be noted now; trying on");
        sleep(PAUSE).await;
    }
    tracing::info!(index = name, version, "the rows of an index are cleared away");
}

async fn clear(store: &Store, id: u64, version: u32) -> Result<()> {
    // First of all, and also where there is none: a projector that is still at work has read it, and fails.
    let checkpoint = checkpoint_key(id, version);
    let start = store.now().await?;
    let fence = vec![TxnWrite::Delete { key: checkpoint }];
    store.commit(start, Vec::new(), fence, Instant::now() + WITHIN).await?;
    let mut range = keyspace::index_version_range(id, version);
    loop {
        let deadline = Instant::now() + WITHIN;
        let page = store.page(range.clone(), Direction::Forward, ReadAt::Latest, ROWS, deadline).await?;
        if !page.rows.is_empty() {
            let start = store.now().await?;
            let writes = page.rows.into_iter().map(|(key, _)| TxnWrite::Delete { key }).collect();
            match store.commit(start, Vec::new(), writes, deadline).await {
                Ok(_) => {}
                // Nobody else writes here: it was this one, or an earlier one.
                Err(Error { kind: ErrorKind::Undetermined, .. }) => continue,
                Err(error) => return Err(error),
            }
        }
        match page.next {
            Some(next) => range.start = next,
            None => return Ok(()),
        }
    }
}
