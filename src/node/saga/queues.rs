//! Tasks that wait for workers, and workers that wait for tasks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Duration, Instant};

use crate::rpc::v1::SagaTask;
use crate::saga::{Definition, State, TaskRef};

/// Workers that wait on one queue, at most.
const MAX_WAITING: usize = 4_096;
/// A queue that nobody wants anything of is forgotten once there are so many.
const MANY_QUEUES: usize = 1_024;
/// Tasks that are handed out together come with at most so much, unless a single one does with more: they are one message.
const TOGETHER_BYTES: u64 = 4 * 1024 * 1024;
/// What a task comes with, besides its saga's input and outputs.
const TASK_BYTES: u64 = 1_024;

/// A task that waits.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Waiting {
    /// Its saga.
    pub id: String,
    /// The task.
    pub task: TaskRef,
}

/// A task that may be handed out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ready {
    /// The task.
    pub task: TaskRef,
    /// On which queue.
    pub queue: String,
    /// Larger ones go first.
    pub priority: u8,
    /// How much its worker gets with it.
    pub size_bytes: u64,
}

impl Ready {
    /// What of a saga may be handed out.
    pub fn of(state: &State, definition: &Definition) -> Vec<Self> {
        let size_bytes = state.payload_bytes() + TASK_BYTES;
        let ready = state.ready(definition);
        ready
            .map(|(task, call)| Self {
                task,
                queue: call.queue.clone(),
                priority: state.priority,
                size_bytes,
            })
            .collect()
    }
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
    /// Nothing now, and nobody waits.
    Nothing,
    /// Too many wait already.
    Full,
}

/// By priority, then in the order in which they came.
type Order = (Reverse<u8>, u64);

/// Where a task waits.
struct Place {
    task: TaskRef,
    queue: String,
    order: Order,
}

#[derive(Default)]
struct Queue {
    /// With how much their workers get.
    ready: BTreeMap<Order, (Waiting, u64)>,
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
    /// Whether one more may be handed out now, as far as its limit goes.
    fn may_admit(&mut self, now: Instant) -> bool {
        let Some(limit) = &mut self.limit else { return true };
        limit.refill(now);
        limit.tokens >= 1.0
    }

    /// The same; it is counted then.
    fn admit(&mut self, now: Instant) -> bool {
        let may = self.may_admit(now);
        if let (true, Some(limit)) = (may, &mut self.limit) {
            limit.tokens -= 1.0;
        }
        may
    }

    /// In how long its limit may let one more through.
    fn pause(&self) -> Duration {
        let rate_per_s = self.limit.as_ref().map_or(1.0, |limit| limit.rate_per_s);
        Duration::from_secs_f64((1.0 / rate_per_s).clamp(0.001, 60.0))
    }

    fn wake_lookers(&mut self) {
        for looker in self.lookers.drain(..) {
            // Whoever looked may have gone.
            let _ = looker.send(());
        }
    }

    /// Some that were counted were not handed out after all.
    fn refund(&mut self, count: usize) {
        if let Some(limit) = &mut self.limit {
            limit.tokens += count as f64;
        }
    }

    /// Whether nobody wants anything of it.
    fn is_idle(&mut self) -> bool {
        self.pollers.retain(|poller| !poller.send.is_closed());
        self.lookers.retain(|looker| !looker.is_closed());
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
    /// All tasks that wait, by their sagas: none does twice.
    waiting: HashMap<String, Vec<Place>>,
    next: u64,
    /// Nobody is to wait any more.
    is_over: bool,
}

impl Inner {
    /// A task waits; nothing where it does already. Whether somebody waits for it.
    fn push(&mut self, id: &str, ready: Ready) -> bool {
        let places = self.waiting.entry(id.to_owned()).or_default();
        if let Some(place) = places.iter().find(|place| place.task == ready.task) {
            // Steps beside it have come to something meanwhile.
            let queue = self.queues.get_mut(&place.queue);
            if let Some((_, size_bytes)) = queue.and_then(|queue| queue.ready.get_mut(&place.order)) {
                *size_bytes = ready.size_bytes;
            }
            return false;
        }
        self.next += 1;
        let Ready { task, queue: name, priority, size_bytes } = ready;
        let order = (Reverse(priority), self.next);
        places.push(Place { task, queue: name.clone(), order });
        let queue = self.queues.entry(name).or_default();
        queue.ready.insert(order, (Waiting { id: id.to_owned(), task }, size_bytes));
        if queue.may_admit(Instant::now()) {
            queue.wake_lookers();
        }
        !(queue.pollers.is_empty() && queue.lookers.is_empty())
    }

