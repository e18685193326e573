//! Scripts of events, one for each rule.

use super::choice::{Measure, Rule, Scope, Why};
use super::*;
use crate::types::NodeId;

const MS: u64 = 1_000;
const SECOND: u64 = 1_000_000;
const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);

/// `A` leads; `A` and `B` are near.
fn three() -> [Candidate; 3] {
    [A, B, C].map(|node| Candidate { node, is_leader: node == A, is_near: node != C })
}

/// A random number that draws the candidate at the place `first` of those in question, and then the one that
/// is `step` + 1 places after it.
fn random(first: u64, step: u64) -> u64 {
    first << 32 | step
}

fn choose(balancer: &mut Balancer, now_us: u64, random: u64) -> Choice {
    balancer.choose(Policy::Balanced, &three(), &[], now_us, random).expect("a candidate")
}

/// A read at `node` that ends at `now_us`.
fn answer(balancer: &mut Balancer, node: NodeId, now_us: u64, latency_us: u64) {
    balancer.sent(node, now_us.saturating_sub(latency_us));
    balancer.answered(node, now_us, latency_us, 0);
}

fn answer_all(balancer: &mut Balancer, nodes: &[NodeId], now_us: u64, latency_us: u64) {
    nodes.iter().for_each(|node| answer(balancer, *node, now_us, latency_us));
}

fn fail(balancer: &mut Balancer, node: NodeId, now_us: u64, kind: FailureKind) {
    balancer.sent(node, now_us);
    balancer.failed(node, now_us, kind);
}

/// A client that has read at all nodes 100 times a second for two seconds, 1 ms each. It ends at 2 s.
fn seasoned() -> Balancer {
    let mut balancer = Balancer::default();
    for turn in 0..200 {
        let now_us = (turn + 1) * 10 * MS;
        choose(&mut balancer, now_us, turn);
        answer_all(&mut balancer, &[A, B, C], now_us, MS);
    }
    balancer
}

/// Goes on to read every 10 ms, 1 ms at all nodes but those in `slow`, which take 40 ms.
fn go_on(balancer: &mut Balancer, from_us: u64, turns: u64, slow: &[NodeId]) -> u64 {
    for turn in 1..=turns {
        let now_us = from_us + turn * 10 * MS;
        if let Some(node) = choose(balancer, now_us, turn).probe {
            balancer.probed(node, now_us, Probed::Abandoned);
        }
        for node in [A, B, C] {
            answer(balancer, node, now_us, if slow.contains(&node) { 40 * MS } else { MS });
        }
    }
    from_us + turns * 10 * MS
}

fn ejected(balancer: &Balancer, now_us: u64) -> Vec<NodeId> {
    let choice = Choice { node: A, probe: None, why: Why { scope: Scope::All, rule: Rule::Only } };
    let facts = balancer.explain(choice, &three(), now_us).facts;
    facts.iter().filter(|fact| fact.ejected.is_some()).map(|fact| fact.node).collect()
}

/// The first probe that 20 reads from `from_us` on, 10 ms apart, ask for, and when.
fn next_probe(balancer: &mut Balancer, from_us: u64) -> Option<(NodeId, u64)> {
    (1..=20).find_map(|turn| {
        let now_us = from_us + turn * 10 * MS;
        choose(balancer, now_us, 0).probe.map(|node| (node, now_us))
    })
}

#[test]
fn a_policy_has_a_name() {
    for policy in [Policy::Leader, Policy::Balanced, Policy::Nearest] {
        assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
    }
    let message = "fastest".parse::<Policy>().unwrap_err().message;
    assert_eq!(message, "\"fastest\" is no read policy: it must be one of leader, balanced, nearest");
    assert_eq!(Policy::default(), Policy::Balanced);
}

