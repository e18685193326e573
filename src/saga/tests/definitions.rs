//! Definitions: what is refused, and why; and that JSON says all of one.

use super::notation;
use crate::saga::{CallDocument, Child, Definition, Document, Retry, Saga, Step, Timeouts};
use crate::types::limits;

fn refusal(document: Document) -> String {
    document.check().expect_err("refused").to_string()
}

/// A saga of one step, as it was written.
fn of_json(step: &str) -> String {
    let json = format!(r#"{{"name": "trip", "version": 1, "steps": [{step}]}}"#);
    match Definition::from_json(&json) {
        Ok(_) => "fine".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_refused() {
    let names = ["", "a b", "ä", "a/b", &"x".repeat(65)];
    let mut shown: Vec<String> =
        names.iter().map(|name| refusal(Saga::define(*name, 1).step(Step::activity("a")))).collect();
    let trip = || Saga::define("trip", 1);
    let a = || Step::activity("a");
    let longest = limits::MAX_SAGA_WAIT_MS;
    let documents = [
        Saga::define("trip", 0).step(a()),
        trip(),
        trip().queue("a b").step(a()),
        trip().timeout_ms(0).step(a()),
        trip().timeout_ms(longest + 1).step(a()),
        trip().retention_ms(longest + 1).step(a()),
        trip().parallel([]),
        (0..=limits::MAX_SAGA_STEPS).fold(trip(), |saga, n| saga.step(Step::activity(format!("s{n}")))),
        trip().step(a()).step(a()),
        trip().step(Step::activity("")),
        trip().step(Step { name: "a".to_owned(), ..Step::default() }),
        trip().step(Step { txn: Some("b".to_owned()), ..a() }),
        trip().step(a().timeout_ms(5)),
        trip().step(Step::sleep_ms("a", 1).queue("q")),
        trip().step(Step::sleep_ms("a", 1).retry(Retry::default())),
        trip().step(Step::signal("a", "b").timeouts(Timeouts::default())),
        trip().step(Step::sleep_ms("a", longest + 1)),
        trip().step(Step::sleep_ms("a", 1).pivot()),
        trip().step(Step::signal("a", "b").compensate_with("c")),
        trip().step(Step::signal("a", "")),
        trip().step(Step::signal("a", "b").timeout_ms(0)),
        trip().step(Step::child("a", "b c")),
        trip().step(Step {
            child: Some(Child { saga: "b".to_owned(), version: Some(0) }),
            ..Step::child("a", "b")
        }),
        trip().step(Step::child("a", "b").pivot()),
        trip().step(a().pivot().compensate_with("b")),
        trip().step(a().check_with("b")),
        trip().step(Step::txn("a").pivot().check_with("b")),
        trip().step(Step {
            check: Some(CallDocument { txn: Some("b".to_owned()), ..CallDocument::default() }),
            ..a().pivot()
        }),
        trip().step(a().compensation(CallDocument::default())),
        trip().step(a().compensation(CallDocument {
            activity: Some("b".to_owned()),
            txn: Some("b".to_owned()),
            ..CallDocument::default()
        })),
        trip().step(a().handler("b c")),
        trip().step(a().queue("b c")),
        trip().step(a().retry(Retry { initial_ms: 0, ..Retry::default() })),
        trip().step(a().retry(Retry { max_ms: 0, ..Retry::default() })),
        trip().step(a().retry(Retry { factor_percent: 99, ..Retry::default() })),
        trip().step(a().retry(Retry { factor_percent: 100_001, ..Retry::default() })),
        trip().step(a().timeouts(Timeouts { start_to_close_ms: 0, ..Timeouts::default() })),
        trip().step(a().timeouts(Timeouts { schedule_to_close_ms: Some(0), ..Timeouts::default() })),
        trip().step(a().timeouts(Timeouts { heartbeat_ms: Some(0), ..Timeouts::default() })),
        trip().step(a().pivot()).step(Step::txn("b").pivot()),
        trip().parallel([a().pivot(), Step::activity("b")]),
        trip().step(a().pivot()).step(Step::activity("b").compensate_with("c")),
    ];
    shown.extend(documents.into_iter().map(refusal));
    insta::assert_snapshot!(shown.join("\n"), @r##"
    the saga is named "": a name has 1 to 64 letters, digits, -, _ and .
    the saga is named "a b": a name has 1 to 64 letters, digits, -, _ and .
    the saga is named "ä": a name has 1 to 64 letters, digits, -, _ and .
    the saga is named "a/b": a name has 1 to 64 letters, digits, -, _ and .
    the saga is named "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx": a name has 1 to 64 letters, digits, -, _ and .
    saga trip has version 0: count from 1
    saga trip has 0 steps: a saga has 1 to 256; make parts of it child sagas
    the queue is named "a b": a name has 1 to 64 letters, digits, -, _ and .
    timeout_ms is 0: say 1 to 315360000000 milliseconds (ten years)
    timeout_ms is 315360000001: say 1 to 315360000000 milliseconds (ten years)
    retention_ms is 315360000001: say 0 to 315360000000 milliseconds (ten years)
    `parallel` has no steps: name at least one, or leave it out
    saga trip has 257 steps: a saga has 1 to 256; make parts of it child sagas
    two steps are named a: name them differently
    a step is named "": a name has 1 to 64 letters, digits, -, _ and .
    step a: it is 0 of `activity`, `txn`, `sleep_ms`, `signal` and `child`: a step is exactly one of them
    step a: it is 2 of `activity`, `txn`, `sleep_ms`, `signal` and `child`: a step is exactly one of them
    step a: `timeout_ms` is for a step that waits for a signal: say `timeouts`
    step a: `queue`, `retry` and `timeouts` are for what a worker does: leave them out
    step a: `queue`, `retry` and `timeouts` are for what a worker does: leave them out
    step a: `queue`, `retry` and `timeouts` are for what a worker does: leave them out
    sleep_ms of step a is 315360000001: say 0 to 315360000000 milliseconds (ten years)
    step a: what only waits has nothing to undo, and is no pivot
    step a: what only waits has nothing to undo, and is no pivot
    a signal is named "": a name has 1 to 64 letters, digits, -, _ and .
    timeout_ms of step a is 0: say 1 to 315360000000 milliseconds (ten years)
    a child saga is named "b c": a name has 1 to 64 letters, digits, -, _ and .
    step a: its saga's version is 0: versions count from 1
    step a: a child saga can't be the pivot: it may come to be compensated itself
    step a: it is the pivot and has a compensation: once the pivot is done there is no way back
    step a: `check` is for a pivot that is an activity: of nothing else it is unknown whether it took effect
    step a: `check` is for a pivot that is an activity: of nothing else it is unknown whether it took effect
    step a: its `check` is a transaction: it is an activity, which asks and changes nothing
    step a: a compensation, or a check, is one of `activity` and `txn`: say which handler
    step a: a compensation, or a check, is one of `activity` and `txn`: say which handler
    a handler is named "b c": a name has 1 to 64 letters, digits, -, _ and .
    a queue is named "b c": a name has 1 to 64 letters, digits, -, _ and .
    initial_ms of step a is 0: say 1 to 315360000000 milliseconds (ten years)
    max_ms of step a is 0: say 1 to 315360000000 milliseconds (ten years)
    step a: factor_percent is 99: say 100 (all pauses alike) to 100000
    step a: factor_percent is 100001: say 100 (all pauses alike) to 100000
    start_to_close_ms of step a is 0: say 1 to 315360000000 milliseconds (ten years)
    schedule_to_close_ms of step a is 0: say 1 to 315360000000 milliseconds (ten years)
    heartbeat_ms of step a is 0: say 1 to 315360000000 milliseconds (ten years)
    steps a and b are both pivots: a saga has one point after which there is no way back
    the pivot a runs beside other steps: let it stand alone, so that all before it is done
    step b comes after the pivot a and has a compensation: it would never run, since from there on the saga only goes forward; move the step before the pivot, or leave the compensation out
    "##);
}

#[test]
fn json_that_is_no_definition() {
    let steps = [
        r#"{"name": "a", "activity": "b"}"#,
        r#"{"name": "a", "activity": "b", "retry": {}}"#,
        r#"{"name": "a", "activity": "b", "colour": 1}"#,
        r#"{"name": "a", "activity": "b", "retry": {"tries": 1}}"#,
        r#"{"name": "a", "activity": "b", "timeouts": {"beat": 1}}"#,
        r#"{"name": "a", "activity": "b", "compensation": {"sleep_ms": 1}}"#,
        r#"{"name": "a", "child": {"saga": "b", "colour": 1}}"#,
        r#"{"name": "a", "sleep_ms": -1}"#,
        r#"{"parallel": [{"name": "a", "activity": "b"}], "name": "c"}"#,
        r#"{"parallel": [{"parallel": []}]}"#,
        r#"{"activity": "b"}"#,
    ];
    let mut shown: Vec<String> = steps.iter().map(|step| of_json(step)).collect();
    let whole = [
        "",
        "[]",
        r#"{"name": "a", "version": 1}"#,
        r#"{"name": "a", "version": -1, "steps": []}"#,
        r#"{"name": "a", "version": 1, "steps": [], "colour": 1}"#,
        r#"{"name": "a", "version": 1, "steps": [], "compensation_order": "sideways"}"#,
    ];
    let huge = " ".repeat(limits::MAX_SAGA_DEFINITION_BYTES + 1);
    let whole = whole.into_iter().chain([huge.as_str()]);
    shown.extend(whole.map(|json| Definition::from_json(json).expect_err("refused").to_string()));
    insta::assert_snapshot!(shown.join("\n"), @r##"
    fine
    fine
    the definition of the saga is not as it must be: unknown field `colour`, expected one of `name`, `activity`, `txn`, `sleep_ms`, `signal`, `child`, `compensation`, `pivot`, `check`, `queue`, `retry`, `timeouts`, `timeout_ms` at line 1 column 85; see docs/SAGAS.md for what a step may have
    the definition of the saga is not as it must be: unknown field `tries`, expected one of `initial_ms`, `factor_percent`, `max_ms`, `max_attempts`, `final_kinds` at line 1 column 95; see docs/SAGAS.md for what a step may have
    the definition of the saga is not as it must be: unknown field `beat`, expected one of `start_to_close_ms`, `schedule_to_close_ms`, `heartbeat_ms` at line 1 column 97; see docs/SAGAS.md for what a step may have
    the definition of the saga is not as it must be: unknown field `sleep_ms`, expected one of `activity`, `txn`, `queue`, `retry`, `timeouts` at line 1 column 105; see docs/SAGAS.md for what a step may have
    the definition of the saga is not as it must be: unknown field `colour`, expected `saga` or `version` at line 1 column 92; see docs/SAGAS.md for what a step may have
    the definition of the saga is not as it must be: invalid value: integer `-1`, expected u64 at line 1 column 71; see docs/SAGAS.md for what a step may have
    the definition of the saga is not as it must be: unknown field `name`, expected `parallel` at line 1 column 101; see docs/SAGAS.md for what a step may have
    the definition of the saga is not as it must be: unknown field `parallel`, expected one of `name`, `activity`, `txn`, `sleep_ms`, `signal`, `child`, `compensation`, `pivot`, `check`, `queue`, `retry`, `timeouts`, `timeout_ms` at line 1 column 74; see docs/SAGAS.md for what a step may have
    the definition of the saga is not as it must be: missing field `name` at line 1 column 59; see docs/SAGAS.md for what a step may have
    the definition of the saga is not as it must be: EOF while parsing a value at line 1 column 0; see docs/SAGAS.md for what a step may have
    the definition of the saga is not as it must be: invalid length 0, expected struct Document with 7 elements at line 1 column 2; see docs/SAGAS.md for what a step may have
    the definition of the saga is not as it must be: missing field `steps` at line 1 column 27; see docs/SAGAS.md for what a step may have
    the definition of the saga is not as it must be: invalid value: integer `-1`, expected u32 at line 1 column 27; see docs/SAGAS.md for what a step may have
    the definition of the saga is not as it must be: unknown field `colour`, expected one of `name`, `version`, `queue`, `timeout_ms`, `retention_ms`, `compensation_order`, `steps` at line 1 column 49; see docs/SAGAS.md for what a step may have
    the definition of the saga is not as it must be: unknown variant `sideways`, expected `reverse` or `parallel` at line 1 column 73; see docs/SAGAS.md for what a step may have
    the definition has 262145 bytes, over the limit of 262144: make parts of it child sagas
    "##);
}

#[test]
fn json_says_all_of_a_definition() {
    let groups = [
        "timeout=500",
        "parallel",
        "a undo tries=3 pause=4 factor=150 max=9 final=x final=y lease=5 beat=2 within=50",
        "b txn undo-txn | c child=other undo | d sleep=7 | e signal=go wait=8",
        "p pivot tries=2 check tries=4 beat=1",
        "z",
    ];
    let definition =
        notation::document(&groups).expect("a saga").queue("q").retention_ms(0).check().expect("makes sense");
    let read = Definition::from_json(&definition.to_json()).expect("its own JSON");
    assert_eq!(read, definition);
    assert_eq!((definition.steps().len(), definition.stages(), definition.pivot()), (7, 4, Some(5)));
    assert_eq!((definition.stage(1), definition.stage(9)), (1..5, 7..7));
    assert_eq!((definition.find("e"), definition.find("f")), (Some(4), None));
    assert_eq!((definition.timeout_ms(), definition.retention_ms()), (Some(500), 0));
    let plain = Saga::define("trip", 1).step(Step::activity("a")).check().expect("makes sense");
    assert_eq!(plain.to_json(), r#"{"name":"trip","version":1,"steps":[{"name":"a","activity":"a"}]}"#);
    assert_eq!(plain.retention_ms(), 7 * 24 * 60 * 60 * 1_000);
}
