//! Random scripts over the logs, votes and machines of two groups on one node, cut off at every moment:
//! what comes back must be what the queue held after some step at or after the last one acknowledged.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use openraft::StorageHelper;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage, RaftStateMachine};
use openraft::type_config::TypeConfigExt;
use proptest::prelude::*;

use super::cut_engine::{CutEngine, acknowledged, rebuild};
use super::{apply, descriptor, put_entry, rows, shared};
use crate::engine::{Engine, Family, Row};
use crate::raft::{
    AppliedRecord, Entry, LeaderId, LogId, LogStore, LogWriter, ReplicaMachine, TypeConfig, Vote,
    create_group, recover,
};
use crate::types::{NodeId, ShardDescriptor};

const GROUPS: usize = 2;

/// A step of a script. Numbers choose among what is possible at the moment.
#[derive(Clone, Debug)]
enum Step {
    Append {
        group: usize,
        entries: u64,
        value_bytes: usize,
        wait: bool,
    },
    Vote {
        group: usize,
    },
    Truncate {
        group: usize,
        back: u64,
    },
    Purge {
        group: usize,
        back: u64,
    },
    Apply {
        group: usize,
        entries: u64,
    },
    /// Entries are applied before they are on disk here: others have committed them.
    ApplyUnflushed {
        group: usize,
        entries: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let group = 0..GROUPS;
    prop_oneof![
        4 => (group.clone(), 1..5u64, 0..300usize, any::<bool>())
            .prop_map(|(group, entries, value_bytes, wait)| Step::Append { group, entries, value_bytes, wait }),
        1 => group.clone().prop_map(|group| Step::Vote { group }),
        2 => (group.clone(), 0..4u64).prop_map(|(group, back)| Step::Truncate { group, back }),
        2 => (group.clone(), 0..3u64).prop_map(|(group, back)| Step::Purge { group, back }),
        3 => (group.clone(), 1..6u64).prop_map(|(group, entries)| Step::Apply { group, entries }),
        1 => (group, 1..4u64).prop_map(|(group, entries)| Step::ApplyUnflushed { group, entries }),
    ]
}

/// What a group's log and vote must be.
#[derive(Clone, PartialEq, Debug)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    purged: LogId,
    vote: Option<Vote>,
}

impl Model {
    fn new() -> Self {
        Self { entries: BTreeMap::new(), purged: seed(), vote: None }
    }

    fn last(&self) -> LogId {
        self.entries.values().next_back().map_or(self.purged, |entry| entry.log_id)
    }

    /// What the log must be once it is opened beside what was applied.
    fn fit(&mut self, applied: LogId) {
        let there = self.entries.get(&applied.index).map(|entry| entry.log_id);
        if self.last().index < applied.index || there.is_some_and(|there| there != applied) {
            self.entries.clear();
            self.purged = applied;
        }
    }

    fn purge(&mut self, upto: LogId) {
        self.entries.retain(|index, _| *index > upto.index);
        self.purged = self.purged.max(upto);
    }
}

/// What every new group has purged and applied.
fn seed() -> LogId {
    LogId { leader_id: LeaderId { term: 0, node_id: NodeId(0) }, index: 1 }
}

fn descriptors() -> [ShardDescriptor; GROUPS] {
    [descriptor(1, "a", "m"), descriptor(2, "m", "z")]
}

/// What a group's machine was after each entry.
type Applied = BTreeMap<u64, (Arc<AppliedRecord>, Vec<(Family, Vec<Row>)>)>;

/// Resolves once an append is on disk.
type Flushed = tokio::sync::oneshot::Receiver<Result<(), std::io::Error>>;

struct Node {
    engine: CutEngine,
    stores: Vec<LogStore>,
    machines: Vec<ReplicaMachine>,
    /// The logs after each step of the queue, the first before any.
    models: Vec<[Model; GROUPS]>,
    applied: [Applied; GROUPS],
    terms: [u64; GROUPS],
}

