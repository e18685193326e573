//! Keeps one version of an index up: follows the changes of its rows and writes what they change in it.
//!
//! What it writes in one transaction is a `Step` of the machine, with the checkpoint that the transaction has read. A
//! step is never written again: where its fate is unknown, the checkpoint is read anew, and the changelog followed from
//! there. So each change takes effect once, whoever else keeps the same index up at the moment.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use super::store::Store;
use super::wire;
use crate::bugs::{self, Bug};
use crate::changelog::{Cursor, CursorState};
use crate::client::{ChangeStream, Client, Event, FollowOptions, Followed, Since};
use crate::index::{
    Checkpoint, DeadLetter, Definition, State, Step, checkpoint_key, dead_letters, definition_key,
};
use crate::rpc::v1;
use crate::rpc::v1::index_catalogue_request::What;
use crate::types::{
    Before, Changes, Direction, Error, ErrorKind, ReadAt, Result, Timestamp, TxnWrite, limits,
};

/// A step is written once it has so many rows, or bytes: more makes it larger, not faster.
const STEP_ROWS: usize = 4_000;
const STEP_BYTES: usize = 1024 * 1024;
/// A transaction with so many changes, or bytes, is written in a step of its own.
const LARGE_CHANGES: usize = 1_000;
const LARGE_BYTES: usize = 512 * 1024;
/// How long one transaction, or the reading before it, may take.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// The checkpoint is written so often though nothing has changed, so that a takeover need not look through a changelog
/// that is cut off behind it.
const IDLE: Duration = Duration::from_secs(10);
/// The checkpoint is read anew where it was written longer ago than this: a transaction that began then would be old.
const START_AGE: Duration = Duration::from_secs(30);
/// One that has halted looks so often whether it still has.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// What is told of a version that can't go on.
const BEHIND: &str = "what it goes on from is not kept any more: it is built anew, once no other version of it is being \
                      built or held";
/// The first pause after a failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How far a projector has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// When the checkpoint was committed that the index has now.
    pub checkpoint_ts: Timestamp,
    /// Its rows as of then are right up to here, at least. Zero where nothing is known yet.
    pub watermark: Timestamp,
    /// Why it has halted, if it has.
    pub halted: Option<String>,
    /// Why it does not go on at the moment, though it tries.
    pub failing: Option<String>,
}

/// What a projector is told to do.
pub enum Order {
    /// Go on where it halted.
    Resume(v1::ResumeVersion, oneshot::Sender<Result<()>>),
    /// Try to take in rows with dead letters once more.
    Replay(oneshot::Sender<Result<()>>),
}

/// Keeps one version of an index up.
pub struct Projector {
    /// Its rows.
    pub store: Store,
    /// Follows the changes.
    pub client: Client,
    /// What is kept up.
    pub definition: Definition,
    /// Up to which timestamp somebody waits for it.
    pub wanted: watch::Receiver<Timestamp>,
    /// How far it is.
    pub told: watch::Sender<Told>,
    /// What it is told to do.
    pub orders: mpsc::Receiver<Order>,
}

/// Where it is, as far as it knows.
struct Place {
    /// When the checkpoint was committed.
    committed: Timestamp,
    checkpoint: Checkpoint,
    /// When it was written or read here.
    at: Instant,
}

/// Whether an error says that changes after the checkpoint, or the rows of the scan, are not kept any more.
fn is_behind(error: &Error, checkpoint: &Checkpoint) -> bool {
    let is_scanning = checkpoint.watermark == Timestamp::ZERO;
    error.kind == ErrorKind::TooOld && (error.oldest.is_some() || is_scanning)
}

