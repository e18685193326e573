//! What the choice promises, in simulated time. Each promise is also asked of machines that are broken on
//! purpose, since a test that nothing fails shows nothing.
//!
//! | broken machine | what catches it |
//! |---|---|
//! | [`Variant::Greedy`], the lowest latency | the shares of healthy replicas; the herd of 10,000 clients |
//! | [`Variant::Blind`], any replica | the share of a slowed one; the 99th percentile |
//! | [`Variant::NoEjection`] | the 99th percentile with a slowed replica at 64 reads at a time |
//! | [`Variant::Untold`], to which nodes say nothing | the share of a slowed one, where clients read seldom |
//! | [`Variant::Credulous`], which believes any word | the share of one that a single other lists for ever |
//! | [`Variant::NoProbes`] | the share of a replica that is well again |
//! | probes at intervals that hardly vary | a slowed replica comes back in step with its pauses |
//! | probes of an idle node compared with busy ones, or a bad probe that costs one good one | the same |
//! | a node that is back compared with at once | the same; others are ejected |
//! | a mean latency over answers, not over time | nearly all |
//! | any longer queue loses; a bound of three times at any length | the shares of healthy replicas |

use std::ops::Range;

use super::FailureKind;
use super::model::{Bad, Load, MS, SECOND, Seen, Setup, Variant};
use super::policy::Policy;

/// What each healthy replica serves of all reads, in percent.
const BAND: Range<f64> = 25.0..42.0;
/// The most that a bad replica serves, with probes.
const BAD_SHARE: f64 = 10.0;
/// How long the cluster and its clients may take to find out that a replica is bad, or well again.
const SETTLED_S: u64 = 5;
/// After that replicas that are well again are watched for so long.
const BACK_S: u64 = 4;

/// From 1 to 256 reads at a time a client, with and without so many that they queue.
const CLOSED: [(usize, Load); 5] = [
    (4, Load::Closed(1)),
    (32, Load::Closed(1)),
    (4, Load::Closed(8)),
    (2, Load::Closed(64)),
    (1, Load::Closed(256)),
];
/// From 20 reads a second a client to one.
const OPEN: [(usize, Load); 3] =
    [(100, Load::Open(SECOND / 20)), (1_000, Load::Open(SECOND / 5)), (10_000, Load::Open(SECOND))];

/// Random stalls of every replica that are so far apart, and the seed. With one stall a second a read in eighty
/// falls into one, so that chance decides whether the 99th percentile does; with five a second it does.
const WORLDS: [(u64, u64); 2] = [(SECOND, 1), (SECOND / 5, 2)];

/// What is wrong with a promise that did not hold.
type Held = Result<(), String>;

fn hold(condition: bool, what: impl FnOnce() -> String) -> Held {
    if condition { Ok(()) } else { Err(what()) }
}

/// In each second every replica is within the band, which also bounds what a share may swing.
fn shares_are_even(seen: &Seen, seconds: Range<u64>) -> Held {
    for second in seconds {
        let shares = seen.shares(second..second + 1);
        hold(shares.iter().all(|share| BAND.contains(share)), || format!("second {second}: {shares:.1?}"))?;
    }
    Ok(())
}

/// Replica 1 is bad for a while. From 5 s after each change on the shares are as they should be in every second,
/// and users don't notice; in between nobody runs to one replica. `well` is the same without the bad replica,
/// the same random stalls included.
fn bad_replica_is_left_out_and_comes_back(seen: &Seen, well: &Seen, spell: Range<u64>) -> Held {
    for second in spell.start + SETTLED_S..spell.end {
        let shares = seen.shares(second..second + 1);
        hold(shares[1] < BAD_SHARE, || format!("second {second}: it has {:.1} % of the reads", shares[1]))?;
        let most = shares.iter().copied().fold(0.0, f64::max);
        hold(most < 60.0, || format!("second {second}: {shares:.1?}"))?;
    }
    // Where the 99th percentile lies at the edge of the stalls only many of them have a steady one.
    let while_bad = seen.percentile_us(99, spell.start + SETTLED_S..spell.end);
    let usual = well.percentile_us(99, 2..spell.end);
    hold(while_bad <= 2 * usual, || format!("p99 {usual} us usually, {while_bad} us while one is bad"))?;
    let back = spell.end + SETTLED_S..spell.end + SETTLED_S + BACK_S;
    let [usual, p99] = [well, seen].map(|seen| seen.percentile_us(99, back.clone()));
    hold(p99 <= 2 * usual, || format!("p99 {usual} us usually, {p99} us afterwards"))?;
    let peak = seen.peak_share(1, spell.end..back.end);
    hold(peak < BAND.end, || format!("it comes back to {peak:.1} %"))?;
    let [usual, most] = [well, seen].map(|seen| seen.most_in_10_ms(1..back.end));
    hold(most <= 2 * usual, || format!("at most {usual} reads in 10 ms usually, {most} with a bad one"))?;
    shares_are_even(seen, back)
}