    /// A task that was taken waits no longer.
    fn taken(waiting: &mut HashMap<String, Vec<Place>>, task: &Waiting) {
        if let Some(places) = waiting.get_mut(&task.id) {
            places.retain(|place| place.task != task.task);
            if places.is_empty() {
                waiting.remove(&task.id);
            }
        }
    }
}

impl Queues {
    /// A task waits for a worker; no effect where it does already. Those who wait for it are matched by
    /// [`matched`](Self::matched).
    pub fn push(&self, id: &str, ready: Ready) {
        if self.inner.lock().push(id, ready) {
            self.matches.notify_one();
        }
    }

    /// These tasks of a saga wait for workers, and no others of it.
    pub fn set_ready(&self, id: &str, ready: Vec<Ready>) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if let Some(places) = inner.waiting.get_mut(id) {
            for place in places.extract_if(.., |place| ready.iter().all(|ready| ready.task != place.task)) {
                if let Some(queue) = inner.queues.get_mut(&place.queue) {
                    queue.ready.remove(&place.order);
                }
            }
            if places.is_empty() {
                inner.waiting.remove(id);
            }
        }
        let mut is_waited_for = false;
        for ready in ready {
            is_waited_for |= inner.push(id, ready);
        }
        if is_waited_for {
            self.matches.notify_one();
        }
    }

    /// A worker wants at most `max` tasks; where there are none now it waits, if it `waits` at all.
    pub fn poll(&self, name: &str, worker: &str, max: usize, waits: bool) -> Poll {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if inner.queues.len() > MANY_QUEUES {
            inner.queues.retain(|_, queue| !queue.is_idle());
        }
        let queue = inner.queues.entry(name.to_owned()).or_default();
        let now = Instant::now();
        let (mut taken, mut bytes) = (Vec::new(), 0_u64);
        while let Some(first) = queue.ready.first_entry() {
            bytes += first.get().1;
            let is_too_much = !taken.is_empty() && bytes > TOGETHER_BYTES;
            if taken.len() >= max || is_too_much || !queue.admit(now) {
                break;
            }
            taken.extend(queue.ready.pop_first().map(|(_, (task, _))| task));
        }
        taken.iter().for_each(|task| Inner::taken(&mut inner.waiting, task));
        if !taken.is_empty() {
            return Poll::Ready(taken);
        }
        if !waits {
            return Poll::Nothing;
        }
        queue.pollers.retain(|poller| !poller.send.is_closed());
        if queue.pollers.len() >= MAX_WAITING {
            return Poll::Full;
        }
        let (send, receive) = oneshot::channel();
        if inner.is_over {
            return Poll::Wait(receive);
        }
        queue.pollers.push_back(Poller { queue: name.to_owned(), worker: worker.to_owned(), send });
        if !queue.ready.is_empty() {
            // A limit holds them back for a while.
            self.matches.notify_one();
        }
        Poll::Wait(receive)
    }

