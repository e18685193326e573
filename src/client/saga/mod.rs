//! Sagas: their definitions, starting and steering them, and where they are. `worker` does their tasks.

mod list;
pub mod measures;
mod task;
mod worker;

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

use super::Client;
use super::request::{Asked, mismatched};
use super::router::{Place, Target};
use crate::codec::keyspace;
use crate::rpc::v1::saga_catalogue_request::What as Catalogue;
use crate::rpc::v1::saga_reply::What as Answer;
use crate::rpc::v1::saga_request::What as Ask;
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request;
use crate::rpc::v1::{self, SagaControl, SagaDone};
use crate::saga::Definition;
use crate::types::{Error, Result};

pub use crate::rpc::v1::{
    SagaDefinition, SagaFilter, SagaQueue, SagaRecord, SagaSchedule, SagaStart, SagaStarted, SagaTask,
    SagaTasks, SagaView,
};
pub use list::SagaList;
pub use task::Task;
pub use worker::{SagaWorker, WorkerStats};

/// How long one question waits for a saga's end, at most; then it is asked again.
const WAIT: Duration = Duration::from_secs(30);

impl SagaStart {
    /// A saga of the newest version of a definition, under an id that no other saga has.
    ///
    /// ```
    /// use kvorum::client::SagaStart;
    ///
    /// let start = SagaStart::new("trip", "trip-17").input("Rome").attribute("customer", "42");
    /// # assert_eq!(start.version, 0);
    /// ```
    pub fn new(name: impl Into<String>, id: impl Into<String>) -> Self {
        Self { name: name.into(), id: id.into(), ..Self::default() }
    }

    /// Of this version of the definition.
    #[must_use]
    pub fn version(self, version: u32) -> Self {
        Self { version, ..self }
    }

    /// What workers get with each task.
    #[must_use]
    pub fn input(self, input: impl Into<Bytes>) -> Self {
        Self { input: input.into(), ..self }
    }

    /// What workers get with each task, as JSON.
    ///
    /// # Errors
    ///
    /// `Invalid` where it can't be written as JSON.
    pub fn input_json<T: Serialize + ?Sized>(self, input: &T) -> Result<Self> {
        Ok(self.input(task::to_json(input)?))
    }

    /// What it is found by.
    #[must_use]
    pub fn attribute(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.insert(name.into(), value.into());
        self
    }

    /// 0 to 9: where tasks wait for workers, those of larger ones go first.
    #[must_use]
    pub fn priority(self, priority: u32) -> Self {
        Self { priority, ..self }
    }
}

impl Client {
    /// Adds a version of a saga's definition. The same one again is no error.
    ///
    /// # Errors
    ///
    /// `Invalid` where the version has another definition.
    pub async fn define_saga(&self, definition: &Definition) -> Result<SagaDefinition> {
        self.define_saga_json(&definition.to_json()).await
    }

    /// Adds a version of a saga's definition, written in JSON.
    ///
    /// # Errors
    ///
    /// `Invalid` where it makes no sense, or the version has another definition.
    pub async fn define_saga_json(&self, json: &str) -> Result<SagaDefinition> {
        let defined = self.about_definitions(Catalogue::Define(json.to_owned())).await?.definitions;
        defined.into_iter().next().ok_or_else(|| Error::corrupt("a node answered without the definition"))
    }

    /// All versions of a saga's definition; of all sagas where the name is empty.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the cluster does not answer by the client's deadline.
    pub async fn saga_definitions(&self, name: &str) -> Result<Vec<SagaDefinition>> {
        Ok(self.about_definitions(Catalogue::Find(name.to_owned())).await?.definitions)
    }

    /// Sets how many tasks a second a queue hands out, over the whole cluster; 0 is no limit.
    ///
    /// # Errors
    ///
    /// `Invalid` for a wrong name or rate.
    pub async fn set_saga_queue(&self, name: &str, rate_per_s: f64) -> Result<()> {
        let queue = SagaQueue { name: name.to_owned(), rate_per_s };
        self.about_definitions(Catalogue::SetQueue(queue)).await.map(drop)
    }

    /// All queues that have a limit.
    ///
    /// # Errors
    ///
    /// As for [`saga_definitions`](Self::saga_definitions).
    pub async fn saga_queues(&self) -> Result<Vec<SagaQueue>> {
        Ok(self.about_definitions(Catalogue::Queues(true)).await?.queues)
    }

