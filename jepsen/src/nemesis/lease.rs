//! The steps of `lease-hole`.
//!
//! A leader answers reads on its own while its lease holds: until then its followers have promised not to elect
//! another. A follower that restarts has forgotten its promise. So: cut the leader off from all but a bare majority;
//! those outside stand for election and are refused, for the promise's sake. Then kill one of those inside, cut the
//! leader off from everybody, and start the killed one again. If it votes at once, there are two leaders, and the old
//! one answers reads from the past.

use std::time::Duration;

use tokio::time::{sleep, sleep_until};

use super::cuts;
use super::perform::{Nodes, Stage, blocking, find};
use super::plan::Victim;
use crate::hosts::Result;

/// How long those outside stand for election before a follower restarts: longer than two leases.
const OUTSIDE: Duration = Duration::from_millis(2500);

/// Who is who.
#[derive(PartialEq, Eq, Debug)]
struct Cast {
    leader: usize,
    /// The follower that restarts.
    restarts: usize,
    /// Who is cut off from the leader at first.
    outside: Vec<usize>,
}

/// Does all steps, and mends everything at the end.
pub(super) async fn hole(
    id: u64,
    choice: u64,
    stage: &Stage,
    until: tokio::time::Instant,
    what: &mut String,
) -> Result<()> {
    let leader = find(stage, Victim::Coordinator, until).await?;
    let Cast { leader, restarts, outside } = cast(leader, stage.cluster.len(), choice);
    *what = format!(
        "leader node {}: cut off from {}, then from all; node {} restarts",
        leader + 1,
        Nodes(&outside),
        restarts + 1
    );
    let first = cuts::between(&[leader], &outside);
    let cut = blocking(stage, move |cluster| cluster.cut(id, first)).await;
    if cut.is_err() {
        // Some nodes may have their filter all the same.
        return cut.and(blocking(stage, move |cluster| cluster.mend(id)).await);
    }
    sleep(OUTSIDE).await;
    let nodes = stage.cluster.len();
    let restarted = blocking(stage, move |cluster| {
        let killed = cluster.kill(restarts);
        let cut = cluster.cut(id, cuts::alone(leader, nodes));
        let revived = cluster.revive(restarts);
        killed.and(cut).and(revived)
    })
    .await;
    sleep_until(until).await;
    let mended = blocking(stage, move |cluster| cluster.mend(id)).await;
    restarted.and(mended)
}

fn cast(leader: usize, nodes: usize, choice: u64) -> Cast {
    let mut others: Vec<usize> = (0..nodes).filter(|node| *node != leader).collect();
    let count = others.len();
    others.rotate_left((choice % count.max(1) as u64) as usize);
    // The leader and these are a bare majority.
    let inside = nodes / 2;
    Cast { leader, restarts: others[0], outside: others.split_off(inside) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_outside_and_the_restarted_one_are_a_majority_and_the_leader_keeps_one_until_then() {
        for nodes in [3, 5] {
            for choice in 0..10 {
                let cast = cast(1, nodes, choice);
                assert!(!cast.outside.contains(&1) && !cast.outside.contains(&cast.restarts), "{cast:?}");
                assert!(cast.outside.len() + 1 > nodes / 2, "{cast:?}");
                assert!(nodes - cast.outside.len() > nodes / 2, "{cast:?}");
            }
        }
    }
}
