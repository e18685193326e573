//! The definitions of sagas, and how queues hand out tasks: records in the system keyspace, served by the leader of the
//! system shard.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::keyspace;
use crate::node::system_records::SystemRecords;
use crate::rpc::v1;
use crate::rpc::v1::saga_catalogue_request::What;
use crate::saga::{Definition, check_name};
use crate::types::{Error, Result, Timestamp};

/// The most versions of one definition that are kept.
const MAX_VERSIONS: usize = 1_000;
/// The most bytes of all versions of one definition together: they are one record.
const MAX_BYTES: usize = 768 * 1024;
/// The largest rate of a queue.
const MAX_RATE_PER_S: f64 = 1e9;

/// All versions of a definition, as they are stored: in JSON, with when each was made.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Versions(BTreeMap<u32, (String, Timestamp)>);

/// A queue, as it is stored.
#[derive(Clone, Serialize, Deserialize)]
struct Queue {
    rate_per_s: f64,
}

/// Serves requests about definitions and queues.
pub struct Catalogue<'a>(pub SystemRecords<'a>);

impl Catalogue<'_> {
    /// Serves one request. Repeated, each has the same effect once.
    ///
    /// # Errors
    ///
    /// `Moved` where this node does not lead the system shard; `Invalid` for a wrong definition, or another one than the
    /// version has.
    pub async fn serve(&self, what: What) -> Result<v1::SagaCatalogueReply> {
        self.0.check_leads()?;
        let mut reply = v1::SagaCatalogueReply::default();
        match what {
            What::Define(json) => reply.definitions.push(self.define(&json).await?),
            What::Find(name) if name.is_empty() => {
                let found =
                    self.0.list::<Versions>(&keyspace::saga_records(), "a saga's definitions").await?;
                for (name, versions) in found {
                    reply.definitions.extend(to_proto(&String::from_utf8_lossy(&name), versions));
                }
            }
            What::Find(name) => {
                check_name("the saga", &name)?;
                let found = self.0.find::<Versions>(&keyspace::saga_record(&name), &record_of(&name)).await?;
                reply.definitions = to_proto(&name, found.unwrap_or_default());
            }
            What::SetQueue(queue) => reply.queues.push(self.set_queue(queue).await?),
            What::Queues(_) => {
                let found = self.0.list::<Queue>(&keyspace::saga_queues(), "a queue of sagas").await?;
                let named = |(name, queue): (Bytes, Queue)| v1::SagaQueue {
                    name: String::from_utf8_lossy(&name).into_owned(),
                    rate_per_s: queue.rate_per_s,
                };
                reply.queues = found.into_iter().map(named).collect();
            }
        }
        Ok(reply)
    }

    async fn define(&self, json: &str) -> Result<v1::SagaDefinition> {
        let definition = Definition::from_json(json)?;
        let (name, version) = (definition.name().to_owned(), definition.version());
        let json = definition.to_json();
        let change = |old: Option<Versions>, now| {
            let mut versions = old.unwrap_or_default();
            match versions.0.get(&version) {
                Some((there, _)) if *there == json => return Ok(Some(versions)),
                Some(_) => {
                    return Err(Error::invalid(format!(
                        "saga {name} has a version {version} already, by another definition, and sagas may run by it: give \
                         the changed one version {}",
                        versions.0.last_key_value().map_or(1, |(last, _)| last.saturating_add(1))
                    )));
                }
                None => {}
            }
            versions.0.insert(version, (json.clone(), now));
            let bytes: usize = versions.0.values().map(|(json, _)| json.len()).sum();
            if versions.0.len() > MAX_VERSIONS || bytes > MAX_BYTES {
                return Err(Error::invalid(format!(
                    "saga {name} would have {} versions with {bytes} bytes; the limits are {MAX_VERSIONS} and {MAX_BYTES}: \
                     define another saga",
                    versions.0.len()
                )));
            }
            Ok(Some(versions))
        };
        let (_, versions) = self.0.change(&keyspace::saga_record(&name), &record_of(&name), change).await?;
        let mut all = to_proto(&name, versions.unwrap_or_default()).into_iter();
        all.find(|one| one.version == version)
            .ok_or_else(|| Error::corrupt(format!("version {version} of saga {name} was not kept")))
    }

    async fn set_queue(&self, queue: v1::SagaQueue) -> Result<v1::SagaQueue> {
        check_name("the queue", &queue.name)?;
        let rate = queue.rate_per_s;
        if !(0.0..=MAX_RATE_PER_S).contains(&rate) {
            return Err(Error::invalid(format!(
                "rate_per_s is {rate}: say how many tasks a second, 0 for no limit, at most {MAX_RATE_PER_S}"
            )));
        }
        let new = (rate > 0.0).then_some(Queue { rate_per_s: rate });
        let key = keyspace::saga_queue(&queue.name);
        self.0.change(&key, "the record of a queue of sagas", |_, _| Ok(new.clone())).await?;
        Ok(queue)
    }
}

fn to_proto(name: &str, versions: Versions) -> Vec<v1::SagaDefinition> {
    let one = |(version, (json, created)): (u32, (String, Timestamp))| v1::SagaDefinition {
        name: name.to_owned(),
        version,
        json,
        created_ts: created.0,
    };
    versions.0.into_iter().map(one).collect()
}

fn record_of(name: &str) -> String {
    format!("the definitions of saga {name}")
}
