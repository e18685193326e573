//! Query indexes: what there are, how far they are, and queries of them.

mod query;

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use parking_lot::Mutex;

use super::Client;
use super::request::{Asked, Reading, mismatched};
use super::router::{Place, Target};
use crate::codec::keyspace;
use crate::rpc::v1::index_catalogue_request::What as Catalogue;
use crate::rpc::v1::index_version_reply::What as Answer;
use crate::rpc::v1::index_version_request::What as Ask;
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request;
use crate::rpc::v1::{self, IndexRecord};
use crate::types::{Error, ErrorKind, KeyRange, Result, Timestamp};

pub use crate::rpc::v1::{DeadLetter, IndexProgress, IndexSpec, IndexStatus};
pub use query::{IndexQuery, QueryItem, QueryPage};

/// Which version of each index answers, as far as this client knows.
pub(super) type Known = Mutex<HashMap<String, (u64, u32)>>;

/// An index as it is stored.
#[derive(Clone, PartialEq, Debug)]
pub struct IndexRows {
    /// The index's id.
    pub id: u64,
    /// The version.
    pub version: u32,
    /// Its definition.
    pub spec: IndexSpec,
    /// When its rows were read.
    pub read_ts: Timestamp,
    /// The index is that of users' rows at this timestamp.
    pub watermark: Timestamp,
    /// Its entries and groups, by their keys without the keyspace byte.
    pub rows: BTreeMap<Bytes, Bytes>,
}

impl IndexSpec {
    /// An index of a kind (`value`, `unique`, `count`, `sum`, `min`, `max`) over all rows. Say with [`on`](Self::on)
    /// what it is ordered or grouped by.
    ///
    /// ```
    /// let spec = kvorum::client::IndexSpec::new("by_team", "value").prefix("user/").on("$.team").on("$.name desc");
    /// # assert_eq!(spec.on.len(), 2);
    /// ```
    pub fn new(name: impl Into<String>, kind: impl Into<String>) -> Self {
        Self { name: name.into(), kind: kind.into(), ..Self::default() }
    }

    /// Only rows whose keys begin so.
    #[must_use]
    pub fn prefix(self, prefix: impl AsRef<[u8]>) -> Self {
        Self { prefix: Bytes::copy_from_slice(prefix.as_ref()), ..self }
    }

    /// One more field that it is ordered or grouped by: `[NAME=]SOURCE[:TYPE][ asc| desc]`, such as `$.country`,
    /// `score=$.result.score:number desc`, `key-part:1`, `key`.
    #[must_use]
    pub fn on(mut self, field: impl Into<String>) -> Self {
        self.on.push(field.into());
        self
    }

    /// What is summed or compared: of sum, min and max.
    #[must_use]
    pub fn measure(self, field: impl Into<String>) -> Self {
        Self { measure: field.into(), ..self }
    }

    /// One more field that entries hold, so that queries need not read the rows.
    #[must_use]
    pub fn covering(mut self, field: impl Into<String>) -> Self {
        self.covering.push(field.into());
        self
    }

    /// What becomes of a row without a field: `skip` (as where nothing is said) or `null`.
    #[must_use]
    pub fn missing(self, rule: impl Into<String>) -> Self {
        Self { missing: rule.into(), ..self }
    }

    /// What becomes of a row that can't be indexed: `halt` (as where nothing is said), `dead-letter` or `skip`.
    #[must_use]
    pub fn on_error(self, rule: impl Into<String>) -> Self {
        Self { on_error: rule.into(), ..self }
    }
}

impl Client {
    /// Makes an index. It is built in the background, from the rows that are there; see [`index`](Self::index) for how far
    /// it is. One that is there already by the same definition is left as it is.
    ///
    /// # Errors
    ///
    /// `Invalid` for a wrong definition, and where there is an index of the name by another one.
    pub async fn create_index(&self, spec: IndexSpec) -> Result<IndexRecord> {
        one(self.about_indexes(Catalogue::Create(spec)).await?)
    }

    /// All indexes, in the order of their names.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the cluster does not answer by the client's deadline.
    pub async fn indexes(&self) -> Result<Vec<IndexRecord>> {
        self.about_indexes(Catalogue::List(true)).await
    }

    /// An index, and how far each of its versions is; `None` where there is none of the name.
    ///
    /// # Errors
    ///
    /// As for [`indexes`](Self::indexes).
    pub async fn index(&self, name: &str) -> Result<Option<IndexStatus>> {
        let Some(record) = self.find_index(name).await? else { return Ok(None) };
        let mut progress = Vec::new();
        for version in record.active.iter().chain(&record.building) {
            let mut of = self.index_progress(record.id, version.number).await?;
            if of.watermark > 0 {
                let prefix = version.spec.as_ref().map(|spec| spec.prefix.clone()).unwrap_or_default();
                self.measure(&mut of, prefix).await?;
            }
            progress.push(of);
        }
        Ok(Some(IndexStatus { record: Some(record), progress }))
    }

