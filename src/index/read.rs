//! The reading of an index by a plan, as a machine: rows in, results out, and where to read next.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::layout::{self, GroupValue, RowKey, has_sum};
use super::plan::{Plan, RowKind};
use super::token::PageToken;
use super::{Aggregate, Datum, Fixed};
use crate::types::{Direction, Error, KeyRange, Result, Timestamp, key_after, prefix_end};

/// What the reader wants next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// The next row of the scan under way, or [`Reader::end_of_range`] where it has no more.
    Continue,
    /// A new scan, over this range of internal keys, in the plan's direction. Rows at hand that lie in it need not be
    /// read again.
    SeekTo(KeyRange),
    /// Nothing: the page is full, or all is read.
    Done,
}

/// One result of a query.
#[derive(Clone, PartialEq, Debug)]
pub enum Item {
    /// A row of users.
    Entry(EntryItem),
    /// A group of rows.
    Group(GroupItem),
}

/// What an index tells of one row of users.
#[derive(Clone, PartialEq, Debug)]
pub struct EntryItem {
    /// The row's key, as users know it.
    pub key: Bytes,
    /// The fields that the index is on.
    pub fields: Map<String, Value>,
    /// The measure, of a min or max index.
    pub measure: Option<Value>,
    /// The covering fields.
    pub covering: Map<String, Value>,
}

/// What an index tells of a group of rows. What was not asked for is `None`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct GroupItem {
    /// The fields that are grouped by.
    pub fields: Map<String, Value>,
    /// How many rows.
    pub count: Option<u64>,
    /// The sum of their measure.
    pub sum: Option<Fixed>,
    /// Their smallest measure.
    pub min: Option<Value>,
    /// Their largest measure.
    pub max: Option<Value>,
}

impl EntryItem {
    /// What the index tells of the row as one JSON object: `{"fields": {…}, "measure": …, "covering": {…}}`, the last two
    /// where there are any.
    pub fn to_json(&self) -> Value {
        let mut json = Map::new();
        json.insert("fields".into(), self.fields.clone().into());
        json.extend(self.measure.clone().map(|measure| ("measure".to_owned(), measure)));
        if !self.covering.is_empty() {
            json.insert("covering".into(), self.covering.clone().into());
        }
        json.into()
    }
}

impl GroupItem {
    /// The group as one JSON object: `{"fields": {…}, "count": …, …}`.
    pub fn to_json(&self) -> Value {
        let mut json = Map::new();
        json.insert("fields".into(), self.fields.clone().into());
        let values = [
            ("count", self.count.map(Value::from)),
            ("sum", self.sum.map(Fixed::to_json)),
            ("min", self.min.clone()),
            ("max", self.max.clone()),
        ];
        json.extend(values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        json.into()
    }
}

/// Reads one page of a query's results.
///
/// [`Reader::start`] says where to scan. Each row of the scan is pushed; the answer says whether the next one is
/// wanted, or a scan elsewhere. Results are taken at any time. A page that is full has a token for the next one.
#[derive(Debug)]
pub struct Reader {
    plan: Plan,
    /// What is left to read, what is to be read first at the front.
    ranges: VecDeque<KeyRange>,
    /// The group that is being read.
    group: Option<OpenGroup>,
    /// What the keys of the page's first group begin with.
    first_group: Option<Bytes>,
    items: VecDeque<Item>,
    /// Results so far.
    found: usize,
    /// Behind the last result, in the plan's direction.
    resume_at: Option<Bytes>,
    is_full: bool,
}

/// A group that more rows may belong to.
#[derive(Debug)]
struct OpenGroup {
    /// What the keys of its rows begin with.
    prefix: Bytes,
    fields: Vec<Datum>,
    /// Whether any row met the conditions.
    is_met: bool,
    count: u64,
    sum: Fixed,
    min: Option<Datum>,
    max: Option<Datum>,
}

impl Reader {
    /// Begins to read. The second is the first scan, or that there is none.
    pub fn start(plan: Plan) -> (Self, Next) {
        let ranges = plan.ranges.iter().cloned().collect();
        let reader = Self {
            plan,
            ranges,
            group: None,
            first_group: None,
            items: VecDeque::new(),
            found: 0,
            resume_at: None,
            is_full: false,
        };
        let next = reader.rest();
        (reader, next)
    }

