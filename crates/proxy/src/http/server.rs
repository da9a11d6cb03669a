//! A client's HTTP connection: hyper below, one exchange for each request.

use std::cell::{OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::exchange::{HttpConnection, serve};
use crate::facts::ConnFacts;
use crate::mux::server::Server;
use crate::snapshot::chain::{Chain, Codec, HttpChain, Network};
use crate::upstream::body::ClientBody;
use crate::upstream::gather::gather;
use crate::upstream::io::Io;
use crate::upstream::pool::LocalExec;
use crate::worker::{Ask, Watch, Worker};

/// What an HTTP/2 connection begins with (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream that tells the watch when a request's head begins.
#[derive(Debug)]
struct Watched {
    /// Taken back when the connection rests. hyper wants to be able to send it, hence the lock, which nobody contends.
    io: Arc<Mutex<Io>>,
    /// Not for HTTP/2: such a connection also moves when no request is under way.
    beginning: Arc<AtomicBool>,
    /// The last four bytes that were read.
    tail: Arc<AtomicU32>,
    /// Something was written, or should have been, that was not flushed since: hyper may hold more of it.
    unsent: Arc<AtomicBool>,
}

/// What a request without a body ends with: after it, hyper holds nothing that belongs to a next one.
const END_OF_HEAD: u32 = u32::from_be_bytes(*b"\r\n\r\n");

impl Watched {
    fn lock(&self) -> MutexGuard<'_, Io> {
        self.io.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        let result = Pin::new(&mut *this.lock()).poll_read(context, out);
        if result.is_ready() {
            this.beginning.store(true, Ordering::Relaxed);
            let read = &out.filled()[before..];
            let tail = read.iter().skip(read.len().saturating_sub(4));
            let tail = tail.fold(this.tail.load(Ordering::Relaxed), |tail, byte| (tail << 8) | u32::from(*byte));
            this.tail.store(tail, Ordering::Relaxed);
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.unsent.store(true, Ordering::Relaxed);
        Pin::new(&mut *self.lock()).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unsent.store(true, Ordering::Relaxed);
        Pin::new(&mut *self.lock()).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut *self.lock()).poll_flush(context);
        // hyper flushes only when it holds nothing more.
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.unsent.store(false, Ordering::Relaxed);
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(context)
    }
}

/// Where a connection's chain stands in the configuration.
#[derive(Clone, Debug)]
pub struct Place {
    /// The listener.
    pub listener: Arc<str>,
    /// The chain, as it was when the connection began.
    pub chain: Arc<Chain>,
}

/// The connection as of the newest configuration: what has become of the chain takes the place of the one it began with, so that
/// routes and filters in it count for every new request. Where the chain is gone, the connection ends after this request (Envoy
/// drains the connections of filter chains that are removed).
struct Current {
    connection: RefCell<(u64, Rc<HttpConnection>)>,
    place: Place,
}

impl Current {
    fn get(&self) -> Rc<HttpConnection> {
        let mut known = self.connection.borrow_mut();
        let snapshot = known.1.worker.snapshot.borrow();
        if snapshot.generation == known.0 {
            return Rc::clone(&known.1);
        }
        let generation = snapshot.generation;
        let listener = snapshot.listeners.get(&self.place.listener).map(|listener| Arc::clone(&listener.value));
        drop(snapshot);
        let now = listener
            .as_ref()
            .and_then(|listener| listener.all_chains().find(|chain| chain.takes_over(&self.place.chain)));
        match now.map(|chain| &chain.network) {
            Some(Network::Http(chain)) if !Arc::ptr_eq(chain, &known.1.chain) => {
                let old = &known.1;
                known.1 = Rc::new(HttpConnection {
                    worker: Rc::clone(&old.worker),
                    facts: Rc::clone(&old.facts),
                    chain: Arc::clone(chain),
                    watch: Rc::clone(&old.watch),
                    certificate: OnceCell::new(),
                    authority: old.authority.clone(),
                });
            }
            Some(Network::Http(_)) => {}
            // A new connection of this kind would be refused, or be treated otherwise: this one takes leave.
            _ => known.1.watch.ask(Ask::Leave),
        }
        known.0 = generation;
        Rc::clone(&known.1)
    }
}