fn healthy(variant: Variant, (clients, load): (usize, Load), hints: bool, together: bool) -> Seen {
    let stalls_us = 200 * MS;
    Setup { hints, stalls_us, stalls_together: together, ..Setup::new(clients, load, 15) }
        .variant(variant)
        .run()
}

/// For how long a replica is slowed: the fewer reads, the longer it takes until chance is out of their 99th
/// percentile.
fn spell((clients, load): (usize, Load)) -> Range<u64> {
    match load {
        Load::Closed(_) => 4..14,
        Load::Open(mean_us) => 4..34 + 300_000 * mean_us / SECOND / clients as u64,
    }
}

/// Replica 1 is frozen for 50 ms in every 100. And the same without that.
fn slowed(variant: Variant, load: (usize, Load), (stalls_us, seed): (u64, u64)) -> [Seen; 2] {
    let spell = spell(load);
    let seconds = spell.end + SETTLED_S + BACK_S;
    let setup = || Setup { stalls_us, seed, ..Setup::new(load.0, load.1, seconds) }.variant(variant);
    [setup().spell(1, spell, Bad::Paused(50 * MS)).run(), setup().run()]
}

fn slowed_is_left_out_and_comes_back(variant: Variant, load: (usize, Load), world: (u64, u64)) -> Held {
    let [seen, well] = slowed(variant, load, world);
    let spell = spell(load);
    shares_are_even(&well, 1..spell.end)?;
    // The others were probes. Of 10,000 clients some have not read since the list came out.
    let users = seen.user_shares(spell.start + SETTLED_S..spell.end)[1];
    let held = bad_replica_is_left_out_and_comes_back(&seen, &well, spell);
    held.and_then(|()| hold(users < 1.0, || format!("it has {users:.2} % of users' reads")))
}

fn test_all(variant: Variant, loads: &[(usize, Load)], worlds: &[(u64, u64)]) {
    for (load, world) in loads.iter().flat_map(|load| worlds.iter().map(move |world| (*load, *world))) {
        slowed_is_left_out_and_comes_back(variant, load, world)
            .unwrap_or_else(|wrong| panic!("{load:?} {world:?}: {wrong}"));
    }
}

#[test]
fn healthy_replicas_share_evenly_in_every_second_although_all_stall() {
    for (load, hints, together) in CLOSED
        .into_iter()
        .chain(OPEN)
        .flat_map(|load| [(true, true), (false, false)].map(|(hints, together)| (load, hints, together)))
    {
        let seen = healthy(Variant::Real, load, hints, together);
        shares_are_even(&seen, 1..15).unwrap_or_else(|wrong| panic!("{load:?} {hints} {together}: {wrong}"));
        // Of those that read 20 times a second some have had bad luck at times.
        let ejected = seen.ejected.iter().map(|pairs| pairs.iter().sum::<usize>()).max().unwrap();
        let most = if matches!(load.1, Load::Open(_)) { load.0 / 8 } else { 0 };
        assert!(ejected <= most, "{load:?}: {ejected} ejected");
    }
    let seen = healthy(Variant::Greedy, CLOSED[2], true, false);
    assert!(shares_are_even(&seen, 1..15).is_err());
}

#[test]
fn healthy_replicas_share_evenly_also_far_beyond_saturation() {
    let seen = healthy(Variant::Real, (4, Load::Closed(256)), true, false);
    shares_are_even(&seen, 1..15).unwrap();
    assert!(seen.ejected.iter().flatten().all(|count| *count == 0));
}

