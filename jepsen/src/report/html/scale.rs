//! Where things stand in plots: time from left to right, and faults behind everything.

use super::put;
use super::text::{escaped, seconds};
use crate::history::History;
use crate::report::Results;

/// The width of plots that fit the page.
pub(super) const WIDTH: f64 = 1100.0;
/// Room at the left for the axis, and at the right.
pub(super) const LEFT: f64 = 58.0;
const RIGHT: f64 = 12.0;

/// Times of the run on a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// The last moment, in nanoseconds; never 0.
    pub(super) end_ns: u64,
    /// The whole width, axis included.
    pub(super) width: f64,
}

impl Scale {
    /// All of the history and its faults, as wide as the page.
    pub(super) fn of(results: &Results, history: &History) -> Self {
        let last = history.ops().last().map_or(0, |op| op.time_ns);
        let end_ns = results.faults.iter().map(|fault| fault.end_ns).fold(last, u64::max);
        Self { end_ns: end_ns.max(1), width: WIDTH }
    }

    /// The same times, wider.
    pub(super) fn wide(self, width: f64) -> Self {
        Self { width: width.max(WIDTH), ..self }
    }

    pub(super) fn x(&self, ns: u64) -> f64 {
        LEFT + (self.width - LEFT - RIGHT) * (ns.min(self.end_ns) as f64 / self.end_ns as f64)
    }

    /// Vertical lines with the time below, up to about one each hundred pixels.
    pub(super) fn axis(&self, page: &mut String, top: f64, bottom: f64) {
        let most = ((self.width - LEFT) / 90.0).max(1.0);
        let whole = self.end_ns as f64 / 1e9;
        let steps = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];
        let step = steps.into_iter().find(|step| whole / step <= most).unwrap_or(7200.0);
        let mut at = 0.0;
        while at <= whole {
            let x = self.x((at * 1e9) as u64);
            put(
                page,
                format_args!(
                    "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\"/><text x=\"{x:.1}\" \
                 y=\"{:.0}\" text-anchor=\"middle\">{at} s</text>",
                    bottom + 14.0
                ),
            );
            at = ((at + step) * 10.0).round() / 10.0;
        }
    }

    /// Shades the time of each fault.
    pub(super) fn shade(&self, page: &mut String, results: &Results, top: f64, bottom: f64) {
        for fault in &results.faults {
            let (x, end) = (self.x(fault.begin_ns), self.x(fault.end_ns));
            put(
                page,
                format_args!(
                    "<rect class=\"fault\" x=\"{x:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}: {} ({} to {} \
                 s)</title></rect>",
                    (end - x).max(1.0),
                    bottom - top,
                    fault.nemesis,
                    escaped(&fault.what),
                    seconds(fault.begin_ns),
                    seconds(fault.end_ns)
                ),
            );
        }
    }

    /// A bar with its name for each fault, in as few rows as they need without touching. Returns where they end.
    pub(super) fn bars(&self, page: &mut String, results: &Results, top: f64) -> f64 {
        let mut rows: Vec<f64> = Vec::new();
        for fault in &results.faults {
            let (x, end) = (self.x(fault.begin_ns), self.x(fault.end_ns));
            // A name takes about six pixels a letter.
            let needed = end.max(x + 7.0 * fault.nemesis.name().len() as f64);
            let row = rows.iter().position(|free| *free <= x).unwrap_or_else(|| {
                rows.push(0.0);
                rows.len() - 1
            });
            rows[row] = needed + 4.0;
            let y = top + 18.0 * row as f64;
            put(
                page,
                format_args!(
                    "<rect class=\"bar\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"4\"/><text class=\"name\" \
                 x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                    y + 11.0,
                    (end - x).max(1.0),
                    y + 9.0,
                    fault.nemesis
                ),
            );
        }
        top + 18.0 * rows.len() as f64
    }
}