#[test]
fn the_leader_is_asked_unless_it_was_tried_or_is_unknown() {
    let mut balancer = Balancer::default();
    let mut ask = |candidates: &[Candidate], tried: &[NodeId], random| {
        balancer
            .choose(Policy::Leader, candidates, tried, 0, random)
            .map(|choice| (choice.node, choice.why.scope))
    };
    assert_eq!(ask(&three(), &[B, C], 0), Some((A, Scope::Leader)));
    assert_eq!(ask(&three(), &[A], random(0, 0)), Some((B, Scope::Well)));
    assert_eq!(ask(&three(), &[A], random(1, 0)), Some((C, Scope::Well)));
    assert_eq!(ask(&three(), &[A, B], 0), Some((C, Scope::Well)));
    assert_eq!(ask(&three()[1..], &[], random(1, 0)), Some((C, Scope::Well)));
    assert_eq!(ask(&three(), &[A, B, C], random(2, 0)), Some((C, Scope::Again)));
    assert_eq!(ask(&[], &[], 0), None);
}

#[test]
fn where_nothing_is_known_all_are_drawn_alike() {
    let mut balancer = Balancer::default();
    for first in 0..3 {
        for step in 0..2 {
            let choice = choose(&mut balancer, 0, random(first, step));
            let beside = NodeId((first + step + 1) % 3 + 1);
            let why = Why { scope: Scope::Well, rule: Rule::Drawn { beside } };
            assert_eq!(choice, Choice { node: NodeId(first + 1), probe: None, why });
        }
    }
}

#[test]
fn the_nearest_are_those_of_the_zone_and_others_where_none_of_them_is_well() {
    let mut balancer = Balancer::default();
    let ask = |balancer: &mut Balancer, tried: &[NodeId], random| {
        let choice = balancer.choose(Policy::Nearest, &three(), tried, 9, random).unwrap();
        (choice.node, choice.why.scope)
    };
    assert_eq!(ask(&mut balancer, &[], random(1, 0)), (B, Scope::Near));
    assert_eq!(ask(&mut balancer, &[], random(2, 0)), (A, Scope::Near));
    assert_eq!(ask(&mut balancer, &[A], random(0, 0)), (B, Scope::Near));
    assert_eq!(ask(&mut balancer, &[A, B], 0), (C, Scope::Well));
    for node in [A, B] {
        (0..3).for_each(|_| fail(&mut balancer, node, 9, FailureKind::Lost));
    }
    assert_eq!(ask(&mut balancer, &[], 0), (C, Scope::Well));
}

#[test]
fn a_node_that_failed_is_avoided_for_a_second_and_then_for_two() {
    let mut balancer = Balancer::default();
    choose(&mut balancer, 0, 0);
    fail(&mut balancer, A, 0, FailureKind::Refused);
    let why = |scope, rule| Why { scope, rule };
    let better = why(Scope::Well, Rule::Better { than: A, by: Measure::Failures });
    let drawn = why(Scope::Well, Rule::Drawn { beside: B });
    assert_eq!(choose(&mut balancer, SECOND - 1, random(0, 0)), Choice { node: B, probe: None, why: better });
    assert_eq!(choose(&mut balancer, SECOND, random(0, 0)), Choice { node: A, probe: None, why: drawn });
    fail(&mut balancer, A, SECOND, FailureKind::Refused);
    assert_eq!(choose(&mut balancer, 3 * SECOND - 1, random(0, 0)).node, B);
    assert_eq!(choose(&mut balancer, 3 * SECOND, random(0, 0)).node, A);
    // An answer clears it.
    fail(&mut balancer, B, 3 * SECOND, FailureKind::Stale);
    answer(&mut balancer, B, 3 * SECOND, MS);
    assert_eq!(choose(&mut balancer, 3 * SECOND, random(1, 0)).node, B);
}

#[test]
fn three_failures_in_a_row_eject_and_good_probes_bring_back() {
    let mut balancer = seasoned();
    let mut now_us = 2 * SECOND;
    for need in [1, 2, 4] {
        for _ in 0..3 {
            assert!(ejected(&balancer, now_us).is_empty());
            fail(&mut balancer, A, now_us, FailureKind::Lost);
        }
        // One that fails takes all good ones back; one that was not sent says nothing.
        let failed = Probed::Failed(FailureKind::Lost);
        let good = Probed::Answered { latency_us: 300 * MS, load: 0 };
        let mut outcomes = vec![good; need - 1];
        outcomes.extend([Probed::Abandoned, failed]);
        outcomes.extend(vec![good; need]);
        for outcome in outcomes {
            assert_eq!(ejected(&balancer, now_us), [A]);
            let (probe, at_us) = next_probe(&mut balancer, now_us).expect("a probe");
            assert_eq!(probe, A);
            // There is one at a time, and users go elsewhere.
            assert_eq!(next_probe(&mut balancer, at_us), None);
            assert!((0..3).all(|first| choose(&mut balancer, at_us, random(first, 0)).node != A));
            now_us = at_us + 300 * MS;
            balancer.probed(A, now_us, outcome);
        }
        assert!(ejected(&balancer, now_us).is_empty());
    }
}