impl Node {
    fn new() -> Self {
        let engine = CutEngine::default();
        let shared = shared(engine.clone());
        let writer = LogWriter::start(shared.clone()).expect("starts");
        let (mut stores, mut machines) = (Vec::new(), Vec::new());
        for descriptor in descriptors() {
            assert!(create_group(shared.as_ref(), &descriptor).expect("creates"));
            let open = ReplicaMachine::open(shared.clone(), writer.clone(), descriptor.id);
            machines.push(open.expect("opens"));
            let open = LogStore::open(shared.clone(), writer.clone(), descriptor.id, 500);
            stores.push(open.expect("opens"));
        }
        let mut node = Self {
            engine,
            stores,
            machines,
            models: vec![[Model::new(), Model::new()]],
            applied: Default::default(),
            terms: [1; GROUPS],
        };
        (0..GROUPS).for_each(|group| node.note_applied(group));
        node
    }

    fn now(&self, group: usize) -> &Model {
        &self.models[self.models.len() - 1][group]
    }

    fn change(&mut self, group: usize, change: impl FnOnce(&mut Model)) {
        let mut next = self.models[self.models.len() - 1].clone();
        change(&mut next[group]);
        self.models.push(next);
    }

    fn note_applied(&mut self, group: usize) {
        let record = self.machines[group].replica().applied();
        let rows = rows(&self.engine, &descriptors()[group]);
        self.applied[group].insert(record.index(), (record, rows));
    }

    fn applied_index(&self, group: usize) -> u64 {
        self.machines[group].replica().applied().index()
    }

    async fn run(&mut self, step: &Step) {
        match *step {
            Step::Append { group, entries, value_bytes, wait } => {
                let flushed = self.append(group, entries, value_bytes).await;
                if wait {
                    let steps = self.models.len() - 1;
                    flushed.await.expect("completes").expect("is flushed");
                    self.engine.acknowledge(steps);
                }
            }
            Step::Vote { group } => {
                self.terms[group] += 1;
                let vote = Vote::new(self.terms[group], NodeId(1));
                self.change(group, |model| model.vote = Some(vote));
                self.stores[group].save_vote(&vote).await.expect("saves");
                self.engine.acknowledge(self.models.len() - 1);
            }
            Step::Truncate { group, back } => {
                let after = self.now(group).last().index.saturating_sub(back).max(self.applied_index(group));
                let model = self.now(group);
                let last = model.entries.get(&after).map_or(model.purged, |entry| entry.log_id);
                self.change(group, |model| model.entries.retain(|index, _| *index <= last.index));
                self.terms[group] += 1;
                self.stores[group].truncate_after(Some(last)).await.expect("truncates");
            }
            Step::Purge { group, back } => {
                let upto = self.applied_index(group).saturating_sub(back);
                let Some(upto) = self.now(group).entries.get(&upto).map(|entry| entry.log_id) else { return };
                self.change(group, |model| model.purge(upto));
                self.stores[group].purge(upto).await.expect("purges");
            }
            Step::Apply { group, entries } => self.apply(group, entries).await,
            Step::ApplyUnflushed { group, entries } => {
                let held = self.engine.hold_syncs();
                drop(self.append(group, entries, 10).await);
                self.apply(group, u64::MAX).await;
                drop(held);
            }
        }
    }

