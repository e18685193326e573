//! Latencies as dots, rates as lines.

use super::put;
use super::scale::{LEFT, Scale, WIDTH};
use crate::history::{Call, History, Kind};
use crate::report::Results;

/// Dots that are shown of operations that succeeded; of more, as many are chosen evenly.
const MOST_DOTS: usize = 15_000;
const HEIGHT: f64 = 260.0;
const OUTCOMES: [(Kind, &str); 3] = [(Kind::Ok, "o"), (Kind::Fail, "f"), (Kind::Info, "i")];

/// The fastest and slowest shown, in powers of ten of a millisecond: 0.1 ms and 100 s.
const DECADES: (i32, i32) = (-1, 5);

/// Each operation as a dot: when it was invoked, and how long it took, on a logarithmic scale.
pub(super) fn latency(page: &mut String, scale: &Scale, results: &Results, history: &History) {
    let slowest = history.calls().filter_map(|call| took_ms(&call)).fold(1.0, f64::max);
    let decades = DECADES.1.min(slowest.log10().ceil() as i32).max(1) - DECADES.0;
    let mut inside = String::new();
    let top = scale.bars(&mut inside, results, 4.0) + 6.0;
    let bottom = top + HEIGHT;
    let y = |ms: f64| {
        bottom - HEIGHT * ((ms.log10() - f64::from(DECADES.0)) / f64::from(decades)).clamp(0.0, 1.0)
    };
    scale.shade(&mut inside, results, top, bottom);
    for decade in DECADES.0..=DECADES.0 + decades {
        let ms = 10_f64.powi(decade);
        let name = if ms < 1000.0 { format!("{ms} ms") } else { format!("{} s", ms / 1000.0) };
        line(&mut inside, y(ms), &name);
    }
    scale.axis(&mut inside, top, bottom);
    let every = history.calls().filter(Call::is_ok).count().div_ceil(MOST_DOTS).max(1);
    for (outcome, class) in OUTCOMES {
        let calls = history.calls().filter(|call| call.outcome() == outcome);
        let step = if outcome == Kind::Ok { every } else { 1 };
        let dots = calls.step_by(step).filter_map(|call| {
            let ms = took_ms(&call)?;
            Some(format!("M{:.1} {:.1}h0", scale.x(call.invoke.time_ns), y(ms)))
        });
        put(&mut inside, format_args!("<path class=\"p{class}\" d=\"{}\"/>", dots.collect::<String>()));
    }
    framed(page, bottom + 20.0, &inside);
    if every > 1 {
        put(
            page,
            format_args!("<p class=\"dim\">Of the operations that succeeded every {every}th is shown.</p>\n"),
        );
    }
}

/// How many operations ended in each second, by outcome.
pub(super) fn rate(page: &mut String, scale: &Scale, results: &Results, history: &History) {
    let seconds = (scale.end_ns / 1_000_000_000) as usize + 1;
    let counted = |outcome| {
        let mut counts = vec![0_u32; seconds];
        for call in history.calls().filter(|call| call.outcome() == outcome) {
            let end_ns = call.complete.map_or(call.invoke.time_ns, |op| op.time_ns);
            let second = (end_ns / 1_000_000_000) as usize;
            counts[second.min(seconds - 1)] += 1;
        }
        counts
    };
    let lines = OUTCOMES.map(|(outcome, class)| (counted(outcome), class));
    let most = lines.iter().flat_map(|(counts, _)| counts).copied().max().unwrap_or(0).max(1);
    let (top, bottom) = (8.0, 128.0);
    let y = |count: u32| bottom - (bottom - top) * f64::from(count) / f64::from(most);
    let mut inside = String::new();
    scale.shade(&mut inside, results, top, bottom);
    line(&mut inside, y(0), "0/s");
    line(&mut inside, y(most), &format!("{most}/s"));
    scale.axis(&mut inside, top, bottom);
    for (counts, class) in lines {
        let points = counts.iter().enumerate().map(|(second, count)| {
            format!("{:.1},{:.1} ", scale.x(second as u64 * 1_000_000_000 + 500_000_000), y(*count))
        });
        put(
            &mut inside,
            format_args!("<polyline class=\"l{class}\" points=\"{}\"/>", points.collect::<String>()),
        );
    }
    framed(page, bottom + 20.0, &inside);
}

fn took_ms(call: &Call<'_>) -> Option<f64> {
    let complete = call.complete?;
    Some(complete.time_ns.saturating_sub(call.invoke.time_ns) as f64 / 1e6)
}

fn line(page: &mut String, y: f64, name: &str) {
    put(
        page,
        format_args!(
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{:.0}\" y=\"{:.1}\" \
         text-anchor=\"end\">{name}</text>",
            LEFT - 6.0,
            y + 4.0
        ),
    );
}

fn framed(page: &mut String, height: f64, inside: &str) {
    put(page, format_args!("<svg class=\"fit\" viewBox=\"0 0 {WIDTH} {height:.0}\">{inside}</svg>\n"));
}
