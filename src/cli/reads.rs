//! The flags of every command that reads: what a read sees, and which replica it goes to.

use std::time::Duration;

use clap::ValueEnum;

use super::context::Context;
use super::failure::Failure;
use crate::client::{Client, Policy};
use crate::types::{ReadAt, Timestamp, limits};
use crate::{Error, Result};

/// What a read sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Level {
    /// Every write that was acknowledged before.
    Linearizable,
    /// The store at some instant, at most --max-staleness ago; any replica answers by itself.
    Bounded,
}

/// The flags.
#[derive(clap::Args, Debug)]
pub struct ReadArgs {
    /// What the read sees.
    #[arg(long, value_name = "LEVEL", default_value = "linearizable")]
    level: Level,
    /// How old what a bounded read sees may be: 1ms to 10m.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = staleness)]
    max_staleness: Duration,
    /// Which replicas reads go to: leader, balanced, or nearest (those of --zone first).
    #[arg(long, value_name = "POLICY", default_value_t)]
    policy: Policy,
    /// The zone that this command runs in, as nodes name theirs.
    #[arg(long, env = "KVORUM_ZONE", value_name = "NAME", default_value = "")]
    zone: String,
}

fn staleness(text: &str) -> std::result::Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; give a number and a unit, such as 500ms, 5s or 2m"))?;
    let limit = Duration::from_millis(limits::MAX_STALENESS_MS);
    if time < Duration::from_millis(1) || time > limit {
        return Err(format!("it must be from 1ms to {}", humantime::format_duration(limit)));
    }
    Ok(time)
}

impl ReadArgs {
    /// What a read shall see; `at` is the timestamp that the user named.
    ///
    /// # Errors
    /// `Invalid` where a timestamp and a bounded read are asked for.
    pub fn read_at(&self, at: Option<Timestamp>) -> Result<ReadAt> {
        match (self.level, at) {
            (Level::Linearizable, None) => Ok(ReadAt::Latest),
            (Level::Linearizable, Some(at)) => Ok(ReadAt::Snapshot(at)),
            (Level::Bounded, None) => {
                Ok(ReadAt::Bounded { max_staleness_ms: self.max_staleness.as_millis() as u64 })
            }
            (Level::Bounded, Some(at)) => Err(Error::invalid(format!(
                "--at {at} and --level bounded contradict each other: name the one or the other"
            ))),
        }
    }

    /// Connects to the cluster; the client's reads go by the flags' policy.
    ///
    /// # Errors
    /// `Invalid` where the nearest replicas are asked for, and no zone is named.
    pub async fn client(&self, context: &Context) -> Result<Client, Failure> {
        if self.policy == Policy::Nearest && self.zone.is_empty() {
            let why = "--policy nearest needs to know where this command runs: name its zone with --zone";
            return Err(Error::invalid(why).into());
        }
        let builder = context.builder().read_policy(self.policy).zone(self.zone.clone());
        Ok(builder.connect().await?)
    }
}
