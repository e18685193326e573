//! A client's options, and its first word with the cluster.

use std::sync::Arc;
use std::time::Duration;

use super::map::MapCache;
use super::replicas::{HedgeAfter, Replicas};
use super::seen::Seen;
use super::{Client, Deadline, Dialer, GrpcDialer, Policy, Shared, index};
use crate::types::{ClusterId, Error, NodeId, Result, limits};

/// Options of a [`Client`]. Made by [`Client::builder`].
#[must_use]
pub struct Builder {
    endpoints: Vec<String>,
    deadline: Duration,
    cluster: Option<ClusterId>,
    dialer: Option<Arc<dyn Dialer>>,
    policy: Policy,
    zone: String,
    hedge: Option<(HedgeAfter, u32)>,
    prefer: Option<NodeId>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            deadline: Duration::from_millis(limits::DEFAULT_DEADLINE_MS),
            cluster: None,
            dialer: None,
            policy: Policy::default(),
            zone: String::new(),
            hedge: None,
            prefer: None,
        }
    }
}

impl Builder {
    /// Nodes to begin with, as `host:port` or `http://host:port`. At least one; the others come from the map.
    pub fn endpoints<E: Into<String>>(mut self, endpoints: impl IntoIterator<Item = E>) -> Self {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// How long a call may take, connecting included. Default 10 s, at most five minutes.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The cluster that is meant: another one is refused as `Denied`. Without it, the client takes the
    /// cluster that the first node to answer belongs to, and stays with that.
    pub fn cluster_id(mut self, cluster: ClusterId) -> Self {
        self.cluster = Some(cluster);
        self
    }

    /// Another transport than gRPC.
    pub fn dialer(mut self, dialer: Arc<dyn Dialer>) -> Self {
        self.dialer = Some(dialer);
        self
    }

    /// Which replicas reads go to. Default: balanced over all.
    pub fn read_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// The zone that the client is in, as nodes name theirs with `--zone`: what [`Policy::Nearest`] goes by.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = zone.into();
        self
    }

    /// Sends a read to a second replica where the first takes long; the first answer counts. At most `budget_percent`
    /// second copies in a hundred reads, 1 to 100, so that a cluster that is slow since it is busy does not get busier
    /// still. Not done by default.
    pub fn hedge(mut self, after: HedgeAfter, budget_percent: u32) -> Self {
        self.hedge = Some((after, budget_percent));
        self
    }

    /// The node that is asked first for every read of a shard that it has a replica of, whatever the policy: for a
    /// program that runs beside it. Where it fails, the policy chooses.
    pub fn prefer_node(mut self, node: NodeId) -> Self {
        self.prefer = Some(node);
        self
    }

    /// Asks the endpoints for the shard map, again and again until one answers or the deadline ends.
    ///
    /// # Errors
    /// `Invalid` without endpoints or for a malformed one; `Denied` where the cluster is another one than is
    /// meant; `Unavailable` where no node answers or the nodes belong to no cluster yet.
    pub async fn connect(self) -> Result<Client> {
        let endpoints = self.endpoints.iter().map(|one| address(one)).collect::<Result<Vec<_>>>()?;
        if endpoints.is_empty() {
            return Err(Error::invalid("no endpoints: name at least one node as host:port"));
        }
        let deadline = Deadline::After(self.deadline);
        let until = deadline.until()?;
        let dialer = self.dialer.unwrap_or_else(|| Arc::new(GrpcDialer::default()));
        let map = MapCache::new(dialer, endpoints, self.cluster);
        if let Some((_, percent)) = self.hedge.filter(|(_, percent)| !(1..=100).contains(percent)) {
            return Err(Error::invalid(format!(
                "the budget for second copies of reads is {percent} percent: it must be 1 to 100"
            )));
        }
        let replicas = Replicas::new(self.hedge);
        let shared = Shared {
            map,
            seen: Seen::default(),
            replicas,
            indexes: index::Known::default(),
            zone: self.zone,
            prefer: self.prefer,
        };
        let first = shared.map.fetch_until(until).await?;
        shared.seen.note_fresh(first.seen_ts);
        Ok(Client { shared: Arc::new(shared), deadline, policy: self.policy })
    }
}

/// The `host:port` of an endpoint.
fn address(endpoint: &str) -> Result<Arc<str>> {
    let refuse = |why: &str| {
        Err(Error::invalid(format!(
            "the endpoint {endpoint:?} {why}: write host:port, like 127.0.0.1:7400 or http://db1.example:7400"
        )))
    };
    let text = endpoint.trim();
    if text.starts_with("https://") {
        return refuse("asks for TLS, which this version does not speak");
    }
    let text = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !host.contains(['/', ' ']) => match port.parse::<u16>() {
            Ok(0) | Err(_) => refuse("has no port from 1 to 65535"),
            Ok(_) => Ok(text.into()),
        },
        _ => refuse("is not host:port"),
    }
}

#[cfg(test)]
mod tests {
    use super::address;
    use crate::types::ErrorKind;

    #[test]
    fn endpoints_are_host_and_port() {
        for (given, meant) in [
            ("127.0.0.1:7400", "127.0.0.1:7400"),
            ("http://db1.example:7400/", "db1.example:7400"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(&*address(given).expect("well formed"), meant);
        }
        for bad in
            ["", "db1", ":7400", "db1:", "db1:0", "db1:70000", "http://a/b:1", "https://db1:1", "a b:1"]
        {
            assert_eq!(address(bad).expect_err("malformed").kind, ErrorKind::Invalid, "{bad}");
        }
    }
}