    async fn append(&mut self, group: usize, count: u64, value_bytes: usize) -> Flushed {
        let term = self.terms[group];
        let first = self.now(group).last().index + 1;
        let prefix = ["b", "n"][group];
        let entry = |index: u64| {
            put_entry(term, index, &format!("{prefix}{}", index % 5), &format!("{index:value_bytes$}"))
        };
        let entries: Vec<Entry> = (first..first + count).map(entry).collect();
        self.change(group, |model| {
            model.entries.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())));
        });
        let (sender, receiver) = TypeConfig::oneshot();
        self.stores[group].append(entries.clone(), IOFlushed::signal(sender)).await.expect("appends");
        let mut reader = self.stores[group].get_log_reader().await;
        let read = reader.try_get_log_entries(first..first + count).await.expect("reads");
        assert_eq!(read, entries, "what was appended is readable at once");
        receiver
    }

    async fn apply(&mut self, group: usize, count: u64) {
        let first = self.applied_index(group) + 1;
        let end = self.now(group).last().index.min(first.saturating_add(count - 1));
        let mut reader = self.stores[group].get_log_reader().await;
        for index in first..=end {
            let entries = reader.try_get_log_entries(index..=index).await.expect("reads");
            assert_eq!(entries, [self.now(group).entries[&index].clone()]);
            apply(&mut self.machines[group], entries).await;
            self.note_applied(group);
        }
    }

    /// Every state that a crash may have left comes back right.
    async fn check_every_cut(self) {
        let journal = self.engine.journal();
        let first = descriptors().len();
        for kept in first..=journal.len() {
            let engine = shared(rebuild(&journal, kept));
            let required = acknowledged(&journal, kept);
            self.check(engine, required).await;
        }
    }

    async fn check(&self, engine: Arc<dyn Engine>, required: usize) {
        let mut found = Vec::new();
        let mut applied = Vec::new();
        recover(engine.as_ref()).expect("recovers");
        let writer = LogWriter::start(engine.clone()).expect("starts");
        for (group, descriptor) in descriptors().iter().enumerate() {
            let open = ReplicaMachine::open(engine.clone(), writer.clone(), descriptor.id);
            let mut machine = open.expect("the machine opens");
            let open = LogStore::open(engine.clone(), writer.clone(), descriptor.id, 1000);
            let mut store = open.expect("the log opens");
            let record = machine.replica().applied();
            let (known, known_rows) = &self.applied[group][&record.index()];
            assert_eq!(&record, known, "what was applied comes back as it was");
            assert_eq!(&rows(engine.as_ref(), descriptor), known_rows, "and with its rows");
            found.push(read_back(&mut store).await);
            applied.push(record.last_log_id.expect("something is applied"));
            let mut helper = StorageHelper::new(&mut store, &mut machine).with_id(NodeId(1));
            helper.get_initial_state().await.expect("openraft starts from it");
            assert_eq!(machine.applied_state().await.expect("reads").0, Some(applied[group]));
        }
        let matches = |models: &&[Model; GROUPS]| {
            (0..GROUPS).all(|group| {
                let mut model = models[group].clone();
                model.fit(applied[group]);
                model == found[group]
            })
        };
        let candidates = &self.models[required..];
        assert!(
            candidates.iter().any(|models| matches(&models)),
            "after {required} acknowledged steps of {}, what came back is no state at or after them: {found:#?}",
            self.models.len() - 1
        );
        for group in 0..GROUPS {
            assert!(
                found[group].purged.index <= applied[group].index,
                "nothing is purged that is not applied"
            );
        }
    }
}

async fn read_back(store: &mut LogStore) -> Model {
    let state = store.get_log_state().await.expect("reads");
    let mut reader = store.get_log_reader().await;
    let entries = reader.try_get_log_entries(..).await.expect("reads without a hole");
    let vote = reader.read_vote().await.expect("reads");
    let purged = state.last_purged_log_id.expect("new groups have one");
    let model = Model {
        entries: entries.into_iter().map(|entry| (entry.log_id.index, entry)).collect(),
        purged,
        vote,
    };
    assert_eq!(state.last_log_id, Some(model.last()));
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn nothing_acknowledged_is_lost_and_no_order_is_broken(steps in proptest::collection::vec(step(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut node = Node::new();
            for step in &steps {
                node.run(step).await;
            }
            // Lets the writer finish, so that the journal is whole.
            node.run(&Step::Vote { group: 0 }).await;
            node.check_every_cut().await;
        });
    }
}

#[test]
fn the_check_refuses_a_log_that_lost_an_acknowledged_entry() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let refused = runtime.block_on(async {
        let mut node = Node::new();
        node.run(&Step::Append { group: 0, entries: 2, value_bytes: 5, wait: true }).await;
        let journal = node.engine.journal();
        // As if the sync had not happened: only the two groups' records are left.
        let engine = shared(rebuild(&journal, GROUPS));
        AssertUnwindSafe(node.check(engine, 1)).catch_unwind().await.is_err()
    });
    assert!(refused);
}
