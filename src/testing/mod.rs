//! Floor 7: for users' own tests: a store in the test's process, in which sagas need not wait for time to pass.

use tempfile::TempDir;

use crate::client::Client;
use crate::node::{Embedded, NodeConfig};
use crate::types::{Error, Result};

/// A store of its own for one test, in a temporary directory that goes with it.
///
/// Its sagas go by a clock that is put forward whenever nothing is left to do but wait: while no worker has a task and none
/// waits for a worker, what is due next is due at once, be it in a month. So a saga takes as long as its steps take.
/// Retries, timeouts, sleeps and retentions come in the order in which they would.
///
/// ```no_run
/// # #[tokio::main]
/// # async fn main() -> kvorum::Result<()> {
/// use kvorum::client::SagaStart;
/// use kvorum::saga::{Saga, Step};
///
/// let store = kvorum::testing::TestStore::open().await?;
/// let client = store.client();
/// client.define_saga(&Saga::define("nap", 1).step(Step::sleep_ms("month", 30 * 24 * 3_600_000)).check()?).await?;
/// client.start_saga(SagaStart::new("nap", "nap-1")).await?;
/// assert_eq!(client.wait_for_saga("nap-1").await?.status, "completed");
/// store.close().await
/// # }
/// ```
pub struct TestStore {
    store: Embedded,
    dir: TempDir,
}

impl TestStore {
    /// Opens a new one. Needs a multi-threaded tokio runtime.
    ///
    /// # Errors
    ///
    /// `Unavailable` where there is no temporary directory to be had.
    pub async fn open() -> Result<Self> {
        let dir = TempDir::with_prefix("kvorum-test-").map_err(|error| {
            Error::unavailable(format!("no temporary directory can be made for the store: {error}"))
        })?;
        let config = NodeConfig { skips_saga_waits: true, ..NodeConfig::new(dir.path()) };
        Ok(Self { store: Embedded::open_with(config).await?, dir })
    }

    /// A client of the store.
    pub fn client(&self) -> Client {
        self.store.client()
    }

    /// Closes the store and removes its directory. Dropped without, it does so in the background.
    ///
    /// # Errors
    ///
    /// `Unavailable` where something goes on using it.
    pub async fn close(self) -> Result<()> {
        self.store.close().await?;
        self.dir
            .close()
            .map_err(|error| Error::unavailable(format!("the store's directory can't be removed: {error}")))
    }
}
