//! Those who book trips, and some of whom change their mind.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use kvorum::client::{SagaRecord, SagaStart, SagaView};
use kvorum::{Client, ErrorKind};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::time::sleep;

use crate::Result;
use crate::worker::{Names, Trip};

/// Of a hundred customers so many change their mind.
const CANCEL_PERCENT: u32 = 4;
/// How soon, at most.
const CANCEL_WITHIN: Duration = Duration::from_millis(1_000);
const CITIES: [&str; 6] = ["Lisbon", "Rome", "Oslo", "Athens", "Vienna", "Dublin"];

/// All trips of a run.
pub struct Customers {
    pub client: Client,
    pub names: Names,
    pub run: String,
    pub sagas: usize,
    /// How many trips are under way at once.
    pub at_once: usize,
    pub seed: u64,
    /// How long a trip may take.
    pub patience: Duration,
    pub seen: Seen,
}

/// How far they are.
#[derive(Default)]
pub struct Seen {
    started: AtomicUsize,
    completed: AtomicUsize,
    compensated: AtomicUsize,
    cancelled: AtomicUsize,
}

/// What became of a trip.
pub struct Ended {
    /// The saga's id.
    pub id: String,
    /// What it was to cost.
    pub cents: u64,
    /// Whether a cancellation was accepted.
    pub asked_to_cancel: bool,
    /// Whether the order's row was written with its start.
    pub has_order: bool,
    /// How often workers were given a task of it.
    pub attempts: u64,
    /// The saga, as it was seen last.
    pub view: SagaView,
    /// What has happened in it, where it was to be undone.
    pub history: Vec<SagaRecord>,
}

impl Customers {
    /// Has all trips booked; returns once all of them have ended, or taken too long.
    pub async fn book_all(self: Arc<Self>) -> Result<Vec<Ended>> {
        let trips = futures::stream::iter(0..self.sagas).map(|nth| tokio::spawn(self.clone().book(nth)));
        let mut trips = trips.buffer_unordered(self.at_once);
        let mut all = Vec::new();
        while let Some(ended) = trips.next().await {
            all.push(ended??);
        }
        Ok(all)
    }

