//! Forgets sagas that ended longer ago than they are to be kept.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::engine::{Engine, WITHIN};
use crate::codec::keyspace;
use crate::saga::{State, by_expiry_prefix, closed_key, expiry_of, keys_of_closed};
use crate::types::{Direction, ErrorKind, KeyRange, ReadAt, Result, TxnWrite};

/// Sagas that are looked at together.
const TOGETHER: usize = 100;
/// Rows of one saga that one transaction removes.
const ROWS: usize = 1_000;

/// Looks every now and then which sagas are to be forgotten. Nothing is read until the first of those that are known is due.
pub async fn run(engine: Arc<Engine>, every: Duration) {
    loop {
        sleep(every).await;
        if let Err(error) = forget_all(&engine).await {
            tracing::debug!(%error, "sagas that have ended can't be forgotten now; trying on");
        }
    }
}

async fn forget_all(engine: &Engine) -> Result<()> {
    let now_ms = engine.clock.now_ms();
    if engine.first_expiry_ms() > now_ms {
        return Ok(());
    }
    let shard = engine.range();
    // Those that end meanwhile lower it again.
    engine.set_first_expiry_ms(u64::MAX);
    let forgotten = forget_due(engine, &shard, now_ms).await;
    engine.note_expiry(forgotten.as_ref().map_or(0, |first_ms| *first_ms));
    forgotten.map(drop)
}

/// Forgets what is due. Answers when the first of the others is.
async fn forget_due(engine: &Engine, shard: &KeyRange, now_ms: u64) -> Result<u64> {
    let mut first_ms = u64::MAX;
    for partition in 0..=u8::MAX {
        let Some(mut range) = shard.intersect(&KeyRange::prefix(by_expiry_prefix(partition))) else {
            continue;
        };
        loop {
            let deadline = Instant::now() + WITHIN;
            let page = engine
                .rows
                .page(range.clone(), Direction::Forward, ReadAt::Latest, TOGETHER, deadline)
                .await?;
            let due = page.rows.iter().map_while(|(key, _)| {
                let (at_ms, id) = expiry_of(key)?;
                first_ms = if at_ms > now_ms { first_ms.min(at_ms) } else { first_ms };
                (at_ms <= now_ms).then_some(id)
            });
            let due: Vec<String> = due.collect();
            for id in &due {
                match forget(engine, id).await {
                    // The others are forgotten all the same.
                    Err(error) if error.kind == ErrorKind::Corrupt => {
                        tracing::error!(id, %error, "a saga that has ended can't be forgotten");
                    }
                    forgotten => forgotten?,
                }
            }
            match page.next {
                Some(next) if due.len() == page.rows.len() => range.start = next,
                _ => break,
            }
        }
    }
    Ok(first_ms)
}

/// Removes all rows of a saga that has ended; last of all those by which it is found here. Each transaction reads that it
/// has: another engine may have forgotten it, and the id may be another saga's.
async fn forget(engine: &Engine, id: &str) -> Result<()> {
    let closed = closed_key(id);
    let deadline = Instant::now() + WITHIN;
    let (as_of, found) = engine.rows.read(std::slice::from_ref(&closed), ReadAt::Latest, deadline).await?;
    let Some(record) = found.into_iter().flatten().next() else { return Ok(()) };
    let state = State::decode(&record.value)?;
    let definition = engine.definition_of(&state).await?;
    let remove = async |keys: Vec<Bytes>| {
        let writes = keys.into_iter().map(|key| TxnWrite::Delete { key }).collect();
        let deadline = Instant::now() + WITHIN;
        engine.rows.commit(as_of, vec![closed.clone()], writes, deadline).await.map(drop)
    };
    for rows in [keyspace::SAGA_HISTORY, keyspace::SAGA_PAYLOAD, keyspace::SAGA_LEASE, keyspace::SAGA_NEWS] {
        let mut range = keyspace::saga_rows_of(id, rows);
        loop {
            let deadline = Instant::now() + WITHIN;
            let page =
                engine.rows.page(range.clone(), Direction::Forward, ReadAt::Latest, ROWS, deadline).await?;
            if !page.rows.is_empty() {
                remove(page.rows.into_iter().map(|(key, _)| key).collect()).await?;
            }
            // A page may be empty, and not the last: of rows that were removed.
            match page.next {
                Some(next) => range.start = next,
                None => break,
            }
        }
    }
    remove(keys_of_closed(id, &definition, &state)).await
}
