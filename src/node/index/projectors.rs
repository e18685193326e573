//! The projectors of this node: one for each version of an index whose rows lie in a shard that it leads.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::clear;
use super::projector::{Order, Projector, Told};
use super::store::Store;
use super::wire;
use crate::client::Client;
use crate::codec::keyspace;
use crate::index::{Definition, checkpoint_key};
use crate::node::core::Core;
use crate::rpc::v1;
use crate::rpc::v1::index_catalogue_request::What;
use crate::types::{Error, KeyRange, Result, Timestamp};

/// How often is looked at what indexes there are, and at what this node leads.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often lags are measured.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// How long one measurement may take.
const MEASURE_WITHIN: Duration = Duration::from_secs(2);
/// Orders that may wait.
const ORDERS: usize = 16;

/// A version of an index.
type Id = (u64, u32);

/// One that runs.
struct Running {
    definition: Definition,
    wanted: watch::Sender<Timestamp>,
    told: watch::Receiver<Told>,
    orders: mpsc::Sender<Order>,
    task: AbortOnDropHandle<()>,
}

/// What runs on this node.
#[derive(Default)]
pub struct Projectors {
    running: Mutex<HashMap<Id, Running>>,
    clearing: Mutex<HashMap<Id, AbortOnDropHandle<()>>>,
}

impl Projectors {
    /// How far a version is, where its projector runs here.
    pub(super) fn told(&self, id: Id) -> Option<Told> {
        self.running.lock().get(&id).map(|running| running.told.borrow().clone())
    }

    /// Waits until a version is that of the rows at `ts` or a later timestamp. `now` is that, but not in the future: the
    /// projector is told to come so far at once.
    ///
    /// # Errors
    ///
    /// `Unavailable` where its projector does not run here, or does not get there in time; `Invalid` where the index has
    /// halted before that.
    pub(super) async fn reach(
        &self,
        id: Id,
        (ts, now): (Timestamp, Timestamp),
        deadline: Instant,
    ) -> Result<Told> {
        let mut told = {
            let running = self.running.lock();
            let running = running.get(&id).ok_or_else(not_here)?;
            running.wanted.send_if_modified(|wanted| {
                let is_later = now > *wanted;
                *wanted = now.max(*wanted);
                is_later
            });
            running.told.clone()
        };
        let there =
            |told: &Told| (told.watermark >= ts && told.watermark > Timestamp::ZERO) || told.halted.is_some();
        let reached = tokio::time::timeout_at(deadline, told.wait_for(there)).await;
        match reached.map(|told| told.map(|told| told.clone())) {
            Ok(Ok(told)) if told.watermark >= ts => Ok(told),
            Ok(Ok(told)) => Err(Error::invalid(format!(
                "the index does not come to {ts}: {}; see `kvorum index status`",
                told.halted.as_deref().unwrap_or_default()
            ))),
            Ok(Err(_)) => Err(not_here()),
            Err(_) => {
                let told = told.borrow();
                let failing = told.failing.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
                Err(Error::unavailable(format!(
                    "the index has come to {}, not to {ts}, within the deadline{failing}: give it more time",
                    told.watermark
                )))
            }
        }
    }

    /// Has a version go on that has halted, where it has halted here still.
    ///
    /// # Errors
    ///
    /// `Unavailable` where its projector does not run here, or does not answer in time.
    pub(super) async fn resume(&self, id: Id, resume: v1::ResumeVersion, deadline: Instant) -> Result<()> {
        self.order(id, |answer| Order::Resume(resume, answer), deadline).await
    }

    /// Has a version try to take in rows with dead letters once more.
    ///
    /// # Errors
    ///
    /// As for [`resume`](Self::resume).
    pub(super) async fn replay(&self, id: Id, deadline: Instant) -> Result<()> {
        self.order(id, Order::Replay, deadline).await
    }

    async fn order(
        &self,
        id: Id,
        order: impl FnOnce(oneshot::Sender<Result<()>>) -> Order,
        deadline: Instant,
    ) -> Result<()> {
        let orders =
            self.running.lock().get(&id).map(|running| running.orders.clone()).ok_or_else(not_here)?;
        let (answer, answered) = oneshot::channel();
        let obeyed = async {
            orders.send(order(answer)).await.map_err(|_| not_here())?;
            answered.await.map_err(|_| not_here())?
        };
        match tokio::time::timeout_at(deadline, obeyed).await {
            Ok(obeyed) => obeyed,
            Err(_) => Err(Error::unavailable(
                "the index has not answered within the deadline: see `kvorum index status`, and try again",
            )),
        }
    }

    /// Starts what is to run and does not, and ends what is not to run.
    fn set(&self, store: &Store, client: &Client, definitions: Vec<Definition>) {
        let mut running = self.running.lock();
        let wanted: HashSet<Id> = definitions.iter().map(id_of).collect();
        running.retain(|id, running| {
            let stays = wanted.contains(id) && !running.task.is_finished();
            if !stays {
                unmeasure(&running.definition);
            }
            stays
        });
        for definition in definitions {
            running.entry(id_of(&definition)).or_insert_with(|| start(store, client, definition));
        }
    }

    /// Starts the clearing of versions, and forgets what has ended.
    fn clear(&self, store: &Store, client: &Client, doomed: Vec<(String, Id)>) {
        let mut clearing = self.clearing.lock();
        let wanted: HashSet<Id> = doomed.iter().map(|(_, id)| *id).collect();
        clearing.retain(|id, task| wanted.contains(id) && !task.is_finished());
        for (name, id) in doomed {
            let clear =
                || AbortOnDropHandle::new(tokio::spawn(clear::run(store.clone(), client.clone(), name, id)));
            clearing.entry(id).or_insert_with(clear);
        }
    }

