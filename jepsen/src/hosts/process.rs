//! A node's process: started, killed, stopped and continued.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::clock::Clock;
use super::record::Record;
use super::tools::{Context, Error, Result};

/// How to start a node. The same every time.
#[derive(Clone, Debug)]
pub struct CommandLine {
    /// The program and its arguments.
    pub words: Vec<String>,
    /// What its environment has besides the harness's own.
    pub environment: Vec<(String, String)>,
    /// Where its output goes, at the end.
    pub log: PathBuf,
    /// Where its processes are taken down.
    pub record: Arc<Record>,
}

/// A process of a node, while it runs. Dropped, it is killed.
pub struct Process {
    child: Child,
}

impl CommandLine {
    /// Starts the process.
    ///
    /// # Errors
    /// Where the log can't be opened or the program not be started.
    pub fn start(&self) -> Result<Process> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.context(|| format!("open {}", self.log.display()))?;
        let mut command = Command::new(&self.words[0]);
        // Settings of the user's own cluster are not for these nodes.
        for (name, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("KVORUM_") && name != "KVORUM_LOG")
        {
            command.env_remove(name);
        }
        command.args(&self.words[1..]).envs(self.environment.iter().map(|(name, value)| (name, value)));
        // Our end of its standard input closes when the harness ends, in whatever way; then the node stops too.
        command.stdin(Stdio::piped());
        command.stdout(log.try_clone().context(|| "a handle of the log".into())?).stderr(log);
        let child = command.spawn().context(|| format!("start {}", self.words.join(" ")))?;
        self.record.node(child.id());
        Ok(Process { child })
    }

    /// Adds a line of the harness to the node's log.
    pub fn note(&self, words: &str) {
        let line = format!("==== {words}\n");
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        // The log is for people: a run does not fail for want of a line in it.
        let _ = log.and_then(|mut log| std::io::Write::write_all(&mut log, line.as_bytes()));
    }
}

impl Process {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and the end of the process. Returns how it ended: by that signal, or before of its own accord.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.end()
    }

    fn end(&mut self) -> Result<ExitStatus> {
        let id = self.id();
        self.child.kill().context(|| format!("kill process {id}"))?;
        let status = self.child.wait().context(|| format!("wait for process {id}"))?;
        Clock::tidy(id);
        Ok(status)
    }

    /// Stops the process where it is, until [`resume`](Self::resume).
    ///
    /// # Errors
    /// Where the system refuses, as when it has ended.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Waits until a process that was [paused](Self::pause) stands still, all of its threads.
    ///
    /// # Errors
    /// Where that does not happen in time.
    pub fn wait_stopped(&self, within: Duration) -> Result<()> {
        let until = Instant::now() + within;
        while !stands_still(self.id()) {
            if Instant::now() > until {
                return Err(Error::Other(format!("process {} does not stop within {within:?}", self.id())));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Where the system refuses, as when it has ended.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGTERM: the process ends when it is ready to.
    ///
    /// # Errors
    /// Where the system refuses, as when it has ended.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        // An error means that it was waited for already, which only `end` does.
        self.child.try_wait().ok().flatten()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        let sent = id.map_or(Err(rustix::io::Errno::SRCH), |pid| kill_process(pid, signal));
        sent.map_err(std::io::Error::from).context(|| format!("signal process {}", self.id()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.end();
    }
}

/// Whether no thread of the process runs or waits for its disk.
fn stands_still(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let states = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    // The state comes after the name, which is in parentheses and may hold some itself.
    let mut letters = states.filter_map(|stat| stat.rsplit(')').next()?.trim_start().chars().next());
    letters.all(|letter| matches!(letter, 'T' | 't' | 'Z' | 'X'))
}

/// The lines of a log that tell of a panic or another end that a node is not meant to have.
pub fn alarms(log: &std::path::Path) -> Vec<String> {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let is_alarm =
        |line: &&str| line.contains("panicked at") || line.contains("SIGABRT") || line.contains("SIGSEGV");
    text.lines().filter(is_alarm).map(str::to_owned).take(20).collect()
}
