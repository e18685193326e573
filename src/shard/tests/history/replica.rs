//! One replica of both shards, which compacts on demand.

use super::*;

/// One replica of both shards.
pub(super) struct Replica {
    pub(super) engine: MemoryEngine,
    pub(super) states: Vec<State>,
}

impl Replica {
    pub(super) fn new() -> Self {
        let cut = Bytes::from_static(CUT);
        let states = [KeyRange::new("", Some(cut.clone())), KeyRange::new(cut, None)]
            .into_iter()
            .enumerate()
            .map(|(number, range)| {
                let mut state = new_state();
                state.descriptor.id = ShardId(number as u64);
                state.descriptor.range = range;
                state
            })
            .collect();
        Self { engine: MemoryEngine::new(), states }
    }

    pub(super) fn apply(&mut self, shard: usize, command: &Command) -> Outcome {
        let view = self.engine.view();
        let mut overlay = Overlay::new(view.as_ref());
        let entry = Entry::Commands(vec![command.clone()]);
        let outcomes = shard::apply(&mut self.states[shard], &mut overlay, &entry).expect("applies");
        let batch = overlay.into_batch();
        drop(view);
        self.engine.write(batch, Durability::Buffered).expect("writes");
        outcomes.into_iter().next().expect("one outcome")
    }

    pub(super) fn compact(&self) {
        let floors = Floors::new(shard::may_drop);
        for state in &self.states {
            floors.publish(state.descriptor.id, state.descriptor.range.clone(), state.floor());
        }
        assert!(floors.begin(crate::engine::Family::Lock).is_none());
        self.engine.set_drop_rules(floors);
        self.engine.compact_all().expect("compacts");
    }

    pub(super) fn sums(&self) -> Vec<shard::RowsChecksum> {
        let sum = |state: &State| {
            let view = self.engine.view();
            shard::checksum_rows(view.as_ref(), state).expect("reads")
        };
        self.states.iter().map(sum).collect()
    }
}
