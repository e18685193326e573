//! The public saga service, for callers in any language: a client that starts at this node does the work.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tonic::{Request, Response, Status};

use crate::client::Client;
use crate::node::core::Core;
use crate::rpc::v1::saga_catalogue_request::What as Catalogue;
use crate::rpc::v1::saga_server::Saga;
use crate::rpc::v1::saga_task_end::What as End;
use crate::rpc::{convert, v1, validate};
use crate::types::{Error, Result};

/// The public saga service.
pub struct SagaService(pub Arc<Core>);

impl SagaService {
    /// A client with the caller's deadline, once the header is checked.
    async fn client(&self, header: Option<&v1::Header>) -> Result<Client> {
        let header = validate::header(header)?;
        header.check_cluster(self.0.member()?.cluster())?;
        Ok(self.0.client().await?.with_deadline(header.deadline))
    }
}

fn unset(field: &str) -> Error {
    Error::invalid(format!("the request says nothing: set `{field}`"))
}

/// The answer, or the error as a status.
fn respond<T>(done: Result<T>) -> Result<Response<T>, Status> {
    done.map(Response::new).map_err(|error| convert::error_to_status(&error))
}

type RecordStream = Pin<Box<dyn Stream<Item = Result<v1::SagaRecord, Status>> + Send>>;
type SagaStream = Pin<Box<dyn Stream<Item = Result<v1::SagaView, Status>> + Send>>;

#[tonic::async_trait]
impl Saga for SagaService {
    async fn define(
        &self,
        request: Request<v1::DefineSagaRequest>,
    ) -> Result<Response<v1::SagaDefinition>, Status> {
        let v1::DefineSagaRequest { header, json } = request.into_inner();
        respond(async { self.client(header.as_ref()).await?.define_saga_json(&json).await }.await)
    }

    async fn list_definitions(
        &self,
        request: Request<v1::ListSagaDefinitionsRequest>,
    ) -> Result<Response<v1::SagaCatalogueReply>, Status> {
        let v1::ListSagaDefinitionsRequest { header, name } = request.into_inner();
        let listed =
            async { self.client(header.as_ref()).await?.about_definitions(Catalogue::Find(name)).await };
        respond(listed.await)
    }

    async fn set_queue(
        &self,
        request: Request<v1::SetSagaQueueRequest>,
    ) -> Result<Response<v1::SagaQueue>, Status> {
        let v1::SetSagaQueueRequest { header, queue } = request.into_inner();
        let set = async {
            let queue = queue.ok_or_else(|| unset("queue"))?;
            self.client(header.as_ref()).await?.set_saga_queue(&queue.name, queue.rate_per_s).await?;
            Ok(queue)
        };
        respond(set.await)
    }

    async fn list_queues(
        &self,
        request: Request<v1::ListSagaQueuesRequest>,
    ) -> Result<Response<v1::SagaCatalogueReply>, Status> {
        let header = request.into_inner().header;
        let listed =
            async { self.client(header.as_ref()).await?.about_definitions(Catalogue::Queues(true)).await };
        respond(listed.await)
    }

    async fn start(
        &self,
        request: Request<v1::StartSagaRequest>,
    ) -> Result<Response<v1::SagaStarted>, Status> {
        let v1::StartSagaRequest { header, start } = request.into_inner();
        let started = async {
            let start = start.ok_or_else(|| unset("start"))?;
            self.client(header.as_ref()).await?.start_saga(start).await
        };
        respond(started.await)
    }

    async fn get(&self, request: Request<v1::GetSagaRequest>) -> Result<Response<v1::SagaView>, Status> {
        let v1::GetSagaRequest { header, id, with_payloads } = request.into_inner();
        let got = async { self.client(header.as_ref()).await?.saga_with(&id, with_payloads).await };
        respond(got.await)
    }

    async fn wait(&self, request: Request<v1::WaitSagaRequest>) -> Result<Response<v1::SagaView>, Status> {
        let v1::WaitSagaRequest { header, id } = request.into_inner();
        respond(async { self.client(header.as_ref()).await?.wait_for_saga(&id).await }.await)
    }

    type HistoryStream = RecordStream;

    async fn history(
        &self,
        request: Request<v1::SagaHistoryRequest>,
    ) -> Result<Response<RecordStream>, Status> {
        let v1::SagaHistoryRequest { header, id } = request.into_inner();
        let client = self.client(header.as_ref()).await.map_err(|error| convert::error_to_status(&error))?;
        let lines = async_stream::stream! {
            let mut next_from = Some(0);
            while let Some(from) = next_from.take() {
                match client.saga_history(&id, from).await {
                    Ok((records, next)) => {
                        for record in records {
                            yield Ok(record);
                        }
                        next_from = next;
                    }
                    Err(error) => yield Err(convert::error_to_status(&error)),
                }
            }
        };
        Ok(Response::new(Box::pin(lines)))
    }

    type ListStream = SagaStream;

