//! The edge of query indexes: keeps them up, clears them away, and answers queries of them.
//!
//! `catalogue` keeps what indexes there are, at the leader of the system shard. The node that leads the shard where an
//! index's rows lie runs a `projector` for each of its versions; `projectors` starts and stops them. A projector follows
//! the changelog as any client does, and writes with `store`, by transactions that read the checkpoint: so of two that
//! run at once, one fails. `clear` removes the rows of versions that are not wanted any more. `query` answers on any
//! replica. `wire` is how all of it travels.

mod catalogue;
mod clear;
mod projector;
mod projectors;
mod query;
mod store;
mod wire;

pub use catalogue::Catalogue;
pub use projectors::{Projectors, run};
pub use query::{dump, query};
pub use store::Store;

use bytes::Bytes;
use tokio::time::Instant;

use crate::index::{Checkpoint, DeadLetter, checkpoint_key, dead_letters};
use crate::rpc::v1;
use crate::rpc::v1::index_version_request::What;
use crate::types::{Direction, Error, KeyRange, ReadAt, Record, Result, Timestamp};

/// Dead letters in one page.
const LETTERS_IN_PAGE: usize = 500;

/// Serves a request about one version of an index, but for queries.
///
/// # Errors
///
/// `Moved` where this node does not lead the shard that holds the version's rows; `Unavailable` where its projector does
/// not run here yet, or does not get done by the deadline; `Invalid` where the index has halted and can't be waited for.
pub async fn serve_version(
    store: &Store,
    projectors: &Projectors,
    (id, version): (u64, u32),
    what: What,
    deadline: Instant,
) -> Result<v1::index_version_reply::What> {
    use v1::index_version_reply::What as Reply;
    store.check_leads(&checkpoint_key(id, version))?;
    Ok(match what {
        What::Query(_) | What::Dump(_) => {
            return Err(Error::corrupt("what any replica answers was asked of the leader's projector"));
        }
        What::ReachTs(ts) => {
            let ts = Timestamp(ts);
            if projectors.told((id, version)).is_none() {
                // It may never run again.
                query::check_there(store, (id, version), deadline).await?;
            }
            // What is wanted of the future comes by itself, when its time has come.
            let now = store.at_most_now(ts).await?;
            let told = projectors.reach((id, version), (ts, now), deadline).await?;
            Reply::Reached(v1::IndexReached { read_ts: told.checkpoint_ts.0, watermark: told.watermark.0 })
        }
        What::Progress(_) => Reply::Progress(progress(store, projectors, (id, version), deadline).await?),
        What::Resume(resume) => {
            projectors.resume((id, version), resume, deadline).await?;
            Reply::Progress(progress(store, projectors, (id, version), deadline).await?)
        }
        What::Replay(_) => {
            projectors.replay((id, version), deadline).await?;
            Reply::Progress(progress(store, projectors, (id, version), deadline).await?)
        }
        What::DeadLettersFrom(from) => {
            Reply::DeadLetters(letters_page(store, (id, version), &from, deadline).await?)
        }
    })
}

async fn progress(
    store: &Store,
    projectors: &Projectors,
    (id, version): (u64, u32),
    deadline: Instant,
) -> Result<v1::IndexProgress> {
    let key = checkpoint_key(id, version);
    let (_, found) = store.read(std::slice::from_ref(&key), ReadAt::Latest, deadline).await?;
    let Some(record) = found.into_iter().next().flatten() else {
        return Ok(v1::IndexProgress { version, ..Default::default() });
    };
    let mut progress = wire::progress_to_proto(version, &Checkpoint::decode(&record.value)?);
    // Nothing may have happened for a while: then the projector knows that the rows are right for longer.
    if let Some(told) = projectors.told((id, version)) {
        progress.watermark = progress.watermark.max(told.watermark.0);
        progress.failing = told.failing.unwrap_or_default();
    }
    Ok(progress)
}

async fn letters_page(
    store: &Store,
    (id, version): (u64, u32),
    from: &[u8],
    deadline: Instant,
) -> Result<v1::DeadLetters> {
    let whole = dead_letters(id, version);
    let prefix_bytes = whole.start.len();
    let range = KeyRange::new([&whole.start[..], from].concat(), whole.end);
    if range.is_empty() {
        return Ok(v1::DeadLetters::default());
    }
    let page = store.page(range, Direction::Forward, ReadAt::Latest, LETTERS_IN_PAGE, deadline).await?;
    let letter = |(key, record): (Bytes, Record)| {
        let DeadLetter { commit_ts, reason } = DeadLetter::decode(&record.value)?;
        Ok(v1::DeadLetter { key: key.slice(prefix_bytes..), commit_ts: commit_ts.0, reason })
    };
    let letters = page.rows.into_iter().map(letter).collect::<Result<_>>()?;
    Ok(v1::DeadLetters { letters, next: page.next.map(|next| next.slice(prefix_bytes..)) })
}
