//! Passing on another caller's request: what a node does for callers that don't route by themselves.

use bytes::Bytes;

use super::Client;
use super::request::{Asked, Reading};
use super::router::{Place, Target};
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request;
use crate::rpc::{v1, validate};
use crate::types::{Error, RequestId, Result};

impl Client {
    /// Sends a request about one key's shard to the node that leads it, as often as it takes. A write keeps
    /// the caller's `id`, or gets one, so that it takes effect once however often it is sent.
    ///
    /// # Errors
    ///
    /// As the typed calls; `Invalid` for a kind of request that is not about one shard.
    pub async fn pass_on(&self, request: Request, id: Option<RequestId>) -> Result<Reply> {
        if let Request::Commit(commit) = request {
            return self.pass_on_commit(commit, id).await;
        }
        let Some(key) = routing_key(&request) else {
            return Err(Error::invalid("this kind of request is not about one shard: it can't be passed on"));
        };
        let build = |header: v1::Header, _: &Target| {
            let mut request = request.clone();
            set_header(&mut request, header);
            Ok(request)
        };
        let place = Place::Key(&key);
        match (&request, id) {
            (Request::Get(_), _) => {
                let read = Some(Reading { policy: self.policy, prefer: None, route: None, waits: false });
                self.ask(Asked { place, build: &build, fresh: false, read }).await
            }
            (_, Some(id)) => {
                let asked = Asked { place, build: &build, fresh: true, read: None };
                self.shared.execute_as(asked, id, self.deadline.until()?).await
            }
            (_, None) => self.write(place, &build).await,
        }
    }

    /// A commit keeps the caller's id too, and goes by its primary key.
    async fn pass_on_commit(&self, commit: v1::CommitRequest, id: Option<RequestId>) -> Result<Reply> {
        validate::commit(&commit)?;
        let id = validate::commit_id(id, validate::start_timestamp(commit.start_ts)?)?;
        let commit_ts = self.shared.commit(commit, id, self.deadline.until()?).await?;
        Ok(Reply::Commit(v1::CommitReply { commit_ts: commit_ts.0 }))
    }
}

/// The key that a request of one shard goes by.
fn routing_key(request: &Request) -> Option<Bytes> {
    match request {
        Request::Put(request) => Some(request.key.clone()),
        Request::Get(request) => Some(request.key.clone()),
        Request::Delete(request) => Some(request.key.clone()),
        Request::CompareAndSwap(request) => Some(request.key.clone()),
        Request::Add(request) => Some(request.key.clone()),
        Request::Batch(request) => Some(batch_key(request)),
        Request::GetMany(_)
        | Request::ScanPage(_)
        | Request::Commit(_)
        | Request::ChangesPage(_)
        | Request::Consumer(_)
        | Request::IndexCatalogue(_)
        | Request::IndexVersion(_)
        | Request::SagaCatalogue(_)
        | Request::Saga(_)
        | Request::Timestamp(_)
        | Request::Empty(_) => None,
    }
}

/// The first key that a batch names; empty for a batch of nothing, which any node refuses.
fn batch_key(batch: &v1::BatchRequest) -> Bytes {
    use v1::step::Step;
    let of_step = |step: &v1::Step| match &step.step {
        Some(Step::Put(put)) => put.key.clone(),
        Some(Step::Delete(key) | Step::Get(key)) => key.clone(),
        Some(Step::Add(add)) => add.key.clone(),
        None => Bytes::new(),
    };
    match batch.conditions.first() {
        Some(condition) => condition.key.clone(),
        None => batch.then.iter().chain(&batch.otherwise).next().map(of_step).unwrap_or_default(),
    }
}

fn set_header(request: &mut Request, header: v1::Header) {
    let header = Some(header);
    match request {
        Request::Put(request) => request.header = header,
        Request::Get(request) => request.header = header,
        Request::Delete(request) => request.header = header,
        Request::CompareAndSwap(request) => request.header = header,
        Request::Add(request) => request.header = header,
        Request::Batch(request) => request.header = header,
        Request::GetMany(_)
        | Request::ScanPage(_)
        | Request::Commit(_)
        | Request::ChangesPage(_)
        | Request::Consumer(_)
        | Request::IndexCatalogue(_)
        | Request::IndexVersion(_)
        | Request::SagaCatalogue(_)
        | Request::Saga(_)
        | Request::Timestamp(_)
        | Request::Empty(_) => {}
    }
}
