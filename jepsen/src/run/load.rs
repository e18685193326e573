//! Clients at work: opening requests, the load itself, and the reads at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvorum::Client;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use super::corruption::Corruption;
use super::{Progress, left};
use crate::check::Anomaly;
use crate::history::{Kind, Op, Recorder};
use crate::hosts::{Cluster, Error, Result};
use crate::report::Parameters;
use crate::workload::{Outcome, ReadLevel, Request, Workload};

/// A call that has not ended so long after its deadline is given up, as unknown.
const GRACE: Duration = Duration::from_secs(5);
/// How long a client keeps its connections, and what it knows of leaders, at most. Then it asks another node anew, so
/// that requests go wherever nodes believe they lead.
const KEPT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// How long a new client may take to connect, before the old one has to do.
const CONNECT_WITHIN: Duration = Duration::from_millis(1500);
/// How long all reads at the end may take: so long, and so much more for each.
const CLOSE_WITHIN: Duration = Duration::from_secs(60);
const CLOSE_EACH: Duration = Duration::from_millis(100);
/// A read at the end that got no answer for so long gets none; one that had less time is not judged.
const REFUSED_AFTER: Duration = Duration::from_secs(30);
/// Each read at the end is made so often at most.
const CLOSING_ATTEMPTS: u32 = 20;

/// Clients of a run.
pub(super) struct Load {
    inner: Arc<Inner>,
    seconds: u64,
}

struct Inner {
    cluster: Arc<Cluster>,
    workload: Arc<dyn Workload>,
    recorder: Arc<Recorder>,
    level: ReadLevel,
    deadline: Duration,
    clients: usize,
    seed: u64,
    /// The time from one request to the next.
    pace: Duration,
    next_slot: Mutex<Instant>,
    corruption: Corruption,
}

/// One client: a process of the history, and another one after each request of unknown outcome.
struct Worker {
    inner: Arc<Inner>,
    process: u64,
    /// Draws requests, and nothing else: which they are shall not depend on how often connections break.
    requests: SmallRng,
    /// Draws which node is asked next, and how long.
    connections: SmallRng,
    client: Option<Client>,
    /// The node that the client asks first.
    node: usize,
    renew_at: Instant,
    level: ReadLevel,
    /// When its last write was committed that was acknowledged with a timestamp.
    own_commit: Option<u64>,
}

impl Load {
    pub(super) fn new(
        parameters: &Parameters,
        cluster: &Arc<Cluster>,
        workload: &Arc<dyn Workload>,
        recorder: &Arc<Recorder>,
    ) -> Self {
        let inner = Inner {
            cluster: Arc::clone(cluster),
            workload: Arc::clone(workload),
            recorder: Arc::clone(recorder),
            level: parameters.read_level,
            deadline: Duration::from_millis(parameters.deadline_ms),
            clients: parameters.clients,
            seed: parameters.seed,
            pace: Duration::from_secs(1) / parameters.rate.max(1),
            next_slot: Mutex::new(Instant::now()),
            corruption: Corruption::default(),
        };
        Self { inner: Arc::new(inner), seconds: parameters.seconds }
    }

    /// The proofs of corruption that clients met so far.
    pub(super) fn corruption(&self) -> Vec<Anomaly> {
        self.inner.corruption.findings()
    }

    /// Makes the opening requests.
    ///
    /// # Errors
    /// Where one does not succeed: no fault strikes yet.
    pub(super) async fn open(&self) -> Result<()> {
        let mut worker = Worker::new(&self.inner, 0);
        for request in self.inner.workload.opening() {
            let outcome = worker.make(&request).await?;
            if outcome.kind() != Kind::Ok {
                return Err(Error::Other(format!("the opening request {request:?} came to {outcome:?}")));
            }
        }
        Ok(())
    }

