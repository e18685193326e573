//! The oracle's edge: the leader of the system shard hands timestamps out, under a ceiling that it raises
//! through the shard's log.
//!
//! A new leader starts above the ceiling it finds applied, so nothing handed out before it is handed out
//! again. Every block is cut first and the lease checked afterwards: a leader that was replaced while it
//! cut gives nothing.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::timestamps::MAX_COUNT;
use crate::codec;
use crate::oracle::{CEILING_AHEAD_MS, Oracle, PhysicalClock, PhysicalMs};
use crate::raft::{Group, Leadership, ProposeError, Token};
use crate::shard::Entry;
use crate::types::{Error, Moved, Result, Timestamp};

/// How often the leader looks whether the ceiling should be raised ahead of need.
const RAISE_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// A clock that is further past the ceiling than this when a leadership begins is not believed: timestamps
/// could never come back from there. A cluster may have been off for a long time, so it is a long time.
const MAX_AHEAD_AT_START_MS: u64 = 366 * 24 * 60 * 60 * 1000;

struct Reign {
    token: Token,
    oracle: Oracle,
    /// The last timestamp handed out when the ceiling was last raised: nothing is raised for nobody.
    last_at_raise: Timestamp,
}

/// The oracle on a node that hosts a replica of the system shard.
pub struct OracleServer {
    group: Arc<Group>,
    clock: Mutex<PhysicalClock>,
    started: Instant,
    reign: Mutex<Option<Reign>>,
    raising: tokio::sync::Mutex<()>,
}

impl OracleServer {
    /// An oracle on this node's replica of the system shard. Serves while the replica leads.
    pub fn start(group: Arc<Group>) -> Arc<Self> {
        let started = Instant::now();
        let server = Arc::new(Self {
            group,
            clock: Mutex::new(PhysicalClock::new(wall_unix_ms(), 0)),
            started,
            reign: Mutex::new(None),
            raising: tokio::sync::Mutex::new(()),
        });
        tokio::spawn(Self::raise_ahead(Arc::downgrade(&server)));
        server
    }

    /// The first of `count` consecutive timestamps, above all handed out before.
    ///
    /// # Errors
    ///
    /// `Moved` where this node does not lead the system shard, `Unavailable` where it can't tell or can't
    /// raise the ceiling, `Invalid` for a count of zero or over the limit.
    pub async fn cut(&self, count: u64) -> Result<Timestamp> {
        if count == 0 || count > MAX_COUNT {
            return Err(Error::invalid(format!(
                "{count} timestamps were asked for: ask for 1 to {MAX_COUNT} at once"
            )));
        }
        let token = self.lead()?;
        self.begin_reign(token).await?;
        loop {
            let now = self.now();
            let cut = {
                let mut reign = self.reign.lock();
                let reign = reign.as_mut().filter(|reign| reign.token == token).ok_or_else(replaced)?;
                reign.oracle.cut(now, count)
            };
            match cut {
                Ok(block) => {
                    self.group.ensure_leader().await?;
                    if self.lead()? != token {
                        return Err(replaced());
                    }
                    return Ok(block.first);
                }
                Err(_) => self.raise(token).await?,
            }
        }
    }

    fn lead(&self) -> Result<Token> {
        match self.group.leadership() {
            Leadership::Leading(token) => Ok(token),
            Leadership::Following { leader } => Err(Error::moved(
                match leader {
                    Some(node) => format!("the timestamp oracle is on node {node}"),
                    None => "the system shard has no leader that this node knows of".to_string(),
                },
                Moved { shard: Some(self.group.state().descriptor.clone()), leader: None },
            )),
            Leadership::Stopped { fault } => Err(Error::unavailable(format!(
                "this node's replica of the system shard has stopped: {fault}"
            ))),
        }
    }