/// Serves a connection to its end.
pub async fn run(worker: Rc<Worker>, mut io: Io, facts: Rc<ConnFacts>, chain: Arc<HttpChain>, place: Place) {
    let mux = facts.alpn.as_deref() == Some(crate::tls::MUX) && facts.peer.is_some();
    let watch = worker.watch(chain.idle_timeout, chain.request_headers_timeout);
    let shard = Arc::clone(&worker.shard);
    let http2 = match (chain.codec, facts.alpn.as_deref()) {
        _ if mux => false,
        (Codec::Http2, _) => true,
        (Codec::Http1, _) => false,
        (Codec::Auto, Some("h2" | "istio-h2")) => true,
        (Codec::Auto, Some("http/1.1" | "http/1.0")) => false,
        (Codec::Auto, _) => {
            let since = watch.idle_since.get();
            let begin = Box::pin(async {
                tokio::select! {
                    begin = first_bytes(&mut io, &watch) => begin,
                    () = worker.unused_ends(since) => None,
                }
            })
            .await;
            let Some(begin) = begin else { return };
            // What was asked meanwhile is for the connection that begins now.
            if watch.leaves.get() {
                watch.ask(Ask::Leave);
            }
            let http2 = begin.starts_with(PREFACE);
            io.put_back(begin);
            http2
        }
    };
    let connection = Rc::new(HttpConnection {
        worker,
        facts,
        chain,
        watch: Rc::clone(&watch),
        certificate: OnceCell::new(),
        authority: RefCell::new(HeaderValue::from_static("")),
    });
    let current = Rc::new(Current { connection: RefCell::new((0, connection)), place });
    if mux {
        return Box::pin(serve_mux(io, &current, &watch)).await;
    }
    if http2 {
        return Box::pin(serve_http2(io, &current, &watch)).await;
    }
    let mut io = io;
    loop {
        // The protocol's state is large and lives only while there is something to do.
        let Some(quiet) = Box::pin(serve_http1(io, &current, &watch)).await else { return };
        io = quiet;
        watch.rests.set(true);
        let resting = &shard.process.connections_resting;
        resting.add(1);
        let again = tokio::select! {
            biased;
            () = io.readable() => true,
            () = ends(&watch) => false,
        };
        resting.subtract(1);
        watch.rests.set(false);
        // A request may have come that the runtime has not seen yet: it is served, and told of the end.
        if !again && !io.has_input() {
            return;
        }
    }
}

/// Waits until the connection is to end though nothing comes on it. That it is to leave is told with its next answer; who closes
/// those on which none will be given is `Worker::take_leave`, or `Worker::unused_ends`.
async fn ends(watch: &Watch) {
    while matches!(watch.asked().await, Ask::Rest | Ask::Leave) {}
}

