//! One node: its process, disk and clock, and the faults that are on it now.

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

/// A node that ended of its own accord.
#[derive(Clone, Debug)]
pub struct Crash {
    /// Its index.
    pub node: usize,
    /// When that was seen.
    pub at: Instant,
    /// How it exited.
    pub status: String,
    /// Whether its disk was full then, or just before.
    pub disk_full: bool,
}

/// A node of a cluster.
pub(super) struct Node {
    // Dropped in this order: the process before the disk it writes to.
    state: Mutex<State>,
    pub(super) address: String,
    pub(super) line: CommandLine,
    pub(super) disk: Disk,
    clock: Option<Clock>,
}

/// What is so now. Counts are of faults that are under way.
#[derive(Default)]
struct State {
    process: Option<Process>,
    down: u32,
    paused: u32,
    full: u32,
    /// Whether its disk has no power.
    dark: bool,
    /// Whether the disk was full since the process started.
    was_full: bool,
    start_at: Option<Instant>,
}

impl Node {
    /// Starts a node.
    pub(super) fn start(
        address: String,
        line: CommandLine,
        disk: Disk,
        clock: Option<Clock>,
    ) -> Result<Self> {
        let state = State { process: Some(line.start()?), ..State::default() };
        Ok(Self { state: Mutex::new(state), address, line, disk, clock })
    }

    pub(super) fn kill(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.down += 1;
        self.line.note("the harness kills the node");
        // A process that waits for a frozen disk does not end.
        self.disk.thaw();
        state.process.take().map_or(Ok(()), Process::kill)
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
            state.was_full = state.full > 0;
        }
        Ok(())
    }

    /// Cuts the power of the node's disk, and with it the node's.
    pub(super) fn cut_power(&self) -> Result<()> {
        self.disk.cut_power()?;
        self.state.lock().dark = true;
        self.kill()
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

    pub(super) fn pause(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.paused += 1;
        state.process.as_ref().map_or(Ok(()), Process::pause)
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
        state.full += 1;
        state.was_full = true;
        let Some(process) = &state.process else { return self.disk.fill() };
        process.pause()?;
        let filled = process.wait_stopped(STOPPED_WITHIN).and_then(|()| self.disk.fill());
        match state.paused {
            0 => process.resume().and(filled),
            _ => filled,
        }
    }

    pub(super) fn free_disk(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.full = state.full.saturating_sub(1);
        if state.full > 0 { Ok(()) } else { self.disk.free() }
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
            _ => self.disk.free(),
        };
        let set = self.clock.as_ref().map_or(Ok(()), |clock| clock.set(0));
        // It fails where the process has just ended, which the next look sees.
        let _ = state.process.as_ref().map(Process::resume);
        let started = self.start_if_due(&mut state);
        lit.and(freed).and(set).and(started)
    }

    /// Notes it where the process has ended of its own accord, and starts it again a little later.
    pub(super) fn look_after(&self, at: usize) -> Result<Option<Crash>> {
        let mut state = self.state.lock();
        let now = Instant::now();
        if state.start_at.is_some_and(|start_at| start_at <= now) {
            self.start_if_due(&mut state)?;
        }
        let Some(status) = state.process.as_mut().and_then(Process::ended) else { return Ok(None) };
        self.line.note(&format!("the node ended of its own accord: {status}"));
        state.process = None;
        state.start_at = Some(now + RESTART_AFTER);
        Ok(Some(Crash { node: at, at: now, status: status.to_string(), disk_full: state.was_full }))
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

    /// The end, at once.
    pub(super) fn end(&self) {
        self.disk.thaw();
        self.state.lock().process = None;
    }
}
