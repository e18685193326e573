//! Queries, on any replica of the shard that holds an index's rows.
//!
//! All of a page, and all pages of a query, are read at one timestamp, the checkpoint with them: what it says of the
//! index's watermark is so of every row that is told.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::store::Store;
use super::wire;
use crate::codec::keyspace;
use crate::index::{
    Checkpoint, Definition, Item, Next, Plan, Query, QueryText, Reader, State, checkpoint_key,
    definition_key, plan,
};
use crate::rpc::{v1, validate};
use crate::types::{Direction, Error, ErrorKind, KeyRange, ReadAt, Record, Result, Timestamp, limits};

/// Rows of the index that are read for one page, at most: then it ends, with fewer results than were asked for.
const MAX_ROWS_READ: usize = 50_000;
/// Bytes of results in one page, but for its last one.
const MAX_ITEM_BYTES: usize = 1024 * 1024;
/// Rows that are read at a time, at first; more, the longer it goes on.
const FIRST_ROWS: usize = 128;
/// A page ends, with fewer results than were asked for, once it was worked on for so long.
const WORK_AT_MOST: Duration = Duration::from_millis(500);

/// Answers a query of one version of an index.
///
/// # Errors
///
/// `Invalid` for a query that the index can't serve; `TooOld` where nothing is left of the version, or of the timestamp
/// of a page token; `Unavailable` while the index is built. Those of a read.
pub async fn query(
    store: &Store,
    id: (u64, u32),
    asked: v1::IndexQuery,
    deadline: Instant,
) -> Result<v1::IndexPage> {
    let query = parse(&asked)?;
    let at = validate::read_at(asked.read_ts, asked.max_staleness_ms)?;
    let definition = definition(store, id, at, deadline).await?;
    let plan = plan(&definition, &query)?;
    // A page that goes on has its own moment.
    let at = plan.moment().map_or(at, |(read_ts, _)| ReadAt::Snapshot(read_ts));
    let (read_ts, checkpoint) = checkpoint(store, id, at, deadline).await?;
    let told = plan.moment().map_or(Timestamp(asked.watermark), |(_, watermark)| watermark);
    let watermark = checkpoint.watermark.max(told);
    let mut page = v1::IndexPage {
        watermark: watermark.0,
        read_ts: read_ts.0,
        version: id.1,
        explain: if asked.explain { plan.explain() } else { Vec::new() },
        ..Default::default()
    };
    if let State::Halted { key, commit_ts, reason } = &checkpoint.state {
        page.halted = wire::halted(key, *commit_ts, reason);
    }
    let (items, page_token) = Reading { store, at: read_ts, watermark, deadline }.page(plan).await?;
    page.items = items;
    page.page_token = page_token.unwrap_or_default();
    Ok(page)
}

fn parse(asked: &v1::IndexQuery) -> Result<Query> {
    Query::parse(&QueryText {
        filter: &asked.filter,
        order: &asked.order,
        group_by: asked.group_by.as_deref(),
        aggregates: &asked.aggregates,
        duplicates: asked.duplicates,
        limit: (asked.limit > 0).then_some(asked.limit as usize),
        page_token: (!asked.page_token.is_empty()).then(|| asked.page_token.clone()),
        with_rows: asked.with_rows,
    })
}

/// A version's definition, read as the query is where it is not known yet.
async fn definition(store: &Store, id: (u64, u32), at: ReadAt, deadline: Instant) -> Result<Definition> {
    if let Some(known) = store.known_definition(id) {
        return Ok(known);
    }
    let (_, found) = store.read(&[definition_key(id.0, id.1)], at, deadline).await?;
    let record = found.into_iter().next().flatten().ok_or_else(|| gone(id.1))?;
    let definition = Definition::decode(&record.value)?;
    store.keep_definition(&definition);
    Ok(definition)
}

/// Refuses what is asked of a version of which nothing is left.
///
/// # Errors
///
/// `TooOld` then. Those of a read.
pub(super) async fn check_there(store: &Store, id: (u64, u32), deadline: Instant) -> Result<()> {
    let key = checkpoint_key(id.0, id.1);
    let (_, found) = store.read(&[key], ReadAt::Latest, deadline).await?;
    found.into_iter().next().flatten().map(|_| ()).ok_or_else(|| gone(id.1))
}

async fn checkpoint(
    store: &Store,
    id: (u64, u32),
    at: ReadAt,
    deadline: Instant,
) -> Result<(Timestamp, Checkpoint)> {
    let key = checkpoint_key(id.0, id.1);
    let (read_ts, found) = store.read(&[key], at, deadline).await?;
    Ok((read_ts, built(id, at, found.into_iter().next().flatten())?))
}

