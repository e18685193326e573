//! Arbitrary sagas with arbitrary workers, people and crashes: at each moment the machine says what the world knows, nothing
//! happens out of its order, and in the end all is done, or all that may have taken effect is undone.

use proptest::prelude::*;

use super::world::World;
use crate::saga::{
    CallDocument, Child, CompensationOrder, Definition, Event, Failure, Outcome, Retry, Saga, Signal, Step,
    TaskKind, TaskRef, Timeouts, Token, call_of,
};

/// Whole numbers choose among what there is, modulo how much that is.
#[derive(Clone, Debug)]
enum Op {
    HandOut {
        which: usize,
    },
    Complete {
        which: usize,
        says: usize,
    },
    Fail {
        which: usize,
        is_final: bool,
        did_nothing: bool,
    },
    Beat {
        which: usize,
    },
    Return {
        which: usize,
    },
    Child {
        which: usize,
        outcome: usize,
    },
    Signal {
        name: usize,
        id: u8,
    },
    Wait {
        ms: u64,
    },
    Tick,
    TickWhenDue,
    Cancel,
    Terminate,
    Pause,
    Resume,
    Retry {
        step: usize,
    },
    Resolve {
        step: usize,
        is_done: bool,
    },
    Reset {
        step: usize,
    },
    Deliver {
        which: usize,
    },
    TakeOver,
    Crash,
    /// Another event that is not stored.
    Lose(Box<Op>),
}

fn op() -> impl Strategy<Value = Op> {
    let one = || 0..1_000usize;
    let flag = || any::<bool>();
    let some = prop_oneof![
        30 => one().prop_map(|which| Op::HandOut { which }),
        20 => (one(), one()).prop_map(|(which, says)| Op::Complete { which, says }),
        10 => (one(), flag(), flag())
            .prop_map(|(which, is_final, did_nothing)| Op::Fail { which, is_final, did_nothing }),
        4 => one().prop_map(|which| Op::Beat { which }),
        3 => one().prop_map(|which| Op::Return { which }),
        6 => (one(), one()).prop_map(|(which, outcome)| Op::Child { which, outcome }),
        5 => (one(), any::<u8>()).prop_map(|(name, id)| Op::Signal { name, id }),
        6 => (0..120u64).prop_map(|ms| Op::Wait { ms }),
        4 => Just(Op::Tick),
        8 => Just(Op::TickWhenDue),
        2 => Just(Op::Cancel),
        2 => Just(Op::Pause),
        3 => Just(Op::Resume),
        4 => one().prop_map(|step| Op::Retry { step }),
        4 => (one(), flag()).prop_map(|(step, is_done)| Op::Resolve { step, is_done }),
        3 => one().prop_map(|step| Op::Reset { step }),
        2 => one().prop_map(|which| Op::Deliver { which }),
        1 => Just(Op::TakeOver),
        3 => Just(Op::Crash),
    ];
    let terminated = prop_oneof![199 => some, 1 => Just(Op::Terminate)];
    let terminated = terminated.boxed();
    prop_oneof![9 => terminated.clone(), 1 => terminated.prop_map(|op| Op::Lose(Box::new(op)))]
}

fn retry() -> impl Strategy<Value = Retry> {
    (0..4u32, 1..40u64).prop_map(|(max_attempts, initial_ms)| Retry {
        max_attempts,
        initial_ms,
        ..Retry::default()
    })
}

fn timeouts() -> impl Strategy<Value = Timeouts> {
    let heartbeat_ms = proptest::option::of(5..40u64);
    let schedule_to_close_ms = proptest::option::weighted(0.2, 50..400u64);
    (20..200u64, heartbeat_ms, schedule_to_close_ms).prop_map(
        |(start_to_close_ms, heartbeat_ms, schedule_to_close_ms)| Timeouts {
            start_to_close_ms,
            heartbeat_ms,
            schedule_to_close_ms,
        },
    )
}

