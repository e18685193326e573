//! Definitions of sagas as this node knows them: read from the catalogue when they are first needed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::client::Client;
use crate::rpc::v1::saga_catalogue_request::What;
use crate::saga::Definition;
use crate::types::{Error, Result};

/// Which version is the newest is asked for again after so long.
const NEWEST_FOR: Duration = Duration::from_secs(1);
/// Definitions that are kept in memory.
const MAX_KEPT: usize = 4_096;

/// What is known.
#[derive(Default)]
pub struct Definitions {
    /// A version never has another definition.
    versions: Mutex<HashMap<(String, u32), Arc<Definition>>>,
    newest: Mutex<HashMap<String, (u32, Instant)>>,
}

impl Definitions {
    /// A version, or the newest for 0: that which was so a second ago at most.
    ///
    /// # Errors
    ///
    /// `Invalid` where there is none; those of a read of the catalogue.
    pub async fn get(&self, client: &Client, name: &str, version: u32) -> Result<Arc<Definition>> {
        let wanted = match version {
            0 => self.known_newest(name),
            version => Some(version),
        };
        if let Some(known) = wanted.and_then(|version| self.known(name, version)) {
            return Ok(known);
        }
        let asked = Instant::now();
        let reply = client.about_definitions(What::Find(name.to_owned())).await?;
        let newest = reply.definitions.iter().map(|definition| definition.version).max();
        if let Some(newest) = newest {
            self.newest.lock().insert(name.to_owned(), (newest, asked));
        }
        let wanted = if version == 0 { newest.unwrap_or_default() } else { version };
        let found = reply.definitions.into_iter().find(|definition| definition.version == wanted);
        let definition = found.map(|found| Definition::from_json(&found.json).map(Arc::new)).transpose()?;
        if let Some(definition) = &definition {
            let mut versions = self.versions.lock();
            if versions.len() >= MAX_KEPT {
                versions.clear();
            }
            versions.insert((name.to_owned(), wanted), definition.clone());
        }
        definition.ok_or_else(|| match version {
            0 => Error::invalid(format!("there is no saga {name}: define it first, or see which there are")),
            version => {
                Error::invalid(format!("there is no version {version} of saga {name}: define it first"))
            }
        })
    }

    fn known(&self, name: &str, version: u32) -> Option<Arc<Definition>> {
        self.versions.lock().get(&(name.to_owned(), version)).cloned()
    }

    fn known_newest(&self, name: &str) -> Option<u32> {
        let newest = self.newest.lock();
        newest.get(name).filter(|(_, at)| at.elapsed() < NEWEST_FOR).map(|(version, _)| *version)
    }
}
