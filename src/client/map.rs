//! The shard map that a client keeps, the nodes it asks for it, and its links to them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::RwLock;
use rand::seq::SliceRandom;
use tokio::time::{Instant, sleep, timeout_at};

use super::router::{Place, Router, Target};
use super::{Dialer, Link};
use crate::rpc::v1;
use crate::types::{ClusterId, Error, ErrorKind, Moved, NodeId, Result, ShardId};

/// A node that has not answered after this long is no longer waited for alone: the next is asked too.
const HEDGE_AFTER: Duration = Duration::from_millis(300);
/// How long a refresh in the background may take.
const REFRESH_WITHIN: Duration = Duration::from_secs(3);
/// The pause between two refreshes.
const REFRESH_PAUSE: Duration = Duration::from_millis(100);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The map, and how to get it.
pub(super) struct MapCache {
    dialer: Arc<dyn Dialer>,
    endpoints: Vec<Arc<str>>,
    router: RwLock<Arc<Router>>,
    links: RwLock<HashMap<Arc<str>, Arc<dyn Link>>>,
    /// The cluster that is meant: the builder's, or the first one that answered.
    cluster: OnceLock<String>,
    refreshing: AtomicBool,
}

impl MapCache {
    pub(super) fn new(dialer: Arc<dyn Dialer>, endpoints: Vec<Arc<str>>, meant: Option<ClusterId>) -> Self {
        let cluster = OnceLock::new();
        if let Some(meant) = meant {
            cluster.get_or_init(|| meant.to_string());
        }
        Self {
            dialer,
            endpoints,
            router: RwLock::default(),
            links: RwLock::default(),
            cluster,
            refreshing: AtomicBool::new(false),
        }
    }

    pub(super) fn dialer(&self) -> &dyn Dialer {
        &*self.dialer
    }

    pub(super) fn cluster_id(&self) -> String {
        self.cluster.get().cloned().unwrap_or_default()
    }

    /// The map as it is now.
    pub(super) fn router(&self) -> Arc<Router> {
        Arc::clone(&self.router.read())
    }

    /// Where to send a request, as [`Router::pick`] decides.
    pub(super) fn pick(&self, place: Place<'_>, tried: &[NodeId], salt: usize) -> Option<Target> {
        self.router.read().pick(place, tried, salt)
    }

    /// The link to a node, made where there is none yet.
    pub(super) fn link(&self, addr: &Arc<str>) -> Arc<dyn Link> {
        if let Some(link) = self.links.read().get(addr) {
            return Arc::clone(link);
        }
        let mut links = self.links.write();
        Arc::clone(links.entry(Arc::clone(addr)).or_insert_with(|| self.dialer.link(addr)))
    }

    /// Takes in a node's hint; answers whether it named a leader.
    pub(super) fn follow(&self, shard: Option<ShardId>, moved: &Moved) -> bool {
        Arc::make_mut(&mut *self.router.write()).follow(shard, moved)
    }

    /// Forgets that `node` leads `shard`.
    pub(super) fn forget_leader(&self, shard: ShardId, node: NodeId) {
        Arc::make_mut(&mut *self.router.write()).forget_leader(shard, node);
    }

    /// Asks the nodes for the map until one answers or the deadline comes.
    pub(super) async fn fetch_until(&self, until: Instant) -> Result<v1::GetMapReply> {
        loop {
            match self.fetch(until).await {
                Err(error) if error.kind == ErrorKind::Unavailable && Instant::now() + RETRY_PAUSE < until => {
                    sleep(RETRY_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    /// Asks the nodes for the map, each at most once, and takes the first answer.
    pub(super) async fn fetch(&self, until: Instant) -> Result<v1::GetMapReply> {
        let mut rest = self.candidates().into_iter().peekable();
        let mut asked = FuturesUnordered::new();
        let mut failures = Vec::new();
        loop {
            match rest.next() {
                Some(addr) => asked.push(self.ask(addr, until)),
                None if asked.is_empty() => return Err(nobody(failures)),
                None => {}
            }
            tokio::select! {
                Some((addr, answer)) = asked.next() => match answer.and_then(|map| self.take(&map).map(|()| map)) {
                    Ok(map) => return Ok(map),
                    Err(error) => failures.push((addr, error)),
                },
                () = sleep(HEDGE_AFTER), if rest.peek().is_some() => {}
            }
        }
    }

    async fn ask(&self, addr: Arc<str>, until: Instant) -> (Arc<str>, Result<v1::GetMapReply>) {
        let answer = match timeout_at(until, self.dialer.map(&addr)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::unavailable("no answer within the deadline")),
        };
        (addr, answer)
    }

    /// The nodes of the map in random order, then the endpoints that are not among them.
    fn candidates(&self) -> Vec<Arc<str>> {
        let mut addresses: Vec<_> = self.router.read().addresses().map(Arc::clone).collect();
        addresses.shuffle(&mut rand::rng());
        for endpoint in &self.endpoints {
            if !addresses.contains(endpoint) {
                addresses.push(Arc::clone(endpoint));
            }
        }
        addresses
    }

    /// Routes by this map from here on, if it is of the cluster that is meant.
    fn take(&self, map: &v1::GetMapReply) -> Result<()> {
        if map.cluster_id.is_empty() {
            return Err(Error::unavailable(
                "the node belongs to no cluster yet: form one with `kvorum cluster init`",
            ));
        }
        let meant = self.cluster.get_or_init(|| map.cluster_id.clone());
        if *meant != map.cluster_id {
            return Err(Error::denied(format!(
                "the node belongs to cluster {}, but cluster {meant} is meant: connect to a node of that cluster",
                map.cluster_id
            )));
        }
        let mut router = self.router.write();
        let new = Router::from_map(map, &router)?;
        self.links.write().retain(|addr, _| new.addresses().any(|known| known == addr));
        *router = Arc::new(new);
        Ok(())
    }

    /// Whether the caller shall refresh the map now; nobody else does until [`refresh`](Self::refresh) is done.
    pub(super) fn begin_refresh(&self) -> bool {
        !self.refreshing.swap(true, Ordering::AcqRel)
    }

    /// Refreshes the map after [`begin_refresh`](Self::begin_refresh) said so.
    pub(super) async fn refresh(&self) {
        if let Err(error) = self.fetch(Instant::now() + REFRESH_WITHIN).await {
            tracing::debug!(%error, "the shard map could not be refreshed");
        }
        sleep(REFRESH_PAUSE).await;
        self.refreshing.store(false, Ordering::Release);
    }
}

/// The error of asking every node in vain. That all are of another cluster is worth its own kind.
fn nobody(failures: Vec<(Arc<str>, Error)>) -> Error {
    let all_denied = !failures.is_empty() && failures.iter().all(|(_, error)| error.kind == ErrorKind::Denied);
    let kind = if all_denied { ErrorKind::Denied } else { ErrorKind::Unavailable };
    let told: Vec<_> = failures.iter().map(|(addr, error)| format!("{addr}: {error}")).collect();
    Error::new(kind, format!("no node gave the shard map ({})", told.join("; ")))
}
