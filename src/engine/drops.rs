//! Which rows an engine may drop while it rewrites its files, and who keeps it from that for a while.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Family;

/// Says of a key and its value whether the row may be dropped. Called from threads of the engine's own; must
/// not panic.
pub type DropRule = Box<dyn Fn(&[u8], &[u8]) -> bool + Send>;

/// Which rows the engine may drop when it rewrites its files. It does so at any time or never, also under
/// views that stand: a rule must spare what they may still ask for.
pub trait DropRules: Send + Sync + 'static {
    /// The rule for one rewriting of some files of a family; `None` drops nothing.
    fn begin(&self, family: Family) -> Option<DropRule>;
}

/// The rules of one engine, once they are set. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Drops(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    rules: Option<Arc<dyn DropRules>>,
    keepers: usize,
}

impl Drops {
    pub(super) fn set(&self, rules: Arc<dyn DropRules>) {
        self.0.lock().rules = Some(rules);
    }

    /// The rule for a rewriting that begins now. Under the lock, so that it has its rule before a keeper comes, or
    /// sees the keeper.
    pub(super) fn begin(&self, family: Family) -> Option<DropRule> {
        let inner = self.0.lock();
        if inner.keepers > 0 {
            return None;
        }
        inner.rules.as_ref().and_then(|rules| rules.begin(family))
    }

    /// Whether nobody keeps rows now.
    pub(super) fn allowed(&self) -> bool {
        self.0.lock().keepers == 0
    }

    pub(super) fn keep(&self) -> KeepRows {
        self.0.lock().keepers += 1;
        KeepRows(self.clone())
    }
}

/// While it is held, no rewriting of files that drops rows begins. See [`Engine::keep_rows`](super::Engine::keep_rows).
#[must_use = "rows are kept only while it is held"]
pub struct KeepRows(Drops);

impl Drop for KeepRows {
    fn drop(&mut self) {
        self.0.0.lock().keepers -= 1;
    }
}
