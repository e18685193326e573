//! Schedules: sagas that are started again and again, at times that a cron expression names in a time zone.
//!
//! A schedule is stored with the run that it is about to start, before that is started: so whoever looks after it next starts
//! the same one, by the same id, and no run is started twice, or forgotten.

use std::collections::BTreeMap;
use std::str::FromStr;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use chrono_tz::Tz;
use croner::Cron;
use serde::{Deserialize, Serialize};

use super::check_name;
use crate::types::{Error, Result, limits};

/// What becomes of a run whose time has come while the one before has not ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Overlap {
    /// There is none.
    #[default]
    Skip,
    /// It waits until that has ended; one at most does.
    Wait,
    /// They run side by side.
    Allow,
    /// The one before is cancelled, and both run until that is undone.
    Cancel,
}

impl Overlap {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Skip, Self::Wait, Self::Allow, Self::Cancel];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Wait => "wait",
            Self::Allow => "allow",
            Self::Cancel => "cancel",
        }
    }

    /// The one of a name; the default one for an empty name.
    ///
    /// # Errors
    ///
    /// `Invalid` for an unknown name.
    pub fn of_name(name: &str) -> Result<Self> {
        if name.is_empty() {
            return Ok(Self::default());
        }
        Self::ALL.into_iter().find(|one| one.name() == name).ok_or_else(|| {
            Error::invalid(format!(
                "overlap is {name:?}: say one of {}",
                Self::ALL.map(Self::name).join(", ")
            ))
        })
    }
}

/// What is started, and when.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Five fields: minute, hour, day of the month, month, day of the week; or six, with seconds in front.
    pub cron: String,
    /// The time zone, as the IANA names them; empty for UTC.
    pub time_zone: String,
    /// The saga.
    pub saga: String,
    /// Its version; 0 for the newest at the time.
    pub version: u32,
    /// What workers get with each task.
    pub input: Bytes,
    /// What the sagas are found by.
    pub attributes: BTreeMap<String, String>,
    /// Their priority.
    pub priority: u8,
    /// What becomes of a run whose time has come while the one before has not ended.
    pub overlap: Overlap,
    /// Nothing is started.
    pub is_paused: bool,
}

impl Plan {
    /// Refuses what makes no sense.
    ///
    /// # Errors
    ///
    /// `Invalid`: says what.
    pub fn check(&self) -> Result<()> {
        check_name("the saga", &self.saga)?;
        if self.input.len() > limits::MAX_SAGA_PAYLOAD_BYTES {
            return Err(Error::invalid(format!(
                "the schedule's input has {} bytes, over the limit of {}",
                self.input.len(),
                limits::MAX_SAGA_PAYLOAD_BYTES
            )));
        }
        self.next_after(0).map(drop)
    }

    /// The first time after another one; `None` where there is none. A time that a change of clocks skips is as soon as
    /// possible after it; one that comes twice counts once.
    ///
    /// # Errors
    ///
    /// `Invalid` where the expression or the time zone is none.
    pub fn next_after(&self, after_ms: u64) -> Result<Option<u64>> {
        let zone: Tz = match self.time_zone.as_str() {
            "" => Tz::UTC,
            name => Tz::from_str(name).map_err(|_| {
                Error::invalid(format!(
                    "{name:?} is no time zone: give one such as Europe/Berlin, or none for UTC"
                ))
            })?,
        };
        let cron = Cron::from_str(&self.cron).map_err(|error| {
            Error::invalid(format!(
                "{:?} is no cron expression: {error}; give minute, hour, day of the month, month and day of the week, such \
                 as \"30 9 * * MON-FRI\"",
                self.cron
            ))
        })?;
        let after = utc(after_ms).with_timezone(&zone);
        match cron.find_next_occurrence(&after, false) {
            Ok(next) => Ok(u64::try_from(next.timestamp_millis()).ok()),
            // It has found that there is none for ever, or for long enough.
            Err(croner::errors::CronError::TimeSearchLimitExceeded) => Ok(None),
            Err(error) => Err(Error::invalid(format!("{:?} names no time: {error}", self.cron))),
        }
    }
}

fn utc(unix_ms: u64) -> DateTime<Utc> {
    i64::try_from(unix_ms).ok().and_then(DateTime::from_timestamp_millis).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// A run that is about to be started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The id of its saga.
    pub id: String,
    /// When its time came.
    pub due_ms: u64,
    /// The saga that is cancelled before.
    pub cancels: Option<String>,
}

/// A schedule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Schedule {
    /// What is started, and when.
    pub plan: Plan,
    /// When it is next; `None` for never.
    pub next_ms: Option<u64>,
    /// The run that is about to be started.
    pub starting: Option<Run>,
    /// A run that waits for the end of the one before, by when its time came.
    pub waiting_ms: Option<u64>,
    /// The last run's saga.
    pub last_id: Option<String>,
    /// How many runs there were.
    pub runs: u64,
    /// How many there were not, since the one before had not ended.
    pub skipped: u64,
    /// The last requests for a run at once.
    pub triggers: Vec<u128>,
}

