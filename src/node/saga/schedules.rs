//! Schedules: each is looked after by the engine of the shard that its name belongs to.

use bytes::Bytes;
use tokio::time::Instant;

use super::engine::{Engine, WITHIN};
use crate::codec::{self, keyspace};
use crate::rpc::v1;
use crate::rpc::v1::saga_request::What;
use crate::saga::{Overlap, Plan, Run, Schedule, check_name};
use crate::types::{Error, ErrorKind, ReadAt, Result, TxnWrite, limits};

/// Stands before a schedule's name among the ids of what is due: no saga's id has a control character.
const MARK: char = '\u{1}';
/// How often a change is made anew because somebody else has changed the schedule.
const ATTEMPTS: usize = 20;

/// The name of the schedule that an id among those that are due means, if it is one's.
pub(super) fn name_of(due: &str) -> Option<&str> {
    due.strip_prefix(MARK)
}

fn key_of(name: &str) -> Bytes {
    keyspace::saga_row(name, keyspace::SAGA_SCHEDULE, &[])
}

/// A schedule from its row.
///
/// # Errors
///
/// `Corrupt` where that is none.
pub(super) fn decode(value: &[u8]) -> Result<Schedule> {
    codec::decode(value, "a schedule of sagas")
}

/// A schedule as a message.
pub(super) fn to_proto(name: &str, schedule: &Schedule) -> v1::SagaSchedule {
    let plan = &schedule.plan;
    v1::SagaSchedule {
        name: name.to_owned(),
        cron: plan.cron.clone(),
        time_zone: plan.time_zone.clone(),
        start: Some(v1::SagaStart {
            name: plan.saga.clone(),
            version: plan.version,
            input: plan.input.clone(),
            attributes: plan.attributes.clone().into_iter().collect(),
            priority: u32::from(plan.priority),
            ..v1::SagaStart::default()
        }),
        overlap: plan.overlap.name().to_owned(),
        paused: plan.is_paused,
        next_unix_ms: schedule.next_ms.filter(|_| !plan.is_paused).unwrap_or_default(),
        last_id: schedule.last_id.clone().unwrap_or_default(),
        runs: schedule.runs,
        skipped: schedule.skipped,
    }
}

fn plan_of(asked: &v1::SagaSchedule) -> Result<Plan> {
    check_name("the schedule", &asked.name)?;
    let start = asked.start.clone().unwrap_or_default();
    if start.priority > limits::MAX_SAGA_PRIORITY {
        return Err(Error::invalid(format!(
            "the priority is {}: say 0 to {}",
            start.priority,
            limits::MAX_SAGA_PRIORITY
        )));
    }
    // What its runs will be refused for is refused now.
    super::starts::check_start(&v1::SagaStart { id: "run".to_owned(), ..start.clone() })?;
    let plan = Plan {
        cron: asked.cron.clone(),
        time_zone: asked.time_zone.clone(),
        saga: start.name,
        version: start.version,
        input: start.input,
        attributes: start.attributes.into_iter().collect(),
        priority: start.priority as u8,
        overlap: Overlap::of_name(&asked.overlap)?,
        is_paused: asked.paused,
    };
    plan.check()?;
    Ok(plan)
}

/// A schedule is being looked at, as long as this lives.
struct Looking<'a> {
    engine: &'a Engine,
    name: &'a str,
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.engine.scheduling.lock().remove(self.name);
    }
}

impl Engine {
    /// Makes a schedule, or gives it another plan.
    ///
    /// # Errors
    ///
    /// `Invalid` where it makes no sense, or there is no such saga.
    pub async fn put_schedule(
        &self,
        asked: v1::SagaSchedule,
        deadline: Instant,
    ) -> Result<v1::SagaSchedules> {
        let plan = plan_of(&asked)?;
        self.definitions.get(&self.client, &plan.saga, plan.version).await?;
        let change = |old: Option<Schedule>, now_ms| match old {
            None => Schedule::new(plan.clone(), now_ms).map(Some),
            Some(mut schedule) => {
                schedule.replan(plan.clone(), now_ms)?;
                Ok(Some(schedule))
            }
        };
        let (existed, schedule) = self.change_schedule(&asked.name, change, deadline).await?;
        let schedules = schedule.iter().map(|schedule| to_proto(&asked.name, schedule)).collect();
        Ok(v1::SagaSchedules { schedules, existed, ..v1::SagaSchedules::default() })
    }

    /// Drops a schedule.
    ///
    /// # Errors
    ///
    /// Those of a read and of a commit.
    pub async fn drop_schedule(&self, name: &str, deadline: Instant) -> Result<v1::SagaSchedules> {
        check_name("the schedule", name)?;
        let (existed, _) = self.change_schedule(name, |_, _| Ok(None), deadline).await?;
        Ok(v1::SagaSchedules { existed, ..v1::SagaSchedules::default() })
    }

    /// Starts a run of a schedule now, once for each request.
    ///
    /// # Errors
    ///
    /// `Invalid` where there is none of the name; `Unavailable` while another run is being started.
    pub async fn trigger_schedule(
        &self,
        name: &str,
        request: u128,
        deadline: Instant,
    ) -> Result<v1::SagaSchedules> {
        check_name("the schedule", name)?;
        let trigger = |old: Option<Schedule>, now_ms| {
            let mut schedule = old
                .ok_or_else(|| Error::invalid(format!("there is no schedule {name}: see which there are")))?;
            schedule.trigger(name, request, now_ms)?;
            Ok(Some(schedule))
        };
        let (existed, schedule) = self.change_schedule(name, trigger, deadline).await?;
        self.look_at_schedule_soon(name);
        let schedules = schedule.iter().map(|schedule| to_proto(name, schedule)).collect();
        Ok(v1::SagaSchedules { schedules, existed, ..v1::SagaSchedules::default() })
    }

