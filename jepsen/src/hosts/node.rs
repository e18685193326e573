//! One node: its process, disk and clock, and the faults that are on it now.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::clock::Clock;
use super::disk::Disk;
use super::process::{CommandLine, Process};
use super::tools::{Error, Result};

/// A node that ended of its own accord is started again after this time, as a supervisor does.
const RESTART_AFTER: Duration = Duration::from_millis(500);

/// How long a process that is paused may take until it stands still. It waits for what it does with its disk.
const STOPPED_WITHIN: Duration = Duration::from_secs(5);

/// So long after a full disk got its room back, it can still be why a node ends.
const EXCUSED_FOR: Duration = Duration::from_secs(5);

/// The exit code of a Rust program that panicked.
const PANICKED: i32 = 101;

/// SIGKILL and SIGTERM.
const KILLED: i32 = rustix::process::Signal::KILL.as_raw();
const TERMINATED: i32 = rustix::process::Signal::TERM.as_raw();

/// A node that ended of its own accord.
#[derive(Clone, Debug)]
pub struct Crash {
    /// Its index.
    pub node: usize,
    /// When that was seen.
    pub at: Instant,
    /// How it exited.
    pub status: String,
    /// Whether its disk was full then, or just before, and it ended by itself as it is meant to.
    pub disk_full: bool,
}

/// A node of a cluster.
pub(super) struct Node {
    // Dropped in this order: the process before the disk it writes to.
    state: Mutex<State>,
    index: usize,
    pub(super) address: String,
    pub(super) line: CommandLine,
    pub(super) disk: Disk,
    clock: Option<Clock>,
}

/// What is so now. Counts are of faults that are under way: a fault whose beginning fails is not counted.
#[derive(Default)]
struct State {
    process: Option<Process>,
    down: u32,
    paused: u32,
    full: u32,
    /// Whether its disk has no power.
    dark: bool,
    /// When a full disk got its room back.
    freed_at: Option<Instant>,
    start_at: Option<Instant>,
    crashes: Vec<Crash>,
}

impl State {
    /// Whether an end now can be the doing of a full disk. Signals and panics never are: a node whose disk refuses a write
    /// is to end by itself.
    fn is_excused(&self, status: ExitStatus, now: Instant) -> bool {
        let was_full = self.freed_at.is_some_and(|freed_at| now < freed_at + EXCUSED_FOR);
        (self.full > 0 || was_full) && status.code().is_some_and(|code| code != PANICKED)
    }
}

impl Node {
    /// Starts a node.
    pub(super) fn start(
        index: usize,
        address: String,
        line: CommandLine,
        disk: Disk,
        clock: Option<Clock>,
    ) -> Result<Self> {
        let state = State { process: Some(line.start()?), ..State::default() };
        Ok(Self { state: Mutex::new(state), index, address, line, disk, clock })
    }

    pub(super) fn kill(&self) -> Result<()> {
        self.kill_now(&mut self.state.lock())
    }

    fn kill_now(&self, state: &mut State) -> Result<()> {
        state.down += 1;
        self.line.note("the harness kills the node");
        // A process that waits for a frozen disk does not end.
        self.disk.thaw();
        let Some(process) = state.process.take() else { return Ok(()) };
        match process.kill() {
            Ok(status) => {
                if status.signal() != Some(KILLED) {
                    self.note_end(state, status);
                }
                Ok(())
            }
            Err(error) => {
                state.down -= 1;
                state.start_at = Some(Instant::now() + RESTART_AFTER);
                Err(error)
            }
        }
    }

    /// Takes down that the process ended of its own accord.
    fn note_end(&self, state: &mut State, status: ExitStatus) {
        let now = Instant::now();
        self.line.note(&format!("the node ended of its own accord: {status}"));
        let disk_full = state.is_excused(status, now);
        state.crashes.push(Crash { node: self.index, at: now, status: status.to_string(), disk_full });
    }

    pub(super) fn revive(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.down = state.down.saturating_sub(1);
        self.start_if_due(&mut state)
    }

    fn start_if_due(&self, state: &mut State) -> Result<()> {
        if state.down == 0 && !state.dark && state.process.is_none() {
            self.line.note("the harness starts the node");
            state.process = Some(self.line.start()?);
            state.start_at = None;
        }
        Ok(())
    }