    /// Starts a saga. Repeated with the same id, definition and input it is the same start. To start one together with other
    /// writes, see [`Txn::start_saga`](super::Txn::start_saga).
    ///
    /// # Errors
    ///
    /// `Invalid` where there is no such definition, or the id is another saga's.
    pub async fn start_saga(&self, start: SagaStart) -> Result<SagaStarted> {
        let id = start.id.clone();
        match self.about_saga(&id, Ask::Start(start)).await? {
            Answer::Started(started) => Ok(started),
            _ => Err(unfit()),
        }
    }

    /// Where a saga is, with its input and what its steps came to.
    ///
    /// # Errors
    ///
    /// `Invalid` where there is none of the id.
    pub async fn saga(&self, id: &str) -> Result<SagaView> {
        self.saga_with(id, true).await
    }

    /// The same, with payloads only where they are wanted.
    pub(crate) async fn saga_with(&self, id: &str, with_payloads: bool) -> Result<SagaView> {
        view(self.about_saga(id, Ask::Get(v1::SagaGet { id: id.to_owned(), with_payloads })).await?)
    }

    /// Waits until a saga has ended: until the client's deadline. Answers where it is then, ended or not.
    ///
    /// # Errors
    ///
    /// As for [`saga`](Self::saga).
    pub async fn wait_for_saga(&self, id: &str) -> Result<SagaView> {
        let until = self.deadline.until()?;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Asked for less than there is time for, so that the answer comes in time.
            let wait = left.saturating_sub(left / 10).min(WAIT);
            let ask = v1::SagaWait { id: id.to_owned(), wait_ms: wait.as_millis() as u64 };
            let asking = self.with_deadline_at(until.into_std());
            let found = view(asking.about_saga(id, Ask::Wait(ask)).await?)?;
            if found.closed_unix_ms > 0 || left < Duration::from_millis(50) {
                return Ok(found);
            }
        }
    }

    /// Lines of a saga's history, from one on; the second is where to go on, where there may be more.
    ///
    /// # Errors
    ///
    /// As for [`saga`](Self::saga).
    pub async fn saga_history(&self, id: &str, from: u64) -> Result<(Vec<SagaRecord>, Option<u64>)> {
        match self.about_saga(id, Ask::History(v1::SagaHistoryPage { id: id.to_owned(), from })).await? {
            Answer::Records(page) => Ok((page.records, page.next)),
            _ => Err(unfit()),
        }
    }

    /// Sends a signal to a saga. It is kept until a step waits for it.
    ///
    /// # Errors
    ///
    /// `Invalid` where there is none of the id, or it has ended.
    pub async fn signal_saga(&self, id: &str, name: &str, payload: impl Into<Bytes>) -> Result<()> {
        let (id, name, payload) = (id.to_owned(), name.to_owned(), payload.into());
        self.send_signal(v1::SagaSignal { id, name, payload, ..v1::SagaSignal::default() }).await.map(drop)
    }

    /// Sends a signal. One without an id gets one: what is sent again on the way is one signal.
    pub(crate) async fn send_signal(&self, mut signal: v1::SagaSignal) -> Result<SagaDone> {
        set_id(&mut signal.signal_id);
        let id = signal.id.clone();
        done(self.about_saga(&id, Ask::Signal(signal)).await?)
    }

    /// Ends a saga, and undoes what it did. Answers whether that changed anything: not where it goes back already.
    ///
    /// # Errors
    ///
    /// `Invalid` where there is none of the id, it has ended otherwise, or its pivot is done.
    pub async fn cancel_saga(&self, id: &str, reason: &str) -> Result<bool> {
        self.control(id, "cancel", reason).await
    }

    /// Ends a saga as it stands: what it did is not undone. Answers whether that changed anything.
    ///
    /// # Errors
    ///
    /// `Invalid` where there is none of the id, or it has ended otherwise.
    pub async fn terminate_saga(&self, id: &str, reason: &str) -> Result<bool> {
        self.control(id, "terminate", reason).await
    }

    /// Has a saga stand still: no task is handed out any more. Answers whether that changed anything.
    ///
    /// # Errors
    ///
    /// `Invalid` where there is none of the id, or it has ended.
    pub async fn pause_saga(&self, id: &str, reason: &str) -> Result<bool> {
        self.control(id, "pause", reason).await
    }

    /// Has a saga go on that was paused. Answers whether that changed anything.
    ///
    /// # Errors
    ///
    /// `Invalid` where there is none of the id, or it stands still because of something else.
    pub async fn resume_saga(&self, id: &str) -> Result<bool> {
        self.control(id, "resume", "").await
    }

    /// Has what waits for another attempt, or has failed for good and must be done, tried now: of one step, or of all.
    ///
    /// # Errors
    ///
    /// `Invalid` where there is nothing of the kind.
    pub async fn retry_saga(&self, id: &str, step: Option<&str>) -> Result<()> {
        let step = step.unwrap_or_default().to_owned();
        self.send_control(SagaControl { step, ..control_of(id, "retry") }).await.map(drop)
    }

    /// Says what became of a step that the saga can't go on with: whether its pivot took effect, or that what has failed
    /// for good was done by other means.
    ///
    /// # Errors
    ///
    /// `Invalid` where the saga does not wait to be told about the step.
    pub async fn resolve_saga(&self, id: &str, step: &str, is_done: bool) -> Result<()> {
        let control = SagaControl { step: step.to_owned(), is_done, ..control_of(id, "resolve") };
        self.send_control(control).await.map(drop)
    }

    /// Undoes what a saga did since a step, and that step, and has it go forward from there again.
    ///
    /// # Errors
    ///
    /// `Invalid` where it has not come to the step, its pivot is done, or it has ended.
    pub async fn reset_saga(&self, id: &str, step: &str) -> Result<()> {
        let control = SagaControl { step: step.to_owned(), ..control_of(id, "reset") };
        self.send_control(control).await.map(drop)
    }

    /// Makes a schedule, or changes it; answers what it is. Its runs are sagas whose ids are made of its name and the time.
    ///
    /// # Errors
    ///
    /// `Invalid` where it makes no sense, or there is no such saga.
    pub async fn put_saga_schedule(&self, schedule: SagaSchedule) -> Result<SagaSchedule> {
        let name = schedule.name.clone();
        let put = schedules(self.about_saga(&name, Ask::PutSchedule(schedule)).await?)?;
        put.schedules.into_iter().next().ok_or_else(unfit)
    }

    /// All schedules.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the cluster does not answer by the client's deadline.
    pub async fn saga_schedules(&self) -> Result<Vec<SagaSchedule>> {
        let (mut all, mut next) = (Vec::new(), Some(keyspace::saga_range().start));
        while let Some(place) = next.take() {
            let page = schedules(self.about_sagas_at(&place, Ask::Schedules(true)).await?)?;
            all.extend(page.schedules);
            next = Some(page.next).filter(|next| !next.is_empty());
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Drops a schedule; what it has started goes on. Answers whether there was one.
    ///
    /// # Errors
    ///
    /// As for [`saga_schedules`](Self::saga_schedules).
    pub async fn drop_saga_schedule(&self, name: &str) -> Result<bool> {
        Ok(schedules(self.about_saga(name, Ask::DropSchedule(name.to_owned())).await?)?.existed)
    }

    /// Starts a run of a schedule now, whatever its time.
    ///
    /// # Errors
    ///
    /// `Invalid` where there is none of the name.
    pub async fn trigger_saga_schedule(&self, name: &str) -> Result<()> {
        self.trigger_schedule(v1::SagaTrigger { name: name.to_owned(), ..v1::SagaTrigger::default() }).await
    }

    /// Starts a run of a schedule. A request without an id gets one: what is sent again on the way is one run.
    pub(crate) async fn trigger_schedule(&self, mut trigger: v1::SagaTrigger) -> Result<()> {
        set_id(&mut trigger.request_id);
        let name = trigger.name.clone();
        schedules(self.about_saga(&name, Ask::TriggerSchedule(trigger)).await?).map(drop)
    }

    async fn control(&self, id: &str, action: &str, reason: &str) -> Result<bool> {
        let control = SagaControl { reason: reason.to_owned(), ..control_of(id, action) };
        Ok(!self.send_control(control).await?.already)
    }

    /// Does something to a saga. A request without an id gets one: what is sent again on the way is done once.
    pub(crate) async fn send_control(&self, mut control: SagaControl) -> Result<SagaDone> {
        set_id(&mut control.request_id);
        let id = control.id.clone();
        done(self.about_saga(&id, Ask::Control(control)).await?)
    }

    /// Sends a request about a saga to the leader of its shard, again where it has no answer. None does anything the second
    /// time.
    pub(crate) async fn about_saga(&self, id: &str, what: Ask) -> Result<Answer> {
        self.about_sagas_at(&keyspace::saga_row(id, keyspace::SAGA_OPEN, &[]), what).await
    }

    /// Sends a request about sagas to the leader of the shard that holds a place; see [`about_saga`](Self::about_saga).
    pub(crate) async fn about_sagas_at(&self, place: &Bytes, what: Ask) -> Result<Answer> {
        let build = |header, _: &Target| {
            let request =
                v1::SagaRequest { header: Some(header), place: place.clone(), what: Some(what.clone()) };
            Ok(Request::Saga(Box::new(request)))
        };
        let asked = Asked { place: Place::Internal(place), build: &build, fresh: false, read: None };
        let reply = match changes_something(&what) {
            true => self.ask_to_do(asked).await?,
            false => self.ask(asked).await?,
        };
        match reply {
            Reply::Saga(reply) => reply.what.ok_or_else(unfit),
            other => Err(mismatched(&other)),
        }
    }

    /// Sends a request about definitions to the leader of the system shard. All of them may be repeated.
    pub(crate) async fn about_definitions(&self, what: Catalogue) -> Result<v1::SagaCatalogueReply> {
        let build = |header, _: &Target| {
            let request = v1::SagaCatalogueRequest { header: Some(header), what: Some(what.clone()) };
            Ok(Request::SagaCatalogue(request))
        };
        let asked = Asked { place: Place::System, build: &build, fresh: false, read: None };
        match self.ask(asked).await? {
            Reply::SagaCatalogue(reply) => Ok(reply),
            other => Err(mismatched(&other)),
        }
    }

    /// Where the shards begin that sagas are spread over, by the map as it is known.
    pub(crate) async fn saga_places(&self) -> Result<Vec<Bytes>> {
        let range = keyspace::saga_range();
        let known = self.shared.map.router().starts_in(&range);
        if !known.is_empty() {
            return Ok(known);
        }
        self.map().await?;
        Ok(self.shared.map.router().starts_in(&range))
    }
}

/// Whether a request changes something, so that its fate is unknown where it has no answer. Tasks that were taken and did
/// not arrive are handed out again.
fn changes_something(what: &Ask) -> bool {
    match what {
        Ask::Start(_)
        | Ask::Signal(_)
        | Ask::Control(_)
        | Ask::End(_)
        | Ask::ChildClosed(_)
        | Ask::StartChild(_)
        | Ask::PutSchedule(_)
        | Ask::DropSchedule(_)
        | Ask::TriggerSchedule(_) => true,
        Ask::Get(_)
        | Ask::Wait(_)
        | Ask::History(_)
        | Ask::Take(_)
        | Ask::List(_)
        | Ask::HeldLease(_)
        | Ask::Free(_)
        | Ask::Schedules(_) => false,
    }
}

/// Names a request that has no name yet.
fn set_id(id: &mut Bytes) {
    if id.is_empty() {
        *id = Bytes::copy_from_slice(&rand::random::<[u8; 16]>());
    }
}

fn control_of(id: &str, action: &str) -> SagaControl {
    SagaControl { id: id.to_owned(), action: action.to_owned(), ..SagaControl::default() }
}

fn view(answer: Answer) -> Result<SagaView> {
    match answer {
        Answer::View(view) => Ok(view),
        _ => Err(unfit()),
    }
}

fn schedules(answer: Answer) -> Result<v1::SagaSchedules> {
    match answer {
        Answer::Schedules(schedules) => Ok(schedules),
        _ => Err(unfit()),
    }
}

fn done(answer: Answer) -> Result<SagaDone> {
    match answer {
        Answer::Done(done) => Ok(done),
        _ => Err(unfit()),
    }
}

/// The error of an answer that does not fit what was asked.
fn unfit() -> Error {
    Error::undetermined("the node answered something about sagas that does not fit the request")
}