#[test]
fn a_slowed_replica_is_left_out_unnoticed_and_comes_back() {
    test_all(Variant::Real, &CLOSED, &WORLDS);
}

#[test]
fn so_it_is_by_clients_that_each_read_seldom() {
    test_all(Variant::Real, &OPEN, &WORLDS);
}

/// It takes two to three minutes: `cargo test --lib balance -- --ignored`.
#[test]
#[ignore = "the same for many seeds"]
fn so_it_is_whatever_the_seed() {
    let worlds: Vec<(u64, u64)> =
        (1..=12).flat_map(|seed| [SECOND, SECOND / 5].map(|stalls_us| (stalls_us, seed))).collect();
    test_all(Variant::Real, &CLOSED, &worlds);
    test_all(Variant::Real, &OPEN, &worlds);
}

/// What slows a node down need not be a stall that it notices: a client that reads often finds out by itself.
#[test]
fn clients_that_read_often_need_not_be_told() {
    test_all(Variant::Untold, &CLOSED[..4], &WORLDS[..1]);
}

#[test]
fn a_slowed_replica_shows_what_is_wrong_with_broken_machines() {
    for (variant, load, wrong) in [
        (Variant::Blind, CLOSED[3], "of the reads"),
        (Variant::NoEjection, CLOSED[3], "while one is bad"),
        (Variant::NoProbes, CLOSED[3], "second 19: ["),
        (Variant::Greedy, CLOSED[3], "second 1: ["),
        (Variant::Untold, OPEN[2], "of the reads"),
    ] {
        let found = slowed_is_left_out_and_comes_back(variant, load, WORLDS[0]).unwrap_err();
        assert!(found.contains(wrong), "{variant:?} {load:?}: {found}");
    }
}

/// Where a read waits for others for 30 ms. Without the list a pause of 50 ms is no outlier.
#[test]
fn far_beyond_saturation_a_slowed_replica_is_left_out_too() {
    let load = (4, Load::Closed(256));
    let [seen, well] = slowed(Variant::Real, load, WORLDS[0]);
    bad_replica_is_left_out_and_comes_back(&seen, &well, spell(load)).unwrap();
    // Two do what three did: leaving it out costs what the paused one could have done, a fifth.
    assert!(seen.rate(9..14) * 10 > well.rate(2..14) * 6);
}

#[test]
fn one_node_that_lists_a_healthy_one_for_ever_does_not_starve_it() {
    let shares = |variant, (clients, load), mistaken| {
        let setup = Setup { mistaken: Some(mistaken), ..Setup::new(clients, load, 15) };
        setup.variant(variant).run().shares(5..15)
    };
    for load in [CLOSED[0], CLOSED[2], OPEN[0], OPEN[1], OPEN[2]] {
        // Clients that read once a second believe the last that they heard, so that it gets less, but its part.
        let least = if load.0 == OPEN[2].0 { 20.0 } else { BAND.start };
        for mistaken in [1, 2] {
            let shares = shares(Variant::Real, load, (mistaken, vec![1]));
            assert!(shares[1] > least && shares[0] < BAND.end, "{load:?}, {mistaken}: {shares:.1?}");
        }
        let all = shares(Variant::Real, load, (2, vec![0, 1, 2]));
        assert!(all.iter().all(|share| BAND.contains(share)), "{load:?}: {all:.1?}");
    }
    // One that lists all others gets nearly all reads of those that read seldom, but no more than it can serve.
    let setup = Setup { mistaken: Some((2, vec![0, 1])), ..Setup::new(OPEN[2].0, OPEN[2].1, 15) };
    let p99_us = setup.run().percentile_us(99, 5..15);
    assert!(p99_us < 20 * MS, "{p99_us} us");
    let starved = shares(Variant::Credulous, CLOSED[2], (2, vec![1]));
    assert!(starved[1] < 1.0, "{starved:.1?}");
}

#[test]
fn ten_thousand_clients_do_not_run_to_one_replica_at_once() {
    let load = (10_000, Load::Open(SECOND / 2));
    // 20,000 reads a second: 67 in 10 ms for each of three, 100 for each of two.
    let run =
        |variant| Setup::new(load.0, load.1, 24).spell(1, 8..16, Bad::Paused(50 * MS)).variant(variant).run();
    let seen = run(Variant::Real);
    let (healthy, bad) = (seen.most_in_10_ms(1..8), seen.most_in_10_ms(8..24));
    assert!(healthy <= 110 && bad <= 140, "{healthy}, {bad}");
    let greedy = run(Variant::Greedy).most_in_10_ms(1..8);
    assert!(greedy > 140, "{greedy}");
}

