//! Queries of indexes.

use bytes::Bytes;
use futures::stream::{StreamExt, TryStreamExt};
use serde_json::{Map, Value};

use super::{Answer, Ask, unfit};
use crate::client::Client;
use crate::client::request::Reading;
use crate::rpc::v1;
use crate::types::{Error, ErrorKind, Result, Timestamp};

/// Rows that are read together for results: of the largest ones so many fit into a reply.
const ROWS_TOGETHER: usize = 16;
const READS_AT_A_TIME: usize = 16;

/// A query of an index, to be filled in and sent. Made by [`Client::query`].
///
/// Texts are those of the command line: `country = "FR" and score >= 10`, `score desc, name`. What is left out asks for
/// nothing.
#[derive(Clone, Debug)]
pub struct IndexQuery {
    client: Client,
    name: String,
    asked: v1::IndexQuery,
    at_least: Timestamp,
}

/// One page of results.
#[derive(Clone, PartialEq, Debug)]
pub struct QueryPage {
    /// The results, in order.
    pub items: Vec<QueryItem>,
    /// The answer is of this moment: the index was that of the rows at this timestamp, at least.
    pub watermark: Timestamp,
    /// When the index was read; all pages of a query read it at the same timestamp.
    pub read_ts: Timestamp,
    /// For the [next page](IndexQuery::page_token); `None` where this is the last.
    pub next: Option<Bytes>,
    /// How it was served, a line for each thing, where that was asked.
    pub explain: Vec<String>,
    /// The version of the index that answered.
    pub version: u32,
    /// Where the index has halted at a row: why. It stays at its watermark.
    pub halted: Option<String>,
}

/// One result: a row of users, or a group of them.
#[derive(Clone, PartialEq, Debug)]
pub struct QueryItem {
    /// The row's key; `None` for a group.
    pub key: Option<Bytes>,
    /// `fields`, and of a row `measure` and `covering`, of a group `count`, `sum`, `min` and `max`, as far as the index has
    /// them and they were asked for.
    pub json: Map<String, Value>,
    /// The row's value at the page's watermark, where [rows](IndexQuery::with_rows) were asked for.
    pub value: Option<Bytes>,
}

impl QueryItem {
    /// A field of the index, or a covering one, by its name.
    pub fn field(&self, name: &str) -> Option<&Value> {
        ["fields", "covering"].iter().find_map(|part| self.json.get(*part)?.get(name))
    }

    /// How many rows the group has, where that was asked.
    pub fn count(&self) -> Option<u64> {
        self.json.get("count")?.as_u64()
    }
}

impl Client {
    /// A query of an index.
    ///
    /// ```no_run
    /// # async fn example(client: kvorum::Client) -> kvorum::Result<()> {
    /// let written = client.put("user/7", r#"{"team": "blue", "name": "Ada"}"#).await?;
    /// // One's own write is seen: the index is waited for.
    /// let page = client.query("by_team").filter(r#"team = "blue""#).at_least(written.commit_ts).page().await?;
    /// for item in &page.items {
    ///     println!("{:?} {:?}", item.key, item.field("name"));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn query(&self, name: impl Into<String>) -> IndexQuery {
        self.query_as(name, v1::IndexQuery::default(), Timestamp::ZERO)
    }

    /// A query that came as a message. What that says of a watermark is not believed: it is asked for.
    pub(crate) fn query_as(
        &self,
        name: impl Into<String>,
        asked: v1::IndexQuery,
        at_least: Timestamp,
    ) -> IndexQuery {
        let asked = v1::IndexQuery { watermark: 0, ..asked };
        IndexQuery { client: self.clone(), name: name.into(), asked, at_least }
    }
}

impl IndexQuery {
    /// Conditions that all results meet: `country = "FR" and score >= 10`, with =, !=, <, <=, >, >=, prefix, in (…).
    #[must_use]
    pub fn filter(mut self, filter: impl Into<String>) -> Self {
        self.asked.filter = filter.into();
        self
    }

    /// The order of the results: `score desc, name`. It follows the index's own, or its reverse.
    #[must_use]
    pub fn order(mut self, order: impl Into<String>) -> Self {
        self.asked.order = order.into();
        self
    }

    /// Groups by these fields: `country, type`; one group of all where it is empty.
    #[must_use]
    pub fn group_by(mut self, fields: impl Into<String>) -> Self {
        self.asked.group_by = Some(fields.into());
        self
    }

    /// What is asked of the groups: `count, sum`.
    #[must_use]
    pub fn aggregates(mut self, aggregates: impl Into<String>) -> Self {
        self.asked.aggregates = aggregates.into();
        self
    }

    /// Of a unique index: the values that several rows have, and how many.
    #[must_use]
    pub fn duplicates(mut self) -> Self {
        self.asked.duplicates = true;
        self
    }

    /// Results in a page: 1 to 10,000; 100 where nothing is said.
    #[must_use]
    pub fn limit(mut self, limit: u32) -> Self {
        self.asked.limit = limit;
        self
    }

    /// Goes on where a page ended.
    #[must_use]
    pub fn page_token(mut self, token: impl Into<Bytes>) -> Self {
        self.asked.page_token = token.into();
        self
    }

    /// The answer is of this moment or a later one: it waits until the index has come so far, at most to the client's
    /// deadline. A commit's timestamp makes one's own write seen.
    #[must_use]
    pub fn at_least(mut self, ts: Timestamp) -> Self {
        self.at_least = ts;
        self
    }

