//! The saga, and the worker that does its steps: a process that may be killed at any moment.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvorum::Client;
use kvorum::client::{Task, Txn};
use kvorum::saga::{CallDocument, Definition, Failure, Retry, Saga, Step, Timeouts};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::Result;
use crate::args::Args;
use crate::wire::{Answer, Request, What, call};

/// How long a worker that is to stop takes for what it has begun, at most.
const STOP_WITHIN: Duration = Duration::from_secs(15);

/// What a trip's saga is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trip {
    /// Where to.
    pub city: String,
    /// Who.
    pub customer: String,
    /// What the flight and the hotel cost, in cents.
    pub flight_cents: u64,
    pub hotel_cents: u64,
}

/// Names that a run has for itself, so that its workers do nothing of what another run on the same cluster left open.
pub struct Names {
    run: String,
}

impl Names {
    /// Those of a run.
    pub fn new(run: &str) -> Self {
        Self { run: run.to_owned() }
    }

    /// The saga, and the queue of its steps.
    pub fn saga(&self) -> String {
        format!("trip-{}", self.run)
    }

    /// The queue of the confirmations, which a worker in another language may serve.
    pub fn mail(&self) -> String {
        format!("mail-{}", self.run)
    }

    /// The row that says what became of a customer's order.
    pub fn order(&self, trip: &str) -> String {
        format!("trip/{}/order/{trip}", self.run)
    }

    /// Where is counted how often a trip was settled.
    pub fn settled(&self, trip: &str) -> String {
        format!("trip/{}/settled/{trip}", self.run)
    }
}

/// Flight, hotel, payment, then the order's row and the confirmation.
pub fn definition(names: &Names) -> Result<Definition> {
    // Short pauses and leases, so that thousands of trips end soon though much goes wrong.
    let timeouts = Timeouts { start_to_close_ms: 2_000, ..Timeouts::default() };
    let always = Retry { initial_ms: 50, max_ms: 1_000, ..Retry::default() };
    // Before the pivot a step may fail: then the saga goes back. Where an attempt's outcome is unknown, its compensation
    // runs too: it has to be able to cancel what may never have been booked.
    let some = Retry { max_attempts: 6, ..always.clone() };
    // What undoes a step, finds out about one, or comes after the pivot is tried until it succeeds. There is no other way
    // to a good end.
    let until_done = |handler: &str| CallDocument {
        activity: Some(handler.to_owned()),
        retry: Some(always.clone()),
        timeouts: Some(timeouts.clone()),
        ..CallDocument::default()
    };
    let book = |name: &str| {
        Step::activity(name)
            .retry(some.clone())
            .timeouts(timeouts.clone())
            .compensation(until_done(&format!("cancel-{name}")))
    };
    // The pivot: once it is paid there is no way back, only forward. Whether it is paid may be unknown after all attempts;
    // then neither way is right, until the check has found out.
    let payment = Step {
        check: Some(until_done("was-paid")),
        ..Step::activity("payment").pivot().retry(some.clone()).timeouts(timeouts.clone())
    };
    let saga = Saga::define(names.saga(), 1)
        .step(book("flight"))
        .step(book("hotel"))
        .step(payment)
        .step(Step::txn("settle").retry(always.clone()).timeouts(timeouts.clone()))
        .step(
            Step::activity("confirmation")
                .queue(names.mail())
                .retry(always.clone())
                // Its worker says every third of a second that it is alive: one that was killed is missed soon.
                .timeouts(Timeouts { start_to_close_ms: 10_000, heartbeat_ms: Some(1_000), ..timeouts }),
        );
    Ok(saga.check()?)
}

/// The addresses of the services.
pub struct Services {
    flights: String,
    hotels: String,
    payments: String,
}

/// `trip worker --endpoints ... --run RUN --flights ADDRESS --hotels ADDRESS --payments ADDRESS [--mail FILE]`.
pub async fn run(mut args: Args) -> Result<()> {
    let endpoints = crate::split(&args.needed("--endpoints")?);
    let names = Arc::new(Names::new(&args.needed("--run")?));
    let services = Arc::new(Services {
        flights: args.needed("--flights")?,
        hotels: args.needed("--hotels")?,
        payments: args.needed("--payments")?,
    });
    let mail = args.text("--mail")?.map(PathBuf::from);
    args.end()?;

    let client = connect(&endpoints).await?;
    let stop = CancellationToken::new();
    tokio::spawn({
        let stop = stop.clone();
        async move {
            crate::crew::stdin_ended().await;
            stop.cancel();
        }
    });
    let (to_flights, to_hotels, to_payments) = (services.clone(), services.clone(), services.clone());
    let (no_flights, no_hotels, was_paid) = (services.clone(), services.clone(), services);
    let settling = names.clone();
    let booker = client
        .saga_worker(names.saga())
        .activity("flight", move |task| {
            book(to_flights.clone(), task, |to| &to.flights, |trip| trip.flight_cents)
        })
        .activity("cancel-flight", move |task| cancel(no_flights.clone(), task, |to| &to.flights))
        .activity("hotel", move |task| {
            book(to_hotels.clone(), task, |to| &to.hotels, |trip| trip.hotel_cents)
        })
        .activity("cancel-hotel", move |task| cancel(no_hotels.clone(), task, |to| &to.hotels))
        // Paid for is booked with the cashier.
        .activity("payment", move |task| {
            book(to_payments.clone(), task, |to| &to.payments, |trip| trip.flight_cents + trip.hotel_cents)
        })
        .activity("was-paid", move |task| find_out(was_paid.clone(), task))
        .txn("settle", move |task, txn| settle(settling.clone(), task, txn))
        .run(stop.clone());
    let mailer = async {
        match mail {
            Some(mail) => {
                let confirm = move |task| confirm(mail.clone(), task);
                client.saga_worker(names.mail()).activity("confirmation", confirm).run(stop.clone()).await
            }
            // Another program does that.
            None => Ok(()),
        }
    };
    // It finishes what it has begun, and is not stopped by a cluster that is gone.
    let given_up = async {
        stop.cancelled().await;
        sleep(STOP_WITHIN).await;
    };
    tokio::select! {
        done = async { tokio::try_join!(booker, mailer) } => done.map(drop)?,
        () = given_up => {}
    }
    Ok(())
}

