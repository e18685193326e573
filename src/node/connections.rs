//! The connections that a node takes: no more than its files allow, and none that stays silent.
//!
//! A connection is an open file, and so is each file of the store: a node whose callers take all of them could
//! not write any more. So places are kept for the store, and connections past the rest are closed at once.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// The most connections of a node, where its files allow as many.
const MAX_CONNECTIONS: usize = 16 * 1024;
/// The most open files that are asked of the system.
const WANTED_FILES: u64 = 64 * 1024;
/// The most files of the store that are open at once, where so many are allowed.
const MAX_STORE_FILES: usize = 1024;
/// How long a fresh connection may take for its first bytes.
const SILENCE: Duration = Duration::from_secs(10);
/// The first bytes of HTTP/2, which every caller sends.
const PREFACE_BYTES: usize = 24;
/// The pause after the system refused to take a connection.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// The pause between two lines in the log about connections that were turned away.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);

/// How the files that the process may open are shared out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileBudget {
    /// Files of the store.
    pub store_files: u32,
    /// Connections of callers and other nodes.
    pub connections: usize,
}

impl FileBudget {
    /// Raises the process's limit of open files as far as it is allowed, and shares them out.
    pub fn take() -> Self {
        let limit = getrlimit(Resource::Nofile);
        // No limit is `None`.
        let wanted = limit.maximum.map_or(WANTED_FILES, |most| most.min(WANTED_FILES));
        if limit.current.is_some_and(|files| files < wanted)
            && let Err(error) =
                setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })
        {
            tracing::warn!(%error, ?limit, "the limit of open files can't be raised");
        }
        Self::present()
    }

    /// Shares out the files that the process may open as it is: for a program that is not ours alone.
    pub fn present() -> Self {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(WANTED_FILES);
        Self::of(usize::try_from(files).unwrap_or(usize::MAX))
    }

    /// Shares out `files`: up to half for the store, an eighth for logs, outgoing connections and HTTP.
    fn of(files: usize) -> Self {
        let store = MAX_STORE_FILES.min(files / 2);
        let other = 1024.min(files / 8);
        Self {
            store_files: u32::try_from(store).unwrap_or(u32::MAX),
            connections: MAX_CONNECTIONS.min(files.saturating_sub(store + other)),
        }
    }
}

/// A connection of a caller. Its place is free again once it is dropped.
pub struct Connection {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
    /// Until the first bytes are there: how many are missing, and until when.
    silent: Option<(usize, Pin<Box<Sleep>>)>,
}

/// The connections of a listener, at most `limit` at a time. Never ends.
pub fn incoming(listener: TcpListener, limit: usize) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(limit));
    async_stream::stream! {
        let mut complained: Option<Instant> = None;
        loop {
            let why = match listener.accept().await {
                Ok((stream, _)) => match places.clone().try_acquire_owned() {
                    Ok(place) => {
                        yield connection(stream, place, SILENCE);
                        continue;
                    }
                    // Closed here: the caller learns at once, and tries another node.
                    Err(_) => format!("{limit} connections are open, which is the limit"),
                },
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    sleep(REFUSED_PAUSE).await;
                    format!("the system refuses: {error}")
                }
            };
            if complained.is_none_or(|last| last.elapsed() > COMPLAINT_PAUSE) {
                complained = Some(Instant::now());
                tracing::warn!(why, "connections are turned away: close idle ones, or allow more open files (ulimit -n)");
            }
        }
    }
}

fn connection(stream: TcpStream, place: OwnedSemaphorePermit, silence: Duration) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let silent = Some((PREFACE_BYTES, Box::pin(sleep(silence))));
    Ok(Connection { stream, _place: place, silent })
}

/// Whether an error of accepting is about a connection that is gone already.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Pending => match &mut self.silent {
                None => Poll::Pending,
                Some((_, until)) => {
                    ready!(until.as_mut().poll(context));
                    Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the caller did not begin to speak HTTP/2 in time",
                    )))
                }
            },
            Poll::Ready(read) => {
                let came = buffer.filled().len() - before;
                self.silent = match self.silent.take() {
                    Some((missing, until)) if missing > came => Some((missing - came, until)),
                    _ => None,
                };
                Poll::Ready(read)
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn files_are_shared_between_store_and_connections() {
        let of = |files| {
            let budget = FileBudget::of(files);
            assert!(budget.store_files as usize + budget.connections < files, "{files}");
            (budget.store_files, budget.connections)
        };
        assert_eq!(of(1024), (512, 384));
        assert_eq!(of(20_000), (1024, MAX_CONNECTIONS));
        assert_eq!(of(1 << 20), (1024, MAX_CONNECTIONS));
    }

    #[tokio::test]
    async fn connections_past_the_limit_are_closed_and_places_come_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let mut taken = Box::pin(incoming(listener, 2));
        let mut callers = Vec::new();
        let mut held = Vec::new();
        for _ in 0..2 {
            callers.push(TcpStream::connect(addr).await.expect("connected"));
            held.push(taken.next().await.expect("endless").expect("taken"));
        }
        let mut third = TcpStream::connect(addr).await.expect("connected");
        let turned_away = async { third.read(&mut [0]).await };
        tokio::select! {
            read = turned_away => assert!(matches!(read, Ok(0) | Err(_)), "{read:?}"),
            _ = taken.next() => panic!("a third connection was taken"),
        }
        held.pop();
        let _fourth = TcpStream::connect(addr).await.expect("connected");
        taken.next().await.expect("endless").expect("a place was free again");
    }

    #[tokio::test]
    async fn a_silent_connection_ends_and_a_speaking_one_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let places = Arc::new(Semaphore::new(2));
        let mut caller = TcpStream::connect(addr).await.expect("connected");
        let (stream, _) = listener.accept().await.expect("accepted");
        let place = places.clone().try_acquire_owned().expect("a place");
        let mut silent = connection(stream, place, Duration::from_millis(1)).expect("a connection");
        caller.write_all(&[1; PREFACE_BYTES - 1]).await.expect("written");
        let ended = silent.read_exact(&mut [0; PREFACE_BYTES]).await.expect_err("one byte is missing");
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        drop(silent);
        assert_eq!(places.available_permits(), 2, "its place is free again");

        let mut caller = TcpStream::connect(addr).await.expect("connected");
        let (stream, _) = listener.accept().await.expect("accepted");
        let place = places.clone().try_acquire_owned().expect("a place");
        let mut speaking = connection(stream, place, SILENCE).expect("a connection");
        caller.write_all(&[1; PREFACE_BYTES]).await.expect("written");
        speaking.read_exact(&mut [0; PREFACE_BYTES]).await.expect("came");
        assert!(speaking.silent.is_none(), "it is still waited for");
    }
}
