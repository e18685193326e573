//! `kvorum verify`: is every record of a file on every single replica?
//!
//! Reads each replica's own rows, whoever leads, so that a replica that missed a write can't hide behind the
//! others. The last line with a key counts, as it does for `import`.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use xxhash_rust::xxh3::xxh3_128;

use super::admin;
use super::context::Context;
use super::failure::{Done, Failure, file_error};
use super::output::{self, Format, print_line};
use super::records::{Records, SourceArgs};
use crate::codec::keyspace;
use crate::rpc::convert;
use crate::rpc::v1::{GetMapReply, Placement, ReplicaScanRequest, Row};
use crate::{Error, Result};

/// How many wrong records are shown; all are counted.
const MAX_SHOWN: usize = 10;

const EXAMPLES: &str = "\
Examples:
  kvorum verify users.ndjson --key id --prefix user/
  kvorum verify /usr/share/dict/words --format lines --prefix word/

Memory: about 100 bytes and the key for each record. Exit code 1: a replica lacks a record or holds another
value. Rows that the file does not have are not looked at.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
}

/// What the file says: the key, and a checksum of its value.
type Expected = HashMap<Bytes, u128>;

/// How one replica compares with the file.
#[derive(Default, Debug)]
struct Compared {
    present: u64,
    wrong: u64,
    missing: u64,
    shown: Vec<String>,
}

impl Compared {
    fn show(&mut self, what: &str, key: &[u8]) {
        if self.shown.len() < MAX_SHOWN {
            self.shown.push(format!("{what} {}", output::line_bytes(key, false)));
        }
    }
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let expected = tokio::task::spawn_blocking(move || read_expected(&args.source))
        .await
        .map_err(|error| Error::unavailable(format!("the reading thread failed: {error}")))??;
    let map = admin::get_map(context).await?;
    let mut table = output::table(&["SHARD", "NODE", "RECORDS", "PRESENT", "WRONG", "MISSING"]);
    let mut list = Vec::new();
    let (mut replicas, mut bad) = (0_u64, 0_u64);
    for placement in &map.shards {
        let Some(shard) = placement.shard.as_ref().filter(|shard| holds_user_keys(shard)) else { continue };
        let wanted = expected.keys().filter(|key| covers(placement, key)).count() as u64;
        for node in &shard.replicas {
            let compared = compare(&map, *node, placement, &expected, wanted, context.deadline).await?;
            replicas += 1;
            bad += compared.wrong + compared.missing;
            table.add_row(
                [shard.id, *node, wanted, compared.present, compared.wrong, compared.missing]
                    .map(|n| n.to_string()),
            );
            list.push(json!({
                "shard": shard.id, "node": node, "records": wanted, "present": compared.present,
                "wrong": compared.wrong, "missing": compared.missing, "examples": compared.shown,
            }));
        }
    }
    let records = expected.len();
    print_line(match context.output {
        Format::Text => {
            format!("{table}\n\n{records} records on {replicas} replicas compared, {bad} wrong or missing")
        }
        Format::Json => {
            json!({ "records": records, "ok": bad == 0, "bad": bad, "replicas": list }).to_string()
        }
    })?;
    Ok(if bad == 0 { Done::Ok } else { Done::No })
}

fn read_expected(source: &SourceArgs) -> Result<Expected, Failure> {
    let mut expected = Expected::new();
    for next in Records::open(source)? {
        // Lines that give no record were not imported either.
        if let Ok((_, pair)) = next.map_err(|error| file_error(&source.file, "read", &error))? {
            expected.insert(pair.key, xxh3_128(&pair.value));
        }
    }
    Ok(expected)
}

fn holds_user_keys(shard: &crate::rpc::v1::Shard) -> bool {
    shard.end.as_deref().is_none_or(|end| end > &[keyspace::USER][..])
}

fn covers(placement: &Placement, key: &[u8]) -> bool {
    let inner = [&[keyspace::USER], key].concat();
    placement.shard.as_ref().is_some_and(|shard| {
        inner >= shard.start.to_vec() && shard.end.as_deref().is_none_or(|end| inner.as_slice() < end)
    })
}

async fn compare(
    map: &GetMapReply,
    node: u64,
    placement: &Placement,
    expected: &Expected,
    wanted: u64,
    deadline: Duration,
) -> Result<Compared> {
    let shard = placement.shard.clone().unwrap_or_default().id;
    let Some(address) = map.nodes.iter().find(|one| one.id == node).map(|one| one.grpc_addr.clone()) else {
        return Err(Error::unavailable(format!(
            "shard {shard} has a replica on node {node}, which the map does not list"
        )));
    };
    let mut client = admin::connect(&address, deadline.max(Duration::from_secs(300))).await?;
    let mut rows = client
        .replica_scan(ReplicaScanRequest { shard })
        .await
        .map_err(|status| convert::error_from_status(&status))?
        .into_inner();
    let mut compared = Compared::default();
    while let Some(reply) = rows.message().await.map_err(|status| convert::error_from_status(&status))? {
        for row in &reply.rows {
            compare_row(&mut compared, row, expected);
        }
    }
    compared.missing = wanted.saturating_sub(compared.present + compared.wrong);
    Ok(compared)
}

fn compare_row(compared: &mut Compared, row: &Row, expected: &Expected) {
    let Some(checksum) = expected.get(&row.key) else { return };
    let value = row.record.as_ref().map(|record| record.value.as_ref()).unwrap_or_default();
    if xxh3_128(value) == *checksum {
        compared.present += 1;
    } else {
        compared.wrong += 1;
        compared.show("another value:", &row.key);
    }
}
