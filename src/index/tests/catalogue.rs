//! The versions of an index, from its making to its end.

use bytes::Bytes;

use crate::index::{Catalogued, Kind, Missing, OnError, Spec};
use crate::types::{ErrorKind, Timestamp};

fn spec(name: &str, on: &str) -> Spec {
    Spec {
        name: name.into(),
        prefix: Bytes::from_static(b"p/"),
        kind: Kind::Value,
        on: vec![on.parse().expect("a field")],
        measure: None,
        covering: Vec::new(),
        missing: Missing::Skip,
        on_error: OnError::Halt,
    }
}

fn numbers(index: &Catalogued) -> (Option<u32>, Option<u32>, Vec<u32>) {
    let number = |version: &Option<crate::index::Version>| version.as_ref().map(|version| version.number);
    (number(&index.active), number(&index.building), index.doomed.clone())
}

#[test]
fn versions_are_built_swapped_and_cleared_away() {
    let mut index = Catalogued::create(spec("x", "$.a"), Timestamp(77)).expect("a definition");
    assert_eq!((index.id, numbers(&index)), (77, (None, Some(1), vec![])));
    assert_eq!(index.rebuild(None, false).expect_err("the first is not built").kind, ErrorKind::Invalid);
    assert_eq!(index.cancel(1).expect_err("nothing would be left").kind, ErrorKind::Invalid);
    assert!(!index.built(2) && index.built(1) && !index.built(1), "the first one answers once it is built");
    assert_eq!(numbers(&index), (Some(1), None, vec![]));

    assert_eq!(index.rebuild(Some(spec("x", "$.b")), true), Ok(2));
    assert_eq!(index.swap(2).expect_err("not built").kind, ErrorKind::Invalid);
    assert!(index.built(2) && !index.built(2), "it is noted once");
    assert_eq!(numbers(&index), (Some(1), Some(2), vec![]), "one that is held waits until it is wanted");
    let fields: Vec<_> =
        index.definitions().expect("right").iter().map(|one| one.spec().on[0].name.clone()).collect();
    assert_eq!(fields, ["a", "b"]);
    assert_eq!(index.swap(7).expect_err("not that one").kind, ErrorKind::Invalid);
    assert_eq!((index.swap(2), index.swap(2)), (Ok(()), Ok(())), "again is no error");
    assert_eq!(numbers(&index), (Some(2), None, vec![1]));
    assert!(!index.cleared(1), "it is still there");

    assert_eq!(
        index.rebuild(Some(spec("y", "$.b")), false).expect_err("another name").kind,
        ErrorKind::Invalid
    );
    assert_eq!(index.rebuild(None, false), Ok(3));
    assert_eq!((index.rebuilt_after(2, None), index.rebuilt_after(3, None)), (Some(3), None));
    assert_eq!(index.rebuilt_after(2, Some(&spec("x", "$.c"))), None, "by another definition");
    assert_eq!(index.cancel(0), Ok(()));
    assert_eq!(index.cancel(3), Ok(()), "again is no error");
    assert_eq!(index.rebuild(None, false), Ok(4), "no number comes twice, whose rows may still be there");
    assert_eq!(numbers(&index), (Some(2), Some(4), vec![3]));

    index.drop_all();
    assert_eq!(numbers(&index), (None, None, vec![3, 2, 4]));
    assert!(
        index.rebuild(None, false).is_err()
            && index.swap(4).is_err()
            && index.cancel(4).is_err()
            && !index.built(4)
    );
    assert!(index.definitions().expect("none").is_empty());
    assert!(!index.cleared(3) && !index.cleared(4) && index.cleared(2));
}

#[test]
fn one_that_fell_behind_is_built_anew() {
    let mut index = Catalogued::create(spec("x", "$.a"), Timestamp(77)).expect("a definition");
    assert_eq!(index.restart(1, "cut"), Ok(true));
    assert_eq!((numbers(&index), &*index.restarted), ((None, Some(2), vec![1]), "cut"));
    assert_eq!(index.restart(1, "again"), Ok(false), "its place is taken");
    assert!(!index.built(1) && index.built(2));
    assert_eq!(index.restart(2, "cut"), Ok(true));
    assert_eq!(numbers(&index), (Some(2), Some(3), vec![1]), "the old one answers meanwhile");
    assert_eq!(index.restart(2, "cut"), Ok(false));
    assert!(index.built(3), "nobody need be asked");
    assert_eq!(numbers(&index), (Some(3), None, vec![1, 2]));
    index.drop_all();
    assert_eq!(index.restart(3, "cut"), Ok(false));
}
