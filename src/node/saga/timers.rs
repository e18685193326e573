//! When sagas are next to be looked at. All that waits costs a place in memory, and nothing else until it is due.

use std::collections::{BTreeSet, HashMap};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Sagas by when they are due.
#[derive(Default)]
pub struct Timers {
    inner: Mutex<Inner>,
    /// The first one is due earlier than before.
    earlier: Notify,
}

#[derive(Default)]
struct Inner {
    order: BTreeSet<(u64, String)>,
    due_ms: HashMap<String, u64>,
}

impl Timers {
    /// Sets when a saga is next due; `None` for never.
    pub fn set(&self, id: &str, due_ms: Option<u64>) {
        let mut inner = self.inner.lock();
        let first = inner.order.first().map(|(at_ms, _)| *at_ms);
        if let Some(before) = inner.due_ms.remove(id) {
            inner.order.remove(&(before, id.to_owned()));
        }
        if let Some(due_ms) = due_ms {
            inner.due_ms.insert(id.to_owned(), due_ms);
            inner.order.insert((due_ms, id.to_owned()));
            if first.is_none_or(|first| due_ms < first) {
                self.earlier.notify_one();
            }
        }
    }

    /// Sets when a saga is next due, unless it is earlier: for who knows what was so a while ago. A look that comes too early
    /// does nothing.
    pub fn set_at_most(&self, id: &str, due_ms: u64) {
        let is_later = self.inner.lock().due_ms.get(id).is_none_or(|known_ms| *known_ms > due_ms);
        if is_later {
            self.set(id, Some(due_ms));
        }
    }

    /// When the first one is due.
    pub fn first_ms(&self) -> Option<u64> {
        self.inner.lock().order.first().map(|(at_ms, _)| *at_ms)
    }

    /// Takes one that is due by now.
    pub fn pop_due(&self, now_ms: u64) -> Option<String> {
        let mut inner = self.inner.lock();
        let (due_ms, _) = inner.order.first()?;
        if *due_ms > now_ms {
            return None;
        }
        let (_, id) = inner.order.pop_first()?;
        inner.due_ms.remove(&id);
        Some(id)
    }

    /// Returns once one is due earlier than all were before.
    pub async fn earlier(&self) {
        self.earlier.notified().await;
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.inner.lock().order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_comes_first_and_each_once() {
        let timers = Timers::default();
        timers.set("b", Some(20));
        timers.set("a", Some(30));
        timers.set("c", Some(10));
        timers.set("c", Some(25));
        timers.set("b", None);
        assert_eq!((timers.first_ms(), timers.len()), (Some(25), 2));
        assert_eq!(timers.pop_due(24), None);
        assert_eq!(timers.pop_due(40).as_deref(), Some("c"));
        assert_eq!(timers.pop_due(40).as_deref(), Some("a"));
        assert_eq!((timers.pop_due(40), timers.first_ms()), (None, None));
    }
}
