//! A saga as rows of the store: their keys, their values, and what a change of the saga writes.
//!
//! | row | key, behind keyspace, partition and kind | value |
//! | --- | --- | --- |
//! | open, closed | id | the state |
//! | history | id, 0, number of its first line (8 bytes) | lines |
//! | payload | id, 0, step + 1 (4 bytes), or 0 for the input | the bytes as they are |
//! | lease | id, 0, step (4 bytes), kind (1 byte) | fence |
//! | news | id; or id, 0, step, kind | nothing: it was started; or what a transaction has done |
//! | by status | status (1 byte), name, 0, created at (8 bytes), id | nothing |
//! | by attribute | attribute, 0, value, 0, created at (8 bytes), id | nothing |
//! | by expiry | when (8 bytes), id | nothing |

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{Change, Definition, Record, State, Status, TaskKind, TaskRef, TaskStatus, Token, call_of};
use crate::codec;
use crate::codec::keyspace::{
    SAGA_BY_ATTRIBUTE, SAGA_BY_EXPIRY, SAGA_BY_STATUS, SAGA_CLOSED, SAGA_HISTORY, SAGA_LEASE, SAGA_NEWS,
    SAGA_OPEN, SAGA_PAYLOAD, SAGA_SCHEDULE, saga_partition, saga_row, saga_rows,
};
use crate::types::{Error, Result, TxnWrite, limits};

/// What a step that is a transaction came to, as the transaction itself wrote it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TxnDone {
    /// Which hand-out.
    pub token: Token,
    /// What it came to.
    pub output: Bytes,
}

/// The row of a saga that has not ended.
pub fn open_key(id: &str) -> Bytes {
    saga_row(id, SAGA_OPEN, &[])
}

/// The row of a saga that has ended.
pub fn closed_key(id: &str) -> Bytes {
    saga_row(id, SAGA_CLOSED, &[])
}

/// The row of a saga's history that begins with this line.
pub fn history_key(id: &str, first_line: u64) -> Bytes {
    saga_row(id, SAGA_HISTORY, &first_line.to_be_bytes())
}

/// The row of a saga's input.
pub fn input_key(id: &str) -> Bytes {
    saga_row(id, SAGA_PAYLOAD, &0_u32.to_be_bytes())
}

/// The row of what a step came to.
pub fn output_key(id: &str, step: usize) -> Bytes {
    saga_row(id, SAGA_PAYLOAD, &(step as u32 + 1).to_be_bytes())
}

/// Which step's output is in a row, by what stands in its key behind the saga's id; `None` for the input.
///
/// # Errors
///
/// `Corrupt` where that is no such row.
pub fn output_of(rest: &[u8]) -> Result<Option<usize>> {
    let number: [u8; 4] =
        rest.try_into().map_err(|_| Error::corrupt(format!("a saga's payload has the key {rest:?}")))?;
    Ok((u32::from_be_bytes(number) as usize).checked_sub(1))
}

fn task_rest(task: TaskRef) -> [u8; 5] {
    let [a, b, c, d] = (task.step as u32).to_be_bytes();
    let kind = match task.kind {
        TaskKind::Action => 0,
        TaskKind::Compensation => 1,
        TaskKind::Check => 2,
    };
    [a, b, c, d, kind]
}

/// The row that is there while a worker may commit a step that is a transaction.
pub fn lease_key(id: &str, task: TaskRef) -> Bytes {
    saga_row(id, SAGA_LEASE, &task_rest(task))
}

/// The value of a lease's row.
pub fn lease_value(fence: u64) -> Bytes {
    codec::encode(&fence).into()
}

/// The fence in a lease's row.
///
/// # Errors
///
/// `Corrupt` where it is none.
pub fn lease_fence(value: &[u8]) -> Result<u64> {
    codec::decode(value, "a lease of a saga's step")
}

/// The row by which a saga's engine learns that a transaction has started the saga.
pub fn started_key(id: &str) -> Bytes {
    saga_row(id, SAGA_NEWS, &[])
}

/// The row by which a saga's engine learns that a step's transaction is committed.
pub fn done_key(id: &str, task: TaskRef) -> Bytes {
    saga_row(id, SAGA_NEWS, &task_rest(task))
}

/// Whether a key is that of a row which the engine of sagas has to learn of, whoever writes it: where a saga is, what
/// transactions of users have done, and schedules.
pub fn is_heard(key: &[u8]) -> bool {
    key.first() == Some(&codec::keyspace::SAGA)
        && matches!(key.get(2), Some(&SAGA_NEWS | &SAGA_OPEN | &SAGA_SCHEDULE))
}