impl Schedule {
    /// A new one.
    ///
    /// # Errors
    ///
    /// `Invalid` where its plan makes no sense.
    pub fn new(plan: Plan, now_ms: u64) -> Result<Self> {
        plan.check()?;
        let next_ms = plan.next_after(now_ms)?;
        let (starting, waiting_ms, last_id) = (None, None, None);
        let triggers = Vec::new();
        Ok(Self { plan, next_ms, starting, waiting_ms, last_id, runs: 0, skipped: 0, triggers })
    }

    /// Another plan, from now on.
    ///
    /// # Errors
    ///
    /// `Invalid` where it makes no sense.
    pub fn replan(&mut self, plan: Plan, now_ms: u64) -> Result<()> {
        plan.check()?;
        if plan != self.plan {
            self.next_ms = plan.next_after(now_ms)?;
            self.plan = plan;
        }
        Ok(())
    }

    /// Whether there is something to be done now; where that is, whether the last run has ended must be known.
    pub fn is_due(&self, now_ms: u64) -> bool {
        let is_time = self.waiting_ms.is_some() || self.next_ms.is_some_and(|next_ms| next_ms <= now_ms);
        self.starting.is_some() || (is_time && !self.plan.is_paused)
    }

    /// When to look next; `None` where only somebody's wish changes anything.
    pub fn look_at_ms(&self, now_ms: u64) -> Option<u64> {
        /// How often is looked whether the run has ended that another one waits for.
        const LOOK_EVERY_MS: u64 = 1_000;
        if self.starting.is_some() {
            // Whoever has stored that starts it; if that comes to nothing it is looked at again.
            return Some(now_ms.saturating_add(LOOK_EVERY_MS));
        }
        if self.plan.is_paused {
            return None;
        }
        let waits = self.waiting_ms.map(|_| now_ms.saturating_add(LOOK_EVERY_MS));
        waits.into_iter().chain(self.next_ms).min()
    }

    /// What comes of the time: perhaps a run that is to be started. Times that nobody looked after are one run together.
    ///
    /// # Errors
    ///
    /// `Invalid` where the plan makes no sense.
    pub fn due(&mut self, name: &str, now_ms: u64, last_is_open: bool) -> Result<()> {
        if self.starting.is_some() || !self.is_due(now_ms) {
            return Ok(());
        }
        if let Some(due_ms) = self.next_ms.filter(|next_ms| *next_ms <= now_ms) {
            self.next_ms = self.plan.next_after(now_ms)?;
            match self.plan.overlap {
                Overlap::Skip if last_is_open => self.skipped += 1,
                Overlap::Wait if last_is_open && self.waiting_ms.is_some() => self.skipped += 1,
                Overlap::Wait if last_is_open => self.waiting_ms = Some(due_ms),
                Overlap::Cancel if last_is_open => self.begin(name, due_ms, self.last_id.clone()),
                Overlap::Skip | Overlap::Wait | Overlap::Allow | Overlap::Cancel => {
                    self.begin(name, due_ms, None);
                }
            }
        } else if let Some(due_ms) = self.waiting_ms.filter(|_| !last_is_open) {
            self.waiting_ms = None;
            self.begin(name, due_ms, None);
        }
        Ok(())
    }

    fn begin(&mut self, name: &str, due_ms: u64, cancels: Option<String>) {
        let id = format!("{name}@{}", utc(due_ms).to_rfc3339_opts(SecondsFormat::Secs, true));
        self.starting = Some(Run { id, due_ms, cancels });
    }

    /// A run now, whatever its time and the one before. A request that comes again is the same run.
    ///
    /// # Errors
    ///
    /// `Unavailable` while another one is about to be started.
    pub fn trigger(&mut self, name: &str, request: u128, now_ms: u64) -> Result<()> {
        /// How many requests are remembered.
        const REMEMBERED: usize = 32;
        if self.triggers.contains(&request) {
            return Ok(());
        }
        if let Some(run) = &self.starting {
            let id = &run.id;
            return Err(Error::unavailable(format!(
                "run {id} of schedule {name} is just being started: try again"
            )));
        }
        if self.triggers.len() >= REMEMBERED {
            self.triggers.remove(0);
        }
        self.triggers.push(request);
        let id = format!("{name}@{}", utc(now_ms).to_rfc3339_opts(SecondsFormat::Millis, true));
        self.starting = Some(Run { id, due_ms: now_ms, cancels: None });
        Ok(())
    }

    /// The run that was about to be started is.
    pub fn started(&mut self, id: &str) {
        if let Some(run) = self.starting.take_if(|run| run.id == id) {
            self.last_id = Some(run.id);
            self.runs += 1;
        }
    }
}
