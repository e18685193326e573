//! The examples, run as a reader of the documents would run them, against a cluster.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Cluster, Process, turn};

/// The directory of this build's binaries: `target/debug`.
fn build_dir() -> PathBuf {
    let own = std::env::current_exe().expect("this program's path");
    let deps = own.parent().expect("a directory");
    deps.parent().expect("target/debug").to_owned()
}

/// What a program prints; it must succeed.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// A built example, to be run.
pub fn rust_example(name: &str) -> Command {
    let path = build_dir().join("examples").join(name);
    assert!(
        path.exists(),
        "{} is not there: `cargo test` builds the examples; with `--test cluster` alone, run `cargo build --examples` \
         first",
        path.display()
    );
    Command::new(path)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_examples_print_what_they_should() {
    let cluster = Cluster::start(3, 8).await;
    // Twice: what the first run has left must not trouble the second.
    for _ in 0..2 {
        let text = output(rust_example("quickstart").args(cluster.endpoints()));
        for line in [
            "connected to cluster ",
            "put and got b\"blue\", version ",
            "swapped to red, version ",
            "it was Some(b\"blue\")",
            "visits: 3\n",
            "batch: conditions met true",
            "  b\"quickstart/award\" = b\"third visit\"\n",
            "  b\"quickstart/colour\" = b\"red\"\n",
            "  b\"quickstart/visits\" = b\"4\"\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
        let mut typed = rust_example("typed");
        let text = output(typed.env("KVORUM_ENDPOINTS", cluster.endpoints().join(",")));
        assert!(text.contains("ten deliveries, stock Some(10)\n"), "{text}");
        assert!(text.contains("b\"typed/pear\": Product { name: \"Pear\", stock: 7 }"), "{text}");
        let text = output(rust_example("projection").args(cluster.endpoints()));
        for line in [
            "b\"view/ann/orders\" = b\"2\"\n",
            "b\"view/ann/amount\" = b\"38\"\n",
            "b\"view/bob/orders\" = b\"0\"\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
        let text = output(rust_example("bank").args(cluster.endpoints()));
        for line in [
            "opened 16 accounts at ",
            "10 audits during the transfers found nothing missing\n",
            " of 200 transfers made, in ",
            "the books are in balance: 1600\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
    }
}

#[test]
fn the_embedded_example_finds_what_it_wrote_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = || output(rust_example("embedded").arg(dir.path().join("data")));
    let first = run();
    assert!(first.contains("run 1 on ") && first.contains("  b\"embedded/run/000001\" at "), "{first}");
    let second = run();
    assert!(second.contains("run 2 on "), "{second}");
    for row in ["000001", "000002"] {
        assert!(second.contains(&format!("  b\"embedded/run/{row}\" at ")), "{second}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_example_puts_gets_scans_and_commits() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python");
    let python = tokio::task::spawn_blocking({
        let source = source.clone();
        move || python(&source.join("requirements.txt"))
    });
    let python = python.await.expect("a Python with grpcio");
    let cluster = Cluster::start(3, 8).await;
    for endpoint in cluster.endpoints() {
        let text = output(Command::new(&python).arg(source.join("kvorum_example.py")).arg(endpoint));
        assert_eq!(
            text,
            "put, got and scanned 100 rows\nmoved a value between two shards in one transaction\n"
        );
    }
    // An error of the store is told by its kind: this node belongs to no cluster.
    let mut alone = Process::new(cluster.dir.path(), "alone");
    alone.join = vec![alone.grpc.clone()];
    alone.start();
    alone.wait_state("waiting").await;
    let mut example = Command::new(&python);
    let failed = example.arg(source.join("kvorum_example.py")).arg(&alone.grpc).output().expect("run");
    let told = String::from_utf8_lossy(&failed.stderr);
    assert!(!failed.status.success(), "it succeeded without a cluster");
    assert!(told.contains("UNAVAILABLE (unavailable): ") && told.contains("cluster init"), "{told}");
}

/// A run of the example of trips, of so many of them.
fn trips(sagas: u32) -> Command {
    let mut trip = rust_example("trip");
    trip.args(["--sagas", &sagas.to_string(), "--fail-percent", "20"]).env_remove("TRIP_BREAK");
    trip
}

#[tokio::test(flavor = "multi_thread")]
async fn trips_are_booked_whole_or_not_at_all_while_everything_is_killed() {
    // It has nodes of its own.
    let _turn = turn().await;
    let mut trip = trips(150);
    trip.args(["--kill", "--kvorum", env!("CARGO_BIN_EXE_kvorum")]);
    let text = tokio::task::spawn_blocking(move || output(&mut trip)).await.expect("it ran");
    assert!(text.contains("\n150 trips in ") && text.ends_with("the books are right\n"), "{text}");
    assert!(!text.contains(", 0 nodes"), "no node was killed: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn trips_with_a_worker_in_python_and_services_with_bugs() {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python/requirements.txt");
    let python =
        tokio::task::spawn_blocking(move || python(&requirements)).await.expect("a Python with grpcio");
    let cluster = Cluster::start(3, 8).await;
    let endpoints = cluster.endpoints().join(",");
    let text = output(trips(60).args(["--endpoints", &endpoints, "--python"]).arg(python));
    assert!(text.contains("\n60 trips in ") && text.ends_with("the books are right\n"), "{text}");
    // The same cluster again. Whatever is wrong with a service, the comparison tells.
    for (bug, told) in
        [("double-pay", "payments: 2, and should be 1"), ("no-cancel", "stand: 1, and should be 0")]
    {
        let mut broken = trips(120);
        // It leaves its ledgers for somebody to look at.
        broken.env("TMPDIR", cluster.dir.path());
        let broken =
            broken.args(["--endpoints", &endpoints]).env("TRIP_BREAK", bug).output().expect("it runs");
        let text = String::from_utf8_lossy(&broken.stdout);
        assert_eq!(broken.status.code(), Some(1), "{bug}: {text}{}", String::from_utf8_lossy(&broken.stderr));
        assert!(text.contains("THE BOOKS ARE WRONG") && text.contains(told), "{bug}: {text}");
    }
}

/// A Python that has what the example needs, in an environment of its own beside the build; made once.
fn python(requirements: &Path) -> PathBuf {
    let wanted = fs::read_to_string(requirements).expect("the requirements");
    let place = build_dir().join("python-example");
    fs::create_dir_all(&place).expect("a directory");
    let lock = File::create(place.join("lock")).expect("a lock file");
    lock.lock().expect("locked");
    let (venv, done) = (place.join("venv"), place.join("installed"));
    let python = venv.join("bin/python");
    if fs::read_to_string(&done).is_ok_and(|installed| installed == wanted) && python.exists() {
        return python;
    }
    let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv).output();
    let told = match made {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(told) = told {
        panic!(
            "`python3 -m venv` does not work here: install Python with it (Debian: apt-get install python3-venv; \
             `scripts/setup` does), then run the test again.\n{told}"
        );
    }
    let install = Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
        .arg(requirements)
        .output()
        .expect("pip runs");
    assert!(
        install.status.success(),
        "grpcio can't be installed into {}: the test needs PyPI, or a pip that is set up for a mirror of it.\n{}",
        venv.display(),
        String::from_utf8_lossy(&install.stderr)
    );
    fs::write(done, wanted).expect("written");
    python
}
