//! `kvorum import`: write the records of a file, many at once, with bounded memory.
//!
//! A put of the same value can be repeated, so a record whose fate is unknown is simply written again, and an
//! import that was broken off can be started again from the beginning.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::context::Context;
use super::failure::{Done, Failure, file_error};
use super::output::{Format, print_line};
use super::records::{BadLine, FileFormat, Next, Pair, Records, SourceArgs};
use crate::client::Client;
use crate::{Error, ErrorKind};

/// Bytes of records that may be under way at once, whatever their number.
const MAX_IN_FLIGHT_KIB: u32 = 32 * 1024;

const EXAMPLES: &str = "\
Examples:
  kvorum import users.ndjson --key id --prefix user/
  kvorum import cities.csv --format csv --key code --prefix city/
  kvorum import /usr/share/dict/words --format lines --prefix word/
  kvorum export | kvorum --endpoints other:7400 import -

With --key (or csv, or lines) a record's value is its line, so that `export --format lines` gives the lines back.
Import can be repeated: the same file gives the same rows.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// What to do about a line that gives no record: stop there, or report and skip it.
    #[arg(long, value_name = "WHAT", default_value = "stop")]
    on_error: OnError,
    /// Records under way at once.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    in_flight: u32,
    /// How long to go on trying a record while the cluster is unavailable.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    patience: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum OnError {
    Stop,
    Skip,
}

/// What an import has done so far.
#[derive(Clone, Copy, Default, Debug)]
struct Counts {
    acknowledged: u64,
    bytes: u64,
    bad_lines: u64,
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    // A file that can't be read is told before a cluster is asked for.
    let records = Records::open(&args.source)?;
    let client = context.client().await?;
    let started = Instant::now();
    let progress = progress_bar(&args.source);
    let (lines, reader) = read_on_thread(records, &args.source);
    let mut import = Import { client, args, progress, counts: Counts::default(), under_way: JoinSet::new() };
    let done = import.write_all(lines).await;
    import.progress.finish_and_clear();
    report(context, &import.counts, started.elapsed(), done.is_ok())?;
    done?;
    match reader.await {
        Ok(result) => result?,
        Err(error) => return Err(Error::unavailable(format!("the reading thread failed: {error}")).into()),
    }
    let all_good = import.counts.bad_lines == 0;
    Ok(if all_good { Done::Ok } else { Done::No })
}

type Reader = tokio::task::JoinHandle<Result<(), Failure>>;

/// Reads records on a thread of its own, a bounded number ahead.
fn read_on_thread(records: Records, source: &SourceArgs) -> (mpsc::Receiver<Next>, Reader) {
    let (sender, receiver) = mpsc::channel(64);
    let file = source.file.clone();
    let reader = tokio::task::spawn_blocking(move || {
        for next in records {
            let next = next.map_err(|error| file_error(&file, "read", &error))?;
            if sender.blocking_send(next).is_err() {
                break;
            }
        }
        Ok(())
    });
    (receiver, reader)
}

struct Import {
    client: Client,
    args: Args,
    progress: ProgressBar,
    counts: Counts,
    under_way: JoinSet<Result<u64, Error>>,
}

impl Import {
    async fn write_all(&mut self, mut lines: mpsc::Receiver<Next>) -> Result<(), Failure> {
        let permits = Arc::new(Semaphore::new(MAX_IN_FLIGHT_KIB as usize));
        while let Some(next) = lines.recv().await {
            let pair = match next {
                Ok((_, pair)) => pair,
                Err(bad) => {
                    self.bad_line(&bad).await?;
                    continue;
                }
            };
            let kib = u32::try_from(pair.value.len() / 1024).unwrap_or(MAX_IN_FLIGHT_KIB) + 1;
            let Ok(permit) = permits.clone().acquire_many_owned(kib.min(MAX_IN_FLIGHT_KIB)).await else {
                break;
            };
            while self.under_way.len() >= self.args.in_flight as usize {
                self.join_one().await?;
            }
            let (client, patience) = (self.client.clone(), self.args.patience);
            self.under_way.spawn(async move {
                let written = put_patiently(&client, &pair, patience).await;
                drop(permit);
                written.map(|()| (pair.key.len() + pair.value.len()) as u64)
            });
            // Takes what is done already, so that the count on the screen is not behind.
            while let Some(joined) = self.under_way.try_join_next() {
                self.count(joined)?;
            }
        }
        self.drain().await
    }