    /// Cuts the power of the node's disk, and with it the node's.
    pub(super) fn cut_power(&self) -> Result<()> {
        // Killed first, so that it never sees the dark disk: what it did not sync is lost all the same. Under one lock: no
        // other fault's end may start it in between.
        let mut state = self.state.lock();
        self.kill_now(&mut state)?;
        if let Err(error) = self.disk.cut_power() {
            state.down = state.down.saturating_sub(1);
            state.start_at = Some(Instant::now() + RESTART_AFTER);
            return Err(error);
        }
        state.dark = true;
        Ok(())
    }

    /// Brings the power back, and ends one [`cut_power`](Self::cut_power).
    pub(super) fn restore_power(&self, seed: u64) -> Result<()> {
        // Under the lock: no other fault's end may start the node on a disk without power.
        let mut state = self.state.lock();
        self.disk.restore_power(seed)?;
        state.dark = false;
        state.down = state.down.saturating_sub(1);
        self.start_if_due(&mut state)
    }

    /// # Errors
    /// Where the node is down: then it is not paused.
    pub(super) fn pause(&self) -> Result<()> {
        let mut state = self.state.lock();
        let Some(process) = &state.process else {
            return Err(Error::Other(format!("node {} was down", self.index + 1)));
        };
        process.pause()?;
        state.paused += 1;
        Ok(())
    }

    pub(super) fn resume(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.paused = state.paused.saturating_sub(1);
        match &state.process {
            Some(process) if state.paused == 0 => process.resume(),
            _ => Ok(()),
        }
    }

    pub(super) fn set_clock(&self, offset_ms: i64) -> Result<()> {
        let clock = self.clock.as_ref();
        let none = || {
            Error::Other("this run has no faked clocks: libfaketime is missing or was not asked for".into())
        };
        clock.ok_or_else(none)?.set(offset_ms)
    }

    pub(super) fn fill_disk(&self) -> Result<()> {
        let mut state = self.state.lock();
        let stopped = match &state.process {
            Some(process) => process.pause().and_then(|()| process.wait_stopped(STOPPED_WITHIN)),
            None => Ok(()),
        };
        let filled = stopped.and_then(|()| self.disk.fill());
        // It fails where the process has just ended, which the next look sees.
        if state.paused == 0 {
            let _ = state.process.as_ref().map(Process::resume);
        }
        match filled {
            Ok(()) => state.full += 1,
            // Half a filling is none, unless another fault keeps the disk full.
            Err(_) if state.full == 0 => drop(self.disk.free()),
            Err(_) => {}
        }
        filled
    }

    pub(super) fn free_disk(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.full = state.full.saturating_sub(1);
        if state.full > 0 { Ok(()) } else { self.give_room(&mut state) }
    }

    /// Gives the disk its room back; a node that has ended for want of it starts again a little later.
    fn give_room(&self, state: &mut State) -> Result<()> {
        let now = Instant::now();
        state.freed_at = Some(now);
        if state.process.is_none() && state.down == 0 && !state.dark {
            self.line.note("there is room on the disk again: the node is to start");
            state.start_at = Some(now + RESTART_AFTER);
        }
        self.disk.free()
    }

    /// Ends every fault.
    pub(super) fn heal(&self) -> Result<()> {
        let mut state = self.state.lock();
        (state.down, state.paused) = (0, 0);
        self.disk.thaw();
        let lit = match std::mem::take(&mut state.dark) {
            true => self.disk.restore_power(0),
            false => Ok(()),
        };
        let freed = match std::mem::take(&mut state.full) {
            0 => Ok(()),
            _ => self.give_room(&mut state),
        };
        let set = self.clock.as_ref().map_or(Ok(()), |clock| clock.set(0));
        // It fails where the process has just ended, which the next look sees.
        let _ = state.process.as_ref().map(Process::resume);
        let started = self.start_if_due(&mut state);
        lit.and(freed).and(set).and(started)
    }

    /// Notes it where the process has ended of its own accord, and starts it again a little later: where its disk is
    /// full, when there is room.
    pub(super) fn look_after(&self) -> Result<()> {
        let mut state = self.state.lock();
        let now = Instant::now();
        if state.start_at.is_some_and(|start_at| start_at <= now) {
            self.start_if_due(&mut state)?;
        }
        let Some(status) = state.process.as_mut().and_then(Process::ended) else { return Ok(()) };
        self.note_end(&mut state, status);
        state.process = None;
        let waits = state.full > 0;
        if waits {
            self.line.note("its disk is full: it is started again when there is room");
        }
        state.start_at = (!waits).then_some(now + RESTART_AFTER);
        Ok(())
    }

