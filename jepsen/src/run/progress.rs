//! What a user sees while a run goes on: a bar on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

/// Tells how far a run is, on standard error.
pub struct Progress {
    name: String,
    bar: Option<ProgressBar>,
    load: Mutex<Option<(Instant, u64)>>,
}

impl Progress {
    /// For a run of this name: a bar where standard error is a terminal, else a line for each phase.
    pub fn new(name: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_style(style("{spinner} {prefix}: {msg}"));
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { name: name.to_owned(), bar, load: Mutex::new(None) }
    }

    /// Nothing is shown.
    pub fn hidden() -> Self {
        Self { name: String::new(), bar: Some(ProgressBar::hidden()), load: Mutex::new(None) }
    }

    /// A phase begins.
    pub fn phase(&self, what: &str) {
        *self.load.lock() = None;
        match &self.bar {
            Some(bar) => {
                bar.set_style(style("{spinner} {prefix}: {msg}"));
                bar.set_message(what.to_owned());
            }
            None => eprintln!("{}: {what}", self.name),
        }
    }

    /// The load begins, and takes so many seconds.
    pub fn load(&self, seconds: u64) {
        *self.load.lock() = Some((Instant::now(), seconds));
        match &self.bar {
            Some(bar) => {
                bar.set_length(seconds);
                bar.set_style(style("{prefix}: {bar:30} {pos}/{len} s  {msg}"));
            }
            None => eprintln!("{}: {seconds} s of load and faults", self.name),
        }
    }

    /// So many requests were made so far.
    pub fn requests(&self, count: usize) {
        if let (Some(bar), Some((began, seconds))) = (&self.bar, *self.load.lock()) {
            bar.set_position(began.elapsed().as_secs().min(seconds));
            bar.set_message(format!("{count} requests"));
        }
    }

    /// The run is over; a bar is removed.
    pub fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
