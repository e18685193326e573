//! What transactions of users do to sagas: they start some, and are steps of others.

use tokio::time::Instant;

use super::clock::Clock;
use super::definitions::Definitions;
use super::engines::Engines;
use super::starts::{check_start, start_of};
use crate::bugs::{self, Bug};
use crate::client::Client;
use crate::codec;
use crate::node::rows::Rows;
use crate::rpc::convert::SagaPart;
use crate::rpc::v1;
use crate::rpc::v1::saga_request::What;
use crate::saga::{
    Definition, State, TaskKind, TaskRef, Token, TxnDone, call_of, check_id, closed_key, done_key,
    lease_fence, lease_key, open_key, start, started_key, writes_of_start,
};
use crate::types::{Error, ReadAt, Result, Timestamp, TxnPart, TxnWrite, limits};

/// Adds to a transaction that read at `start_ts` what it does to sagas: so it is done if the transaction is committed, and
/// the transaction is committed only if it can be done.
///
/// # Errors
///
/// `Invalid` for a wrong start; `Denied` where the step's lease is not held any more; those of reads.
pub async fn add(
    client: &Client,
    definitions: &Definitions,
    clock: &Clock,
    sagas: SagaPart,
    start_ts: Timestamp,
    part: &mut TxnPart,
) -> Result<()> {
    clock.note(start_ts);
    for asked in &sagas.starts {
        check_start(asked)?;
        let definition = definitions.get(client, &asked.name, asked.version).await?;
        let id = asked.id.as_str();
        // The same for every attempt at the commit: a retry that wrote other keys would be another transaction (rule R8).
        let (state, change) = start(&definition, start_of(asked, None), start_ts.unix_ms());
        // That there is none is what the transaction has read, whether or not anybody looked.
        part.reads.extend([open_key(id), closed_key(id)]);
        part.writes.extend(writes_of_start(id, &definition, &state, &change, asked.input.clone()));
        part.writes.push(TxnWrite::Put { key: started_key(id), value: Default::default() });
        let free = v1::SagaFree { start: Some(asked.clone()), at_ts: start_ts.0 };
        client.about_saga(id, What::Free(free)).await?;
    }
    if let Some(step) = sagas.step {
        super::check_payload("the step's output", step.output.len())?;
        let (id, token) = Token::from_text(&step.token)?;
        if !bugs::on(Bug::SagaTxnWithoutLease) {
            let output_bytes = step.output.len() as u64;
            let held = v1::SagaHeldLease { token: step.token, at_ts: start_ts.0, output_bytes };
            client.about_saga(&id, What::HeldLease(held)).await?;
            part.reads.push(lease_key(&id, token.task));
        }
        let done = TxnDone { token, output: step.output };
        part.writes
            .push(TxnWrite::Put { key: done_key(&id, token.task), value: codec::encode(&done).into() });
    }
    Ok(())
}

/// Refuses, as of a timestamp, an id that a saga has.
///
/// # Errors
///
/// `Invalid` then; those of a read.
pub async fn check_free(rows: &Rows, id: &str, at: Timestamp, deadline: Instant) -> Result<()> {
    check_id(id)?;
    let (_, found) = rows.read(&[open_key(id), closed_key(id)], ReadAt::Snapshot(at), deadline).await?;
    match found.into_iter().flatten().next() {
        None => Ok(()),
        Some(_) => Err(Error::invalid(format!(
            "there is a saga {id:?} already: nothing was committed; take another id, or see whether it is the one that was to \
             be started"
        ))),
    }
}

/// Refuses, as of a timestamp, a step whose worker does not hold it, or which comes to too much.
///
/// # Errors
///
/// `Denied` for the one, `Invalid` for the other; those of a read.
pub async fn check_lease(
    engines: &Engines,
    token: &str,
    output_bytes: u64,
    at: Timestamp,
    deadline: Instant,
) -> Result<()> {
    let rows = engines.rows();
    let (id, token) = Token::from_text(token)?;
    let mut keys = vec![lease_key(&id, token.task)];
    // What undoing comes to is not kept.
    if output_bytes > 0 && token.task.kind == TaskKind::Action {
        keys.push(open_key(&id));
    }
    let (_, found) = rows.read(&keys, ReadAt::Snapshot(at), deadline).await?;
    let mut found = found.into_iter();
    let fence = found.next().flatten().map(|record| lease_fence(&record.value)).transpose()?;
    if fence == Some(token.fence) {
        let Some(record) = found.next().flatten() else { return Ok(()) };
        let state = State::decode(&record.value)?;
        let definition = engines.definitions().get(engines.client()?, &state.name, state.version).await?;
        return check_output(&id, &definition, &state, output_bytes);
    }
    Err(Error::denied(match fence {
        Some(_) => {
            "the lease of this attempt has ended, and the task was handed out again: nothing was committed"
        }
        None => "the lease of this attempt has ended: nothing was committed",
    }))
}

/// Refuses what a step comes to where it is too much. Transactions that run side by side do not know of each other: each gets
/// its part of what is left.
fn check_output(id: &str, definition: &Definition, state: &State, output_bytes: u64) -> Result<()> {
    let left = (limits::MAX_SAGA_BYTES as u64).saturating_sub(state.carried_bytes());
    let is_txn = |step: usize| {
        let at = TaskRef { step, kind: TaskKind::Action };
        call_of(definition, at).is_some_and(|call| call.is_txn)
    };
    let open = state.steps.iter().enumerate().filter(|(step, tasks)| tasks.action.is_open() && is_txn(*step));
    let most = left / (open.count().max(1) as u64);
    if output_bytes <= most {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the step's output has {output_bytes} bytes, and saga {id} has room for {most} of them: its input, outputs and \
         signals have at most {} together; store large values under keys of their own, and hand on the keys",
        limits::MAX_SAGA_BYTES
    )))
}
