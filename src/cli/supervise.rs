//! The processes of a development cluster: started, watched, started again, stopped.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use futures::FutureExt;
use futures::future::select_all;
use tokio::process::{Child as Process, ChildStdin, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::admin;
use super::failure::{Failure, file_error};
use super::local::{ClusterFile, NodeEntry};
use crate::rpc::v1::GetStatusReply;
use crate::{Error, Result};

/// The wait before a node that died is started again: the first, and the most. It doubles with each death
/// until a node has lived for [`STEADY`].
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
const STEADY: Duration = Duration::from_secs(10);
/// How long a node may take to stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// How much of a log file is looked at for its last lines.
const TAIL_BYTES: u64 = 4 * 1024;
const POLL: Duration = Duration::from_millis(50);

/// A node to run.
#[derive(Clone, Debug)]
pub struct Child {
    /// Its line in `cluster.json`.
    pub entry: NodeEntry,
    /// The gRPC addresses of all nodes.
    pub join: Vec<String>,
}

/// All processes of a development cluster.
pub struct Supervisor {
    program: PathBuf,
    children: Vec<Child>,
    running: Vec<Running>,
    restart: bool,
}

struct Running {
    state: RunState,
    backoff: Duration,
}

enum RunState {
    Alive {
        process: Box<Process>,
        /// Our end of its standard input: it stops when this closes.
        _lifeline: Option<ChildStdin>,
        since: Instant,
    },
    /// Dead, to be started again at this time; `None` is never.
    Dead { again_at: Option<Instant> },
}

enum Event {
    Died { at: usize, how: String },
    Due { at: usize },
    Stop,
}

impl Supervisor {
    /// Starts all nodes.
    pub async fn start(children: Vec<Child>, restart: bool) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|error| {
            Error::unavailable(format!("the program of this process can't be found: {error}"))
        })?;
        let mut supervisor = Self { program, children, running: Vec::new(), restart };
        for at in 0..supervisor.children.len() {
            match supervisor.spawn(at) {
                Ok(state) => supervisor.running.push(Running { state, backoff: FIRST_BACKOFF }),
                Err(failure) => {
                    supervisor.stop().await;
                    return Err(failure);
                }
            }
        }
        Ok(supervisor)
    }

    /// The nodes.
    pub fn children(&self) -> &[Child] {
        &self.children
    }

    /// Records the id that the cluster gave a node.
    pub fn set_id(&mut self, at: usize, id: u64) {
        self.children[at].entry.id = id;
    }

    /// What `cluster.json` says now.
    pub fn cluster_file(&self, cluster_id: &str) -> ClusterFile {
        ClusterFile {
            cluster_id: cluster_id.to_owned(),
            nodes: self.children.iter().map(|child| child.entry.clone()).collect(),
        }
    }

    /// Starts the process of node `at` and records its id.
    fn spawn(&mut self, at: usize) -> Result<RunState, Failure> {
        let entry = &self.children[at].entry;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&entry.log)
            .map_err(|error| file_error(&entry.log, "opened", &error))?;
        let errors = log.try_clone().map_err(|error| file_error(&entry.log, "opened", &error))?;
        let mut command = Command::new(&self.program);
        command
            .arg("serve")
            .arg("--data")
            .arg(&entry.data)
            .args(["--listen", &entry.grpc, "--http", &entry.http, "--join"])
            .arg(self.children[at].join.join(","))
            .arg("--stop-on-stdin-eof")
            // Our end closes when we die, in whatever way; then the node stops too.
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors)
            // Ctrl-C in a terminal goes to us alone; we stop the nodes.
            .process_group(0)
            .kill_on_drop(true);
        for name in ["KVORUM_ADVERTISE", "KVORUM_ZONE", "KVORUM_CONFIG", "KVORUM_OUTPUT"] {
            command.env_remove(name);
        }
        let mut process = command.spawn().map_err(|error| {
            Error::unavailable(format!("{} can't be started: {error}", self.program.display()))
        })?;
        self.children[at].entry.pid = process.id().unwrap_or(0);
        // Taken out: waiting for the process would close it, and the node would stop.
        let lifeline = process.stdin.take();
        Ok(RunState::Alive { process: Box::new(process), _lifeline: lifeline, since: Instant::now() })
    }

    /// Waits until a process changed (true: `cluster.json` is to be written anew) or until `stop` (false).
    pub async fn watch(&mut self, stop: &CancellationToken) -> bool {
        loop {
            let event = self.next_event(stop).await;
            match event {
                Event::Stop => return false,
                Event::Died { at, how } => self.died(at, &how),
                Event::Due { at } => match self.spawn(at) {
                    Ok(state) => {
                        self.running[at].state = state;
                        self.say(at, &format!("started again as process {}", self.children[at].entry.pid));
                        return true;
                    }
                    Err(failure) => self.died(at, &format!("{failure:?}")),
                },
            }
        }
    }

    async fn next_event(&mut self, stop: &CancellationToken) -> Event {
        let waits = self.running.iter_mut().enumerate().map(|(at, running)| {
            async move {
                match &mut running.state {
                    RunState::Alive { process, .. } => {
                        let how = match process.wait().await {
                            Ok(status) => status.to_string(),
                            Err(error) => error.to_string(),
                        };
                        Event::Died { at, how }
                    }
                    RunState::Dead { again_at: Some(again_at) } => {
                        tokio::time::sleep_until(*again_at).await;
                        Event::Due { at }
                    }
                    RunState::Dead { again_at: None } => std::future::pending().await,
                }
            }
            .boxed()
        });
        let any = select_all(waits);
        tokio::select! {
            (event, _, _) = any => event,
            () = stop.cancelled() => Event::Stop,
        }
    }

    fn died(&mut self, at: usize, how: &str) {
        let running = &mut self.running[at];
        if matches!(&running.state, RunState::Alive { since, .. } if since.elapsed() >= STEADY) {
            running.backoff = FIRST_BACKOFF;
        }
        let wait = running.backoff;
        running.backoff = (wait * 2).min(MAX_BACKOFF);
        let again_at = self.restart.then(|| Instant::now() + wait);
        running.state = RunState::Dead { again_at };
        let next = match again_at {
            Some(_) => format!("starts again in {} ms", wait.as_millis()),
            None => "stays down (--no-restart)".to_owned(),
        };
        self.say(at, &format!("process {} ended ({how}); it {next}", self.children[at].entry.pid));
    }

    fn say(&self, at: usize, what: &str) {
        let entry = &self.children[at].entry;
        // Nobody may be listening any more; the nodes matter more than the message.
        let _ = writeln!(std::io::stderr(), "node {}: {what}", entry.id);
    }

    /// Waits until the node says something that `enough` accepts.
    ///
    /// # Errors
    /// `Unavailable` when the time is over or the process has ended.
    pub async fn wait_for(
        &mut self,
        entry: &NodeEntry,
        give_up_at: Instant,
        enough: impl Fn(&GetStatusReply) -> bool,
    ) -> Result<GetStatusReply> {
        loop {
            let status = admin::status_of(&entry.grpc, Duration::from_secs(2)).await;
            match status {
                Ok(status) if enough(&status) => return Ok(status),
                _ => {}
            }
            let ended = self.ended(entry.pid);
            if ended.is_some() || Instant::now() >= give_up_at {
                let what = ended
                    .map_or_else(|| "is not ready in time".to_owned(), |how| format!("has ended ({how})"));
                return Err(Error::unavailable(format!(
                    "the node at {} {what}; the end of {}:\n{}",
                    entry.grpc,
                    entry.log.display(),
                    tail(&entry.log)
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn ended(&mut self, pid: u32) -> Option<String> {
        let at = self.children.iter().position(|child| child.entry.pid == pid)?;
        match &mut self.running[at].state {
            RunState::Alive { process, .. } => {
                process.try_wait().ok().flatten().map(|status| status.to_string())
            }
            RunState::Dead { .. } => Some("dead".to_owned()),
        }
    }

    /// Stops all nodes: SIGTERM to all, then a wait, then SIGKILL to what is left.
    pub async fn stop(&mut self) {
        for running in &self.running {
            if let RunState::Alive { process, .. } = &running.state {
                terminate(process);
            }
        }
        let give_up_at = Instant::now() + STOP_PATIENCE;
        for at in 0..self.running.len() {
            let RunState::Alive { process, .. } = &mut self.running[at].state else { continue };
            if tokio::time::timeout_at(give_up_at, process.wait()).await.is_err() {
                // An error means that it has ended meanwhile.
                let _ = process.kill().await;
                self.say(at, "did not stop in time and was killed");
            }
        }
    }
}

fn terminate(process: &Process) {
    let pid = process.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // An error means that it has ended already.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// The last lines of a log file.
fn tail(path: &std::path::Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut text = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    match read() {
        Ok(text) => {
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(10)..].join("\n")
        }
        Err(error) => format!("(it can't be read: {error})"),
    }
}