    async fn drain(&mut self) -> Result<(), Failure> {
        while !self.under_way.is_empty() {
            self.join_one().await?;
        }
        Ok(())
    }

    async fn join_one(&mut self) -> Result<(), Failure> {
        match self.under_way.join_next().await {
            Some(joined) => self.count(joined),
            None => Ok(()),
        }
    }

    fn count(&mut self, joined: Result<Result<u64, Error>, tokio::task::JoinError>) -> Result<(), Failure> {
        let bytes =
            joined.map_err(|error| Error::unavailable(format!("a writing task failed: {error}")))??;
        self.counts.acknowledged += 1;
        self.counts.bytes += bytes;
        self.progress.inc(bytes);
        self.progress.set_message(format!("{} records", self.counts.acknowledged));
        Ok(())
    }

    async fn bad_line(&mut self, bad: &BadLine) -> Result<(), Failure> {
        let file = self.args.source.file.display().to_string();
        match self.args.on_error {
            OnError::Stop => {
                // What was begun is finished, so that the count is what is stored.
                self.drain().await?;
                Err(Error::invalid(format!(
                    "line {} of {file}: {}; correct it, or go on past such lines with --on-error skip",
                    bad.line, bad.reason
                ))
                .into())
            }
            OnError::Skip => {
                self.counts.bad_lines += 1;
                let text = format!("line {} of {file} skipped: {}", bad.line, bad.reason);
                self.progress.suspend(|| writeln!(std::io::stderr(), "{text}"))?;
                Ok(())
            }
        }
    }
}

/// Puts, and puts again where the outcome is unknown or nobody could serve it: the same value, so once or
/// twice is the same.
async fn put_patiently(client: &Client, pair: &Pair, patience: Duration) -> Result<(), Error> {
    let give_up_at = Instant::now() + patience;
    loop {
        match client.put(pair.key.clone(), pair.value.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) => {
                let again = matches!(
                    error.kind,
                    ErrorKind::Unavailable
                        | ErrorKind::Undetermined
                        | ErrorKind::Conflict
                        | ErrorKind::TooOld
                );
                if !again || Instant::now() >= give_up_at {
                    return Err(error);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A bar over the file's bytes where a person watches; for standard input only a count.
fn progress_bar(source: &SourceArgs) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    // The value is the line, except that a CSV row becomes an object and pairs lose their wrapping.
    let exact = source.format == FileFormat::Ndjson && source.key.is_some();
    let length =
        std::fs::metadata(&source.file).ok().filter(|meta| meta.is_file() && exact).map(|meta| meta.len());
    let (bar, template) = match length {
        Some(length) => (ProgressBar::new(length), "{bar:40} {percent}%  {msg}  {bytes_per_sec}  {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}  {bytes}  {bytes_per_sec}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn report(context: &Context, counts: &Counts, took: Duration, complete: bool) -> Result<(), Failure> {
    let seconds = took.as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = counts.acknowledged as f64 / seconds.max(1e-9);
    print_line(match context.output {
        Format::Text => format!(
            "{}: {} records acknowledged, {} bytes, {} bad lines, {seconds:.1} s, {rate:.0} records/s",
            if complete { "imported" } else { "broken off" },
            counts.acknowledged,
            counts.bytes,
            counts.bad_lines
        ),
        Format::Json => json!({
            "complete": complete,
            "acknowledged": counts.acknowledged,
            "bytes": counts.bytes,
            "bad_lines": counts.bad_lines,
            "seconds": seconds,
            "records_per_s": rate,
        })
        .to_string(),
    })
}
