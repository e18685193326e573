//! Writers over all shards that keep their own record of what they committed when.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use kvorum::client::{Changes, Timestamp};
use kvorum::{Client, ErrorKind};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::key;

/// How many keys the writers share.
const KEYS: u64 = 60;

/// What a transaction writes: a value, or `None` to remove the key.
pub type Writes = BTreeMap<Bytes, Option<Bytes>>;

/// What the writers know.
#[derive(Default)]
pub struct Record {
    /// Acknowledged, by commit timestamp.
    pub committed: Mutex<BTreeMap<Timestamp, Writes>>,
    /// Of unknown fate, by the number that is in every value.
    pub open: Mutex<BTreeMap<u64, Writes>>,
    next: AtomicU64,
}

/// Writers under way.
pub struct Writers {
    pub record: Arc<Record>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Writers {
    /// Starts them.
    pub fn start(client: &Client, count: usize) -> Self {
        let (record, stop) = (Arc::new(Record::default()), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            tasks.spawn(write(client.clone(), record.clone(), stop.clone()));
        }
        Self { record, stop, tasks }
    }

    /// Stops them, and waits until the last has its answer.
    pub async fn stop(mut self) -> Arc<Record> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a writer ends well");
        }
        self.record
    }
}

async fn write(client: Client, record: Arc<Record>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let number = record.next.fetch_add(1, Ordering::Relaxed);
        let writes = choose(number);
        match commit(&client, &writes).await {
            Ok(commit_ts) => {
                let twice = record.committed.lock().insert(commit_ts, writes);
                assert_eq!(twice, None, "two transactions committed at {commit_ts}");
            }
            Err(error) => match error.kind {
                ErrorKind::Undetermined => {
                    record.open.lock().insert(number, writes);
                }
                ErrorKind::Conflict | ErrorKind::Unavailable => {}
                _ => panic!("transaction {number} failed: {error}"),
            },
        }
    }
}

/// One to five keys; the first is written, each other one written or removed.
fn choose(number: u64) -> Writes {
    let count = rand::random_range(1..=5);
    let mut writes = Writes::new();
    while writes.len() < count {
        let removed = !writes.is_empty() && rand::random_range(0..3) == 0;
        let value = (!removed).then(|| Bytes::from(format!("{number} {}", writes.len())));
        writes.entry(key(rand::random_range(0..KEYS))).or_insert(value);
    }
    writes
}

/// A single write where that will do, else a transaction.
async fn commit(client: &Client, writes: &Writes) -> kvorum::Result<Timestamp> {
    if let Some((key, Some(value))) = writes.first_key_value().filter(|_| writes.len() == 1) {
        return Ok(client.put(key, value.clone()).await?.commit_ts);
    }
    let writes = writes.clone();
    let committed = client.transact(move |txn| {
        let writes = writes.clone();
        async move {
            for (key, value) in &writes {
                match value {
                    Some(value) => txn.put(key, value.clone())?,
                    None => txn.delete(key)?,
                }
            }
            Ok(())
        }
    });
    Ok(committed.await?.commit_ts)
}

impl Record {
    /// Checks what a consumer was told against what was written: each transaction once, whole, in order.
    pub fn check(&self, told: &[Changes]) {
        let mut committed = self.committed.lock().clone();
        let mut open = self.open.lock().clone();
        let mut last = Timestamp::ZERO;
        for changes in told {
            let commit_ts = changes.commit_ts;
            assert!(commit_ts > last, "{commit_ts} came after {last}");
            last = commit_ts;
            let writes: Writes =
                changes.changes.iter().map(|change| (change.key.clone(), change.value.clone())).collect();
            match committed.remove(&commit_ts) {
                Some(written) => assert_eq!(writes, written, "what was committed at {commit_ts}"),
                // Nobody was told of it: then it is one of unknown fate.
                None => {
                    let number = number(&writes);
                    assert_eq!(
                        open.remove(&number).as_ref(),
                        Some(&writes),
                        "number {number} at {commit_ts}"
                    );
                }
            }
        }
        assert!(committed.is_empty(), "never told: {:?}", committed.first_key_value());
    }
}

/// The number in a transaction's values.
fn number(writes: &Writes) -> u64 {
    let value = writes.values().flatten().next().expect("one value at least");
    let text = std::str::from_utf8(value).expect("text");
    text.split(' ').next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Checks that what each key held before a change is what the changes before it left, from `rows` on. Returns what they
/// leave.
pub fn replay(mut rows: BTreeMap<Bytes, Bytes>, told: &[Changes]) -> BTreeMap<Bytes, Bytes> {
    use kvorum::client::Before;
    for changes in told {
        for change in &changes.changes {
            let held = match &change.value {
                Some(value) => rows.insert(change.key.clone(), value.clone()),
                None => rows.remove(&change.key),
            };
            let before = match &change.before {
                Before::Value(value) => Some(value.clone()),
                Before::Absent => None,
                other => panic!("{other:?} before {:?} at {}", change.key, changes.commit_ts),
            };
            assert_eq!(before, held, "before {:?} at {}", change.key, changes.commit_ts);
        }
    }
    rows
}