#[test]
fn failing_most_of_the_time_ejects_too() {
    let mut balancer = seasoned();
    let now_us = 2 * SECOND;
    // Two of three, so never three in a row.
    let turns = (1..200).find(|_| {
        (0..2).for_each(|_| fail(&mut balancer, A, now_us, FailureKind::Overloaded));
        let is_ejected = !ejected(&balancer, now_us).is_empty();
        answer(&mut balancer, A, now_us, MS);
        is_ejected
    });
    assert!((5..15).contains(&turns.unwrap()), "{turns:?}");
}

#[test]
fn where_all_are_ejected_there_is_a_choice_and_users_reads_are_the_probes() {
    let mut balancer = seasoned();
    let now_us = 2 * SECOND;
    for node in [A, B, C] {
        (0..3).for_each(|_| fail(&mut balancer, node, now_us, FailureKind::Stale));
    }
    assert_eq!(ejected(&balancer, now_us), [A, B, C]);
    let choice = choose(&mut balancer, now_us, random(1, 0));
    assert_eq!((choice.node, choice.why.scope), (B, Scope::Untried));
    answer(&mut balancer, B, now_us + 30 * MS, MS);
    let choice = choose(&mut balancer, now_us + 30 * MS, 0);
    assert_eq!((choice.node, choice.why), (B, Why { scope: Scope::Well, rule: Rule::Only }));
}

#[test]
fn a_node_that_owes_an_answer_is_not_asked_until_it_gave_one() {
    let mut balancer = seasoned();
    choose(&mut balancer, 2 * SECOND, 0);
    balancer.sent(A, 2 * SECOND);
    // Four times 1 ms and 2 ms.
    assert_eq!(choose(&mut balancer, 2 * SECOND + 6 * MS, random(0, 0)).node, A);
    let choice = choose(&mut balancer, 2 * SECOND + 6 * MS + 1, random(0, 0));
    assert_eq!((choice.node, choice.why.rule), (B, Rule::Better { than: A, by: Measure::Waiting }));
    balancer.answered(A, 2 * SECOND + 7 * MS, 7 * MS, 0);
    assert_eq!(choose(&mut balancer, 2 * SECOND + 7 * MS, random(0, 0)).node, A);
}

#[test]
fn an_outlier_is_ejected_but_not_two_of_three() {
    let mut balancer = seasoned();
    let now_us = go_on(&mut balancer, 2 * SECOND, 20, &[B]);
    assert_eq!(ejected(&balancer, now_us), [B]);
    let now_us = go_on(&mut balancer, now_us, 100, &[B, C]);
    assert_eq!(ejected(&balancer, now_us), [B]);
    assert_eq!(choose(&mut balancer, now_us, random(1, 0)).node, A);
}

#[test]
fn two_slow_answers_or_many_in_one_stall_eject_nobody() {
    let mut balancer = seasoned();
    let mut now_us = go_on(&mut balancer, 2 * SECOND, 1, &[B]);
    now_us = go_on(&mut balancer, now_us + SECOND, 1, &[B]);
    assert!(ejected(&balancer, now_us).is_empty());
    // Forty that were sent together and answered together.
    (0..40).for_each(|_| answer(&mut balancer, C, now_us, 400 * MS));
    choose(&mut balancer, now_us, 0);
    assert!(ejected(&balancer, now_us).is_empty());
}

#[test]
fn all_being_slow_ejects_nobody() {
    let mut balancer = seasoned();
    let now_us = go_on(&mut balancer, 2 * SECOND, 300, &[A, B, C]);
    assert!(ejected(&balancer, now_us).is_empty());
}

