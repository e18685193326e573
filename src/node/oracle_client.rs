//! Finds the oracle: this node, where it leads the system shard, or the node that does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::calls;
use super::oracle_server::OracleServer;
use super::timestamps::Source;
use crate::raft::Host;
use crate::types::{Error, ErrorKind, NodeId, Result, ShardId, Timestamp};

/// How long the node that is believed to lead may take to answer.
const LEADER_TIMEOUT: Duration = Duration::from_millis(700);
/// How long one of several candidates may take, before the next is asked.
const CANDIDATE_TIMEOUT: Duration = Duration::from_millis(250);
/// The pause before the next try where no leader is known.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The way to the oracle from this node.
pub struct OracleClient {
    host: Weak<Host>,
    own: NodeId,
    local: OnceLock<Arc<OracleServer>>,
    last_good: Mutex<Option<NodeId>>,
    turn: AtomicUsize,
}

impl OracleClient {
    /// A client on a host. It holds the host weakly: the host's own tasks use timestamps.
    pub fn new(host: &Arc<Host>, own: NodeId) -> Self {
        Self {
            host: Arc::downgrade(host),
            own,
            local: OnceLock::new(),
            last_good: Mutex::new(None),
            turn: AtomicUsize::new(0),
        }
    }

    /// Says that this node has a replica of the system shard.
    pub fn set_local(&self, server: Arc<OracleServer>) {
        // A second replica of the same shard on one node does not exist.
        let _ = self.local.set(server);
    }

    /// The oracle on this node, if it hosts a replica of the system shard.
    pub fn local(&self) -> Option<&Arc<OracleServer>> {
        self.local.get()
    }

    /// Asks once around; the caller bounds the time.
    async fn ask(&self, count: u64) -> Result<Timestamp> {
        if let Some(local) = self.local.get() {
            match local.cut(count).await {
                Err(error) if error.kind == ErrorKind::Moved => {}
                answer => return answer,
            }
        }
        let host = self.host.upgrade().ok_or_else(|| Error::unavailable("the node is stopping"))?;
        let mut last_error = Error::unavailable("no leader of the system shard is known: retry");
        let candidates = self.candidates(&host);
        let timeout = if candidates.len() == 1 { LEADER_TIMEOUT } else { CANDIDATE_TIMEOUT };
        for node in candidates {
            // Noted before the answer: a request that is given up meanwhile counts as none.
            let was_good = self.last_good.lock().take_if(|good| *good == node).is_some();
            match host.call(node, calls::CUT_TIMESTAMPS, calls::encode_count(count), timeout).await {
                Ok(body) => {
                    *self.last_good.lock() = Some(node);
                    return calls::decode_timestamp(&body);
                }
                Err(error) => {
                    tracing::debug!(%node, was_good, %error, "no timestamps from this node");
                    last_error = error;
                }
            }
        }
        Err(last_error)
    }

    fn candidates(&self, host: &Host) -> Vec<NodeId> {
        if let Some(group) = host.group(ShardId::SYSTEM) {
            return group.leadership().leader_elsewhere().into_iter().collect();
        }
        let first = *self.last_good.lock();
        let mut others: Vec<NodeId> = host.peers().all().into_iter().map(|peer| peer.id).collect();
        others.retain(|id| Some(*id) != first && *id != self.own);
        if !others.is_empty() {
            // Begins elsewhere each time, so that silent nodes in front don't hide the one that leads.
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % others.len();
            others.rotate_left(turn);
        }
        first.into_iter().chain(others).collect()
    }
}

impl Source for OracleClient {
    fn cut(&self, count: u64) -> BoxFuture<'_, Result<Timestamp>> {
        Box::pin(async move {
            loop {
                match self.ask(count).await {
                    Ok(first) => return Ok(first),
                    Err(error) if error.kind == ErrorKind::Invalid => return Err(error),
                    Err(error) => {
                        tracing::debug!(%error, "no timestamp yet");
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                }
            }
        })
    }
}
