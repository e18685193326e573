//! Query indexes of real processes: what they hold against a scan, byte by byte, while transactions go over all shards and
//! the nodes that keep them up are killed; reading one's own writes; halts, dead letters, versions.

mod command;
mod equal;
mod large;
mod own_writes;
mod versions;

use std::collections::BTreeMap;

use bytes::Bytes;
use kvorum::Client;
use kvorum::client::{IndexSpec, IndexStatus, Row, ScanOptions, Timestamp};
use kvorum::index::{Definition, OnError, from_scan};
use kvorum::rpc::convert::index_spec_from_proto;

use crate::support::eventually;

/// One index of each kind over the same rows, which have a team, a name and perhaps a score.
fn one_of_each_kind() -> Vec<IndexSpec> {
    let index = |kind: &str| IndexSpec::new(format!("{kind}_index"), kind).on("$.team");
    vec![
        index("value").on("$.score desc").on("$.name").covering("$.mail"),
        index("unique").on("$.name").missing("null"),
        index("count"),
        index("sum").on("$.name").measure("$.score"),
        index("min").measure("$.score"),
        index("max").measure("$.name").covering("$.score"),
    ]
}

async fn create(client: &Client, specs: Vec<IndexSpec>) {
    for spec in specs {
        client.create_index(spec).await.expect("created");
    }
}

/// Waits until an index answers.
async fn wait_ready(client: &Client, name: &str) -> IndexStatus {
    eventually(&format!("index {name} is ready"), async || {
        let status = client.index(name).await.map_err(|error| error.to_string())?.ok_or("there is none")?;
        let record = status.record.clone().unwrap_or_default();
        match record.active.is_some() && record.building.is_none() {
            true => Ok(status),
            false => Err(format!("{status:?}")),
        }
    })
    .await
}

/// Compares an index, byte by byte, with what is computed from the rows at its watermark. Answers that, and how many rows
/// the index has.
async fn check_equal(client: &Client, name: &str) -> (Timestamp, usize) {
    let stored = client.dump_index(name).await.expect("dumped");
    let scan = ScanOptions::prefix(&stored.spec.prefix).at(stored.watermark);
    let rows = client.scan(scan).collect_rows().await.expect("scanned");
    let mut spec = index_spec_from_proto(stored.spec.clone()).expect("a definition");
    // Rows that can't be indexed are not in it, whether they halted it or not.
    spec.on_error = OnError::DeadLetter;
    let definition = Definition::new(stored.id, stored.version, spec).expect("a definition");
    let computed = from_scan(&definition, rows.iter().map(pair)).expect("computed");
    let computed: BTreeMap<Bytes, Bytes> =
        computed.into_iter().map(|(key, value)| (key.slice(1..), value)).collect();
    assert_eq!(stored.rows.len(), computed.len(), "rows of {name} at {}", stored.watermark);
    for (stored, computed) in stored.rows.iter().zip(&computed) {
        assert_eq!(stored, computed, "a row of {name}");
    }
    (stored.watermark, stored.rows.len())
}

fn pair(row: &Row) -> (&[u8], &[u8]) {
    (&row.key, &row.record.value)
}