#[test]
fn a_replica_that_fails_everything_is_left_out_and_comes_back() {
    for load in [(4, Load::Closed(8)), (2, Load::Closed(64)), OPEN[0]] {
        let well = Setup::new(load.0, load.1, 23).run();
        for kind in [FailureKind::Refused, FailureKind::Lost, FailureKind::Stale, FailureKind::Overloaded] {
            let seen = Setup::new(load.0, load.1, 23).spell(1, 4..14, Bad::Fails(kind)).run();
            let held = bad_replica_is_left_out_and_comes_back(&seen, &well, 4..14);
            // A lost read costs a time-out, of which a client that reads seldom has one in a while.
            let excused = kind == FailureKind::Lost && matches!(load.1, Load::Open(_));
            assert!(held.is_ok() || excused, "{load:?} {kind:?}: {held:?}");
            let failed: u32 = seen.failed[9..14].iter().sum();
            assert!(failed as usize <= 2 * load.0, "{load:?} {kind:?}: {failed} attempts failed");
        }
    }
}

#[test]
fn a_replica_that_cannot_be_reached_costs_seldom_readers_a_second_attempt_at_most() {
    let (clients, load) = OPEN[2];
    let seen = Setup::new(clients, load, 28).spell(1, 8..20, Bad::Fails(FailureKind::Refused)).run();
    let [healthy, bad] = [2..8, 8..20].map(|seconds| seen.percentile_us(99, seconds));
    assert!(bad <= 2 * healthy, "{healthy}, {bad}");
    let failed: u32 = seen.failed[14..20].iter().sum();
    assert!(failed < 6 * 2_500, "{failed}: less than when all went on asking");
    shares_are_even(&seen, 25..28).unwrap();
}

#[test]
fn an_overloaded_replica_serves_what_it_can_and_users_do_not_notice() {
    for load in [(64, Load::Closed(1)), (4, Load::Closed(8)), (2, Load::Closed(64))] {
        let setup = || Setup::new(load.0, load.1, 23);
        let [seen, well] = [setup().spell(1, 4..14, Bad::Limited(2)).run(), setup().run()];
        bad_replica_is_left_out_and_comes_back(&seen, &well, 4..14)
            .unwrap_or_else(|wrong| panic!("{load:?}: {wrong}"));
        let failed: u32 = seen.failed[9..14].iter().sum();
        assert!((failed as usize) < seen.rate(9..14) * 5 / 50, "{load:?}: {failed} were refused");
    }
}

#[test]
fn after_all_replicas_refused_for_a_while_they_share_again_at_once() {
    let mut setup = Setup::new(4, Load::Closed(8), 15);
    for server in 0..3 {
        setup = setup.spell(server, 8..10, Bad::Fails(FailureKind::Stale));
    }
    shares_are_even(&setup.run(), 11..15).unwrap();
}

/// 20 ms where the others take one or two: it gets probes and no users' reads, unless the others have so much
/// to do that they are no faster.
#[test]
fn a_far_replica_serves_only_where_the_near_ones_are_no_faster() {
    let far = |policy, clients, load| {
        let mut setup = Setup { policy, ..Setup::new(clients, load, 15) };
        setup.servers[2].rtt_us = 16 * MS;
        setup.servers[0].is_near = true;
        setup.servers[1].is_near = true;
        setup.run().user_shares(5..15)
    };
    for (clients, load) in [(4, Load::Closed(1)), (4, Load::Closed(8)), (2, Load::Closed(64))] {
        for policy in [Policy::Balanced, Policy::Nearest] {
            let shares = far(policy, clients, load);
            assert!(shares[2] < 1.0 && shares[0] < 55.0, "{load:?} {policy}: {shares:.1?}");
        }
    }
    let shares = far(Policy::Balanced, 4, Load::Closed(256));
    assert!(shares.iter().all(|share| BAND.contains(share)), "{shares:.1?}");
    assert_eq!(far(Policy::Nearest, 4, Load::Closed(256))[2], 0.0);
}