/// What a worker is called for, once as an activity and once as a transaction.
fn call() -> impl Strategy<Value = CallDocument> {
    (any::<bool>(), retry(), timeouts()).prop_map(|(is_txn, retry, timeouts)| {
        let handler = || Some("h".to_owned());
        CallDocument {
            activity: handler().filter(|_| !is_txn),
            txn: handler().filter(|_| is_txn),
            queue: None,
            retry: Some(retry),
            timeouts: Some(timeouts),
        }
    })
}

/// A step without its name, and with a compensation where it may have one.
fn step() -> impl Strategy<Value = Step> {
    let work = |call: CallDocument| Step {
        activity: call.activity,
        txn: call.txn,
        retry: call.retry,
        timeouts: call.timeouts,
        ..Step::default()
    };
    let child = || Some(Child { saga: "other".to_owned(), version: None });
    let undone = || proptest::option::weighted(0.7, call());
    prop_oneof![
        6 => (call(), undone()).prop_map(move |(call, compensation)| Step { compensation, ..work(call) }),
        1 => (1..60u64).prop_map(|sleep_ms| Step { sleep_ms: Some(sleep_ms), ..Step::default() }),
        1 => proptest::option::of(1..100u64).prop_map(|timeout_ms| Step {
            signal: Some("go".to_owned()),
            timeout_ms,
            ..Step::default()
        }),
        1 => undone().prop_map(move |compensation| Step { child: child(), compensation, ..Step::default() }),
    ]
}

fn definition() -> impl Strategy<Value = Definition> {
    let stages = proptest::collection::vec(proptest::collection::vec(step(), 1..4), 1..6);
    let pivot = proptest::option::of((0..6usize, call(), proptest::option::of(call())));
    let timeout_ms = proptest::option::weighted(0.3, 50..600u64);
    (stages, pivot, timeout_ms, proptest::bool::weighted(0.3)).prop_map(
        |(mut stages, pivot, timeout_ms, is_parallel)| {
            if let Some((place, call, check)) = pivot {
                let place = place % (stages.len() + 1);
                let is_txn = call.txn.is_some();
                let check = check.filter(|_| !is_txn);
                // A check asks and changes nothing: it is no transaction.
                let check =
                    check.map(|call| CallDocument { activity: Some("c".to_owned()), txn: None, ..call });
                let pivot = Step {
                    activity: call.activity,
                    txn: call.txn,
                    retry: call.retry,
                    timeouts: call.timeouts,
                    pivot: true,
                    check,
                    ..Step::default()
                };
                stages.insert(place, vec![pivot]);
                stages.iter_mut().skip(place + 1).flatten().for_each(|step| step.compensation = None);
            }
            let mut document = Saga::define("trip", 1);
            document.timeout_ms = timeout_ms;
            if is_parallel {
                document.compensation_order = CompensationOrder::Parallel;
            }
            for (stage, mut steps) in stages.into_iter().enumerate() {
                for (number, step) in steps.iter_mut().enumerate() {
                    step.name = format!("s{stage}-{number}");
                }
                document = match steps.len() {
                    1 => document.step(steps.remove(0)),
                    _ => document.parallel(steps),
                };
            }
            document.check().expect("makes sense")
        },
    )
}

fn pick<T: Copy>(all: &[T], which: usize) -> Option<T> {
    which.checked_rem(all.len()).map(|which| all[which])
}

/// A hand-out: mostly one that counts, else any that there ever was.
fn token(world: &World, which: usize) -> Option<Token> {
    let running: Vec<Token> =
        world.machine.running().into_iter().map(|task| world.machine.token(task)).collect();
    match which % 4 {
        0 => pick(&world.tokens, which / 4),
        _ => pick(&running, which / 4),
    }
}

