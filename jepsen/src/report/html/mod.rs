//! `report.html`: one file without anything from elsewhere, for a browser in light or dark.

mod anomalies;
mod plots;
mod scale;
mod text;
mod timeline;

use std::fmt::Write;

use super::{CrashTold, Results};
use crate::check::Valid;
use crate::history::History;
use scale::Scale;
use text::{escaped, seconds};

const STYLE: &str = include_str!("style.css");

/// The page about a run and its history.
pub fn page(results: &Results, history: &History) -> String {
    let scale = Scale::of(results, history);
    let parameters = &results.parameters;
    let mut page = String::new();
    let title = format!("{}: {}", parameters.workload, word(results.valid));
    put(
        &mut page,
        format_args!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>{} <span class=\"verdict {}\">{}</span></h1>\n",
            parameters.workload,
            word(results.valid),
            word(results.valid)
        ),
    );
    summary(&mut page, results);
    anomalies::write(&mut page, results, history);
    put(&mut page, format_args!("<h2>Latency and rate</h2>\n{LEGEND}"));
    plots::latency(&mut page, &scale, results, history);
    plots::rate(&mut page, &scale, results, history);
    faults(&mut page, results);
    timeline::write(&mut page, &scale, results, history);
    tables(&mut page, results);
    page.push_str("</body>\n</html>\n");
    page
}

const LEGEND: &str = "<p class=\"legend\"><i class=\"ok\"></i> ok <i class=\"fail\"></i> failed: no effect \
    <i class=\"info\"></i> unknown <i class=\"fault\"></i> a fault is on</p>\n";

/// Adds to the page. Writing into a string does not fail.
fn put(page: &mut String, words: std::fmt::Arguments<'_>) {
    let _ = page.write_fmt(words);
}

fn word(valid: Valid) -> &'static str {
    match valid {
        Valid::Valid => "valid",
        Valid::Invalid => "invalid",
        Valid::Unknown => "unknown",
    }
}

/// What was run and what came of it, in sentences.
fn summary(page: &mut String, results: &Results) {
    let (parameters, total) = (&results.parameters, results.total());
    let meaning = match results.valid {
        Valid::Valid => "A strictly serializable store could have answered everything so.",
        Valid::Invalid => "No strictly serializable store that keeps its promises does what was seen here.",
        Valid::Unknown => "The run says neither that all was right nor that something was wrong.",
    };
    put(page, format_args!("<p>{meaning} {}.</p>\n", parameters.workload.about()));
    let crashed: Vec<String> = results.crashes.iter().map(CrashTold::to_string).collect();
    put(
        page,
        format_args!(
            "<p>{} operations took effect, {} failed without effect, and of {} nobody knows; {} in {} seconds.</p>\n",
            total.ok,
            total.fail,
            total.info,
            results.count_faults(),
            parameters.seconds
        ),
    );
    let words = results.doubts.iter().chain(&results.verdict.notes).chain(&results.notes).chain(&crashed);
    let items: String = words.map(|one| format!("<li>{}</li>", escaped(one))).collect();
    if !items.is_empty() {
        put(page, format_args!("<ul>{items}</ul>\n"));
    }
}

fn faults(page: &mut String, results: &Results) {
    if results.faults.is_empty() {
        return;
    }
    page.push_str("<h2>Faults</h2>\n<table><tr><th>from</th><th>to</th><th>nemesis</th><th>what</th></tr>\n");
    for fault in &results.faults {
        let error = fault.error.as_ref().map(|error| format!(" <b>not done:</b> {}", escaped(error)));
        put(
            page,
            format_args!(
                "<tr><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td><td>{}{}</td></tr>\n",
                seconds(fault.begin_ns),
                seconds(fault.end_ns),
                fault.nemesis,
                escaped(&fault.what),
                error.unwrap_or_default()
            ),
        );
    }
    page.push_str("</table>\n");
}

fn tables(page: &mut String, results: &Results) {
    page.push_str(
        "<h2>Counts</h2>\n<table><tr><th>operation</th><th>ok</th><th>failed</th><th>unknown</th><th>p50 ms</th>\
         <th>p95 ms</th><th>p99 ms</th><th>slowest ms</th></tr>\n",
    );
    for (name, counts) in &results.counts {
        let latency = results.latencies.get(name).copied().unwrap_or_default();
        put(page, format_args!("<tr><td>{name}</td>"));
        for count in [counts.ok, counts.fail, counts.info] {
            put(page, format_args!("<td class=\"n\">{count}</td>"));
        }
        for ms in [latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.max_ms] {
            put(page, format_args!("<td class=\"n\">{ms:.1}</td>"));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n<h2>Parameters</h2>\n<table>\n");
    // Whatever parameters there are: the page shows them as the file has them.
    if let Ok(serde_json::Value::Object(parameters)) = serde_json::to_value(&results.parameters) {
        for (name, value) in parameters {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            put(page, format_args!("<tr><td>{}</td><td>{}</td></tr>\n", escaped(&name), escaped(&value)));
        }
    }
    page.push_str("</table>\n<h2>What the checker worked with</h2>\n<table>\n");
    for (name, count) in &results.verdict.stats {
        put(page, format_args!("<tr><td>{}</td><td class=\"n\">{count}</td></tr>\n", escaped(name)));
    }
    page.push_str("</table>\n");
}

#[cfg(test)]
mod tests;
