//! What waits to be sent on one connection, bounded in frames and bytes, and coalesced into messages.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::Status;

use super::frame::frame_bytes;
use crate::rpc::internal::v1::{Frame, Frames};

/// A message is closed once it holds so many bytes; its last frame may take it over.
const MESSAGE_BYTES: usize = 1024 * 1024;
/// The most frames in a message.
const MESSAGE_FRAMES: usize = 1024;
/// The most frames that wait in a lane.
const LANE_FRAMES: usize = 4096;
/// The most bytes that wait in the bulk lane, in KiB. A larger frame waits for an empty lane.
const BULK_KIB: usize = 32 * 1024;

/// Which frames go first. Order holds within a lane only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// Heartbeats, votes, calls, replies: small, and worthless when late.
    Urgent,
    /// Log entries. All frames of an append stream take this lane, so they stay in order.
    Bulk,
}

/// The connection is gone, and what was to be sent with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed;

struct Waiting {
    frame: Frame,
    /// Gives the bulk lane's bytes back once the frame is in a message.
    _room: Option<OwnedSemaphorePermit>,
}

/// The sending end.
#[derive(Clone)]
pub struct Outbox {
    urgent: mpsc::Sender<Waiting>,
    bulk: mpsc::Sender<Waiting>,
    bulk_room: Arc<Semaphore>,
    end: mpsc::Sender<Status>,
}

/// The receiving end: messages to send.
pub struct Messages {
    urgent: mpsc::Receiver<Waiting>,
    bulk: mpsc::Receiver<Waiting>,
    end: mpsc::Receiver<Status>,
}

/// A new pair.
pub fn outbox() -> (Outbox, Messages) {
    let (urgent, urgent_out) = mpsc::channel(LANE_FRAMES);
    let (bulk, bulk_out) = mpsc::channel(LANE_FRAMES);
    let (end, end_out) = mpsc::channel(1);
    let bulk_room = Arc::new(Semaphore::new(BULK_KIB));
    (Outbox { urgent, bulk, bulk_room, end }, Messages { urgent: urgent_out, bulk: bulk_out, end: end_out })
}

impl Outbox {
    /// Queues a frame; waits while the lane is full.
    pub async fn send(&self, lane: Lane, frame: Frame) -> Result<(), Closed> {
        match lane {
            Lane::Urgent => self.urgent.send(Waiting { frame, _room: None }).await.map_err(|_| Closed),
            Lane::Bulk => {
                let kib = frame_bytes(&frame).div_ceil(1024).min(BULK_KIB) as u32;
                // Whoever waits here is let in when the other end goes: it closes the lane, and a closed
                // lane takes nothing from the semaphore, so both are watched.
                let room = tokio::select! {
                    room = Arc::clone(&self.bulk_room).acquire_many_owned(kib) => room.map_err(|_| Closed)?,
                    () = self.bulk.closed() => return Err(Closed),
                };
                self.bulk.send(Waiting { frame, _room: Some(room) }).await.map_err(|_| Closed)
            }
        }
    }

    /// Queues a frame if there is room at once.
    pub fn try_send(&self, lane: Lane, frame: Frame) -> Result<(), Closed> {
        let waiting = Waiting { frame, _room: None };
        let lane = match lane {
            Lane::Urgent => &self.urgent,
            Lane::Bulk => &self.bulk,
        };
        lane.try_send(waiting).map_err(|_| Closed)
    }

    /// Ends the connection with an error that the other side gets to see. The first one counts.
    pub fn end_with(&self, status: Status) {
        // A full channel means that an end is on its way already.
        self.end.try_send(status).ok();
    }

    /// Resolves when the connection is gone.
    pub async fn closed(&self) {
        self.urgent.closed().await;
    }
}

impl Messages {
    /// The next message: what waits, up to the bounds. `None` when nothing can come any more, an error
    /// where the connection is to end with one.
    pub async fn next(&mut self) -> Option<Result<Frames, Status>> {
        let first = tokio::select! {
            biased;
            Some(status) = self.end.recv() => return Some(Err(status)),
            Some(waiting) = self.urgent.recv() => waiting,
            Some(waiting) = self.bulk.recv() => waiting,
            else => return None,
        };
        let mut bytes = frame_bytes(&first.frame);
        let mut frames = vec![first.frame];
        while bytes < MESSAGE_BYTES && frames.len() < MESSAGE_FRAMES {
            let Ok(waiting) = self.urgent.try_recv().or_else(|_| self.bulk.try_recv()) else { break };
            bytes += frame_bytes(&waiting.frame);
            frames.push(waiting.frame);
        }
        Some(Ok(Frames { hello: None, frames }))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn frame(call: u64, len: usize) -> Frame {
        Frame { call, body: Bytes::from(vec![0; len]), ..Frame::default() }
    }

    #[tokio::test]
    async fn urgent_frames_go_first_and_messages_are_bounded() {
        let (outbox, mut messages) = outbox();
        for call in 0..4 {
            outbox.send(Lane::Bulk, frame(call, 600 * 1024)).await.expect("queued");
        }
        outbox.send(Lane::Urgent, frame(9, 10)).await.expect("queued");
        let calls = |message: Frames| message.frames.iter().map(|frame| frame.call).collect::<Vec<_>>();
        let first = messages.next().await.expect("some").expect("frames");
        assert_eq!(calls(first), [9, 0, 1]);
        let second = messages.next().await.expect("some").expect("frames");
        assert_eq!(calls(second), [2, 3]);
        drop(outbox);
        assert!(messages.next().await.is_none());
    }

    #[tokio::test]
    async fn the_bulk_lane_holds_so_many_bytes_and_a_waiter_learns_that_it_closed() {
        let (outbox, messages) = outbox();
        outbox.send(Lane::Bulk, frame(1, BULK_KIB * 1024)).await.expect("an empty lane takes anything");
        let waiter = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.send(Lane::Bulk, frame(2, 1)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished(), "the lane is full");
        drop(messages);
        assert_eq!(waiter.await.expect("joined"), Err(Closed));
    }

    #[tokio::test]
    async fn an_end_goes_before_everything() {
        let (outbox, mut messages) = outbox();
        outbox.send(Lane::Urgent, frame(1, 1)).await.expect("queued");
        outbox.end_with(Status::invalid_argument("malformed"));
        let end = messages.next().await.expect("some").expect_err("the end");
        assert_eq!(end.message(), "malformed");
    }
}
