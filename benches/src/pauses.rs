//! Pausing a process again and again, so that it is slow and not dead.

use std::convert::Infallible;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{MissedTickBehavior, interval};

use crate::Result;

/// A process is paused for so long, and then runs for so long.
pub const PAUSE: Duration = Duration::from_millis(50);

/// A process that runs again at the latest when this is dropped.
struct Paused(Pid);

impl Paused {
    fn stop(&self) -> Result<()> {
        Ok(kill_process(self.0, Signal::STOP)?)
    }

    fn resume(&self) -> Result<()> {
        Ok(kill_process(self.0, Signal::CONT)?)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        // It fails where the process is gone, and then there is nothing to resume.
        let _ = self.resume();
    }
}

/// Pauses the process of this id, and resumes it, until the future is dropped or the process is gone. Whoever drops it
/// leaves the process running: it must therefore not be a task of its own, which ends some time after its abort.
pub async fn again_and_again(pid: u32) -> Result<Infallible> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("that is no process id")?;
    let process = Paused(pid);
    let mut half = interval(PAUSE);
    // Where this task came late, the process is still paused for a whole pause.
    half.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        half.tick().await;
        process.stop()?;
        half.tick().await;
        process.resume()?;
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// The letter of a process's state: T is stopped.
    fn state(pid: u32) -> String {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
        stat.rsplit_once(") ").expect("a name in parentheses").1[..1].to_owned()
    }

    #[tokio::test]
    async fn a_process_is_paused_and_always_resumed() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().expect("sleep");
        let pid = child.id();
        let mut stopped = 0;
        for _ in 0..20 {
            // Ends at any moment of a pause.
            let watched = async {
                for _ in 0..7 {
                    tokio::time::sleep(Duration::from_millis(9)).await;
                    stopped += usize::from(state(pid) == "T");
                }
            };
            tokio::select! {
                () = watched => {}
                failed = again_and_again(pid) => panic!("{failed:?}"),
            }
            // The signal takes a moment.
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_ne!(state(pid), "T");
        }
        assert!((30..=130).contains(&stopped), "paused in {stopped} of 140 looks");
        child.kill().expect("it runs");
        child.wait().expect("it ended");
        let failed = tokio::time::timeout(Duration::from_secs(5), again_and_again(pid)).await;
        assert!(failed.expect("it ends by itself").is_err(), "the process is gone");
    }
}
