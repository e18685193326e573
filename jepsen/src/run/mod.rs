//! One run from set-up to verdict: a cluster is made, clients work on it while faults strike, everything is healed and
//! read back, and the history is checked.

pub mod bugs;
mod checking;
mod corruption;
mod doubts;
mod followers;
mod load;
mod progress;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::check::{Anomaly, Valid, Verdict};
use crate::history::{History, Recorder};
use crate::hosts::{Cluster, Comparison, DiskKind, Error, Means, Result, Settings};
use crate::nemesis::{self, Happened, Need, Nemesis, Plan, Stage};
use crate::report::{CrashTold, FORMAT, Parameters, Results, html, latencies};
use crate::workload::{self, Crew, Workload};

pub use checking::{check, check_again, exit_code, read};
pub use progress::Progress;

use followers::Followers;
use load::Load;

/// How long nodes may take until they are a cluster that serves, on a loaded machine.
const FORMED_WITHIN: Duration = Duration::from_secs(120);
/// How long a healed cluster may take until all nodes serve. One that takes longer has not recovered.
const WELL_WITHIN: Duration = Duration::from_secs(120);
/// Data directories that are file systems of their own are so large.
const DISK_MEBIBYTES: u32 = 256;

/// What is said of a run of which nothing but its beginning was written down.
const BROKEN_OFF: &str = "the run was broken off: there is more than its history shows that nobody looked at";

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
    crashes: Vec<CrashTold>,
    tale: Tale,
}

