//! Read indexes: a follower asks its shard's leader how far it must have applied before it may answer.
//!
//! The leader answers after it has settled every batch that the read must see (rule R1) and has then made sure that
//! it still leads. What many reads ask of one leader at a time travels in one message, sent after all of them came; an
//! answer is used by those who asked for it, and by nobody later.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::codec;
use crate::node::dispatch::Replicas;
use crate::raft::Host;
use crate::types::{Error, ErrorKind, NodeId, Result, ShardId, Timestamp};

/// The kind of these calls (`calls` has the others).
pub const CALL: u32 = 5;

/// Questions in one message, at most.
const MOST_TOGETHER: usize = 1024;
/// Keys in one message, at most: a question with more goes alone.
const MOST_KEYS: usize = 4096;

/// How questions travel. All of one message are answered together, so each waits for the slowest, as long as this.
/// Whoever is not answered by then asks again among others like it, with more patience: a batch that is stuck must not
/// hold up reads of other keys for longer than that, and what is stuck must not take many messages, which a leader
/// works on beside votes and log entries.
struct Tier {
    patience: Duration,
    /// Messages to one leader that are under way at a time. What comes meanwhile goes together in the next.
    messages: usize,
}

const TIERS: [Tier; 3] = [
    Tier { patience: Duration::from_millis(10), messages: 4 },
    Tier { patience: Duration::from_millis(120), messages: 2 },
    Tier { patience: Duration::from_millis(900), messages: 2 },
];

/// How long a message may take on its way, besides.
const ON_THE_WAY: Duration = Duration::from_millis(300);

/// What a read must see.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Need {
    /// Every batch that touches one of the keys and was under way when the read came, and all that was acknowledged.
    Latest(Vec<Bytes>),
    /// Everything at or below this timestamp. It was handed out before the read came.
    Snapshot(Timestamp),
}

impl Need {
    fn keys(&self) -> usize {
        match self {
            Self::Latest(keys) => keys.len(),
            Self::Snapshot(_) => 1,
        }
    }
}

/// One question.
#[derive(Clone, Serialize, Deserialize, Debug)]
struct Question {
    shard: ShardId,
    need: Need,
}

/// The body of a call.
#[derive(Serialize, Deserialize)]
struct Questions {
    /// How long the slowest is waited for, in milliseconds.
    patience_ms: u64,
    questions: Vec<Question>,
}

/// The answer to one question.
#[derive(Serialize, Deserialize, Debug)]
enum Answer {
    /// Whoever has applied this index may answer the read.
    Index(u64),
    /// It took too long: ask again, with more patience.
    Slow,
    /// It can't be answered here.
    Failed { kind: ErrorKind, message: String },
}

struct Asked {
    question: Question,
    answer: oneshot::Sender<Result<u64>>,
}

/// The way from this node to the leaders of its shards. Shared by all replicas of the node.
pub struct ReadIndexes {
    host: Weak<Host>,
    lanes: Mutex<HashMap<NodeId, mpsc::UnboundedSender<Asked>>>,
}

impl ReadIndexes {
    /// It holds the host weakly: the host's own tasks read.
    pub fn new(host: &Arc<Host>) -> Self {
        Self { host: Arc::downgrade(host), lanes: Mutex::default() }
    }

    /// Asks a leader how far a replica of the shard must have applied for a read that came before this call.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the node does not answer in time, or says that it does not lead.
    pub async fn ask(&self, leader: NodeId, shard: ShardId, need: Need, deadline: Instant) -> Result<u64> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked { question: Question { shard, need }, answer };
        // A lane's task ends only with its sender, or with the runtime.
        self.lane(leader).send(asked).map_err(|_| Error::unavailable("the node is stopping"))?;
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::unavailable("the node is stopping: ask another node")),
            Err(_) => Err(Error::unavailable(format!(
                "the deadline passed before node {leader}, which leads shard {shard}, had said how far this replica \
                 must be: retry"
            ))),
        }
    }

    fn lane(&self, leader: NodeId) -> mpsc::UnboundedSender<Asked> {
        let mut lanes = self.lanes.lock();
        let lane = lanes.entry(leader).or_insert_with(|| {
            // The most patient first: each tier hands what is slow to the next.
            let mut next = None;
            for tier in TIERS.iter().rev() {
                let (lane, waiting) = mpsc::unbounded_channel();
                tokio::spawn(run_lane(self.host.clone(), leader, tier, waiting, next.take()));
                next = Some(lane);
            }
            next.unwrap_or_else(|| mpsc::unbounded_channel().0)
        });
        lane.clone()
    }
}

