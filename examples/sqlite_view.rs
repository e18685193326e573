//! A read model in SQLite, each change applied once: the rows of a prefix, and the place in the changelog beside them, in
//! one SQLite transaction.
//!
//! ```text
//! cargo run --example sqlite_view --no-default-features --features client -- view.sqlite 127.0.0.1:7400
//! cargo run --example sqlite_view ... -- view.sqlite --once 127.0.0.1:7400        # up to now, then the totals
//! cargo run --example sqlite_view ... -- view.sqlite --until 7961234567890 --prefix order/ 127.0.0.1:7400
//! ```
//!
//! It begins with a scan, then follows. Killed at any point and started again, it goes on behind what is in the file. Where
//! changes were cut off meanwhile, it empties the table and begins again with a scan. Of two processes with one file, the one
//! that finds the place moved by the other stops. A file goes with the prefix that it was begun with.

use std::time::Duration;

use kvorum::client::{ChangeStream, Cursor, Event, FollowOptions, Followed, Since, Timestamp};
use kvorum::{Client, Error, ErrorKind, Result};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

/// Events in one SQLite transaction, at most: each costs a sync of the disk.
const TOGETHER: usize = 500;
/// The pause before it follows again after an error that may pass.
const PAUSE: Duration = Duration::from_millis(500);

