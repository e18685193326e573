//! Both formats give back what was written, and say what is wrong with other lines.

use std::collections::BTreeMap;

use super::saga::{Came, Effect, Line, Read, Saga, Start, Task, Tell};
use super::*;

fn samples() -> Vec<Op> {
    let balances = BTreeMap::from([("a".to_owned(), 7), ("12".to_owned(), -3), ("007".to_owned(), 1)]);
    let steps = vec![
        MicroOp::append("x", 1),
        MicroOp::write("two words", -5),
        MicroOp::add("n", -7),
        MicroOp::delete("n"),
        MicroOp::read("8"),
        MicroOp::read_list("y", vec![4, 7]),
        MicroOp::read_list("empty", vec![]),
        MicroOp::read_one("z", Some(i64::MIN)),
    ];
    let following = Following {
        scans: true,
        before_images: true,
        ranges: vec![("20".into(), Some("60/k".into())), ("e".into(), None)],
    };
    let changed = |key: &str, value, before| Changed { key: key.into(), value, before };
    let told = vec![
        Told::Row { key: "17".into(), value: -1 },
        Told::Progress { at: 1 << 62 },
        Told::Changes {
            at: (1 << 62) + 1,
            changes: vec![
                changed("a/k", Some(1), Some(None)),
                changed("17", None, Some(Some(-1))),
                changed("x", None, None),
            ],
        },
    ];
    let bytes = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let dump = Dump {
        rows: BTreeMap::from([("00/r".to_owned(), 7)]),
        stored: bytes("0012", "ff"),
        computed: bytes("1234", "1e5"),
    };
    let start = Start { saga: "trip".into(), input: 1, row: Some(3) };
    let task = Task { step: "a".into(), kind: "action".into(), attempt: 1, fence: u64::MAX };
    let effect = Effect { step: "a".into(), kind: "check".into(), fence: 2, refused: true };
    let read = Read {
        saga: "trip".into(),
        status: "running".into(),
        outputs: BTreeMap::from([("a".into(), "7".into())]),
        lines: vec![Line("a".into(), "completed".into(), "action".into(), 1, ":odd".into())],
        ..Read::default()
    };
    let invocations = vec![
        Op::invoke(0, F::Read, Value::Nil).with_key("k").with_node("n1"),
        Op::invoke(1, F::Write, Value::Int(i64::MAX)).with_key("\"quoted\\\n\u{1}é"),
        Op::invoke(2, F::Cas, Value::Cas { old: None, new: 4 }).with_key("17"),
        Op::invoke(3, F::Cas, Value::Cas { old: Some(-1), new: 4 }),
        Op::invoke(4, F::Read, Value::List(vec![3, 1, 2])).with_staleness_ms(1500),
        Op::invoke(5, F::Add, Value::Int(9)),
        Op::invoke(6, F::Write, Value::Balances(balances)),
        Op::invoke(7, F::Transfer, Value::Transfer { from: "a".into(), to: "b c".into(), amount: 3 }),
        Op::invoke(8, F::Txn, Value::Txn(steps)),
        Op::invoke(9, F::Follow, Value::Follow(following)).with_key("all"),
        Op::invoke(10, F::Follow, Value::Told(told)).with_key("all"),
        Op::invoke(11, F::Query, Value::Query(Query { group: Some(-3), at_least: Some(u64::MAX) })),
        Op::invoke(12, F::Query, Value::Query(Query::default())).with_key("by_team"),
        Op::invoke(13, F::Query, Value::Found(vec![("a/b".into(), 3), ("17".into(), -1)])),
        Op::invoke(14, F::Dump, Value::Dump(dump)),
        Op::invoke(15, F::Create, Value::Nil).with_key("by_team"),
        Op::invoke(16, F::Start, Value::Saga(Saga::Start(start))).with_key("s1"),
        Op::invoke(17, F::Work, Value::Saga(Saga::Task(task.clone()))).with_key("s1"),
        Op::invoke(18, F::Work, Value::Saga(Saga::Came(Came::Nothing))).with_key("s1"),
        Op::invoke(19, F::Tell, Value::Saga(Saga::Tell(Tell { task, output: Some("7".into()) }))),
        Op::invoke(20, F::Effect, Value::Saga(Saga::Effect(effect))).with_key("s1"),
        Op::invoke(21, F::Inspect, Value::Saga(Saga::Read(Box::new(read)))).with_key("s1"),
        Op::invoke(22, F::Inspect, Value::Int(1)).with_key("s1"),
        Op::invoke(23, F::Cancel, Value::Int(0)).with_key("s1"),
        Op::invoke(24, F::Signal, Value::Nil).with_key("s1"),
        Op::invoke(25, F::Await, Value::Saga(Saga::Status("paused".into()))).with_key("s1"),
        Op::invoke(26, F::List, Value::Saga(Saga::List(BTreeMap::from([("s1".into(), "x".into())])))),
        Op::invoke(27, F::Steer, Value::Saga(Saga::Steer { action: "retry".into(), step: "a".into() })),
    ];
    let mut ops = Vec::new();
    for invoke in invocations {
        let complete = match invoke.process % 3 {
            0 => invoke.ok(invoke.value.clone()).with_timestamp(u64::MAX),
            1 => invoke.fail("refused: \"busy\""),
            _ => invoke.info("timed out"),
        };
        ops.extend([invoke, complete]);
    }
    for (index, op) in ops.iter_mut().enumerate() {
        op.index = index as u64;
        op.time_ns = index as u64 * 10;
    }
    ops
}

