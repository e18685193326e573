//! Sending reads to replicas: what the balancer chooses is done here, and told back to it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use super::balance::{After, Balancer, Budget, Candidate, Choice, FailureKind, Hedge, Probed};
use super::request::Reading;
use super::router::{Place, Target};
use super::{LinkError, Policy, Shared};
use crate::rpc::v1::index_version_reply::What;
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request;
use crate::rpc::{convert, v1};
use crate::types::{ErrorKind, NodeId};

/// How long an attempt at one replica may take, at first: another may answer meanwhile. It doubles with each, since a read
/// may need long whoever answers it.
const FIRST_ATTEMPT: Duration = Duration::from_secs(1);
/// How long a probe may take.
const PROBE_WITHIN: Duration = Duration::from_secs(1);

/// What one call came to: a reply, or none.
pub(super) type Called = Result<Reply, LinkError>;

/// What a client knows of the replicas it reads at.
pub(super) struct Replicas {
    balancer: Mutex<Balancer>,
    hedging: Option<Mutex<Budget>>,
    /// What times are counted from.
    began: Instant,
}

/// When a read is sent to a second replica, because the first takes long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HedgeAfter {
    /// When the first has taken longer than 95 of 100 recent reads of this client.
    Auto,
    /// After this time.
    Fixed(Duration),
}

/// A replica that was chosen for a read.
pub(super) struct Chosen {
    /// Where the read goes.
    pub(super) target: Target,
    /// Where a copy goes whose answer nobody waits for.
    probe: Option<Target>,
    /// How many replicas there are.
    pub(super) replicas: usize,
}

impl Replicas {
    /// Nothing is known yet. `hedge` says when a second copy may be sent, and how many in a hundred reads.
    pub(super) fn new(hedge: Option<(HedgeAfter, u32)>) -> Self {
        let budget = |(after, budget_percent): (HedgeAfter, u32)| {
            let after = match after {
                HedgeAfter::Auto => After::Auto,
                HedgeAfter::Fixed(wait) => After::FixedUs(as_us(wait)),
            };
            Mutex::new(Budget::new(Hedge { after, budget_percent }))
        };
        Self { balancer: Mutex::default(), hedging: hedge.map(budget), began: Instant::now() }
    }

    /// Forgets nodes that are not of the map any more.
    pub(super) fn retain(&self, nodes: &[NodeId]) {
        self.balancer.lock().retain(nodes);
    }

    fn now_us(&self) -> u64 {
        as_us(self.began.elapsed())
    }

    fn choose(&self, reading: &Reading<'_>, candidates: &[Candidate], tried: &[NodeId]) -> Option<Choice> {
        let now_us = self.now_us();
        let mut balancer = self.balancer.lock();
        let choice = balancer.choose(reading.policy, candidates, tried, now_us, rand::random())?;
        if let Some(route) = reading.route {
            let told = balancer.explain(choice, candidates, now_us).to_string();
            route.lock().extend(told.lines().map(str::to_owned));
        }
        Some(choice)
    }
}

fn as_us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A read that was sent to a node; the balancer learns how it ended, also where it is dropped.
struct Sent {
    shared: Arc<Shared>,
    node: NodeId,
    at: Instant,
    told: bool,
}

impl Sent {
    fn new(shared: &Arc<Shared>, node: NodeId) -> Self {
        shared.replicas.balancer.lock().sent(node, shared.replicas.now_us());
        Self { shared: Arc::clone(shared), node, at: Instant::now(), told: false }
    }

