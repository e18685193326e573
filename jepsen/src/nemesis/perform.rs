//! Doing faults to a cluster, each at its time.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use super::plan::{Action, Fault, How, Victim};
use super::{Nemesis, cuts, lease};
use crate::hosts::{Cluster, Cut, Error, Result};

/// How often nodes are asked who leads.
const FIND_EVERY: Duration = Duration::from_millis(100);

/// A fault as it was done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Happened {
    /// Its kind.
    pub nemesis: Nemesis,
    /// What was done, and to whom, for people.
    pub what: String,
    /// When it began, on the clock of the history.
    pub begin_ns: u64,
    /// When it was over.
    pub end_ns: u64,
    /// What of it could not be done.
    pub error: Option<String>,
}

/// Where faults happen.
#[derive(Clone)]
pub struct Stage {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// The history's beginning: times of [`Happened`] count from here.
    pub began: Instant,
    /// A key, with the byte of its keyspace, whose shard coordinates transactions of the workload now.
    pub hot_place: Arc<dyn Fn() -> Bytes + Send + Sync>,
}

/// Does all faults of a schedule, counted from now, and returns what happened in the order in which it began.
/// Dropped, it leaves faults as they are: [`Cluster::heal`] ends them.
pub async fn perform(schedule: Vec<Fault>, stage: Stage) -> Vec<Happened> {
    let start = tokio::time::Instant::now();
    let mut under_way = JoinSet::new();
    for (id, fault) in (1..).zip(schedule) {
        let stage = stage.clone();
        under_way.spawn(async move {
            sleep_until(start + Duration::from_millis(fault.begin_ms)).await;
            one(id, &fault, &stage).await
        });
    }
    let mut happened = Vec::new();
    while let Some(done) = under_way.join_next().await {
        match done {
            Ok(one) => happened.push(one),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => {}
        }
    }
    happened.sort_by_key(|one| one.begin_ns);
    happened
}

async fn one(id: u64, fault: &Fault, stage: &Stage) -> Happened {
    let begin = Instant::now();
    let until = tokio::time::Instant::now() + Duration::from_millis(fault.length_ms);
    let mut what = String::new();
    let done = act(id, fault, stage, until, &mut what).await;
    Happened {
        nemesis: fault.nemesis,
        what,
        begin_ns: begin.duration_since(stage.began).as_nanos() as u64,
        end_ns: stage.began.elapsed().as_nanos() as u64,
        error: done.err().map(|error| error.to_string()),
    }
}

async fn act(
    id: u64,
    fault: &Fault,
    stage: &Stage,
    until: tokio::time::Instant,
    what: &mut String,
) -> Result<()> {
    match &fault.action {
        Action::Kill(nodes) => down(stage, nodes.clone(), How::Kill, id, until, what).await,
        Action::Pause(nodes) => down(stage, nodes.clone(), How::Pause, id, until, what).await,
        Action::PowerCut { nodes, seed } => {
            let seed = *seed;
            let restore = move |cluster: &Cluster, node| cluster.restore_power(node, seed ^ node as u64);
            hold(stage, nodes, ("the power is cut", Cluster::cut_power, restore), until, what).await
        }
        Action::Cut(cut) => {
            *what = format!("packets are lost: {}", Shown(cut));
            cut_off(stage, id, cut.clone(), until).await
        }
        Action::Strike { victim, how } => {
            let node = find(stage, *victim, until).await?;
            down(stage, vec![node], *how, id, until, what).await?;
            let role = match victim {
                Victim::System => "led the system shard",
                Victim::Coordinator => "led the shard of the hot key",
            };
            *what = format!("{what}, which {role}");
            Ok(())
        }
        Action::Clocks(offsets) => {
            let told: Vec<_> = offsets.iter().map(|(node, ms)| format!("{} by {ms} ms", node + 1)).collect();
            *what = format!("clocks jump: node {}", told.join(", node "));
            let set = set_clocks(stage, offsets.clone()).await;
            if set.is_ok() {
                sleep_until(until).await;
            }
            set.and(set_clocks(stage, offsets.iter().map(|(node, _)| (*node, 0)).collect()).await)
        }
        Action::Strobe { nodes, offset_ms, every_ms } => {
            *what = format!("clocks jump by {offset_ms} ms and back every {every_ms} ms: {}", Nodes(nodes));
            strobe(stage, nodes, *offset_ms, *every_ms, until).await
        }
        Action::Slow { nodes, frozen_ms, thawed_ms } => {
            *what =
                format!("writes stand still for {frozen_ms} ms, go on for {thawed_ms} ms: {}", Nodes(nodes));
            slow(stage, nodes, (*frozen_ms, *thawed_ms), until).await
        }
        Action::Fill(nodes) => {
            hold(stage, nodes, ("disks are full", Cluster::fill_disk, Cluster::free_disk), until, what).await
        }
        Action::LeaseHole { choice } => lease::hole(id, *choice, stage, until, what).await,
    }
}

