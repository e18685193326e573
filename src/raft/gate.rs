//! The lease gate: what a replica promised before it was restarted.
//!
//! A follower that answers its leader promises not to vote for another for the length of the lease
//! (`election_max`), and the leader answers reads on that promise. openraft keeps the promise in memory
//! only: a replica that is started again would vote at once, a second leader could be elected, and the
//! first, cut off from it, would answer a read with an old value. So from its start a replica with a
//! stored vote neither votes nor pre-votes nor stands for election for the length of the lease: whatever
//! it promised before has run out by then.
//!
//! Counted from the start of the replica's Raft core, not of the process: a core that was started again
//! after a fault has forgotten as much.
//!
//! Free of it are a replica with no stored vote (it has never answered a leader: an answer comes after
//! the vote was synced) and the only voter of a group, by every membership that may be in force (nobody
//! else can be elected without it). A vote that the leader itself asks for, handing over its leadership,
//! passes: that leader has stopped to serve.

use std::time::Duration;

use tokio::time::Instant;

/// When a replica may vote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Gate {
    opens: Option<Instant>,
}

impl Gate {
    /// The gate of a replica that starts now.
    pub fn at_start(has_stored_vote: bool, only_voter: bool, start: Instant, lease: Duration) -> Self {
        let closed = has_stored_vote && !only_voter;
        Self { opens: closed.then(|| start + lease) }
    }

    /// How much longer the replica must not vote; `None` where it may.
    pub fn closed_for(&self, now: Instant) -> Option<Duration> {
        let left = self.opens?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// When the replica may vote; `None` where it always could.
    pub fn opens(&self) -> Option<Instant> {
        self.opens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(1500);

    #[test]
    fn only_a_replica_that_may_have_promised_waits_and_only_for_the_lease() {
        let start = Instant::now();
        assert_eq!(Gate::at_start(false, false, start, LEASE).closed_for(start), None);
        assert_eq!(Gate::at_start(true, true, start, LEASE).closed_for(start), None);
        let gate = Gate::at_start(true, false, start, LEASE);
        let moment = Duration::from_millis(1);
        assert_eq!(gate.closed_for(start), Some(LEASE));
        assert_eq!(gate.closed_for(start + LEASE - moment), Some(moment));
        assert_eq!(gate.closed_for(start + LEASE), None);
        assert_eq!(gate.closed_for(start + LEASE * 2), None);
    }
}