    /// Has a schedule looked at now.
    pub(super) fn look_at_schedule_soon(&self, name: &str) {
        self.timers.set_at_most(&format!("{MARK}{name}"), 0);
    }

    /// Sets when a schedule is looked at next.
    pub(super) fn set_schedule(&self, name: &str, schedule: Option<&Schedule>) {
        // Somebody else may have changed it meanwhile, and set an earlier time: a look that comes too early does nothing.
        if let Some(at_ms) = schedule.and_then(|schedule| schedule.look_at_ms(self.clock.now_ms())) {
            self.timers.set_at_most(&format!("{MARK}{name}"), at_ms);
        }
    }

    /// Lets a schedule do what is due.
    ///
    /// # Errors
    ///
    /// Those of a read and of a commit; `Unavailable` where the run could not be started now.
    pub(super) async fn look_at_schedule(&self, name: &str, deadline: Instant) -> Result<()> {
        if !self.scheduling.lock().insert(name.to_owned()) {
            // Somebody does already, and may have looked at what was so before.
            self.look_again(&format!("{MARK}{name}"));
            return Ok(());
        }
        let _looking = Looking { engine: self, name };
        self.do_what_is_due(name, deadline).await
    }

    async fn do_what_is_due(&self, name: &str, deadline: Instant) -> Result<()> {
        let (_, found) = self.rows.read(&[key_of(name)], ReadAt::Latest, deadline).await?;
        let found = found.into_iter().flatten().next().map(|record| decode(&record.value)).transpose()?;
        let Some(schedule) = found else { return Ok(()) };
        if !schedule.is_due(self.clock.now_ms()) {
            self.set_schedule(name, Some(&schedule));
            return Ok(());
        }
        let last_is_open = self.is_open(schedule.last_id.as_deref()).await?;
        let due = |old: Option<Schedule>, now_ms| match old {
            None => Ok(None),
            // It is the end of another one that was looked for.
            Some(old) if old.last_id != schedule.last_id => Ok(Some(old)),
            Some(mut schedule) => {
                schedule.due(name, now_ms, last_is_open)?;
                Ok(Some(schedule))
            }
        };
        let (_, schedule) = self.change_schedule(name, due, deadline).await?;
        let Some(Schedule { starting: Some(run), plan, .. }) = schedule else { return Ok(()) };
        self.start_run(name, run, &plan, deadline).await
    }

    async fn start_run(&self, name: &str, run: Run, plan: &Plan, deadline: Instant) -> Result<()> {
        if let Some(cancels) = &run.cancels {
            match self.client.cancel_saga(cancels, "the next run of its schedule begins").await {
                // It has ended meanwhile, or can't go back any more.
                Err(error) if error.kind == ErrorKind::Invalid => {}
                cancelled => drop(cancelled?),
            }
        }
        let start = v1::SagaStart {
            id: run.id.clone(),
            name: plan.saga.clone(),
            version: plan.version,
            input: plan.input.clone(),
            attributes: plan.attributes.clone().into_iter().collect(),
            priority: u32::from(plan.priority),
        };
        match self.client.about_saga(&run.id, What::Start(start)).await {
            Err(error) if error.kind == ErrorKind::Invalid => {
                tracing::error!(schedule = name, id = run.id, %error, "a schedule's run can't be started");
            }
            started => drop(started?),
        }
        let started = |old: Option<Schedule>, _| {
            Ok(old.map(|mut schedule| {
                schedule.started(&run.id);
                schedule
            }))
        };
        self.change_schedule(name, started, deadline).await.map(drop)
    }

    async fn is_open(&self, id: Option<&str>) -> Result<bool> {
        let Some(id) = id else { return Ok(false) };
        match self.client.with_deadline(WITHIN).saga(id).await {
            Ok(saga) => Ok(saga.closed_unix_ms == 0),
            // It is forgotten, or could not be started.
            Err(error) if error.kind == ErrorKind::Invalid => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Changes a schedule, again until nobody else has meanwhile. Answers whether it was there, and what it is.
    async fn change_schedule(
        &self,
        name: &str,
        change: impl Fn(Option<Schedule>, u64) -> Result<Option<Schedule>>,
        deadline: Instant,
    ) -> Result<(bool, Option<Schedule>)> {
        let key = key_of(name);
        for _ in 0..ATTEMPTS {
            let (as_of, found) = self.rows.read(std::slice::from_ref(&key), ReadAt::Latest, deadline).await?;
            let old = found.into_iter().flatten().next().map(|record| decode(&record.value)).transpose()?;
            let new = change(old.clone(), self.clock.now_ms())?;
            let write = match &new {
                _ if new == old => None,
                Some(new) => Some(TxnWrite::Put { key: key.clone(), value: codec::encode(new).into() }),
                None => Some(TxnWrite::Delete { key: key.clone() }),
            };
            let written = match write {
                None => Ok(as_of),
                Some(write) => self.rows.commit(as_of, vec![key.clone()], vec![write], deadline).await,
            };
            match written {
                Ok(_) => {
                    self.set_schedule(name, new.as_ref());
                    return Ok((old.is_some(), new));
                }
                Err(error) if error.kind == ErrorKind::Conflict => {}
                Err(error) => {
                    // It may be stored all the same.
                    self.look_again(&format!("{MARK}{name}"));
                    return Err(error);
                }
            }
        }
        Err(Error::unavailable(format!("schedule {name} is changed by others all the time: try again")))
    }
}
