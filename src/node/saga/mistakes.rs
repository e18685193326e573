//! What known bugs make of what happens to a saga: nothing, in a build without them. The machine itself knows of none.

use crate::bugs::{self, Bug};
use crate::saga::{Definition, Event, Failure, State, TaskKind, TaskRef, TaskStatus, Token, call_of};

/// What happens, with a bug, before something else does.
pub(super) fn before(state: &State, definition: &Definition, now_ms: u64, event: &Event) -> Vec<Event> {
    if !bugs::on(Bug::SagaForgetsUnsure) || *event != Event::Tick {
        return Vec::new();
    }
    // Attempts whose leases have ended: as if their workers had said that they did nothing.
    let tasks = (0..state.steps.len())
        .flat_map(|step| TaskKind::ALL.into_iter().map(move |kind| TaskRef { step, kind }));
    tasks
        .filter(|at| call_of(definition, *at).is_some())
        .filter_map(|at| {
            let task = state.task(at)?;
            let is_lost = task.status == TaskStatus::Running && task.due_ms <= now_ms;
            is_lost.then(|| Event::Fail {
                token: Token { task: at, fence: task.fence },
                failure: Failure {
                    message: "its lease has ended".to_owned(),
                    kind: "timeout".to_owned(),
                    did_nothing: true,
                    is_final: false,
                },
            })
        })
        .collect()
}

/// What happens, with a bug, in the place of something else.
pub(super) fn instead(state: &State, event: Event) -> Event {
    if bugs::on(Bug::SagaForgetsUnsure)
        && let Event::Fail { token, failure } = event
    {
        return Event::Fail { token, failure: Failure { did_nothing: true, ..failure } };
    }
    if !bugs::on(Bug::SagaStaleFence) {
        return event;
    }
    let newest = |token: Token| {
        let fence = state.task(token.task).map_or(token.fence, |task| task.fence.max(token.fence));
        Token { fence, ..token }
    };
    match event {
        Event::Complete { token, output, is_committed: false } => {
            Event::Complete { token: newest(token), output, is_committed: false }
        }
        Event::Fail { token, failure } => Event::Fail { token: newest(token), failure },
        Event::Heartbeat { token } => Event::Heartbeat { token: newest(token) },
        other => other,
    }
}
