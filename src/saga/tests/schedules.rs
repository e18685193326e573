//! Tests of schedules: what comes of the time, and of people's wishes.

use crate::saga::{Overlap, Plan, Schedule};
use crate::types::ErrorKind;

const HOUR_MS: u64 = 3_600_000;

fn hourly(overlap: Overlap) -> Schedule {
    let plan = Plan { cron: "0 * * * *".to_owned(), saga: "tick".to_owned(), overlap, ..Plan::default() };
    Schedule::new(plan, 1).expect("makes sense")
}

/// What is started at a time, and what is cancelled before.
fn due(schedule: &mut Schedule, now_ms: u64, last_is_open: bool) -> Option<(String, Option<String>)> {
    schedule.due("s", now_ms, last_is_open).expect("makes sense");
    let run = schedule.starting.clone()?;
    schedule.started(&run.id);
    Some((run.id, run.cancels))
}

#[test]
fn what_becomes_of_a_run_while_the_one_before_has_not_ended() {
    for overlap in Overlap::ALL {
        let mut schedule = hourly(overlap);
        assert_eq!(due(&mut schedule, HOUR_MS - 1, false), None);
        let first = due(&mut schedule, HOUR_MS, false).expect("it is time");
        assert_eq!(first, ("s@1970-01-01T01:00:00Z".to_owned(), None));
        assert_eq!(due(&mut schedule, HOUR_MS, true), None, "once");
        let second = due(&mut schedule, 2 * HOUR_MS, true);
        let id = "s@1970-01-01T02:00:00Z".to_owned();
        let (wanted, then) = match overlap {
            Overlap::Skip => (None, None),
            Overlap::Wait => (None, Some((id, None))),
            Overlap::Allow => (Some((id, None)), None),
            Overlap::Cancel => (Some((id, Some(first.0))), None),
        };
        assert_eq!(second, wanted, "{overlap:?}");
        assert_eq!(due(&mut schedule, 2 * HOUR_MS + 1, false), then, "{overlap:?}: it has ended");
        assert_eq!(schedule.skipped, u64::from(overlap == Overlap::Skip));
    }
}

#[test]
fn times_that_nobody_looked_after_are_one_run() {
    let mut schedule = hourly(Overlap::Allow);
    assert!(due(&mut schedule, 9 * HOUR_MS + 5, false).is_some());
    assert_eq!(due(&mut schedule, 9 * HOUR_MS + 6, false), None);
    assert_eq!((schedule.runs, schedule.next_ms), (1, Some(10 * HOUR_MS)));
}

#[test]
fn a_request_for_a_run_counts_once_and_is_not_lost() {
    let mut schedule = hourly(Overlap::Skip);
    schedule.trigger("s", 1, 50).expect("starts");
    schedule.trigger("s", 1, 60).expect("the same");
    let waits = schedule.trigger("s", 2, 60).expect_err("the first is being started");
    assert_eq!(waits.kind, ErrorKind::Unavailable);
    schedule.started("s@1970-01-01T00:00:00.050Z");
    schedule.trigger("s", 1, 70).expect("the same");
    assert_eq!((schedule.runs, schedule.starting.clone()), (1, None));
    schedule.trigger("s", 2, 70).expect("starts");
    assert_eq!(schedule.starting.map(|run| run.id).as_deref(), Some("s@1970-01-01T00:00:00.070Z"));
}

#[test]
fn times_that_a_change_of_clocks_skips_or_repeats() {
    let daily = |cron: &str, after: &str| {
        let plan = Plan {
            cron: cron.to_owned(),
            time_zone: "Europe/Berlin".to_owned(),
            saga: "tick".to_owned(),
            ..Plan::default()
        };
        let ms = |text: &str| {
            chrono::DateTime::parse_from_rfc3339(text).expect("a time").timestamp_millis() as u64
        };
        let next = plan.next_after(ms(after)).expect("makes sense").expect("there is one");
        chrono::DateTime::from_timestamp_millis(next as i64).expect("a time").to_rfc3339()
    };
    // 2026-03-29: from 02:00 to 03:00; 2026-10-25: from 03:00 back to 02:00.
    assert_eq!(daily("30 2 * * *", "2026-03-28T12:00:00Z"), "2026-03-29T01:00:00+00:00");
    assert_eq!(daily("30 2 * * *", "2026-10-24T12:00:00Z"), "2026-10-25T00:30:00+00:00");
    assert_eq!(daily("30 2 * * *", "2026-10-25T00:30:00Z"), "2026-10-26T01:30:00+00:00");
}