#[test]
fn one_that_reads_seldom_ejects_nobody_for_latency_but_remembers() {
    let mut balancer = Balancer::default();
    let mut now_us = SECOND;
    for turn in 0..30 {
        now_us += SECOND;
        choose(&mut balancer, now_us, turn);
        answer_all(&mut balancer, &[A, C], now_us, MS);
        answer(&mut balancer, B, now_us, 40 * MS);
    }
    assert!(ejected(&balancer, now_us).is_empty());
    let choice = choose(&mut balancer, now_us, random(1, 0));
    assert_eq!((choice.node, choice.why.rule), (C, Rule::Better { than: B, by: Measure::Latency }));
    // Two seconds make 40 ms 20: after six they are 5, which is no longer an outlier's.
    assert_eq!(choose(&mut balancer, now_us + 5 * SECOND, random(1, 0)).node, C);
    assert_eq!(choose(&mut balancer, now_us + 6 * SECOND, random(1, 0)).node, B);
}

#[test]
fn a_slow_node_needs_a_run_of_good_probes_and_a_longer_one_each_time() {
    let mut balancer = seasoned();
    let mut now_us = 2 * SECOND;
    for need in [12, 18, 24, 24] {
        now_us = go_on(&mut balancer, now_us, 30, &[B]);
        assert_eq!(ejected(&balancer, now_us), [B]);
        let began_us = now_us;
        let mut probes = 0;
        while !ejected(&balancer, now_us).is_empty() {
            let (probe, at_us) = next_probe(&mut balancer, now_us).expect("a probe");
            assert_eq!(probe, B);
            now_us = at_us + 2 * MS;
            answer_all(&mut balancer, &[A, C], now_us, MS);
            balancer.probed(B, now_us, Probed::Answered { latency_us: 2 * MS, load: 0 });
            probes += 1;
        }
        // Or after three seconds without a bad one.
        assert!(probes == need || probes < need && now_us - began_us >= 3 * SECOND, "{probes}");
        assert!(now_us - began_us < 4 * SECOND);
    }
    // Each half minute of being well takes one step back.
    now_us = go_on(&mut balancer, now_us, 9_500, &[]);
    now_us = go_on(&mut balancer, now_us, 30, &[B]);
    let choice = choose(&mut balancer, now_us, 0);
    let facts = balancer.explain(choice, &three(), now_us).facts;
    assert_eq!(facts[1].ejected.map(|ejection| ejection.need), Some(12));
}

#[test]
fn a_bad_probe_costs_eight_good_ones() {
    let mut balancer = seasoned();
    let mut now_us = go_on(&mut balancer, 2 * SECOND, 30, &[B]);
    let runs = [1, 1, 1, 1, 1, 1, 1, 1, 1, 40, 1].map(|latency_ms| {
        let (_, at_us) = next_probe(&mut balancer, now_us).expect("a probe");
        now_us = at_us + latency_ms * MS;
        balancer.probed(B, now_us, Probed::Answered { latency_us: latency_ms * MS, load: 0 });
        let choice = choose(&mut balancer, now_us, 0);
        balancer.explain(choice, &three(), now_us).facts[1].ejected.expect("ejected").run
    });
    assert_eq!(runs, [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]);
}

#[test]
fn probes_are_few_and_one_that_is_never_reported_is_given_up() {
    let mut balancer = seasoned();
    let now_us = go_on(&mut balancer, 2 * SECOND, 30, &[B]);
    // 1,000 reads a second for a second, each probe answered at once.
    let probes = (1..=1000).filter(|turn| {
        let now_us = now_us + turn * MS;
        let choice = choose(&mut balancer, now_us, turn * 7_919);
        choice.probe.into_iter().for_each(|node| balancer.probed(node, now_us, Probed::Abandoned));
        choice.probe.is_some()
    });
    let probes = probes.count();
    assert!((6..=20).contains(&probes), "{probes}");
    let (_, at_us) = next_probe(&mut balancer, now_us + SECOND).expect("a probe");
    assert_eq!(next_probe(&mut balancer, at_us + 9 * SECOND), None);
    assert!(next_probe(&mut balancer, at_us + 10 * SECOND).is_some());
    // A read that is tried again asks for none, nor does one that goes to the leader.
    let later_us = at_us + 30 * SECOND;
    for (policy, tried) in [(Policy::Balanced, &[C][..]), (Policy::Leader, &[])] {
        assert_eq!(
            balancer.choose(policy, &three(), tried, later_us, 0).and_then(|choice| choice.probe),
            None
        );
    }
}

