//! Trips of a travel agency, booked as sagas: thousands at once, while everything that can fail does.
//!
//! ```text
//! cargo run --example trip --no-default-features --features client -- --endpoints 127.0.0.1:7400
//! cargo run --example trip -- --sagas 5000 --fail-percent 20 --kill
//! ```
//!
//! A trip is a flight, a hotel, and a payment. Three services have to do with it, each a process of its own with a ledger of
//! its own, which know neither each other nor kvorum: so there is no transaction over them. Each trip is a saga instead: a
//! list of steps, of which the cluster keeps how far it is. Workers, which are processes too, do the steps. What was done is
//! undone by compensations where a later step fails, or the customer changes their mind.
//!
//! - Everything a worker asks for may have to be asked again, since workers are killed and answers get lost. An *idempotency
//!   key*, the same for all attempts, lets a service see that it has done that already (`ledger`).
//! - The *outcome* of an attempt may be *unknown*: then the step counts as one that may have happened, and its compensation
//!   cancels what may never have been booked. Should the lost attempt arrive after that, its *fence* betrays it (`ledger`).
//! - The payment is the *pivot*: before it everything can be undone, after it everything must get done. Where it is unknown
//!   whether it happened, a check asks, before the saga goes either way (`worker`).
//! - An order and its saga are started in one transaction (`customers`); the order is settled in one that is a step of the saga
//!   (`worker`).
//!
//! With `--kill` it starts three nodes of its own, and kills workers, services and nodes with SIGKILL all the time, each with
//! another one in its place. In the end the ledgers are compared with what became of the sagas (`books`): a trip is booked, paid
//! once and confirmed, or nothing of it is left. Exit code 1 tells that it was not so.
//!
//! ```text
//! trip [OPTIONS]
//!   --endpoints HOST:PORT,...   the cluster [KVORUM_ENDPOINTS, or 127.0.0.1:7400]; not with --kill
//!   --kill                      kill workers, services and nodes; the nodes are three of its own
//!   --kvorum PATH               the program of the nodes [beside this one, or on the path]
//!   --sagas N                   how many trips [5000]
//!   --at-once N                 how many of them at once [256]
//!   --fail-percent N            of a hundred calls of a service, so many fail in one of five ways [20]
//!   --workers N                 worker processes [3]
//!   --python PYTHON             a worker in Python sends the confirmations; PYTHON has grpcio, see examples/python
//!   --seed N                    for the random numbers; what processes do at the same time differs all the same
//!   --patience SECONDS          how long a trip may take [120]
//! ```
//!
//! To see that the comparison finds something, set `TRIP_BREAK` to `double-pay`, `no-fence` or `no-cancel`: the services then
//! have that bug.

mod args;
mod books;
mod cluster;
mod crew;
mod customers;
mod havoc;
mod ledger;
mod service;
mod wire;
mod worker;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvorum::Client;
use kvorum::client::SagaFilter;
use tokio_util::sync::CancellationToken;

use args::Args;
use books::Books;
use cluster::Cluster;
use customers::{Customers, Ended, Seen};
use havoc::{Crew, Kills, Plan};
use worker::Names;