    /// Resolves when something may be taken from a queue; at once where it may. Where too many look, the one that has for
    /// longest does so no more: who has gone is not always known.
    pub fn look(&self, queue: &str) -> oneshot::Receiver<()> {
        let (send, receive) = oneshot::channel();
        let mut inner = self.inner.lock();
        if inner.is_over {
            return receive;
        }
        let queue = inner.queues.entry(queue.to_owned()).or_default();
        if !queue.ready.is_empty() && queue.may_admit(Instant::now()) {
            // The receiver is still here.
            let _ = send.send(());
            return receive;
        }
        queue.lookers.retain(|looker| !looker.is_closed());
        if queue.lookers.len() >= MAX_WAITING {
            queue.lookers.pop_front();
        }
        queue.lookers.push_back(send);
        if !queue.ready.is_empty() {
            // A limit holds them back for a while.
            self.matches.notify_one();
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

    /// A worker did not get the task that was meant for it: it goes on waiting, before all others.
    pub fn put_back(&self, poller: Poller) {
        let mut inner = self.inner.lock();
        if inner.is_over {
            return;
        }
        let queue = inner.queues.entry(poller.queue.clone()).or_default();
        queue.refund(1);
        queue.pollers.push_front(poller);
        if !queue.ready.is_empty() {
            self.matches.notify_one();
        }
    }

    /// Some tasks of a queue that were taken were not handed out after all: its limit does not count them.
    pub fn refund(&self, queue: &str, count: usize) {
        if let Some(queue) = self.inner.lock().queues.get_mut(queue) {
            queue.refund(count);
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
                    break;
                }
                if let Some((_, (task, _))) = queue.ready.pop_first() {
                    Inner::taken(&mut inner.waiting, &task);
                    pairs.push((task, poller));
                }
            }
            if queue.ready.is_empty() || (queue.pollers.is_empty() && queue.lookers.is_empty()) {
                continue;
            }
            if queue.may_admit(now) {
                queue.wake_lookers();
            } else {
                let pause = queue.pause();
                again = Some(again.map_or(pause, |least: Duration| least.min(pause)));
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

    /// Nobody waits any longer, from now on.
    pub fn end_waits(&self) {
        let mut inner = self.inner.lock();
        inner.is_over = true;
        for queue in inner.queues.values_mut() {
            queue.pollers.clear();
            queue.lookers.clear();
        }
    }

    /// How many tasks wait.
    pub fn ready(&self) -> usize {
        self.inner.lock().waiting.values().map(Vec::len).sum()
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

    fn ready(priority: u8, size_bytes: u64) -> Ready {
        let task = TaskRef { step: 0, kind: TaskKind::Action };
        Ready { task, queue: "q".to_owned(), priority, size_bytes }
    }

    fn taken(poll: Poll) -> Vec<String> {
        match poll {
            Poll::Ready(tasks) => tasks.into_iter().map(|task| task.id).collect(),
            Poll::Wait(_) | Poll::Nothing | Poll::Full => Vec::new(),
        }
    }

    #[test]
    fn larger_priorities_go_first_and_among_equals_who_came_first() {
        let queues = Queues::default();
        for (id, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5), ("a", 9)] {
            queues.push(id, ready(priority, 1));
        }
        assert_eq!(taken(queues.poll("q", "w", 3, true)), ["b", "d", "a"]);
        assert_eq!(taken(queues.poll("other", "w", 3, true)), [""; 0]);
        assert_eq!(queues.ready(), 1);
    }

    #[tokio::test]
    async fn who_waits_is_served_in_order_and_who_left_is_passed_over() {
        let queues = Queues::default();
        let (Poll::Wait(first), Poll::Wait(second)) =
            (queues.poll("q", "1", 1, true), queues.poll("q", "2", 1, true))
        else {
            panic!("nothing is there")
        };
        let looks = queues.look("q");
        drop(first);
        queues.push("a", ready(0, 1));
        looks.await.expect("something came");
        let (pairs, again) = queues.matched();
        assert_eq!((pairs.len(), again), (1, None));
        assert_eq!((pairs[0].0.id.as_str(), pairs[0].1.worker.as_str()), ("a", "2"));
        drop(second);
        assert!(queues.take_poller("q").is_none());
    }

    #[test]
    fn what_is_taken_together_is_bounded_in_bytes_but_one_is_always_taken() {
        let queues = Queues::default();
        for (id, size_bytes) in
            [("a", TOGETHER_BYTES * 3), ("b", TOGETHER_BYTES / 2), ("c", TOGETHER_BYTES / 2), ("d", 1)]
        {
            queues.push(id, ready(0, size_bytes));
        }
        assert_eq!(taken(queues.poll("q", "w", 9, true)), ["a"]);
        assert_eq!(taken(queues.poll("q", "w", 9, true)), ["b", "c"]);
        assert_eq!(taken(queues.poll("q", "w", 9, true)), ["d"]);
        // It comes with more than when it came.
        queues.set_ready("e", vec![ready(0, 1)]);
        queues.set_ready("f", vec![ready(0, 1)]);
        queues.set_ready("f", vec![ready(0, TOGETHER_BYTES)]);
        assert_eq!(taken(queues.poll("q", "w", 9, true)), ["e"]);
    }

    #[tokio::test]
    async fn what_is_not_wanted_any_more_is_gone_and_nobody_waits_after_the_end() {
        let queues = Queues::default();
        queues.set_ready("a", vec![ready(0, 1)]);
        queues.set_ready("b", vec![ready(0, 1)]);
        queues.set_ready("a", Vec::new());
        queues.set_ready("a", Vec::new());
        assert_eq!(queues.ready(), 1);
        assert_eq!(taken(queues.poll("q", "w", 9, true)), ["b"]);
        assert_eq!(queues.ready(), 0);
        let Poll::Wait(waits) = queues.poll("q", "w", 1, true) else { panic!("nothing is there") };
        queues.end_waits();
        let Poll::Wait(comes_late) = queues.poll("q", "w", 1, true) else { panic!("nothing is there") };
        assert!(waits.await.is_err() && comes_late.await.is_err());
        assert!(queues.look("q").await.is_err());
    }

    #[tokio::test]
    async fn a_limit_holds_back() {
        let queues = Queues::default();
        queues.set_limit("q", Some(0.001));
        queues.push("a", ready(0, 1));
        queues.push("b", ready(0, 1));
        assert_eq!(taken(queues.poll("q", "w", 2, true)), ["a"]);
        // It was not handed out after all: that one is not counted.
        queues.refund("q", 1);
        queues.set_ready("a", vec![ready(9, 1)]);
        assert_eq!(taken(queues.poll("q", "w", 2, true)), ["a"]);
        let Poll::Wait(_kept) = queues.poll("q", "w", 2, true) else { panic!("it is held back") };
        let (pairs, again) = queues.matched();
        assert!(pairs.is_empty() && again.is_some());
        // Who only looks, or does not wait, is held back too.
        let mut looks = queues.look("q");
        assert!(looks.try_recv().is_err());
        assert!(matches!(queues.poll("q", "w", 2, false), Poll::Nothing));
        queues.set_limit("q", None);
        assert_eq!(queues.matched().0.len(), 1);
        assert!(looks.try_recv().is_err(), "it was taken by who waits");
    }

    #[test]
    fn who_looks_is_told_once_a_limit_lets_something_through() {
        let queues = Queues::default();
        queues.set_limit("q", Some(0.001));
        queues.push("a", ready(0, 1));
        queues.push("b", ready(0, 1));
        assert_eq!(taken(queues.poll("q", "w", 1, false)), ["a"]);
        let mut looks = queues.look("q");
        let (_, again) = queues.matched();
        assert!(looks.try_recv().is_err() && again.is_some());
        queues.set_limit("q", None);
        assert!(queues.matched().0.is_empty());
        looks.try_recv().expect("one may be taken");
        assert_eq!(taken(queues.poll("q", "w", 1, false)), ["b"]);
    }

    #[test]
    fn who_has_looked_for_longest_makes_room() {
        let queues = Queues::default();
        let mut looks: Vec<_> = (0..=MAX_WAITING).map(|_| queues.look("q")).collect();
        queues.push("a", ready(0, 1));
        let told = looks.iter_mut().filter_map(|looks| looks.try_recv().ok()).count();
        assert_eq!(told, MAX_WAITING);
    }
}
