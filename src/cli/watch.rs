//! `kvorum watch`: follow what is committed, whole transactions in commit order.

use std::ffi::OsString;
use std::io::Write;
use std::str::FromStr;
use std::time::Duration;

use futures::FutureExt;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::failure::{Done, Failure};
use super::output::{self, Format};
use super::{input, serve};
use crate::client::{
    Before, Change, ChangeStream, Changes, Consumer, Cursor, Event, FollowOptions, Followed, Since,
};
use crate::types::{Error, ErrorKind, KeyRange, Timestamp};

const EXAMPLES: &str = "\
Examples:
  kvorum watch --prefix order/                          from now on
  kvorum watch --prefix order/ --since scan             the rows as they are, then every change; no gap
  kvorum watch --since $ts                              what was committed after `ts=$(kvorum timestamp)`
  kvorum --output json watch --before-images | jq .     one JSON object an event, each with its cursor
  kvorum watch --since 01d1f…                           behind the event that bore this cursor
  kvorum watch --consumer billing --prefix order/       the cluster keeps the place: go on where it stopped

A line of text is a change: commit timestamp, put or delete, key, value. Where the changelog was cut past the place to go
on from, the exit code is 6: start over with `--since scan`, and a named consumer with `--restart` besides.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only keys that begin with this; may be given several times.
    #[arg(long, value_name = "KEY")]
    prefix: Vec<OsString>,
    /// Only keys from this one on.
    #[arg(long, value_name = "KEY")]
    start: Option<OsString>,
    /// Only keys before this one.
    #[arg(long, value_name = "KEY")]
    end: Option<OsString>,
    /// Where to begin: now, oldest, scan, a timestamp, or a cursor. [default: now]
    #[arg(long, value_name = "PLACE", value_parser = place)]
    since: Option<Since>,
    /// Tell what keys held before they were changed.
    #[arg(long)]
    before_images: bool,
    /// Tell too up to which timestamp everything was told.
    #[arg(long)]
    progress: bool,
    /// Consume under this name: begin behind what it acknowledged last, and acknowledge what was printed.
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// Forget what the consumer acknowledged, and begin where --since says.
    #[arg(long, requires = "consumer", requires = "since")]
    restart: bool,
    /// Stop after so many transactions and rows.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Stop once everything up to this timestamp was told.
    #[arg(long, value_name = "TIMESTAMP")]
    until: Option<Timestamp>,
}

fn place(text: &str) -> Result<Since, String> {
    Ok(match text {
        "now" => Since::Now,
        "oldest" => Since::Oldest,
        "scan" => Since::Scan,
        digits
            if !digits.is_empty()
                && digits.len() <= 16
                && digits.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            Since::Timestamp(Timestamp::from_str(digits).map_err(|error| error.to_string())?)
        }
        cursor => Since::Cursor(Cursor::from_str(cursor).map_err(|error| {
            format!("it must be now, oldest, scan, a timestamp, or a cursor as `watch` prints it ({error})")
        })?),
    })
}

impl Args {
    fn options(&self, hex: bool) -> Result<FollowOptions, Failure> {
        let mut options = FollowOptions::all().since(self.since.clone().unwrap_or_default());
        options.before_images = self.before_images;
        for prefix in &self.prefix {
            options = options.and_prefix(input::bound(prefix, hex)?);
        }
        if self.start.is_some() || self.end.is_some() {
            let bound = |argument: &Option<OsString>| {
                argument.as_deref().map(|key| input::bound(key, hex)).transpose()
            };
            let range = KeyRange::new(bound(&self.start)?.unwrap_or_default(), bound(&self.end)?);
            if range.is_empty() {
                return Err(Error::invalid("the range is empty: --end must be past --start").into());
            }
            options =
                if options.ranges.is_empty() { options.and_range(range) } else { narrowed(options, &range)? };
        }
        Ok(options)
    }
}

/// The prefixes, as far as the bounds hold them.
fn narrowed(mut options: FollowOptions, bounds: &KeyRange) -> Result<FollowOptions, Failure> {
    options.ranges = options.ranges.iter().filter_map(|range| range.intersect(bounds)).collect();
    if options.ranges.is_empty() {
        return Err(Error::invalid("no key begins with a --prefix and lies between --start and --end").into());
    }
    Ok(options)
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let options = args.options(context.hex)?;
    let client = context.client().await?;
    let consumer = match &args.consumer {
        Some(name) if args.restart => Some(client.reset_consumer(name, options.clone()).await?),
        Some(name) => Some(client.consumer(name, options.clone()).await?),
        None => None,
    };
    let changes = match &consumer {
        Some(consumer) => consumer.follow()?,
        None => client.changes(options)?,
    };
    if let Some(until) = args.until {
        changes.reach(until);
    }
    let stop = CancellationToken::new();
    serve::stop_on_signals(&stop)?;
    Watch { context, args: &args, consumer, told: 0 }.run(changes, stop).await
}

/// How often a consumer acknowledges, at most.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_secs(1);

struct Watch<'a> {
    context: &'a Context,
    args: &'a Args,
    consumer: Option<Consumer>,
    told: u64,
}