/// Sends what waits for one leader in one tier, together.
async fn run_lane(
    host: Weak<Host>,
    leader: NodeId,
    tier: &'static Tier,
    mut waiting: mpsc::UnboundedReceiver<Asked>,
    slower: Option<mpsc::UnboundedSender<Asked>>,
) {
    let room = Arc::new(Semaphore::new(tier.messages));
    while let Some(first) = waiting.recv().await {
        // Before the others are taken: those who come while there is no room go along.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let mut keys = first.question.need.keys();
        let mut together = vec![first];
        while together.len() < MOST_TOGETHER && keys < MOST_KEYS {
            let Ok(next) = waiting.try_recv() else { break };
            keys += next.question.need.keys();
            together.push(next);
        }
        // Whoever has given up needs no answer.
        together.retain(|asked| !asked.answer.is_closed());
        if together.is_empty() {
            continue;
        }
        let (host, slower) = (host.clone(), slower.clone());
        tokio::spawn(async move {
            for asked in send(&host, leader, tier, together).await {
                match &slower {
                    // Its task lives as long as this one.
                    Some(slower) => drop(slower.send(asked)),
                    None => asked.tell(leader, Answer::Slow),
                }
            }
            drop(permit);
        });
    }
}

/// Sends one message; gives back who has to ask again.
async fn send(host: &Weak<Host>, leader: NodeId, tier: &Tier, asked: Vec<Asked>) -> Vec<Asked> {
    metrics::counter!("kvorum_read_index_messages_total").increment(1);
    metrics::counter!("kvorum_read_index_questions_total").increment(asked.len() as u64);
    let questions = asked.iter().map(|asked| asked.question.clone()).collect();
    let answers = match call(host, leader, tier, questions).await {
        Ok(answers) if answers.len() == asked.len() => answers,
        Ok(answers) => {
            let (questions, answers) = (asked.len(), answers.len());
            let message = format!("node {leader} gave {answers} answers to {questions} questions");
            fail_all(asked, &Error::corrupt(message));
            return Vec::new();
        }
        Err(error) => {
            fail_all(asked, &error);
            return Vec::new();
        }
    };
    let mut slow = Vec::new();
    for (asked, answer) in asked.into_iter().zip(answers) {
        match answer {
            Answer::Slow => slow.push(asked),
            answer => asked.tell(leader, answer),
        }
    }
    slow
}

async fn call(
    host: &Weak<Host>,
    leader: NodeId,
    tier: &Tier,
    questions: Vec<Question>,
) -> Result<Vec<Answer>> {
    let host = host.upgrade().ok_or_else(|| Error::unavailable("the node is stopping: ask another node"))?;
    let questions = Questions { patience_ms: tier.patience.as_millis() as u64, questions };
    let body = Bytes::from(codec::encode(&questions));
    let body = host.call(leader, CALL, body, tier.patience + ON_THE_WAY).await?;
    codec::decode(&body, "answers about read indexes")
}

fn fail_all(asked: Vec<Asked>, error: &Error) {
    for asked in asked {
        // Whoever asked may have given up.
        let _ = asked.answer.send(Err(Error::new(ErrorKind::Unavailable, error.message.clone())));
    }
}

impl Asked {
    fn tell(self, leader: NodeId, answer: Answer) {
        let answer = match answer {
            Answer::Index(index) => Ok(index),
            Answer::Slow => Err(Error::unavailable(format!(
                "node {leader} waits for a write that the read must see, and its outcome is not known yet: retry"
            ))),
            // Whatever the reason, another try may find another leader.
            Answer::Failed { message, .. } => Err(Error::unavailable(format!(
                "node {leader} can't say how far this replica must be: {message}"
            ))),
        };
        // Whoever asked may have given up.
        let _ = self.answer.send(answer);
    }
}

/// Answers another node's questions about shards that this node leads.
///
/// # Errors
///
/// `Corrupt` where they can't be read. What becomes of each readable one is in the answer.
pub async fn answer(replicas: &Replicas, body: &[u8]) -> Result<Bytes> {
    let Questions { patience_ms, questions } = codec::decode(body, "questions about read indexes")?;
    let most = TIERS.iter().map(|tier| tier.patience).max().unwrap_or_default();
    let deadline = Instant::now() + Duration::from_millis(patience_ms).min(most);
    let answers =
        join_all(questions.into_iter().map(|question| answer_one(replicas, question, deadline))).await;
    Ok(codec::encode(&answers).into())
}

async fn answer_one(replicas: &Replicas, question: Question, deadline: Instant) -> Answer {
    let Some(replica) = replicas.of(question.shard) else {
        let message = format!("there is no replica of shard {} here", question.shard);
        return Answer::Failed { kind: ErrorKind::Moved, message };
    };
    match tokio::time::timeout_at(deadline, replica.read_index(&question.need, deadline)).await {
        Ok(Ok(index)) => Answer::Index(index),
        Ok(Err(_)) | Err(_) if Instant::now() >= deadline => Answer::Slow,
        Ok(Err(error)) => Answer::Failed { kind: error.kind, message: error.message },
        Err(_) => Answer::Slow,
    }
}
