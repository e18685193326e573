//! What indexes there are: records in the system keyspace, served by the leader of the system shard.

use bytes::Bytes;

use super::wire::record_to_proto;
use crate::codec::keyspace;
use crate::index::Catalogued;
use crate::node::system_records::SystemRecords;
use crate::rpc::convert::index_spec_from_proto;
use crate::rpc::v1;
use crate::rpc::v1::index_catalogue_request::What;
use crate::rpc::validate;
use crate::types::{Error, Result, Timestamp};

/// The most indexes of a cluster: each has a projector that follows all of its rows' shards.
const MAX_INDEXES: usize = 200;
/// The longest reason for a restart that is kept, in characters.
const MAX_REASON: usize = 500;

/// Serves requests about the indexes that there are.
pub struct Catalogue<'a>(pub SystemRecords<'a>);

impl Catalogue<'_> {
    /// Serves one request. Repeated, each has the same effect once.
    ///
    /// # Errors
    ///
    /// `Moved` where this node does not lead the system shard; `Invalid` where there is no such index, or what is asked
    /// for does not go with what it is.
    pub async fn serve(&self, what: What) -> Result<v1::IndexCatalogueReply> {
        self.0.check_leads()?;
        let indexes = match what {
            What::List(_) => self.list().await?,
            What::Find(name) => self.find(&name).await?.into_iter().collect(),
            What::Create(spec) => vec![self.create(spec).await?],
            What::Drop(version) => self.drop(&version).await?.into_iter().collect(),
            What::Rebuild(rebuild) => vec![self.rebuild(rebuild).await?],
            What::Swap(version) => {
                vec![self.user_change(&version, |index| index.swap(version.version)).await?]
            }
            What::Cancel(version) => {
                vec![self.user_change(&version, |index| index.cancel(version.version)).await?]
            }
            What::Built(version) => {
                self.projector_change(&version, |index| {
                    index.built(version.version);
                    Ok(false)
                })
                .await?
            }
            What::Cleared(version) => {
                self.projector_change(&version, |index| Ok(index.cleared(version.version))).await?
            }
            What::Restart(version) => {
                let reason: String = version.reason.chars().take(MAX_REASON).collect();
                self.projector_change(&version, |index| {
                    index.restart(version.version, &reason)?;
                    Ok(false)
                })
                .await?
            }
        };
        Ok(v1::IndexCatalogueReply { indexes })
    }

    async fn list(&self) -> Result<Vec<v1::IndexRecord>> {
        let found = self.0.list::<Catalogued>(&keyspace::index_records(), "the record of an index").await?;
        let named =
            |(name, index): (Bytes, Catalogued)| record_to_proto(&String::from_utf8_lossy(&name), &index);
        Ok(found.into_iter().map(named).collect())
    }

    async fn find(&self, name: &str) -> Result<Option<v1::IndexRecord>> {
        validate::name("an index", name)?;
        let found = self.0.find::<Catalogued>(&keyspace::index_record(name), &record_of(name)).await?;
        Ok(found.map(|index| record_to_proto(name, &index)))
    }

    async fn create(&self, spec: v1::IndexSpec) -> Result<v1::IndexRecord> {
        let spec = index_spec_from_proto(spec)?;
        let name = spec.name.clone();
        if self.find(&name).await?.is_none() && self.list().await?.len() >= MAX_INDEXES {
            return Err(Error::invalid(format!(
                "the cluster has {MAX_INDEXES} indexes, the most it keeps: drop one that is not needed any more"
            )));
        }
        let create = |old: Option<Catalogued>, now| match old {
            None => Ok(Some(Catalogued::create(spec.clone(), now)?)),
            Some(old) if old.dropped => Err(Error::invalid(format!(
                "index {name} was dropped, and its rows are being cleared away: try again when that is done"
            ))),
            // Whoever asked for it has not heard the answer, or asks twice.
            Some(old)
                if old.active.as_ref().or(old.building.as_ref()).is_some_and(|one| one.spec == spec) =>
            {
                Ok(Some(old))
            }
            Some(_) => Err(Error::invalid(format!(
                "there is an index {name} already, by another definition: build it anew by this one with a rebuild, or \
                 drop it first"
            ))),
        };
        self.change(&name, create).await?.ok_or_else(|| gone(&name))
    }

    /// Drops an index; of no effect where the name is another one's now.
    async fn drop(&self, version: &v1::NamedVersion) -> Result<Option<v1::IndexRecord>> {
        validate::name("an index", &version.name)?;
        let drop = |old: Option<Catalogued>, _| {
            Ok(old.map(|mut index| {
                if is_meant(&index, version) {
                    index.drop_all();
                }
                index
            }))
        };
        self.change(&version.name, drop).await
    }

    async fn rebuild(&self, rebuild: v1::RebuildIndex) -> Result<v1::IndexRecord> {
        let v1::RebuildIndex { name, spec, hold, after_version } = rebuild;
        validate::name("an index", &name)?;
        let spec = spec.map(index_spec_from_proto).transpose()?;
        let change = |old: Option<Catalogued>, _| {
            let mut index = old.ok_or_else(|| gone(&name))?;
            let is_done = after_version > 0 && index.rebuilt_after(after_version, spec.as_ref()).is_some();
            if !is_done {
                index.rebuild(spec.clone(), hold)?;
            }
            Ok(Some(index))
        };
        self.change(&name, change).await?.ok_or_else(|| gone(&name))
    }

    /// A change that a user asks for.
    async fn user_change(
        &self,
        version: &v1::NamedVersion,
        change: impl Fn(&mut Catalogued) -> Result<()>,
    ) -> Result<v1::IndexRecord> {
        let name = &version.name;
        validate::name("an index", name)?;
        let changed = |old: Option<Catalogued>, _| {
            let mut index = old.filter(|index| is_meant(index, version)).ok_or_else(|| gone(name))?;
            change(&mut index)?;
            Ok(Some(index))
        };
        self.change(name, changed).await?.ok_or_else(|| gone(name))
    }

    /// What a projector tells of a version: of no effect where the index is another one now. `change` says whether
    /// nothing is left of it.
    async fn projector_change(
        &self,
        version: &v1::NamedVersion,
        change: impl Fn(&mut Catalogued) -> Result<bool>,
    ) -> Result<Vec<v1::IndexRecord>> {
        validate::name("an index", &version.name)?;
        let changed = |old: Option<Catalogued>, _| {
            let Some(mut index) = old else { return Ok(None) };
            if is_meant(&index, version) && change(&mut index)? {
                return Ok(None);
            }
            Ok(Some(index))
        };
        Ok(self.change(&version.name, changed).await?.into_iter().collect())
    }

    /// Changes the record of an index; answers what it is now.
    async fn change(
        &self,
        name: &str,
        change: impl Fn(Option<Catalogued>, Timestamp) -> Result<Option<Catalogued>>,
    ) -> Result<Option<v1::IndexRecord>> {
        let (_, index) = self.0.change(&keyspace::index_record(name), &record_of(name), change).await?;
        Ok(index.map(|index| record_to_proto(name, &index)))
    }
}

/// Whether an index is the one that is meant, not another one that has its name now.
fn is_meant(index: &Catalogued, version: &v1::NamedVersion) -> bool {
    version.id == 0 || version.id == index.id
}

fn record_of(name: &str) -> String {
    format!("the record of index {name}")
}

fn gone(name: &str) -> Error {
    Error::invalid(format!("there is no index {name}: see which there are with `kvorum index list`"))
}