#[test]
fn jsonl_gives_back_what_was_written() {
    let mut file = Vec::new();
    samples().iter().for_each(|op| jsonl::write_op(&mut file, op).unwrap());
    assert_eq!(jsonl::read(file.as_slice()).unwrap().ops(), samples());
}

#[test]
fn edn_gives_back_what_was_written() {
    let mut file = Vec::new();
    samples().iter().for_each(|op| edn::write_op(&mut file, op).unwrap());
    assert_eq!(edn::read(file.as_slice()).unwrap().ops(), samples());
}

#[test]
fn lines_look_as_other_checkers_expect() {
    let steps = vec![MicroOp::append("x", 1), MicroOp::read_list("y", vec![4, 7])];
    let mut op = Op::invoke(0, F::Txn, Value::Txn(steps)).ok(Value::Nil);
    op.value = Value::Txn(vec![MicroOp::append("x", 1), MicroOp::read_list("y", vec![4, 7])]);
    op.time_ns = 29;
    let (mut json, mut text) = (Vec::new(), Vec::new());
    jsonl::write_op(&mut json, &op).unwrap();
    edn::write_op(&mut text, &op).unwrap();
    assert_eq!(
        String::from_utf8(json).unwrap(),
        "{\"process\":0,\"type\":\"ok\",\"f\":\"txn\",\"value\":[[\"append\",\"x\",1],[\"r\",\"y\",[4,7]]],\"time\":29,\"index\":0}\n"
    );
    assert_eq!(
        String::from_utf8(text).unwrap(),
        "{:process 0, :type :ok, :f :txn, :value [[:append :x 1] [:r :y [4 7]]], :time 29, :index 0}\n"
    );
}

#[test]
fn edn_of_jepsen_is_understood() {
    let file = "; a comment\n\
        #jepsen.history.Op{:index 0, :time 5, :type :invoke, :process :nemesis, :f :kill, :value nil}\n\n\
        {:type :invoke, :process 0, :f :txn, :value [[:append 8 1] (:r 9 nil)], :time 1}\n\
        {:type :ok :process 0 :f :txn :value [[:append 8 1] [:r 9 #{2}]] :time 2N :error [:odd \"thing\"]}\n";
    let history = edn::read(file.as_bytes()).unwrap();
    let [invoke, ok] = history.ops() else { panic!("two operations: {history:?}") };
    assert_eq!(invoke.value, Value::Txn(vec![MicroOp::append("8", 1), MicroOp::read("9")]));
    assert_eq!(ok.value, Value::Txn(vec![MicroOp::append("8", 1), MicroOp::read_list("9", vec![2])]));
    assert_eq!((invoke.index, ok.index, ok.time_ns), (0, 1, 2));
    assert_eq!(ok.error.as_deref(), Some("[:odd \"thing\"]"));
}