    /// The index may be read as it was so many milliseconds ago, so that any replica answers without asking the leader.
    #[must_use]
    pub fn max_staleness_ms(mut self, ms: u32) -> Self {
        self.asked.max_staleness_ms = Some(ms);
        self
    }

    /// Reads the rows too, as they were at the answer's watermark.
    #[must_use]
    pub fn with_rows(mut self) -> Self {
        self.asked.with_rows = true;
        self
    }

    /// Tells how the query is served.
    #[must_use]
    pub fn explain(mut self) -> Self {
        self.asked.explain = true;
        self
    }

    /// Sends it, and answers with one page.
    ///
    /// # Errors
    ///
    /// `Invalid` for a query that the index can't serve, and where there is no such index; `Unavailable` while it is
    /// built, and where it does not come to [`at_least`](Self::at_least) by the client's deadline; `TooOld` where the
    /// timestamp of a page token is older than versions are kept.
    pub async fn page(&self) -> Result<QueryPage> {
        if self.at_least > Timestamp::ZERO && (!self.asked.page_token.is_empty() || self.asked.read_ts > 0) {
            return Err(Error::invalid(
                "a query that goes on, or names the timestamp to read at, has its moment: leave `at_least` out",
            ));
        }
        let known = self.known().await?;
        let mut page = match self.page_of(known).await {
            // What answers may be another version now.
            Err(error) if error.kind == ErrorKind::TooOld => {
                self.client.shared.indexes.lock().remove(&self.name);
                let now = self.known().await?;
                if now == known {
                    return Err(error);
                }
                self.page_of(now).await?
            }
            answered => answered?,
        };
        if self.asked.with_rows {
            self.join(&mut page).await?;
        }
        Ok(page)
    }

    /// The pages one after the other, up to so many results.
    ///
    /// # Errors
    ///
    /// As for [`page`](Self::page).
    pub async fn all(&self, most: usize) -> Result<QueryPage> {
        let mut whole = self.page().await?;
        while let Some(next) = whole.next.take().filter(|_| whole.items.len() < most) {
            let page = self.clone().page_token(next).at_least(Timestamp::ZERO).page().await?;
            whole.items.extend(page.items);
            whole.next = page.next;
        }
        Ok(whole)
    }

    /// Which version answers.
    async fn known(&self) -> Result<(u64, u32)> {
        if let Some(known) = self.client.shared.indexes.lock().get(&self.name) {
            return Ok(*known);
        }
        let record = self.client.must_find(&self.name).await?;
        let Some(active) = &record.active else {
            return Err(match record.dropped {
                true => Error::invalid(format!("index {} was dropped", self.name)),
                false => not_built(&self.name),
            });
        };
        let known = (record.id, active.number);
        self.client.shared.indexes.lock().insert(self.name.clone(), known);
        Ok(known)
    }

    async fn page_of(&self, id: (u64, u32)) -> Result<QueryPage> {
        let mut asked = self.asked.clone();
        if self.at_least > Timestamp::ZERO {
            let reached = self.reach(id).await?;
            (asked.read_ts, asked.watermark) = (reached.read_ts, reached.watermark);
            asked.max_staleness_ms = None;
        }
        let reading = Reading { policy: self.client.policy, prefer: None, route: None, waits: false };
        let page = match self.client.about_version(id, Ask::Query(asked), Some(reading)).await? {
            Answer::Page(page) => page,
            other => return Err(unfit(&other)),
        };
        Ok(QueryPage {
            items: page.items.into_iter().map(item).collect::<Result<Vec<_>>>()?,
            watermark: Timestamp(page.watermark),
            read_ts: Timestamp(page.read_ts),
            next: Some(page.page_token).filter(|token| !token.is_empty()),
            explain: page.explain,
            version: page.version,
            halted: Some(page.halted).filter(|halted| !halted.is_empty()),
        })
    }

    async fn reach(&self, id: (u64, u32)) -> Result<v1::IndexReached> {
        match self.client.about_version(id, Ask::ReachTs(self.at_least.0), None).await? {
            Answer::Reached(reached) => Ok(reached),
            other => Err(unfit(&other)),
        }
    }

    /// Reads the rows of the results, as they were at the watermark: a few together, so that no reply gets too large.
    async fn join(&self, page: &mut QueryPage) -> Result<()> {
        let watermark = page.watermark;
        let keys: Vec<Bytes> = page.items.iter().filter_map(|item| item.key.clone()).collect();
        let together: Vec<Vec<Bytes>> = keys.chunks(ROWS_TOGETHER).map(<[Bytes]>::to_vec).collect();
        let reads =
            together.into_iter().map(|keys| async move { self.client.get_many_at(keys, watermark).await });
        let read: Vec<_> = futures::stream::iter(reads).buffered(READS_AT_A_TIME).try_collect().await?;
        let mut records = read.into_iter().flat_map(|values| values.records);
        for item in page.items.iter_mut().filter(|item| item.key.is_some()) {
            item.value = records.next().flatten().map(|record| record.value);
        }
        Ok(())
    }
}

pub(super) fn not_built(name: &str) -> Error {
    Error::unavailable(format!(
        "index {name} is being built: it answers once it is; see `kvorum index status {name}`"
    ))
}

fn item(item: v1::IndexItem) -> Result<QueryItem> {
    let json = serde_json::from_str(&item.json).map_err(|error| {
        Error::corrupt(format!("a node answered with a result that is no JSON object: {error}"))
    })?;
    Ok(QueryItem { key: item.key, json, value: item.value })
}
