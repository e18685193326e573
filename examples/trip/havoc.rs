//! Who takes part in a run, and what is done to them meanwhile.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kvorum::Client;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::Result;
use crate::cluster::Cluster;
use crate::crew::{Member, free_addresses};
use crate::worker::Names;

/// The pause between two kills.
const PAUSE: std::ops::Range<Duration> = Duration::from_millis(1_000)..Duration::from_millis(2_500);

/// The names of the services, which are also those of their ledgers.
pub const SERVICES: [&str; 3] = ["flights", "hotels", "payments"];

/// How many were killed.
#[derive(Clone, Copy, Default)]
pub struct Kills {
    pub workers: u32,
    pub services: u32,
    pub nodes: u32,
}

/// What processes of a run are started with.
pub struct Plan {
    pub dir: PathBuf,
    pub endpoints: Vec<String>,
    pub run: String,
    pub workers: usize,
    pub fail_percent: u32,
    pub seed: u64,
    /// The Python that sends the confirmations; without it, the workers do.
    pub python: Option<String>,
}

impl Plan {
    /// The file of a service's ledger.
    pub fn ledger(&self, service: &str) -> PathBuf {
        self.dir.join(format!("{service}.jsonl"))
    }

    /// The file of the confirmations.
    pub fn mail(&self) -> PathBuf {
        self.dir.join("mail.jsonl")
    }
}

/// All processes but the nodes.
pub struct Crew {
    services: Vec<(Member, String)>,
    workers: Vec<Member>,
    random: StdRng,
}

impl Crew {
    /// Starts services and workers.
    pub async fn start(plan: &Plan) -> Result<Self> {
        let own = std::env::current_exe()?;
        let mut random = StdRng::seed_from_u64(plan.seed);
        let mut services = Vec::new();
        for (name, address) in SERVICES.into_iter().zip(free_addresses(SERVICES.len())) {
            let ledger = plan.ledger(name).display().to_string();
            let fail = plan.fail_percent.to_string();
            let args = [
                "service",
                name,
                "--listen",
                &address,
                "--ledger",
                &ledger,
                "--fail-percent",
                &fail,
                "--seed",
            ];
            let mut service = Member::new(name, &own, &plan.dir, args.map(str::to_owned).into());
            service.start(&[random.random::<u64>().to_string()])?;
            service.listens(&address).await?;
            services.push((service, address));
        }
        let mut workers = Vec::new();
        for nth in 1..=plan.workers {
            let mut args = vec!["worker".to_owned()];
            let mut say = |name: &str, value: &str| args.extend([format!("--{name}"), value.to_owned()]);
            say("endpoints", &plan.endpoints.join(","));
            say("run", &plan.run);
            services.iter().for_each(|(service, address)| say(&service.name, address));
            if plan.python.is_none() {
                say("mail", &plan.mail().display().to_string());
            }
            workers.push(Member::new(format!("worker-{nth}"), &own, &plan.dir, args));
        }
        if let Some(python) = &plan.python {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python/saga_worker.py");
            let mut args = vec![script.display().to_string(), "--stop-on-stdin-eof".to_owned()];
            args.extend(["--queue".to_owned(), Names::new(&plan.run).mail()]);
            args.extend(["--file".to_owned(), plan.mail().display().to_string()]);
            args.extend(plan.endpoints.clone());
            workers.push(Member::new("worker-python", Path::new(python), &plan.dir, args));
        }
        for worker in &mut workers {
            worker.start(&[])?;
        }
        Ok(Self { services, workers, random })
    }

    /// Where the nodes are the run's own, kills now one of them, now a worker, now a service, each with another one in its
    /// place, until told to stop. Answers an error where one of them has ended by itself.
    pub async fn havoc(
        &mut self,
        mut cluster: Option<&mut Cluster>,
        client: &Client,
        stop: &CancellationToken,
    ) -> Result<Kills> {
        let mut kills = Kills::default();
        loop {
            for turn in 0..3 {
                let pause = self.random.random_range(PAUSE);
                tokio::select! {
                    () = sleep(pause) => {}
                    () = stop.cancelled() => return Ok(kills),
                }
                self.workers.iter_mut().try_for_each(Member::check)?;
                self.services.iter_mut().try_for_each(|(service, _)| service.check())?;
                let Some(cluster) = cluster.as_mut() else { continue };
                match turn {
                    0 => kills.nodes += u32::from(cluster.kill_a_leader(client).await?),
                    1 => self.kill_a_worker(&mut kills).await?,
                    _ => self.kill_a_service(&mut kills).await?,
                }
            }
        }
    }

    /// What it was at goes to others, once its leases are over.
    async fn kill_a_worker(&mut self, kills: &mut Kills) -> Result<()> {
        let nth = self.random.random_range(0..self.workers.len());
        let worker = &mut self.workers[nth];
        worker.kill().await?;
        kills.workers += 1;
        worker.start(&[])
    }

    /// It comes back after a moment, at the same address and with its ledger.
    async fn kill_a_service(&mut self, kills: &mut Kills) -> Result<()> {
        let nth = self.random.random_range(0..self.services.len());
        let down = Duration::from_millis(self.random.random_range(0..500));
        let seed = self.random.random::<u64>().to_string();
        let (service, address) = &mut self.services[nth];
        service.kill().await?;
        kills.services += 1;
        sleep(down).await;
        service.start(&[seed])?;
        service.listens(address).await
    }

    /// Stops all of them: workers first, which finish what they have begun.
    pub async fn stop(&mut self) -> Result<()> {
        for worker in &mut self.workers {
            worker.stop().await?;
        }
        for (service, _) in &mut self.services {
            service.stop().await?;
        }
        Ok(())
    }
}
