//! Simulation of transactions: the real shard machine, oracle, coordinator, recovery and inquiry, in a world
//! of ordered logs, lagging followers, crashes, lost and repeated messages, new leaders and jumping clocks. One
//! seed is one run; the history that clients saw is checked for strict serializability.
//!
//! `scripts/sim` runs as many seeds as wanted; `SEED=n scripts/sim` shows one, step by step.

mod carrier;
mod check;
mod client;
mod config;
mod history;
mod message;
mod rng;
mod shard;
mod time;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kvorum::bugs::Bug;
use world::World;

/// Seeds that every run of the tests goes through.
const SEEDS: u64 = 25_000;
/// Seeds that show a defect which the machines once had, and the bug that brings it back.
const REGRESSIONS: &[(u64, Bug)] = &[
    // A commit that met a lock was given up, and said to be aborted while a copy of it was on its way.
    (21, Bug::GivenUpIsAborted),
];

fn run(seed: u64, traced: bool) -> (Result<(), String>, World) {
    let mut world = World::new(seed, traced);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run().and_then(|()| check::check(&mut world))));
    let result = ended.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(format!("panic: {}", text.unwrap_or_else(|| "no words".into())))
    });
    (result, world)
}

/// The first seed that fails, by number, with what failed, and how many seeds were tried.
fn first_failure(seeds: std::ops::Range<u64>, bug: Option<Bug>) -> (Option<(u64, String)>, u64) {
    let (next, failed, tried) = (AtomicU64::new(seeds.start), AtomicU64::new(u64::MAX), AtomicU64::new(0));
    let found = std::sync::Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                switch_on(bug);
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || seed > failed.load(Ordering::Relaxed) {
                        return;
                    }
                    tried.fetch_add(1, Ordering::Relaxed);
                    if let (Err(error), _) = run(seed, false) {
                        let mut found = found.lock().expect("no thread panics");
                        if seed < failed.fetch_min(seed, Ordering::Relaxed) {
                            *found = Some((seed, error));
                        }
                    }
                }
            });
        }
    });
    (found.into_inner().expect("no thread panics"), tried.into_inner())
}

#[cfg(feature = "sim-bugs")]
fn switch_on(bug: Option<Bug>) {
    kvorum::bugs::set(bug);
}

#[cfg(not(feature = "sim-bugs"))]
fn switch_on(bug: Option<Bug>) {
    assert!(bug.is_none(), "this build has no bugs to switch on: build with the feature sim-bugs");
}

#[test]
fn many_seeds_are_strictly_serializable() {
    let (failure, tried) = first_failure(1..SEEDS + 1, None);
    if let Some((seed, error)) = failure {
        panic!("seed {seed}: {error}\nSEED={seed} scripts/sim shows it");
    }
    assert_eq!(tried, SEEDS);
}

#[test]
fn seeds_that_once_failed_pass() {
    for (seed, _) in REGRESSIONS {
        let (result, _) = run(*seed, false);
        result.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// A change of the worlds that are drawn makes old seeds mean nothing: then others must take their place.
#[cfg(feature = "sim-bugs")]
#[test]
fn seeds_that_once_failed_still_show_what_they_are_kept_for() {
    for (seed, bug) in REGRESSIONS {
        let (failure, _) = first_failure(*seed..seed + 1, Some(*bug));
        assert!(
            failure.is_some(),
            "seed {seed} no longer shows {bug:?}: find another by scripts/sim --bug {bug:?}"
        );
    }
}

/// Each bug is found within the seeds of the suite.
#[cfg(feature = "sim-bugs")]
#[test]
fn every_known_bug_is_found() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for bug in Bug::IN_MACHINES {
        match first_failure(1..SEEDS + 1, Some(bug)) {
            (Some((seed, error)), _) => println!("{bug:?}: seed {seed}: {error}"),
            (None, _) => missed.push(bug),
        }
    }
    drop(std::panic::take_hook());
    assert!(missed.is_empty(), "not found within {SEEDS} seeds: {missed:?}");
}

/// What `scripts/sim` runs: `SIM_START`, `SIM_SEEDS`, `SIM_BUG`, or `SEED` for a trace of one.
#[test]
#[ignore = "run by scripts/sim"]
fn as_asked() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let bug = std::env::var("SIM_BUG").ok().filter(|name| !name.is_empty()).map(|name| {
        let named = Bug::named(&name).filter(|bug| Bug::IN_MACHINES.contains(bug));
        named.unwrap_or_else(|| {
            panic!("there is no bug {name} of the machines; there are {:?}", Bug::IN_MACHINES)
        })
    });
    if let Some(seed) = number("SEED") {
        switch_on(bug);
        return show(seed);
    }
    let (start, seeds) = (number("SIM_START").unwrap_or(1), number("SIM_SEEDS").unwrap_or(SEEDS));
    let begun = Instant::now();
    let (failure, tried) = first_failure(start..start + seeds, bug);
    let seconds = begun.elapsed().as_secs_f64();
    println!("{tried} seeds in {seconds:.1} s, {:.0} a second", tried as f64 / seconds);
    if let Some((seed, error)) = failure {
        println!("seed {seed}: {error}");
        assert!(bug.is_some(), "a seed failed");
    }
}

/// Prints one run, step by step.
fn show(seed: u64) {
    let (result, world) = run(seed, true);
    println!("{:#?}", world.config);
    for line in world.trace.iter().flatten() {
        println!("{line}");
    }
    for (number, operated) in world.history.iter().enumerate() {
        println!("op{number} {operated:?}");
    }
    for (key, versions) in &world.truth {
        println!("{key:?}");
        for version in versions {
            println!("  @{} by X{} {:?}", version.commit_ts, version.id.unique, version.value);
        }
    }
    println!("seed {seed}: {result:?}");
}
