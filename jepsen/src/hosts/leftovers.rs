//! Removing what runs leave: at their end, and what a killed harness could not remove itself.

use std::fs;
use std::path::{Path, PathBuf};

use super::PREFIX;
use super::tools::run;

/// Where disks are mounted: a directory for each harness, named by its process id.
pub const MOUNTS: &str = "/run/kvorum-jepsen";

/// Removes networks and mounts of harnesses whose process is gone. Returns what it removed, for the log.
pub fn remove_of_the_dead() -> Vec<String> {
    let mut removed = Vec::new();
    let links = run("ip", &["-o", "link", "show"]).unwrap_or_default();
    let spaces = run("ip", &["netns", "list"]).unwrap_or_default();
    let names = links
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .map(|name| name.split('@').next().unwrap_or(name))
        .chain(spaces.lines().filter_map(|line| line.split_whitespace().next()));
    let mut owners: Vec<u32> = names.filter_map(owner).collect();
    owners.sort_unstable();
    owners.dedup();
    for owner in owners.into_iter().filter(|owner| !lives(*owner)) {
        let bridge = format!("{PREFIX}{owner}");
        remove_network(&bridge);
        removed.push(format!("the network {bridge}"));
    }
    for entry in fs::read_dir(MOUNTS).into_iter().flatten().flatten() {
        let owner = entry.file_name().to_string_lossy().parse::<u32>().ok();
        if owner.is_some_and(|owner| !lives(owner)) {
            remove_mounts(&entry.path());
            removed.push(format!("the mounts in {}", entry.path().display()));
        }
    }
    removed
}

/// The process that made a link or namespace of this name, if a harness did.
fn owner(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    let (id, node) = rest.split_at(rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len()));
    let is_node =
        node.is_empty() || node == "p" || node.strip_prefix('n').is_some_and(|n| n.parse::<u32>().is_ok());
    if is_node { id.parse().ok() } else { None }
}

/// Whether the process is a harness that runs.
fn lives(pid: u32) -> bool {
    // A process id may have been given again, to something else.
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim().starts_with("kvorum-jepsen"))
        || pid == std::process::id()
}

/// Removes a bridge and the namespaces on it, with all processes in them. Errors are not told: it also runs
/// where only a part was made, and where nothing can be done about them.
pub fn remove_network(bridge: &str) {
    let spaces = run("ip", &["netns", "list"]).unwrap_or_default();
    let names = spaces.lines().filter_map(|line| line.split_whitespace().next());
    for name in names.filter(|name| {
        name.strip_prefix(bridge)
            .is_some_and(|rest| !rest.starts_with(|letter: char| letter.is_ascii_digit()))
    }) {
        let inside = run("ip", &["netns", "pids", name]).unwrap_or_default();
        for pid in inside.split_whitespace() {
            let _ = run("kill", &["-KILL", pid]);
        }
        let _ = run("ip", &["link", "del", name]);
        let _ = run("ip", &["netns", "del", name]);
    }
    let _ = run("ip", &["link", "del", bridge]);
}

/// Thaws and unmounts everything that is mounted in a directory, and removes it. Errors are not told, as above.
pub fn remove_mounts(directory: &Path) {
    let mounted = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let points = mounted.lines().filter_map(|line| line.split_whitespace().nth(1)).map(PathBuf::from);
    for point in points.filter(|point| point.starts_with(directory)) {
        let point = point.to_string_lossy();
        let _ = run("fsfreeze", &["-u", &point]);
        if run("umount", &[&point]).is_err() {
            // Something still has it open. It goes when that ends.
            let _ = run("umount", &["--lazy", &point]);
        }
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // Only empty directories: nothing of anybody's data is ever removed here.
        let _ = fs::remove_dir(entry.path());
    }
    let _ = fs::remove_dir(directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_harness_makes_have_an_owner() {
        assert_eq!(owner("kvj123"), Some(123));
        assert_eq!(owner("kvj123n4"), Some(123));
        for name in ["kvj", "kvjx1", "kvj12x", "kvj12nn", "eth0", "docker0"] {
            assert_eq!(owner(name), None, "{name}");
        }
    }

    #[test]
    fn this_process_lives_and_a_process_that_is_no_harness_does_not() {
        assert!(lives(std::process::id()));
        assert!(!lives(1));
    }
}