    fn stop(&self) {
        self.running.lock().drain().for_each(|(_, running)| unmeasure(&running.definition));
        self.clearing.lock().clear();
    }

    fn measured(&self) -> Vec<(Definition, Told)> {
        let running = self.running.lock();
        running.values().map(|running| (running.definition.clone(), running.told.borrow().clone())).collect()
    }
}

fn start(store: &Store, client: &Client, definition: Definition) -> Running {
    tracing::info!(index = definition.name(), version = definition.version(), "keeping up an index");
    let (wanted, wants) = watch::channel(Timestamp::ZERO);
    let nothing =
        Told { checkpoint_ts: Timestamp::ZERO, watermark: Timestamp::ZERO, halted: None, failing: None };
    let (tell, told) = watch::channel(nothing);
    let (orders, ordered) = mpsc::channel(ORDERS);
    let projector = Projector {
        store: store.clone(),
        client: client.clone(),
        definition: definition.clone(),
        wanted: wants,
        told: tell,
        orders: ordered,
    };
    let task = AbortOnDropHandle::new(tokio::spawn(projector.run()));
    Running { definition, wanted, told, orders, task }
}

fn id_of(definition: &Definition) -> Id {
    (definition.id(), definition.version())
}

fn not_here() -> Error {
    Error::unavailable("the index is not kept up on this node at the moment: try again")
}

/// Looks after the projectors of this node until it stops.
pub async fn run(core: Weak<Core>, stopping: CancellationToken) {
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let measuring = tokio::spawn(measure_all(core.clone(), stopping.clone()));
    let _measuring = AbortOnDropHandle::new(measuring);
    let mut projectors: Option<Arc<Projectors>> = None;
    loop {
        tokio::select! {
            () = stopping.cancelled() => break,
            _ = every.tick() => {}
        }
        let Some(core) = core.upgrade() else { break };
        let Ok(member) = core.member() else { continue };
        let projectors = projectors.get_or_insert_with(|| member.projectors().clone());
        // Not gone on with once the node stops: nothing must be started then.
        tokio::select! {
            () = stopping.cancelled() => break,
            () = look_after(&core, member.index_store(), projectors) => {}
        }
    }
    if let Some(projectors) = projectors {
        projectors.stop();
    }
}

async fn look_after(core: &Arc<Core>, store: &Store, projectors: &Projectors) {
    if !store.leads_any(&keyspace::index_range()) {
        projectors.stop();
        return;
    }
    if let Err(error) = look(core, store, projectors).await {
        tracing::debug!(%error, "what indexes there are is not known now");
    }
}

async fn look(core: &Arc<Core>, store: &Store, projectors: &Projectors) -> Result<()> {
    let client = core.client().await?;
    let records = client.about_indexes(What::List(true)).await?;
    let leads = |id: u64, version: u32| store.check_leads(&checkpoint_key(id, version)).is_ok();
    let mut definitions = Vec::new();
    for record in &records {
        match wire::definitions(record) {
            Ok(found) => {
                definitions.extend(found.into_iter().filter(|found| leads(found.id(), found.version())));
            }
            Err(error) => {
                tracing::error!(index = record.name, %error, "an index has a definition that is wrong")
            }
        }
    }
    let of = |record: &v1::IndexRecord| -> Vec<(String, Id)> {
        record.doomed.iter().map(|version| (record.name.clone(), (record.id, *version))).collect()
    };
    let doomed = records.iter().flat_map(of).filter(|(_, (id, version))| leads(*id, *version)).collect();
    projectors.set(store, &client, definitions);
    projectors.clear(store, &client, doomed);
    Ok(())
}

/// Tells how far behind the indexes are that are kept up here, again and again.
async fn measure_all(core: Weak<Core>, stopping: CancellationToken) {
    let mut every = tokio::time::interval(MEASURE_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = every.tick() => {}
        }
        let Some(core) = core.upgrade() else { return };
        let Ok(member) = core.member() else { continue };
        let measured = member.projectors().measured();
        if measured.is_empty() {
            continue;
        }
        let (Ok(client), Ok(now)) = (core.client().await, member.index_store().now().await) else { continue };
        let client = client.with_deadline(MEASURE_WITHIN);
        let measures = measured.iter().map(|(definition, told)| measure(&client, now, definition, told));
        futures::future::join_all(measures).await;
    }
}

async fn measure(client: &Client, now: Timestamp, definition: &Definition, told: &Told) {
    if told.watermark == Timestamp::ZERO {
        return;
    }
    let seconds = now.ms().saturating_sub(told.watermark.ms()) as f64 / 1000.0;
    let rows = [KeyRange::prefix(definition.spec().prefix.clone())];
    // More than is kept, or not known: a shard does not answer.
    let entries =
        client.changes_after(&rows, told.watermark).await.map_or(f64::NAN, |entries| entries as f64);
    set(definition, seconds, entries);
}

fn unmeasure(definition: &Definition) {
    set(definition, f64::NAN, f64::NAN);
}

fn set(definition: &Definition, seconds: f64, entries: f64) {
    let labels = [("index", definition.name().to_owned()), ("version", definition.version().to_string())];
    metrics::gauge!("kvorum_index_lag_seconds", &labels).set(seconds);
    metrics::gauge!("kvorum_index_lag_entries", &labels).set(entries);
}
