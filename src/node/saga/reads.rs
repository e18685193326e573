//! Where sagas are, what has happened in them, and which there are: read on any replica.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::{Duration, Instant};

use super::clock::Clock;
use super::definitions::Definitions;
use super::schedules;
use super::starts::check_attribute;
use super::transition::no_saga;
use super::wire::{Payloads, open_steps, record_to_proto, summary_to_proto, view_to_proto};
use crate::client::Client;
use crate::codec::keyspace;
use crate::node::rows::Rows;
use crate::rpc::v1;
use crate::saga::{
    Definition, State, Status, by_attribute_prefix, by_status_prefix, check_name, closed_key, history_key,
    id_by_attribute, id_by_status, id_of, open_key, output_of, records_of,
};
use crate::types::{Direction, Error, KeyRange, ReadAt, Result, Timestamp, limits};

/// Rows of history in a page.
const HISTORY_ROWS: usize = 500;
/// Sagas that are looked at for a page of a list.
const LIST_ROWS: usize = 500;
/// Sagas that are looked at for a page at most, however few are let through.
const MOST_EXAMINED: usize = 10_000;
/// Schedules that are read together: each has an input.
const SCHEDULE_ROWS: usize = 20;

/// Reads of sagas.
pub struct Readings<'a> {
    /// The rows of this node's replicas.
    pub rows: &'a Rows,
    /// A client of this node, for definitions.
    pub client: &'a Client,
    /// Definitions as they are known.
    pub definitions: &'a Definitions,
    /// The time.
    pub clock: &'a Clock,
    /// Until when an answer is wanted.
    pub deadline: Instant,
}

