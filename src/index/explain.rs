//! A plan in words, for people who want to know why a query is slow.

use bytes::Bytes;

use super::Plan;
use super::plan::RowKind;
use super::query::joined;
use super::ranges::described;
use crate::types::{Direction, KeyRange};

/// The most ranges that are shown.
const SHOWN_RANGES: usize = 4;

impl Plan {
    /// The plan in words, a line for each thing: the index, the ranges, which conditions they serve, which are checked
    /// on each row, the order, the groups, and whether rows are read besides the index.
    pub fn explain(&self) -> Vec<String> {
        let spec = self.definition.spec();
        let columns: Vec<_> = self.definition.entry_columns().collect();
        let mut lines = vec![format!(
            "index: {} version {}, {} on {}",
            spec.name,
            self.definition.version(),
            spec.kind.name(),
            described(&columns)
        )];
        lines.extend(self.explain_ranges());
        lines.push(format!("served by the range: {}", or_none(joined(&self.served, " and "))));
        let residual: Vec<_> = self.residual().collect();
        lines.push(format!("checked on each row: {}", or_none(joined(&residual, " and "))));
        lines.push(match self.direction {
            Direction::Forward => "order: the index's".into(),
            Direction::Reverse => "order: the reverse of the index's".into(),
        });
        lines.extend(self.explain_groups());
        lines.push(match (self.rows, self.with_rows) {
            (RowKind::Entries, true) => "rows: read one by one, for their values".into(),
            (RowKind::Groups, true) => "rows: not read, since groups have none of their own".into(),
            (_, false) => "rows: not read, the index has it all".into(),
        });
        lines
    }

    fn explain_ranges(&self) -> Vec<String> {
        let what = match self.rows {
            RowKind::Entries => "entries",
            RowKind::Groups => "groups",
        };
        if self.ranges.is_empty() {
            return vec!["range: none, no row can match or all pages are read".into()];
        }
        let whole = KeyRange::prefix(self.layout.header().clone());
        let mut lines: Vec<String> = self
            .ranges
            .iter()
            .take(SHOWN_RANGES)
            .map(|range| match *range == whole {
                true => format!("range: all {what}"),
                false => format!("range: {what} {}", self.show_range(range)),
            })
            .collect();
        if self.ranges.len() > SHOWN_RANGES {
            lines.push(format!("range: and {} more", self.ranges.len() - SHOWN_RANGES));
        }
        lines
    }

    /// The range without the header, which all keys of the index share.
    fn show_range(&self, range: &KeyRange) -> String {
        let show = |bound: &Bytes| match bound.strip_prefix(&self.layout.header()[..]) {
            Some(fields) => format!("\"{}\"", fields.escape_ascii()),
            None => "their end".into(),
        };
        let end = range.end.as_ref().map_or("their end".into(), show);
        format!("from {} up to {end}", show(&range.start))
    }

    fn explain_groups(&self) -> Option<String> {
        let grouping = self.grouping.as_ref()?;
        let on = &self.definition.spec().on;
        let shown: Vec<_> =
            grouping.shown.iter().filter_map(|at| on.get(*at)).map(|field| field.name.as_str()).collect();
        let aggregates: Vec<_> = grouping.aggregates.iter().map(|aggregate| aggregate.name()).collect();
        let by = if shown.is_empty() { "one of all".into() } else { format!("by {}", shown.join(", ")) };
        let read = match (self.rows, grouping.skips) {
            (RowKind::Entries, true) => "one entry read of each value of the index's fields",
            (RowKind::Entries, false) => "every entry read",
            (RowKind::Groups, _) if grouping.fields == on.len() => "one row each",
            (RowKind::Groups, _) => "added up from smaller groups",
        };
        let only = if grouping.min_count > 1 { ", only those of several rows" } else { "" };
        Some(format!("groups: {by}; {}; {read}{only}", aggregates.join(", ")))
    }
}

fn or_none(text: String) -> String {
    if text.is_empty() { "nothing".into() } else { text }
}
