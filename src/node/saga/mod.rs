//! The edge of sagas: stores what the machine in `saga/` decides, hands out tasks, keeps time.
//!
//! The node that leads a shard of sagas runs an `engine` for it; `engines` starts and stops them. `transition` is the one way
//! by which a saga changes: a transaction that reads where the saga was. `own_writes` tells
//! what others have written. `queues` has tasks and workers that wait for each
//! other, `timers` what is due when, `schedules` starts sagas again and again, `letters` what sagas tell each other, `forget` ends what has ended long ago.
//! `starts` begins sagas, `commits` is what transactions of users do to them; `catalogue` keeps definitions, at the leader of the system shard,
//! and `definitions` what this node knows of them; `reads` answers on any replica; `wire` is how all of it travels.

mod catalogue;
mod clock;
mod commits;
mod definitions;
mod engine;
mod engines;
mod forget;
mod letters;
mod mistakes;
mod own_writes;
mod queues;
mod reads;
mod schedules;
mod starts;
mod timers;
mod transition;
mod wire;

pub use catalogue::Catalogue;
pub use commits::add as add_to_commit;
pub use engines::{Engines, run};

use bytes::Bytes;
use tokio::time::{Duration, Instant};

use self::engine::Engine;
use self::transition::Happened;
use crate::rpc::convert::failure_from_proto;
use crate::rpc::v1;
use crate::rpc::v1::saga_reply::What as Reply;
use crate::rpc::v1::saga_request::What;
use crate::rpc::v1::saga_task_end::What as End;
use crate::saga::{Event, Parent, Signal, Token, check_id, check_name};
use crate::types::{Error, Result, Timestamp, limits};

/// The longest reason that is kept, in characters.
const MAX_REASON: usize = 1_000;

/// Serves a request about sagas.
///
/// # Errors
///
/// `Moved` where this node has no replica of the shard that holds `place`, or does not lead it where that is needed; those
/// of what is asked.
pub async fn serve(engines: &Engines, place: Bytes, what: What, deadline: Instant) -> Result<v1::SagaReply> {
    let readings = || engines.readings(deadline);
    let reply = match what {
        What::Get(get) => Reply::View(readings()?.view(checked(&get.id)?, get.with_payloads).await?),
        What::History(page) => Reply::Records(readings()?.history(checked(&page.id)?, page.from).await?),
        What::List(page) => Reply::Page(readings()?.list(&place, page).await?),
        What::Schedules(_) => Reply::Schedules(readings()?.schedules(&place).await?),
        What::HeldLease(lease) => {
            let at = Timestamp(lease.at_ts);
            commits::check_lease(engines, &lease.token, lease.output_bytes, at, deadline).await?;
            Reply::Done(v1::SagaDone::default())
        }
        What::Free(free) => {
            let id = free.start.map(|start| start.id).unwrap_or_default();
            commits::check_free(engines.rows(), &id, Timestamp(free.at_ts), deadline).await?;
            Reply::Done(v1::SagaDone::default())
        }
        What::Wait(wait) => {
            let engine = engines.of(&place)?;
            engine.check_holds(&wait.id)?;
            let until = deadline.min(Instant::now() + Duration::from_millis(wait.wait_ms));
            engine.wait_for_end(checked(&wait.id)?, until).await?;
            Reply::View(readings()?.view(&wait.id, true).await?)
        }
        What::Take(take) => {
            check_name("the queue", &take.queue)?;
            Reply::Tasks(engines.of(&place)?.take(&take, deadline).await?)
        }
        what => {
            let engine = engines.of(&place)?;
            let event = match what {
                What::Control(control) => {
                    let event = event_of_control(engines, &control, deadline).await?;
                    Ask::Happen(control.id, event)
                }
                what => ask_of(what)?,
            };
            // What was begun is ended, also where whoever asked has gone: workers may be waiting for what comes of it.
            let asked = tokio::spawn(async move { serve_engine(&engine, event, deadline).await });
            asked
                .await
                .map_err(|error| Error::undetermined(format!("the saga's engine failed: {error}")))??
        }
    };
    Ok(v1::SagaReply { what: Some(reply) })
}

