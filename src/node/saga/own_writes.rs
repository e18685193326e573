//! Which of the writes that an engine hears of are its own.
//!
//! Each transition writes the row that says where its saga is, once. It is counted before it is sent, and counted off when
//! it is heard of; or when it is refused. One of unknown fate is counted off too: should it be applied later, it is heard
//! of like one of others, and the saga looked at.

use std::collections::HashMap;

use parking_lot::Mutex;

/// Writes under way, and applied ones that were not heard of yet, by saga.
#[derive(Default)]
pub struct OwnWrites(Mutex<HashMap<String, u32>>);

impl OwnWrites {
    /// One is about to be sent.
    pub fn begin(&self, id: &str) {
        *self.0.lock().entry(id.to_owned()).or_default() += 1;
    }

    /// One was not applied, or may be so later.
    pub fn failed(&self, id: &str) {
        self.heard(id);
    }

    /// A write was heard of. Answers whether it is an own one.
    pub fn heard(&self, id: &str) -> bool {
        let mut writes = self.0.lock();
        let Some(count) = writes.get_mut(id) else { return false };
        *count -= 1;
        if *count == 0 {
            writes.remove(id);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_writes_are_told_from_those_of_others() {
        let writes = OwnWrites::default();
        assert!(!writes.heard("a"), "of others");
        writes.begin("a");
        writes.begin("a");
        assert!(!writes.heard("b") && writes.heard("a"));
        writes.failed("a");
        assert!(!writes.heard("a"), "of others again");
        assert!(writes.0.lock().is_empty());
    }
}
