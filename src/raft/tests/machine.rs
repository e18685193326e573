//! Applying: what stops a replica, what readers learn, and what membership changes.

use std::collections::BTreeSet;

use openraft::Membership;
use openraft::impls::EntryPayload;
use openraft::storage::RaftStateMachine;

use super::{apply, descriptor, log_id, put_entry, shared};
use crate::engine::{Engine, MemoryEngine};
use crate::raft::{Entry, LogWriter, Payload, ReplicaMachine, create_group};
use crate::shard;
use crate::types::{NodeId, ShardId, Timestamp};

fn machine(engine: &std::sync::Arc<dyn Engine>) -> ReplicaMachine {
    create_group(engine.as_ref(), &descriptor(1, "a", "m")).expect("creates");
    let writer = LogWriter::start(engine.clone()).expect("starts");
    ReplicaMachine::open(engine.clone(), writer, ShardId(1)).expect("opens")
}

async fn try_apply(machine: &mut ReplicaMachine, entries: Vec<Entry>) -> Result<(), std::io::Error> {
    machine.apply(futures::stream::iter(entries.into_iter().map(|entry| Ok((entry, None))))).await
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_or_is_out_of_order_stops_the_replica_where_it_was() {
    let engine = shared(MemoryEngine::new());
    let mut machine = machine(&engine);
    apply(&mut machine, vec![put_entry(1, 2, "b", "1")]).await;
    let nonsense = Entry { log_id: log_id(1, 3), payload: EntryPayload::Normal(Payload("nonsense".into())) };
    let error = try_apply(&mut machine, vec![nonsense]).await.expect_err("can't be read");
    assert!(error.to_string().contains("of group 1"), "{error}");
    let error = try_apply(&mut machine, vec![put_entry(1, 4, "b", "2")]).await.expect_err("leaves a gap");
    assert!(error.to_string().contains("after"), "{error}");
    let error = try_apply(&mut machine, vec![put_entry(1, 2, "b", "1")]).await.expect_err("is applied");
    assert!(error.to_string().contains("after"), "{error}");
    assert_eq!(machine.replica().applied().index(), 2);
    apply(&mut machine, vec![put_entry(1, 3, "b", "3")]).await;
}

#[tokio::test]
async fn readers_learn_how_far_the_replica_is() {
    let engine = shared(MemoryEngine::new());
    let mut machine = machine(&engine);
    let replica = machine.replica();
    let mut watch = replica.watch();
    assert_eq!((watch.borrow().index, watch.borrow().closed), (1, Timestamp::ZERO));
    let waiter = tokio::spawn({
        let replica = replica.clone();
        async move {
            replica.wait_applied(600).await;
            replica.applied().index()
        }
    });
    // More than one batch's worth.
    apply(&mut machine, (2..=600).map(|index| put_entry(1, index, "b", "v")).collect()).await;
    assert_eq!(waiter.await.expect("ends"), 600);
    let progress = *watch.borrow_and_update();
    assert_eq!((progress.index, progress.closed), (600, Timestamp::from_ms(601)));
    let view = replica.view().expect("no snapshot is being installed");
    let counts = replica.state().counts;
    let look = shard::look(view.as_ref(), counts, b"b", Timestamp::MAX, &shard::Fates::new());
    let record = look.and_then(shard::Look::unlocked).expect("reads").expect("is there");
    assert_eq!(record.version, 599);
}

#[tokio::test]
async fn a_membership_entry_changes_the_descriptor_and_survives_a_restart() {
    let engine = shared(MemoryEngine::new());
    let mut replica = machine(&engine);
    let voters = BTreeSet::from([NodeId(1), NodeId(2), NodeId(3)]);
    let same = EntryPayload::Membership(Membership::new_with_defaults(vec![voters.clone()], []));
    let learner = EntryPayload::Membership(Membership::new_with_defaults(vec![voters], [NodeId(4)]));
    let entry = |index, payload| Entry { log_id: log_id(1, index), payload };
    apply(&mut replica, vec![entry(2, same)]).await;
    assert_eq!(replica.replica().state().descriptor.epoch.0, 1, "nothing has changed");
    apply(&mut replica, vec![entry(3, learner)]).await;
    let state = machine(&engine).replica().state();
    assert_eq!(state.descriptor.epoch.0, 2);
    assert_eq!(state.descriptor.replicas, [1, 2, 3, 4].map(NodeId));
    let (last, membership) = replica.applied_state().await.expect("reads");
    assert_eq!((last, *membership.log_id()), (Some(log_id(1, 3)), Some(log_id(1, 3))));
}
