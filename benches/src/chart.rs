//! The results as a chart: operations a second, a group of bars for each load.
//!
//! Reads of one shard are left out: they have several bars a system, and what matters of them is who answered and how
//! late the last ones were, which the table says.

use std::fmt::Write;

use crate::report::Results;

const GROUP_WIDTH: f64 = 210.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;

/// A system's bars, in the order in which they stand.
const COLOURS: [(&str, &str); 3] = [("kvorum", "#1f6fb2"), ("etcd", "#d9822b"), ("ceiling", "#b9c2cc")];

/// The chart as an SVG document. The scale is logarithmic, since one client and 256 differ by two orders.
pub fn svg(results: &Results) -> String {
    let mut groups: Vec<(String, Vec<(&str, f64)>)> = Vec::new();
    for (row, cell) in results.cells().filter(|(row, _)| !row.operation.is_of_one_shard()) {
        let (label, system) = (format!("{}, {} clients", row.operation.name(), row.clients), row.system);
        match groups.last_mut() {
            Some((last, bars)) if *last == label => bars.push((system, cell.ops_per_s())),
            _ => groups.push((label, vec![(system, cell.ops_per_s())])),
        }
    }
    let most = groups.iter().flat_map(|(_, bars)| bars).map(|(_, ops)| *ops).fold(10.0, f64::max);
    let decades = most.log10().ceil().max(1.0);
    let whole_width = LEFT + groups.len() as f64 * GROUP_WIDTH + 20.0;
    let plot_height = HEIGHT - TOP - BOTTOM;
    let height_of = |ops: f64| (ops.max(1.0).log10() / decades) * plot_height;

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {whole_width} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{whole_width}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    text(
        &mut out,
        whole_width / 2.0,
        20.0,
        "middle",
        "Operations a second (logarithmic), 256-byte values, three nodes on one machine",
    );
    for decade in 0..=decades as u32 {
        let y = HEIGHT - BOTTOM - f64::from(decade) / decades * plot_height;
        line(&mut out, y, whole_width - 20.0);
        text(&mut out, LEFT - 8.0, y + 4.0, "end", &format!("{}", 10_u64.pow(decade)));
    }
    for (at, (label, bars)) in groups.iter().enumerate() {
        let left = LEFT + at as f64 * GROUP_WIDTH;
        let width = GROUP_WIDTH * 0.8 / COLOURS.len() as f64;
        for (nth, (name, colour)) in COLOURS.iter().enumerate() {
            let Some((_, ops)) = bars.iter().find(|(system, _)| system == name) else { continue };
            let (x, height) = (left + GROUP_WIDTH * 0.1 + nth as f64 * width, height_of(*ops));
            let y = HEIGHT - BOTTOM - height;
            bar(&mut out, (x, y), (width * 0.94, height), colour);
            text(&mut out, x + width / 2.0, y - 4.0, "middle", &short(*ops));
        }
        text(&mut out, left + GROUP_WIDTH / 2.0, HEIGHT - BOTTOM + 18.0, "middle", label);
    }
    for (nth, (name, colour)) in COLOURS.iter().enumerate() {
        let x = LEFT + nth as f64 * 110.0;
        bar(&mut out, (x, HEIGHT - 26.0), (12.0, 12.0), colour);
        text(&mut out, x + 18.0, HEIGHT - 16.0, "start", name);
    }
    out.push_str("</svg>\n");
    out
}

/// A number for the top of a bar.
fn short(ops: f64) -> String {
    match ops {
        10_000.0.. => format!("{:.0}k", ops / 1000.0),
        1000.0.. => format!("{:.1}k", ops / 1000.0),
        _ => format!("{ops:.0}"),
    }
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    // Writing to a String can't fail.
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}

fn line(out: &mut String, y: f64, right: f64) {
    let _ =
        writeln!(out, "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>");
}

fn bar(out: &mut String, (x, y): (f64, f64), (width, height): (f64, f64), colour: &str) {
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
    );
}
