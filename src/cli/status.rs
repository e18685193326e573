//! `kvorum status`: the nodes, the shards, and who leads them.

use serde_json::{Value, json};

use super::admin;
use super::context::Context;
use super::failure::{Done, Failure};
use super::output::{self, Format, print_line};
use crate::gateway::{not_ready_reasons, status_json};
use crate::rpc::v1::{GetMapReply, GetStatusReply, Placement};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  kvorum status
  kvorum --output json status | jq '.nodes[] | select(.reachable | not)'

Exit code 1: a node does not answer or is not ready, or a shard has no leader.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

pub async fn run(context: &Context, _: Args) -> Result<Done, Failure> {
    let map = match admin::get_map(context).await {
        Ok(map) => map,
        Err(error) => return unformed(context, error).await,
    };
    let statuses = admin::status_of_all(&map.nodes, context.deadline).await;
    let all_ready =
        statuses.iter().all(|status| matches!(status, Ok(status) if not_ready_reasons(status).is_empty()));
    let all_led = map.shards.iter().all(|placement| placement.leader != 0);
    match context.output {
        Format::Text => print_line(text(&map, &statuses))?,
        Format::Json => print_line(json(&map, &statuses))?,
    }
    Ok(if all_ready && all_led { Done::Ok } else { Done::No })
}

/// No node knows a map. Where a node says that it belongs to no cluster yet, that is the answer, for the nodes of
/// `--endpoints`; else `no_map` is.
async fn unformed(context: &Context, no_map: Error) -> Result<Done, Failure> {
    let mut table = output::table(&["NODE", "STATE"]);
    let mut nodes = Vec::new();
    let mut some_wait = false;
    for endpoint in &context.endpoints {
        let status = admin::status_of(endpoint, context.deadline).await;
        some_wait |= matches!(&status, Ok(status) if status.cluster_id.is_empty());
        let state = status.as_ref().map_or_else(|error| error.message.clone(), |status| status.state.clone());
        table.add_row([endpoint.as_str(), &state]);
        nodes.push(json!({ "grpc": endpoint, "reachable": status.is_ok(), "state": state }));
    }
    if !some_wait {
        return Err(no_map.into());
    }
    print_line(match context.output {
        Format::Text => format!("no cluster is formed yet: run `kvorum cluster init`\n\n{table}"),
        Format::Json => json!({ "cluster_id": null, "nodes": nodes, "shards": [] }).to_string(),
    })?;
    Ok(Done::No)
}

fn text(map: &GetMapReply, statuses: &[Result<GetStatusReply>]) -> String {
    let mut nodes =
        output::table(&["NODE", "ADDRESS", "HTTP", "ZONE", "VERSION", "STATE", "LEADS", "UPTIME", "ON DISK"]);
    for (node, status) in map.nodes.iter().zip(statuses) {
        let leads = map.shards.iter().filter(|placement| placement.leader == node.id).count();
        let (state, uptime, bytes) = match status {
            Ok(status) => {
                let reasons = not_ready_reasons(status);
                let state = if reasons.is_empty() { status.state.clone() } else { reasons.join("; ") };
                let uptime = std::time::Duration::from_secs(status.uptime_s);
                (state, humantime::format_duration(uptime).to_string(), mebibytes(status.store_bytes))
            }
            Err(_) => ("does not answer".to_owned(), "-".to_owned(), "-".to_owned()),
        };
        nodes.add_row([
            node.id.to_string(),
            node.grpc_addr.clone(),
            dash(&node.http_addr),
            dash(&node.zone),
            node.version.clone(),
            state,
            leads.to_string(),
            uptime,
            bytes,
        ]);
    }
    let mut shards = output::table(&["SHARD", "FROM", "TO", "LEADER", "REPLICAS"]);
    for placement in &map.shards {
        let shard = placement.shard.clone().unwrap_or_default();
        let replicas: Vec<String> = shard.replicas.iter().map(u64::to_string).collect();
        shards.add_row([
            shard.id.to_string(),
            bound(&shard.start),
            shard.end.as_deref().map_or_else(|| "end".to_owned(), bound),
            if placement.leader == 0 { "none".to_owned() } else { placement.leader.to_string() },
            replicas.join(","),
        ]);
    }
    format!("cluster {}\n\n{nodes}\n\n{shards}", map.cluster_id)
}

/// A bound of a shard, without its keyspace byte where it is one of the users' keys.
fn bound(key: &[u8]) -> String {
    match key {
        [] => "start".to_owned(),
        [0] => "system".to_owned(),
        [0, rest @ ..] => format!("system {}", output::line_bytes(rest, false)),
        [1] => "first key".to_owned(),
        [1, rest @ ..] => output::line_bytes(rest, false),
        other => format!("0x{}", hex::encode(other)),
    }
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1024 * 1024))
}

fn json(map: &GetMapReply, statuses: &[Result<GetStatusReply>]) -> Value {
    let nodes: Vec<Value> = map
        .nodes
        .iter()
        .zip(statuses)
        .map(|(node, status)| {
            let mut object = json!({
                "id": node.id, "grpc": node.grpc_addr, "http": node.http_addr, "zone": node.zone,
                "version": node.version, "reachable": status.is_ok(),
            });
            match status {
                Ok(status) => object["status"] = status_json(status),
                Err(error) => object["error"] = error.message.clone().into(),
            }
            object
        })
        .collect();
    let shards: Vec<Value> = map.shards.iter().map(placement_json).collect();
    json!({ "cluster_id": map.cluster_id, "nodes": nodes, "shards": shards })
}

fn placement_json(placement: &Placement) -> Value {
    let shard = placement.shard.clone().unwrap_or_default();
    json!({
        "id": shard.id,
        "start_hex": hex::encode(&shard.start),
        "end_hex": shard.end.as_deref().map(hex::encode),
        "epoch": shard.epoch,
        "leader": (placement.leader != 0).then_some(placement.leader),
        "replicas": shard.replicas,
    })
}
