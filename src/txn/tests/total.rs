//! What holds for every order of events: what is sent before the acknowledgement, and that nothing panics.

use proptest::prelude::*;

use crate::txn::{Action, Coordinator, Event, Inquiry, Recovery, Step, TxnCommit, Verdict};
use crate::types::{
    AbortReason, KeyRange, Lock, Outcome, Refusal, Timestamp, TxnCommand, TxnId, TxnOutcome, TxnPart,
    TxnStatus, TxnWrite,
};

fn shards(at: &[&'static str]) -> Vec<KeyRange> {
    let starts = std::iter::once("").chain(at.iter().copied());
    let ends = at.iter().map(|key| Some((*key).into())).chain([None]);
    starts.zip(ends).map(|(start, end)| KeyRange::new(start, end)).collect()
}

fn commit(reads: &[&'static str], ranges: Vec<KeyRange>, writes: &[&'static str]) -> TxnCommit {
    let put = |key: &&'static str| TxnWrite::Put { key: (*key).into(), value: "v".into() };
    let part = TxnPart {
        reads: reads.iter().map(|key| (*key).into()).collect(),
        ranges,
        writes: writes.iter().map(put).collect(),
    };
    TxnCommit { id: TxnId { seen: Timestamp(10), unique: 1 }, part }.normalise().expect("right")
}

fn sent(actions: &[Action]) -> Vec<(Step, TxnCommand)> {
    let command = |action: &Action| match action {
        Action::Send { step, command, .. } => Some((*step, command.clone())),
        _ => None,
    };
    actions.iter().filter_map(command).collect()
}

/// Everything that is sent before the acknowledgement, where each command succeeds.
fn sent_before_acknowledgement(commit: TxnCommit, shards: &[KeyRange]) -> Vec<TxnCommand> {
    let (mut coordinator, mut actions) = Coordinator::start(commit, shards);
    let mut all = Vec::new();
    let mut time = 20;
    loop {
        let acknowledged = actions.iter().position(|action| matches!(action, Action::Acknowledge(_)));
        let before = sent(&actions[..acknowledged.unwrap_or(actions.len())]);
        all.extend(before.iter().map(|(_, command)| command.clone()));
        if acknowledged.is_some() {
            return all;
        }
        actions.clear();
        for (step, command) in before {
            time += 1;
            let ts = Timestamp(time);
            let outcome = match command {
                TxnCommand::Prepare { .. } => TxnOutcome::Prepared { prepare_ts: ts },
                _ => TxnOutcome::Committed { commit_ts: ts },
            };
            coordinator.on(Event::Outcome { step, outcome: Outcome::Txn(outcome) }, &mut actions);
        }
        assert!(!actions.is_empty(), "it goes on");
    }
}

#[test]
fn before_the_acknowledgement_each_shard_gets_one_command_and_nothing_more() {
    let three = shards(&["h", "p"]);
    let small = || commit(&["c", "k"], vec![], &["a", "j", "z"]);
    assert_eq!(sent_before_acknowledgement(small(), &three).len(), 3, "one prepare to each shard");
    let all = sent_before_acknowledgement(small(), &three);
    assert!(all.iter().all(|command| matches!(command, TxnCommand::Prepare { .. })));
    assert_eq!(sent_before_acknowledgement(small(), &shards(&[])).len(), 1, "one shard: one command");

    let classic = sent_before_acknowledgement(commit(&[], shards(&["x"])[1..].into(), &["a"]), &three);
    assert_eq!(classic.len(), 3, "two prepares and the decision");
    assert!(matches!(classic[2], TxnCommand::Decide { commit_ts: None, .. }));
}

fn ts() -> impl Strategy<Value = Timestamp> {
    (20..30u64).prop_map(Timestamp)
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let listed = || vec!["a".into(), "j".into()];
    let done = prop_oneof![
        4 => ts().prop_map(|prepare_ts| TxnOutcome::Prepared { prepare_ts }),
        2 => ts().prop_map(|commit_ts| TxnOutcome::Committed { commit_ts }),
        2 => ts().prop_map(|prepare_ts| TxnOutcome::StillLocked { prepare_ts }),
        2 => prop::sample::select(shards(&["c", "h", "p"]))
            .prop_map(|covered| TxnOutcome::Finished { covered }),
        5 => prop::sample::select(vec![
            TxnOutcome::Aborted { reason: AbortReason::RolledBack },
            TxnOutcome::AbortedLate,
            TxnOutcome::StillStaging { listed: listed() },
            TxnOutcome::Marked,
            TxnOutcome::NotPrepared,
            TxnOutcome::Forgotten,
        ]),
    ];
    let lock = || Lock {
        key: "a".into(),
        txn: TxnId { seen: Timestamp(1), unique: 2 },
        primary: "a".into(),
        prepare_ts: Timestamp(2),
    };
    let refused = prop::sample::select(vec![
        Refusal::OutOfRange,
        Refusal::TooOld { age_ms: 1 },
        Refusal::FutureId { seen: Timestamp(10) },
        Refusal::Locked(lock()),
    ]);
    prop_oneof![4 => done.prop_map(Outcome::Txn), 1 => refused.prop_map(Outcome::Refused)]
}

fn event() -> impl Strategy<Value = Event> {
    let step = || 0..14u32;
    let spans = prop_oneof![Just(Vec::new()), Just(shards(&["c", "p"]))];
    let status = prop_oneof![
        Just(TxnStatus::Missing),
        Just(TxnStatus::Aborted),
        Just(TxnStatus::Staging { listed: vec!["a".into(), "j".into()] }),
        (ts(), spans).prop_map(|(commit_ts, spans)| TxnStatus::Committed { commit_ts, spans }),
    ];
    prop_oneof![
        10 => (step(), outcome()).prop_map(|(step, outcome)| Event::Outcome { step, outcome }),
        3 => (step(), status).prop_map(|(step, status)| Event::Status { step, status }),
        3 => (step(), prop::option::of(ts())).prop_map(|(step, locked)| Event::Looked { step, locked }),
        1 => step().prop_map(|step| Event::Failed { step }),
        1 => (step(), prop::sample::select(vec![vec![], vec!["c", "h", "p"], vec!["j"]]))
            .prop_map(|(step, at)| Event::Moved { step, shards: shards(&at) }),
        1 => Just(Event::Resend),
        1 => Just(Event::GiveUp),
    ]
}

/// A client hears once, after an end nothing is sent, and each request has a number of its own.
fn holds(actions: &[Action]) -> Result<(), TestCaseError> {
    let acknowledged = actions.iter().filter(|action| matches!(action, Action::Acknowledge(_))).count();
    prop_assert!(acknowledged <= 1);
    if let Some(end) = actions.iter().position(|action| *action == Action::Ended) {
        prop_assert_eq!(end + 1, actions.len());
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_order_of_events_does_harm(
        events in prop::collection::vec(event(), 0..60),
        at in prop::sample::select(vec![vec![], vec!["h"], vec!["h", "p"]]),
        classic in any::<bool>(),
    ) {
        let ranges = if classic { shards(&["x"])[1..].into() } else { vec![] };
        let (mut coordinator, mut actions) = Coordinator::start(commit(&["c"], ranges, &["a", "j", "z"]), &shards(&at));
        let mut decided = None;
        for event in events.clone() {
            let aborts = matches!(&event, Event::Outcome { outcome: Outcome::Txn(TxnOutcome::Aborted { .. } | TxnOutcome::AbortedLate), .. });
            let before = actions.len();
            coordinator.on(event, &mut actions);
            for action in &actions[before..] {
                match action {
                    Action::Acknowledge(Verdict::Aborted { .. }) if at.len() == 2 => {
                        prop_assert!(aborts, "only the primary's word aborts a commit of many shards");
                    }
                    Action::Send { command: TxnCommand::Finish { decision, .. }, .. } => {
                        prop_assert_eq!(*decided.get_or_insert(*decision), *decision, "one decision");
                    }
                    _ => {}
                }
            }
        }
        holds(&actions)?;

        let lock = Lock { key: "z".into(), txn: TxnId { seen: Timestamp(10), unique: 1 }, primary: "a".into(), prepare_ts: Timestamp(20) };
        let (mut recovery, mut actions) = Recovery::start(&lock, &shards(&at));
        events.iter().for_each(|event| recovery.on(event.clone(), &mut actions));
        holds(&actions)?;
        let (mut inquiry, mut actions) = Inquiry::start(&lock, Timestamp(50));
        let answers = events.iter().filter_map(|event| inquiry.on(event.clone(), &mut actions)).count();
        prop_assert!(answers <= 1);
        prop_assert!(sent(&actions).is_empty(), "readers do not write");
    }
}
