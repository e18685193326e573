//! A node's wall clock, set by libfaketime. Its monotonic clock is left alone.

use std::fs;
use std::path::{Path, PathBuf};

use super::tools::{Context, Result};

/// The wall clock of one node's processes.
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// A clock that shows the real time until it is set, kept in a file of the directory.
    ///
    /// # Errors
    /// Where the file can't be written.
    pub fn new(library: PathBuf, directory: &Path, number: usize) -> Result<Self> {
        let clock = Self { library, file: directory.join(format!("{number}.clock")) };
        clock.set(0)?;
        Ok(clock)
    }

    /// What a process needs in its environment to live by this clock.
    pub fn environment(&self) -> Vec<(String, String)> {
        let pairs = [
            ("LD_PRELOAD", self.library.to_string_lossy().into_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_string_lossy().into_owned()),
            // The file is read again at every look at the clock.
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("DONT_FAKE_MONOTONIC", "1".into()),
            ("NO_FAKE_STAT", "1".into()),
        ];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Sets the clock so many milliseconds ahead of the real time, or behind it.
    ///
    /// # Errors
    /// Where the file can't be written.
    pub fn set(&self, offset_ms: i64) -> Result<()> {
        // Replaced as a whole, so that nobody reads half of it.
        let next = self.file.with_extension("next");
        fs::write(&next, offset(offset_ms)).context(|| format!("write {}", next.display()))?;
        fs::rename(&next, &self.file).context(|| format!("write {}", self.file.display()))
    }

    /// Removes what the library leaves in shared memory when its process is killed.
    pub fn tidy(pid: u32) {
        for name in [format!("/dev/shm/faketime_shm_{pid}"), format!("/dev/shm/sem.faketime_sem_{pid}")] {
            let _ = fs::remove_file(name);
        }
    }
}

/// An offset as the library reads it.
fn offset(offset_ms: i64) -> String {
    let sign = if offset_ms < 0 { '-' } else { '+' };
    let ms = offset_ms.unsigned_abs();
    format!("{sign}{}.{:03}s\n", ms / 1000, ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_have_a_sign_and_milliseconds() {
        assert_eq!(offset(0), "+0.000s\n");
        assert_eq!(offset(61_007), "+61.007s\n");
        assert_eq!(offset(-250), "-0.250s\n");
    }
}