    async fn list(&self, request: Request<v1::ListSagasRequest>) -> Result<Response<SagaStream>, Status> {
        let v1::ListSagasRequest { header, filter, limit } = request.into_inner();
        let client = self.client(header.as_ref()).await.map_err(|error| convert::error_to_status(&error))?;
        let mut list = client.sagas(filter.unwrap_or_default());
        let most = if limit == 0 { u64::MAX } else { limit };
        let sagas = async_stream::stream! {
            let mut told = 0;
            while told < most {
                match list.next().await {
                    Ok(Some(saga)) => yield Ok(saga),
                    Ok(None) => break,
                    Err(error) => {
                        yield Err(convert::error_to_status(&error));
                        break;
                    }
                }
                told += 1;
            }
        };
        Ok(Response::new(Box::pin(sagas)))
    }

    async fn signal(
        &self,
        request: Request<v1::SignalSagaRequest>,
    ) -> Result<Response<v1::SagaDone>, Status> {
        let v1::SignalSagaRequest { header, signal } = request.into_inner();
        let sent = async {
            let signal = signal.ok_or_else(|| unset("signal"))?;
            self.client(header.as_ref()).await?.send_signal(signal).await
        };
        respond(sent.await)
    }

    async fn control(
        &self,
        request: Request<v1::ControlSagaRequest>,
    ) -> Result<Response<v1::SagaDone>, Status> {
        let v1::ControlSagaRequest { header, control } = request.into_inner();
        let controlled = async {
            let control = control.ok_or_else(|| unset("control"))?;
            self.client(header.as_ref()).await?.send_control(control).await
        };
        respond(controlled.await)
    }

    async fn put_schedule(
        &self,
        request: Request<v1::PutSagaScheduleRequest>,
    ) -> Result<Response<v1::SagaSchedule>, Status> {
        let v1::PutSagaScheduleRequest { header, schedule } = request.into_inner();
        let put = async {
            let schedule = schedule.ok_or_else(|| unset("schedule"))?;
            self.client(header.as_ref()).await?.put_saga_schedule(schedule).await
        };
        respond(put.await)
    }

    type ListSchedulesStream = Pin<Box<dyn Stream<Item = Result<v1::SagaSchedule, Status>> + Send>>;

    async fn list_schedules(
        &self,
        request: Request<v1::ListSagaSchedulesRequest>,
    ) -> Result<Response<Self::ListSchedulesStream>, Status> {
        let header = request.into_inner().header;
        let listed = async { self.client(header.as_ref()).await?.saga_schedules().await };
        let schedules = listed.await.map_err(|error| convert::error_to_status(&error))?;
        Ok(Response::new(Box::pin(futures::stream::iter(schedules.into_iter().map(Ok)))))
    }

    async fn drop_schedule(
        &self,
        request: Request<v1::NamedSagaScheduleRequest>,
    ) -> Result<Response<v1::SagaSchedules>, Status> {
        let v1::NamedSagaScheduleRequest { header, name } = request.into_inner();
        let dropped = async {
            let existed = self.client(header.as_ref()).await?.drop_saga_schedule(&name).await?;
            Ok(v1::SagaSchedules { existed, ..v1::SagaSchedules::default() })
        };
        respond(dropped.await)
    }

    async fn trigger_schedule(
        &self,
        request: Request<v1::TriggerSagaScheduleRequest>,
    ) -> Result<Response<v1::SagaSchedules>, Status> {
        let v1::TriggerSagaScheduleRequest { header, trigger } = request.into_inner();
        let triggered = async {
            let trigger = trigger.ok_or_else(|| unset("trigger"))?;
            self.client(header.as_ref()).await?.trigger_schedule(trigger).await?;
            Ok(v1::SagaSchedules { existed: true, ..v1::SagaSchedules::default() })
        };
        respond(triggered.await)
    }

    async fn poll_tasks(
        &self,
        request: Request<v1::PollSagaTasksRequest>,
    ) -> Result<Response<v1::SagaTasks>, Status> {
        let v1::PollSagaTasksRequest { header, queue, worker, max } = request.into_inner();
        let polled = async {
            let client = self.client(header.as_ref()).await?;
            let tasks = client.poll_saga_tasks(&queue, &worker, max as usize).await?;
            Ok(v1::SagaTasks { is_there: !tasks.is_empty(), tasks })
        };
        respond(polled.await)
    }

    async fn complete_task(
        &self,
        request: Request<v1::CompleteSagaTaskRequest>,
    ) -> Result<Response<v1::SagaDone>, Status> {
        let v1::CompleteSagaTaskRequest { header, token, output } = request.into_inner();
        let told =
            async { self.client(header.as_ref()).await?.end_saga_task(&token, End::Output(output)).await };
        respond(told.await)
    }

    async fn fail_task(
        &self,
        request: Request<v1::FailSagaTaskRequest>,
    ) -> Result<Response<v1::SagaDone>, Status> {
        let v1::FailSagaTaskRequest { header, token, failure } = request.into_inner();
        let told = async {
            self.client(header.as_ref())
                .await?
                .end_saga_task(&token, End::Failure(failure.unwrap_or_default()))
                .await
        };
        respond(told.await)
    }

    async fn heartbeat_task(
        &self,
        request: Request<v1::HeartbeatSagaTaskRequest>,
    ) -> Result<Response<v1::SagaDone>, Status> {
        let v1::HeartbeatSagaTaskRequest { header, token } = request.into_inner();
        let told =
            async { self.client(header.as_ref()).await?.end_saga_task(&token, End::Heartbeat(true)).await };
        respond(told.await)
    }
}