#[test]
fn a_node_that_comes_back_idle_makes_no_outliers_of_busy_ones() {
    let mut balancer = Balancer::default();
    let turn = |balancer: &mut Balancer, now_us, others_ms: u64, b_ms: u64| {
        choose(balancer, now_us, 0);
        answer_all(balancer, &[A, C], now_us, others_ms * MS);
        answer(balancer, B, now_us, b_ms * MS);
    };
    (1..200).for_each(|step| turn(&mut balancer, step * 10 * MS, 30, 30));
    (200..300).for_each(|step| turn(&mut balancer, step * 10 * MS, 30, 200));
    assert_eq!(ejected(&balancer, 3 * SECOND), [B]);
    let back = (300..1000).find(|step| {
        turn(&mut balancer, step * 10 * MS, 30, 1);
        ejected(&balancer, step * 10 * MS).is_empty()
    });
    let back = back.expect("it comes back");
    (back..back + 90).for_each(|step| turn(&mut balancer, step * 10 * MS, 30, 1));
    assert!(ejected(&balancer, (back + 90) * 10 * MS).is_empty());
    let choice = choose(&mut balancer, (back + 90) * 10 * MS, random(0, 0));
    assert_eq!((choice.node, choice.why.rule), (A, Rule::Drawn { beside: B }));
}

#[test]
fn a_queue_three_times_as_long_and_eight_more_is_avoided() {
    let mut balancer = Balancer::default();
    choose(&mut balancer, 0, 0);
    balancer.sent(B, 0);
    (0..11).for_each(|_| balancer.sent(A, 0));
    assert_eq!(choose(&mut balancer, 0, random(0, 0)).node, A);
    balancer.sent(A, 0);
    let choice = choose(&mut balancer, 0, random(0, 0));
    assert_eq!((choice.node, choice.why.rule), (B, Rule::Better { than: A, by: Measure::Queue }));
    // What the node itself says counts as well, for a while.
    balancer.sent(C, 0);
    balancer.answered(C, 0, MS, 60);
    assert_eq!(choose(&mut balancer, 0, random(2, 0)).node, A);
    assert_eq!(choose(&mut balancer, 0, random(2, 1)).node, B);
    assert_eq!(choose(&mut balancer, 6 * SECOND, random(2, 1)).node, C);
}

#[test]
fn a_dropped_call_is_not_under_way_and_its_wait_counts() {
    let mut balancer = seasoned();
    let now_us = 2 * SECOND;
    choose(&mut balancer, now_us, 0);
    (0..50).for_each(|_| balancer.sent(A, now_us));
    (0..50).for_each(|_| balancer.abandoned(A, now_us, 0));
    let fact = |balancer: &mut Balancer, now_us| {
        let choice = choose(balancer, now_us, 0);
        balancer.explain(choice, &three(), now_us).facts[0].clone()
    };
    let at_once = fact(&mut balancer, now_us);
    assert_eq!((at_once.in_flight, at_once.waited_us, at_once.latency_us), (0, 0, Some(MS)));
    balancer.abandoned(A, now_us, 0);
    assert_eq!(fact(&mut balancer, now_us).in_flight, 0);
    // Half a second was waited in vain: the mean over a second knows.
    balancer.sent(A, now_us);
    balancer.abandoned(A, now_us + SECOND / 2, SECOND / 2);
    assert!(fact(&mut balancer, now_us + SECOND / 2).latency_us > Some(100 * MS));
}

#[test]
fn a_silent_node_is_ejected_if_others_answer() {
    let mut held_up = seasoned();
    choose(&mut held_up, 2 * SECOND, 0);
    held_up.sent(A, 2 * SECOND);
    let mut silent = held_up.clone();
    let now_us = 3 * SECOND;
    // The whole client was held up: it has not heard of anybody.
    for turn in 0..30 {
        choose(&mut held_up, now_us, turn);
    }
    assert!(ejected(&held_up, now_us).is_empty());
    for turn in 1..=100 {
        let now_us = 2 * SECOND + turn * 10 * MS;
        choose(&mut silent, now_us, turn);
        answer_all(&mut silent, &[B, C], now_us, MS);
    }
    assert_eq!(ejected(&silent, now_us), [A]);
}

