//! Starts of sagas: by themselves, as steps of others, and what is refused.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::engine::Engine;
use super::reads::state_of;
use super::transition::{ATTEMPTS, Loaded, Plan, no_saga};
use super::wire::Payloads;
use crate::rpc::v1;
use crate::saga::{Definition, Parent, Start, State, closed_key, open_key, start, writes_of_start};
use crate::types::{Error, ErrorKind, ReadAt, Result, limits};

/// A start looks at a moment at most so long ago.
const RECENT: Duration = Duration::from_secs(5);

impl Engine {
    /// Starts a saga.
    ///
    /// # Errors
    ///
    /// `Invalid` where the request is wrong, or the id is another saga's; those of a read and of a commit.
    pub async fn start(
        &self,
        asked: &v1::SagaStart,
        parent: Option<Parent>,
        deadline: Instant,
    ) -> Result<v1::SagaStarted> {
        check_start(asked)?;
        let definition = self.definitions.get(&self.client, &asked.name, asked.version).await?;
        let id = asked.id.as_str();
        let mut loaded = self.lock(id).await;
        let started = self.start_in(&mut loaded, asked, parent, &definition, deadline).await;
        if started.is_err() || loaded.is_none() {
            self.let_go(id);
        }
        if started.is_err() {
            // It may be started all the same.
            self.look_again(id);
        }
        started
    }

    async fn start_in(
        &self,
        loaded: &mut Option<Loaded>,
        asked: &v1::SagaStart,
        parent: Option<Parent>,
        definition: &Arc<Definition>,
        deadline: Instant,
    ) -> Result<v1::SagaStarted> {
        let id = asked.id.as_str();
        for attempt in 0..ATTEMPTS {
            let as_of = self.rows.recent(RECENT).await?;
            let keys = [open_key(id), closed_key(id)];
            let there = state_of(&self.rows, id, ReadAt::Snapshot(as_of), deadline).await?;
            if let Some((_, there)) = there {
                check_same(asked, parent.as_ref(), &there)?;
                if attempt > 0 {
                    // What was heard of it may have been taken for this start, which has come to nothing.
                    self.timers.set_at_most(id, 0);
                }
                return Ok(v1::SagaStarted { version: there.version, already: true });
            }
            let now_ms = self.clock.now_ms();
            let (state, change) = start(definition, start_of(asked, parent.clone()), now_ms);
            let mut plan = Plan::new(state);
            plan.change = change;
            self.hand_out_with(&mut plan, definition, now_ms);
            let writes = writes_of_start(id, definition, &plan.state, &plan.change, asked.input.clone());
            let written = (keys.to_vec(), writes);
            let committed = match self.commit(id, as_of, written, &mut plan.handed, deadline).await {
                Ok(committed) => committed,
                Err(error) if error.kind == ErrorKind::Conflict => continue,
                Err(error) => return Err(error),
            };
            let now = Loaded {
                state: plan.state,
                definition: definition.clone(),
                payloads: Payloads { input: asked.input.clone(), ..Payloads::default() },
                stored: committed,
                as_of: committed,
                at: Instant::now(),
                done: Vec::new(),
                is_new: false,
            };
            self.published(id, &now, plan.handed);
            *loaded = Some(now);
            return Ok(v1::SagaStarted { version: definition.version(), already: false });
        }
        Err(Error::unavailable(format!("saga {id} was started by others at the same time: try again")))
    }

    /// Refuses an id that is not that of a step of another saga.
    ///
    /// # Errors
    ///
    /// `Invalid` then, and where there is no saga of the id; those of a read.
    pub async fn check_child(&self, id: &str, parent: &Parent, deadline: Instant) -> Result<()> {
        let found = state_of(&self.rows, id, ReadAt::Latest, deadline).await?;
        let (_, state) = found.ok_or_else(|| no_saga(id))?;
        match state.parent.as_ref() == Some(parent) {
            true => Ok(()),
            false => Err(Error::invalid(format!("saga {id:?} is not a step of saga {:?}", parent.id))),
        }
    }
}

/// Refuses a wrong start.
///
/// # Errors
///
/// `Invalid`: says what is wrong.
pub(super) fn check_start(start: &v1::SagaStart) -> Result<()> {
    crate::saga::check_id(&start.id)?;
    crate::saga::check_name("the saga", &start.name)?;
    super::check_payload(&format!("the input of saga {}", start.id), start.input.len())?;
    if start.priority > limits::MAX_SAGA_PRIORITY {
        return Err(Error::invalid(format!(
            "the priority of saga {} is {}: say 0 to {}",
            start.id,
            start.priority,
            limits::MAX_SAGA_PRIORITY
        )));
    }
    if start.attributes.len() > limits::MAX_SAGA_ATTRIBUTES {
        return Err(Error::invalid(format!(
            "saga {} has {} attributes, over the limit of {}",
            start.id,
            start.attributes.len(),
            limits::MAX_SAGA_ATTRIBUTES
        )));
    }
    start.attributes.iter().try_for_each(|(name, value)| check_attribute(name, value))
}

/// Refuses an attribute that no saga can have.
///
/// # Errors
///
/// `Invalid` then.
pub(super) fn check_attribute(name: &str, value: &str) -> Result<()> {
    crate::saga::check_name("an attribute", name)?;
    if value.len() > limits::MAX_SAGA_ATTRIBUTE_BYTES || value.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "attribute {name} has a value of {} bytes: it has at most {}, without control characters",
            value.len(),
            limits::MAX_SAGA_ATTRIBUTE_BYTES
        )));
    }
    Ok(())
}

/// What the machine starts a saga with.
pub(super) fn start_of(start: &v1::SagaStart, parent: Option<Parent>) -> Start {
    Start {
        priority: start.priority as u8,
        attributes: start.attributes.clone().into_iter().collect(),
        parent,
        input_hash: hash_of(&start.input),
        input_bytes: start.input.len() as u64,
    }
}

fn hash_of(input: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(input)
}

/// Refuses a start whose id is that of another saga: also of a step of another one, or of somebody who started it by itself.
fn check_same(start: &v1::SagaStart, parent: Option<&Parent>, there: &State) -> Result<()> {
    let is_same = there.name == start.name
        && there.parent.as_ref() == parent
        && (start.version == 0 || there.version == start.version)
        && there.input_hash == hash_of(&start.input);
    if is_same {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "there is a saga {:?} already, of {} version {}, with another definition, input or parent: take another id",
        start.id, there.name, there.version
    )))
}