/// Why following ended.
enum End {
    /// The checkpoint is another one than was believed, or is to be read anew.
    Elsewhere,
    /// The version is not wanted any more.
    Gone,
    /// The changelog was cut past it.
    Behind(Error),
    Failed(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Projector {
    /// Keeps the index up until it is not wanted any more. Whoever started this ends it elsewise.
    pub async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let (name, version) = (self.definition.name().to_owned(), self.definition.version());
        loop {
            let began = Instant::now();
            let Err(end) = self.keep_up().await else { continue };
            match end {
                End::Elsewhere => sleep(FIRST_PAUSE).await,
                End::Gone => return,
                End::Behind(error) => {
                    tracing::warn!(index = name, version, %error,
                        "what an index goes on from is not kept any more; it is built anew");
                    self.told.send_modify(|told| told.failing = Some(BEHIND.to_owned()));
                    if let Err(error) =
                        self.client.about_indexes(self.named(What::Restart, &error.message)).await
                    {
                        tracing::warn!(index = name, version, %error, "an index could not be built anew; trying on");
                    }
                    sleep(LONGEST_PAUSE).await;
                }
                End::Failed(error) => {
                    tracing::warn!(index = name, version, %error, "an index can't be kept up now; trying on");
                    self.told.send_modify(|told| told.failing = Some(error.message.clone()));
                    if began.elapsed() > LONGEST_PAUSE {
                        pause = FIRST_PAUSE;
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// A message to the catalogue about this version.
    fn named(&self, what: fn(v1::NamedVersion) -> What, reason: &str) -> What {
        what(v1::NamedVersion {
            name: self.definition.name().to_owned(),
            id: self.definition.id(),
            version: self.definition.version(),
            reason: reason.to_owned(),
        })
    }

    async fn keep_up(&mut self) -> Result<(), End> {
        let mut place = match self.load().await? {
            Some(place) => place,
            None => self.begin().await?,
        };
        self.tell(&place);
        while let State::Halted { .. } = place.checkpoint.state {
            match tokio::time::timeout(LOOK_AGAIN, self.orders.recv()).await {
                Ok(Some(order)) => self.obey(&mut place, order).await?,
                Ok(None) => return Err(End::Gone),
                // Another node may have led the shard for a moment, and gone on.
                Err(_) => return Err(End::Elsewhere),
            }
        }
        if place.checkpoint.state == State::Ready {
            self.announce().await?;
        }
        self.follow(place).await
    }

    /// The checkpoint as it is.
    async fn load(&self) -> Result<Option<Place>> {
        let key = self.checkpoint_key();
        let (_, found) = self.store.read(&[key], ReadAt::Latest, Instant::now() + WRITE_WITHIN).await?;
        let Some(record) = found.into_iter().next().flatten() else { return Ok(None) };
        let checkpoint = Checkpoint::decode(&record.value)?;
        Ok(Some(Place { committed: record.commit_ts, checkpoint, at: Instant::now() }))
    }

    fn checkpoint_key(&self) -> Bytes {
        checkpoint_key(self.definition.id(), self.definition.version())
    }

    /// Writes the first checkpoint. That there is none may also mean that all of the version was cleared away: so the
    /// catalogue is asked after the timestamp was taken at which there was none. If it is cleared after that, this fails.
    async fn begin(&self) -> Result<Place, End> {
        let start = self.store.now().await?;
        let key = self.checkpoint_key();
        let deadline = Instant::now() + WRITE_WITHIN;
        let (_, found) =
            self.store.read(std::slice::from_ref(&key), ReadAt::Snapshot(start), deadline).await?;
        if found.into_iter().flatten().next().is_some() {
            return Err(End::Elsewhere);
        }
        let records = self.client.about_indexes(What::Find(self.definition.name().to_owned())).await?;
        let is_wanted = records.iter().any(|record| {
            let versions = record.active.iter().chain(&record.building);
            record.id == self.definition.id()
                && versions.map(|version| version.number).any(|number| number == self.definition.version())
        });
        if !is_wanted {
            return Err(End::Gone);
        }
        let cluster = self.client.cluster()?;
        let followed = self.options().followed()?;
        let scan = CursorState::Scanning { at: start, next: Bytes::new() };
        let cursor = Cursor::new(cluster, &followed, scan).encode();
        let checkpoint = Checkpoint { cursor, ..Checkpoint::new() };
        let definition = definition_key(self.definition.id(), self.definition.version());
        let writes = vec![
            TxnWrite::Put { key: key.clone(), value: checkpoint.encode() },
            TxnWrite::Put { key: definition, value: self.definition.encode() },
        ];
        let committed = self.store.commit(start, vec![key], writes, deadline).await?;
        Ok(Place { committed, checkpoint, at: Instant::now() })
    }

    fn options(&self) -> FollowOptions {
        FollowOptions::prefix(&self.definition.spec().prefix).before_images()
    }

    /// Says that the version is built. Said again it has no effect.
    async fn announce(&self) -> Result<()> {
        self.client.about_indexes(self.named(What::Built, "")).await?;
        Ok(())
    }

    async fn follow(&mut self, mut place: Place) -> Result<(), End> {
        let cursor = Cursor::decode(&place.checkpoint.cursor)?;
        let mut stream = self.client.changes(self.options().since(Since::Cursor(cursor)))?;
        stream.reach(*self.wanted.borrow_and_update());
        let mut pending = None;
        loop {
            let first = match pending.take() {
                Some(followed) => followed,
                None => match self.next(&mut stream, &mut place).await {
                    Ok(followed) => followed,
                    Err(End::Failed(error)) if is_behind(&error, &place.checkpoint) => {
                        return Err(End::Behind(error));
                    }
                    Err(end) => return Err(end),
                },
            };
            stream.reach(*self.wanted.borrow_and_update());
            let mut step = Step::new(self.definition.clone(), place.checkpoint.clone());
            let was_building = place.checkpoint.state == State::Building;
            pending = self.gather(&place.checkpoint, &mut step, first, &mut stream).await?;
            self.keep(&mut place, step).await?;
            match &place.checkpoint.state {
                State::Halted { .. } => return Err(End::Elsewhere),
                State::Ready if was_building => self.announce().await?,
                State::Ready | State::Building => {}
            }
        }
    }

    /// The next event. Meanwhile the stream learns what is waited for, and orders are obeyed.
    async fn next(&mut self, stream: &mut ChangeStream, place: &mut Place) -> Result<Followed, End> {
        loop {
            tokio::select! {
                followed = stream.next() => return Ok(followed?),
                changed = self.wanted.changed() => match changed {
                    Ok(()) => stream.reach(*self.wanted.borrow_and_update()),
                    Err(_) => return Err(End::Gone),
                },
                Some(order) = self.orders.recv() => self.obey(place, order).await?,
            }
        }
    }

    /// Takes events into a step: the first, and those that are there already. Answers with one that did not fit.
    async fn gather(
        &self,
        from: &Checkpoint,
        step: &mut Step,
        first: Followed,
        stream: &mut ChangeStream,
    ) -> Result<Option<Followed>, End> {
        let mut next = Some(first);
        while let Some(followed) = next {
            let is_large = match &followed.event {
                Event::Changes(changes) => {
                    changes.changes.len() > LARGE_CHANGES || changes.size_bytes() > LARGE_BYTES
                }
                Event::Row(_) | Event::Progress(_) => false,
            };
            if is_large && !step.is_empty() {
                return Ok(Some(followed));
            }
            match self.take(step, &followed).await {
                Ok(()) => {}
                // Sums that don't fit together, and would alone.
                Err(error) if error.kind == ErrorKind::Invalid && !step.is_empty() => {
                    return Ok(Some(followed));
                }
                Err(error) => return Err(error.into()),
            }
            if let (Event::Changes(changes), true) = (&followed.event, is_large) {
                self.check_size(from, step, changes);
            }
            if step.is_halted() || step.len() > STEP_ROWS || step.size_bytes() > STEP_BYTES {
                return Ok(None);
            }
            // Of an error the stream says next that it has ended: following anew gives it once more.
            next = stream.try_next().and_then(Result::ok);
        }
        Ok(None)
    }

    async fn take(&self, step: &mut Step, followed: &Followed) -> Result<()> {
        let cursor = followed.cursor();
        match &followed.event {
            Event::Row(row) => {
                let at = match cursor.state() {
                    CursorState::Scanning { at, .. } => *at,
                    CursorState::Following { after } => *after,
                };
                step.row(&row.key, &row.record.value, at, cursor.encode())
            }
            Event::Changes(changes) => {
                let told = self.tell_before(changes).await?;
                step.changes(told.as_ref().unwrap_or(changes), cursor.encode())
            }
            Event::Progress(ts) => {
                step.progress(*ts, cursor.encode());
                Ok(())
            }
        }
    }

    /// Halts before a transaction that would change more of the index than one transaction may. It is alone in the step.
    fn check_size(&self, from: &Checkpoint, step: &mut Step, changes: &Changes) {
        let (rows, size_bytes) = (step.len(), step.size_bytes());
        // The checkpoint is read besides; room for what the bytes are not counted of.
        if rows < limits::MAX_OWN_TXN_KEYS && size_bytes <= limits::MAX_OWN_TXN_BYTES / 10 * 9 {
            return;
        }
        *step = Step::new(self.definition.clone(), from.clone());
        let key = changes.changes.first().map(|change| change.key.clone()).unwrap_or_default();
        step.halt(
            key,
            changes.commit_ts,
            format!(
                "its transaction of {} changes would write {rows} rows and about {size_bytes} bytes to the index, over the \
                 limits of {} and {} of one transaction: build the index anew, with fewer covering fields",
                changes.changes.len(),
                limits::MAX_OWN_TXN_KEYS,
                limits::MAX_OWN_TXN_BYTES
            ),
        );
    }

    /// The changes with values from before that were too large to be told with them; `None` where all are told.
    async fn tell_before(&self, changes: &Changes) -> Result<Option<Changes>> {
        if !changes.changes.iter().any(|change| change.before == Before::TooLarge) {
            return Ok(None);
        }
        let mut told = changes.clone();
        for change in told.changes.iter_mut().filter(|change| change.before == Before::TooLarge) {
            change.before = match self.client.value_before(changes.commit_ts, change).await? {
                Some(value) => Before::Value(value),
                None => Before::Absent,
            };
        }
        Ok(Some(told))
    }

    /// Writes a step, or, where it only says that time has passed, keeps that in mind.
    async fn keep(&self, place: &mut Place, step: Step) -> Result<(), End> {
        let is_same_state =
            step.next().state == place.checkpoint.state && place.checkpoint.state == State::Ready;
        if step.is_empty() && is_same_state && place.at.elapsed() < IDLE {
            place.checkpoint = step.next().clone();
            self.tell(place);
            return Ok(());
        }
        self.write(place, step).await
    }

    async fn write(&self, place: &mut Place, step: Step) -> Result<(), End> {
        let deadline = Instant::now() + WRITE_WITHIN;
        let start = self.start(place, deadline).await?;
        let groups: Vec<Bytes> = step.groups().cloned().collect();
        let stored = match groups.is_empty() {
            true => BTreeMap::new(),
            false => {
                let (_, records) = self.store.read(&groups, ReadAt::Snapshot(start), deadline).await?;
                let found = groups.into_iter().zip(records);
                found.filter_map(|(key, record)| Some((key, record?.value))).collect()
            }
        };
        let (writes, checkpoint) = step.writes(&stored)?;
        let mut reads = vec![self.checkpoint_key()];
        if bugs::on(Bug::IndexForgetsCheckpoint) {
            reads.clear();
        }
        match self.store.commit(start, reads, writes, deadline).await {
            Ok(committed) => {
                *place = Place { committed, checkpoint, at: Instant::now() };
                self.tell(place);
                Ok(())
            }
            // Another projector was here, or an earlier transaction of this one took effect after all.
            Err(error) if error.kind == ErrorKind::Conflict => Err(End::Elsewhere),
            Err(error) => Err(error.into()),
        }
    }

    /// The timestamp that a transaction begins at: the checkpoint is as believed as of then.
    async fn start(&self, place: &Place, deadline: Instant) -> Result<Timestamp, End> {
        if place.at.elapsed() < START_AGE {
            return Ok(place.committed);
        }
        let recent = self.store.recent(Duration::from_secs(1)).await?.max(place.committed);
        let key = self.checkpoint_key();
        let (start, found) = self.store.read(&[key], ReadAt::Snapshot(recent), deadline).await?;
        match found.into_iter().next().flatten() {
            Some(record) if record.commit_ts == place.committed => Ok(start),
            _ => Err(End::Elsewhere),
        }
    }

    fn tell(&self, place: &Place) {
        let halted = match &place.checkpoint.state {
            State::Halted { key, commit_ts, reason } => Some(wire::halted(key, *commit_ts, reason)),
            State::Building | State::Ready => None,
        };
        let (checkpoint_ts, mut watermark) = (place.committed, place.checkpoint.watermark);
        if bugs::on(Bug::IndexWatermarkAhead) {
            watermark = watermark.max(*self.wanted.borrow());
        }
        self.told.send_replace(Told { checkpoint_ts, watermark, halted, failing: None });
    }

    async fn obey(&self, place: &mut Place, order: Order) -> Result<(), End> {
        let answer = match &order {
            Order::Resume(_, answer) | Order::Replay(answer) => answer,
        };
        if answer.is_closed() {
            // Whoever asked has given up, and may ask for something else.
            return Ok(());
        }
        let (done, answer) = match order {
            Order::Resume(resume, answer) => (self.resume(place, &resume).await, answer),
            Order::Replay(answer) => (self.replay(place).await, answer),
        };
        let (told, end) = match done {
            Ok(()) => (Ok(()), Ok(())),
            // What is not known to be done shows in the checkpoint.
            Err(End::Failed(error)) if error.kind == ErrorKind::Undetermined => {
                (Err(error), Err(End::Elsewhere))
            }
            Err(End::Failed(error) | End::Behind(error)) => (Err(error), Ok(())),
            Err(end @ (End::Elsewhere | End::Gone)) => {
                (Err(Error::unavailable("the index is kept up elsewhere now: try again")), Err(end))
            }
        };
        // Whoever asked may have gone by now.
        let _ = answer.send(told);
        end
    }

    /// Goes on where it has halted; elsewhere that was done already.
    async fn resume(&self, place: &mut Place, resume: &v1::ResumeVersion) -> Result<(), End> {
        let mut checkpoint = place.checkpoint.clone();
        match &checkpoint.state {
            State::Halted { key, commit_ts, .. }
                if *key == resume.halted_key && commit_ts.0 == resume.halted_ts => {}
            _ => return Ok(()),
        }
        checkpoint.resume(resume.without);
        self.write(place, Step::new(self.definition.clone(), checkpoint)).await
    }

    /// Takes in again, as they are at the watermark, the rows with dead letters.
    async fn replay(&self, place: &mut Place) -> Result<(), End> {
        let watermark = place.checkpoint.watermark;
        if watermark == Timestamp::ZERO {
            return Err(Error::unavailable("the index is still being built: try again once it is").into());
        }
        let whole = dead_letters(self.definition.id(), self.definition.version());
        let prefix_bytes = whole.start.len();
        let mut range = whole;
        let at = ReadAt::Snapshot(place.committed);
        loop {
            let deadline = Instant::now() + WRITE_WITHIN;
            let page = self.store.page(range.clone(), Direction::Forward, at, 500, deadline).await?;
            let mut step = Step::new(self.definition.clone(), place.checkpoint.clone());
            for (key, record) in &page.rows {
                DeadLetter::decode(&record.value)?;
                let key = key.slice(prefix_bytes..);
                let row = self.client.get_at(&key, watermark).await?;
                step.replay(&key, row.as_ref().map(|row| &row.value))?;
                if step.size_bytes() > STEP_BYTES {
                    let next = Step::new(self.definition.clone(), place.checkpoint.clone());
                    self.write(place, std::mem::replace(&mut step, next)).await?;
                    step = Step::new(self.definition.clone(), place.checkpoint.clone());
                }
            }
            if !step.is_empty() {
                self.write(place, step).await?;
            }
            match page.next {
                Some(next) => range.start = next,
                None => return Ok(()),
            }
        }
    }
}