#[test]
fn what_is_no_longer_in_the_map_is_forgotten() {
    let mut balancer = seasoned();
    balancer.sent(B, 2 * SECOND);
    balancer.retain(&[A, C]);
    assert_eq!(balancer.nodes.keys().copied().collect::<Vec<_>>(), [A, C]);
    balancer.answered(B, 2 * SECOND, MS, 9);
    balancer.failed(B, 2 * SECOND, FailureKind::Lost);
    balancer.probed(B, 2 * SECOND, Probed::Abandoned);
    assert_eq!(balancer.nodes.len(), 2);
}

/// Replies of a client that reads `gap_us` apart, each of which lists what is given. Answers with the end.
fn tell(balancer: &mut Balancer, from_us: u64, gap_us: u64, lists: &[&[NodeId]]) -> u64 {
    let mut now_us = from_us;
    for slow in lists {
        now_us += gap_us;
        balancer.told_slow(slow, now_us);
    }
    now_us
}

fn is_spared(balancer: &Balancer, node: NodeId, now_us: u64) -> bool {
    balancer.nodes[&node].is_spared(now_us)
}

#[test]
fn a_node_that_the_cluster_finds_slow_is_spared_until_a_reply_says_otherwise() {
    let mut balancer = seasoned();
    balancer.told_slow(&[B], 3 * SECOND);
    let why = Why { scope: Scope::Well, rule: Rule::Better { than: B, by: Measure::Spared } };
    let choice = choose(&mut balancer, 3 * SECOND, random(1, 0));
    assert_eq!((choice.node, choice.why), (C, why));
    // It is never the second of two that are drawn either.
    let beside_a = [0, 1, 2, 3].map(|step| choose(&mut balancer, 3 * SECOND, random(0, step)).why.rule);
    assert_eq!(beside_a, [Rule::Drawn { beside: C }; 4]);
    assert!(is_spared(&balancer, B, 13 * SECOND - 1) && !is_spared(&balancer, B, 13 * SECOND));
    // One word, a second later, ends it, and begins it again.
    balancer.told_slow(&[], 4 * SECOND);
    assert_eq!(choose(&mut balancer, 4 * SECOND, random(1, 0)).node, B);
    balancer.told_slow(&[B], 5 * SECOND);
    assert_eq!(choose(&mut balancer, 5 * SECOND, random(1, 0)).node, C);
    // What nobody reads at is not kept.
    balancer.told_slow(&[NodeId(9)], 5 * SECOND);
    assert_eq!(balancer.nodes.len(), 3);
}

#[test]
fn one_node_of_three_that_is_wrong_changes_nothing_for_a_client_that_reads_often() {
    // One lists B for ever, two don't: whether it answers every third read, or every second one since B is spared.
    for turn in [&[&[B][..], &[], &[]][..], &[&[B], &[]]] {
        let mut balancer = seasoned();
        let mut now_us = tell(&mut balancer, 2 * SECOND, 10 * MS, &[&[][..]; 100]);
        for _ in 0..100 {
            for list in turn {
                now_us = tell(&mut balancer, now_us, 10 * MS, &[list]);
                assert!(!is_spared(&balancer, B, now_us));
            }
        }
    }
    // One never does: the client's own figures have to do, and it does not change its mind all the time.
    let mut balancer = seasoned();
    let mut now_us = tell(&mut balancer, 2 * SECOND, 10 * MS, &[&[][..]; 100]);
    for _ in 0..100 {
        now_us = tell(&mut balancer, now_us, 10 * MS, &[&[B], &[B], &[]]);
        assert!(!is_spared(&balancer, B, now_us));
    }
    // All do, and then none does: that is believed within half a second.
    let lists = [[&[B][..]; 50], [&[][..]; 50]];
    let believed = lists.map(|lists| {
        now_us = tell(&mut balancer, now_us, 10 * MS, &lists);
        is_spared(&balancer, B, now_us)
    });
    assert_eq!(believed, [true, false]);
}

