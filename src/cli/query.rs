//! `kvorum query`: asks an index.

use std::io::Write;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::context::Context;
use super::failure::{Done, Failure};
use super::output::{self, Format};
use super::reads::ReadArgs;
use crate::client::{IndexQuery, QueryItem, QueryPage};
use crate::types::{Error, ReadAt, Timestamp};

const EXAMPLES: &str = "\
Examples:
  kvorum query by_team --where 'team = \"blue\" and name prefix \"A\"' --order 'name' --limit 10
  kvorum query per_team                                      all groups and their counts
  kvorum query spent --group-by '' --aggregates sum          one sum of all
  kvorum query by_mail --duplicates                          values that several rows have, of a unique index
  kvorum query by_team --where 'team = \"blue\"' --at-least $ts  not before one's own write is in it
  kvorum query by_team --where 'team = \"blue\"' --rows        the rows too, as they were at the answer's watermark
  kvorum query by_team --where 'score > 3' --explain         how it is served

Conditions: =, !=, <, <=, >, >=, prefix, in (…), put together with `and`; values as in JSON. A line of text is a row's key
and what the index tells of it, or a group. With --output json there is one object a line; the last one is
{\"watermark\": …} with the token of the next page, if there is one.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The index's name.
    name: String,
    /// Conditions that all results meet.
    #[arg(long = "where", value_name = "CONDITIONS", default_value = "")]
    filter: String,
    /// The order of the results: `score desc, name`.
    #[arg(long, value_name = "FIELDS", default_value = "")]
    order: String,
    /// Group by these fields; '' for one group of all.
    #[arg(long, value_name = "FIELDS")]
    group_by: Option<String>,
    /// What is asked of the groups: `count, sum`.
    #[arg(long, value_name = "NAMES", default_value = "")]
    aggregates: String,
    /// Only values that several rows have, of a unique index.
    #[arg(long)]
    duplicates: bool,
    /// Stop after so many results.
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Go on where a page ended.
    #[arg(long, value_name = "TOKEN")]
    page_token: Option<String>,
    /// Wait until the index has come to this timestamp, at most for the --deadline.
    #[arg(long, value_name = "TIMESTAMP")]
    at_least: Option<Timestamp>,
    /// Read the rows too.
    #[arg(long)]
    rows: bool,
    /// Say how the query is served, and of which moment the answer is.
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    reads: ReadArgs,
}

/// What a result may have, in the order in which it is printed.
const PARTS: [&str; 7] = ["fields", "measure", "covering", "count", "sum", "min", "max"];
/// The most results of one page.
const PAGE: u32 = 1_000;

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let client = args.reads.client(context).await?;
    let mut query =
        client.query(&args.name).filter(&args.filter).order(&args.order).aggregates(&args.aggregates);
    if let Some(fields) = &args.group_by {
        query = query.group_by(fields);
    }
    if args.duplicates {
        query = query.duplicates();
    }
    if args.rows {
        query = query.with_rows();
    }
    if args.explain {
        query = query.explain();
    }
    if let Some(ts) = args.at_least {
        query = query.at_least(ts);
    }
    if let ReadAt::Bounded { max_staleness_ms } = args.reads.read_at(None)? {
        query = query.max_staleness_ms(u32::try_from(max_staleness_ms).unwrap_or(u32::MAX));
    }
    if let Some(token) = &args.page_token {
        let token = hex::decode(token).map_err(|error| {
            Error::invalid(format!("the page token is not hexadecimal, as it was printed: {error}"))
        })?;
        query = query.page_token(token);
    }
    print_pages(context, query, args.limit, args.explain).await
}

async fn print_pages(
    context: &Context,
    query: IndexQuery,
    limit: u32,
    explain: bool,
) -> Result<Done, Failure> {
    let mut out = output::stdout();
    let (mut query, mut left) = (query, limit);
    loop {
        let page = query.clone().limit(left.min(PAGE)).page().await?;
        if explain && left == limit {
            for line in &page.explain {
                match context.output {
                    Format::Text => eprintln!("{line}"),
                    Format::Json => writeln!(out, "{}", json!({ "explain": line }))?,
                }
            }
        }
        for item in &page.items {
            print(&mut out, context, item)?;
        }
        out.flush()?;
        left = left.saturating_sub(u32::try_from(page.items.len()).unwrap_or(u32::MAX));
        match page.next.clone().filter(|_| left > 0) {
            Some(next) => query = query.page_token(next).at_least(Timestamp::ZERO),
            None => {
                print_end(&mut out, context, &page, explain)?;
                return Ok(Done::Ok);
            }
        }
    }
}

fn print(out: &mut impl Write, context: &Context, item: &QueryItem) -> Result<(), Failure> {
    match context.output {
        Format::Text => {
            let parts: Vec<String> =
                PARTS.iter().flat_map(|name| texts(name, item.json.get(*name))).collect();
            let key =
                item.key.as_ref().map(|key| output::line_bytes(key, context.hex) + "\t").unwrap_or_default();
            let value =
                item.value.as_ref().map(|value| format!("\t{}", output::line_bytes(value, context.hex)));
            writeln!(out, "{key}{}{}", parts.join("\t"), value.unwrap_or_default())?;
        }
        Format::Json => {
            let mut object = Map::new();
            if let Some(key) = &item.key {
                output::put_bytes(&mut object, "key", key, context.hex);
            }
            object.extend(item.json.clone());
            if let Some(value) = &item.value {
                output::put_bytes(&mut object, "value", value, context.hex);
            }
            writeln!(out, "{}", Value::from(object))?;
        }
    }
    Ok(())
}

/// `name=value` of each field, or of what stands alone.
fn texts(name: &str, part: Option<&Value>) -> Vec<String> {
    match part {
        None => Vec::new(),
        Some(Value::Object(fields)) => fields.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        Some(value) => vec![format!("{name}={value}")],
    }
}

fn print_end(
    out: &mut impl Write,
    context: &Context,
    page: &QueryPage,
    explain: bool,
) -> Result<(), Failure> {
    let next = page.next.as_ref().map(|token: &Bytes| hex::encode(token));
    match context.output {
        Format::Text => {
            if let Some(halted) = &page.halted {
                eprintln!("the index stays as of {}: {halted}", page.watermark);
            }
            if explain {
                eprintln!("as of {}, by version {}, read at {}", page.watermark, page.version, page.read_ts);
            }
            if let Some(next) = next {
                eprintln!("there are more: --page-token {next}");
            }
        }
        Format::Json => {
            let end = json!({
                "watermark": page.watermark.0,
                "read_ts": page.read_ts.0,
                "version": page.version,
                "halted": page.halted,
                "page_token": next,
            });
            writeln!(out, "{end}")?;
        }
    }
    out.flush()?;
    Ok(())
}
