//! Gauges that are read off a node's status whenever metrics are asked for.

#![allow(clippy::cast_precision_loss, reason = "a gauge is a float; indexes stay far below 2^53")]

use metrics::gauge;

use super::not_ready_reasons;
use crate::rpc::v1::{GetStatusReply, ReplicaStatus};

/// Sets the gauges of the node and of each replica.
pub fn set(status: &GetStatusReply) {
    gauge!("kvorum_ready").set(f64::from(u8::from(not_ready_reasons(status).is_empty())));
    gauge!("kvorum_uptime_seconds").set(status.uptime_s as f64);
    gauge!("kvorum_store_bytes").set(status.store_bytes as f64);
    gauge!("kvorum_replicas").set(status.replicas.len() as f64);
    let led = status.replicas.iter().filter(|replica| replica.role == "leader").count();
    gauge!("kvorum_shards_led").set(led as f64);
    status.replicas.iter().for_each(set_replica);
}

fn set_replica(replica: &ReplicaStatus) {
    let shard = replica.shard.as_ref().map_or(0, |shard| shard.id).to_string();
    let numbers = [
        ("kvorum_replica_is_leader", u64::from(replica.role == "leader")),
        ("kvorum_replica_stopped", u64::from(!replica.fault.is_empty())),
        ("kvorum_replica_term", replica.term),
        ("kvorum_replica_first_log_index", replica.first_log_index),
        ("kvorum_replica_last_log_index", replica.last_log_index),
        ("kvorum_replica_applied_index", replica.applied_index),
        ("kvorum_replica_closed_timestamp", replica.closed_ts),
        ("kvorum_replica_safe_point_timestamp", replica.safe_point_ts),
        ("kvorum_replica_locks", replica.locks),
    ];
    for (name, number) in numbers {
        gauge!(name, "shard" => shard.clone()).set(number as f64);
    }
    // What is not known is no lag of nothing.
    let lag_s = replica.closed_age_ms.map_or(f64::NAN, |age_ms| age_ms as f64 / 1000.0);
    gauge!("kvorum_replica_closed_lag_seconds", "shard" => shard).set(lag_s);
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics_exporter_prometheus::PrometheusBuilder;

    #[test]
    fn the_gauges_show_the_status() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let replica =
            ReplicaStatus { role: "leader".to_owned(), leader: 1, applied_index: 7, ..Default::default() };
        let status =
            GetStatusReply { state: "serving".to_owned(), replicas: vec![replica], ..Default::default() };
        metrics::with_local_recorder(&recorder, || set(&status));
        let text = recorder.handle().render();
        assert!(text.contains("kvorum_ready 1") && text.contains("kvorum_shards_led 1"), "{text}");
        assert!(text.contains("kvorum_replica_applied_index{shard=\"0\"} 7"), "{text}");
    }
}
