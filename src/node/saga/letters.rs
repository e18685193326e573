//! What sagas have to tell other sagas: a child that it is to start, or to end; a parent that its child has ended. Each
//! letter is kept by the saga that sends it until it was delivered; delivered twice it has no effect.

use bytes::Bytes;
use tokio::time::Instant;

use super::engine::{Engine, WITHIN};
use super::transition::Loaded;
use crate::rpc::v1;
use crate::rpc::v1::saga_request::What;
use crate::saga::{
    Definition, Event, Letter, Message, Outcome, Parent, State, TaskRef, Token, Work, check_id,
};
use crate::types::{Error, ErrorKind, Result};

/// What the letters of a saga are made of.
struct Sender {
    id: String,
    created_ms: u64,
    name_of_child: Vec<(TaskRef, String, u32)>,
    input: Bytes,
    output: Bytes,
    priority: u8,
    parent: Option<Parent>,
    outcome: Option<Outcome>,
    letters: Vec<Letter>,
}

impl Sender {
    fn new(id: &str, now: &Loaded) -> Self {
        let Loaded { state, definition, payloads, .. } = now;
        Self {
            id: id.to_owned(),
            created_ms: state.created_ms,
            name_of_child: children(definition, state),
            input: payloads.input.clone(),
            output: payloads.outputs.last_key_value().map(|(_, output)| output.clone()).unwrap_or_default(),
            priority: state.priority,
            parent: state.parent.clone(),
            outcome: state.outcome(),
            letters: state.letters.clone(),
        }
    }
}

fn children(definition: &Definition, state: &State) -> Vec<(TaskRef, String, u32)> {
    let steps = definition.steps().iter().enumerate().take(state.steps.len());
    let child = steps.filter_map(|(step, defined)| match &defined.work {
        Work::Child { saga, version } => {
            let task = TaskRef { step, kind: crate::saga::TaskKind::Action };
            Some((task, saga.clone(), version.unwrap_or_default()))
        }
        Work::Call(_) | Work::Sleep { .. } | Work::Signal { .. } => None,
    });
    child.collect()
}

/// The id of the saga that a start of a step is: another one than that of a parent of the same id, later, would have.
fn child_id(parent: &str, created_ms: u64, token: Token) -> String {
    format!("{parent}/{created_ms:x}/{}/{}", token.task.step, token.fence)
}

impl Engine {
    /// Delivers a saga's letters in the background, unless that is under way.
    pub(super) fn deliver_letters(&self, id: &str, now: &Loaded) {
        let Some(engine) = self.shared() else { return };
        if !self.delivering.lock().insert(id.to_owned()) {
            return;
        }
        let sender = Sender::new(id, now);
        tokio::spawn(async move {
            let delivered = engine.deliver_all(&sender).await;
            engine.delivering.lock().remove(&sender.id);
            match delivered {
                // More may have been written meanwhile.
                Ok(()) => engine.timers.set(&sender.id, Some(0)),
                Err(error) => {
                    tracing::debug!(id = sender.id, %error, "a saga could not tell another one; trying on");
                    engine.look_again(&sender.id);
                }
            }
        });
    }

    async fn deliver_all(&self, sender: &Sender) -> Result<()> {
        for letter in &sender.letters {
            self.deliver_letter(sender, &letter.message).await?;
            let event = Event::Delivered { letter: letter.number };
            self.happen(&sender.id, event, Instant::now() + WITHIN).await?;
        }
        Ok(())
    }

    async fn deliver_letter(&self, sender: &Sender, message: &Message) -> Result<()> {
        match message {
            Message::StartChild { token } => match self.tell_child(sender, *token, "").await {
                // It can't be started, and never will be: that is a failure of the step which did nothing.
                Err(error) if error.kind == ErrorKind::Invalid => {
                    tracing::warn!(id = sender.id, %error, "a child saga can't be started");
                    let event = Event::ChildClosed {
                        token: *token,
                        created_ms: sender.created_ms,
                        outcome: Outcome::Cancelled,
                        output: Bytes::new(),
                    };
                    self.happen(&sender.id, event, Instant::now() + WITHIN).await?;
                    Ok(())
                }
                told => told,
            },
            Message::CancelChild { token } => self.end_child(sender, *token, "cancel").await,
            Message::TerminateChild { token } => self.end_child(sender, *token, "terminate").await,
            Message::TellParent => {
                let (Some(parent), Some(outcome)) = (&sender.parent, sender.outcome) else { return Ok(()) };
                let closed = v1::SagaChildClosed {
                    parent: parent.id.clone(),
                    parent_created_unix_ms: parent.created_ms,
                    token: parent.token.to_text(&parent.id),
                    outcome: outcome.name().to_owned(),
                    output: sender.output.clone(),
                };
                match self.client.about_saga(&parent.id, What::ChildClosed(closed)).await {
                    // The parent is forgotten, or it is another one of this id: nobody waits for it.
                    Err(error) if matches!(error.kind, ErrorKind::Invalid | ErrorKind::Denied) => Ok(()),
                    told => told.map(drop),
                }
            }
        }
    }

    /// One that has ended, or was never started, need not be ended.
    async fn end_child(&self, sender: &Sender, token: Token, end: &str) -> Result<()> {
        match self.tell_child(sender, token, end).await {
            Err(error) if error.kind == ErrorKind::Invalid => Ok(()),
            told => told,
        }
    }

    async fn tell_child(&self, sender: &Sender, token: Token, end: &str) -> Result<()> {
        let child = sender.name_of_child.iter().find(|(task, _, _)| *task == token.task);
        let (_, name, version) = child.ok_or_else(|| Error::invalid("the step is no child saga"))?;
        let id = child_id(&sender.id, sender.created_ms, token);
        check_id(&id)?;
        let start = v1::SagaStart {
            id: id.clone(),
            name: name.clone(),
            version: *version,
            input: sender.input.clone(),
            priority: u32::from(sender.priority),
            ..v1::SagaStart::default()
        };
        let child = v1::SagaChildStart {
            start: Some(start),
            parent: sender.id.clone(),
            parent_created_unix_ms: sender.created_ms,
            token: token.to_text(&sender.id),
            end: end.to_owned(),
        };
        self.client.about_saga(&id, What::StartChild(child)).await.map(drop)
    }
}
