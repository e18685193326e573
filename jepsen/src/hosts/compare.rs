//! Whether all replicas of each shard hold the same, by what `kvorum checksum` says.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Cluster;
use super::ask::replicas_of_each;
use super::tools::{Error, Result, failure, output};

/// How the replicas of all shards compare.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// All hold the same.
    Equal,
    /// Two that have applied the same differ: the table of all.
    Differ(String),
    /// They can't be compared: why, and the table of all if there is one.
    Unsettled(String),
}

/// What `kvorum checksum --output json` says.
#[derive(Deserialize)]
struct Checksums {
    shards: Vec<Shard>,
}

#[derive(Deserialize)]
struct Shard {
    shard: u64,
    /// `equal`, `behind` or `differ`.
    verdict: String,
    replicas: Vec<Replica>,
}

#[derive(Deserialize)]
struct Replica {
    node: u64,
    applied_index: u64,
    rows: u64,
    rows_checksum: String,
    running: String,
}

impl Cluster {
    /// Compares all replicas of each shard, once they have applied the same. Nothing may be writing.
    ///
    /// # Errors
    /// Where the `kvorum` command can't be run.
    pub async fn compare_replicas(&self) -> Result<Comparison> {
        let server = self.settings.server.to_string_lossy().into_owned();
        let nodes = self.addresses().join(",");
        let words =
            "checksum --wait 60s --deadline 60s --output json --endpoints".split(' ').map(str::to_owned);
        let words: Vec<String> = words.chain([nodes]).collect();
        let compare = move || output(&server, &words.iter().map(String::as_str).collect::<Vec<_>>(), "");
        let done = tokio::task::spawn_blocking(compare).await;
        let done = done.map_err(|error| Error::Other(format!("the comparison ended: {error}")))??;
        let (shards, replicas) = (self.least_shards(), replicas_of_each(self.len()));
        Ok(judge(&String::from_utf8_lossy(&done.stdout), &failure(&done), shards, replicas))
    }
}

/// Judges what the command wrote. `told` is how it ended; there must be so many shards at least, with so many replicas
/// each.
fn judge(json: &str, told: &str, shards: usize, replicas: usize) -> Comparison {
    let Ok(checksums) = serde_json::from_str::<Checksums>(json) else {
        return Comparison::Unsettled(format!("kvorum checksum: {told}"));
    };
    let table = table(&checksums);
    let with = |verdict: &str| checksums.shards.iter().find(|shard| shard.verdict == verdict);
    if with("differ").is_some() {
        return Comparison::Differ(format!("replicas that have applied the same differ:\n{table}"));
    }
    let incomplete = checksums.shards.iter().find(|shard| shard.replicas.len() != replicas);
    let why = if let Some(shard) = checksums.shards.iter().find(|shard| shard.verdict != "equal") {
        format!("the replicas of shard {} are {} after a minute", shard.shard, shard.verdict)
    } else if checksums.shards.len() < shards {
        format!("there are checksums of {} shards, and there must be {shards}", checksums.shards.len())
    } else if let Some(shard) = incomplete {
        format!(
            "there are {} checksums of shard {}, and there must be {replicas}",
            shard.replicas.len(),
            shard.shard
        )
    } else {
        return Comparison::Equal;
    };
    Comparison::Unsettled(format!("{why}:\n{table}"))
}

/// A line for each replica.
fn table(checksums: &Checksums) -> String {
    let mut lines = BTreeMap::new();
    for Shard { shard, verdict, replicas } in &checksums.shards {
        for Replica { node, applied_index, rows, rows_checksum, running } in replicas {
            let line = format!(
                "shard {shard} ({verdict}), node {node}: index {applied_index}, {rows} rows, checksum {rows_checksum}, running {running}"
            );
            lines.insert((*shard, *node), line);
        }
    }
    lines.into_values().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the command says of one shard with these indexes and checksums.
    fn said(verdict: &str, replicas: &[(u64, &str)]) -> String {
        let replicas: Vec<String> = (1..)
            .zip(replicas)
            .map(|(node, (index, sum))| {
                format!(
                    r#"{{"node":{node},"applied_index":{index},"rows":4,"rows_checksum":"{sum}","running":"00"}}"#
                )
            })
            .collect();
        let shard = format!(r#"{{"shard":1,"verdict":"{verdict}","replicas":[{}]}}"#, replicas.join(","));
        format!(r#"{{"equal":{},"shards":[{shard}]}}"#, verdict == "equal")
    }

    #[test]
    fn only_replicas_that_differ_are_said_to_differ() {
        let equal = said("equal", &[(5, "aa"), (5, "aa"), (5, "aa")]);
        assert_eq!(judge(&equal, "exit status: 0", 1, 3), Comparison::Equal);
        let differ = said("differ", &[(5, "aa"), (5, "bb"), (5, "aa")]);
        let Comparison::Differ(table) = judge(&differ, "exit status: 1", 1, 3) else { panic!("{differ}") };
        assert!(table.contains("shard 1 (differ), node 2: index 5, 4 rows, checksum bb"), "{table}");
        let behind = said("behind", &[(5, "aa"), (4, "bb"), (5, "aa")]);
        let Comparison::Unsettled(why) = judge(&behind, "exit status: 1", 1, 3) else { panic!("{behind}") };
        assert!(why.contains("shard 1 are behind") && why.contains("node 2: index 4"), "{why}");
        let Comparison::Unsettled(why) = judge("", "exit status: 3: node 2 is away", 1, 3) else { panic!() };
        assert!(why.contains("node 2 is away"), "{why}");
    }

    #[test]
    fn checksums_that_are_missing_are_noticed() {
        let two = said("equal", &[(5, "aa"), (5, "aa")]);
        assert_eq!(judge(&two, "exit status: 0", 1, 2), Comparison::Equal);
        for (shards, replicas, words) in [(1, 3, "2 checksums of shard 1"), (2, 2, "checksums of 1 shards")] {
            let Comparison::Unsettled(why) = judge(&two, "exit status: 0", shards, replicas) else {
                panic!()
            };
            assert!(why.contains(words), "{why}");
        }
    }
}
