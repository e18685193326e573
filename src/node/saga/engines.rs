//! The engines of this node: one for each shard with sagas that it leads.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::clock::Clock;
use super::definitions::Definitions;
use super::engine::Engine;
use super::forget;
use super::reads::Readings;
use crate::client::Client;
use crate::codec::keyspace;
use crate::node::core::Core;
use crate::node::replica::Replica;
use crate::node::rows::Rows;
use crate::raft::Token;
use crate::rpc::v1::saga_catalogue_request::What;
use crate::types::{Error, Result, ShardId};

/// How often is looked at what this node leads. Requests look too.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the limits of queues are read.
const LIMITS_EVERY: Duration = Duration::from_secs(2);
/// How often is looked for sagas that are to be forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(30);

struct Running {
    /// Under which leadership.
    token: Token,
    engine: Arc<Engine>,
    _task: AbortOnDropHandle<()>,
    _forgets: AbortOnDropHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

/// What runs on this node.
pub struct Engines {
    rows: Rows,
    client: tokio::sync::OnceCell<Client>,
    definitions: Arc<Definitions>,
    clock: Clock,
    running: Mutex<HashMap<ShardId, Running>>,
    /// Of queues, with how many shards share it.
    limits: Mutex<HashMap<String, f64>>,
    stopped: CancellationToken,
}

impl Engines {
    /// None yet. With `skips_waits` sagas' clock is put forward over what they wait for.
    pub fn new(rows: Rows, skips_waits: bool) -> Self {
        Self {
            rows,
            client: tokio::sync::OnceCell::new(),
            definitions: Arc::default(),
            clock: Clock::new(skips_waits),
            running: Mutex::default(),
            limits: Mutex::default(),
            stopped: CancellationToken::new(),
        }
    }

    /// The rows of this node's replicas.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Definitions as this node knows them.
    pub fn definitions(&self) -> &Definitions {
        &self.definitions
    }

    /// The time that sagas go by.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// A client that begins at this node.
    ///
    /// # Errors
    ///
    /// `Unavailable` until the node is a member of a cluster and runs, and knows the time.
    pub fn client(&self) -> Result<&Client> {
        self.client.get().ok_or_else(|| Error::unavailable("the node is starting: try again"))
    }

    /// Reads of sagas, until a deadline.
    ///
    /// # Errors
    ///
    /// As for [`client`](Self::client).
    pub(super) fn readings(&self, deadline: Instant) -> Result<Readings<'_>> {
        let (rows, client) = (&self.rows, self.client()?);
        Ok(Readings { rows, client, definitions: &self.definitions, clock: &self.clock, deadline })
    }

    /// The engine of the shard that holds a key.
    ///
    /// # Errors
    ///
    /// `Moved` where this node does not lead that shard; `Unavailable` while the node starts or stops.
    pub fn of(&self, key: &[u8]) -> Result<Arc<Engine>> {
        let replica = self.rows.holding(key)?;
        replica.check_leads()?;
        let token = replica.leads_under()?;
        self.set(&replica, token)
    }

    /// The engine of a shard that this node leads: the one that runs, or another one where that is of another leadership.
    fn set(&self, replica: &Arc<Replica>, token: Token) -> Result<Arc<Engine>> {
        let client = self.client()?;
        let shard = replica.group().id();
        // Before the other lock: nobody holds both.
        let limits = self.limits.lock().clone();
        let mut running = self.running.lock();
        if self.stopped.is_cancelled() {
            return Err(Error::unavailable("the node is stopping: ask another node"));
        }
        if let Some(runs) = running.get(&shard).filter(|runs| runs.token == token) {
            return Ok(runs.engine.clone());
        }
        let engine = Engine::new(
            self.rows.clone(),
            client.clone(),
            self.definitions.clone(),
            self.clock.clone(),
            replica.clone(),
        );
        for (queue, rate_per_s) in &limits {
            engine.queues.set_limit(queue, Some(*rate_per_s));
        }
        let task = AbortOnDropHandle::new(tokio::spawn(engine.clone().run()));
        let forgets = AbortOnDropHandle::new(tokio::spawn(forget::run(engine.clone(), FORGET_EVERY)));
        let runs = Running { token, engine: engine.clone(), _task: task, _forgets: forgets };
        running.insert(shard, runs);
        Ok(engine)
    }

    /// Starts the engines of what this node leads, and ends those of what it does not.
    fn look(&self) {
        let mut led = Vec::new();
        for replica in self.rows.replicas_in(&keyspace::saga_range()) {
            if let Ok(token) = replica.leads_under() {
                led.push(replica.group().id());
                if let Err(error) = self.set(&replica, token) {
                    tracing::debug!(%error, "sagas are not looked after yet");
                }
            }
        }
        let mut running = self.running.lock();
        running.retain(|shard, _| led.contains(shard));
        let counts = running.values().map(|runs| runs.engine.counts());
        let sum = counts.fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2));
        metrics::gauge!("kvorum_sagas_in_memory").set(sum.0 as f64);
        metrics::gauge!("kvorum_sagas_waiting_for_time").set(sum.1 as f64);
        metrics::gauge!("kvorum_saga_tasks_ready").set(sum.2 as f64);
    }

    /// Reads how queues are to hand out tasks. Each shard gets its part.
    async fn read_limits(&self) -> Result<()> {
        let client = self.client()?;
        if self.running.lock().is_empty() {
            return Ok(());
        }
        let shards = client.saga_places().await?.len().max(1);
        let queues = client.about_definitions(What::Queues(true)).await?.queues;
        let new: HashMap<String, f64> =
            queues.into_iter().map(|queue| (queue.name, queue.rate_per_s / shards as f64)).collect();
        let known = std::mem::replace(&mut *self.limits.lock(), new.clone());
        for runs in self.running.lock().values() {
            for (queue, _) in known.iter().filter(|(queue, _)| !new.contains_key(*queue)) {
                runs.engine.queues.set_limit(queue, None);
            }
            for (queue, rate_per_s) in new.iter().filter(|(queue, rate)| known.get(*queue) != Some(rate)) {
                runs.engine.queues.set_limit(queue, Some(*rate_per_s));
            }
        }
        Ok(())
    }

    fn stop(&self) {
        self.stopped.cancel();
        self.running.lock().clear();
    }
}

/// Looks after the engines of this node until it stops.
pub async fn run(core: Weak<Core>, stopping: CancellationToken) {
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut engines: Option<Arc<Engines>> = None;
    let mut limits_at = Instant::now();
    loop {
        tokio::select! {
            () = stopping.cancelled() => break,
            _ = every.tick() => {}
        }
        let Some(core) = core.upgrade() else { break };
        let Ok(member) = core.member() else { continue };
        let engines = engines.get_or_insert_with(|| member.sagas().clone());
        if engines.client.get().is_none() {
            // Nothing is done to any saga before the time is known: what is begun at a wrong one would end at a wrong one.
            match (core.client().await, engines.rows.now().await) {
                (Ok(client), Ok(now)) => {
                    engines.clock.note(now);
                    // It may have been set by another one.
                    drop(engines.client.set(client));
                }
                _ => continue,
            }
        }
        engines.look();
        if limits_at.elapsed() >= LIMITS_EVERY {
            limits_at = Instant::now();
            tokio::select! {
                () = stopping.cancelled() => break,
                read = engines.read_limits() => if let Err(error) = read {
                    tracing::debug!(%error, "the limits of queues can't be read now");
                },
            }
        }
    }
    if let Some(engines) = engines {
        engines.stop();
    }
}
