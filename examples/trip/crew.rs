//! The processes of a run: services, workers, nodes. Only what was started here is ever ended here.

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::Result;

/// How long a process may take to listen, or to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// Below 30000 the system takes no ports for outgoing connections by default: none is taken while its process is down.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// Returns when standard input ends. All processes of a run have a pipe of the first one as their standard input: however
/// that one ends, they notice and end too.
pub async fn stdin_ended() {
    let mut ignored = [0_u8; 64];
    while matches!(tokio::io::stdin().read(&mut ignored).await, Ok(read) if read > 0) {}
}

/// Addresses that nothing listens on now.
pub fn free_addresses(count: usize) -> Vec<String> {
    // Held until all are chosen, so that none is chosen twice.
    let mut held = Vec::new();
    while held.len() < count {
        held.extend(TcpListener::bind(("127.0.0.1", rand::random_range(PORTS))));
    }
    held.iter().filter_map(|listener| Some(listener.local_addr().ok()?.to_string())).collect()
}

/// A process that can be killed and started again.
pub struct Member {
    /// What it is, for people; also the name of its log file.
    pub name: String,
    program: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    running: Option<(Child, Option<ChildStdin>)>,
}

impl Member {
    /// A process, not started yet. Its log goes to `dir`.
    pub fn new(name: impl Into<String>, program: &Path, dir: &Path, args: Vec<String>) -> Self {
        let name = name.into();
        let log = dir.join(format!("{name}.log"));
        Self { name, program: program.to_owned(), args, log, running: None }
    }

    /// Starts it, with further arguments.
    pub fn start(&mut self, more: &[String]) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        for (name, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("KVORUM_") && name != "KVORUM_LOG")
        {
            command.env_remove(name);
        }
        command
            .args(&self.args)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in a terminal is for the first process alone, which then ends the others.
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| {
            format!("{} can't be started as {}: {error}", self.program.display(), self.name)
        })?;
        // Taken out: waiting for the process would close it, and that would end it.
        let lifeline = child.stdin.take();
        self.running = Some((child, lifeline));
        Ok(())
    }

    /// SIGKILL: it gets no chance to finish anything.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some((mut child, _lifeline)) = self.running.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Lets it finish what it has begun, and end.
    pub async fn stop(&mut self) -> Result<()> {
        let Some((mut child, lifeline)) = self.running.take() else { return Ok(()) };
        drop(lifeline);
        match timeout(PATIENCE, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(_) => Err(format!("{} ended with an error; see {}", self.name, self.log.display()).into()),
            Err(_) => {
                child.kill().await?;
                Err(format!("{} did not stop in time; see {}", self.name, self.log.display()).into())
            }
        }
    }

    /// An error where it has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        match self.running.as_mut().map(|(child, _)| child.try_wait()) {
            Some(Ok(Some(status))) => {
                Err(format!("{} has ended by itself ({status}); see {}", self.name, self.log.display())
                    .into())
            }
            Some(Err(error)) => Err(error.into()),
            Some(Ok(None)) | None => Ok(()),
        }
    }

    /// Waits until it listens on an address.
    pub async fn listens(&mut self, address: &str) -> Result<()> {
        let give_up_at = Instant::now() + PATIENCE;
        while TcpStream::connect(address).await.is_err() {
            self.check()?;
            if Instant::now() >= give_up_at {
                return Err(format!(
                    "{} does not listen on {address}; see {}",
                    self.name,
                    self.log.display()
                )
                .into());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}