/// Serves HTTP/2 until the connection ends.
async fn serve_http2(io: Io, current: &Rc<Current>, watch: &Rc<Watch>) {
    let serving = Rc::clone(current);
    let service = service_fn(move |request| serve(serving.get(), Request::map(request, ClientBody::Http)));
    let (io, turns) = gather(io);
    let served = http2::Builder::new(LocalExec)
        .timer(TokioTimer::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .max_send_buf_size(64 * 1024)
        .max_header_list_size(60 * 1024)
        .max_concurrent_streams(current.get().chain.max_concurrent_streams.min(1 << 20))
        .serve_connection(TokioIo::new(io), service);
    let mut served = std::pin::pin!(served);
    let mut ending = false;
    poll_fn(|context| {
        if let Poll::Ready(result) = turns.turn(served.as_mut(), context) {
            log_end(result.as_ref().err());
            log_end(result.ok().and_then(Result::err).as_ref());
            return Poll::Ready(());
        }
        while let Poll::Ready(ask) = watch.poll_asked(context) {
            if ask == Ask::Close {
                return Poll::Ready(());
            }
            if ask == Ask::Rest {
                // Once is enough: an HTTP/2 connection has nothing to give back.
                watch.rests.set(true);
                continue;
            }
            if !std::mem::replace(&mut ending, true) {
                served.as_mut().graceful_shutdown();
                // So that it is looked at again: the end has to be announced.
                context.waker().wake_by_ref();
            }
        }
        Poll::Pending
    })
    .await;
}

/// Serves the protocol between our proxies until the connection ends.
async fn serve_mux(io: Io, current: &Rc<Current>, watch: &Rc<Watch>) {
    let most = usize::try_from(current.get().chain.max_concurrent_streams).unwrap_or(usize::MAX);
    let mut server = Server::new(io, most);
    let mut ending = false;
    let closes = poll_fn(|context| {
        // The budget of a task is meant for one connection; this one has many requests, and bounds of its own.
        let turn = std::pin::pin!(tokio::task::coop::unconstrained(poll_fn(|context| {
            server.poll(context, |request| serve(current.get(), request.map(ClientBody::Mux)))
        })));
        if let Poll::Ready(why) = turn.poll(context) {
            tracing::debug!(%why, "a connection from another proxy ended");
            return Poll::Ready(false);
        }
        while let Poll::Ready(ask) = watch.poll_asked(context) {
            match ask {
                Ask::Close => return Poll::Ready(true),
                // Once is enough: it has nothing to give back.
                Ask::Rest => watch.rests.set(true),
                Ask::Leave | Ask::Hurry if !std::mem::replace(&mut ending, true) => {
                    server.take_leave();
                    // So that it is written.
                    context.waker().wake_by_ref();
                }
                // Asked again, and the client has not gone: it learns what was not taken.
                Ask::Leave | Ask::Hurry if server.is_idle() => return Poll::Ready(true),
                Ask::Leave | Ask::Hurry => {}
            }
        }
        Poll::Pending
    })
    .await;
    if closes {
        server.close().await;
    }
}

/// Serves HTTP/1 until the connection ends, or nothing has come for a while: then the stream comes back.
async fn serve_http1(io: Io, current: &Rc<Current>, watch: &Rc<Watch>) -> Option<Io> {
    let io = Arc::new(Mutex::new(io));
    let tail = Arc::new(AtomicU32::new(END_OF_HEAD));
    let unsent = Arc::new(AtomicBool::new(false));
    let serving = Rc::clone(current);
    let service = service_fn(move |request| serve(serving.get(), Request::map(request, ClientBody::Http)));
    let served = http1::Builder::new()
        .half_close(false)
        .keep_alive(true)
        .preserve_header_case(current.get().chain.preserve_header_case)
        .max_buf_size(400 * 1024)
        .serve_connection(
            TokioIo::new(Watched {
                io: Arc::clone(&io),
                beginning: Arc::clone(&watch.beginning),
                tail: Arc::clone(&tail),
                unsent: Arc::clone(&unsent),
            }),
            service,
        )
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    let (mut expired, mut ending) = (false, false);
    let rests = poll_fn(|context| {
        if let Poll::Ready(result) = served.as_mut().poll(context) {
            log_end(result.as_ref().err());
            return Poll::Ready(false);
        }
        // A request may have come that the runtime has not seen yet: it is served, and told of the end.
        let comes = || watch.active.get() == 0 && io.lock().unwrap_or_else(PoisonError::into_inner).has_input();
        let sent = || !unsent.load(Ordering::Relaxed);
        while let Poll::Ready(ask) = watch.poll_asked(context) {
            match ask {
                Ask::Rest => {
                    // Nothing was read since the last answer, what was read before is used up, and the answer has left.
                    let quiet = watch.active.get() == 0 && !watch.beginning.load(Ordering::Relaxed);
                    if !ending && quiet && sent() && tail.load(Ordering::Relaxed) == END_OF_HEAD {
                        return Poll::Ready(true);
                    }
                    // Asked again only after another request.
                    watch.rests.set(true);
                }
                // Told with the next answer: closed now, the connection would be lost to a client that has just been answered
                // and sends again.
                Ask::Leave => {}
                // A head that takes too long is not waited for; an idle connection may close in peace.
                Ask::Hurry if watch.head_since.get().is_some() || ending => return Poll::Ready(false),
                Ask::Hurry => expired = true,
                Ask::Close if !comes() && sent() => return Poll::Ready(false),
                // Asked again.
                Ask::Close => {}
            }
        }
        if expired && !ending && !comes() {
            ending = true;
            served.as_mut().graceful_shutdown();
            context.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await;
    rests.then(|| {
        let mut io = io.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *io, Io::Gone(tokio::io::empty()))
    })
}

fn log_end(error: Option<&impl std::error::Error>) {
    if let Some(error) = error {
        tracing::debug!(%error, "a client's HTTP connection ended");
    }
}

/// Reads until it is known whether the client speaks HTTP/2.
async fn first_bytes(io: &mut Io, watch: &Watch) -> Option<Bytes> {
    // Room only when there is something: many connections are opened ahead of their use.
    if io.is_bare() {
        tokio::select! {
            () = io.readable() => {}
            () = ends(watch) => return None,
        }
    }
    let mut bytes = BytesMut::with_capacity(4096);
    loop {
        tokio::select! {
            read = io.read_buf(&mut bytes) => match read {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            },
            () = ends(watch) => return None,
        }
        let compared = bytes.len().min(PREFACE.len());
        if bytes[..compared] != PREFACE[..compared] || bytes.len() >= PREFACE.len() {
            return Some(bytes.freeze());
        }
        if watch.head_since.get().is_none() {
            watch.head_since.set(Some(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::*;
    use crate::upstream::io::Prefixed;

    #[tokio::test]
    async fn a_request_on_its_way_is_known_to_the_kernel_before_the_runtime() {
        let (near, far) = UnixStream::pair().unwrap();
        far.writable().await.unwrap();
        let io = Io::Unix(Prefixed { prefix: Bytes::new(), inner: near });
        assert!(!io.has_input());
        // Nothing is waited for in between: the runtime has no turn.
        assert_eq!(far.try_write(b"G").unwrap(), 1);
        assert!(io.has_input());
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        assert!(!Io::Unix(Prefixed { prefix: Bytes::new(), inner: near }).has_input(), "an end is no request");
    }

    #[tokio::test]
    async fn what_the_client_has_not_taken_is_known() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let unsent = Arc::new(AtomicBool::new(false));
        let mut stream = Watched {
            io: Arc::new(Mutex::new(Io::Unix(Prefixed { prefix: Bytes::new(), inner: near }))),
            beginning: Arc::default(),
            tail: Arc::default(),
            unsent: Arc::clone(&unsent),
        };
        let sent = async {
            stream.write_all(&vec![1; 1 << 20]).await.unwrap();
            stream.flush().await.unwrap();
        };
        let mut sent = std::pin::pin!(sent);
        // The socket is full: what is left is not lost sight of.
        assert!(poll_fn(|context| Poll::Ready(sent.as_mut().poll(context))).await.is_pending());
        assert!(unsent.load(Ordering::Relaxed));
        let mut taken = vec![0; 1 << 20];
        tokio::join!(sent, async { far.read_exact(&mut taken).await.unwrap() });
        assert!(!unsent.load(Ordering::Relaxed));
    }
}
