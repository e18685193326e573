//! Commands of the system, and which of them are there.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What stands in the way of a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command of the system failed.
    #[error("`{command}` failed: {why}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit code and what it wrote to standard error.
        why: String,
    },
    /// A file or a process could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The store answered with an error where the harness needs an answer.
    #[error("the store: {0}")]
    Store(#[from] kvorum::Error),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

/// Results of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names what failed in an I/O error.
pub trait Context<T> {
    /// The error with `what` in front.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { what: what(), source })
    }
}

/// Runs a command to its end and returns what it wrote to standard output.
///
/// # Errors
/// [`Error::Command`] with its standard error where it can't be started or doesn't succeed.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    run_with_input(program, arguments, "")
}

/// As [`run`], with something to read on standard input.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let output = output(program, arguments, input)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = failure(&output);
    Err(Error::Command { command: line(program, arguments), why })
}

/// Runs a command to its end, whatever that is.
///
/// # Errors
/// [`Error::Command`] where it can't be started.
pub fn output(program: &str, arguments: &[&str], input: &str) -> Result<Output> {
    let failed =
        |error: std::io::Error| Error::Command { command: line(program, arguments), why: error.to_string() };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that ends without reading everything says so by its exit code.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().map_err(failed)
}

/// How a command ended, and what it wrote to standard error.
pub fn failure(output: &Output) -> String {
    let told = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    format!("{}{}{told}", output.status, if told.is_empty() { "" } else { ": " })
}

fn line(program: &str, arguments: &[&str]) -> String {
    format!("{program} {}", arguments.join(" "))
}

/// What this machine allows. Found out once, before a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Means {
    /// Network namespaces with filters: root, `ip`, `nft` and `nsenter`.
    pub namespaces: Missing,
    /// Loop-mounted disks: root, `mkfs.ext4`, `mount` and a free loop device.
    pub disks: Missing,
    /// Disks whose power can be cut: root and FUSE.
    pub power: Missing,
    /// Faked wall clocks: the library of the package `libfaketime`.
    pub clocks: Result<PathBuf, String>,
}

/// `Ok` where something can be had, else what is missing and what to do.
pub type Missing = Result<(), String>;

/// Where distributions put the library.
const FAKETIME: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
];

impl Means {
    /// Looks at the machine.
    pub fn of_this_machine() -> Self {
        Self { namespaces: namespaces(), disks: disks(), power: super::power::available(), clocks: clocks() }
    }
}

fn namespaces() -> Missing {
    as_root("network namespaces")?;
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")] {
        needs(program, package)?;
    }
    // Containers may be root and yet may not make namespaces, and kernels may have no filters.
    let probe = format!("{}{}p", super::PREFIX, std::process::id());
    let made = run("ip", &["netns", "add", &probe]);
    made.map_err(|error| format!("network namespaces can't be made here: {error}"))?;
    let rules = super::network::ruleset(&["10.213.0.11".into()]);
    let inside = format!("--net=/run/netns/{probe}");
    let filtered = run_with_input("nsenter", &[&inside, "--", "nft", "-f", "-"], &rules);
    let removed = run("ip", &["netns", "del", &probe]);
    filtered.and(removed).map(drop).map_err(|error| format!("packets can't be filtered here: {error}"))
}

fn disks() -> Missing {
    as_root("small disks")?;
    for (program, package) in [
        ("mkfs.ext4", "e2fsprogs"),
        ("mount", "mount"),
        ("fsfreeze", "util-linux"),
        ("fallocate", "util-linux"),
    ] {
        needs(program, package)?;
    }
    if Path::new("/dev/loop-control").exists() {
        return Ok(());
    }
    Err("there are no loop devices here: /dev/loop-control is missing".into())
}

fn clocks() -> Result<PathBuf, String> {
    let found = FAKETIME.iter().map(Path::new).find(|path| path.exists());
    let library = found.map(Path::to_path_buf).ok_or_else(|| {
        format!("wall clocks need libfaketime (package libfaketime), which is not at any of {FAKETIME:?}")
    })?;
    super::clock::probe(&library)
        .map_err(|error| format!("the clock can't be set with {}: {error}", library.display()))?;
    Ok(library)
}

fn as_root(what: &str) -> Missing {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err(format!("{what} need root")),
    }
}

fn needs(program: &str, package: &str) -> Missing {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Not everybody has these in their PATH.
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    match places.into_iter().any(|place| place.join(program).exists()) {
        true => Ok(()),
        false => Err(format!("{program} is missing: install the package {package}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_tells_its_line_code_and_words() {
        let error = run("sh", &["-c", "echo no such luck >&2; exit 3"]).unwrap_err().to_string();
        for words in ["sh -c", "exit status: 3", "no such luck"] {
            assert!(error.contains(words), "{words:?} is not in {error:?}");
        }
        assert!(run("/no/such/program", &[]).is_err());
    }

    #[test]
    fn a_command_reads_its_input_and_answers() {
        assert_eq!(run_with_input("cat", &[], "two\nlines\n").unwrap(), "two\nlines\n");
    }
}