/// Whether a key is that of the row which says where a saga is that has not ended.
pub fn is_open_key(key: &[u8]) -> bool {
    key.get(2) == Some(&SAGA_OPEN)
}

/// Whether a key is that of a schedule.
pub fn is_schedule_key(key: &[u8]) -> bool {
    key.get(2) == Some(&SAGA_SCHEDULE)
}

/// The id of the saga that a row of the kinds open, closed and news is about, and the name of a schedule.
///
/// # Errors
///
/// `Corrupt` where the key is none of such a row.
pub fn id_of(key: &[u8]) -> Result<String> {
    let rest = key.get(3..).unwrap_or_default();
    let id = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    match std::str::from_utf8(id) {
        Ok(id) if !id.is_empty() => Ok(id.to_owned()),
        _ => Err(Error::corrupt(format!("a saga's row has the key {:?}", key.escape_ascii().to_string()))),
    }
}

/// Checks the id of a saga.
///
/// # Errors
///
/// `Invalid` where it is empty, too long, or has control characters in it.
pub fn check_id(id: &str) -> Result<()> {
    if id.is_empty() || id.len() > limits::MAX_SAGA_ID_BYTES || id.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "the saga's id is {:?}: an id has 1 to {} bytes of UTF-8 without control characters",
            id.chars().take(80).collect::<String>(),
            limits::MAX_SAGA_ID_BYTES
        )));
    }
    Ok(())
}

impl State {
    /// It as a value.
    pub fn encode(&self) -> Bytes {
        codec::encode(self).into()
    }

    /// It from a value.
    ///
    /// # Errors
    ///
    /// `Corrupt` where it is none.
    pub fn decode(value: &[u8]) -> Result<Self> {
        codec::decode(value, "the state of a saga")
    }

    /// Whether it has ended, and everybody knows who has to.
    pub fn is_settled(&self) -> bool {
        self.is_closed() && self.letters.is_empty()
    }

    /// The hand-outs of steps that are transactions, which workers may commit now.
    pub fn txn_leases(&self, definition: &Definition) -> Vec<Token> {
        if self.is_closed() {
            return Vec::new();
        }
        let running = self.all_tasks().filter(|(at, task)| {
            task.status == TaskStatus::Running && call_of(definition, *at).is_some_and(|call| call.is_txn)
        });
        running.map(|(task, state)| Token { task, fence: state.fence }).collect()
    }
}

fn status_number(status: Status) -> u8 {
    Status::ALL.iter().position(|one| *one == status).unwrap_or_default() as u8
}

/// How the rows by status begin: of all sagas, or of those of one name.
pub fn by_status_prefix(partition: u8, status: Status, name: Option<&str>) -> Bytes {
    let mut key = saga_rows(partition, SAGA_BY_STATUS);
    key.put_u8(status_number(status));
    if let Some(name) = name {
        key.put_slice(name.as_bytes());
        key.put_u8(0);
    }
    key.freeze()
}

fn by_status_key(id: &str, state: &State) -> Bytes {
    let mut key =
        BytesMut::from(&by_status_prefix(saga_partition(id), state.status(), Some(&state.name))[..]);
    key.put_u64(state.created_ms);
    key.put_slice(id.as_bytes());
    key.freeze()
}

/// How the rows by an attribute's value begin.
pub fn by_attribute_prefix(partition: u8, attribute: &str, value: &str) -> Bytes {
    let mut key = saga_rows(partition, SAGA_BY_ATTRIBUTE);
    for part in [attribute, value] {
        key.put_slice(part.as_bytes());
        key.put_u8(0);
    }
    key.freeze()
}

fn by_attribute_keys(id: &str, state: &State) -> Vec<Bytes> {
    let key = |(attribute, value): (&String, &String)| {
        let mut key = BytesMut::from(&by_attribute_prefix(saga_partition(id), attribute, value)[..]);
        key.put_u64(state.created_ms);
        key.put_slice(id.as_bytes());
        key.freeze()
    };
    state.attributes.iter().map(key).collect()
}

/// The id in a row by status, whose key begins with a prefix without a name.
pub fn id_by_status(key: &[u8], prefix_bytes: usize) -> Option<String> {
    let rest = key.get(prefix_bytes..)?;
    let name_end = rest.iter().position(|byte| *byte == 0)?;
    let id = rest.get(name_end + 1 + 8..)?;
    String::from_utf8(id.to_vec()).ok()
}

