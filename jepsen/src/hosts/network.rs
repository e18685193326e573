//! Nodes' addresses: in network namespaces on a bridge, or ports of the loopback device.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};

use super::tools::{Context, Error, Result, run, run_with_input};
use super::{PREFIX, leftovers};

/// Nodes' gRPC port in a namespace.
const PORT: u16 = 7400;
/// Below this port the system takes no ports for outgoing connections by default. A node's port must not be
/// taken while the node is down.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 20_000;

/// Packets that are dropped: from the first node to the second, by index.
pub type Cut = BTreeSet<(usize, usize)>;

/// Where the nodes of a run live. Dropped, namespaces and bridge are gone.
pub enum Network {
    /// A namespace for each node, all on one bridge, on which the harness has an address too.
    Namespaces(Namespaces),
    /// Ports of the loopback device; nothing can be cut.
    Loopback {
        /// Where each node listens.
        addresses: Vec<String>,
    },
}

/// A bridge and its namespaces.
pub struct Namespaces {
    bridge: String,
    subnet: String,
    nodes: usize,
    cuts: BTreeMap<u64, Cut>,
}

impl Network {
    /// Makes namespaces for so many nodes.
    ///
    /// # Errors
    /// Where a command fails; what was made is removed.
    pub fn namespaces(nodes: usize) -> Result<Self> {
        let taken = run("ip", &["-o", "-4", "addr", "show"])?;
        let id = std::process::id();
        let free = |octet: &u32| !taken.contains(&format!("10.213.{octet}."));
        let octet = (0..250).map(|step| (id + step) % 250).find(free);
        let octet = octet.ok_or_else(|| {
            Error::Other("all networks from 10.213.0.0/24 to 10.213.249.0/24 are in use".into())
        })?;
        let made = Namespaces {
            bridge: format!("{PREFIX}{id}"),
            subnet: format!("10.213.{octet}"),
            nodes,
            cuts: BTreeMap::new(),
        };
        made.make()?;
        Ok(Self::Namespaces(made))
    }

    /// Takes free ports for so many nodes.
    ///
    /// # Errors
    /// Where there are none.
    pub fn loopback(nodes: usize) -> Result<Self> {
        // Held until all are chosen, so that none is chosen twice.
        let mut held = Vec::new();
        for attempt in 0.. {
            if held.len() == nodes {
                break;
            }
            if attempt > 1000 {
                return Err(Error::Other(format!("there are no {nodes} free ports from {FIRST_PORT} on")));
            }
            let port = FIRST_PORT + rand::random::<u16>() % PORTS;
            held.extend(TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))));
        }
        let address = |listener: &TcpListener| listener.local_addr().map(|address| address.to_string());
        let addresses: std::io::Result<_> = held.iter().map(address).collect();
        Ok(Self::Loopback { addresses: addresses.context(|| "free ports".into())? })
    }

    /// Where the node listens, as `host:port`. The same over its restarts.
    pub fn address(&self, node: usize) -> String {
        match self {
            Self::Namespaces(made) => format!("{}:{PORT}", made.host(node)),
            Self::Loopback { addresses } => addresses[node].clone(),
        }
    }

    /// What stands before a node's command line so that it runs where it belongs.
    pub fn launcher(&self, node: usize) -> Vec<String> {
        match self {
            Self::Namespaces(made) => {
                vec!["nsenter".into(), format!("--net=/run/netns/{}", made.name(node)), "--".into()]
            }
            Self::Loopback { .. } => Vec::new(),
        }
    }

    /// Adds a cut under an id that no other cut has now. Cuts add up.
    ///
    /// # Errors
    /// On the loopback device, for a cut of nothing, and where the filters can't be set.
    pub fn cut(&mut self, id: u64, cut: Cut) -> Result<()> {
        if cut.is_empty() {
            return Err(Error::Other("there is nobody to be cut off".into()));
        }
        let Self::Namespaces(made) = self else {
            return Err(Error::Other("nodes on the loopback device can't be cut off from each other".into()));
        };
        made.cuts.insert(id, cut);
        made.filter()
    }

    /// Removes a cut. Nothing where there is none of this id.
    ///
    /// # Errors
    /// Where the filters can't be set.
    pub fn mend(&mut self, id: u64) -> Result<()> {
        let Self::Namespaces(made) = self else { return Ok(()) };
        match made.cuts.remove(&id) {
            Some(_) => made.filter(),
            None => Ok(()),
        }
    }

    /// Removes all cuts.
    ///
    /// # Errors
    /// Where the filters can't be set.
    pub fn mend_all(&mut self) -> Result<()> {
        match self {
            Self::Namespaces(made) if !made.cuts.is_empty() => {
                made.cuts.clear();
                made.filter()
            }
            _ => Ok(()),
        }
    }
}

