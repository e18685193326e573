//! The fake node's gRPC services: sessions and the map; nothing else is asked of it.

use super::*;

#[tonic::async_trait]
impl Kv for FakeNode {
    type ScanStream = Replies<v1::ScanReply>;
    type SessionStream = Replies<v1::SessionReplies>;

    async fn put(&self, _: Request<v1::PutRequest>) -> Result<Response<v1::PutReply>, Status> {
        only_sessions()
    }

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<v1::GetReply>, Status> {
        only_sessions()
    }

    async fn get_many(&self, _: Request<v1::GetManyRequest>) -> Result<Response<v1::GetManyReply>, Status> {
        only_sessions()
    }

    async fn delete(&self, _: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteReply>, Status> {
        only_sessions()
    }

    async fn compare_and_swap(
        &self,
        _: Request<v1::CompareAndSwapRequest>,
    ) -> Result<Response<v1::CompareAndSwapReply>, Status> {
        only_sessions()
    }

    async fn add(&self, _: Request<v1::AddRequest>) -> Result<Response<v1::AddReply>, Status> {
        only_sessions()
    }

    async fn batch(&self, _: Request<v1::BatchRequest>) -> Result<Response<v1::BatchReply>, Status> {
        only_sessions()
    }

    async fn timestamp(
        &self,
        _: Request<v1::TimestampRequest>,
    ) -> Result<Response<v1::TimestampReply>, Status> {
        only_sessions()
    }

    async fn commit(&self, _: Request<v1::CommitRequest>) -> Result<Response<v1::CommitReply>, Status> {
        only_sessions()
    }

    async fn scan(&self, _: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        only_sessions()
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequests>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        self.world.lock().sessions += 1;
        let (replies, stream) = mpsc::channel(64);
        tokio::spawn(self.clone().run(request.into_inner(), replies));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

#[tonic::async_trait]
impl Cluster for FakeNode {
    type ReplicaScanStream = Replies<v1::ReplicaScanReply>;

    async fn init(&self, _: Request<v1::InitRequest>) -> Result<Response<v1::InitReply>, Status> {
        only_sessions()
    }

    async fn get_map(&self, _: Request<v1::GetMapRequest>) -> Result<Response<v1::GetMapReply>, Status> {
        Ok(Response::new(self.world.lock().map()))
    }

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusReply>, Status> {
        let node = v1::Node { id: self.id.0, ..Default::default() };
        let reply = v1::GetStatusReply { cluster_id: CLUSTER.into(), node: Some(node), ..Default::default() };
        Ok(Response::new(reply))
    }

    async fn checksum(&self, _: Request<v1::ChecksumRequest>) -> Result<Response<v1::ChecksumReply>, Status> {
        only_sessions()
    }

    async fn replica_scan(
        &self,
        _: Request<v1::ReplicaScanRequest>,
    ) -> Result<Response<Self::ReplicaScanStream>, Status> {
        only_sessions()
    }
}