impl Readings<'_> {
    /// Where a saga is.
    ///
    /// # Errors
    ///
    /// `Invalid` where there is none of the id; those of a read.
    pub async fn view(&self, id: &str, with_payloads: bool) -> Result<v1::SagaView> {
        let (as_of, state, definition) = self.find(id).await?;
        self.clock.note(as_of);
        let payloads = match with_payloads {
            true => {
                let within = self.deadline.saturating_duration_since(Instant::now());
                Some(payloads(self.rows, id, as_of, within).await?)
            }
            false => None,
        };
        Ok(view_to_proto(id, &definition, &state, payloads.as_ref(), self.clock.now_ms()))
    }

    /// Which step of a saga has a name.
    ///
    /// # Errors
    ///
    /// `Invalid` where none has; as for [`view`](Self::view).
    pub async fn step_of(&self, id: &str, name: &str) -> Result<usize> {
        let (_, _, definition) = self.find(id).await?;
        definition.find(name).ok_or_else(|| {
            let names: Vec<&str> = definition.steps().iter().map(|step| step.name.as_str()).collect();
            Error::invalid(format!("saga {id} has no step {name:?}: its steps are {}", names.join(", ")))
        })
    }

    async fn find(&self, id: &str) -> Result<(Timestamp, State, Arc<Definition>)> {
        let found = state_of(self.rows, id, ReadAt::Latest, self.deadline).await?;
        let (as_of, state) = found.ok_or_else(|| no_saga(id))?;
        let definition = self.definitions.get(self.client, &state.name, state.version).await?;
        Ok((as_of, state, definition))
    }

    /// Lines of a saga's history, from one on.
    ///
    /// # Errors
    ///
    /// As for [`view`](Self::view).
    pub async fn history(&self, id: &str, from: u64) -> Result<v1::SagaRecords> {
        let (as_of, _, definition) = self.find(id).await?;
        let whole = keyspace::saga_rows_of(id, keyspace::SAGA_HISTORY);
        // The line may stand in the middle of a row: that begins before it.
        let mut start = whole.start.clone();
        if from > 0 {
            let before = KeyRange::new(start.clone(), Some(history_key(id, from.saturating_add(1))));
            let at = ReadAt::Snapshot(as_of);
            let page = self.rows.page(before, Direction::Reverse, at, 1, self.deadline).await?;
            start = page.rows.into_iter().next().map_or(start, |(key, _)| key);
        }
        let range = KeyRange::new(start, whole.end);
        let at = ReadAt::Snapshot(as_of);
        let page = self.rows.page(range, Direction::Forward, at, HISTORY_ROWS, self.deadline).await?;
        let mut reply = v1::SagaRecords::default();
        let mut next = from;
        for (key, record) in page.rows {
            let number = key.last_chunk::<8>().map_or(0, |number| u64::from_be_bytes(*number));
            for (number, line) in (number..).zip(records_of(&record.value)?) {
                next = number + 1;
                if number >= from {
                    reply.records.push(record_to_proto(number, &definition, line));
                }
            }
        }
        reply.next = page.next.map(|_| next);
        Ok(reply)
    }

    /// A page of the sagas that a filter lets through, from a place on.
    ///
    /// # Errors
    ///
    /// `Invalid` for a wrong filter; those of a read.
    pub async fn list(&self, place: &Bytes, asked: v1::SagaListPage) -> Result<v1::SagaPage> {
        let filter = Filter::new(asked.filter.unwrap_or_default())?;
        let at = match asked.at_ts {
            0 => self.rows.now().await?,
            at => Timestamp(at),
        };
        self.clock.note(self.rows.at_most_now(at).await?);
        let shard = self.rows.holding(place)?.group().state().descriptor.range.clone();
        let whole = shard.intersect(&keyspace::saga_range()).ok_or_else(|| {
            Error::invalid("the place is none of sagas: begin with an empty one, and go on with `next`")
        })?;
        let limit = (asked.limit as usize).clamp(1, limits::MAX_PAGE_ROWS);
        let mut page = v1::SagaPage { at_ts: at.0, ..v1::SagaPage::default() };
        let mut left = MOST_EXAMINED;
        let first = whole.start.get(1).copied().unwrap_or_default();
        let first = place.get(1).copied().unwrap_or_default().max(first);
        for partition in first..=u8::MAX {
            for (prefix, by) in filter.prefixes(partition) {
                let prefix_bytes = prefix.len();
                let range = KeyRange::prefix(prefix);
                let Some(mut range) = range.intersect(&whole) else { continue };
                if range.end.as_ref().is_some_and(|end| end <= place) {
                    continue;
                }
                range.start = range.start.max(place.clone());
                if let Some(next) = self
                    .list_range((range, prefix_bytes, by), &filter, at, (limit, &mut left), &mut page)
                    .await?
                {
                    page.next = next;
                    return Ok(page);
                }
            }
        }
        // What comes behind this shard's sagas is another shard's, or nothing.
        page.next = whole.end.filter(|end| keyspace::saga_range().contains(end)).unwrap_or_default();
        Ok(page)
    }

    /// A page of schedules, from a place on.
    ///
    /// # Errors
    ///
    /// `Invalid` for a wrong place; those of a read.
    pub async fn schedules(&self, place: &Bytes) -> Result<v1::SagaSchedules> {
        let shard = self.rows.holding(place)?.group().state().descriptor.range.clone();
        let whole = shard.intersect(&keyspace::saga_range());
        let mut reply = v1::SagaSchedules::default();
        for partition in place.get(1).copied().unwrap_or_default()..=u8::MAX {
            let prefix = keyspace::saga_rows(partition, keyspace::SAGA_SCHEDULE);
            let range = KeyRange::prefix(prefix);
            let Some(mut range) = whole.as_ref().and_then(|whole| whole.intersect(&range)) else { continue };
            range.start = range.start.max(place.clone());
            if range.is_empty() {
                continue;
            }
            let page = self
                .rows
                .page(range.clone(), Direction::Forward, ReadAt::Latest, SCHEDULE_ROWS, self.deadline)
                .await?;
            for (key, record) in page.rows {
                let schedule = schedules::decode(&record.value)?;
                reply.schedules.push(schedules::to_proto(&id_of(&key)?, &schedule));
            }
            if let Some(next) = page.next.filter(|next| range.contains(next)) {
                reply.next = next;
                return Ok(reply);
            }
        }
        let end = whole.and_then(|whole| whole.end);
        reply.next = end.filter(|end| keyspace::saga_range().contains(end)).unwrap_or_default();
        Ok(reply)
    }

    /// Adds what a range of index rows names. Answers where to go on, once the page is full or enough was looked at.
    async fn list_range(
        &self,
        (mut range, prefix_bytes, by): (KeyRange, usize, By),
        filter: &Filter,
        at: Timestamp,
        (limit, left): (usize, &mut usize),
        page: &mut v1::SagaPage,
    ) -> Result<Option<Bytes>> {
        loop {
            let snapshot = ReadAt::Snapshot(at);
            let rows = LIST_ROWS.min(limit - page.sagas.len());
            let found =
                self.rows.page(range.clone(), Direction::Forward, snapshot, rows, self.deadline).await?;
            *left = left.saturating_sub(found.rows.len());
            let id_of = |key: &Bytes| {
                let id = match by {
                    By::Status => id_by_status(key, prefix_bytes),
                    By::Named | By::Attribute => id_by_attribute(key, prefix_bytes),
                };
                id.ok_or_else(|| Error::corrupt("a row by which sagas are found has a malformed key"))
            };
            let ids: Vec<String> = found.rows.iter().map(|(key, _)| id_of(key)).collect::<Result<_>>()?;
            let keys: Vec<Bytes> = ids.iter().flat_map(|id| [open_key(id), closed_key(id)]).collect();
            let (_, records) = self.rows.read(&keys, snapshot, self.deadline).await?;
            for (id, records) in ids.iter().zip(records.chunks(2)) {
                let record = records.iter().flatten().next().ok_or_else(|| {
                    Error::corrupt(format!(
                        "saga {id:?} stands in an index, and there is none: its rows are damaged"
                    ))
                })?;
                let state = State::decode(&record.value)?;
                let definition = self.definitions.get(self.client, &state.name, state.version).await?;
                if filter.lets_through(&definition, &state) {
                    page.sagas.push(summary_to_proto(id, &definition, &state, self.clock.now_ms()));
                }
            }
            match found.next {
                Some(next) if page.sagas.len() >= limit || *left == 0 => return Ok(Some(next)),
                Some(next) => range.start = next,
                None if page.sagas.len() >= limit => return Ok(range.end),
                None => return Ok(None),
            }
        }
    }
}