const NOBODY_LED: &str = "nobody led at that time";
const WAS_DOWN: &str = " was down";

/// Whether this is what a fault says that had nobody to strike, since other faults had struck first.
pub fn came_too_late(why: &str) -> bool {
    why == NOBODY_LED || why.ends_with(WAS_DOWN)
}

/// Who that is now. Nobody may lead for a moment, so for a part of the fault's time it is asked again.
///
/// # Errors
/// Where nobody leads.
pub(super) async fn find(stage: &Stage, victim: Victim, until: tokio::time::Instant) -> Result<usize> {
    let now = tokio::time::Instant::now();
    let give_up_at = now + until.saturating_duration_since(now) / 4;
    loop {
        let found = match victim {
            Victim::System => stage.cluster.system_leader().await,
            Victim::Coordinator => stage.cluster.leader_of(&(stage.hot_place)()).await,
        };
        match found {
            Some(node) => return Ok(node),
            None if tokio::time::Instant::now() >= give_up_at => {
                return Err(Error::Other(NOBODY_LED.into()));
            }
            None => sleep(FIND_EVERY).await,
        }
    }
}

/// What is done to a node.
type Act = fn(&Cluster, usize) -> Result<()>;

/// Takes nodes out until the end, and lets them back.
async fn down(
    stage: &Stage,
    nodes: Vec<usize>,
    how: How,
    id: u64,
    until: tokio::time::Instant,
    what: &mut String,
) -> Result<()> {
    let (done, begin, end): (&str, Act, Act) = match how {
        How::Kill => ("killed", Cluster::kill, Cluster::revive),
        How::Pause => ("paused", Cluster::pause, Cluster::resume),
        How::Isolate => {
            *what = format!("cut off: {}", Nodes(&nodes));
            let cut = nodes.iter().flat_map(|node| cuts::alone(*node, stage.cluster.len())).collect();
            return cut_off(stage, id, cut, until).await;
        }
    };
    hold(stage, &nodes, (done, begin, end), until, what).await
}

/// Begins something on each node, and ends it where it has begun: the end comes also where the beginning failed on some.
/// Tells whom it was done to. An error where it was done to nobody, or could not be ended.
async fn hold(
    stage: &Stage,
    nodes: &[usize],
    (done, begin, end): (
        &str,
        impl Fn(&Cluster, usize) -> Result<()> + Copy + Send + 'static,
        impl Fn(&Cluster, usize) -> Result<()> + Copy + Send + 'static,
    ),
    until: tokio::time::Instant,
    what: &mut String,
) -> Result<()> {
    *what = format!("{done}: {}", Nodes(nodes));
    let begun = split(nodes, each_apart(stage, nodes, begin).await);
    *what = begun.told(done, nodes);
    if begun.done.is_empty() {
        return begun.failed.map_or(Ok(()), Err);
    }
    sleep_until(until).await;
    each(stage, &begun.done, end).await
}

/// Whom something was done to, and the first error with the others.
struct Begun {
    done: Vec<usize>,
    failed: Option<Error>,
}

fn split(nodes: &[usize], results: Vec<Result<()>>) -> Begun {
    let mut begun = Begun { done: Vec::new(), failed: None };
    for (node, result) in nodes.iter().zip(results) {
        match result {
            Ok(()) => begun.done.push(*node),
            Err(error) => begun.failed = begun.failed.or(Some(error)),
        }
    }
    begun
}

impl Begun {
    fn told(&self, done: &str, nodes: &[usize]) -> String {
        let others: Vec<usize> = nodes.iter().copied().filter(|node| !self.done.contains(node)).collect();
        match &self.failed {
            None => format!("{done}: {}", Nodes(nodes)),
            Some(_) if self.done.is_empty() => format!("{done}: nobody"),
            Some(error) => format!("{done}: {}; not {}: {error}", Nodes(&self.done), Nodes(&others)),
        }
    }
}

async fn cut_off(stage: &Stage, id: u64, cut: Cut, until: tokio::time::Instant) -> Result<()> {
    let done = blocking(stage, move |cluster| cluster.cut(id, cut)).await;
    if done.is_ok() {
        sleep_until(until).await;
    }
    // Some nodes may have their filter also where another's could not be set.
    done.and(blocking(stage, move |cluster| cluster.mend(id)).await)
}