    async fn book(self: Arc<Self>, nth: usize) -> Result<Ended> {
        let mut random = StdRng::seed_from_u64(self.seed.wrapping_add(nth as u64));
        let trip = Trip {
            city: CITIES[random.random_range(0..CITIES.len())].to_owned(),
            customer: format!("customer-{nth}@example.org"),
            flight_cents: random.random_range(5_000..50_000),
            hotel_cents: random.random_range(5_000..90_000),
        };
        let id = format!("trip-{}-{nth:06}", self.run);
        let cents = trip.flight_cents + trip.hotel_cents;
        let changes_mind = random.random_range(0..100) < CANCEL_PERCENT;
        let when = random.random_range(Duration::ZERO..CANCEL_WITHIN);
        let has_order = nth.is_multiple_of(2);

        let began = Instant::now();
        self.start(&id, &trip, has_order).await?;
        self.seen.started.fetch_add(1, Ordering::Relaxed);
        let asked_to_cancel = match changes_mind {
            true => {
                sleep(when).await;
                self.cancel(&id).await?
            }
            false => false,
        };
        let view = self.wait(&id, began).await?;
        match view.status.as_str() {
            "completed" => self.seen.completed.fetch_add(1, Ordering::Relaxed),
            "compensated" => self.seen.compensated.fetch_add(1, Ordering::Relaxed),
            "cancelled" => self.seen.cancelled.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        let history = match asked_to_cancel || view.status != "completed" {
            true => self.history(&id).await?,
            false => Vec::new(),
        };
        let attempts = view.steps.iter().flat_map(|step| [&step.action, &step.compensation, &step.check]);
        let attempts = attempts.flatten().map(|task| u64::from(task.attempts)).sum();
        Ok(Ended { id, cents, asked_to_cancel, has_order, attempts, view, history })
    }

    /// Starts the saga; until that is known to be done. The same id with the same input is the same saga, so it may be
    /// said again where the answer was lost. Of a start in a transaction that is not so: the id is taken then, and it has to
    /// be seen by what.
    async fn start(&self, id: &str, trip: &Trip, with_order: bool) -> Result<()> {
        let start = SagaStart::new(self.names.saga(), id).input_json(trip)?.attribute("city", &trip.city);
        let give_up_at = Instant::now() + self.patience;
        let mut may_be_started = false;
        loop {
            let started = match with_order {
                // The order and its saga come to be together, or not at all: no order is forgotten, no trip without one.
                true => {
                    let (order, start) = (self.names.order(id), &start);
                    let written = json!({ "state": "open", "city": trip.city }).to_string();
                    let body = |txn: kvorum::client::Txn| {
                        let done =
                            txn.put(&order, written.clone()).and_then(|()| txn.start_saga(start.clone()));
                        async move { done }
                    };
                    self.client.transact(body).await.map(drop)
                }
                false => self.client.start_saga(start.clone()).await.map(drop),
            };
            match started {
                Ok(()) => return Ok(()),
                Err(error) if error.kind == ErrorKind::Invalid && may_be_started => {
                    let there = self.client.saga(id).await?;
                    if there.input == Some(start.input.clone()) && there.name == start.name {
                        return Ok(());
                    }
                    return Err(format!("there is another saga {id}: {error}").into());
                }
                Err(error) if may_pass(&error) && Instant::now() < give_up_at => {
                    may_be_started |= with_order && error.kind == ErrorKind::Undetermined;
                    sleep(Duration::from_millis(100)).await;
                }
                Err(error) => return Err(format!("saga {id} can't be started: {error}").into()),
            }
        }
    }

    /// All that has happened in a saga.
    async fn history(&self, id: &str) -> Result<Vec<SagaRecord>> {
        let give_up_at = Instant::now() + self.patience;
        let (mut all, mut next) = (Vec::new(), Some(0));
        while let Some(from) = next {
            match self.client.saga_history(id, from).await {
                Ok((lines, after)) => {
                    all.extend(lines);
                    next = after;
                }
                Err(error) if may_pass(&error) && Instant::now() < give_up_at => {
                    sleep(Duration::from_millis(100)).await;
                }
                Err(error) => return Err(format!("the history of {id} can't be read: {error}").into()),
            }
        }
        Ok(all)
    }

    /// Asks to cancel. That is refused once it is paid, or over: then the customer travels. Answers whether it was not.
    async fn cancel(&self, id: &str) -> Result<bool> {
        let give_up_at = Instant::now() + self.patience;
        loop {
            match self.client.cancel_saga(id, "the customer has changed their mind").await {
                Ok(_) => return Ok(true),
                Err(error) if error.kind == ErrorKind::Invalid => return Ok(false),
                Err(error) if may_pass(&error) && Instant::now() < give_up_at => {}
                Err(error) => return Err(format!("saga {id} can't be cancelled: {error}").into()),
            }
        }
    }

    /// Waits for the end; not longer than the patience is.
    async fn wait(&self, id: &str, began: Instant) -> Result<SagaView> {
        loop {
            match self.client.wait_for_saga(id).await {
                Ok(view) if view.closed_unix_ms > 0 || began.elapsed() > self.patience => return Ok(view),
                Ok(_) => {}
                // Nobody answers, and it is late: where it is, nobody knows. That will be told as a mismatch.
                Err(error) if may_pass(&error) && began.elapsed() > self.patience => {
                    return Ok(SagaView { status: "unknown".to_owned(), ..SagaView::default() });
                }
                Err(error) if may_pass(&error) => {}
                Err(error) => return Err(format!("saga {id} can't be waited for: {error}").into()),
            }
        }
    }

    /// Shows how far they are, for ever.
    pub async fn show_progress(&self) {
        let (is_terminal, began) = (std::io::stderr().is_terminal(), Instant::now());
        let every = if is_terminal { Duration::from_millis(200) } else { Duration::from_secs(5) };
        loop {
            sleep(every).await;
            let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
            let seen = &self.seen;
            let (completed, compensated, cancelled) =
                (of(&seen.completed), of(&seen.compensated), of(&seen.cancelled));
            let text = format!(
                "{:3} s: {} of {} started, {completed} completed, {compensated} compensated, {cancelled} cancelled, {} open",
                began.elapsed().as_secs(),
                of(&seen.started),
                self.sagas,
                of(&seen.started).saturating_sub(completed + compensated + cancelled),
            );
            // Nobody may be reading that any more.
            let _ = match is_terminal {
                true => write!(std::io::stderr(), "\r\x1b[K{text}"),
                false => writeln!(std::io::stderr(), "{text}"),
            };
        }
    }
}

/// Whether trying again may help: nodes are being killed.
fn may_pass(error: &kvorum::Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::Unavailable | ErrorKind::Undetermined | ErrorKind::Conflict | ErrorKind::Moved
    )
}