    /// Where a scan goes on that was broken off: what is left of it.
    pub fn rest(&self) -> Next {
        if self.is_full {
            return Next::Done;
        }
        self.ranges.front().map_or(Next::Done, |range| Next::SeekTo(range.clone()))
    }

    /// Takes a row of the scan under way.
    ///
    /// # Errors
    ///
    /// `Corrupt` where it is no row of the index. `Invalid` where it does not lie in the scan's range, or not behind
    /// the row before it. The reader is of no use then.
    pub fn push(&mut self, key: &Bytes, value: &[u8]) -> Result<Next> {
        if self.is_full {
            return Ok(Next::Done);
        }
        if !self.ranges.front().is_some_and(|range| range.contains(key)) {
            return Err(Error::invalid(format!(
                "the row \"{}\" was pushed to a reader, but does not lie in the range that it reads, or not behind \
                 the row before it",
                key.escape_ascii()
            )));
        }
        let row = self.plan.layout.read_key(key)?;
        let grouping = self.plan.grouping.as_ref().map(|grouping| (grouping.fields, grouping.skips));
        let next = match grouping {
            None => self.push_entry(key, &row, value),
            Some((fields, skips)) => self.push_to_group(fields, skips, key, &row, value),
        }?;
        if next == Next::Continue {
            self.pass(key);
        }
        Ok(next)
    }

    /// Takes a page of a scan of `range`, which is what [`Next::SeekTo`] named: its rows, and in `rest` where the scan goes on,
    /// if it does. Answers where to scan next: never [`Next::Continue`].
    ///
    /// # Errors
    ///
    /// As for [`push`](Self::push) and [`end_of_range`](Self::end_of_range).
    pub fn push_page(
        &mut self,
        range: KeyRange,
        rows: impl IntoIterator<Item = (Bytes, Bytes)>,
        rest: Option<Bytes>,
    ) -> Result<Next> {
        // What is known: the rows of the range up to where the scan goes on. What is left: the others.
        let (known, left) = match (rest, self.plan.direction) {
            (Some(rest), Direction::Forward) => {
                (KeyRange::new(range.start, Some(rest.clone())), Some(KeyRange::new(rest, range.end)))
            }
            (Some(rest), Direction::Reverse) => {
                (KeyRange::new(rest.clone(), range.end), Some(KeyRange::new(range.start, Some(rest))))
            }
            (None, _) => (range, None),
        };
        let mut wanted = known.clone();
        for (key, value) in rows {
            if !wanted.contains(&key) {
                continue;
            }
            match self.push(&key, &value)? {
                Next::Continue => {}
                Next::Done => return Ok(Next::Done),
                Next::SeekTo(next) => match next.intersect(&known) {
                    Some(here) => wanted = here,
                    None => return Ok(Next::SeekTo(next)),
                },
            }
        }
        match (self.rest(), left) {
            (Next::SeekTo(wanted), Some(left)) => match wanted.intersect(&left) {
                Some(left) => Ok(Next::SeekTo(left)),
                None => self.end_of_range(),
            },
            (Next::Done, _) => Ok(Next::Done),
            (_, _) => self.end_of_range(),
        }
    }

    /// The scan under way has no more rows.
    ///
    /// # Errors
    ///
    /// `Corrupt` where the counts or sums of a group don't fit their numbers.
    pub fn end_of_range(&mut self) -> Result<Next> {
        if self.is_full {
            return Ok(Next::Done);
        }
        self.ranges.pop_front();
        if self.ranges.is_empty() {
            self.close_group();
        }
        Ok(self.rest())
    }

