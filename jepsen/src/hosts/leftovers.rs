//! Removing what runs leave: at their end, and what a killed harness could not remove itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::PREFIX;
use super::clock::Clock;
use super::record::{self, Left, Started};
use super::tools::run;

/// Where disks are mounted: a directory for each harness, named by its process id.
pub const MOUNTS: &str = "/run/kvorum-jepsen";

/// Removes what harnesses left whose process is gone: nodes that still run, networks, mounts and files. Returns what it
/// removed, for the log. Nothing of this process's own may have been made yet.
pub fn remove_of_the_dead() -> Vec<String> {
    let home = record::home();
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
    for owner in owners.into_iter().filter(|owner| !lives(&home, *owner)) {
        let bridge = format!("{PREFIX}{owner}");
        remove_network(&bridge);
        removed.push(format!("the network {bridge}"));
    }
    removed.extend(remove_recorded(&home));
    removed
}

/// The same of what stands in the harnesses' directories.
fn remove_recorded(home: &Path) -> Vec<String> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let directory = entry.path();
        let owner = entry.file_name().to_string_lossy().parse::<u32>().ok();
        if owner.is_none_or(|owner| lives(home, owner)) || !record::is_own(&directory) {
            continue;
        }
        let left = Left::read(&directory).unwrap_or_default();
        for node in &left.nodes {
            if node.runs() {
                kill(node.pid);
                removed.push(format!("the node with process id {}", node.pid));
            }
            // Another process that has its number now has a clock of its own.
            if !Started::now(node.pid).is_some_and(|other| other != *node) {
                Clock::tidy(node.pid);
            }
        }
        removed.extend(
            left.files
                .iter()
                .filter(|file| fs::remove_file(file).is_ok())
                .map(|file| format!("the file {}", file.display())),
        );
        Left::forget(&directory);
        remove_mounts(&directory);
        removed.push(format!("the mounts in {}", directory.display()));
    }
    removed
}

/// SIGKILL to a process that is not ours, and its end, unless that takes long: it may wait for a frozen disk.
fn kill(pid: u32) {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Some(started) = Started::now(pid) else { return };
    // An error means that it has just ended.
    let _ = kill_process(id, Signal::KILL);
    for _ in 0..100 {
        if !started.runs() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The process that made a link or namespace of this name, if a harness did.
fn owner(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    let (id, node) = rest.split_at(rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len()));
    let is_node =
        node.is_empty() || node == "p" || node.strip_prefix('n').is_some_and(|n| n.parse::<u32>().is_ok());
    if is_node { id.parse().ok() } else { None }
}

/// Whether the process is a harness that runs, by its record in `home`; without one by its name.
fn lives(home: &Path, pid: u32) -> bool {
    if let Some(harness) = Left::read(&home.join(pid.to_string())).and_then(|left| left.harness) {
        return harness.runs();
    }
    // This process has made nothing yet: what has its number is of another that had it before.
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    pid != std::process::id() && name.is_ok_and(|name| name.trim().starts_with("kvorum-jepsen"))
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

    /// A directory of harnesses with the record of one, which started when it is said.
    fn home_with(pid: u32, at_ticks: u64, more: &str) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join(pid.to_string());
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("record"), format!("harness {pid} {at_ticks}\n{more}")).unwrap();
        home
    }

    #[test]
    fn a_harness_lives_as_long_as_the_process_that_it_was() {
        let own = Started::now(std::process::id()).unwrap();
        assert!(lives(home_with(own.pid, own.at_ticks, "").path(), own.pid));
        assert!(!lives(home_with(own.pid, own.at_ticks + 1, "").path(), own.pid));
        let empty = tempfile::tempdir().unwrap();
        assert!(!lives(empty.path(), own.pid) && !lives(empty.path(), 1));
    }

    #[test]
    fn what_a_dead_harness_took_down_is_removed_and_what_a_living_one_did_stays() {
        let own = Started::now(std::process::id()).unwrap();
        let files = tempfile::tempdir().unwrap();
        let image = files.path().join("1.img");
        fs::write(&image, "disk").unwrap();
        let mut node = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let started = Started::now(node.id()).unwrap();
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let before = Started::now(other.id()).unwrap().at_ticks.wrapping_sub(1);
        let more = format!(
            "node {} {}\nnode {} {before}\nfile {}\n",
            node.id(),
            started.at_ticks,
            other.id(),
            image.display()
        );
        let living = home_with(own.pid, own.at_ticks, &more);
        assert_eq!(remove_recorded(living.path()), Vec::<String>::new());
        assert!(image.exists() && node.try_wait().unwrap().is_none());
        // The same harness's number, given to another process since.
        let dead = home_with(own.pid, own.at_ticks.wrapping_sub(1), &more);
        let removed = remove_recorded(dead.path());
        assert!(!node.wait().unwrap().success() && !image.exists(), "{removed:?}");
        // A process that only has the number of a node is left alone.
        assert!(other.try_wait().unwrap().is_none());
        assert!(fs::read_dir(dead.path()).unwrap().next().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