/// What the arguments say.
struct Arguments {
    file: String,
    prefix: String,
    once: bool,
    until: Option<Timestamp>,
    endpoints: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = arguments()?;
    let client = Client::connect(arguments.endpoints.clone()).await?;
    let until = if arguments.once { Some(client.timestamp().await?) } else { arguments.until };
    let mut database = open(&arguments.file).map_err(of_file)?;
    loop {
        let ended = follow(&client, &mut database, &arguments.prefix, until).await;
        match ended {
            Ok(()) => break,
            Err(error) if error.kind == ErrorKind::TooOld => {
                eprintln!("{error}: starting over with a scan");
                start_over(&mut database).map_err(of_file)?;
            }
            Err(error) if error.kind == ErrorKind::Unavailable => {
                eprintln!("{error}: trying again");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
    println!("{}", totals(&database).map_err(of_file)?);
    Ok(())
}

/// Follows from the place in the file until everything up to `until` is in it.
async fn follow(
    client: &Client,
    database: &mut Connection,
    prefix: &str,
    until: Option<Timestamp>,
) -> Result<()> {
    let mut place = kept_place(database).map_err(of_file)?;
    let since = match &place {
        Some(kept) => Since::Cursor(Cursor::decode(kept)?),
        None => Since::Scan,
    };
    let mut scans = since == Since::Scan;
    println!("{}", if scans { "begins with a scan" } else { "goes on where it stopped" });
    let mut changes = client.changes(FollowOptions::prefix(prefix).since(since))?;
    if let Some(until) = until {
        changes.reach(until);
    }
    loop {
        let events = some(&mut changes).await?;
        // Effect and place in one step: a crash loses both or neither.
        if !apply(database, &mut place, &events).map_err(of_file)? {
            return Err(Error::denied(
                "another process has moved the place in this file: one of the two must stop",
            ));
        }
        if scans && events.iter().any(|event| matches!(event.event, Event::Progress(_))) {
            scans = false;
            println!("the scan is over: {}", totals(database).map_err(of_file)?);
        }
        let reached = |event: &Followed| matches!(event.event, Event::Progress(ts) if Some(ts) >= until);
        if until.is_some() && events.iter().any(reached) {
            return Ok(());
        }
    }
}

/// The next event, and what is there already. What comes before an error is told again, since no place behind it is kept.
async fn some(changes: &mut ChangeStream) -> Result<Vec<Followed>> {
    let mut events = vec![changes.next().await?];
    while events.len() < TOGETHER {
        match changes.try_next() {
            Some(event) => events.push(event?),
            None => break,
        }
    }
    Ok(events)
}

fn open(file: &str) -> rusqlite::Result<Connection> {
    let database = Connection::open(file)?;
    database.busy_timeout(Duration::from_secs(5))?;
    database.execute_batch(
        "CREATE TABLE IF NOT EXISTS place (only_one INTEGER PRIMARY KEY CHECK (only_one = 1), cursor BLOB NOT NULL);
         CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, value BLOB NOT NULL, commit_ts INTEGER NOT NULL);",
    )?;
    Ok(database)
}

fn kept_place(database: &Connection) -> rusqlite::Result<Option<Vec<u8>>> {
    database.query_row("SELECT cursor FROM place", [], |row| row.get(0)).optional()
}

/// Applies events, if the file is where this process believes it to be; answers whether it was.
fn apply(
    database: &mut Connection,
    place: &mut Option<Vec<u8>>,
    events: &[Followed],
) -> rusqlite::Result<bool> {
    let Some(last) = events.last() else { return Ok(true) };
    let transaction = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if kept_place(&transaction)? != *place {
        return Ok(false);
    }
    for event in events {
        match &event.event {
            Event::Row(row) => put(&transaction, &row.key, &row.record.value, row.record.commit_ts)?,
            Event::Changes(changes) => {
                for change in &changes.changes {
                    match &change.value {
                        Some(value) => put(&transaction, &change.key, value, changes.commit_ts)?,
                        None => {
                            transaction
                                .execute("DELETE FROM rows WHERE key = ?1", params![&change.key[..]])?;
                        }
                    }
                }
            }
            Event::Progress(_) => {}
        }
    }
    let behind = last.cursor().encode().to_vec();
    transaction.execute("INSERT OR REPLACE INTO place VALUES (1, ?1)", params![behind])?;
    transaction.commit()?;
    *place = Some(behind);
    Ok(true)
}

fn put(transaction: &Transaction, key: &[u8], value: &[u8], ts: Timestamp) -> rusqlite::Result<()> {
    // Timestamps stay below 2^53, and SQLite's integers go up to 2^63.
    transaction.execute(
        "INSERT OR REPLACE INTO rows VALUES (?1, ?2, ?3)",
        params![key, value, ts.0.cast_signed()],
    )?;
    Ok(())
}

/// Forgets the rows and the place in one step: a scan can't tell what was removed meanwhile.
fn start_over(database: &mut Connection) -> rusqlite::Result<()> {
    let transaction = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch("DELETE FROM rows; DELETE FROM place;")?;
    transaction.commit()
}

fn totals(database: &Connection) -> rusqlite::Result<String> {
    let totals = "SELECT count(*), coalesce(sum(length(key) + length(value)), 0) FROM rows";
    let (rows, bytes): (i64, i64) = database.query_row(totals, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(format!("{rows} rows, {bytes} bytes"))
}

fn of_file(error: rusqlite::Error) -> Error {
    Error::new(
        ErrorKind::Denied,
        format!("the SQLite file can't be used: {error}; see that no other process does"),
    )
}

fn arguments() -> Result<Arguments> {
    let mut given = std::env::args().skip(1);
    let usage = "usage: sqlite_view FILE [--prefix PREFIX] [--once | --until TIMESTAMP] [ENDPOINT]...";
    let file = given.next().ok_or_else(|| Error::invalid(usage))?;
    let (prefix, once, until, endpoints) = (String::new(), false, None, Vec::new());
    let mut arguments = Arguments { file, prefix, once, until, endpoints };
    while let Some(word) = given.next() {
        let mut more =
            || given.next().ok_or_else(|| Error::invalid(format!("{word} needs a value; {usage}")));
        match word.as_str() {
            "--prefix" => arguments.prefix = more()?,
            "--once" => arguments.once = true,
            "--until" => arguments.until = Some(more()?.parse()?),
            option if option.starts_with('-') => {
                return Err(Error::invalid(format!("there is no {option}; {usage}")));
            }
            _ => arguments.endpoints.push(word),
        }
    }
    if arguments.endpoints.is_empty() {
        let named = std::env::var("KVORUM_ENDPOINTS").unwrap_or_else(|_| "127.0.0.1:7400".into());
        arguments.endpoints = named.split(',').map(str::to_owned).collect();
    }
    Ok(arguments)
}