#[test]
fn a_malformed_line_is_named() {
    let good = "{:type :invoke, :process 0, :f :read, :value nil, :time 1}";
    let cases = [
        ("{:type :invoke, :process 0, :f :read", "line 2: no EDN at column 37: the line ends before '}'"),
        ("{:type :invoke, :process 1, :f :jump}", "line 2: f \"jump\" is not known"),
        ("{:type :maybe, :process 1, :f :read}", "line 2: type \"maybe\" is none of"),
        ("{:type :ok, :f :read}", "line 2: process is missing"),
        ("{:type :ok, :process -1, :f :read}", "line 2: process -1 must be between 0 and"),
        ("{:type :ok, :process 0, :f :cas, :value [1]}", "line 2: the value of cas must be a list"),
        (
            "{:type :ok, :process 0, :f :follow, :value [[:row 1]]}",
            "the value of follow must be a map with since",
        ),
        ("{:type :ok, :process 0, :f :follow, :value {:since :now}}", "the value of follow must be a map"),
        ("{:type :ok, :process 0, :f :query, :value {:group :x}}", "the value of query must be a map"),
        ("{:type :ok, :process 0, :f :dump, :value {:rows {}}}", "the value of dump must be nil, or a map"),
        ("{:type :ok, :process 0, :f :read, :value 1.5}", "\"1.5\" is not a whole number"),
        ("{:type :ok, :process 0, :f :read} 7", "after the end of the operation"),
        ("[1 2]", "line 2: an operation must be a map"),
        ("]", "line 2: no EDN at column 1: a closing bracket"),
        ("{:type :ok, :process 3, :f :read}", "line 2: index 1: process 3 completes an operation, but"),
        ("{:type :invoke, :process 0, :f :read}", "line 2: index 1: process 0 invokes while"),
        (
            "{:type :ok, :process 0, :f :write}",
            "line 2: index 1: process 0 completes another function or key",
        ),
        ("{:type :ok, :process 0, :f :read, :index 0}", "line 2: index 0 comes after index 0"),
    ];
    for (line, problem) in cases {
        let error = edn::read(format!("{good}\n{line}\n").as_bytes()).unwrap_err().to_string();
        assert!(error.contains(problem), "{line}: {error}");
    }
    let error = jsonl::read("\n{\"process\":0,".as_bytes()).unwrap_err().to_string();
    assert!(error.starts_with("line 2: no JSON"), "{error}");
    let deep = edn::read("[".repeat(100_000).as_bytes()).unwrap_err().to_string();
    assert!(deep.contains("nested deeper"), "{deep}");
}

#[test]
fn a_process_that_ended_must_not_come_back() {
    let invoke = Op::invoke(0, F::Read, Value::Nil);
    let mut ops = vec![invoke.clone(), invoke.info("timed out"), invoke];
    (0..).zip(&mut ops).for_each(|(index, op)| op.index = index);
    assert_eq!(History::new(ops).unwrap_err(), Malformed::ProcessEnded { index: 2, process: 0, ended: 1 });
}

#[test]
fn an_operation_without_completion_is_unknown() {
    let history = History::new(vec![Op::invoke(0, F::Read, Value::Nil)]).unwrap();
    let call = history.calls().next().unwrap();
    assert_eq!((call.outcome(), call.start, call.end), (Kind::Info, 0, usize::MAX));
}
