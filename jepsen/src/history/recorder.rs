//! Writing down what happens, from many threads, in the order in which it happens.

use std::io::{self, Write};
use std::time::Instant;

use parking_lot::Mutex;

use super::{Op, edn, jsonl};

/// Takes operations from many threads. Index and time are given in one critical section, and the lines are
/// written inside it, so the order of lines is real time: a completion that comes before an invocation in the
/// file was recorded before it.
///
/// A client records its invocation *before* it sends anything and its completion *after* it has the answer.
pub struct Recorder {
    began: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    edn: Box<dyn Write + Send>,
    jsonl: Box<dyn Write + Send>,
    ops: Vec<Op>,
    next_process: u64,
}

impl Recorder {
    /// A recorder that writes both formats as it goes. Give it buffered writers; [`Recorder::flush`] and
    /// [`Recorder::finish`] empty them.
    pub fn new(edn: impl Write + Send + 'static, jsonl: impl Write + Send + 'static) -> Self {
        let inner = Inner { edn: Box::new(edn), jsonl: Box::new(jsonl), ops: Vec::new(), next_process: 0 };
        Recorder { began: Instant::now(), inner: Mutex::new(inner) }
    }

    /// A recorder that keeps operations in memory only.
    pub fn in_memory() -> Self {
        Recorder::new(io::sink(), io::sink())
    }

    /// When the history began: operations' times count from here.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// A process number that was never given before. A client whose operation ended with
    /// [`Kind::Info`](super::Kind::Info) goes on under a new one.
    pub fn new_process(&self) -> u64 {
        let mut inner = self.inner.lock();
        inner.next_process += 1;
        inner.next_process - 1
    }

    /// Records an operation now: sets its index and time, writes it to both files, and returns its index.
    ///
    /// Fails if a file cannot be written; the operation is then in memory but perhaps not in the files, and
    /// the run must end.
    pub fn record(&self, mut op: Op) -> io::Result<u64> {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        op.index = inner.ops.len() as u64;
        op.time_ns = self.began.elapsed().as_nanos() as u64;
        inner.ops.push(op);
        let op = &inner.ops[inner.ops.len() - 1];
        jsonl::write_op(&mut inner.jsonl, op)?;
        edn::write_op(&mut inner.edn, op)?;
        Ok(op.index)
    }

    /// How many entries there are so far.
    pub fn len(&self) -> usize {
        self.inner.lock().ops.len()
    }

    /// Whether nothing was recorded yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of the entries from position `from` on, for progress displays.
    pub fn since(&self, from: usize) -> Vec<Op> {
        self.inner.lock().ops.get(from..).unwrap_or_default().to_vec()
    }

    /// Empties the writers' buffers.
    pub fn flush(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.jsonl.flush()?;
        inner.edn.flush()
    }

    /// Ends the recording: empties the writers' buffers and returns every entry, in order.
    pub fn finish(self) -> io::Result<Vec<Op>> {
        self.flush()?;
        Ok(self.inner.into_inner().ops)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::history::{F, Kind, Value};

    #[test]
    fn indexes_and_times_rise_together_from_many_threads() {
        let recorder = Arc::new(Recorder::in_memory());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let recorder = Arc::clone(&recorder);
                std::thread::spawn(move || {
                    let process = recorder.new_process();
                    for value in 0..100 {
                        let invoke = Op::invoke(process, F::Write, Value::Int(value)).with_key("k");
                        recorder.record(invoke.clone()).unwrap();
                        recorder.record(invoke.ok(Value::Int(value))).unwrap();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let ops = Arc::into_inner(recorder).unwrap().finish().unwrap();
        assert_eq!(ops.len(), 800);
        for (place, pair) in ops.windows(2).enumerate() {
            assert_eq!(pair[0].index, place as u64);
            assert!(pair[0].time_ns <= pair[1].time_ns);
        }
        let processes: std::collections::BTreeSet<u64> = ops.iter().map(|op| op.process).collect();
        assert_eq!(processes.len(), 4);
        assert_eq!(ops.iter().filter(|op| op.kind == Kind::Ok).count(), 400);
    }
}