    /// Starts above the ceiling that the leaders before left, once a leadership.
    async fn begin_reign(&self, token: Token) -> Result<()> {
        if self.reign.lock().as_ref().is_some_and(|reign| reign.token == token) {
            return Ok(());
        }
        // Everything committed before this leadership is applied after this, so the ceiling is final.
        if self.group.ensure_leader().await?.token != token {
            return Err(replaced());
        }
        let mut reign = self.reign.lock();
        // Whoever came first keeps its oracle: a second one from the same ceiling would repeat timestamps.
        // And a call that was overtaken by a newer leadership begins nothing.
        if reign.as_ref().is_some_and(|reign| reign.token == token) || self.lead()? != token {
            return Ok(());
        }
        let ceiling = self.group.state().ceiling;
        self.check_clock(ceiling)?;
        *reign = Some(Reign { token, oracle: Oracle::new(ceiling), last_at_raise: ceiling });
        Ok(())
    }

    /// Sets the clock to what the ceiling shows, and refuses one that is far past it.
    fn check_clock(&self, ceiling: Timestamp) -> Result<()> {
        // Some leader's clock has shown this time: one that is behind goes on from there.
        let shown = PhysicalMs(ceiling.ms().saturating_sub(CEILING_AHEAD_MS));
        self.clock.lock().not_before(shown, self.monotonic_ms());
        let ahead_ms = self.now().0.saturating_sub(ceiling.ms());
        if ceiling == Timestamp::ZERO || ahead_ms <= MAX_AHEAD_AT_START_MS {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "this node's clock is {} days past the last timestamp of the cluster (limit {} days): set the clock right \
             and restart the node",
            ahead_ms / 86_400_000,
            MAX_AHEAD_AT_START_MS / 86_400_000
        )))
    }

    /// Raises the ceiling through the log, far enough for what could not be cut. Counts once applied.
    async fn raise(&self, token: Token) -> Result<()> {
        let _one_at_a_time = self.raising.lock().await;
        let now = self.now();
        let ceiling = {
            let reign = self.reign.lock();
            let reign = reign.as_ref().filter(|reign| reign.token == token).ok_or_else(replaced)?;
            reign.oracle.next_ceiling(now)
        };
        match ceiling {
            Some(ceiling) => self.propose_ceiling(token, ceiling).await,
            // Somebody else raised it while this call waited its turn.
            None => Ok(()),
        }
    }

    async fn propose_ceiling(&self, token: Token, ceiling: Timestamp) -> Result<()> {
        let failed = |error: ProposeError| {
            Error::unavailable(format!("the timestamp ceiling could not be raised ({error}): retry"))
        };
        let body = Bytes::from(codec::encode(&Entry::RaiseCeiling { ceiling }));
        self.group.submit(token, body).await.await.map_err(failed)?;
        if let Some(reign) = self.reign.lock().as_mut().filter(|reign| reign.token == token) {
            reign.oracle.raised(ceiling);
            reign.last_at_raise = reign.oracle.last();
        }
        Ok(())
    }

    /// Raises the ceiling before it is reached, so that no request waits for the log.
    async fn raise_ahead(server: std::sync::Weak<Self>) {
        let mut tick = tokio::time::interval(RAISE_CHECK_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Some(server) = server.upgrade() else { return };
            let Ok(token) = server.lead() else { continue };
            let used = |reign: &&Reign| reign.token == token && reign.oracle.last() > reign.last_at_raise;
            if server.reign.lock().as_ref().filter(used).is_some()
                && let Err(error) = server.raise(token).await
            {
                tracing::debug!(%error, "the timestamp ceiling was not raised ahead of need");
            }
        }
    }

    fn now(&self) -> PhysicalMs {
        let reading = self.clock.lock().read(wall_unix_ms(), self.monotonic_ms());
        if let Some(jump_ms) = reading.refused_jump_ms {
            tracing::error!(
                "the wall clock jumped {jump_ms} ms ahead of monotonic time and is not followed: set the clock \
                 right, or restart this node if the new time is the true one"
            );
        }
        reading.now
    }

    fn monotonic_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

fn replaced() -> Error {
    Error::unavailable("the system shard's leader changed while it handed out timestamps: retry")
}

/// The wall clock in Unix milliseconds; zero for a clock before 1970.
fn wall_unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