    /// Has all clients work until the time is over.
    pub(super) async fn run(&self, progress: &Progress) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(self.seconds);
        let mut working = JoinSet::new();
        for number in 0..self.inner.clients {
            let mut worker = Worker::new(&self.inner, number);
            working.spawn(async move { worker.work(until).await });
        }
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        loop {
            tokio::select! {
                done = working.join_next() => match done {
                    Some(done) => joined(done)?,
                    None => return Ok(()),
                },
                _ = tick.tick() => {
                    progress.requests(self.inner.recorder.len() / 2);
                    self.inner.recorder.flush().map_err(unwritten)?;
                }
            }
        }
    }

    /// Reads everything back.
    pub(super) async fn close(&self) -> Result<Closed> {
        let requests = Arc::new(self.inner.workload.closing());
        let (next, closed) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Closed::default())));
        let until = Instant::now() + close_within(requests.len());
        let mut working = JoinSet::new();
        for number in 0..self.inner.clients {
            let mut worker = Worker::new(&self.inner, self.inner.clients + number);
            let (requests, next, closed) = (Arc::clone(&requests), Arc::clone(&next), Arc::clone(&closed));
            working.spawn(async move {
                while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(missing) = worker.insist(request, until).await? {
                        closed.lock().add(missing);
                    }
                }
                Ok(())
            });
        }
        while let Some(done) = working.join_next().await {
            joined(done)?;
        }
        Ok(std::mem::take(&mut closed.lock()))
    }
}

/// How long so many reads at the end may take together.
fn close_within(requests: usize) -> Duration {
    CLOSE_WITHIN + CLOSE_EACH * u32::try_from(requests).unwrap_or(u32::MAX)
}

/// What came of the reads at the end.
#[derive(Default)]
pub(super) struct Closed {
    /// Why each got no answer that got none, though it was made again and again.
    pub(super) refused: Vec<String>,
    /// How many there was too little time for.
    pub(super) untimely: usize,
}

/// A read at the end that got no answer.
struct Missing {
    tries: u32,
    tried_for: Duration,
    why: String,
}

impl Closed {
    fn add(&mut self, Missing { tries, tried_for, why }: Missing) {
        if tries >= CLOSING_ATTEMPTS || tried_for >= REFUSED_AFTER {
            self.refused.push(why);
        } else {
            self.untimely += 1;
        }
    }
}

/// A client's generators, of requests and of connections.
fn generators(seed: u64, number: usize) -> [SmallRng; 2] {
    let own = seed.wrapping_mul(1_000_003).wrapping_add(number as u64);
    [own, own ^ 0x636f_6e6e_6563_7400].map(SmallRng::seed_from_u64)
}

fn joined(done: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    match done {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(Error::Other(format!("a client ended early: {error}"))),
    }
}

fn unwritten(source: std::io::Error) -> Error {
    Error::Io { what: "write the history".into(), source }
}

impl Inner {
    /// When the next request may begin. What was missed while all clients waited is not made up for.
    fn slot(&self) -> Instant {
        let mut next = self.next_slot.lock();
        let slot = (*next).max(Instant::now());
        *next = slot + self.pace;
        slot
    }
}

impl Worker {
    fn new(inner: &Arc<Inner>, number: usize) -> Self {
        let [requests, connections] = generators(inner.seed, number);
        Self {
            inner: Arc::clone(inner),
            process: inner.recorder.new_process(),
            requests,
            connections,
            client: None,
            node: 0,
            renew_at: Instant::now(),
            level: inner.level,
            own_commit: None,
        }
    }

    async fn work(&mut self, until: Instant) -> Result<()> {
        loop {
            let slot = self.inner.slot();
            if slot >= until {
                return Ok(());
            }
            tokio::time::sleep(left(slot)).await;
            if self.connected().await.is_err() {
                continue;
            }
            let request = self.inner.workload.next(&mut self.requests);
            self.make(&request).await?;
        }
    }

