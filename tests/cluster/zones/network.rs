//! Three zones as network namespaces on a bridge, from one to another of which only the relay leads.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::relay::{Lane, Whose};
use crate::support::kvorum;

/// How many zones there are.
pub const ZONES: usize = 3;
/// Names of bridges and namespaces begin with it, and go on with the id of the process that made them.
const PREFIX: &str = "kvz";
const GRPC_PORT: u16 = 7400;
const HTTP_PORT: u16 = 7480;
/// Clients run with this group's id, so that rules tell their connections from those of the node in the same
/// namespace. It is nobody's; the user stays root.
const CLIENTS: u32 = 74_001;

type Result<T> = std::result::Result<T, String>;

/// Runs a command of the system to its end, with something to read; answers what it wrote.
fn run_with_input(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let told = |why: String| format!("`{program} {}` failed: {why}", arguments.join(" "));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| told(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that ends without reading everything says so by its exit code.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| told(error.to_string()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(told(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))),
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    run_with_input(program, arguments, "")
}

/// A bridge, a namespace for each zone, and the cables between them. Dropped, they are gone, with all processes in
/// the namespaces. Zones count from 0, their names from 1.
pub struct Network {
    bridge: String,
    subnet: [u8; 3],
}

impl Network {
    /// Makes it. Removes before what dead processes left. Only one of this process may exist at a time.
    ///
    /// # Errors
    /// The command that failed; what was made is removed.
    pub fn make() -> Result<Self> {
        remove_leftovers()?;
        let taken = run("ip", &["-o", "-4", "addr", "show"])?;
        let id = std::process::id();
        let free = |octet: &u32| !taken.contains(&format!("10.214.{octet}."));
        let octet = (0..250).map(|step| (id + step) % 250).find(free);
        let octet = octet.ok_or("all networks from 10.214.0.0/24 to 10.214.249.0/24 are in use")? as u8;
        let made = Self { bridge: format!("{PREFIX}{id}"), subnet: [10, 214, octet] };
        made.make_links()?;
        Ok(made)
    }

    fn make_links(&self) -> Result<()> {
        let bridge = self.bridge.as_str();
        run("ip", &["link", "add", bridge, "type", "bridge"])?;
        run("ip", &["addr", "add", &format!("{}/24", self.gateway()), "dev", bridge])?;
        run("ip", &["link", "set", bridge, "up"])?;
        for zone in 0..ZONES {
            let (name, host) = (self.name(zone), format!("{}/24", self.host(zone)));
            run("ip", &["netns", "add", &name])?;
            // The end in the root namespace has the name of the zone's namespace.
            run("ip", &["link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
            run("ip", &["link", "set", &name, "master", bridge, "up"])?;
            run("ip", &["-n", &name, "addr", "add", &host, "dev", "eth0"])?;
            run("ip", &["-n", &name, "link", "set", "lo", "up"])?;
            run("ip", &["-n", &name, "link", "set", "eth0", "up"])?;
        }
        Ok(())
    }

    /// Where the relay listens: on the bridge, in the root namespace.
    pub fn gateway(&self) -> IpAddr {
        self.address(1)
    }

    fn host(&self, zone: usize) -> IpAddr {
        self.address(11 + zone as u8)
    }

    fn address(&self, last: u8) -> IpAddr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, last).into()
    }

    fn name(&self, zone: usize) -> String {
        format!("{}n{}", self.bridge, zone + 1)
    }

    /// The gRPC address of the zone's node.
    pub fn grpc(&self, zone: usize) -> SocketAddr {
        (self.host(zone), GRPC_PORT).into()
    }

    /// The HTTP address of the zone's node.
    pub fn http(&self, zone: usize) -> SocketAddr {
        (self.host(zone), HTTP_PORT).into()
    }

    /// Sends every connection to another zone's node to the relay instead, and drops everything else between zones,
    /// on both sides. What is dropped is counted. The root namespace reaches the nodes as they are.
    ///
    /// # Errors
    /// Where the rules can't be set.
    pub fn lead_through(&self, lanes: &[Lane]) -> Result<()> {
        for zone in 0..ZONES {
            let redirects = lanes.iter().filter(|lane| lane.from == zone).map(|lane| {
                let whose = match lane.whose {
                    Whose::Nodes => "!=",
                    Whose::Clients => "==",
                };
                format!(
                    "    ip daddr {} tcp dport {GRPC_PORT} meta skgid {whose} {CLIENTS} dnat to {}\n",
                    self.host(lane.to),
                    lane.listens
                )
            });
            let redirects: String = redirects.collect();
            let others = (0..ZONES).filter(|other| *other != zone).map(|other| self.host(other).to_string());
            let others = others.collect::<Vec<_>>().join(", ");
            let rules = format!(
                "table ip zones {{\n  counter past_the_relay {{}}\n  \
                 chain to_relay {{\n    type nat hook output priority -100; policy accept;\n{redirects}  }}\n  \
                 chain outgoing {{\n    type filter hook output priority 0; policy accept;\n    \
                 ip daddr {{ {others} }} counter name past_the_relay drop\n  }}\n  \
                 chain incoming {{\n    type filter hook input priority 0; policy accept;\n    \
                 ip saddr {{ {others} }} counter name past_the_relay drop\n  }}\n}}\n"
            );
            run_with_input("ip", &["netns", "exec", &self.name(zone), "nft", "-f", "-"], &rules)?;
        }
        Ok(())
    }

    /// Packets between this zone and another that did not go to the relay, and were dropped.
    pub fn dropped(&self, zone: usize) -> u64 {
        let list =
            ["netns", "exec", &self.name(zone), "nft", "list", "counter", "ip", "zones", "past_the_relay"];
        let listed = run("ip", &list).expect("the counter is there");
        let mut words = listed.split_whitespace().skip_while(|word| *word != "packets");
        let packets = words.nth(1).and_then(|word| word.parse().ok());
        packets.unwrap_or_else(|| panic!("no packets in {listed:?}"))
    }

    /// Bytes that have gone over the zone's cable, in both directions, as the kernel counts them: whole packets,
    /// whoever sent them.
    pub fn cable_bytes(&self, zone: usize) -> u64 {
        link_bytes(&["-j", "-s", "link", "show", "dev", &self.name(zone)])
    }

    /// Bytes that have stayed inside the zone, on its loopback device.
    pub fn inner_bytes(&self, zone: usize) -> u64 {
        // Each is sent, and received by the same device.
        link_bytes(&["-n", &self.name(zone), "-j", "-s", "link", "show", "dev", "lo"]) / 2
    }

    /// A node's command line in the zone, whose name it is given.
    pub fn node(&self, zone: usize) -> Command {
        let mut command = self.inside(zone);
        command.env("KVORUM_ZONE", zone_name(zone));
        command
    }

    /// A client's command line in the zone.
    pub fn client(&self, zone: usize) -> Command {
        let mut command = self.inside(zone);
        command.gid(CLIENTS);
        command
    }

    /// The program in the zone, with its arguments still to come. `ip` becomes the program: it keeps the process id.
    fn inside(&self, zone: usize) -> Command {
        let program = kvorum();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(zone)]).arg(program.get_program()).stdin(Stdio::null());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove(&self.bridge);
    }
}

