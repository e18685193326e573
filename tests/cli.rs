//! The command line without a cluster: help, bad input, exit codes, and the form of errors.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

fn kvorum() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvorum"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KVORUM_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    kvorum().args(arguments).output().expect("the command runs")
}

/// Runs with arguments that must be refused as invalid, and returns what the error says.
fn refused(arguments: &[&str]) -> String {
    let output = run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
    assert!(output.stdout.is_empty(), "{arguments:?} wrote to standard output");
    errors
}

/// An address where nothing listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

const COMMANDS: [&str; 20] = [
    "serve",
    "cluster",
    "status",
    "put",
    "get",
    "delete",
    "scan",
    "cas",
    "add",
    "txn",
    "watch",
    "consumer",
    "index",
    "query",
    "timestamp",
    "import",
    "export",
    "bench",
    "checksum",
    "completion",
];

#[test]
fn every_command_explains_itself_with_examples() {
    let help = run(&["--help"]);
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.status.success());
    for command in COMMANDS {
        assert!(text.contains(&format!("\n  {command} ")), "{command} is not in the help:\n{text}");
    }
    let each =
        COMMANDS.iter().filter(|command| **command != "cluster").map(|command| vec![*command, "--help"]);
    for arguments in each.chain([vec!["cluster", "init", "--help"], vec!["cluster", "local", "--help"]]) {
        let output = run(&arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("Examples:"), "{arguments:?}:\n{text}");
    }
}

#[test]
fn wrong_usage_is_invalid() {
    assert!(refused(&["put", "key"]).contains("VALUE"));
    assert!(refused(&["nonsense"]).contains("nonsense"));
    assert!(refused(&["cas", "key", "new"]).contains("--absent"));
    assert!(refused(&["cas", "key", "new", "--absent", "--present"]).contains("cannot be used with"));
    assert!(refused(&["--deadline", "soon", "get", "key"]).contains("unit"));
    assert!(refused(&["--deadline", "1h", "get", "key"]).contains("5m"));
    assert!(refused(&["--endpoints", "nowhere", "get", "key"]).contains("host:port"));
    assert!(refused(&["--cluster-id", "1", "get", "key"]).contains("32 hexadecimal digits"));
    assert!(refused(&["cluster", "local", "--nodes", "0", "--dir", "x"]).contains("--nodes"));
    assert!(refused(&["bench", "put", "--value-bytes", "2000000"]).contains("--value-bytes"));
}

#[test]
fn bad_keys_and_values_are_invalid_before_anything_is_sent() {
    let long = "k".repeat(4097);
    assert!(refused(&["get", ""]).contains("key"));
    assert!(refused(&["get", &long]).contains("4096"));
    assert!(refused(&["--hex", "get", "0"]).contains("hexadecimal"));
    assert!(refused(&["put", "key", "@/no/such/file"]).contains("/no/such/file"));
    let big = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(big.path(), vec![0; 1024 * 1024 + 1]).expect("written");
    assert!(refused(&["put", "key", &format!("@{}", big.path().display())]).contains("1048576"));
}

#[test]
fn scripts_are_checked_before_anything_is_sent() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let path = file.path().display().to_string();
    let said = |script: &str, arguments: &[&str]| {
        std::fs::write(file.path(), script).expect("written");
        refused(&[&["txn", &path], arguments].concat())
    };
    assert!(said("", &[]).contains("no commands"));
    assert!(said("get a\nput b\n", &[]).contains("line 2"));
    assert!(said("get a\nput b 1\n", &["--read-only"]).contains("line 2 writes"));
    assert!(said("get zz\n", &["--hex"]).contains("line 1: the key is not hexadecimal"));
    assert!(refused(&["txn", "/no/such/file"]).contains("/no/such/file"));
    // From standard input; nobody is there to run it.
    let address = nobody();
    let mut child = kvorum()
        .args(["--endpoints", &address, "--deadline", "200ms", "txn", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    child.stdin.take().expect("piped").write_all(b"add a 1 # one more\n").expect("written");
    let output = child.wait_with_output().expect("the command ends");
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn configuration_files_are_checked() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let path = file.path().display().to_string();
    std::fs::write(file.path(), "lisen = \"127.0.0.1:0\"").expect("written");
    assert!(refused(&["serve", "--config", &path]).contains("lisen"));
    std::fs::write(file.path(), "listen = \"nowhere\"").expect("written");
    assert!(refused(&["serve", "--config", &path]).contains("nowhere"));
    assert!(refused(&["serve", "--config", "/no/such/file"]).contains("/no/such/file"));
}

#[test]
fn no_node_is_unavailable_in_text_and_json() {
    let address = nobody();
    let base = ["--endpoints", address.as_str(), "--deadline", "300ms"];
    for arguments in
        [&["get", "key"][..], &["put", "key", "value"], &["scan"], &["status"], &["checksum"], &["timestamp"]]
    {
        let output = run(&[&base[..], arguments].concat());
        assert_eq!(
            output.status.code(),
            Some(3),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let output = run(&[&base[..], &["--output", "json"], arguments].concat());
        let error: serde_json::Value = serde_json::from_slice(&output.stderr).expect("a JSON object");
        assert_eq!(error["error"]["kind"], "unavailable", "{arguments:?}");
        assert!(error["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
    }
}

#[test]
fn errors_of_usage_are_json_where_json_was_asked_for() {
    let output = run(&["--output", "json", "put", "key"]);
    assert_eq!(output.status.code(), Some(2));
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).expect("a JSON object");
    assert_eq!(error["error"]["kind"], "invalid");
}

#[test]
fn bad_import_files_are_told_by_name() {
    let address = nobody();
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let path = file.path().display().to_string();
    std::fs::write(file.path(), "name,code\na,b\n").expect("written");
    let import = |arguments: &[&str]| refused(&[&["--endpoints", &address, "import"], arguments].concat());
    assert!(import(&["/no/such/file"]).contains("/no/such/file"));
    assert!(import(&[&path, "--format", "csv"]).contains("--key"));
    assert!(import(&[&path, "--format", "csv", "--key", "id"]).contains("name, code"));
    assert!(import(&[&path, "--format", "lines", "--key", "id"]).contains("no meaning"));
}

#[test]
fn a_completion_script_is_printed_and_a_closed_pipe_is_no_error() {
    let output = run(&["completion", "bash"]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("kvorum"));
    let mut child = kvorum()
        .args(["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the command ends");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_value_comes_from_standard_input() {
    let address = nobody();
    let mut child = kvorum()
        .args(["--endpoints", &address, "--deadline", "100ms", "put", "key", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    let mut stdin = child.stdin.take().expect("piped");
    // More than a value may have: refused as such, so it was read.
    let _ = stdin.write_all(&vec![b'x'; 1024 * 1024 + 100]);
    drop(stdin);
    let output = child.wait_with_output().expect("the command ends");
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}
