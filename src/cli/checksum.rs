//! `kvorum checksum`: do all replicas of every shard hold the same?

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::admin;
use super::context::Context;
use super::failure::{Done, Failure};
use super::output::{self, Format, print_line};
use crate::rpc::convert;
use crate::rpc::v1::{ChecksumRequest, Node, ReplicaChecksum};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  kvorum checksum               compare now; replicas that are behind are not compared
  kvorum checksum --wait 30s    wait until all replicas have applied the same, then compare

Exit code 1: replicas differ, or with --wait did not come to the same log index in time.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Wait at most so long until all replicas of each shard have applied the same log index.
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "30s", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
}

/// What is known of one shard: what each node's replica says.
type Shards = BTreeMap<u64, Vec<(u64, ReplicaChecksum)>>;

/// How the replicas of a shard compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// All have applied the same index, and hold the same.
    Equal,
    /// Some are behind; those at the same index hold the same.
    Behind,
    /// Two at the same index differ.
    Differ,
}

impl Verdict {
    fn of(replicas: &[(u64, ReplicaChecksum)]) -> Self {
        let mut first_at: BTreeMap<u64, &ReplicaChecksum> = BTreeMap::new();
        for (_, replica) in replicas {
            let first = first_at.entry(replica.applied_index).or_insert(replica);
            let content = |one: &ReplicaChecksum| (one.running, one.rows_checksum, one.rows);
            if content(first) != content(replica) {
                return Self::Differ;
            }
        }
        if first_at.len() <= 1 { Self::Equal } else { Self::Behind }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Behind => "behind",
            Self::Differ => "DIFFER",
        }
    }
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let map = admin::get_map(context).await?;
    let give_up_at = args.wait.map(|wait| Instant::now() + wait);
    let shards = loop {
        let shards = checksums(&map.nodes, context.deadline).await;
        let settled = matches!(&shards, Ok(shards) if shards.values().all(|replicas| Verdict::of(replicas) != Verdict::Behind));
        if settled || give_up_at.is_none_or(|at| Instant::now() >= at) {
            break shards?;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let verdicts: Vec<Verdict> = shards.values().map(|replicas| Verdict::of(replicas)).collect();
    print_line(match context.output {
        Format::Text => text(&shards),
        Format::Json => json(&shards, &verdicts).to_string(),
    })?;
    let worst = if args.wait.is_some() { Verdict::Behind } else { Verdict::Differ };
    let bad = verdicts.iter().any(|verdict| *verdict == Verdict::Differ || *verdict == worst);
    Ok(if bad { Done::No } else { Done::Ok })
}

/// What the replicas of every node say. Fails where a node does not answer: its replicas can't be judged.
async fn checksums(nodes: &[Node], deadline: Duration) -> Result<Shards> {
    // Every row is read from disk, which takes longer than one operation may.
    let deadline = deadline.max(Duration::from_secs(120));
    let replies = try_join_all(nodes.iter().map(|node| async move {
        let mut client = admin::connect(&node.grpc_addr, deadline).await?;
        let reply = client
            .checksum(ChecksumRequest { shard: None })
            .await
            .map_err(|status| convert::error_from_status(&status))?;
        Ok::<_, Error>((node.id, reply.into_inner().replicas))
    }))
    .await?;
    let mut shards = Shards::new();
    for (node, replicas) in replies {
        for replica in replicas {
            shards.entry(replica.shard).or_default().push((node, replica));
        }
    }
    Ok(shards)
}

fn text(shards: &Shards) -> String {
    let mut table =
        output::table(&["SHARD", "NODE", "APPLIED", "ROWS", "ROWS CHECKSUM", "RUNNING", "REPLICAS"]);
    for (shard, replicas) in shards {
        let verdict = Verdict::of(replicas);
        for (node, replica) in replicas {
            table.add_row([
                shard.to_string(),
                node.to_string(),
                replica.applied_index.to_string(),
                replica.rows.to_string(),
                format!("{:016x}", replica.rows_checksum),
                format!("{:016x}", replica.running),
                verdict.name().to_owned(),
            ]);
        }
    }
    table.to_string()
}

fn json(shards: &Shards, verdicts: &[Verdict]) -> Value {
    let list: Vec<Value> = shards
        .iter()
        .map(|(shard, replicas)| {
            let replicas_json: Vec<Value> = replicas
                .iter()
                .map(|(node, replica)| {
                    json!({
                        "node": node,
                        "applied_index": replica.applied_index,
                        "rows": replica.rows,
                        "rows_checksum": format!("{:016x}", replica.rows_checksum),
                        "running": format!("{:016x}", replica.running),
                    })
                })
                .collect();
            json!({ "shard": shard, "verdict": Verdict::of(replicas).name().to_lowercase(), "replicas": replicas_json })
        })
        .collect();
    json!({ "equal": verdicts.iter().all(|verdict| *verdict == Verdict::Equal), "shards": list })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(node: u64, applied_index: u64, rows_checksum: u64) -> (u64, ReplicaChecksum) {
        (node, ReplicaChecksum { applied_index, rows_checksum, ..ReplicaChecksum::default() })
    }

    #[test]
    fn only_replicas_at_the_same_index_can_differ() {
        assert_eq!(Verdict::of(&[replica(1, 5, 9), replica(2, 5, 9)]), Verdict::Equal);
        assert_eq!(Verdict::of(&[replica(1, 5, 9), replica(2, 4, 8)]), Verdict::Behind);
        assert_eq!(Verdict::of(&[replica(1, 4, 7), replica(2, 5, 9), replica(3, 4, 8)]), Verdict::Differ);
    }
}
