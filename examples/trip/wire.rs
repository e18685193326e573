//! What workers and services say to each other: a line of JSON each way, over a connection of its own.

use std::time::Duration;

use kvorum::saga::Failure;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a worker waits for an answer. Less than an attempt's lease, so that it can still tell what it saw.
const ANSWER_WITHIN: Duration = Duration::from_millis(1_000);
/// No line is longer.
const MAX_LINE: u64 = 64 * 1024;

/// What a service is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Book, or take the money.
    Do,
    /// Cancel the booking.
    Undo,
    /// Tell whether it is done.
    Ask,
}

/// A call of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// What it is to do.
    pub what: What,
    /// Of which trip: the saga's id. A service has at most one booking of a trip that stands. A compensation finds it by
    /// this, since it may run without ever having seen the booking's number.
    pub trip: String,
    /// The idempotency key: the same for all attempts at a task, so that a call made again is known as such.
    pub key: String,
    /// Larger with each task of the saga that was handed out, so that a call that was overtaken is known as such.
    pub fence: u64,
    /// What it costs, in cents.
    pub cents: u64,
}

/// What a service answers, unless it breaks the connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done: now, or by an earlier call with the same key.
    Done {
        /// The number of the booking or payment; of a cancellation, of that.
        number: String,
    },
    /// To a question: whether it is done.
    Known {
        /// It is.
        done: bool,
    },
    /// It can't be done, and nothing was: the flight is full, the card is blocked.
    Refused {
        /// Why.
        why: String,
    },
    /// Nothing was done; another attempt may succeed.
    Busy,
    /// Nothing was done: a later attempt, a cancellation or a question has come before this call.
    Late,
}

/// Calls a service. What is not known for certain to have done nothing is not said to.
pub async fn call(address: &str, request: &Request) -> Result<Answer, Failure> {
    let connecting = timeout(ANSWER_WITHIN, TcpStream::connect(address)).await;
    let Ok(Ok(mut stream)) = connecting else {
        // Nothing was sent.
        return Err(Failure::new("the service is not reachable").kind("unreachable").did_nothing());
    };
    // From here on every failure is one of the unpleasant kind: the service may have done it, or may yet.
    let unknown = |why: &str| Failure::new(format!("whether it is done is not known: {why}")).kind("unknown");
    let asked = timeout(ANSWER_WITHIN, async {
        write_line(&mut stream, request).await?;
        read_line::<Answer>(&mut stream).await
    });
    match asked.await {
        Ok(Ok(Some(answer))) => Ok(answer),
        Ok(Ok(None)) => Err(unknown("the connection was closed without an answer")),
        Ok(Err(error)) => Err(unknown(&error.to_string())),
        Err(_) => Err(unknown("no answer in time")),
    }
}

/// Reads the one line that the other side sends; `None` where it sends none.
pub async fn read_line<T: serde::de::DeserializeOwned>(stream: &mut TcpStream) -> std::io::Result<Option<T>> {
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut line).await?;
    if !line.ends_with('\n') {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

/// Sends a line.
pub async fn write_line<T: Serialize>(stream: &mut TcpStream, value: &T) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line).await
}
