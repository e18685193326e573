//! Which replica serves a read: events in, a choice out. No I/O, no clock, no randomness.
//!
//! A [`Balancer`] belongs to one client and keeps figures of every node that the client reads at. The caller
//! tells it when a read was sent and how it ended, and asks it for every attempt where to send it. Time
//! (`now_us`, of any monotonic clock) and a random number are arguments.
//!
//! # The rules
//!
//! - **Two are drawn at random, and the first is taken unless it is clearly worse** ([`choice`]). A
//!   difference that is not clear decides nothing, so that the replicas share evenly although a follower's
//!   read takes twice as long as a leader's, and so that clients that know the same don't all run to the same
//!   node.
//! - **Nodes know better.** A client that reads once a second can't find out by itself that a node stands still
//!   half of the time; the nodes can, and every reply lists those that the cluster finds slow. Such a node is
//!   spared ([`Balancer::told_slow`]) where another can answer that did not fail lately. A wrong list costs
//!   capacity, but no answers: a node that is spared is still asked where the others were tried, or refuse.
//! - **What is known fades.** A bad figure of a node that is no longer asked counts for less and less, so
//!   every node is asked again. It fades to "like the others", never to "better than the others".
//! - **A node that is bad for long is ejected** ([`node`]): for failures in a row, for failing most of the
//!   time, or for being several times as slow as the other replicas of the shard. It gets no users' reads
//!   then. Instead the caller is asked now and then to send a copy of a read there, whose answer nobody waits
//!   for: a probe. After a run of good probes the node is back.
//! - **Latency is a mean over time, not over reads.** A client that waits 50 ms for one read and does fifty
//!   others in the next 50 ms has waited half of its time; a mean over reads would hide that.
//! - **There is always a choice** where there is a candidate: if all were tried or ejected, the least bad.

mod choice;
mod explain;
mod hedge;
mod node;
mod policy;

pub(super) use choice::{Balancer, Candidate, Choice};
pub(super) use hedge::{After, Budget, Hedge};
pub(super) use node::{FailureKind, Probed};
pub use policy::Policy;

#[cfg(test)]
mod model;
#[cfg(test)]
mod model_gossip;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