/// What is to be told of a run besides its history.
#[derive(Default)]
struct Tale {
    findings: Vec<Anomaly>,
    doubts: Vec<String>,
    notes: Vec<String>,
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
        let begun = self.begun();
        // So that what a run that is broken off leaves can be checked all the same.
        write_results(&self.directory, &begun)?;
        let ran = self.perform(progress).await?;
        progress.phase("checking the history");
        let (counts, latencies) = latencies(&ran.history);
        let workload = self.parameters.workload;
        let history = Arc::new(ran.history);
        let verdict = {
            let history = Arc::clone(&history);
            tokio::task::spawn_blocking(move || checking::check(workload, &history)).await
        };
        let missing = self.missing();
        let mut results = Results {
            // What the run itself found stands also where the checker can't say anything.
            verdict: match verdict {
                Ok(verdict) => verdict?,
                Err(error) => unchecked(format!("The checker ended early: {error}.")),
            },
            findings: ran.tale.findings,
            doubts: [ran.tale.doubts, doubts::doubts(&self.parameters, &missing, &ran.faults)].concat(),
            notes: [ran.tale.notes, doubts::notes(&self.parameters, &missing, &ran.faults)].concat(),
            counts,
            latencies,
            faults: ran.faults,
            crashes: ran.crashes,
            ..begun
        };
        results.conclude();
        if results.valid == Valid::Valid && !self.keep_data {
            let data = self.directory.join("data");
            if let Err(error) = fs::remove_dir_all(&data) {
                results.notes.push(format!("{} can't be removed: {error}", data.display()));
            }
        }
        write(&self.directory, &results, &history)?;
        Ok(results)
    }

    /// The results of a run that has begun, and is broken off where nothing else is written.
    fn begun(&self) -> Results {
        Results {
            format: FORMAT,
            valid: Valid::Unknown,
            parameters: self.parameters.clone(),
            began_unix_ms: unix_ms(),
            verdict: unchecked("The run was broken off before its history was checked.".to_owned()),
            findings: Vec::new(),
            doubts: vec![BROKEN_OFF.to_owned()],
            notes: Vec::new(),
            counts: BTreeMap::new(),
            latencies: BTreeMap::new(),
            faults: Vec::new(),
            crashes: Vec::new(),
        }
    }

    /// Everything up to the history. Once clients have begun, what goes wrong with the run itself is a doubt: what they
    /// saw, and what was found, is told all the same.
    async fn perform(&self, progress: &Progress) -> Result<Ran> {
        progress.phase("starting nodes");
        let cluster = Arc::new(Cluster::start(self.settings())?);
        cluster.form(FORMED_WITHIN).await?;
        let recorder = Arc::new(self.recorder()?);
        let workload: Arc<dyn Workload> = Arc::from(self.parameters.workload.make());
        let load = Load::new(&self.parameters, &cluster, &workload, &recorder);
        load.open().await?;
        let mut followers = Followers::start(&self.parameters, &cluster, &workload, &recorder);
        let crew = workload.crew(&cluster, &recorder, self.parameters.seed);
        let mut tale = Tale::default();
        let faults = match self.strain(&cluster, &load, &workload, recorder.began(), progress).await {
            Ok(faults) => faults,
            Err(error) => {
                tale.doubts.push(format!("the load was broken off: {error}"));
                Vec::new()
            }
        };
        let looked =
            self.look_back(&cluster, &load, &mut followers, crew.as_ref(), progress, &mut tale).await;
        if let Err(error) = looked {
            tale.doubts
                .push(format!("the cluster was not healed, read back and compared to the end: {error}"));
        }
        tale.findings.extend(load.corruption());
        tale.findings.extend(followers.end().await);
        if let Some(crew) = crew {
            crew.end().await;
        }
        let crashes = Self::finish(&cluster, &recorder, &mut tale).await;
        drop(load);
        let ops = match Arc::try_unwrap(recorder) {
            Ok(recorder) => {
                recorder.finish().map_err(|source| Error::Io { what: "write the history".into(), source })?
            }
            Err(recorder) => {
                tale.doubts.push("a client still worked when all should have ended".into());
                recorder.since(0)
            }
        };
        let history =
            History::new(ops).map_err(|error| Error::Other(format!("the history is malformed: {error}")))?;
        Ok(Ran { history, faults, crashes, tale })
    }

    /// Has clients work while faults strike. Returns the faults.
    async fn strain(
        &self,
        cluster: &Arc<Cluster>,
        load: &Load,
        workload: &Arc<dyn Workload>,
        began: Instant,
        progress: &Progress,
    ) -> Result<Vec<Happened>> {
        let hot = Arc::clone(workload);
        let stage =
            Stage { cluster: Arc::clone(cluster), began, hot_place: Arc::new(move || hot.hot_place()) };
        progress.load(self.parameters.seconds);
        tokio::select! {
            (faults, done) = async { tokio::join!(nemesis::perform(self.schedule(), stage), load.run(progress)) } => {
                done.map(|()| faults)
            }
            failed = cluster.supervise() => match failed? {},
        }
    }

    /// Heals the cluster, reads everything back, brings followers to the end, and compares the replicas.
    async fn look_back(
        &self,
        cluster: &Arc<Cluster>,
        load: &Load,
        followers: &mut Followers,
        crew: Option<&Crew>,
        progress: &Progress,
        tale: &mut Tale,
    ) -> Result<()> {
        progress.phase("healing");
        if !self.recover(cluster, &mut tale.findings).await? {
            return Ok(());
        }
        if let Some(crew) = crew {
            progress.phase("waiting for sagas to end");
            crew.finish().await;
        }
        progress.phase("reading everything back");
        let closed = load.close().await?;
        if let Some(why) = closed.refused.last() {
            let told = format!(
                "all nodes serve, and {} of the reads at the end get no answer, the last because: {why}",
                closed.refused.len()
            );
            tale.findings.push(finding("not-readable", told));
        }
        if closed.untimely > 0 {
            tale.doubts
                .push(format!("there was no time left for {} of the reads at the end", closed.untimely));
        }
        let behind = followers.finish().await?;
        if !behind.is_empty() {
            let told =
                format!("all nodes serve, and followers do not come to the end: {}", behind.join(", "));
            tale.findings.push(finding("not-followed", told));
        }
        progress.phase("comparing replicas");
        match cluster.compare_replicas().await? {
            Comparison::Equal => {}
            Comparison::Differ(table) => tale.findings.push(finding("replicas-differ", table)),
            Comparison::Unsettled(why) => tale.findings.push(finding("not-comparable", why)),
        }
        Ok(())
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
    async fn finish(cluster: &Arc<Cluster>, recorder: &Recorder, tale: &mut Tale) -> Vec<CrashTold> {
        if let Err(error) = cluster.look_after() {
            tale.doubts.push(format!("a node that had ended was not started again: {error}"));
        }
        let late = cluster.stop().await;
        if !late.is_empty() {
            let nodes: Vec<String> = late.iter().map(|node| (node + 1).to_string()).collect();
            let told = format!("SIGTERM did not end node {} in time", nodes.join(", "));
            tale.findings.push(finding("does-not-stop", told));
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
            tale.findings.push(finding("node-crash", crash.to_string()));
        }
        for (node, line) in cluster.alarms() {
            tale.findings.push(finding("panic", format!("in nodes/{}.log: {line}", node + 1)));
        }
        if let Err(error) = cluster.keep_data() {
            tale.notes.push(format!("the data of the nodes was not kept: {error}"));
        }
        crashes
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
    write_results(directory, results)?;
    put(&directory.join("report.html"), &html::page(results, history))
}

fn write_results(directory: &Path, results: &Results) -> Result<()> {
    let json = serde_json::to_string_pretty(results).map_err(|error| Error::Other(error.to_string()))?;
    put(&directory.join("results.json"), &(json + "\n"))
}

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|source| Error::Io { what: format!("write {}", path.display()), source })
}

/// The verdict on a history that was not checked.
fn unchecked(why: String) -> Verdict {
    Verdict { valid: Valid::Unknown, notes: vec![why], anomalies: Vec::new(), stats: BTreeMap::new() }
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