/// What only the leader's engine can do.
enum Ask {
    /// Start a saga, perhaps as a step of another one.
    Start(v1::SagaStart, Option<Parent>),
    /// Let this happen to a saga.
    Happen(String, Event),
    /// Let this happen to a saga that is a step of another one.
    HappenToChild(String, Parent, Event),
    /// Make or change a schedule.
    PutSchedule(v1::SagaSchedule),
    /// Drop a schedule.
    DropSchedule(String),
    /// Start a run of a schedule, once for a request.
    TriggerSchedule(String, u128),
}

impl Ask {
    /// What it is about: the id of a saga, or the name of a schedule.
    fn about(&self) -> &str {
        match self {
            Self::Start(start, _) => &start.id,
            Self::PutSchedule(schedule) => &schedule.name,
            Self::Happen(name, _)
            | Self::HappenToChild(name, _, _)
            | Self::DropSchedule(name)
            | Self::TriggerSchedule(name, _) => name,
        }
    }
}

fn ask_of(what: What) -> Result<Ask> {
    Ok(match what {
        What::Start(start) => Ask::Start(start, None),
        What::End(end) => {
            let (id, event) = event_of_end(end)?;
            Ask::Happen(id, event)
        }
        What::Signal(signal) => {
            let (id, event) = event_of_signal(signal)?;
            Ask::Happen(id, event)
        }
        What::ChildClosed(closed) => {
            let (parent, token) = Token::from_text(&closed.token)?;
            let outcome = wire::outcome_of_name(&closed.outcome)
                .ok_or_else(|| Error::invalid(format!("{:?} is no end of a saga", closed.outcome)))?;
            let created_ms = closed.parent_created_unix_ms;
            Ask::Happen(parent, Event::ChildClosed { token, created_ms, outcome, output: closed.output })
        }
        What::StartChild(child) => ask_of_child(child)?,
        What::PutSchedule(schedule) => Ask::PutSchedule(schedule),
        What::DropSchedule(name) => Ask::DropSchedule(name),
        What::TriggerSchedule(trigger) => {
            let request = request_of("request_id", &trigger.request_id)?;
            Ask::TriggerSchedule(trigger.name, request)
        }
        What::Get(_)
        | What::History(_)
        | What::List(_)
        | What::HeldLease(_)
        | What::Free(_)
        | What::Wait(_)
        | What::Take(_)
        | What::Control(_)
        | What::Schedules(_) => {
            return Err(Error::corrupt("the request is none that is for the leader's engine alone"));
        }
    })
}

fn ask_of_child(child: v1::SagaChildStart) -> Result<Ask> {
    let start = child.start.ok_or_else(|| Error::invalid("the child has no start"))?;
    let reason = format!("its parent {} has ended or goes back", child.parent);
    let (_, token) = Token::from_text(&child.token)?;
    let parent = Parent { id: child.parent, created_ms: child.parent_created_unix_ms, token };
    Ok(match child.end.as_str() {
        "" => Ask::Start(start, Some(parent)),
        "cancel" => Ask::HappenToChild(start.id, parent, Event::Cancel { reason }),
        "terminate" => Ask::HappenToChild(start.id, parent, Event::Terminate { reason }),
        other => return Err(Error::invalid(format!("{other:?} is no end of a child saga"))),
    })
}

async fn serve_engine(engine: &Engine, ask: Ask, deadline: Instant) -> Result<Reply> {
    engine.check_holds(ask.about())?;
    let (id, event) = match ask {
        Ask::Start(start, parent) => {
            return Ok(Reply::Started(engine.start(&start, parent, deadline).await?));
        }
        Ask::Happen(id, event) => (id, event),
        Ask::HappenToChild(id, parent, event) => {
            engine.check_child(&id, &parent, deadline).await?;
            (id, event)
        }
        Ask::PutSchedule(schedule) => {
            return Ok(Reply::Schedules(engine.put_schedule(schedule, deadline).await?));
        }
        Ask::DropSchedule(name) => {
            return Ok(Reply::Schedules(engine.drop_schedule(&name, deadline).await?));
        }
        Ask::TriggerSchedule(name, request) => {
            return Ok(Reply::Schedules(engine.trigger_schedule(&name, request, deadline).await?));
        }
    };
    Ok(done(engine.happen(&id, event, deadline).await?))
}

