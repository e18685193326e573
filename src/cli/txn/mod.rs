//! `kvorum txn`: a small script as one transaction.

mod report;
mod script;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::context::Context;
use super::failure::{Done, Failure, file_error};
use crate::client::{Row, Txn};
use crate::types::Record;
use crate::types::limits::MAX_TXN_BYTES;
use crate::{Error, Result};
use script::{Command, Statement};

/// The largest script: a transaction's bytes, as hexadecimal digits with room for the commands.
const MAX_SCRIPT_BYTES: usize = 3 * MAX_TXN_BYTES;
/// What a script may read, in bytes of keys and values: it is shown when all is done.
const MAX_SHOWN_BYTES: usize = 64 * 1024 * 1024;

const EXAMPLES: &str = "\
Examples:
  kvorum txn transfer.txt
  printf 'add stock/apples -1\\nadd sold/apples 1\\n' | kvorum txn -
  kvorum txn --read-only audit.txt             one instant, without a commit; it never conflicts

A script has one command a line:
  get KEY                        show a value
  put KEY VALUE                  write a value
  delete KEY                     remove a key
  add KEY [N]                    add to a counter
  scan [--prefix P] [--start K] [--end K] [--limit ROWS] [--reverse] [--keys-only]
  expect KEY VALUE               go on only where the key holds this value
  expect-absent KEY              go on only where there is no such key

Words are quoted as in a shell ('…', \"…\", \\), and # begins a comment. Reads see what the lines
before wrote. All of it takes effect at one timestamp, or nothing does; where others change what
was read, the script runs again, until --deadline. Results are shown when it is committed.

Exit code 1: an expectation was not met; nothing was written.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The script; `-` or nothing reads standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Only read: no commit, no conflicts; writes are refused.
    #[arg(long)]
    read_only: bool,
    /// Run the script so often at most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_attempts: Option<u32>,
    /// Names the transaction in errors.
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
}

/// What a line shows.
#[derive(Clone, Debug)]
enum Shown {
    Got { line: usize, key: Bytes, record: Option<Record> },
    Scanned { line: usize, rows: Vec<Row>, keys_only: bool },
}

/// An expectation that was not met.
#[derive(Clone, Debug)]
struct Unmet {
    line: usize,
    key: Bytes,
    expected: Option<Bytes>,
    found: Option<Record>,
}

/// Why a script ends early.
enum Stop {
    Error(Error),
    Unmet(Unmet),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let statements = script::parse(&read(&args.file)?, context.hex)?;
    if args.read_only
        && let Some(write) = statements.iter().find(|statement| statement.command.writes())
    {
        return Err(Error::invalid(format!(
            "line {} writes, but the transaction is --read-only: leave one of them out",
            write.line
        ))
        .into());
    }
    let wrote = statements.iter().any(|statement| statement.command.writes());
    let client = context.client().await?;
    let mut transaction = client.transaction();
    if args.read_only {
        transaction = transaction.read_only();
    }
    if let Some(attempts) = args.max_attempts {
        transaction = transaction.max_attempts(attempts);
    }
    if let Some(label) = args.label {
        transaction = transaction.label(label);
    }
    match transaction.try_run(|txn| execute(txn, &statements)).await {
        Ok(done) => {
            report::committed(context, &done, wrote)?;
            Ok(Done::Ok)
        }
        Err(Stop::Unmet(unmet)) => {
            report::unmet(context, &unmet)?;
            Ok(Done::No)
        }
        Err(Stop::Error(error)) => Err(error.into()),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let limit = MAX_SCRIPT_BYTES as u64 + 1;
    let mut script = Vec::new();
    let read = if file == Path::new("-") {
        io::stdin().lock().take(limit).read_to_end(&mut script)
    } else {
        let opened = File::open(file).map_err(|error| file_error(file, "opened", &error))?;
        opened.take(limit).read_to_end(&mut script)
    };
    read.map_err(|error| file_error(file, "read", &error))?;
    if script.len() > MAX_SCRIPT_BYTES {
        return Err(Error::invalid(format!(
            "the script is over {MAX_SCRIPT_BYTES} bytes, more than a transaction may hold: split it; `import` writes \
             many records without a transaction"
        ))
        .into());
    }
    Ok(script)
}

async fn execute(txn: Txn, statements: &[Statement]) -> Result<Vec<Shown>, Stop> {
    let mut shown = Vec::new();
    let mut bytes = 0;
    for Statement { line, command } in statements {
        let line = *line;
        match command {
            Command::Get(key) => {
                let record = txn.get(key).await?;
                count(&mut bytes, key, record.as_ref(), line)?;
                shown.push(Shown::Got { line, key: key.clone(), record });
            }
            Command::Put(key, value) => txn.put(key, value.clone())?,
            Command::Delete(key) => txn.delete(key)?,
            Command::Add(key, delta) => txn.add(key, *delta)?,
            Command::Scan(options) => {
                let mut scan = txn.scan(options.clone());
                let mut rows = Vec::new();
                while let Some(row) = scan.next().await.transpose()? {
                    count(&mut bytes, &row.key, Some(&row.record), line)?;
                    rows.push(row);
                }
                shown.push(Shown::Scanned { line, rows, keys_only: options.keys_only });
            }
            Command::Expect(key, expected) => {
                let found = txn.get(key).await?;
                if found.as_ref().map(|record| &record.value) != expected.as_ref() {
                    let (key, expected) = (key.clone(), expected.clone());
                    return Err(Stop::Unmet(Unmet { line, key, expected, found }));
                }
            }
        }
    }
    Ok(shown)
}

/// Counts what is kept until it is shown.
fn count(bytes: &mut usize, key: &Bytes, record: Option<&Record>, line: usize) -> Result<()> {
    *bytes += key.len() + record.map_or(0, |record| record.value.len());
    if *bytes > MAX_SHOWN_BYTES {
        return Err(Error::invalid(format!(
            "line {line}: the script reads more than {MAX_SHOWN_BYTES} bytes, which would all be held until they are \
             shown: read less, or use `scan` or `export` with --at"
        )));
    }
    Ok(())
}