    /// Ends the page here, though it is not full: for a caller that has read enough rows. The next page begins behind
    /// the last row pushed, or with the group that is not complete, which is then read again from its beginning.
    pub fn stop(&mut self) {
        let (Some(range), false) = (self.ranges.front(), self.is_full) else { return };
        let bound = match (self.group.take().map(|group| group.prefix), self.plan.direction) {
            (Some(prefix), Direction::Forward) => prefix,
            (Some(prefix), Direction::Reverse) => prefix_end(&prefix).unwrap_or_default(),
            (None, Direction::Forward) => range.start.clone(),
            (None, Direction::Reverse) => range.end.clone().unwrap_or_default(),
        };
        self.resume_at = Some(bound);
        self.is_full = true;
    }

    /// Whether a page that is stopped here gets further than where it began: not inside its first group.
    pub fn is_further(&self) -> bool {
        self.group.as_ref().is_none_or(|group| self.first_group.as_ref() != Some(&group.prefix))
    }

    /// Takes the results so far.
    pub fn take_items(&mut self) -> Vec<Item> {
        self.items.drain(..).collect()
    }

    /// Where the next page begins; `None` where there is none, or the page is neither full nor stopped. `read_ts` is the
    /// timestamp at which this page was read, and at which the next ones should be; `watermark` that of users' rows which the
    /// index was that of. The last page may be empty.
    pub fn page_token(&self, read_ts: Timestamp, watermark: Timestamp) -> Option<Bytes> {
        let bound = self.resume_at.clone().filter(|_| self.is_full)?;
        Some(PageToken { read_ts, watermark, bound }.encode(&self.plan.definition, self.plan.digest))
    }

    fn push_entry(&mut self, key: &Bytes, row: &RowKey, value: &[u8]) -> Result<Next> {
        let covering = layout::read_entry_value(&self.plan.definition, value)?;
        if !self.is_met(&row.fields, &covering) {
            return Ok(Next::Continue);
        }
        let spec = self.plan.definition.spec();
        let named = |fields: &[super::Field], data: &[Datum]| {
            fields.iter().zip(data).map(|(field, datum)| (field.name.clone(), datum.to_json())).collect()
        };
        let item = EntryItem {
            key: key.slice(row.end_of(row.fields.len())..),
            fields: named(&spec.on, &row.fields),
            measure: row.fields.get(spec.on.len()).map(Datum::to_json),
            covering: named(&spec.covering, &covering),
        };
        let bound = match self.plan.direction {
            Direction::Forward => key_after(key),
            Direction::Reverse => key.clone(),
        };
        self.add(Item::Entry(item), bound);
        Ok(if self.is_full { Next::Done } else { Next::Continue })
    }

    /// A row of the group that its first `fields` fields tell.
    fn push_to_group(
        &mut self,
        fields: usize,
        skips: bool,
        key: &Bytes,
        row: &RowKey,
        value: &[u8],
    ) -> Result<Next> {
        let prefix = key.slice(..row.end_of(fields));
        if self.group.as_ref().is_some_and(|group| group.prefix != prefix) {
            self.close_group();
            if self.is_full {
                return Ok(Next::Done);
            }
        }
        let on = self.plan.definition.spec().on.len();
        let (group, covering) = match self.plan.rows {
            RowKind::Groups => {
                (Some(GroupValue::decode(value, has_sum(self.plan.definition.spec().kind))?), Vec::new())
            }
            RowKind::Entries => (None, layout::read_entry_value(&self.plan.definition, value)?),
        };
        let is_met = self.is_met(&row.fields, &covering);
        self.first_group.get_or_insert_with(|| prefix.clone());
        let open = self.group.get_or_insert_with(|| OpenGroup::new(prefix, row, fields));
        if !is_met {
            return Ok(Next::Continue);
        }
        open.fold(group, row.fields.get(on))?;
        if !skips {
            return Ok(Next::Continue);
        }
        // The first one that matches is the smallest or largest of its values.
        self.pass_prefix(&key.slice(..row.end_of(on)));
        if self.ranges.is_empty() {
            self.close_group();
        }
        Ok(self.rest())
    }