    /// The times when it ended of its own accord.
    pub(super) fn crashes(&self) -> Vec<Crash> {
        self.state.lock().crashes.clone()
    }

    /// Whether a process runs, or has ended and nobody has looked yet.
    pub(super) fn runs(&self) -> bool {
        self.state.lock().process.as_mut().is_some_and(|process| process.ended().is_none())
    }

    /// SIGTERM, and no restart from here on.
    pub(super) fn terminate(&self) {
        let mut state = self.state.lock();
        state.down += 1;
        // It fails where the process has ended, which is what is wanted.
        let _ = state.process.as_ref().map(Process::terminate);
    }

    /// The end of a node that was told to stop, at once. One that did not end well by then is noted.
    pub(super) fn end(&self) {
        self.disk.thaw();
        let mut state = self.state.lock();
        // An error means that there is nothing left to end.
        let Some(status) = state.process.take().and_then(|process| process.kill().ok()) else { return };
        // Who is killed here was too slow, which is told by itself, and SIGTERM may come before it is waited for.
        if !status.success() && !matches!(status.signal(), Some(KILLED | TERMINATED)) {
            self.note_end(&mut state, status);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A process that waits for a frozen disk does not end, and its end is waited for.
        self.disk.thaw();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::disk::DiskKind;
    use crate::hosts::record::Record;

    /// A node that runs this script instead of a server, in a directory.
    fn node(script: &str, home: &std::path::Path) -> Node {
        let words = ["sh", "-c", script].map(str::to_owned).to_vec();
        let record = std::sync::Arc::new(Record::none());
        let disk = Disk::make(DiskKind::Directory, home, 1, &record).unwrap();
        let line = CommandLine { words, environment: Vec::new(), log: home.join("1.log"), record };
        Node::start(0, "nowhere:1".into(), line, disk, None).unwrap()
    }

    /// Waits until something is so.
    fn wait(what: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(10);
        while !what() {
            assert!(Instant::now() < until, "it does not come to that");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn exited(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    #[test]
    fn a_node_that_ended_before_it_was_killed_has_crashed_and_one_that_was_killed_has_not() {
        let home = tempfile::tempdir().unwrap();
        let ended = node("exit 7", home.path());
        wait(|| !ended.runs());
        ended.kill().unwrap();
        assert_eq!(ended.crashes().len(), 1);
        assert!(ended.crashes()[0].status.contains('7') && !ended.crashes()[0].disk_full);
        let killed = node("sleep 60", home.path());
        killed.kill().unwrap();
        assert_eq!(killed.crashes().len(), 0);
    }

    #[test]
    fn a_node_that_does_not_stop_well_has_crashed() {
        let home = tempfile::tempdir().unwrap();
        for (script, crashes) in [
            ("trap 'exit 9' TERM; touch ready; while :; do sleep 0.01; done", 1),
            ("trap 'exit 0' TERM; touch ready; while :; do sleep 0.01; done", 0),
        ] {
            let ready = home.path().join("ready");
            let node = node(&script.replace("ready", &ready.to_string_lossy()), home.path());
            wait(|| ready.exists());
            std::fs::remove_file(&ready).unwrap();
            node.terminate();
            wait(|| !node.runs());
            node.end();
            assert_eq!(node.crashes().len(), crashes, "{script}: {:?}", node.crashes());
        }
    }

    #[test]
    fn a_full_disk_excuses_an_end_while_it_is_full_and_shortly_after() {
        let now = Instant::now();
        let mut state = State { full: 1, ..State::default() };
        assert!(state.is_excused(exited(3), now));
        assert!(!state.is_excused(exited(PANICKED), now) && !state.is_excused(ExitStatus::from_raw(6), now));
        (state.full, state.freed_at) = (0, Some(now));
        assert!(state.is_excused(exited(3), now + Duration::from_secs(1)));
        assert!(!state.is_excused(exited(3), now + EXCUSED_FOR));
        assert!(!State::default().is_excused(exited(3), now));
    }

    #[test]
    fn a_failed_filling_excuses_nothing_and_a_node_that_is_down_is_not_paused() {
        let home = tempfile::tempdir().unwrap();
        let node = node("sleep 60", home.path());
        assert!(node.fill_disk().is_err());
        assert_eq!(node.state.lock().full, 0);
        assert!(node.runs());
        node.pause().unwrap();
        node.resume().unwrap();
        node.kill().unwrap();
        assert!(node.pause().unwrap_err().to_string().contains("node 1 was down"));
        assert_eq!(node.state.lock().paused, 0);
    }
}
