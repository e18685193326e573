//! The load of sagas: so many clients, each starts one and waits for its end; workers in this process do nothing in their
//! steps. What is measured is what the cluster adds to that.
//!
//! Only kvorum has them.

use std::time::Duration;

use bytes::Bytes;
use kvorum::Client;
use kvorum::client::SagaStart;
use kvorum::saga::{Saga, Step};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Result;
use crate::load::{self, Measured};
use crate::system::System;

/// Tasks that the workers do at once, all together.
const CONCURRENCY: usize = 256;

fn client(system: &System) -> Result<&Client> {
    match system {
        System::Kvorum(clients, _) => Ok(clients.first().ok_or("no client")?),
        System::Etcd(..) | System::Ceiling(_) => Err("only kvorum has sagas".into()),
    }
}

struct Worker {
    stop: CancellationToken,
    running: JoinHandle<kvorum::Result<()>>,
}

fn work(client: &Client) -> Worker {
    let stop = CancellationToken::new();
    let worker = client
        .saga_worker("bench")
        .concurrency(CONCURRENCY)
        .activity("nothing", |_| async { Ok(Bytes::new()) });
    let running = tokio::spawn(worker.run(stop.clone()));
    Worker { stop, running }
}

/// Measures sagas of so many steps. A latency is from the call that starts one to the answer that it has ended.
pub async fn measure(system: &System, clients: usize, steps: u32, length: Duration) -> Result<Measured> {
    let client = client(system)?;
    let name = format!("bench-{steps}");
    let mut saga = Saga::define(&name, 1).queue("bench").retention_ms(0);
    for step in 0..steps {
        saga = saga.step(Step::activity(format!("step-{step}")).handler("nothing"));
    }
    client.define_saga(&saga.check()?).await?;
    let worker = work(client);
    let run: u64 = rand::random();
    let began = Instant::now();
    let mut running: JoinSet<Result<Measured>> = JoinSet::new();
    for number in 0..clients {
        let (client, name) = (client.clone(), name.clone());
        running.spawn(async move {
            let mut measured = load::nothing()?;
            for nth in 0_u64.. {
                if began.elapsed() >= length {
                    break;
                }
                let id = format!("{name}-{run:x}-{number}-{nth}");
                let from = Instant::now();
                client.start_saga(SagaStart::new(&name, &id)).await?;
                let ended = client.wait_for_saga(&id).await?;
                if ended.status != "completed" {
                    return Err(format!("saga {id} is {}", ended.status).into());
                }
                measured.attempts += 1;
                measured.latencies.saturating_record(from.elapsed().as_micros() as u64);
            }
            Ok(measured)
        });
    }
    let mut measured = load::nothing()?;
    while let Some(one) = running.join_next().await {
        let one = one??;
        measured.attempts += one.attempts;
        measured.latencies.add(one.latencies)?;
    }
    measured.took = began.elapsed();
    worker.stop.cancel();
    worker.running.await??;
    Ok(measured)
}