    fn ended(mut self, called: &Called) {
        self.told = true;
        let replicas = &self.shared.replicas;
        let (now_us, latency_us) = (replicas.now_us(), as_us(self.at.elapsed()));
        let mut balancer = replicas.balancer.lock();
        match verdict(called) {
            Verdict::Good { load, slow } => {
                // A page of a scan takes longer than a get, wherever it is read: latencies are compared of gets alone.
                match called {
                    Ok(Reply::Get(_)) => balancer.answered(self.node, now_us, latency_us, load),
                    _ => balancer.served(self.node, now_us),
                }
                balancer.told_slow(&slow, now_us);
            }
            Verdict::Bad(kind) => balancer.failed(self.node, now_us, kind),
            Verdict::Nothing => balancer.abandoned(self.node, now_us, latency_us),
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if !self.told {
            let replicas = &self.shared.replicas;
            let waited_us = as_us(self.at.elapsed());
            replicas.balancer.lock().abandoned(self.node, replicas.now_us(), waited_us);
        }
    }
}

/// A probe that is under way. Dropped, it says nothing.
struct Probe {
    shared: Arc<Shared>,
    node: NodeId,
    outcome: Probed,
}

impl Drop for Probe {
    fn drop(&mut self) {
        let replicas = &self.shared.replicas;
        replicas.balancer.lock().probed(self.node, replicas.now_us(), self.outcome);
    }
}

/// What the end of a call says about its node.
enum Verdict {
    /// What the node says of its load, and whom the cluster finds slow.
    Good {
        load: u32,
        slow: Vec<NodeId>,
    },
    Bad(FailureKind),
    Nothing,
}

fn verdict(called: &Called) -> Verdict {
    if let Ok(Reply::IndexVersion(v1::IndexVersionReply { what: Some(What::Page(page)) })) = called {
        return Verdict::Good {
            load: page.load,
            slow: page.slow_nodes.iter().map(|node| NodeId(*node)).collect(),
        };
    }
    let served = match called {
        Ok(Reply::Get(get)) => get.served.as_ref(),
        Ok(Reply::GetMany(many)) => many.served.first(),
        Ok(Reply::ScanPage(page)) => page.served.as_ref(),
        Ok(Reply::ChangesPage(page)) => page.served.as_ref(),
        Ok(Reply::Error(error)) => {
            return match convert::kind_from_name(&error.kind) {
                Some(ErrorKind::Unavailable) if error.overloaded => Verdict::Bad(FailureKind::Overloaded),
                Some(ErrorKind::Unavailable) => Verdict::Bad(FailureKind::Stale),
                // What was asked for was wrong, or is elsewhere: that is not the node's fault.
                _ => Verdict::Nothing,
            };
        }
        Ok(_) => None,
        Err(LinkError::NotSent(_)) => return Verdict::Bad(FailureKind::Refused),
        Err(LinkError::Unknown(_)) => return Verdict::Bad(FailureKind::Lost),
    };
    let slow = served.map(|served| served.slow_nodes.iter().map(|node| NodeId(*node)).collect());
    Verdict::Good { load: served.map_or(0, |served| served.load), slow: slow.unwrap_or_default() }
}

impl Shared {
    /// The replica that a read goes to, or goes to next after those in `tried`. `None` where the map does not say.
    pub(super) fn choose_replica(
        &self,
        place: Place<'_>,
        reading: &Reading<'_>,
        tried: &[NodeId],
    ) -> Option<Chosen> {
        let router = self.map.router();
        let candidates = router.candidates(place, &self.zone);
        let replicas = candidates.len();
        let chosen = |target, probe| Some(Chosen { target, probe, replicas });
        let is_here = |node: &NodeId| candidates.iter().any(|candidate| candidate.node == *node);
        let leads = |node: &NodeId| candidates.iter().any(|one| one.node == *node && one.is_leader);
        let may_prefer = |node: &NodeId| is_here(node) && (reading.policy != Policy::Leader || leads(node));
        let preferred =
            reading.prefer.or(self.prefer).filter(|node| may_prefer(node) && !tried.contains(node));
        if let Some(node) = preferred {
            if let Some(route) = reading.route {
                route.lock().push(format!("node {node}: it is preferred"));
            }
            return chosen(router.target(place, node)?, None);
        }
        let choice = self.replicas.choose(reading, &candidates, tried)?;
        let probe = choice.probe.and_then(|node| router.target(place, node));
        chosen(router.target(place, choice.node)?, probe)
    }

