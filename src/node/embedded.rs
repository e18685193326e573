//! The store inside a program's own process, without a port.

use std::path::Path;
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::NodeConfig;
use super::connections::FileBudget;
use super::core::Core;
use super::server;
use crate::client::Client;
use crate::types::{Error, Result};

/// The name that the embedded node goes by; nothing listens there.
const ADDR: &str = "embedded:1";
/// How long opening waits until the store serves.
const OPEN_PATIENCE: Duration = Duration::from_secs(30);

/// A complete single-node store in this process: the same machine, log and durability as a cluster of one,
/// behind the same [`Client`]. Its data directory can be served by `kvorum serve` later, and the other way
/// round.
///
/// ```no_run
/// # async fn example() -> kvorum::Result<()> {
/// let store = kvorum::Embedded::open("./my-data").await?;
/// let client = store.client();
/// client.put("colour", "blue").await?;
/// store.close().await
/// # }
/// ```
pub struct Embedded {
    core: Arc<Core>,
    client: Client,
}

impl Embedded {
    /// Opens the store at `path`, or makes it. Needs a multi-threaded tokio runtime.
    ///
    /// # Errors
    ///
    /// `Corrupt` where the data directory is damaged or of an unknown format, `Unavailable` where another
    /// process has it open or it does not serve in time.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(NodeConfig::new(path.as_ref())).await
    }

    /// Opens a store with other settings than the defaults. What they say of the network does not matter.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub(crate) async fn open_with(config: NodeConfig) -> Result<Self> {
        let core = server::open(config, ADDR.to_string(), FileBudget::present()).await?;
        core.start().await?;
        wait_until_serving(&core).await?;
        let client = core.client().await?;
        Ok(Self { core, client })
    }

    /// A client of the store. All of its calls fail as `Unavailable` once the store is closed.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Stops the store, writes what is buffered to disk, and lets go of the directory: it can be opened
    /// again, by any process. Dropped without, it stops in the background; nothing acknowledged is lost
    /// then either.
    ///
    /// # Errors
    ///
    /// What the store says while it is flushed; `Unavailable` where something goes on using it.
    pub async fn close(self) -> Result<()> {
        let core = self.core.clone();
        core.stopping().cancel();
        drop(self);
        core.close().await
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.core.stop_in_background();
    }
}

async fn wait_until_serving(core: &Arc<Core>) -> Result<()> {
    let deadline = Instant::now() + OPEN_PATIENCE;
    for group in core.member()?.host().groups() {
        let mut leadership = group.watch_leadership();
        let leads = leadership.wait_for(|now| now.token().is_some());
        if !matches!(tokio::time::timeout_at(deadline, leads).await, Ok(Ok(_))) {
            return Err(Error::unavailable(format!(
                "shard {} of the store does not serve after {} s; if it belongs to a cluster of several nodes, start \
                 it with `kvorum serve`",
                group.id(),
                OPEN_PATIENCE.as_secs()
            )));
        }
    }
    Ok(())
}
