//! The changelog of real processes: consumers that are killed, slow, too slow, or two under one name; and read models made of
//! it.

mod killed;
mod names;
mod project;
mod retention;
mod writers;

use bytes::Bytes;
use kvorum::client::{ChangeStream, Event, Followed, Timestamp};

/// Reads a stream until it has told of everything up to `until`.
async fn read_until(changes: &mut ChangeStream, until: Timestamp) -> Vec<Followed> {
    changes.reach(until);
    let mut all = Vec::new();
    loop {
        let followed = changes.next().await.expect("goes on");
        let reached = matches!(followed.event, Event::Progress(ts) if ts >= until);
        all.push(followed);
        if reached {
            return all;
        }
    }
}

/// A key in one of the shards of a cluster of eight.
fn key(n: u64) -> Bytes {
    const FIRST: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    format!("{}/{n:02}", FIRST[(n as usize * 7) % FIRST.len()] as char).into()
}