/// The checkpoint in its record, which was read at `at`, of a version that is built.
fn built(id: (u64, u32), at: ReadAt, record: Option<Record>) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::decode(&record.ok_or_else(|| gone(id.1))?.value)?;
    match (checkpoint.watermark, at) {
        (Timestamp::ZERO, ReadAt::Snapshot(at)) => Err(Error::invalid(format!(
            "version {} of the index was not built yet at {at}: read it at a later timestamp",
            id.1
        ))),
        (Timestamp::ZERO, _) => Err(Error::unavailable(format!(
            "version {} of the index is being built: it answers once it is; see `kvorum index status`",
            id.1
        ))),
        _ => Ok(checkpoint),
    }
}

fn gone(version: u32) -> Error {
    Error::new(
        ErrorKind::TooOld,
        format!(
            "there is nothing of version {version} of the index: it was dropped, or another one has taken its place"
        ),
    )
}

/// A page of entries and groups of one version of an index, as they are stored.
///
/// # Errors
///
/// As for [`query`], but for what concerns queries.
pub async fn dump(
    store: &Store,
    id: (u64, u32),
    from: v1::DumpIndex,
    deadline: Instant,
) -> Result<v1::IndexDump> {
    let at = validate::read_at(from.read_ts, None)?;
    let (read_ts, checkpoint) = checkpoint(store, id, at, deadline).await?;
    let rows = |kind| KeyRange::prefix(keyspace::index_rows(id.0, id.1, kind).freeze());
    // Entries and groups lie side by side.
    let mut range = KeyRange::new(rows(keyspace::INDEX_ENTRY).start, rows(keyspace::INDEX_GROUP).end);
    if !from.from.is_empty() {
        range.start = range.start.max([&[keyspace::INDEX], &from.from[..]].concat().into());
    }
    let mut dump =
        v1::IndexDump { read_ts: read_ts.0, watermark: checkpoint.watermark.0, ..Default::default() };
    if range.is_empty() {
        return Ok(dump);
    }
    let at = ReadAt::Snapshot(read_ts);
    let page = store.page(range, Direction::Forward, at, limits::MAX_PAGE_ROWS, deadline).await?;
    let row = |(key, record): (Bytes, Record)| v1::StoredRow { key: key.slice(1..), value: record.value };
    dump.rows = page.rows.into_iter().map(row).collect();
    dump.next = page.next.map(|next| next.slice(1..));
    Ok(dump)
}

/// Reads of one page, all at one timestamp.
struct Reading<'a> {
    store: &'a Store,
    at: Timestamp,
    watermark: Timestamp,
    deadline: Instant,
}

impl Reading<'_> {
    async fn page(&self, plan: Plan) -> Result<(Vec<v1::IndexItem>, Option<Bytes>)> {
        let (direction, began) = (plan.direction(), Instant::now());
        let (mut reader, mut next) = Reader::start(plan);
        let (mut items, mut size_bytes, mut rows_read) = (Vec::new(), 0, 0);
        let mut rows_together = FIRST_ROWS;
        while let Next::SeekTo(range) = next {
            let at = ReadAt::Snapshot(self.at);
            let page = self.store.page(range.clone(), direction, at, rows_together, self.deadline).await?;
            rows_read += page.rows.len();
            rows_together = (rows_together * 4).min(limits::MAX_PAGE_ROWS);
            let rows = page.rows.into_iter().map(|(key, record)| (key, record.value));
            next = reader.push_page(range, rows, page.next)?;
            for item in reader.take_items() {
                let item = item_to_proto(item);
                size_bytes += item.key.as_ref().map_or(0, Bytes::len) + item.json.len();
                items.push(item);
            }
            let is_enough =
                rows_read >= MAX_ROWS_READ || size_bytes >= MAX_ITEM_BYTES || began.elapsed() >= WORK_AT_MOST;
            if next != Next::Done && is_enough && reader.is_further() {
                reader.stop();
                break;
            }
            // Others have something to do too.
            tokio::task::yield_now().await;
        }
        Ok((items, reader.page_token(self.at, self.watermark)))
    }
}

fn item_to_proto(item: Item) -> v1::IndexItem {
    match item {
        Item::Entry(entry) => {
            v1::IndexItem { json: entry.to_json().to_string(), key: Some(entry.key), value: None }
        }
        Item::Group(group) => v1::IndexItem { key: None, json: group.to_json().to_string(), value: None },
    }
}
