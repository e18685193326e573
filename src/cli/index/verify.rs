//! `kvorum index verify`: an index against what is computed anew from its rows, byte by byte.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::json;

use crate::cli::context::Context;
use crate::cli::failure::{Done, Failure};
use crate::cli::output::{Format, line_bytes, print_line};
use crate::client::{Client, IndexRows, ScanOptions};
use crate::index::{Definition, OnError, from_scan};
use crate::rpc::convert;
use crate::types::Result;

/// Differences that are shown.
const SHOWN: usize = 20;

/// Compares, and prints what differs.
pub(super) async fn run(context: &Context, client: &Client, name: &str) -> Result<Done, Failure> {
    let stored = client.dump_index(name).await?;
    let computed = computed(client, &stored).await?;
    let differences = differences(&stored.rows, &computed);
    print_line(match context.output {
        Format::Text if differences.is_empty() => format!(
            "index {name}: all {} rows are what the rows at {} come to",
            stored.rows.len(),
            stored.watermark
        ),
        Format::Text => {
            let shown: Vec<&str> = differences.iter().take(SHOWN).map(String::as_str).collect();
            format!(
                "index {name} at {}: {} rows differ\n{}",
                stored.watermark,
                differences.len(),
                shown.join("\n")
            )
        }
        Format::Json => json!({
            "watermark": stored.watermark.0,
            "version": stored.version,
            "rows": stored.rows.len(),
            "differences": differences.len(),
            "first": differences.iter().take(SHOWN).collect::<Vec<_>>(),
        })
        .to_string(),
    })?;
    Ok(if differences.is_empty() { Done::Ok } else { Done::No })
}

/// What the rows at the index's watermark come to.
async fn computed(client: &Client, stored: &IndexRows) -> Result<BTreeMap<Bytes, Bytes>> {
    let mut spec = convert::index_spec_from_proto(stored.spec.clone())?;
    // Rows that can't be indexed are not in it, whether they halted it or not.
    spec.on_error = OnError::DeadLetter;
    let definition = Definition::new(stored.id, stored.version, spec)?;
    let scan = ScanOptions::prefix(&stored.spec.prefix).at(stored.watermark);
    let rows = client.scan(scan).collect_rows().await?;
    let computed = from_scan(&definition, rows.iter().map(|row| (&row.key[..], &row.record.value[..])))?;
    Ok(computed.into_iter().map(|(key, value)| (key.slice(1..), value)).collect())
}

fn differences(stored: &BTreeMap<Bytes, Bytes>, computed: &BTreeMap<Bytes, Bytes>) -> Vec<String> {
    let mut differences = Vec::new();
    for (key, value) in stored {
        match computed.get(key) {
            Some(wanted) if wanted == value => {}
            Some(_) => differences.push(format!("another value: {}", line_bytes(key, false))),
            None => differences.push(format!("too much: {}", line_bytes(key, false))),
        }
    }
    let missing = computed.keys().filter(|key| !stored.contains_key(*key));
    differences.extend(missing.map(|key| format!("missing: {}", line_bytes(key, false))));
    differences
}
