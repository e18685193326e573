//! How the keys are cut into shards, as far as anybody knows: a shard map may be out of date, so that nothing
//! here relies on it being right. A part that went to the wrong place comes back, and is cut again.

use bytes::Bytes;

use crate::types::{KeyRange, TxnPart};

/// A cut of all keys into ranges.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Cut(Vec<KeyRange>);

impl Cut {
    /// The cut that a shard map shows. Gaps count as shards of their own, and of ranges that overlap the
    /// later one is clipped: so every key lies in one range, whatever the map says.
    pub(super) fn new(shards: &[KeyRange]) -> Self {
        let mut known: Vec<&KeyRange> = shards.iter().filter(|range| !range.is_empty()).collect();
        known.sort_unstable_by(|a, b| a.start.cmp(&b.start));
        let mut cut = Vec::with_capacity(known.len());
        // Where what is not yet cut begins; `None` when nothing is left.
        let mut next = Some(Bytes::new());
        for range in known {
            let Some(from) = next.take() else { break };
            if range.end.as_ref().is_some_and(|end| *end <= from) {
                next = Some(from);
                continue;
            }
            if range.start > from {
                cut.push(KeyRange::new(from.clone(), Some(range.start.clone())));
            }
            cut.push(KeyRange::new(range.start.clone().max(from), range.end.clone()));
            next.clone_from(&range.end);
        }
        cut.extend(next.map(|from| KeyRange::new(from, None)));
        Self(cut)
    }

    /// The parts of a transaction, one for each shard that it touches.
    pub(super) fn parts(&self, whole: &TxnPart) -> Vec<TxnPart> {
        self.0.iter().map(|range| whole.within(range)).filter(|part| !part.is_empty()).collect()
    }

    /// The pieces of a span, one for each shard that it touches.
    pub(super) fn pieces(&self, span: &KeyRange) -> Vec<KeyRange> {
        self.0.iter().filter_map(|range| range.intersect(span)).collect()
    }

    /// The spans that hold the keys, one for each shard that holds any.
    pub(super) fn spans(&self, keys: &[Bytes]) -> Vec<KeyRange> {
        let whole = TxnPart { reads: keys.to_vec(), ..TxnPart::default() };
        self.parts(&whole).iter().filter_map(TxnPart::span).collect()
    }

    /// The shard of a key.
    pub(super) fn shard_of(&self, key: &[u8]) -> KeyRange {
        // There is always one: the cut holds every key.
        self.0.iter().find(|range| range.contains(key)).cloned().unwrap_or_else(KeyRange::all)
    }
}

/// What is left of a span without a range of it: nothing, or one or two ends.
pub(super) fn without(span: &KeyRange, covered: &KeyRange) -> Vec<KeyRange> {
    let before = KeyRange::new(Bytes::new(), Some(covered.start.clone()));
    let after = covered.end.clone().map(|end| KeyRange::new(end, None));
    [Some(before), after].into_iter().flatten().filter_map(|rest| span.intersect(&rest)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(start, (!end.is_empty()).then(|| end.into()))
    }

    #[test]
    fn every_key_lies_in_one_range_whatever_the_map_says() {
        let cut = |shards: &[KeyRange]| Cut::new(shards).0;
        assert_eq!(cut(&[]), [range("", "")]);
        assert_eq!(cut(&[range("m", ""), range("", "m")]), [range("", "m"), range("m", "")]);
        assert_eq!(cut(&[range("b", "d")]), [range("", "b"), range("b", "d"), range("d", "")]);
        assert_eq!(
            cut(&[range("", "m"), range("c", "d"), range("k", "p"), range("x", "x")]),
            [range("", "m"), range("m", "p"), range("p", "")]
        );
    }

    #[test]
    fn what_is_left_of_a_span() {
        let span = range("c", "p");
        assert_eq!(without(&span, &range("a", "z")), []);
        assert_eq!(without(&span, &range("", "")), []);
        assert_eq!(without(&span, &range("c", "f")), [range("f", "p")]);
        assert_eq!(without(&span, &range("f", "")), [range("c", "f")]);
        assert_eq!(without(&span, &range("f", "g")), [range("c", "f"), range("g", "p")]);
        assert_eq!(without(&span, &range("x", "")), std::slice::from_ref(&span));
        assert_eq!(without(&range("c", ""), &range("c", "x")), [range("x", "")]);
    }
}
