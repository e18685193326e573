//! A node's wall clock, set by libfaketime. Its monotonic clock is left alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::tools::{Context, Error, Result, run};

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

/// How far ahead the probe sets a clock, and how far from that what it reads may be.
const PROBED_S: i64 = 3600;
const NEAR_S: i64 = 60;

/// Whether the library does set a program's clock: once, before a run relies on it.
///
/// # Errors
/// Where the program shows another time.
pub fn probe(library: &Path) -> Result<()> {
    let home = std::env::temp_dir().join(format!("kvorum-jepsen-clock-{}", std::process::id()));
    fs::create_dir_all(&home).context(|| format!("make {}", home.display()))?;
    let shown = show(library, &home);
    // Left over, it is in nobody's way.
    let _ = fs::remove_dir_all(&home);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    judge(&shown?, now as i64)
}

/// What `date` shows by a clock that is ahead.
fn show(library: &Path, home: &Path) -> Result<String> {
    let clock = Clock::new(library.to_owned(), home, 0)?;
    clock.set(PROBED_S * 1000)?;
    let settings = clock.environment().into_iter().map(|(name, value)| format!("{name}={value}"));
    let words: Vec<String> = settings.chain(["date".into(), "+%s".into()]).collect();
    run("env", &words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn judge(shown: &str, now_s: i64) -> Result<()> {
    let ahead_s = shown.trim().parse::<i64>().ok().map(|shown_s| shown_s - now_s);
    match ahead_s {
        Some(ahead_s) if (ahead_s - PROBED_S).abs() <= NEAR_S => Ok(()),
        _ => Err(Error::Other(format!("set ahead by {PROBED_S} s, it showed {:?} at {now_s}", shown.trim()))),
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
    fn a_library_that_does_not_set_the_clock_is_found_out() {
        assert!(judge("1003601\n", 1_000_000).is_ok());
        for shown in ["1000000", "996400", "soon"] {
            assert!(judge(shown, 1_000_000).is_err(), "{shown}");
        }
        // The loader leaves out what is not there, and the clock is the real one.
        assert!(probe(Path::new("/no/such/library.so")).is_err());
    }

    #[test]
    fn offsets_have_a_sign_and_milliseconds() {
        assert_eq!(offset(0), "+0.000s\n");
        assert_eq!(offset(61_007), "+61.007s\n");
        assert_eq!(offset(-250), "-0.250s\n");
    }
}
