//! One run from set-up to verdict: a cluster is made, clients work on it while faults strike, everything is healed and
//! read back, and the history is checked.

pub mod bugs;
mod checking;
mod corruption;
mod doubts;
mod load;
mod progress;

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::check::Anomaly;
use crate::history::{History, Recorder};
use crate::hosts::{Cluster, DiskKind, Error, Means, Result, Settings};
use crate::nemesis::{self, Happened, Need, Nemesis, Plan, Stage};
use crate::report::{CrashTold, FORMAT, Parameters, Results, html, latencies};
use crate::workload::{self, Workload};

pub use checking::{check, check_again, exit_code, read};
pub use progress::Progress;

use load::Load;

/// How long nodes may take until they are a cluster that serves, on a loaded machine.
const FORMED_WITHIN: Duration = Duration::from_secs(120);
/// How long a healed cluster may take until all nodes serve. One that takes longer has not recovered.
const WELL_WITHIN: Duration = Duration::from_secs(120);
/// Data directories that are file systems of their own are so large.
const DISK_MEBIBYTES: u32 = 256;

/// A run to be made.
#[derive(Clone, Debug)]
pub struct Run {
    /// What to do.
    pub parameters: Parameters,
    /// Where everything goes; it is new or empty.
    pub directory: PathBuf,
    /// What the machine allows.
    pub means: Means,
    /// Whether data stays, whatever the verdict. It does where the run is not valid.
    pub keep_data: bool,
}

/// What a load and its faults came to.
struct Ran {
    history: History,
    faults: Vec<Happened>,
    findings: Vec<Anomaly>,
    crashes: Vec<CrashTold>,
}

impl Run {
    /// The kinds of faults that the machine does not allow, and why.
    pub fn missing(&self) -> Vec<(Nemesis, String)> {
        let why = |kind: &Nemesis| kind.missing(&self.means, self.parameters.nodes).map(|why| (*kind, why));
        self.parameters.nemeses.iter().filter_map(why).collect()
    }

    /// Makes the run, and writes everything into its directory.
    ///
    /// # Errors
    /// Where it could not be made: that says nothing about the store. Dropped or failed, it leaves no process, network
    /// or mount behind.
    pub async fn make(&self, progress: &Progress) -> Result<Results> {
        fs::create_dir_all(&self.directory)
            .map_err(|source| Error::Io { what: format!("make {}", self.directory.display()), source })?;
        let began_unix_ms = unix_ms();
        let ran = self.perform(progress).await?;
        progress.phase("checking the history");
        let (counts, latencies) = latencies(&ran.history);
        let workload = self.parameters.workload;
        let history = Arc::new(ran.history);
        let verdict = {
            let history = Arc::clone(&history);
            let checked = tokio::task::spawn_blocking(move || checking::check(workload, &history)).await;
            checked.map_err(|error| Error::Other(format!("the checker ended: {error}")))??
        };
        let missing = self.missing();
        let mut results = Results {
            format: FORMAT,
            valid: verdict.valid,
            parameters: self.parameters.clone(),
            began_unix_ms,
            verdict,
            findings: ran.findings,
            doubts: doubts::doubts(&self.parameters, &missing, &ran.faults),
            notes: doubts::notes(&self.parameters, &missing, &ran.faults),
            counts,
            latencies,
            faults: ran.faults,
            crashes: ran.crashes,
        };
        results.conclude();
        write(&self.directory, &results, &history)?;
        if results.valid == crate::check::Valid::Valid && !self.keep_data {
            let data = self.directory.join("data");
            fs::remove_dir_all(&data)
                .map_err(|source| Error::Io { what: format!("remove {}", data.display()), source })?;
        }
        Ok(results)
    }

    /// Everything up to the history.
    async fn perform(&self, progress: &Progress) -> Result<Ran> {
        let parameters = &self.parameters;
        progress.phase("starting nodes");
        let cluster = Arc::new(Cluster::start(self.settings())?);
        cluster.form(FORMED_WITHIN).await?;
        let recorder = Arc::new(self.recorder()?);
        let workload: Arc<dyn Workload> = Arc::from(parameters.workload.make());
        let load = Load::new(parameters, &cluster, &workload, &recorder);
        load.open().await?;
        let stage = Stage {
            cluster: Arc::clone(&cluster),
            began: recorder.began(),
            hot_key: {
                let workload = Arc::clone(&workload);
                Arc::new(move || workload.hot_key())
            },
        };
        progress.load(parameters.seconds);
        let faults = tokio::select! {
            done = async { tokio::join!(nemesis::perform(self.schedule(), stage), load.run(progress)) } => {
                done.1?;
                done.0
            }
            failed = cluster.supervise() => match failed? {},
        };
        progress.phase("healing");
        let mut findings = Vec::new();
        let is_well = self.recover(&cluster, &mut findings).await?;
        if is_well {
            progress.phase("reading everything back");
            let missing = load.close().await?;
            if let Some(why) = missing.last() {
                let told = format!(
                    "all nodes serve, and {} of the reads at the end get no answer, the last because: {why}",
                    missing.len()
                );
                findings.push(finding("not-readable", told));
            }
        }
        if is_well {
            progress.phase("comparing replicas");
            if let Err(error) = cluster.compare_replicas().await {
                findings.push(finding("replicas-differ", error.to_string()));
            }
        }
        findings.extend(load.corruption());
        let crashes = self.finish(&cluster, &recorder, &mut findings).await?;
        drop(load);
        let recorder = Arc::into_inner(recorder).ok_or_else(|| {
            Error::Other("a client still works when all have ended: a fault of the harness".into())
        })?;
        let ops =
            recorder.finish().map_err(|source| Error::Io { what: "write the history".into(), source })?;
        let history =
            History::new(ops).map_err(|error| Error::Other(format!("the history is malformed: {error}")))?;
        Ok(Ran { history, faults, findings, crashes })
    }