/// The id in a row by attribute.
pub fn id_by_attribute(key: &[u8], prefix_bytes: usize) -> Option<String> {
    String::from_utf8(key.get(prefix_bytes + 8..)?.to_vec()).ok()
}

/// How the rows by expiry begin.
pub fn by_expiry_prefix(partition: u8) -> Bytes {
    saga_rows(partition, SAGA_BY_EXPIRY).freeze()
}

/// When the saga of a row by expiry is to be forgotten, and its id.
pub fn expiry_of(key: &[u8]) -> Option<(u64, String)> {
    let (at_ms, id) = key.get(3..)?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*at_ms), String::from_utf8(id.to_vec()).ok()?))
}

/// When a saga that has ended is to be forgotten.
pub fn expires_ms(state: &State, definition: &Definition) -> u64 {
    state.closed_ms.saturating_add(definition.retention_ms())
}

fn by_expiry_key(id: &str, expires_ms: u64) -> Bytes {
    let mut key = saga_rows(saga_partition(id), SAGA_BY_EXPIRY);
    key.put_u64(expires_ms);
    key.put_slice(id.as_bytes());
    key.freeze()
}

/// Lines of history from a row.
///
/// # Errors
///
/// `Corrupt` where they are none.
pub fn records_of(value: &[u8]) -> Result<Vec<Record>> {
    codec::decode(value, "lines of a saga's history")
}

/// What is written when a saga begins, besides its input.
pub fn writes_of_start(
    id: &str,
    definition: &Definition,
    state: &State,
    change: &Change,
    input: Bytes,
) -> Vec<TxnWrite> {
    let mut writes = writes_of_change(id, definition, None, state, change);
    writes.push(TxnWrite::Put { key: input_key(id), value: input });
    for key in by_attribute_keys(id, state) {
        writes.push(TxnWrite::Put { key, value: Bytes::new() });
    }
    writes
}

/// What is written when a saga changes from `old` to `new`. No key stands in it twice.
pub fn writes_of_change(
    id: &str,
    definition: &Definition,
    old: Option<&State>,
    new: &State,
    change: &Change,
) -> Vec<TxnWrite> {
    let mut writes = Vec::with_capacity(6);
    let put = |key: Bytes, value: Bytes| TxnWrite::Put { key, value };
    if new.is_settled() {
        writes.push(TxnWrite::Delete { key: open_key(id) });
        writes.push(put(closed_key(id), new.encode()));
        writes.push(put(by_expiry_key(id, expires_ms(new, definition)), Bytes::new()));
    } else {
        writes.push(put(open_key(id), new.encode()));
    }
    if !change.records.is_empty() {
        let first = new.history_len - change.records.len() as u64;
        writes.push(put(history_key(id, first), codec::encode(&change.records).into()));
    }
    for (step, output) in &change.outputs {
        writes.push(put(output_key(id, *step), output.clone()));
    }
    let (now, before) = (by_status_key(id, new), old.map(|old| by_status_key(id, old)));
    if before.as_ref() != Some(&now) {
        writes.extend(before.map(|key| TxnWrite::Delete { key }));
        writes.push(put(now, Bytes::new()));
    }
    let before = old.map(|old| old.txn_leases(definition)).unwrap_or_default();
    let now = new.txn_leases(definition);
    for lease in now.iter().filter(|lease| !before.contains(lease)) {
        writes.push(put(lease_key(id, lease.task), lease_value(lease.fence)));
    }
    let is_gone = |lease: &&Token| !now.iter().any(|other| other.task == lease.task);
    for lease in before.iter().filter(is_gone) {
        writes.push(TxnWrite::Delete { key: lease_key(id, lease.task) });
    }
    writes
}

/// What must not have changed for a transition from `old` to be made: where the saga is, and whether a step's transaction
/// was committed meanwhile.
pub fn reads_of_change(id: &str, definition: &Definition, old: &State) -> Vec<Bytes> {
    let done = old.txn_leases(definition).into_iter().map(|lease| done_key(id, lease.task));
    std::iter::once(open_key(id)).chain(done).collect()
}

/// What is removed when a saga is forgotten, besides its history and payload, which are ranges.
pub fn keys_of_closed(id: &str, definition: &Definition, state: &State) -> Vec<Bytes> {
    let mut keys =
        vec![closed_key(id), by_status_key(id, state), by_expiry_key(id, expires_ms(state, definition))];
    keys.extend(by_attribute_keys(id, state));
    keys
}