/// What can go wrong is told to people.
type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// So many mismatches are listed, and so many histories.
const LISTED: usize = 50;
const HISTORIES: usize = 5;

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = Args::new(std::env::args().skip(1));
    let done = match args.word().as_deref() {
        Some("service") => service::run(args).await.map(|()| true),
        Some("worker") => worker::run(args).await.map(|()| true),
        Some(other) => {
            Err(format!("{other:?} is not known here; see the top of examples/trip/main.rs").into())
        }
        None => run(args).await,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn split(endpoints: &str) -> Vec<String> {
    endpoints.split(',').map(str::to_owned).collect()
}

/// The whole of it. Answers whether the books are right.
async fn run(mut args: Args) -> Result<bool> {
    let said = args.text("--endpoints")?;
    let (kill, kvorum) = (args.flag("--kill"), args.text("--kvorum")?);
    if kill && said.is_some() {
        return Err("--kill has nodes of its own to kill: leave out --endpoints".into());
    }
    let (sagas, at_once) = (args.number("--sagas", 5_000)?, args.number("--at-once", 256_usize)?.max(1));
    let patience = Duration::from_secs(args.number("--patience", 120)?);
    let dir = tempfile::Builder::new().prefix("trip-").tempdir()?;
    let mut plan = Plan {
        dir: dir.path().to_owned(),
        endpoints: split(
            &said.or(std::env::var("KVORUM_ENDPOINTS").ok()).unwrap_or("127.0.0.1:7400".to_owned()),
        ),
        run: format!("{:08x}", rand::random::<u32>()),
        workers: args.number("--workers", 3_usize)?.max(1),
        fail_percent: args.number("--fail-percent", 20)?,
        seed: args.number("--seed", rand::random())?,
        python: args.text("--python")?,
    };
    args.end()?;

    let mut cluster = None;
    if kill {
        let started = Cluster::start(&cluster::find_kvorum(kvorum).await?, dir.path()).await?;
        plan.endpoints = started.endpoints();
        cluster = Some(started);
    }
    let client = worker::connect(&plan.endpoints).await?;
    let names = Names::new(&plan.run);
    client.with_deadline(patience).define_saga(&worker::definition(&names)?).await?;
    let run = plan.run.clone();
    println!(
        "run {run}, seed {}, on {}; ledgers and logs in {}",
        plan.seed,
        plan.endpoints.join(", "),
        plan.dir.display()
    );
    let customers = Customers {
        client: client.clone(),
        names,
        run,
        sagas,
        at_once,
        seed: plan.seed,
        patience,
        seen: Seen::default(),
    };

    let all = all_trips(&plan, Arc::new(customers), cluster.as_mut());
    let (right, keep) = tokio::select! {
        right = all => (right, true),
        _ = tokio::signal::ctrl_c() => (Err("interrupted".into()), false),
    };
    if keep && !matches!(right, Ok(true)) {
        // Somebody will want to look at what is in there.
        println!("ledgers and logs stay in {}", dir.keep().display());
    }
    if let Some(mut cluster) = cluster {
        cluster.stop().await?;
    }
    right
}

async fn all_trips(plan: &Plan, customers: Arc<Customers>, cluster: Option<&mut Cluster>) -> Result<bool> {
    let (client, began) = (customers.client.clone(), Instant::now());
    let mut crew = Crew::start(plan).await?;
    let stop = CancellationToken::new();
    let booking = async {
        let ended = tokio::select! {
            ended = customers.clone().book_all() => ended,
            () = customers.show_progress() => unreachable!("it goes on for ever"),
        };
        stop.cancel();
        ended
    };
    // A process that has ended by itself ends the run: there is a bug in it.
    let (ended, kills) = tokio::try_join!(booking, crew.havoc(cluster, &client, &stop))?;
    let took = began.elapsed();
    // The last calls that come late get the time to do their harm.
    tokio::time::sleep(service::LATE.end + Duration::from_millis(500)).await;
    crew.stop().await?;

    let books = Books::read(&client, plan).await?;
    let mut wrong = books.mismatches(&ended);
    let open =
        SagaFilter { name: Names::new(&plan.run).saga(), status: "open".to_owned(), ..SagaFilter::default() };
    for saga in client.sagas(open).all().await? {
        wrong.push(format!(
            "{} has not ended: it is {} at {:?} {}",
            saga.id, saga.status, saga.at, saga.reason
        ));
    }
    tell(&ended, kills, took, &books);
    if wrong.is_empty() {
        println!("the books are right");
        return Ok(true);
    }
    println!("THE BOOKS ARE WRONG in {} ways:", wrong.len());
    wrong.iter().take(LISTED).for_each(|line| println!("  {line}"));
    let concerned = ended.iter().filter(|trip| wrong.iter().any(|line| line.starts_with(&trip.id)));
    for trip in concerned.take(HISTORIES) {
        tell_history(&client, &trip.id).await?;
    }
    Ok(false)
}

fn tell(ended: &[Ended], kills: Kills, took: Duration, books: &Books) {
    let count = |status: &str| ended.iter().filter(|trip| trip.view.status == status).count();
    let attempts: u64 = ended.iter().map(|trip| trip.attempts).sum();
    println!(
        "\n{} trips in {:.1} s: {} completed, {} compensated, {} cancelled",
        ended.len(),
        took.as_secs_f64(),
        count("completed"),
        count("compensated"),
        count("cancelled")
    );
    println!(
        "{attempts} attempts at tasks; killed: {} workers, {} services, {} nodes",
        kills.workers, kills.services, kills.nodes
    );
    println!("{}", books.summary());
}

/// What happened in a saga whose trip is not as it should be.
async fn tell_history(client: &Client, id: &str) -> Result<()> {
    println!("the history of {id}:");
    let mut from = Some(0);
    while let Some(at) = from {
        let (lines, next) = client.saga_history(id, at).await?;
        for line in &lines {
            println!(
                "  {} {} {} {} {} {} {}",
                line.number, line.at_unix_ms, line.what, line.step, line.kind, line.attempt, line.detail
            );
        }
        from = next.filter(|_| !lines.is_empty());
    }
    Ok(())
}
