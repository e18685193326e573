//! A log entry's bytes on disk: a versioned head, then the payload as it came.

use bytes::Bytes;
use openraft::Membership;
use openraft::impls::leader_id_adv;
use openraft::impls::{EmptyNode, EntryPayload};
use serde::{Deserialize, Serialize};

use super::Payload;
use crate::codec;
use crate::types::{Error, NodeId, Result};

/// Who led, and in which term.
pub type LeaderId = leader_id_adv::LeaderId<u64, NodeId>;
/// A Raft entry of one of our groups.
pub type Entry = openraft::Entry<LeaderId, EntryPayload<Payload, NodeId, EmptyNode>>;
/// The id of an entry: its leader's term and node, and its index.
pub type LogId = openraft::LogId<LeaderId>;

/// What stands before the payload.
#[derive(Serialize, Deserialize)]
struct Head {
    log_id: LogId,
    /// Bytes of all entries of the group up to and with this one, so that the size of any part of the log
    /// is a subtraction. Counts from the last start with an empty log.
    end_position: u64,
    body: Body,
}

#[derive(Serialize, Deserialize)]
enum Body {
    Blank,
    /// So many bytes follow the head.
    Normal(u64),
    Membership(Membership<NodeId, EmptyNode>),
}

/// An entry as it is stored.
pub struct StoredEntry {
    /// The entry.
    pub entry: Entry,
    /// Bytes of all entries of the group up to and with this one.
    pub end_position: u64,
}

/// Bytes that an entry counts for in [`StoredEntry::end_position`], known before it is encoded. Close to
/// its size on disk; the head is counted at a flat rate.
pub fn counted_bytes(entry: &Entry) -> u64 {
    const HEAD_BYTES: u64 = 32;
    match &entry.payload {
        EntryPayload::Normal(payload) => HEAD_BYTES + payload.0.len() as u64,
        EntryPayload::Blank | EntryPayload::Membership(_) => HEAD_BYTES,
    }
}

/// Encodes an entry for the log.
pub fn encode(entry: &Entry, end_position: u64) -> Bytes {
    let (body, payload) = match &entry.payload {
        EntryPayload::Blank => (Body::Blank, None),
        EntryPayload::Normal(payload) => (Body::Normal(payload.0.len() as u64), Some(&payload.0)),
        EntryPayload::Membership(membership) => (Body::Membership(membership.clone()), None),
    };
    let payload_bytes = payload.map_or(0, |payload| payload.len());
    let mut buffer = Vec::with_capacity(payload_bytes + 40);
    codec::encode_into(&Head { log_id: entry.log_id, end_position, body }, &mut buffer);
    if let Some(payload) = payload {
        buffer.extend_from_slice(payload);
    }
    buffer.into()
}

/// Decodes what [`encode`] wrote. The payload shares the memory of `bytes`.
///
/// # Errors
///
/// `Corrupt` where the bytes are not an entry or its payload is cut short.
pub fn decode(bytes: &Bytes) -> Result<StoredEntry> {
    let (head, used): (Head, usize) = codec::decode_prefix(bytes, "a log entry")?;
    let rest = bytes.slice(used..);
    let expected = if let Body::Normal(payload_bytes) = head.body { payload_bytes } else { 0 };
    if rest.len() as u64 != expected {
        return Err(Error::corrupt(format!(
            "log entry {} has {} bytes of payload, but its head says {expected}",
            head.log_id,
            rest.len()
        )));
    }
    let payload = match head.body {
        Body::Blank => EntryPayload::Blank,
        Body::Normal(_) => EntryPayload::Normal(Payload(rest)),
        Body::Membership(membership) => EntryPayload::Membership(membership),
    };
    let entry = Entry { log_id: head.log_id, payload };
    Ok(StoredEntry { entry, end_position: head.end_position })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn entry(payload: EntryPayload<Payload, NodeId, EmptyNode>) -> Entry {
        let leader = LeaderId { term: 3, node_id: NodeId(2) };
        Entry { log_id: LogId::new(leader, 17), payload }
    }

    #[test]
    fn entries_round_trip_and_cut_ones_are_refused() {
        let voters = BTreeSet::from([NodeId(1), NodeId(2)]);
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Normal(Payload(Bytes::from_static(b"some bytes"))),
            EntryPayload::Normal(Payload(Bytes::new())),
            EntryPayload::Membership(Membership::new_with_defaults(vec![voters], [NodeId(3)])),
        ];
        for payload in payloads {
            let entry = entry(payload);
            let bytes = encode(&entry, 99);
            let back = decode(&bytes).expect("decodes");
            assert_eq!(back.entry, entry);
            assert_eq!(back.end_position, 99);
            for cut in 0..bytes.len() {
                assert!(decode(&bytes.slice(..cut)).is_err(), "cut at {cut}");
            }
            assert!(decode(&[&bytes[..], b"x"].concat().into()).is_err());
        }
    }
}
