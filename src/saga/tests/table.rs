//! The table of tasks, every cell of it.

use std::fmt::Write as _;

use crate::saga::{Retry, TaskEvent as E, TaskStatus as S, next_status, pause_ms};

fn grid() -> String {
    let mut out = format!("{:<13}", "");
    for status in S::ALL {
        write!(out, "{:<10}", status.name()).expect("writes to a string");
    }
    for event in E::ALL {
        write!(out, "\n{:<13}", event.name()).expect("writes to a string");
        for status in S::ALL {
            let next = next_status(status, event).map_or("-", S::name);
            write!(out, "{next:<10}").expect("writes to a string");
        }
    }
    out.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_cell() {
    insta::assert_snapshot!(grid(), @r##"
                 idle      ready     running   backoff   done      failed    withdrawn
    schedule     ready     -         -         -         -         -         -
    hand out     -         running   -         -         -         -         -
    return       -         -         ready     -         -         -         -
    complete     -         -         done      -         -         -         -
    fail attempt -         -         backoff   -         -         -         -
    fail         -         failed    failed    failed    -         -         -
    due          -         -         -         ready     -         -         -
    withdraw     withdrawn withdrawn withdrawn withdrawn -         -         -
    again        -         -         -         ready     -         ready     -
    resolve      -         -         -         -         -         done      -
    clear        idle      -         -         -         idle      idle      idle
    "##);
}

fn pairs() -> impl Iterator<Item = (S, E, S)> {
    let all = S::ALL.into_iter().flat_map(|status| E::ALL.into_iter().map(move |event| (status, event)));
    all.filter_map(|(status, event)| next_status(status, event).map(|next| (status, event, next)))
}

#[test]
fn what_must_hold_of_the_table() {
    for (status, event, next) in pairs() {
        let said = format!("{status:?} {event:?} {next:?}");
        assert!(status != S::Done || event == E::Clear, "what is done stays so: {said}");
        assert!(status != S::Withdrawn || event == E::Clear, "what is withdrawn stays so: {said}");
        assert!(
            status != S::Running || !matches!(event, E::Due | E::Again | E::Schedule | E::Clear),
            "{said}"
        );
        assert_eq!(next == S::Running, event == E::HandOut, "only a hand-out makes it run: {said}");
        assert!(event != E::HandOut || status == S::Ready, "only what is ready is handed out: {said}");
        assert_eq!(next == S::Done, matches!(event, E::Complete | E::Resolve), "{said}");
        assert!(event != E::Complete || status == S::Running, "only what runs completes: {said}");
        assert!(event != E::Resolve || status == S::Failed, "only what failed is resolved: {said}");
        assert_eq!(next == S::Failed, event == E::Fail, "{said}");
        assert_eq!(next == S::Backoff, event == E::FailAttempt, "{said}");
        assert_eq!(next == S::Withdrawn, event == E::Withdraw, "{said}");
        assert!(next != S::Idle || event == E::Clear, "{said}");
        assert!(event != E::Clear || !matches!(status, S::Ready | S::Running | S::Backoff), "{said}");
    }
}

/// From everywhere it can become ready again, and be done.
#[test]
fn nothing_is_a_dead_end() {
    for from in S::ALL {
        let mut reached = vec![from];
        let mut at = 0;
        while let Some(status) = reached.get(at).copied() {
            at += 1;
            for (_, _, next) in pairs().filter(|(before, _, _)| *before == status) {
                if !reached.contains(&next) {
                    reached.push(next);
                }
            }
        }
        assert!(reached.contains(&S::Done) && reached.contains(&S::Ready), "{from:?}");
    }
}

#[test]
fn pauses_grow_up_to_the_longest() {
    let retry =
        |initial_ms, factor_percent, max_ms| Retry { initial_ms, factor_percent, max_ms, ..Retry::default() };
    let longest = |retry: &Retry, attempt| (0..500).map(|salt| pause_ms(retry, attempt, salt)).max();
    let shown = |retry: &Retry| (1..9).map(|n| longest(retry, n).expect("many")).collect::<Vec<_>>();
    assert_eq!(shown(&retry(1_000, 200, 9_000)), [1_000, 2_000, 4_000, 8_000, 9_000, 9_000, 9_000, 9_000]);
    assert_eq!(shown(&retry(10, 100, 9_000)), [10; 8]);
    assert_eq!(shown(&retry(500, 200, 100)), [100; 8]);
    // However little it grows by, it grows.
    assert_eq!(shown(&retry(1, 101, 5)), [1, 2, 3, 4, 5, 5, 5, 5]);
    assert_eq!(shown(&retry(1, 150, 5)), [1, 2, 3, 4, 5, 5, 5, 5]);
    assert_eq!(longest(&retry(1, 101, 1_000), u32::MAX), Some(1_000));
    assert_eq!(longest(&retry(u64::MAX, 100_000, u64::MAX), 3).map(|ms| ms > u64::MAX / 2), Some(true));
}

#[test]
fn pauses_are_shorter_by_up_to_a_fifth() {
    for initial_ms in [1, 2, 4, 5, 1_000] {
        let retry = Retry { initial_ms, ..Retry::default() };
        let all: Vec<u64> = (0..2_000).map(|salt| pause_ms(&retry, 1, salt)).collect();
        let (least, most) = (all.iter().min().copied(), all.iter().max().copied());
        assert_eq!((least, most), (Some((initial_ms - initial_ms / 5).max(1)), Some(initial_ms)));
    }
}