/// Where a saga is, ended or not, and as of when; `None` where there is none of the id.
///
/// # Errors
///
/// Those of a read.
pub(super) async fn state_of(
    rows: &Rows,
    id: &str,
    at: ReadAt,
    deadline: Instant,
) -> Result<Option<(Timestamp, State)>> {
    let (as_of, found) = rows.read(&[open_key(id), closed_key(id)], at, deadline).await?;
    let record = found.into_iter().flatten().next();
    record.map(|record| Ok((as_of, State::decode(&record.value)?))).transpose()
}

/// A saga's input, and what its steps came to, as of a timestamp.
///
/// # Errors
///
/// Those of a read.
pub(super) async fn payloads(rows: &Rows, id: &str, as_of: Timestamp, within: Duration) -> Result<Payloads> {
    let range = keyspace::saga_rows_of(id, keyspace::SAGA_PAYLOAD);
    let mut payloads = Payloads::default();
    for (key, record) in rows.all(&range, ReadAt::Snapshot(as_of), within).await? {
        match output_of(key.get(range.start.len()..).unwrap_or_default())? {
            Some(step) => drop(payloads.outputs.insert(step, record.value)),
            None => payloads.input = record.value,
        }
    }
    Ok(payloads)
}

/// What a row of an index is found by.
#[derive(Clone, Copy)]
enum By {
    /// The status; its name stands in the row.
    Status,
    /// The status and the name.
    Named,
    /// An attribute.
    Attribute,
}

/// A filter, checked.
struct Filter {
    statuses: Vec<Status>,
    asked: v1::SagaFilter,
}

impl Filter {
    fn new(asked: v1::SagaFilter) -> Result<Self> {
        use Status::{Cancelled, Compensated, Compensating, Completed, Paused, Running, Terminated};
        let statuses = match asked.status.as_str() {
            "" => Status::ALL.to_vec(),
            "open" => vec![Running, Paused, Compensating],
            "closed" => vec![Completed, Compensated, Cancelled, Terminated],
            name => vec![Status::of_name(name).ok_or_else(|| {
                let names = Status::ALL.map(Status::name).join(", ");
                Error::invalid(format!("{name:?} is no status of a saga: say one of open, closed, {names}"))
            })?],
        };
        if !asked.name.is_empty() {
            check_name("the saga", &asked.name)?;
        }
        asked.attributes.iter().try_for_each(|(name, value)| check_attribute(name, value))?;
        Ok(Self { statuses, asked })
    }

    /// How the index rows begin that name all sagas of a partition which may be let through, in the order of their keys.
    fn prefixes(&self, partition: u8) -> Vec<(Bytes, By)> {
        if let Some((attribute, value)) = self.asked.attributes.iter().min() {
            return vec![(by_attribute_prefix(partition, attribute, value), By::Attribute)];
        }
        let (name, by) = match self.asked.name.as_str() {
            "" => (None, By::Status),
            name => (Some(name), By::Named),
        };
        self.statuses.iter().map(|status| (by_status_prefix(partition, *status, name), by)).collect()
    }

    fn lets_through(&self, definition: &Definition, state: &State) -> bool {
        let asked = &self.asked;
        self.statuses.contains(&state.status())
            && (asked.name.is_empty() || asked.name == state.name)
            && asked.attributes.iter().all(|(name, value)| state.attributes.get(name) == Some(value))
            && state.created_ms >= asked.from_unix_ms
            && asked.to_unix_ms.is_none_or(|to_ms| state.created_ms < to_ms)
            && (asked.at.is_empty() || open_steps(definition, state).contains(&asked.at))
    }
}
