//! Tasks that wait for workers, and workers that wait for tasks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Duration, Instant};

use crate::rpc::v1::SagaTask;
use crate::saga::TaskRef;

/// Workers that wait on one queue, at most.
const MAX_WAITING: usize = 4_096;
/// A queue that nobody wants anything of is forgotten once there are so many.
const MANY_QUEUES: usize = 1_024;

/// A task that waits.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Waiting {
    /// Its saga.
    pub id: String,
    /// The task.
    pub task: TaskRef,
}

/// A worker that waits for a task.
pub struct Poller {
    /// On which queue.
    pub queue: String,
    /// Who; for people.
    pub worker: String,
    /// Where the task is sent.
    pub send: oneshot::Sender<SagaTask>,
}

/// What a poll comes to at once.
pub enum Poll {
    /// These are to be handed out.
    Ready(Vec<Waiting>),
    /// Nothing now; this resolves when something came.
    Wait(oneshot::Receiver<SagaTask>),
    /// Too many wait already.
    Full,
}

#[derive(Default)]
struct Queue {
    /// By priority, then in the order in which they came.
    ready: BTreeMap<(Reverse<u8>, u64), Waiting>,
    pollers: VecDeque<Poller>,
    /// Those who only want to know that there is something.
    lookers: VecDeque<oneshot::Sender<()>>,
    limit: Option<Limit>,
}

/// How many may be handed out.
struct Limit {
    rate_per_s: f64,
    /// What may be handed out at once; at most a second's.
    tokens: f64,
    at: Instant,
}

impl Limit {
    fn refill(&mut self, now: Instant) {
        let passed_s = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed_s * self.rate_per_s).min(self.rate_per_s.max(1.0));
        self.at = now;
    }
}

impl Queue {
    /// Whether one more may be handed out now; it is counted then.
    fn admit(&mut self, now: Instant) -> bool {
        let Some(limit) = &mut self.limit else { return true };
        limit.refill(now);
        if limit.tokens < 1.0 {
            return false;
        }
        limit.tokens -= 1.0;
        true
    }

    fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.pollers.is_empty() && self.lookers.is_empty() && self.limit.is_none()
    }
}

/// All queues of an engine.
#[derive(Default)]
pub struct Queues {
    inner: Mutex<Inner>,
    /// Something waits that a limit held back, or a worker came to a queue with tasks.
    matches: Notify,
}

#[derive(Default)]
struct Inner {
    queues: HashMap<String, Queue>,
    /// All tasks that wait: none does twice.
    waiting: HashSet<Waiting>,
    next: u64,
}

impl Queues {
    /// A task waits for a worker; no effect where it does already. Those who wait for it are matched by
    /// [`matched`](Self::matched).
    pub fn push(&self, queue: &str, priority: u8, task: Waiting) {
        let mut inner = self.inner.lock();
        if !inner.waiting.insert(task.clone()) {
            return;
        }
        inner.next += 1;
        let place = (Reverse(priority), inner.next);
        let queue = inner.queues.entry(queue.to_owned()).or_default();
        queue.ready.insert(place, task);
        for looker in queue.lookers.drain(..) {
            // Whoever looked may have gone.
            let _ = looker.send(());
        }
        if !queue.pollers.is_empty() {
            self.matches.notify_one();
        }
    }

    /// A worker wants at most `max` tasks; where there are none now it waits.
    pub fn poll(&self, name: &str, worker: &str, max: usize) -> Poll {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if inner.queues.len() > MANY_QUEUES {
            inner.queues.retain(|_, queue| !queue.is_idle());
        }
        let queue = inner.queues.entry(name.to_owned()).or_default();
        let now = Instant::now();
        let mut taken = Vec::new();
        while taken.len() < max && !queue.ready.is_empty() && queue.admit(now) {
            taken.extend(queue.ready.pop_first().map(|(_, task)| task));
        }
        taken.iter().for_each(|task| {
            inner.waiting.remove(task);
        });
        if !taken.is_empty() {
            return Poll::Ready(taken);
        }
        queue.pollers.retain(|poller| !poller.send.is_closed());
        if queue.pollers.len() >= MAX_WAITING {
            return Poll::Full;
        }
        let (send, receive) = oneshot::channel();
        queue.pollers.push_back(Poller { queue: name.to_owned(), worker: worker.to_owned(), send });
        if !queue.ready.is_empty() {
            // A limit holds them back for a while.
            self.matches.notify_one();
        }
        Poll::Wait(receive)
    }

    /// Resolves when there is something in a queue; at once where there is.
    pub fn look(&self, queue: &str) -> oneshot::Receiver<()> {
        let (send, receive) = oneshot::channel();
        let mut inner = self.inner.lock();
        let queue = inner.queues.entry(queue.to_owned()).or_default();
        if queue.ready.is_empty() {
            queue.lookers.retain(|looker| !looker.is_closed());
            queue.lookers.push_back(send);
        } else {
            // The receiver is still here.
            let _ = send.send(());
        }
        receive
    }

    /// A worker that waits for a task of this queue, where nothing came before it: it gets the task of the transition that
    /// is being made.
    pub fn take_poller(&self, queue: &str) -> Option<Poller> {
        let mut inner = self.inner.lock();
        let queue = inner.queues.get_mut(queue)?;
        if !queue.ready.is_empty() {
            return None;
        }
        let poller = pop_open(&mut queue.pollers)?;
        if queue.admit(Instant::now()) {
            return Some(poller);
        }
        queue.pollers.push_front(poller);
        None
    }