impl Namespaces {
    fn name(&self, node: usize) -> String {
        format!("{}n{}", self.bridge, node + 1)
    }

    fn host(&self, node: usize) -> String {
        format!("{}.{}", self.subnet, node + 11)
    }

    fn make(&self) -> Result<()> {
        let (bridge, subnet) = (&self.bridge, &self.subnet);
        run("ip", &["link", "add", bridge, "type", "bridge"])?;
        run("ip", &["addr", "add", &format!("{subnet}.1/24"), "dev", bridge])?;
        run("ip", &["link", "set", bridge, "up"])?;
        for node in 0..self.nodes {
            let (name, host) = (self.name(node), format!("{}/24", self.host(node)));
            run("ip", &["netns", "add", &name])?;
            run("ip", &["link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
            run("ip", &["link", "set", &name, "master", bridge, "up"])?;
            run("ip", &["-n", &name, "addr", "add", &host, "dev", "eth0"])?;
            run("ip", &["-n", &name, "link", "set", "lo", "up"])?;
            run("ip", &["-n", &name, "link", "set", "eth0", "up"])?;
        }
        Ok(())
    }

    /// Sets every node's filter to what all cuts together say.
    fn filter(&self) -> Result<()> {
        let all: Cut = self.cuts.values().flatten().copied().collect();
        for node in 0..self.nodes {
            let from: Vec<String> =
                all.iter().filter(|(_, to)| *to == node).map(|(from, _)| self.host(*from)).collect();
            let rules = ruleset(&from);
            let namespace = format!("--net=/run/netns/{}", self.name(node));
            run_with_input("nsenter", &[&namespace, "--", "nft", "-f", "-"], &rules)?;
        }
        Ok(())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        leftovers::remove_network(&self.bridge);
    }
}

/// What `nft -f` reads, in one step: drop what comes from these hosts, and nothing else.
pub fn ruleset(from: &[String]) -> String {
    let rule = match from {
        [] => String::new(),
        hosts => format!("ip saddr {{ {} }} drop", hosts.join(", ")),
    };
    format!(
        "add table inet kvorum\ndelete table inet kvorum\ntable inet kvorum {{\n  chain input {{\n    type filter hook input \
         priority 0; policy accept;\n    {rule}\n  }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ruleset_drops_what_it_names_and_nothing_else() {
        let rules = ruleset(&["10.213.1.11".into(), "10.213.1.12".into()]);
        assert!(rules.contains("ip saddr { 10.213.1.11, 10.213.1.12 } drop"), "{rules}");
        assert!(!ruleset(&[]).contains("drop"));
    }

    #[test]
    fn loopback_addresses_differ_and_cannot_be_cut() {
        let mut network = Network::loopback(5).unwrap();
        let addresses: BTreeSet<String> = (0..5).map(|node| network.address(node)).collect();
        assert_eq!(addresses.len(), 5);
        assert!(network.launcher(0).is_empty());
        assert!(network.cut(1, Cut::from([(0, 1)])).is_err());
        assert!(network.mend(1).is_ok());
        assert!(network.cut(2, Cut::new()).unwrap_err().to_string().contains("nobody"));
    }
}
