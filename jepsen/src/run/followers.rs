//! Followers at work: each follows changes all along and writes down what it is told, and at the end comes to one timestamp.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvorum::client::{ChangeStream, Cursor, Event, FollowOptions, Followed, Policy, Since, Timestamp};
use kvorum::types::KeyRange;
use kvorum::{Client, Error as StoreError};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::corruption::Corruption;
use crate::check::Anomaly;
use crate::history::{F, Op, Recorder, Told, Value};
use crate::hosts::{Cluster, Error, Result};
use crate::report::Parameters;
use crate::workload::{FollowerPlan, Outcome, Request, Workload, told};

/// An entry of the history has what was told in such a time, and so many events at most.
const TOGETHER: Duration = Duration::from_millis(500);
const EVENTS: usize = 200;
/// How long a follower that resumes goes on with one stream, and after how many events it is dropped in any case.
const KEPT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));
const KEPT_EVENTS: (usize, usize) = (5, 400);
/// How long a new client may take to connect.
const CONNECT_WITHIN: Duration = Duration::from_millis(1500);
/// The pause after a failure.
const PAUSE: Duration = Duration::from_millis(200);
/// How long all may take to come to the end once the cluster is healed.
const REACHED_WITHIN: Duration = Duration::from_secs(120);

/// The followers of a run.
pub(super) struct Followers {
    shared: Arc<Shared>,
    /// Those who have not come to the end.
    following: BTreeSet<&'static str>,
    end: watch::Sender<Option<Timestamp>>,
    working: JoinSet<Result<&'static str>>,
}

/// What all of them have in common.
struct Shared {
    cluster: Arc<Cluster>,
    recorder: Arc<Recorder>,
    workload: Arc<dyn Workload>,
    corruption: Corruption,
    deadline: Duration,
    policy: Policy,
}

impl Followers {
    /// Has all followers of a workload begin, each in its time.
    pub(super) fn start(
        parameters: &Parameters,
        cluster: &Arc<Cluster>,
        workload: &Arc<dyn Workload>,
        recorder: &Arc<Recorder>,
    ) -> Self {
        let shared = Arc::new(Shared {
            cluster: Arc::clone(cluster),
            recorder: Arc::clone(recorder),
            workload: Arc::clone(workload),
            corruption: Corruption::default(),
            deadline: Duration::from_millis(parameters.deadline_ms),
            policy: parameters.read_level.policy(),
        });
        let (end, ended) = watch::channel(None);
        let (mut working, mut following) = (JoinSet::new(), BTreeSet::new());
        for (plan, number) in workload.followers().into_iter().zip(1_000_000_u64..) {
            following.insert(plan.name);
            let begins = Duration::from_millis(parameters.seconds * 10 * plan.begins_at_percent);
            let follower = Follower {
                shared: Arc::clone(&shared),
                process: recorder.new_process(),
                node: 0,
                rng: SmallRng::seed_from_u64(parameters.seed.wrapping_mul(1_000_003).wrapping_add(number)),
                begins_at: Instant::now() + begins,
                last: None,
                has_begun: false,
                end: ended.clone(),
                plan,
            };
            working.spawn(follower.run());
        }
        Self { shared, following, end, working }
    }

    /// Brings all to a timestamp after everything. Answers the names of those that do not come there in time.
    pub(super) async fn finish(&mut self) -> Result<Vec<&'static str>> {
        if self.following.is_empty() {
            return Ok(Vec::new());
        }
        let until = Instant::now() + REACHED_WITHIN;
        let last = match timeout_at(until, self.shared.timestamp()).await {
            Ok(last) => last,
            Err(_) => return Err(Error::Other("there is no timestamp for followers to come to".to_owned())),
        };
        self.end.send_replace(Some(last));
        while let Ok(Some(done)) = timeout_at(until, self.working.join_next()).await {
            match done {
                Ok(done) => self.following.remove(done?),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(error) => return Err(Error::Other(format!("a follower ended early: {error}"))),
            };
        }
        Ok(self.following.iter().copied().collect())
    }

    /// Ends those that still follow. Answers the proofs of corruption that all of them met.
    pub(super) async fn end(mut self) -> Vec<Anomaly> {
        self.working.shutdown().await;
        self.shared.corruption.findings()
    }
}

impl Shared {
    /// A client that asks this node first, or one after it, as soon as one can be had; and which node that is.
    async fn client(&self, mut first: usize) -> (Client, usize) {
        loop {
            if let Ok(client) = self.cluster.client(first, CONNECT_WITHIN).await {
                return (client.with_deadline(self.deadline).with_read_policy(self.policy), first);
            }
            first = (first + 1) % self.cluster.len();
            sleep(PAUSE).await;
        }
    }

    async fn timestamp(&self) -> Timestamp {
        loop {
            let (client, _) = self.client(0).await;
            if let Ok(now) = client.timestamp().await {
                return now;
            }
            sleep(PAUSE).await;
        }
    }
}

/// One follower: a process of the history.
struct Follower {
    shared: Arc<Shared>,
    plan: FollowerPlan,
    process: u64,
    /// The node that its client asks first.
    node: usize,
    rng: SmallRng,
    begins_at: Instant,
    /// What it was told last, behind which it goes on.
    last: Option<Followed>,
    has_begun: bool,
    /// Where it has to come to.
    end: watch::Receiver<Option<Timestamp>>,
}

/// Why a follower no longer waits for events.
enum Stopped {
    /// There are enough for an entry of the history.
    Full,
    /// It has come to its end.
    Reached,
    /// It is time to drop the stream.
    Dropped,
    Failed(StoreError),
}

/// When a follower that resumes drops its stream.
struct Lease {
    until: Instant,
    events: usize,
}

