//! Operations as bars from invocation to completion, one row for each client that works at the same time.

use std::collections::HashSet;

use super::put;
use super::scale::Scale;
use super::text::{class, escaped, told};
use crate::history::{Call, History, Kind};
use crate::report::Results;

/// Operations that are shown at most; the rest is chosen evenly from those that succeeded.
const MOST: usize = 8_000;
const ROW: f64 = 9.0;
const PIXELS_A_SECOND: f64 = 70.0;
/// Wider ones are slow to draw.
const WIDEST: f64 = 30_000.0;

/// The timeline of the whole run. What shows an anomaly is marked.
pub(super) fn write(page: &mut String, scale: &Scale, results: &Results, history: &History) {
    let marked: HashSet<u64> = results.anomalies().flat_map(|anomaly| anomaly.ops.iter().copied()).collect();
    let chosen = chosen(history, &marked);
    let scale = scale.wide((scale.end_ns as f64 / 1e9 * PIXELS_A_SECOND).min(WIDEST));
    let mut inside = String::new();
    let top = scale.bars(&mut inside, results, 4.0) + 6.0;
    let mut bars = String::new();
    let mut rows: Vec<u64> = Vec::new();
    for call in &chosen {
        let (begin_ns, end_ns) = (call.invoke.time_ns, call.complete.map_or(scale.end_ns, |op| op.time_ns));
        let row = rows.iter().position(|free| *free <= begin_ns).unwrap_or_else(|| {
            rows.push(0);
            rows.len() - 1
        });
        rows[row] = end_ns;
        let (x, end) = (scale.x(begin_ns), scale.x(end_ns));
        let mark = if call.indexes().iter().any(|index| marked.contains(index)) { " mark" } else { "" };
        put(
            &mut bars,
            format_args!(
                "<rect class=\"{}{mark}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.0}\"><title>{}</title></rect>",
                class(call.outcome()),
                top + ROW * row as f64,
                (end - x).max(1.5),
                ROW - 2.0,
                escaped(&told(call))
            ),
        );
    }
    let bottom = top + ROW * rows.len() as f64 + 4.0;
    scale.shade(&mut inside, results, top, bottom);
    scale.axis(&mut inside, top, bottom);
    page.push_str(
        "<h2>Timeline</h2>\n<p class=\"dim\">Scroll sideways; point at a bar to see its operation.",
    );
    if chosen.len() < history.pairs().len() {
        put(page, format_args!(" {} of {} operations are shown.", chosen.len(), history.pairs().len()));
    }
    put(
        page,
        format_args!(
            "</p>\n<div class=\"wide\"><svg width=\"{:.0}\" height=\"{:.0}\">{inside}{bars}</svg></div>\n",
            scale.width,
            bottom + 20.0
        ),
    );
}

/// What is marked or did not succeed, and of the rest as many as there is room for.
fn chosen<'a>(history: &'a History, marked: &HashSet<u64>) -> Vec<Call<'a>> {
    let always = |call: &Call<'_>| {
        call.outcome() != Kind::Ok || call.indexes().iter().any(|index| marked.contains(index))
    };
    let needed = history.calls().filter(|call| always(call)).count();
    let others = history.pairs().len() - needed;
    let every = others.div_ceil(MOST.saturating_sub(needed).max(1)).max(1);
    let mut passed = 0;
    let take = |call: &Call<'_>| {
        if always(call) {
            return true;
        }
        passed += 1;
        passed % every == 0
    };
    history.calls().filter(take).take(2 * MOST).collect()
}
