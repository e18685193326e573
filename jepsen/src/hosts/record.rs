//! What a harness leaves if it is killed: written down as it is made, so that the next one can remove it.
//!
//! Processes are known by their id and the time when they started, since ids are given again.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::leftovers::MOUNTS;

/// The file in a harness's directory.
const NAME: &str = "record";

/// A process: its id, and when it started, in ticks since the machine did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Started {
    pub pid: u32,
    pub at_ticks: u64,
}

impl Started {
    /// The process that has this id now.
    pub fn now(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses and may hold anything; the start is the twentieth field behind it.
        let at_ticks = stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, at_ticks })
    }

    /// Whether it still runs.
    pub fn runs(self) -> bool {
        Self::now(self.pid) == Some(self)
    }
}

/// The record of a run of this process. Dropped, it is gone: so is what it tells of.
#[derive(Debug)]
pub struct Record {
    /// The harness's directory; none where it could not be made.
    directory: Option<PathBuf>,
}

impl Record {
    /// A record in this harness's own directory.
    pub fn begin() -> Self {
        Self::begin_in(&home())
    }

    /// A record in a directory of such directories. Where it can't be written there is none: a run does not fail for that.
    pub(super) fn begin_in(home: &Path) -> Self {
        let id = std::process::id();
        let directory = home.join(id.to_string());
        let begun = Started::now(id).filter(|_| fs::create_dir_all(&directory).is_ok());
        let first = begun.map(|own| format!("harness {} {}\n", own.pid, own.at_ticks));
        let is_written = first.is_some_and(|line| fs::write(directory.join(NAME), line).is_ok());
        Self { directory: is_written.then_some(directory) }
    }

    /// No record.
    #[cfg(test)]
    pub fn none() -> Self {
        Self { directory: None }
    }

    /// Takes down a node's process.
    pub fn node(&self, pid: u32) {
        if let Some(node) = Started::now(pid) {
            self.add(&format!("node {} {}\n", node.pid, node.at_ticks));
        }
    }

    /// Takes down a file that is to go with the run.
    pub fn file(&self, path: &Path) {
        self.add(&format!("file {}\n", path.display()));
    }

    fn add(&self, line: &str) {
        let Some(directory) = &self.directory else { return };
        let file = OpenOptions::new().append(true).open(directory.join(NAME));
        // As above: it is only for harnesses that are killed.
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            let _ = fs::remove_file(directory.join(NAME));
            let _ = fs::remove_dir(directory);
        }
    }
}

/// What a record says.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Left {
    pub harness: Option<Started>,
    pub nodes: Vec<Started>,
    pub files: Vec<PathBuf>,
}

impl Left {
    /// What the record in a harness's directory says, if there is one.
    pub fn read(directory: &Path) -> Option<Self> {
        Some(Self::parse(&fs::read_to_string(directory.join(NAME)).ok()?))
    }

    fn parse(text: &str) -> Self {
        let mut left = Self::default();
        for line in text.lines() {
            let Some((what, rest)) = line.split_once(' ') else { continue };
            let started = rest.split_once(' ').and_then(|(pid, at_ticks)| {
                Some(Started { pid: pid.parse().ok()?, at_ticks: at_ticks.parse().ok()? })
            });
            match (what, started) {
                ("harness", Some(started)) => left.harness = Some(started),
                ("node", Some(started)) => left.nodes.push(started),
                ("file", _) => left.files.push(rest.into()),
                _ => {}
            }
        }
        left
    }

    /// Removes the record itself.
    pub fn forget(directory: &Path) {
        let _ = fs::remove_file(directory.join(NAME));
    }
}

/// Where harnesses have their directories, named by their process ids.
pub fn home() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        MOUNTS.into()
    } else {
        std::env::temp_dir().join(format!("kvorum-jepsen-{}", user.as_raw()))
    }
}

/// Whether a directory is this user's own: what somebody else wrote down is not to be removed.
pub fn is_own(directory: &Path) -> bool {
    fs::symlink_metadata(directory)
        .is_ok_and(|found| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_when_it_started() {
        let own = Started::now(std::process::id()).unwrap();
        assert!(own.runs());
        assert!(!Started { at_ticks: own.at_ticks + 1, ..own }.runs());
    }

    #[test]
    fn a_record_says_what_was_taken_down_and_goes_with_the_run() {
        let home = tempfile::tempdir().unwrap();
        let own = Started::now(std::process::id()).unwrap();
        let directory = home.path().join(own.pid.to_string());
        let record = Record::begin_in(home.path());
        record.node(own.pid);
        record.file(Path::new("/some where/1.img"));
        let left = Left::read(&directory).unwrap();
        let files = vec!["/some where/1.img".into()];
        assert_eq!(left, Left { harness: Some(own), nodes: vec![own], files });
        drop(record);
        assert!(!directory.exists());
    }
}