    /// Sends a read to the replica that was chosen, and perhaps a second copy to another one. Answers with the reply,
    /// and with who gave it.
    pub(super) async fn call_replica(
        self: &Arc<Self>,
        chosen: &Chosen,
        reading: &Reading<'_>,
        place: Place<'_>,
        request: Request,
        until: Instant,
    ) -> (Target, Called) {
        if reading.waits {
            if let Some(probe) = &chosen.probe {
                // Not now: a wait is no read to copy.
                drop(Probe { shared: Arc::clone(self), node: probe.node, outcome: Probed::Abandoned });
            }
            return (chosen.target.clone(), self.call(&chosen.target, request, until).await);
        }
        if let Some(probe) = &chosen.probe {
            self.send_probe(probe, request.clone());
        }
        let target = &chosen.target;
        let Some(hedging) = &self.replicas.hedging else {
            return (target.clone(), self.call_one(target, request, until).await);
        };
        let wait_us = {
            let mut budget = hedging.lock();
            budget.began();
            budget.wait_us()
        };
        let began = Instant::now();
        let answered = match wait_us {
            None => (target.clone(), self.call_one(target, request, until).await),
            Some(wait_us) => {
                let hedge_at = began + Duration::from_micros(wait_us);
                self.call_two(chosen, reading, place, request, hedge_at, until).await
            }
        };
        hedging.lock().answered(as_us(began.elapsed()));
        answered
    }

    /// Sends a second copy where the first is not answered by `hedge_at`; the first answer counts.
    async fn call_two(
        self: &Arc<Self>,
        chosen: &Chosen,
        reading: &Reading<'_>,
        place: Place<'_>,
        request: Request,
        hedge_at: Instant,
        until: Instant,
    ) -> (Target, Called) {
        let target = &chosen.target;
        let mut first = self.call_one(target, request.clone(), until);
        if let Ok(called) = timeout_at(hedge_at, &mut first).await {
            return (target.clone(), called);
        }
        let second = Reading { prefer: None, ..*reading };
        let other = self.choose_replica(place, &second, &[target.node]);
        let other = other.map(|other| other.target).filter(|other| other.node != target.node);
        let pays = || self.replicas.hedging.as_ref().is_some_and(|hedging| hedging.lock().take());
        let Some(other) = other.filter(|_| pays()) else { return (target.clone(), first.await) };
        if let Some(route) = reading.route {
            route
                .lock()
                .push(format!("node {} takes long: a second copy went to node {}", target.node, other.node));
        }
        let mut copy = self.call_one(&other, request, until);
        // One that failed is no answer: the other may still give one.
        let is_answer = |called: &Called| matches!(verdict(called), Verdict::Good { .. } | Verdict::Nothing);
        tokio::select! {
            called = &mut first => match is_answer(&called) {
                true => (target.clone(), called),
                false => (other.clone(), copy.await),
            },
            called = &mut copy => match is_answer(&called) {
                true => (other.clone(), called),
                false => (target.clone(), first.await),
            },
        }
    }

    fn call_one(
        self: &Arc<Self>,
        target: &Target,
        request: Request,
        until: Instant,
    ) -> BoxFuture<'static, Called> {
        let sent = Sent::new(self, target.node);
        let link = self.map.link(&target.addr);
        Box::pin(async move {
            let called = match timeout_at(until, link.call(request, until)).await {
                Ok(called) => called,
                Err(_) => Err(LinkError::Unknown("no reply in time".to_owned())),
            };
            sent.ended(&called);
            called
        })
    }

    fn send_probe(self: &Arc<Self>, target: &Target, request: Request) {
        let probe = Probe { shared: Arc::clone(self), node: target.node, outcome: Probed::Abandoned };
        let link = self.map.link(&target.addr);
        tokio::spawn(async move {
            // All of it, so that it is told when this ends.
            let mut probe = probe;
            let (sent, until) = (Instant::now(), Instant::now() + PROBE_WITHIN);
            let called = match timeout_at(until, link.call(request, until)).await {
                Ok(called) => called,
                Err(_) => Err(LinkError::Unknown("no reply in time".to_owned())),
            };
            probe.outcome = match verdict(&called) {
                Verdict::Good { load, .. } if matches!(called, Ok(Reply::Get(_))) => {
                    Probed::Answered { latency_us: as_us(sent.elapsed()), load }
                }
                // It answers, and how fast it is can't be compared.
                Verdict::Good { load, .. } => Probed::Answered { latency_us: 0, load },
                Verdict::Bad(kind) => Probed::Failed(kind),
                Verdict::Nothing => Probed::Abandoned,
            };
        });
    }
}

/// Until when an attempt at a replica may take, where so many were made before.
pub(super) fn attempt_until(now: Instant, attempts: u32, until: Instant) -> Instant {
    until.min(now + FIRST_ATTEMPT * (1 << attempts.min(8)))
}