#[test]
fn a_spared_node_is_asked_where_others_failed_were_tried_or_are_spared_too() {
    let mut balancer = seasoned();
    balancer.told_slow(&[B, C], 3 * SECOND);
    let ask = |balancer: &mut Balancer, tried: &[NodeId], random| {
        balancer.choose(Policy::Balanced, &three(), tried, 3 * SECOND, random).map(|choice| choice.node)
    };
    assert_eq!([0, 1, 2].map(|first| ask(&mut balancer, &[], random(first, 0))), [Some(A); 3]);
    assert_eq!([0, 1].map(|first| ask(&mut balancer, &[A], random(first, 0))), [Some(B), Some(C)]);
    // Where most are spared the one that is left is not buried in reads.
    let mut busy = balancer.clone();
    (0..12).for_each(|_| busy.sent(A, 3 * SECOND));
    let choice = choose(&mut busy, 3 * SECOND, random(0, 0));
    assert_eq!((choice.node, choice.why.rule), (B, Rule::Better { than: A, by: Measure::Queue }));
    busy.told_slow(&[B], 3 * SECOND);
    busy.told_slow(&[B], 3 * SECOND);
    busy.told_slow(&[B], 3 * SECOND);
    assert!(!is_spared(&busy, C, 3 * SECOND) && is_spared(&busy, B, 3 * SECOND));
    let choice = choose(&mut busy, 3 * SECOND, random(1, 0));
    assert_eq!((choice.node, choice.why.rule), (C, Rule::Better { than: B, by: Measure::Spared }));
    fail(&mut balancer, A, 3 * SECOND, FailureKind::Overloaded);
    let choice = choose(&mut balancer, 3 * SECOND, random(0, 0));
    assert_eq!((choice.node, choice.why.rule), (B, Rule::Better { than: A, by: Measure::Failures }));
    balancer.told_slow(&[A, B, C], 4 * SECOND);
    assert_eq!([0, 1, 2].map(|first| choose(&mut balancer, 4 * SECOND, random(first, 0)).node), [A, B, C]);
}

#[test]
fn a_client_leaves_its_zone_for_a_node_that_need_not_be_spared() {
    let mut balancer = seasoned();
    let mut ask = |slow: &[NodeId], random| {
        balancer.told_slow(slow, 3 * SECOND);
        let choice = balancer.choose(Policy::Nearest, &three(), &[], 3 * SECOND, random).expect("a node");
        balancer = seasoned();
        (choice.node, choice.why.scope)
    };
    assert_eq!([0, 1].map(|first| ask(&[], random(first, 0))), [(A, Scope::Near), (B, Scope::Near)]);
    assert_eq!([0, 1].map(|first| ask(&[B], random(first, 0))), [(A, Scope::Near); 2]);
    assert_eq!([0, 1, 2].map(|first| ask(&[A, B], random(first, 0))), [(C, Scope::Well); 3]);
    assert_eq!([0, 1].map(|first| ask(&[A, B, C], random(first, 0))), [(A, Scope::Near), (B, Scope::Near)]);
}

#[test]
fn a_choice_can_be_explained() {
    let mut balancer = seasoned();
    let now_us = go_on(&mut balancer, 2 * SECOND, 30, &[B]);
    fail(&mut balancer, C, now_us, FailureKind::Overloaded);
    balancer.told_slow(&[C], now_us);
    let choice = choose(&mut balancer, now_us, random(1, 0));
    let explanation = balancer.explain(choice, &three(), now_us);
    let text = explanation.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "node 1: of the replicas that are well, node 3 was drawn too but failed lately");
    assert_eq!(lines[1], "  node 1, leader, this zone: 1.0 ms, 0 reads under way of which 0 own");
    assert!(lines[2].starts_with("  node 2, this zone: "), "{text}");
    assert!(lines[2].contains("; ejected "), "{text}");
    assert!(
        lines[2].ends_with("where the others would allow 6.0 ms; back after 12 good probes, 0 so far"),
        "{text}"
    );
    assert_eq!(
        lines[3],
        "  node 3: 1.0 ms, 0 reads under way of which 0 own, 1 failures in a row, avoided for 1000.0 ms, \
         the cluster finds it slow: spared for 10000.0 ms"
    );
    answer(&mut balancer, C, now_us, MS);
    let choice = choose(&mut balancer, now_us, random(1, 0));
    assert!(
        balancer.explain(choice, &three(), now_us).to_string().starts_with(
            "node 1: of the replicas that are well, node 3 was drawn too but is spared, as the cluster finds it slow\n"
        )
    );
}