async fn set_clocks(stage: &Stage, offsets: Vec<(usize, i64)>) -> Result<()> {
    let mut offsets = offsets.into_iter();
    blocking(stage, move |cluster| offsets.try_for_each(|(node, ms)| cluster.set_clock(node, ms))).await
}

async fn strobe(
    stage: &Stage,
    nodes: &[usize],
    offset_ms: i64,
    every_ms: u64,
    until: tokio::time::Instant,
) -> Result<()> {
    let to = |ms: i64| nodes.iter().map(move |node| (*node, ms)).collect::<Vec<_>>();
    while tokio::time::Instant::now() < until {
        for offset_ms in [offset_ms, 0] {
            let set = set_clocks(stage, to(offset_ms)).await;
            if set.is_err() {
                return set.and(set_clocks(stage, to(0)).await);
            }
            sleep(Duration::from_millis(every_ms)).await;
        }
    }
    Ok(())
}

async fn slow(
    stage: &Stage,
    nodes: &[usize],
    (frozen_ms, thawed_ms): (u64, u64),
    until: tokio::time::Instant,
) -> Result<()> {
    while tokio::time::Instant::now() < until {
        let frozen = each(stage, nodes, Cluster::freeze_disk).await;
        sleep(Duration::from_millis(frozen_ms)).await;
        let thaw = |cluster: &Cluster, node: usize| {
            cluster.thaw_disk(node);
            Ok(())
        };
        each(stage, nodes, thaw).await?;
        frozen?;
        sleep(Duration::from_millis(thawed_ms)).await;
    }
    Ok(())
}

/// Does something to each node, all at the same time; the first error, after all was tried.
async fn each(
    stage: &Stage,
    nodes: &[usize],
    act: impl Fn(&Cluster, usize) -> Result<()> + Copy + Send + 'static,
) -> Result<()> {
    each_apart(stage, nodes, act).await.into_iter().collect()
}

/// The same, with what came of it at each.
async fn each_apart(
    stage: &Stage,
    nodes: &[usize],
    act: impl Fn(&Cluster, usize) -> Result<()> + Copy + Send + 'static,
) -> Vec<Result<()>> {
    let all = nodes.iter().map(|node| {
        let node = *node;
        blocking(stage, move |cluster| act(cluster, node))
    });
    futures::future::join_all(all).await
}

/// Does something that blocks.
pub(super) async fn blocking(
    stage: &Stage,
    act: impl FnOnce(&Cluster) -> Result<()> + Send + 'static,
) -> Result<()> {
    let cluster = Arc::clone(&stage.cluster);
    let done = tokio::task::spawn_blocking(move || act(&cluster)).await;
    done.map_err(|error| Error::Other(format!("a fault ended early: {error}")))?
}

/// Nodes, as people count them.
pub(super) struct Nodes<'a>(pub(super) &'a [usize]);

impl fmt::Display for Nodes<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut nodes = self.0.to_vec();
        nodes.sort_unstable();
        let names: Vec<String> = nodes.iter().map(|node| (node + 1).to_string()).collect();
        write!(out, "{} {}", if names.len() == 1 { "node" } else { "nodes" }, names.join(", "))
    }
}

/// A cut: pairs that lose packets both ways as `1-2`, in one direction as `1→2`.
struct Shown<'a>(&'a Cut);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.0.iter().filter_map(|(from, to)| match self.0.contains(&(*to, *from)) {
            true if from < to => Some(format!("{}-{}", from + 1, to + 1)),
            true => None,
            false => Some(format!("{}→{}", from + 1, to + 1)),
        });
        out.write_str(&pairs.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_begins_on_some_nodes_is_ended_on_those_and_told_so() {
        let down = || Err(Error::Other("node 3 was down".into()));
        let begun = split(&[0, 2], vec![Ok(()), down()]);
        assert_eq!(begun.done, [0]);
        assert_eq!(begun.told("paused", &[0, 2]), "paused: node 1; not node 3: node 3 was down");
        let begun = split(&[2], vec![down()]);
        assert!(begun.done.is_empty() && begun.failed.is_some());
        assert_eq!(split(&[0, 2], vec![Ok(()), Ok(())]).told("paused", &[0, 2]), "paused: nodes 1, 3");
    }

    #[test]
    fn cuts_and_nodes_are_told_as_people_count() {
        assert_eq!(Shown(&Cut::from([(0, 1), (1, 0), (2, 0)])).to_string(), "1-2, 3→1");
        assert_eq!(Nodes(&[2, 0]).to_string(), "nodes 1, 3");
        assert_eq!(Nodes(&[1]).to_string(), "node 2");
    }
}