    fn is_met(&self, key: &[Datum], covering: &[Datum]) -> bool {
        self.plan.residual.iter().all(|residual| residual.matches(key, covering))
    }

    /// Makes a result of the group that was read, if it is one.
    fn close_group(&mut self) {
        let (Some(group), Some(grouping)) = (self.group.take(), &self.plan.grouping) else { return };
        if !group.is_met || group.count < grouping.min_count {
            return;
        }
        let on = &self.plan.definition.spec().on;
        let asked = |aggregate: Aggregate| grouping.aggregates.contains(&aggregate);
        let shown = grouping.shown.iter().filter_map(|at| Some((on.get(*at)?, group.fields.get(*at)?)));
        let item = GroupItem {
            fields: shown.map(|(field, datum)| (field.name.clone(), datum.to_json())).collect(),
            count: asked(Aggregate::Count).then_some(group.count),
            sum: asked(Aggregate::Sum).then_some(group.sum),
            min: group.min.filter(|_| asked(Aggregate::Min)).map(|datum| datum.to_json()),
            max: group.max.filter(|_| asked(Aggregate::Max)).map(|datum| datum.to_json()),
        };
        let bound = match self.plan.direction {
            Direction::Forward => prefix_end(&group.prefix).unwrap_or_default(),
            Direction::Reverse => group.prefix,
        };
        self.add(Item::Group(item), bound);
    }

    /// A result, and where the next one is to be looked for.
    fn add(&mut self, item: Item, bound: Bytes) {
        self.items.push_back(item);
        self.found += 1;
        self.resume_at = Some(bound);
        // With nothing left to read the last page needs no token.
        self.is_full = self.found >= self.plan.limit && !self.ranges.is_empty();
    }

    /// What is left lies behind the key.
    fn pass(&mut self, key: &Bytes) {
        if let Some(range) = self.ranges.front_mut() {
            match self.plan.direction {
                Direction::Forward => range.start = key_after(key),
                Direction::Reverse => range.end = Some(key.clone()),
            }
        }
    }

    /// What is left lies behind all keys with the prefix.
    fn pass_prefix(&mut self, prefix: &Bytes) {
        let left = match self.plan.direction {
            Direction::Forward => prefix_end(prefix).map(|start| KeyRange::new(start, None)),
            Direction::Reverse => Some(KeyRange::new("", Some(prefix.clone()))),
        };
        self.ranges = self.ranges.iter().filter_map(|range| range.intersect(left.as_ref()?)).collect();
    }
}

impl OpenGroup {
    fn new(prefix: Bytes, row: &RowKey, fields: usize) -> Self {
        let fields = row.fields.iter().take(fields).cloned().collect();
        Self { prefix, fields, is_met: false, count: 0, sum: Fixed::ZERO, min: None, max: None }
    }

    /// A group row of the index, or the measure of an entry, becomes part of the group.
    fn fold(&mut self, group: Option<GroupValue>, measure: Option<&Datum>) -> Result<()> {
        self.is_met = true;
        if let Some(group) = group {
            let count = self.count.checked_add(group.count);
            let sum = self.sum.checked_add(group.sum.unwrap_or_default());
            let (Some(count), Some(sum)) = (count, sum) else {
                return Err(Error::corrupt(
                    "the counts or sums of an index's groups don't fit their numbers together: build the index anew",
                ));
            };
            (self.count, self.sum) = (count, sum);
        }
        if let Some(measure) = measure {
            if self.min.as_ref().is_none_or(|min| measure < min) {
                self.min = Some(measure.clone());
            }
            if self.max.as_ref().is_none_or(|max| measure > max) {
                self.max = Some(measure.clone());
            }
        }
        Ok(())
    }
}
