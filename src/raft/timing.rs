//! How long things take: heartbeats, elections, leases, back-offs, and how much log is kept.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

use crate::types::{Error, Result};

/// Times and limits of Raft on this node. All nodes of a cluster must use the same `election_max`: the
/// lease of a leader is as long as its followers' promise to it. Nodes that differ refuse each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Timing {
    /// A leader sends heartbeats this often.
    pub heartbeat: Duration,
    /// A follower that has heard nothing for its lease and a random time from here...
    pub election_min: Duration,
    /// ...up to here stands for election. It is also the length of the leader's lease, and how long a
    /// restarted replica neither votes nor stands.
    pub election_max: Duration,
    /// After a quorum was lost, heartbeats pause and go on in phases of this length. At least twice
    /// `election_max`.
    pub quorum_loss_probe: Duration,
    /// The log behind the applied entries is cut when it holds more bytes than this.
    pub log_keep_bytes: u64,
    /// The log behind the applied entries is cut when it holds more entries than this.
    pub log_keep_entries: u64,
    /// Applied entries older than this are cut even where the log is short, so that a restart reads little.
    pub log_keep_age: Duration,
    /// How often the logs are looked at.
    pub housekeeping: Duration,
    /// The first pause before a stopped group is started again; it doubles up to a minute.
    pub restart_min: Duration,
    /// The first pause before a lost connection is tried again.
    pub reconnect_min: Duration,
    /// The longest pause before a lost connection is tried again.
    pub reconnect_max: Duration,
    /// A snapshot transfer that moves nothing for so long is given up.
    pub snapshot_stall: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            // After a leader's death the others wait for its lease (`election_max`) and then for an election
            // timeout: 1.6 to 2 s with these.
            heartbeat: Duration::from_millis(250),
            election_min: Duration::from_millis(650),
            election_max: Duration::from_millis(1000),
            quorum_loss_probe: Duration::from_millis(2000),
            log_keep_bytes: 64 * 1024 * 1024,
            log_keep_entries: 2000,
            log_keep_age: Duration::from_secs(600),
            housekeeping: Duration::from_secs(1),
            restart_min: Duration::from_millis(500),
            reconnect_min: Duration::from_millis(50),
            reconnect_max: Duration::from_secs(1),
            snapshot_stall: Duration::from_secs(30),
        }
    }
}

impl Timing {
    /// Short times for tests on one machine.
    pub fn fast() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(350),
            election_max: Duration::from_millis(600),
            quorum_loss_probe: Duration::from_millis(1200),
            housekeeping: Duration::from_millis(200),
            restart_min: Duration::from_millis(50),
            reconnect_max: Duration::from_millis(200),
            ..Self::default()
        }
    }

    /// How old the newest word of a quorum may be for a read: 0.8 of the lease. The rest is room for
    /// clocks that run at different speeds.
    pub fn read_lease(&self) -> Duration {
        self.election_max.mul_f64(0.8)
    }

    /// How much further the wall clock may move than the monotonic one before leases are void: a quarter of
    /// the room that [`read_lease`](Self::read_lease) leaves.
    pub(super) fn clock_tolerance(&self) -> Duration {
        self.election_max / 20
    }

    /// openraft's configuration. `elect` says whether a replica may stand for election from its start.
    pub(super) fn raft_config(&self, elect: bool) -> Result<Arc<Config>> {
        let ms = |duration: Duration| duration.as_millis() as u64;
        let config = Config {
            cluster_name: "kvorum".to_string(),
            heartbeat_interval: ms(self.heartbeat),
            heartbeat_min_interval: Some(ms(self.heartbeat)),
            election_timeout_min: ms(self.election_min),
            election_timeout_max: ms(self.election_max),
            quorum_loss_probe_interval: Some(ms(self.quorum_loss_probe)),
            enable_pre_vote: Some(true),
            enable_leader_restore: Some(false),
            allow_log_reversion: Some(false),
            enable_elect: elect,
            max_payload_entries: 1024,
            api_channel_size: Some(4096),
            // Snapshots and purges are driven by bytes and age (housekeeping), not by openraft.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            purge_batch_size: 256,
            install_snapshot_timeout: ms(self.snapshot_stall),
            ..Config::default()
        };
        match config.validate() {
            Ok(config) => Ok(Arc::new(config)),
            Err(error) => Err(Error::invalid(format!("the Raft timing {self:?} is not usable: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_given_timings_are_usable_and_a_wrong_one_is_refused() {
        Timing::default().raft_config(true).expect("default timing");
        Timing::fast().raft_config(true).expect("fast timing");
        let wrong = Timing { election_min: Duration::from_millis(100), ..Timing::default() };
        assert!(wrong.raft_config(true).expect_err("too short").message.contains("not usable"));
    }
}
