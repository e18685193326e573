//! A node's status as JSON, and whether it can serve.

use serde_json::{Value, json};

use crate::rpc::v1::{GetStatusReply, Node, ReplicaStatus};

/// Why a node can't serve requests now; empty where it can.
pub fn not_ready_reasons(status: &GetStatusReply) -> Vec<String> {
    if status.state != "serving" {
        return vec![match status.state.as_str() {
            "waiting" => "the node belongs to no cluster yet: run `kvorum cluster init`".to_owned(),
            state => format!("the node is {state}"),
        }];
    }
    status.replicas.iter().filter_map(replica_reason).collect()
}

fn replica_reason(replica: &ReplicaStatus) -> Option<String> {
    let shard = replica.shard.as_ref().map_or(0, |shard| shard.id);
    if !replica.fault.is_empty() {
        return Some(format!("shard {shard} has stopped: {}", replica.fault));
    }
    (replica.leader == 0).then(|| format!("shard {shard} has no leader that this node knows"))
}

/// A node's status as a JSON object. Keys are hexadecimal, checksums too, and 0 ("unknown") is `null`.
pub fn status_json(status: &GetStatusReply) -> Value {
    json!({
        "cluster_id": some_text(&status.cluster_id),
        "node": status.node.as_ref().map(node_json),
        "state": status.state,
        "ready": not_ready_reasons(status).is_empty(),
        "uptime_s": status.uptime_s,
        "store_bytes": status.store_bytes,
        "replicas": status.replicas.iter().map(replica_json).collect::<Vec<_>>(),
    })
}

/// A node of the registry as a JSON object.
fn node_json(node: &Node) -> Value {
    json!({
        "id": node.id,
        "grpc": node.grpc_addr,
        "http": some_text(&node.http_addr),
        "zone": some_text(&node.zone),
        "version": node.version,
    })
}

fn replica_json(replica: &ReplicaStatus) -> Value {
    let shard = replica.shard.clone().unwrap_or_default();
    json!({
        "shard": shard.id,
        "start_hex": hex::encode(&shard.start),
        "end_hex": shard.end.as_deref().map(hex::encode),
        "epoch": shard.epoch,
        "replicas": shard.replicas,
        "role": replica.role,
        "term": replica.term,
        "leader": (replica.leader != 0).then_some(replica.leader),
        "first_log_index": replica.first_log_index,
        "last_log_index": replica.last_log_index,
        "applied_index": replica.applied_index,
        "closed_ts": replica.closed_ts,
        "closed_age_ms": replica.closed_age_ms,
        "safe_point_ts": replica.safe_point_ts,
        "locks": replica.locks,
        "checksum": format!("{:016x}", replica.checksum),
        "fault": some_text(&replica.fault),
    })
}

fn some_text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}