impl Follower {
    async fn run(mut self) -> Result<&'static str> {
        let _ = timeout_at(self.begins_at, self.end.wait_for(Option::is_some)).await;
        loop {
            let first = self.rng.random_range(0..self.shared.cluster.len());
            let (client, node) = self.shared.client(first).await;
            self.node = node;
            let stream = self.since().and_then(|since| client.changes(self.options(since)));
            match stream {
                Ok(stream) => {
                    if self.follow(stream).await? {
                        return Ok(self.plan.name);
                    }
                }
                Err(error) => self.failed(&error)?,
            }
        }
    }

    /// Where to go on: from a cursor that was bytes in between, as one that is kept.
    fn since(&self) -> std::result::Result<Since, StoreError> {
        Ok(match &self.last {
            Some(last) => Since::Cursor(Cursor::decode(&last.cursor().encode())?),
            None if self.plan.following.scans => Since::Scan,
            None if self.plan.resumes => Since::Timestamp(Timestamp::ZERO),
            None => Since::Oldest,
        })
    }

    fn options(&self, since: Since) -> FollowOptions {
        let key = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let range = |(from, to): &(String, Option<String>)| KeyRange::new(key(from), to.as_deref().map(key));
        let following = &self.plan.following;
        FollowOptions {
            ranges: following.ranges.iter().map(range).collect(),
            since,
            before_images: following.before_images,
        }
    }

    /// Follows a stream until it has come to the end, which is the answer, or the stream is done with.
    async fn follow(&mut self, mut stream: ChangeStream) -> Result<bool> {
        let resumes = self.plan.resumes;
        let mut lease = Lease { until: Instant::now() + Duration::from_secs(86_400), events: usize::MAX };
        if resumes {
            let kept = self.rng.random_range(KEPT.0..KEPT.1);
            lease = Lease {
                until: Instant::now() + kept,
                events: self.rng.random_range(KEPT_EVENTS.0..KEPT_EVENTS.1),
            };
        }
        loop {
            let invoke = self.invoke();
            self.record(invoke.clone())?;
            let (told, stopped) = self.gather(&mut stream, &mut lease).await;
            self.record(invoke.ok(Value::Told(told)))?;
            match stopped {
                Stopped::Full => {}
                Stopped::Reached => return Ok(true),
                Stopped::Dropped => return Ok(false),
                Stopped::Failed(error) => {
                    self.failed(&error)?;
                    sleep(PAUSE).await;
                    return Ok(false);
                }
            }
        }
    }

    /// Waits for what is told, for one entry of the history.
    async fn gather(&mut self, stream: &mut ChangeStream, lease: &mut Lease) -> (Vec<Told>, Stopped) {
        let until = (Instant::now() + TOGETHER).min(lease.until);
        let mut gathered = Vec::new();
        loop {
            let end = *self.end.borrow_and_update();
            if let Some(end) = end {
                stream.reach(end);
            }
            let followed = tokio::select! {
                followed = stream.next() => followed,
                Ok(()) = self.end.changed() => continue,
                () = sleep_until(until) => {
                    let is_over = Instant::now() >= lease.until;
                    return (gathered, if is_over { Stopped::Dropped } else { Stopped::Full });
                }
            };
            let told = |followed: Followed| Ok((told(&*self.shared.workload, &followed.event)?, followed));
            let (event, followed) = match followed.and_then(told) {
                Ok(told) => told,
                Err(error) => return (gathered, Stopped::Failed(error)),
            };
            let has_reached =
                matches!(followed.event, Event::Progress(at) if end.is_some_and(|end| at >= end));
            self.last = Some(followed);
            push(&mut gathered, event);
            lease.events -= 1;
            if has_reached {
                return (gathered, Stopped::Reached);
            } else if lease.events == 0 {
                return (gathered, Stopped::Dropped);
            } else if gathered.len() >= EVENTS {
                return (gathered, Stopped::Full);
            }
        }
    }

    /// The next entry: the first tells what is asked for.
    fn invoke(&mut self) -> Op {
        let value = match std::mem::replace(&mut self.has_begun, true) {
            true => Value::Nil,
            false => Value::Follow(self.plan.following.clone()),
        };
        Op::invoke(self.process, F::Follow, value)
            .with_key(self.plan.name)
            .with_node(format!("n{}", self.node + 1))
    }

    /// Writes down that following failed.
    fn failed(&mut self, error: &StoreError) -> Result<()> {
        let request = Request::of(self.plan.name, F::Follow, Value::Nil);
        let outcome = Outcome::of_error(&request, error);
        let invoke = self.invoke();
        let began = self.record(invoke.clone())?;
        let ended = self.record(outcome.clone().complete(&invoke))?;
        self.shared.corruption.note(&request, &outcome, [began, ended]);
        Ok(())
    }

    fn record(&self, op: Op) -> Result<u64> {
        let recorded = self.shared.recorder.record(op);
        recorded.map_err(|source| Error::Io { what: "write the history".into(), source })
    }
}

/// Adds an event. Of progress that nothing happened between, the last one says all.
fn push(gathered: &mut Vec<Told>, event: Told) {
    if let (Some(Told::Progress { at }), Told::Progress { at: now }) = (gathered.last_mut(), &event)
        && *now >= *at
    {
        *at = *now;
        return;
    }
    gathered.push(event);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_once_and_what_goes_back_is_not_hidden() {
        let mut gathered = Vec::new();
        let changes = Told::Changes { at: 4, changes: Vec::new() };
        let progress = |at| Told::Progress { at };
        for event in [progress(1), progress(3), changes.clone(), progress(5), progress(4)] {
            push(&mut gathered, event);
        }
        assert_eq!(gathered, [progress(3), changes, progress(5), progress(4)]);
    }
}
