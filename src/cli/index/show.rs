//! Indexes as text and as JSON.

use serde_json::{Map, Value, json};

use crate::cli::output::{self, put_bytes};
use crate::client::{IndexProgress, IndexSpec, IndexStatus};
use crate::rpc::v1::{IndexRecord, IndexVersion};

/// An index as one JSON object.
pub(super) fn record(record: &IndexRecord) -> Value {
    let version = |version: &IndexVersion| {
        let mut object = version.spec.as_ref().map(spec).unwrap_or_default();
        object.insert("version".into(), version.number.into());
        Value::from(object)
    };
    json!({
        "name": record.name,
        "id": record.id,
        "created_ts": record.created_ts,
        "active": record.active.as_ref().map(version),
        "building": record.building.as_ref().map(version),
        "swap_when_built": record.swap_when_built,
        "is_built": record.is_built,
        "doomed": record.doomed,
        "dropped": record.dropped,
        "restarted": record.restarted,
    })
}

fn spec(spec: &IndexSpec) -> Map<String, Value> {
    let mut object = Map::new();
    put_bytes(&mut object, "prefix", &spec.prefix, false);
    object.insert("kind".into(), spec.kind.clone().into());
    object.insert("on".into(), spec.on.clone().into());
    object.insert("measure".into(), spec.measure.clone().into());
    object.insert("covering".into(), spec.covering.clone().into());
    object.insert("missing".into(), spec.missing.clone().into());
    object.insert("on_error".into(), spec.on_error.clone().into());
    object
}

/// How far a version is, as one JSON object.
pub(super) fn progress(progress: &IndexProgress) -> Value {
    let mut object = Map::new();
    object.insert("version".into(), progress.version.into());
    object.insert("state".into(), state(progress).into());
    object.insert("watermark".into(), progress.watermark.into());
    object.insert("scanned_rows".into(), progress.scanned_rows.into());
    object.insert("changed_rows".into(), progress.changed_rows.into());
    object.insert("dead_letters".into(), progress.dead_letters.into());
    object.insert("lag_ms".into(), progress.lag_ms.into());
    object.insert("lag_entries".into(), progress.lag_entries.into());
    object.insert("failing".into(), progress.failing.clone().into());
    if progress.state == "halted" {
        put_bytes(&mut object, "halted_key", &progress.halted_key, false);
        object.insert("halted_ts".into(), progress.halted_ts.into());
        object.insert("halted_reason".into(), progress.halted_reason.clone().into());
    }
    object.into()
}

/// An index and how far it is, as one JSON object.
pub(super) fn status_json(status: &IndexStatus) -> Value {
    let mut object = status.record.as_ref().map(record).unwrap_or_default();
    object["progress"] = status.progress.iter().map(progress).collect::<Vec<_>>().into();
    object
}

fn state(progress: &IndexProgress) -> &str {
    match &*progress.state {
        "" => "waiting",
        state => state,
    }
}

/// How far a version is, in one line.
pub(super) fn line(progress: &IndexProgress) -> String {
    let mut line = format!("version {}: {}", progress.version, state(progress));
    match progress.watermark {
        0 => line.push_str(&format!(", {} rows read", progress.scanned_rows)),
        watermark => {
            line.push_str(&format!(", up to {watermark}"));
            if let Some(ms) = progress.lag_ms {
                line.push_str(&format!(", {:.1} s behind", ms as f64 / 1000.0));
            }
            if let Some(entries) = progress.lag_entries {
                line.push_str(&format!(" ({entries} changes)"));
            }
        }
    }
    if progress.dead_letters > 0 {
        line.push_str(&format!(", {} dead letters", progress.dead_letters));
    }
    if progress.state == "halted" {
        line.push_str(&format!(
            "\n  halted at the row \"{}\": {}",
            progress.halted_key.escape_ascii(),
            progress.halted_reason
        ));
    }
    if !progress.failing.is_empty() {
        line.push_str(&format!("\n  does not go on at the moment: {}", progress.failing));
    }
    line
}

/// An index and how far it is, for people.
pub(super) fn status(status: &IndexStatus) -> String {
    let Some(record) = &status.record else { return String::new() };
    let mut lines = vec![format!("index {}, made at {}", record.name, record.created_ts)];
    for (what, version) in [("answers", &record.active), ("is being built", &record.building)] {
        let Some(IndexVersion { number, spec: Some(spec) }) = version else { continue };
        let what = if what != "answers" && record.is_built { "is built, and held" } else { what };
        lines.push(format!("version {number} {what}: {}", definition(spec)));
    }
    lines.extend(status.progress.iter().map(line));
    if !record.restarted.is_empty() {
        lines.push(format!("it was built anew by itself: {}", record.restarted));
    }
    if record.dropped {
        lines.push("it was dropped; its rows are being cleared away".to_owned());
    }
    lines.join("\n")
}

/// A definition in one line.
fn definition(spec: &IndexSpec) -> String {
    let mut text = format!("{} on {}", spec.kind, spec.on.join(", "));
    if !spec.prefix.is_empty() {
        text.push_str(&format!(" of rows \"{}\"", spec.prefix.escape_ascii()));
    }
    if !spec.measure.is_empty() {
        text.push_str(&format!(", measure {}", spec.measure));
    }
    if !spec.covering.is_empty() {
        text.push_str(&format!(", covering {}", spec.covering.join(", ")));
    }
    text
}

/// Indexes as a table.
pub(super) fn table(indexes: &[IndexRecord]) -> String {
    let mut table = output::table(&["INDEX", "VERSION", "STATE", "DEFINITION"]);
    for record in indexes {
        let shown = record.active.as_ref().or(record.building.as_ref());
        let state = match record {
            IndexRecord { dropped: true, .. } => "dropped",
            IndexRecord { active: None, .. } => "building",
            IndexRecord { building: Some(_), is_built: true, .. } => "held",
            IndexRecord { building: Some(_), .. } => "rebuilding",
            _ => "ready",
        };
        table.add_row([
            record.name.clone(),
            shown.map_or_else(|| "-".to_owned(), |version| version.number.to_string()),
            state.to_owned(),
            shown.and_then(|version| version.spec.as_ref()).map(definition).unwrap_or_default(),
        ]);
    }
    table.to_string()
}