    async fn measure(&self, progress: &mut IndexProgress, prefix: Bytes) -> Result<()> {
        let watermark = Timestamp(progress.watermark);
        let now = self.timestamp().await?;
        progress.lag_ms = Some(now.ms().saturating_sub(watermark.ms()));
        progress.lag_entries = match self.changes_after(&[KeyRange::prefix(prefix)], watermark).await {
            Ok(entries) => Some(entries),
            // It is so far behind that this is not kept, or a shard does not answer.
            Err(error) if matches!(error.kind, ErrorKind::TooOld | ErrorKind::Unavailable) => None,
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// Drops an index. Its rows are cleared away in the background; until then its name is taken. Answers whether there
    /// was one.
    ///
    /// # Errors
    ///
    /// As for [`indexes`](Self::indexes).
    pub async fn drop_index(&self, name: &str) -> Result<bool> {
        let Some(found) = self.find_index(name).await? else { return Ok(false) };
        self.about_indexes(Catalogue::Drop(named(name, &found, 0))).await?;
        Ok(true)
    }

    /// Builds an index anew, by another definition or by the one it has, beside the one that answers. It takes its place
    /// once it is built; with `hold`, once that is [wanted](Self::swap_index).
    ///
    /// # Errors
    ///
    /// `Invalid` where there is none of the name, for a wrong definition, and where another version is being built.
    pub async fn rebuild_index(
        &self,
        name: &str,
        spec: Option<IndexSpec>,
        hold: bool,
    ) -> Result<IndexRecord> {
        let found = self.must_find(name).await?;
        let after_version = found.active.iter().chain(&found.building).map(|version| version.number).max();
        let after_version = after_version.unwrap_or_default();
        let rebuild = v1::RebuildIndex { name: name.to_owned(), spec, hold, after_version };
        one(self.about_indexes(Catalogue::Rebuild(rebuild)).await?)
    }

    /// Lets the version that was built take the active one's place: the queries that come from now on are answered by it.
    ///
    /// # Errors
    ///
    /// `Invalid` where none is being built, or it is not built yet.
    pub async fn swap_index(&self, name: &str) -> Result<IndexRecord> {
        let found = self.must_find(name).await?;
        // The version is named, so that a request that is repeated does not swap twice.
        let version = found.building.as_ref().map_or(0, |building| building.number);
        one(self.about_indexes(Catalogue::Swap(named(name, &found, version))).await?)
    }

    /// Gives up building a version.
    ///
    /// # Errors
    ///
    /// `Invalid` where none is being built, or it is the only one there is.
    pub async fn cancel_index_build(&self, name: &str) -> Result<IndexRecord> {
        let found = self.must_find(name).await?;
        let version = found.building.as_ref().map_or(0, |building| building.number);
        one(self.about_indexes(Catalogue::Cancel(named(name, &found, version))).await?)
    }

    /// Goes on with an index that has halted at a row that can't be indexed: once another program can, or, with `without`,
    /// without that row, which counts as a dead letter. Answers how far the version is that had halted, or else the active one.
    ///
    /// # Errors
    ///
    /// `Invalid` where there is none of the name; `Unavailable` where it does not answer in time.
    pub async fn resume_index(&self, name: &str, without: bool) -> Result<IndexProgress> {
        let order = |progress: &IndexProgress| {
            let (halted_key, halted_ts) = (progress.halted_key.clone(), progress.halted_ts);
            let resume = v1::ResumeVersion { halted_key, halted_ts, without };
            (progress.state == "halted").then_some(Ask::Resume(resume))
        };
        self.order_versions(name, order).await
    }

    /// Tries once more to take in the rows of all dead letters, as they are now. Answers how far the index is then.
    ///
    /// # Errors
    ///
    /// As for [`resume_index`](Self::resume_index).
    pub async fn replay_dead_letters(&self, name: &str) -> Result<IndexProgress> {
        let order = |progress: &IndexProgress| (progress.dead_letters > 0).then_some(Ask::Replay(true));
        self.order_versions(name, order).await
    }

    /// Rows that an index has recorded as not in it, in the order of their keys, from one on; empty for the first. The second
    /// is where to go on, where there may be more.
    ///
    /// # Errors
    ///
    /// `Invalid` where there is none of the name.
    pub async fn dead_letters(&self, name: &str, from: Bytes) -> Result<(Vec<DeadLetter>, Option<Bytes>)> {
        let found = self.must_find(name).await?;
        let version = found.active.as_ref().or(found.building.as_ref()).map_or(0, |version| version.number);
        match self.about_version((found.id, version), Ask::DeadLettersFrom(from), None).await? {
            Answer::DeadLetters(page) => Ok((page.letters, page.next)),
            other => Err(unfit(&other)),
        }
    }

    /// All entries and groups of the version that answers, as they are stored, at one timestamp.
    ///
    /// # Errors
    ///
    /// `Invalid` where there is none of the name; `Unavailable` while it is built.
    pub async fn dump_index(&self, name: &str) -> Result<IndexRows> {
        let found = self.must_find(name).await?;
        let version = found.active.clone().ok_or_else(|| query::not_built(name))?;
        let reading = Reading { policy: self.policy, prefer: None, route: None, waits: false };
        let mut rows = IndexRows {
            id: found.id,
            version: version.number,
            spec: version.spec.unwrap_or_default(),
            read_ts: Timestamp::ZERO,
            watermark: Timestamp::ZERO,
            rows: BTreeMap::new(),
        };
        let mut next = Some(Bytes::new());
        while let Some(from) = next.take() {
            let dump = v1::DumpIndex { from, read_ts: rows.read_ts.0 };
            let page =
                match self.about_version((rows.id, rows.version), Ask::Dump(dump), Some(reading)).await? {
                    Answer::Dump(page) => page,
                    other => return Err(unfit(&other)),
                };
            (rows.read_ts, rows.watermark) = (Timestamp(page.read_ts), Timestamp(page.watermark));
            rows.rows.extend(page.rows.into_iter().map(|row| (row.key, row.value)));
            next = page.next;
        }
        Ok(rows)
    }

    /// Gives each version the order that is for it, if there is one; answers how far the last of them is.
    async fn order_versions(
        &self,
        name: &str,
        order: impl Fn(&IndexProgress) -> Option<Ask>,
    ) -> Result<IndexProgress> {
        let found = self.must_find(name).await?;
        let (mut obeyed, mut other) = (None, IndexProgress::default());
        for version in found.building.iter().chain(&found.active) {
            let progress = self.index_progress(found.id, version.number).await?;
            let Some(order) = order(&progress) else {
                other = progress;
                continue;
            };
            match self.about_version((found.id, version.number), order, None).await? {
                Answer::Progress(progress) => obeyed = Some(progress),
                answer => return Err(unfit(&answer)),
            }
        }
        Ok(obeyed.unwrap_or(other))
    }

    async fn index_progress(&self, id: u64, version: u32) -> Result<IndexProgress> {
        match self.about_version((id, version), Ask::Progress(true), None).await? {
            Answer::Progress(progress) => Ok(progress),
            other => Err(unfit(&other)),
        }
    }

    async fn find_index(&self, name: &str) -> Result<Option<IndexRecord>> {
        Ok(self.about_indexes(Catalogue::Find(name.to_owned())).await?.into_iter().next())
    }

    async fn must_find(&self, name: &str) -> Result<IndexRecord> {
        self.find_index(name).await?.ok_or_else(|| {
            Error::invalid(format!("there is no index {name}: see which there are with `kvorum index list`"))
        })
    }

    /// Sends a request about indexes to the leader of the system shard. All of them may be repeated: they name what they are
    /// about.
    pub(crate) async fn about_indexes(&self, what: Catalogue) -> Result<Vec<IndexRecord>> {
        let build = |header, _: &Target| {
            let request = v1::IndexCatalogueRequest { header: Some(header), what: Some(what.clone()) };
            Ok(Request::IndexCatalogue(request))
        };
        let place = Place::System;
        let reply = match what {
            Catalogue::List(_) | Catalogue::Find(_) => {
                self.ask(Asked { place, build: &build, fresh: false, read: None }).await?
            }
            _ => self.write(place, &build).await?,
        };
        match reply {
            Reply::IndexCatalogue(reply) => Ok(reply.indexes),
            other => Err(mismatched(&other)),
        }
    }

    /// Asks something of one version of an index: the leader of the shard that holds it, or with `read` any replica.
    async fn about_version(
        &self,
        (id, version): (u64, u32),
        what: Ask,
        read: Option<Reading<'_>>,
    ) -> Result<Answer> {
        let place = keyspace::index_version_range(id, version).start;
        let build = |header, _: &Target| {
            let what = Some(what.clone());
            Ok(Request::IndexVersion(v1::IndexVersionRequest { header: Some(header), id, version, what }))
        };
        let asked = Asked { place: Place::Internal(&place), build: &build, fresh: false, read };
        match self.ask(asked).await? {
            Reply::IndexVersion(v1::IndexVersionReply { what: Some(what) }) => Ok(what),
            other => Err(mismatched(&other)),
        }
    }
}

fn named(name: &str, found: &IndexRecord, version: u32) -> v1::NamedVersion {
    v1::NamedVersion { name: name.to_owned(), id: found.id, version, reason: String::new() }
}

fn one(records: Vec<IndexRecord>) -> Result<IndexRecord> {
    let first = records.into_iter().next();
    first.ok_or_else(|| Error::corrupt("a node answered with no index to a request about one"))
}

/// The error of an answer that does not fit what was asked.
fn unfit(answer: &Answer) -> Error {
    let name = match answer {
        Answer::Page(_) => "a page",
        Answer::Reached(_) => "how far an index has come",
        Answer::Progress(_) => "the progress of an index",
        Answer::DeadLetters(_) => "dead letters",
        Answer::Dump(_) => "rows of an index",
    };
    Error::undetermined(format!("the node answered with {name}, which does not fit the request"))
}