/// What a node of the zone is told that its zone is.
pub fn zone_name(zone: usize) -> String {
    format!("zone-{}", zone + 1)
}

fn link_bytes(show: &[&str]) -> u64 {
    let shown = run("ip", show).expect("the link is there");
    let links: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let bytes = |direction: &str| links[0]["stats64"][direction]["bytes"].as_u64();
    let sum = bytes("rx").zip(bytes("tx")).map(|(rx, tx)| rx + tx);
    sum.unwrap_or_else(|| panic!("no bytes in {shown}"))
}

/// Removes the networks of processes that are gone.
fn remove_leftovers() -> Result<()> {
    let links = run("ip", &["-o", "link", "show"])?;
    let spaces = run("ip", &["netns", "list"])?;
    let links = links.lines().filter_map(|line| line.split(": ").nth(1));
    let links = links.map(|name| name.split('@').next().unwrap_or(name));
    let spaces = spaces.lines().filter_map(|line| line.split_whitespace().next());
    let mut owners: Vec<u32> = links.chain(spaces).filter_map(owner).collect();
    owners.sort_unstable();
    owners.dedup();
    for owner in owners.into_iter().filter(|owner| !lives(*owner)) {
        println!("the network {PREFIX}{owner}, of a process that is gone, is removed");
        remove(&format!("{PREFIX}{owner}"));
    }
    Ok(())
}

/// The process that made a link or a namespace of this name, if a test did.
fn owner(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    let (id, zone) = rest.split_once('n').unwrap_or((rest, "1"));
    zone.parse::<u32>().ok().and_then(|_| id.parse().ok())
}

/// Whether the process is another run of these tests. This one has no network now: what has its number is of an
/// earlier process that had it.
fn lives(pid: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    pid != std::process::id() && name.is_ok_and(|name| name.starts_with("cluster-"))
}

/// Removes a bridge and its namespaces, with all processes in them. Errors are not told: it also runs where only a
/// part was made, and where nothing can be done about them.
fn remove(bridge: &str) {
    for name in (1..=ZONES).map(|zone| format!("{bridge}n{zone}")) {
        let inside = run("ip", &["netns", "pids", &name]).unwrap_or_default();
        for pid in inside.split_whitespace() {
            let _ = run("kill", &["-KILL", pid]);
        }
        let _ = run("ip", &["link", "del", &name]);
        let _ = run("ip", &["netns", "del", &name]);
    }
    let _ = run("ip", &["link", "del", bridge]);
}

#[test]
fn only_names_that_these_tests_make_have_an_owner() {
    assert_eq!(owner("kvz123"), Some(123));
    assert_eq!(owner("kvz123n3"), Some(123));
    for name in ["kvz", "kvzn1", "kvz12x", "kvz12nn", "kvz12n", "kvj12", "eth0"] {
        assert_eq!(owner(name), None, "{name}");
    }
}
