//! What is wrong, each with the operations that show it.

use super::put;
use super::scale::WIDTH;
use super::text::{class, escaped, seconds, told};
use crate::check::Anomaly;
use crate::history::{Call, History};
use crate::report::Results;

/// Operations of one anomaly that are drawn at most.
const MOST: usize = 30;
const ROW: f64 = 34.0;

/// All anomalies, in words and as small timelines.
pub(super) fn write(page: &mut String, results: &Results, history: &History) {
    let count = results.anomalies().count();
    if count == 0 {
        return;
    }
    put(page, format_args!("<h2>What is wrong ({count})</h2>\n"));
    for anomaly in results.anomalies() {
        put(
            page,
            format_args!(
                "<section><h3>{}</h3><pre>{}</pre>\n",
                escaped(&anomaly.name),
                escaped(&anomaly.explanation)
            ),
        );
        draw(page, anomaly, history);
        page.push_str("</section>\n");
    }
}

/// The operations of an anomaly below each other, as wide as their time together.
fn draw(page: &mut String, anomaly: &Anomaly, history: &History) {
    let calls: Vec<Call<'_>> = history
        .calls()
        .filter(|call| call.indexes().iter().any(|index| anomaly.ops.contains(index)))
        .collect();
    let shown = &calls[..calls.len().min(MOST)];
    let Some(first) = shown.first() else { return };
    let begin_ns = first.invoke.time_ns;
    let known_end = shown.iter().filter_map(|call| call.complete).map(|op| op.time_ns).max();
    let end_ns = known_end.unwrap_or(begin_ns).max(begin_ns + 1000);
    let x =
        |ns: u64| 10.0 + (WIDTH - 20.0) * ((ns.min(end_ns) - begin_ns) as f64 / (end_ns - begin_ns) as f64);
    let height = ROW * shown.len() as f64 + 18.0;
    put(page, format_args!("<svg class=\"fit\" viewBox=\"0 0 {WIDTH} {height:.0}\">"));
    for (row, call) in shown.iter().enumerate() {
        let y = ROW * row as f64;
        let (from, to) = (x(call.invoke.time_ns), x(call.complete.map_or(end_ns, |op| op.time_ns)));
        put(
            page,
            format_args!(
                "<text class=\"name\" x=\"10\" y=\"{:.0}\">{}</text><rect class=\"{}\" x=\"{from:.1}\" y=\"{:.0}\" \
             width=\"{:.1}\" height=\"9\"/>",
                y + 13.0,
                escaped(&told(call)),
                class(call.outcome()),
                y + 18.0,
                (to - from).max(2.0)
            ),
        );
    }
    put(
        page,
        format_args!(
            "<text x=\"10\" y=\"{0:.0}\">{1} s</text><text x=\"{2:.0}\" y=\"{0:.0}\" text-anchor=\"end\">{3} s</text></svg>\n",
            height - 4.0,
            seconds(begin_ns),
            WIDTH - 10.0,
            seconds(end_ns)
        ),
    );
    if calls.len() > MOST {
        put(page, format_args!("<p class=\"dim\">{} of {} operations are shown.</p>\n", MOST, calls.len()));
    }
}