    /// Makes a read until it succeeds, within limits. Returns what was tried where it did not.
    async fn insist(&mut self, request: &Request, until: Instant) -> Result<Option<Missing>> {
        // What everything comes to in the end has to be seen, not what it was some time ago.
        if !self.level.is_linearizable() {
            self.level = ReadLevel::LinearizableBalanced;
        }
        let began = Instant::now();
        let mut missing = Missing { tries: 0, tried_for: Duration::ZERO, why: String::new() };
        while missing.tries < CLOSING_ATTEMPTS && Instant::now() < until {
            missing.why = match self.make(request).await {
                Ok(Outcome::Ok(..)) => return Ok(None),
                Ok(Outcome::Fail(why) | Outcome::Info(why) | Outcome::Corrupt { why, .. }) => why,
                Err(Error::Store(error)) => error.to_string(),
                Err(error) => return Err(error),
            };
            missing.tries += 1;
            missing.tried_for = began.elapsed();
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        Ok(Some(missing))
    }

    /// Makes a request and writes it down.
    async fn make(&mut self, request: &Request) -> Result<Outcome> {
        let client = self.connected().await?;
        let request = &self.inner.workload.knowing(request.clone(), self.own_commit);
        let level = self.level;
        let invoke = Op {
            key: request.key.clone(),
            staleness_ms: level.staleness_ms(request),
            node: Some(format!("n{}", self.node + 1)),
            ..Op::invoke(self.process, request.f, request.value.clone())
        };
        let began = self.inner.recorder.record(invoke.clone()).map_err(unwritten)?;
        let performed = self.inner.workload.perform(&client, request, level);
        let outcome = match tokio::time::timeout(self.inner.deadline + GRACE, performed).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::given_up(request, "no answer long after the deadline"),
        };
        let ended = self.inner.recorder.record(outcome.clone().complete(&invoke)).map_err(unwritten)?;
        self.inner.corruption.note(request, &outcome, [began, ended]);
        if let (Outcome::Ok(_, Some(at)), false) = (&outcome, request.only_reads()) {
            self.own_commit = self.own_commit.max(Some(*at));
        }
        match outcome.kind() {
            Kind::Ok => {}
            Kind::Info => {
                self.process = self.inner.recorder.new_process();
                self.renew_at = Instant::now();
            }
            _ => self.renew_at = Instant::now(),
        }
        Ok(outcome)
    }

    /// A client: the one there is, or a new one where its time is over.
    async fn connected(&mut self) -> Result<Client> {
        let now = Instant::now();
        if let Some(client) = self.client.clone().filter(|_| now < self.renew_at) {
            return Ok(client);
        }
        let first = self.connections.random_range(0..self.inner.cluster.len());
        let connect = self.inner.cluster.client(first, CONNECT_WITHIN);
        match (connect.await, &self.client) {
            (Ok(client), _) => {
                self.renew_at = Instant::now() + self.connections.random_range(KEPT.0..KEPT.1);
                self.node = first;
                let client =
                    client.with_deadline(self.inner.deadline).with_read_policy(self.inner.level.policy());
                Ok(self.client.insert(client).clone())
            }
            // Better than none: it may reach what it knows.
            (Err(_), Some(client)) => Ok(client.clone()),
            (Err(error), None) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_asks_for_does_not_depend_on_its_connections() {
        let workload = crate::workload::Kind::Register.make();
        let [mut requests, mut connections] = generators(7, 1);
        let [mut same, _] = generators(7, 1);
        let other = crate::workload::Kind::Register.make();
        for _ in 0..50 {
            let _: u64 = connections.random();
            assert_eq!(workload.next(&mut requests), other.next(&mut same));
        }
        assert_ne!(requests.random::<u64>(), connections.random::<u64>());
    }

    #[test]
    fn more_reads_have_more_time() {
        assert_eq!(close_within(0), Duration::from_secs(60));
        assert_eq!(close_within(6000), Duration::from_secs(660));
    }

    #[test]
    fn a_read_that_had_no_time_is_not_taken_for_one_that_gets_no_answer() {
        let mut closed = Closed::default();
        let missing = |tries, s| Missing { tries, tried_for: Duration::from_secs(s), why: "nobody".into() };
        closed.add(missing(0, 0));
        closed.add(missing(3, 12));
        assert_eq!((closed.refused.len(), closed.untimely), (0, 2));
        closed.add(missing(CLOSING_ATTEMPTS, 5));
        closed.add(missing(7, 31));
        assert_eq!((closed.refused, closed.untimely), (vec!["nobody".to_owned(); 2], 2));
    }
}