/// A client, as soon as a node answers.
pub async fn connect(endpoints: &[String]) -> Result<Client> {
    let give_up_at = Instant::now() + Duration::from_secs(60);
    loop {
        let connecting = Client::builder().endpoints(endpoints).deadline(Duration::from_secs(30)).connect();
        match connecting.await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() >= give_up_at => return Err(error.into()),
            Err(_) => sleep(Duration::from_millis(200)).await,
        }
    }
}

/// The request of a task: with what names its trip, itself, and when it was handed out.
fn request(task: &Task, what: What, cents: u64) -> Request {
    Request {
        what,
        trip: task.saga_id().to_owned(),
        key: task.key().to_owned(),
        fence: task.info().fence,
        cents,
    }
}

/// Books a flight or a hotel, or takes the money.
async fn book(
    services: Arc<Services>,
    task: Task,
    whose: fn(&Services) -> &str,
    cents: fn(&Trip) -> u64,
) -> Result<Bytes, Failure> {
    let trip: Trip = task.input_json()?;
    match call(whose(&services), &request(&task, What::Do, cents(&trip))).await? {
        Answer::Done { number } => Ok(json!({ "number": number }).to_string().into()),
        // Nothing was done: another attempt would get the same answer, and there is nothing to undo.
        Answer::Refused { why } => Err(Failure::refused(why).kind("refused")),
        answer => Err(not_now(&answer)),
    }
}

/// Cancels a booking: the one of this saga, if there is one. It may run though the booking's outcome was never learnt.
async fn cancel(services: Arc<Services>, task: Task, whose: fn(&Services) -> &str) -> Result<Bytes, Failure> {
    match call(whose(&services), &request(&task, What::Undo, 0)).await? {
        Answer::Done { .. } => Ok(Bytes::new()),
        answer => Err(not_now(&answer)),
    }
}

/// The check of the pivot. Its output is `true` or `false`; while it is not known, it fails and is tried again.
async fn find_out(services: Arc<Services>, task: Task) -> Result<Bytes, Failure> {
    match call(&services.payments, &request(&task, What::Ask, 0)).await? {
        Answer::Known { done } => Ok(done.to_string().into()),
        answer => Err(not_now(&answer)),
    }
}

fn not_now(answer: &Answer) -> Failure {
    match answer {
        Answer::Busy => Failure::new("the service is busy").kind("busy").did_nothing(),
        answer => Failure::new(format!("the service answered {answer:?}")),
    }
}

/// Writes down in the store that the trip is sold. A transaction and the saga's progress are one commit, so that needs no
/// idempotency key: it is done exactly once, however many workers are killed while they are at it.
async fn settle(names: Arc<Names>, task: Task, txn: Txn) -> Result<Bytes, Failure> {
    let trip = task.saga_id();
    let number = |step| -> Result<serde_json::Value, Failure> {
        Ok(task.output_json::<serde_json::Value>(step)?.unwrap_or_default()["number"].take())
    };
    // The order was written when the saga was started, or is only now, where the saga was started by itself.
    let key = names.order(trip);
    let mut order: serde_json::Map<String, serde_json::Value> = match txn.get(&key).await? {
        Some(order) => serde_json::from_slice(&order.value)
            .map_err(|error| Failure::refused(format!("{key} holds no order: {error}")))?,
        None => serde_json::Map::new(),
    };
    order.insert("state".to_owned(), "sold".into());
    order.insert("flight".to_owned(), number("flight")?);
    order.insert("hotel".to_owned(), number("hotel")?);
    // Where only the check found out that it is paid, the number of the payment is not known.
    if task.output("payment").is_some_and(|output| !output.is_empty()) {
        order.insert("payment".to_owned(), number("payment")?);
    }
    txn.put(key, json!(order).to_string())?;
    txn.add(names.settled(trip), 1)?;
    Ok(Bytes::new())
}

/// Sends the confirmation: writes a line into a file. As with real mail, nobody can promise that it is sent only once: a
/// worker may be killed after it has sent it and before it said so.
async fn confirm(mail: PathBuf, task: Task) -> Result<Bytes, Failure> {
    let trip: Trip = task.input_json()?;
    let line = json!({ "trip": task.saga_id(), "key": task.key(), "to": trip.customer, "by": "rust" });
    append(&mail, format!("{line}\n"))
        .await
        .map_err(|error| Failure::new(format!("no mail can be sent: {error}")))?;
    Ok(Bytes::new())
}

async fn append(path: &Path, line: String) -> std::io::Result<()> {
    let mut file = tokio::fs::OpenOptions::new().create(true).append(true).open(path).await?;
    file.write_all(line.as_bytes()).await?;
    file.sync_data().await
}