    /// Ends all faults, and waits until all nodes serve. Where they don't by themselves, that is a finding, and they are
    /// started again, so that what they hold can be judged all the same. Returns whether they serve in the end.
    async fn recover(&self, cluster: &Arc<Cluster>, findings: &mut Vec<Anomaly>) -> Result<bool> {
        blocking(cluster, Cluster::heal).await?;
        let Err(error) = Self::wait_well(cluster).await? else { return Ok(true) };
        findings.push(finding("not-recovered", error.to_string()));
        blocking(cluster, Cluster::restart_all).await?;
        let again = Self::wait_well(cluster).await?;
        if let Err(error) = &again {
            findings.push(finding("not-recovered", format!("after a restart of all nodes: {error}")));
        }
        Ok(again.is_ok())
    }

    /// Waits until all nodes serve: the inner error says that they don't in time.
    async fn wait_well(cluster: &Cluster) -> Result<Result<()>> {
        tokio::select! {
            well = cluster.wait_well(WELL_WITHIN) => Ok(well),
            failed = cluster.supervise() => match failed? {},
        }
    }

    /// Stops the nodes, and tells what they did besides serving.
    async fn finish(
        &self,
        cluster: &Arc<Cluster>,
        recorder: &Recorder,
        findings: &mut Vec<Anomaly>,
    ) -> Result<Vec<CrashTold>> {
        cluster.look_after()?;
        let late = cluster.stop().await;
        if !late.is_empty() {
            let nodes: Vec<String> = late.iter().map(|node| (node + 1).to_string()).collect();
            findings.push(finding("does-not-stop", format!("SIGTERM did not end node {}", nodes.join(", "))));
        }
        let told = |crash: crate::hosts::Crash| CrashTold {
            node: crash.node + 1,
            at_ns: crash.at.saturating_duration_since(recorder.began()).as_nanos() as u64,
            status: crash.status,
            disk_full: crash.disk_full,
        };
        let crashes: Vec<CrashTold> = cluster.crashes().into_iter().map(told).collect();
        // A node may end where it can't write: what it acknowledged must be there when it is back.
        for crash in crashes.iter().filter(|crash| !crash.disk_full) {
            findings.push(finding("node-crash", crash.to_string()));
        }
        for (node, line) in cluster.alarms() {
            findings.push(finding("panic", format!("in nodes/{}.log: {line}", node + 1)));
        }
        cluster.keep_data()?;
        Ok(crashes)
    }

    fn settings(&self) -> Settings {
        let needs = |need: Need| self.kinds().iter().any(|kind| kind.need() == need);
        Settings {
            server: self.parameters.server.clone(),
            environment: self.parameters.environment.clone(),
            nodes: self.parameters.nodes,
            directory: self.directory.clone(),
            namespaces: self.means.namespaces.is_ok(),
            disk: match (needs(Need::Power), needs(Need::Disks)) {
                (true, _) => DiskKind::Power { mebibytes: DISK_MEBIBYTES },
                (false, true) => DiskKind::Small { mebibytes: DISK_MEBIBYTES },
                (false, false) => DiskKind::Directory,
            },
            clocks: if needs(Need::Clocks) { self.means.clocks.clone().ok() } else { None },
            split_keys: workload::split_keys(self.parameters.shards),
        }
    }

    /// The kinds of faults that can be had.
    fn kinds(&self) -> Vec<Nemesis> {
        let nemeses = self.parameters.nemeses.iter();
        nemeses.copied().filter(|kind| kind.missing(&self.means, self.parameters.nodes).is_none()).collect()
    }

    fn schedule(&self) -> Vec<nemesis::Fault> {
        nemesis::schedule(&Plan {
            kinds: self.kinds(),
            nodes: self.parameters.nodes,
            length_ms: self.parameters.seconds * 1000,
            seed: self.parameters.seed,
            can_cut: self.means.namespaces.is_ok() && self.parameters.nodes > 1,
        })
    }

    fn recorder(&self) -> Result<Recorder> {
        let file = |name: &str| {
            let path = self.directory.join(name);
            let made = File::create(&path).map(BufWriter::new);
            made.map_err(|source| Error::Io { what: format!("make {}", path.display()), source })
        };
        Ok(Recorder::new(file("history.edn")?, file("history.jsonl")?))
    }
}

/// Does something to the cluster that blocks.
async fn blocking(cluster: &Arc<Cluster>, act: fn(&Cluster) -> Result<()>) -> Result<()> {
    let cluster = Arc::clone(cluster);
    let done = tokio::task::spawn_blocking(move || act(&cluster)).await;
    done.map_err(|error| Error::Other(format!("work on the cluster ended early: {error}")))?
}

/// Writes `results.json` and `report.html`.
fn write(directory: &Path, results: &Results, history: &History) -> Result<()> {
    let put = |name: &str, text: String| {
        let path = directory.join(name);
        fs::write(&path, text)
            .map_err(|source| Error::Io { what: format!("write {}", path.display()), source })
    };
    let json = serde_json::to_string_pretty(results).map_err(|error| Error::Other(error.to_string()))?;
    put("results.json", json + "\n")?;
    put("report.html", html::page(results, history))
}

fn finding(name: &str, explanation: String) -> Anomaly {
    Anomaly { name: name.to_owned(), explanation, ops: Vec::new() }
}

fn unix_ms() -> u64 {
    // A clock before 1970 is shown as 1970.
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The time left until a moment, for waits.
fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}