fn event(world: &World, op: &Op) -> Option<Event> {
    let definition = &world.machine.definition;
    let steps = world.machine.state.steps.len();
    let reason = || "why-not".to_owned();
    Some(match op {
        Op::HandOut { which } => {
            let ready: Vec<TaskRef> = world.machine.state.ready(definition).map(|(task, _)| task).collect();
            // At times something that is not ready at all.
            let any: Vec<TaskRef> = world.machine.tasks().collect();
            let task = if which % 10 == 0 { pick(&any, which / 10)? } else { pick(&ready, which / 10)? };
            Event::HandOut { task, worker: "w".to_owned() }
        }
        Op::Complete { which, says } => {
            let token = token(world, *which)?;
            let call = call_of(definition, token.task);
            let output = match (token.task.kind, says % 8) {
                (TaskKind::Check, 0) => "perhaps",
                (TaskKind::Check, 1..=4) => "true",
                (TaskKind::Check, _) => "false",
                _ => "o",
            };
            let is_committed = call.is_some_and(|call| call.is_txn) && says % 5 > 0;
            Event::Complete { token, output: output.into(), is_committed }
        }
        Op::Fail { which, is_final, did_nothing } => {
            let failure = Failure { is_final: *is_final, did_nothing: *did_nothing, ..Failure::default() };
            Event::Fail { token: token(world, *which)?, failure }
        }
        Op::Beat { which } => Event::Heartbeat { token: token(world, *which)? },
        Op::Return { which } => Event::Return { token: token(world, *which)? },
        Op::Child { which, outcome } => {
            let is_child = |token: &Token| {
                token.task.kind == TaskKind::Action
                    && matches!(world.machine.work(token.task), crate::saga::Work::Child { .. })
            };
            let children: Vec<Token> = world.tokens.iter().copied().filter(is_child).collect();
            let token = match which % 2 {
                0 => *children.last()?,
                _ => pick(&children, which / 2)?,
            };
            let created_ms = world.machine.state.created_ms;
            Event::ChildClosed {
                token,
                created_ms,
                outcome: pick(&Outcome::ALL, *outcome)?,
                output: "o".into(),
            }
        }
        Op::Signal { name, id } => {
            let name = if name % 4 == 0 { "other" } else { "go" }.to_owned();
            Event::Signal(Signal { id: u128::from(*id % 16), name, payload: "p".into() })
        }
        Op::Tick | Op::TickWhenDue | Op::Wait { .. } => Event::Tick,
        Op::Cancel => Event::Cancel { reason: reason() },
        Op::Terminate => Event::Terminate { reason: reason() },
        Op::Pause => Event::Pause { reason: reason() },
        Op::Resume => Event::Resume,
        Op::Retry { step } => Event::Retry { step: Some(step % 10).filter(|step| *step < steps) },
        Op::Resolve { step, is_done } => Event::Resolve { step: step % (steps + 1), is_done: *is_done },
        Op::Reset { step } => Event::Reset { step: step % (steps + 1) },
        Op::Deliver { which } => {
            let letters: Vec<u64> = world.machine.state.letters.iter().map(|letter| letter.number).collect();
            Event::Delivered { letter: pick(&letters, *which).unwrap_or_default() }
        }
        Op::TakeOver => Event::TakenOver,
        Op::Crash | Op::Lose(_) => return None,
    })
}

/// Some of what people ask for comes as a request with a name, at times one that was done before.
fn named(op: &Op, event: Event) -> Event {
    match op {
        Op::Retry { step } | Op::Resolve { step, .. } | Op::Reset { step } if step % 3 == 0 => {
            Event::Once { request: 1_000 + (step / 3 % 64) as u128, event: Box::new(event) }
        }
        _ => event,
    }
}

fn run(world: &mut World, op: &Op) {
    match op {
        Op::Crash => world.crash(),
        Op::Wait { ms } => world.machine.now_ms += ms,
        Op::Lose(op) => {
            if let Some(event) = event(world, op) {
                world.lose(event);
            }
        }
        op => {
            if let (Op::TickWhenDue, Some(due_ms)) =
                (op, world.machine.state.next_due_ms(&world.machine.definition))
            {
                world.machine.now_ms = world.machine.now_ms.max(due_ms);
            }
            if let Some(event) = event(world, op) {
                let _ = world.send(named(op, event));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_048))]
    #[test]
    fn all_is_done_or_all_is_undone(
        definition in definition(),
        ops in proptest::collection::vec(op(), 0..120),
        choices in any::<u32>(),
    ) {
        let mut world = World::new(definition);
        for op in &ops {
            run(&mut world, op);
        }
        world.repeat();
        world.settle(choices);
    }
}
