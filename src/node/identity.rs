//! Who this node is, in `node.json` of its data directory.
//!
//! The file is written whole (a new file, synced, then renamed), and never changed once the node is a
//! member: its id is kept for ever.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::types::{ClusterId, Error, NodeId, Result, StoreId};

/// The layout of the data directory that this build reads and writes.
const DATA_FORMAT: u32 = 2;
const FILE_NAME: &str = "node.json";

/// A membership: the cluster, and the id it gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Membership {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The id that the cluster gave this node.
    pub node_id: NodeId,
}

/// The data directory's identity.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Names the data directory.
    pub store_id: StoreId,
    /// What the node is a member of; `None` while it waits.
    pub membership: Option<Membership>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    store_id: String,
    cluster_id: Option<String>,
    node_id: Option<u64>,
    written_by: String,
}

/// Reads the identity of a data directory, or makes one for a new directory.
///
/// # Errors
///
/// `Corrupt` where the file is damaged, of an unknown format, or where the store beside it is gone.
pub fn open(data_dir: &Path) -> Result<Identity> {
    make_durably(data_dir).map_err(|error| io_error("make the data directory", data_dir, &error))?;
    let path = data_dir.join(FILE_NAME);
    let store_exists = store_dir(data_dir).exists();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if store_exists {
                return Err(Error::corrupt(format!(
                    "{} holds a store but no {FILE_NAME}: part of the data directory was removed; restore the \
                     file, or remove the whole directory to start as a new node",
                    data_dir.display()
                )));
            }
            let identity = Identity { store_id: StoreId(rand::random()), membership: None };
            write(data_dir, &identity)?;
            return Ok(identity);
        }
        Err(error) => return Err(io_error("read", &path, &error)),
    };
    let identity = parse(&text, &path)?;
    if identity.membership.is_some() && !store_exists {
        return Err(Error::corrupt(format!(
            "{} says that this is a member of a cluster, but its store is gone: what it acknowledged is lost, so \
             it can't go on under its old id; remove the whole directory and let it join as a new node",
            path.display()
        )));
    }
    Ok(identity)
}

/// Where the store of a data directory is.
pub fn store_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("store")
}

fn parse(text: &str, path: &Path) -> Result<Identity> {
    let damaged = |why: String| Error::corrupt(format!("{} is damaged: {why}", path.display()));
    let stored: Stored = serde_json::from_str(text).map_err(|error| damaged(error.to_string()))?;
    if stored.format != DATA_FORMAT {
        return Err(Error::corrupt(format!(
            "{} has data format {}, but this build ({}) knows format {DATA_FORMAT} only: start the build that wrote \
             it ({}) or a newer one",
            path.display(),
            stored.format,
            env!("CARGO_PKG_VERSION"),
            stored.written_by
        )));
    }
    let store_id = stored.store_id.parse().map_err(|error: Error| damaged(error.message))?;
    let membership = match (stored.cluster_id, stored.node_id) {
        (None, None) => None,
        (Some(cluster_id), Some(node_id)) if node_id > 0 => {
            let cluster_id = cluster_id.parse().map_err(|error: Error| damaged(error.message))?;
            Some(Membership { cluster_id, node_id: NodeId(node_id) })
        }
        _ => return Err(damaged("cluster_id and node_id (above 0) must be there together".to_string())),
    };
    Ok(Identity { store_id, membership })
}

/// Writes the identity; on disk when it returns.
pub fn write(data_dir: &Path, identity: &Identity) -> Result<()> {
    let stored = Stored {
        format: DATA_FORMAT,
        store_id: identity.store_id.to_string(),
        cluster_id: identity.membership.map(|membership| membership.cluster_id.to_string()),
        node_id: identity.membership.map(|membership| membership.node_id.0),
        written_by: env!("CARGO_PKG_VERSION").to_string(),
    };
    write_whole(data_dir, FILE_NAME, &stored)
}

/// Writes a JSON file whole: readers see the old one or the new one, and the new one is on disk when this
/// returns.
pub fn write_whole<T: Serialize>(directory: &Path, name: &str, content: &T) -> Result<()> {
    let path = directory.join(name);
    let temporary = directory.join(format!("{name}.new"));
    let written = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        serde_json::to_writer_pretty(&mut file, content)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(directory)?.sync_all()
    };
    written().map_err(|error| io_error("write", &path, &error))
}

/// Makes a directory where there is none, and keeps its name: one that a power cut takes away takes all in it along.
fn make_durably(directory: &Path) -> std::io::Result<()> {
    let to_make =
        directory.ancestors().take_while(|part| !part.as_os_str().is_empty() && !part.exists()).count();
    fs::create_dir_all(directory)?;
    fs::canonicalize(directory)?
        .ancestors()
        .skip(1)
        .take(to_make)
        .try_for_each(|above| File::open(above)?.sync_all())
}

fn io_error(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::corrupt(format!("can't {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Membership {
        Membership { cluster_id: ClusterId(7), node_id: NodeId(3) }
    }

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = open(directory.path()).expect("made");
        assert_eq!(first.membership, None);
        assert_eq!(open(directory.path()).expect("read"), first);
        let joined = Identity { membership: Some(member()), ..first };
        write(directory.path(), &joined).expect("written");
        fs::create_dir(store_dir(directory.path())).expect("a store");
        assert_eq!(open(directory.path()).expect("read"), joined);
    }

    #[test]
    fn what_is_damaged_half_removed_or_newer_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let identity = open(directory.path()).expect("made");
        write(directory.path(), &Identity { membership: Some(member()), ..identity }).expect("written");
        let error = open(directory.path()).expect_err("the store is gone");
        assert!(error.message.contains("store is gone"), "{error}");

        let path = directory.path().join(FILE_NAME);
        let newer = fs::read_to_string(&path).expect("read").replace("\"format\": 2", "\"format\": 3");
        fs::write(&path, newer).expect("written");
        let error = open(directory.path()).expect_err("newer");
        assert!(error.message.contains("data format 3"), "{error}");

        fs::write(&path, "{").expect("written");
        assert!(open(directory.path()).is_err());

        fs::remove_file(&path).expect("removed");
        fs::create_dir(store_dir(directory.path())).expect("a store");
        let error = open(directory.path()).expect_err("half removed");
        assert!(error.message.contains("no node.json"), "{error}");
    }
}