impl Watch<'_> {
    async fn run(&mut self, mut changes: ChangeStream, stop: CancellationToken) -> Result<Done, Failure> {
        let mut out = output::stdout();
        let mut done: Option<Cursor> = None;
        let mut acknowledge = tokio::time::interval(ACKNOWLEDGE_EVERY);
        loop {
            if acknowledge.tick().now_or_never().is_some() {
                // Nothing is acknowledged that was not printed.
                out.flush()?;
                self.acknowledge(done.take()).await?;
            }
            // What is there already goes out together.
            let followed = match changes.try_next() {
                Some(followed) => followed?,
                None => {
                    out.flush()?;
                    tokio::select! {
                        followed = changes.next() => followed?,
                        // To acknowledge.
                        () = tokio::time::sleep(ACKNOWLEDGE_EVERY), if done.is_some() => continue,
                        () = stop.cancelled() => break,
                    }
                }
            };
            if self.is_past(&followed.event) {
                break;
            }
            let ends = self.tell(&mut out, &followed)?;
            done = Some(followed.cursor());
            if ends || stop.is_cancelled() {
                break;
            }
        }
        out.flush()?;
        self.acknowledge(done).await?;
        Ok(Done::Ok)
    }

    async fn acknowledge(&self, done: Option<Cursor>) -> Result<(), Failure> {
        let (Some(consumer), Some(cursor)) = (&self.consumer, done) else { return Ok(()) };
        match consumer.acknowledge(&cursor).await {
            // A later one will do as well.
            Err(error) if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Undetermined) => {
                tracing::warn!(%error, "nothing was acknowledged now");
                Ok(())
            }
            acknowledged => Ok(acknowledged?),
        }
    }

    /// Whether it was committed after all that is wanted.
    fn is_past(&self, event: &Event) -> bool {
        let until = self.args.until.unwrap_or(Timestamp::MAX);
        matches!(event, Event::Changes(changes) if changes.commit_ts > until)
    }

    /// Prints an event; answers whether it was the last one wanted.
    fn tell(&mut self, out: &mut impl Write, followed: &Followed) -> Result<bool, Failure> {
        if !matches!(followed.event, Event::Progress(_)) {
            self.told += 1;
        }
        match self.context.output {
            Format::Json => {
                if let Some(object) = self.json(followed) {
                    writeln!(out, "{object}")?;
                }
            }
            Format::Text => self.text(out, &followed.event)?,
        }
        let reached =
            matches!(followed.event, Event::Progress(ts) if self.args.until.is_some_and(|until| ts >= until));
        Ok(reached || self.args.limit.is_some_and(|limit| self.told >= limit))
    }

    fn text(&self, out: &mut impl Write, event: &Event) -> Result<(), Failure> {
        let bytes = |bytes: &[u8]| output::line_bytes(bytes, self.context.hex);
        match event {
            Event::Row(row) => {
                let ts = row.record.commit_ts;
                writeln!(out, "{ts}\trow\t{}\t{}", bytes(&row.key), bytes(&row.record.value))?;
            }
            Event::Progress(ts) if self.args.progress => writeln!(out, "{ts}\tprogress")?,
            Event::Progress(_) => {}
            Event::Changes(changes) => {
                for change in &changes.changes {
                    let (ts, key) = (changes.commit_ts, bytes(&change.key));
                    let before = self.text_before(&change.before);
                    match &change.value {
                        Some(value) => writeln!(out, "{ts}\tput\t{key}\t{}{before}", bytes(value))?,
                        None => writeln!(out, "{ts}\tdelete\t{key}{before}")?,
                    }
                }
            }
        }
        Ok(())
    }

    fn text_before(&self, before: &Before) -> String {
        match before {
            Before::Unasked => String::new(),
            Before::Absent => "\tbefore: nothing".to_owned(),
            Before::Value(value) => format!("\tbefore: {}", output::line_bytes(value, self.context.hex)),
            Before::TooLarge => "\tbefore: too large to be told".to_owned(),
        }
    }

    fn json(&self, followed: &Followed) -> Option<Value> {
        let mut object = match &followed.event {
            Event::Progress(_) if !self.args.progress => return None,
            Event::Progress(ts) => json!({ "event": "progress", "ts": ts.0 }),
            Event::Row(row) => {
                let mut object = Map::new();
                object.insert("event".to_owned(), "row".into());
                output::put_bytes(&mut object, "key", &row.key, self.context.hex);
                output::put_record(&mut object, &row.record, self.context.hex);
                object.into()
            }
            Event::Changes(changes) => self.json_changes(changes),
        };
        object["cursor"] = followed.cursor().to_string().into();
        Some(object)
    }

    fn json_changes(&self, changes: &Changes) -> Value {
        let list: Vec<Value> = changes.changes.iter().map(|change| self.json_change(change)).collect();
        json!({ "event": "changes", "commit_ts": changes.commit_ts.0, "changes": list })
    }

    fn json_change(&self, change: &Change) -> Value {
        let hex = self.context.hex;
        let mut object = Map::new();
        output::put_bytes(&mut object, "key", &change.key, hex);
        match &change.value {
            Some(value) => {
                object.insert("change".to_owned(), "put".into());
                output::put_bytes(&mut object, "value", value, hex);
                object.insert("create_ts".to_owned(), change.create_ts.0.into());
                object.insert("version".to_owned(), change.version.into());
            }
            None => {
                object.insert("change".to_owned(), "delete".into());
            }
        }
        match &change.before {
            Before::Unasked => {}
            Before::Absent => {
                object.insert("before".to_owned(), Value::Null);
            }
            Before::Value(value) => output::put_bytes(&mut object, "before", value, hex),
            Before::TooLarge => {
                object.insert("before_too_large".to_owned(), true.into());
            }
        }
        object.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_word_a_timestamp_or_a_cursor() {
        assert_eq!(place("now"), Ok(Since::Now));
        assert_eq!(place("42"), Ok(Since::Timestamp(Timestamp(42))));
        assert!(place("").is_err() && place("4x").is_err() && place("99999999999999999999").is_err());
        let cursor = Cursor::new(
            crate::types::ClusterId(7),
            &[],
            crate::client::CursorState::Following { after: Timestamp(5) },
        );
        assert_eq!(place(&cursor.to_string()), Ok(Since::Cursor(cursor)));
    }
}