fn done(happened: Happened) -> Reply {
    Reply::Done(v1::SagaDone {
        already: happened.already,
        cancel_requested: happened.cancel_requested,
        recorded: happened.recorded,
    })
}

fn checked(id: &str) -> Result<&str> {
    check_id(id).map(|()| id)
}

fn check_payload(what: &str, bytes: usize) -> Result<()> {
    if bytes > limits::MAX_SAGA_PAYLOAD_BYTES {
        return Err(Error::invalid(format!(
            "{what} has {bytes} bytes, over the limit of {}: store it under a key of its own, and hand on the key",
            limits::MAX_SAGA_PAYLOAD_BYTES
        )));
    }
    Ok(())
}

fn event_of_end(end: v1::SagaTaskEnd) -> Result<(String, Event)> {
    let (id, token) = Token::from_text(&end.token)?;
    let event = match end.what {
        Some(End::Output(output)) => {
            check_payload("the output", output.len())?;
            Event::Complete { token, output, is_committed: false }
        }
        Some(End::Failure(failure)) => Event::Fail { token, failure: failure_from_proto(failure) },
        Some(End::Heartbeat(_)) => Event::Heartbeat { token },
        None => {
            return Err(Error::invalid(
                "it is not said how the task ended: set one of output, failure, heartbeat",
            ));
        }
    };
    Ok((id, event))
}

fn event_of_signal(signal: v1::SagaSignal) -> Result<(String, Event)> {
    check_id(&signal.id)?;
    check_name("the signal", &signal.name)?;
    check_payload("the signal", signal.payload.len())?;
    let id = request_of("signal_id", &signal.signal_id)?;
    Ok((signal.id, Event::Signal(Signal { id, name: signal.name, payload: signal.payload })))
}

/// What names a request; another name each time where it has none.
fn request_of(field: &str, id: &[u8]) -> Result<u128> {
    if id.is_empty() {
        return Ok(rand::random());
    }
    let bytes = id.try_into();
    bytes
        .map(u128::from_be_bytes)
        .map_err(|_| Error::invalid(format!("{field} has {} bytes: give 16 random ones, or none", id.len())))
}

async fn event_of_control(engines: &Engines, control: &v1::SagaControl, deadline: Instant) -> Result<Event> {
    check_id(&control.id)?;
    let reason = || control.reason.chars().take(MAX_REASON).collect::<String>();
    let step = async |is_needed: bool| -> Result<Option<usize>> {
        if control.step.is_empty() && !is_needed {
            return Ok(None);
        }
        engines.readings(deadline)?.step_of(&control.id, &control.step).await.map(Some)
    };
    let request = request_of("request_id", &control.request_id)?;
    let event = match control.action.as_str() {
        "cancel" => Event::Cancel { reason: reason() },
        "terminate" => Event::Terminate { reason: reason() },
        "pause" => Event::Pause { reason: reason() },
        "resume" => Event::Resume,
        "retry" => Event::Retry { step: step(false).await? },
        "resolve" => {
            let step = step(true).await?.unwrap_or_default();
            Event::Resolve { step, is_done: control.is_done }
        }
        "reset" => Event::Reset { step: step(true).await?.unwrap_or_default() },
        other => {
            return Err(Error::invalid(format!(
                "{other:?} is nothing that can be done to a saga: say one of cancel, terminate, pause, resume, retry, \
                 resolve, reset"
            )));
        }
    };
    Ok(Event::Once { request, event: Box::new(event) })
}