    /// A worker goes on waiting, before all others.
    pub fn put_back(&self, poller: Poller) {
        let mut inner = self.inner.lock();
        let queue = inner.queues.entry(poller.queue.clone()).or_default();
        queue.pollers.push_front(poller);
        if !queue.ready.is_empty() {
            self.matches.notify_one();
        }
    }

    /// Pairs of tasks and workers that wait for each other, and in how long there may be more by a limit.
    pub fn matched(&self) -> (Vec<(Waiting, Poller)>, Option<Duration>) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let now = Instant::now();
        let (mut pairs, mut again) = (Vec::new(), None);
        for queue in inner.queues.values_mut() {
            while !queue.ready.is_empty() {
                let Some(poller) = pop_open(&mut queue.pollers) else { break };
                if !queue.admit(now) {
                    queue.pollers.push_front(poller);
                    let rate_per_s = queue.limit.as_ref().map_or(1.0, |limit| limit.rate_per_s);
                    let pause = Duration::from_secs_f64((1.0 / rate_per_s).clamp(0.001, 60.0));
                    again = Some(again.map_or(pause, |least: Duration| least.min(pause)));
                    break;
                }
                if let Some((_, task)) = queue.ready.pop_first() {
                    inner.waiting.remove(&task);
                    pairs.push((task, poller));
                }
            }
        }
        (pairs, again)
    }

    /// Returns when [`matched`](Self::matched) may have something.
    pub async fn wait_for_match(&self) {
        self.matches.notified().await;
    }

    /// Sets how many tasks a second are handed out; `None` is no limit.
    pub fn set_limit(&self, queue: &str, rate_per_s: Option<f64>) {
        let mut inner = self.inner.lock();
        let queue = inner.queues.entry(queue.to_owned()).or_default();
        match (&mut queue.limit, rate_per_s) {
            (Some(limit), Some(rate_per_s)) => {
                limit.refill(Instant::now());
                limit.rate_per_s = rate_per_s;
            }
            (limit, rate_per_s) => {
                *limit = rate_per_s.map(|rate_per_s| Limit { rate_per_s, tokens: 1.0, at: Instant::now() });
            }
        }
        self.matches.notify_one();
    }

    /// A worker waits no longer.
    pub fn leave(&self, queue: &str, worker: &str) {
        let mut inner = self.inner.lock();
        if let Some(queue) = inner.queues.get_mut(queue) {
            queue.pollers.retain(|poller| poller.worker != worker);
        }
    }

    /// Nobody waits any longer.
    pub fn end_waits(&self) {
        for queue in self.inner.lock().queues.values_mut() {
            queue.pollers.clear();
            queue.lookers.clear();
        }
    }

    /// How many tasks wait.
    pub fn ready(&self) -> usize {
        self.inner.lock().waiting.len()
    }
}

/// The first one that still waits.
fn pop_open(pollers: &mut VecDeque<Poller>) -> Option<Poller> {
    while let Some(poller) = pollers.pop_front() {
        if !poller.send.is_closed() {
            return Some(poller);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saga::TaskKind;

    fn task(id: &str) -> Waiting {
        Waiting { id: id.to_owned(), task: TaskRef { step: 0, kind: TaskKind::Action } }
    }

    fn taken(poll: Poll) -> Vec<String> {
        match poll {
            Poll::Ready(tasks) => tasks.into_iter().map(|task| task.id).collect(),
            Poll::Wait(_) | Poll::Full => Vec::new(),
        }
    }

    #[test]
    fn larger_priorities_go_first_and_among_equals_who_came_first() {
        let queues = Queues::default();
        for (id, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5), ("a", 9)] {
            queues.push("q", priority, task(id));
        }
        assert_eq!(taken(queues.poll("q", "w", 3)), ["b", "d", "a"]);
        assert_eq!(taken(queues.poll("other", "w", 3)), [""; 0]);
        assert_eq!(queues.ready(), 1);
    }

    #[tokio::test]
    async fn who_waits_is_served_in_order_and_who_left_is_passed_over() {
        let queues = Queues::default();
        let (Poll::Wait(first), Poll::Wait(second)) = (queues.poll("q", "1", 1), queues.poll("q", "2", 1))
        else {
            panic!("nothing is there")
        };
        let looks = queues.look("q");
        drop(first);
        queues.push("q", 0, task("a"));
        looks.await.expect("something came");
        let (pairs, again) = queues.matched();
        assert_eq!((pairs.len(), again), (1, None));
        assert_eq!((pairs[0].0.id.as_str(), pairs[0].1.worker.as_str()), ("a", "2"));
        drop(second);
        assert!(queues.take_poller("q").is_none());
    }

    #[tokio::test]
    async fn a_limit_holds_back() {
        let queues = Queues::default();
        queues.set_limit("q", Some(0.001));
        queues.push("q", 0, task("a"));
        queues.push("q", 0, task("b"));
        assert_eq!(taken(queues.poll("q", "w", 2)), ["a"]);
        let Poll::Wait(_kept) = queues.poll("q", "w", 2) else { panic!("it is held back") };
        let (pairs, again) = queues.matched();
        assert!(pairs.is_empty() && again.is_some());
        queues.set_limit("q", None);
        assert_eq!(queues.matched().0.len(), 1);
    }
}
