//! Which sagas there are: page after page over all shards, as of one moment.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{SagaFilter, SagaView, unfit};
use crate::client::Client;
use crate::codec::keyspace;
use crate::rpc::v1;
use crate::rpc::v1::saga_reply::What as Answer;
use crate::rpc::v1::saga_request::What as Ask;
use crate::types::Result;

/// Sagas in a page.
const PAGE: u32 = 200;

/// Sagas that a filter lets through, as of one moment. Made by [`Client::sagas`].
pub struct SagaList {
    client: Client,
    filter: SagaFilter,
    at_ts: u64,
    /// Where to go on; `None` at the end.
    next: Option<Bytes>,
    page: VecDeque<SagaView>,
}

impl Client {
    /// The sagas that a filter lets through, in no order of their own.
    pub fn sagas(&self, filter: SagaFilter) -> SagaList {
        let next = Some(keyspace::saga_range().start);
        SagaList { client: self.clone(), filter, at_ts: 0, next, page: VecDeque::new() }
    }
}

impl SagaList {
    /// The next one; `None` after the last.
    ///
    /// # Errors
    ///
    /// `Invalid` for a wrong filter; `Unavailable` where the cluster does not answer by the client's deadline, which is that of
    /// each page.
    pub async fn next(&mut self) -> Result<Option<SagaView>> {
        loop {
            if let Some(saga) = self.page.pop_front() {
                return Ok(Some(saga));
            }
            let Some(place) = self.next.clone() else { return Ok(None) };
            let page = v1::SagaListPage { filter: Some(self.filter.clone()), limit: PAGE, at_ts: self.at_ts };
            let page = match self.client.about_sagas_at(&place, Ask::List(page)).await? {
                Answer::Page(page) => page,
                _ => return Err(unfit()),
            };
            self.at_ts = page.at_ts;
            self.page = page.sagas.into();
            self.next = Some(page.next).filter(|next| !next.is_empty());
        }
    }

    /// All that are left.
    ///
    /// # Errors
    ///
    /// As for [`next`](Self::next).
    pub async fn all(mut self) -> Result<Vec<SagaView>> {
        let mut all = Vec::new();
        while let Some(saga) = self.next().await? {
            all.push(saga);
        }
        Ok(all)
    }
}
