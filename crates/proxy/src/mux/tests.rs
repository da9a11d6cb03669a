//! Both ends together.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::client::{self, Connection, NotSent};
use super::server::Server;
use super::{Broken, Received};
use crate::message::Head;

type AnyBody = Pin<Box<dyn Body<Data = Bytes, Error = Infallible>>>;

fn full(bytes: impl Into<Bytes>) -> AnyBody {
    Box::pin(Full::new(bytes.into()))
}

/// A server that serves so, until its connection ends; `leave` makes it take leave, then close.
fn serve<F>(
    io: DuplexStream,
    most: usize,
    leave: Rc<Semaphore>,
    with: impl Fn(Request<Received>) -> F + 'static,
) -> JoinHandle<Option<Broken>>
where
    F: Future<Output = Result<Response<AnyBody>, ()>> + 'static,
{
    spawn_local(async move {
        let mut server = Server::new(io, most);
        for asked in 0..2 {
            let mut stop = Box::pin(leave.acquire());
            let why = poll_fn(|context| {
                if let Poll::Ready(why) = server.poll(context, &with) {
                    return Poll::Ready(Some(why));
                }
                stop.as_mut().poll(context).map(|permit| {
                    permit.unwrap().forget();
                    None
                })
            })
            .await;
            drop(stop);
            if why.is_some() {
                return why;
            }
            if asked == 0 {
                server.take_leave();
            }
        }
        server.close().await;
        None
    })
}

/// Connected through a pipe of this size.
fn connected<F>(
    room: usize,
    with: impl Fn(Request<Received>) -> F + 'static,
) -> (Connection, Rc<Semaphore>, JoinHandle<Option<Broken>>)
where
    F: Future<Output = Result<Response<AnyBody>, ()>> + 'static,
{
    let (near, far) = tokio::io::duplex(room);
    let leave = Rc::new(Semaphore::new(0));
    let server = serve(far, 1000, Rc::clone(&leave), with);
    (client::start(near, ()), leave, server)
}

/// Nobody asks it to leave.
fn stays() -> Rc<Semaphore> {
    Rc::new(Semaphore::new(0))
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(tokio::time::timeout(Duration::from_secs(30), work)).await.expect("it hangs")
}

/// Sends back what comes, with its trailers.
async fn echo(request: Request<Received>) -> Result<Response<AnyBody>, ()> {
    let (head, body) = request.into_parts();
    let mut response =
        Response::new(Box::pin(body.map_err(|_| -> Infallible { panic!("the request broke") })) as AnyBody);
    response.headers_mut().insert("x-path", HeaderValue::from_str(head.uri.path()).unwrap());
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

async fn ask(connection: &Connection, path: &str, body: AnyBody) -> Result<Response<Received>, NotSent> {
    let target = PathAndQuery::try_from(path).unwrap();
    let (host, headers) = (HeaderValue::from_static("a.b"), HeaderMap::new());
    let (method, version) = (&Method::POST, Version::HTTP_11);
    let head = Head { method, target: Some(&target), host: &host, version, headers: &headers, upgrade: None };
    connection.send(head, body).await
}

async fn get(connection: &Connection, path: &str) -> Result<Response<Received>, NotSent> {
    ask(connection, path, full("")).await
}

#[tokio::test]
async fn many_requests_at_once_come_back_whole_through_any_pipe() {
    within(async {
        for room in [17, 4096, 1 << 20] {
            let (connection, _leave, _) = connected(room, echo);
            let lengths: &[usize] =
                if room == 17 { &[0, 1, 9000] } else { &[0, 1, 1000, 8192, 16_384, 40_000, 3 << 20] };
            let exchange = async |number: usize, length: usize| {
                let sent: Vec<u8> = (0..length).map(|at| (at * 7 + number) as u8).collect();
                let mut trailers = HeaderMap::new();
                trailers.insert("x-sum", HeaderValue::from(length));
                let pieces: Vec<_> = sent
                    .chunks(5000)
                    .map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece))))
                    .chain([Ok(Frame::trailers(trailers))])
                    .collect();
                let body: AnyBody = Box::pin(StreamBody::new(futures_util::stream::iter(pieces)));
                let path = format!("/{number}");
                let (head, body) = ask(&connection, &path, body).await.unwrap().into_parts();
                assert_eq!(head.status, StatusCode::ACCEPTED);
                assert_eq!(head.headers["x-path"], path);
                let body = body.collect().await.unwrap();
                assert_eq!(body.trailers().unwrap()["x-sum"], length.to_string());
                assert!(body.to_bytes() == sent, "{length} bytes through {room}");
            };
            let all = (0..40).map(|number| exchange(number, lengths[number % lengths.len()]));
            futures_util::future::join_all(all).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_nobody_reads_does_not_hold_the_others() {
    within(async {
        let given = Rc::new(Cell::new(0));
        let counted = Rc::clone(&given);
        let (connection, _leave, _) = connected(4096, move |request: Request<Received>| {
            let given = Rc::clone(&counted);
            async move {
                if request.uri().path() == "/short" {
                    return Ok(Response::new(full("short")));
                }
                let endless = futures_util::stream::repeat_with(move || {
                    given.set(given.get() + 10_000);
                    Ok(Frame::data(Bytes::from(vec![0; 10_000])))
                });
                Ok(Response::new(Box::pin(StreamBody::new(endless)) as AnyBody))
            }
        });
        let unread = get(&connection, "/endless").await.unwrap();
        for _ in 0..2000 {
            let body = get(&connection, "/short").await.unwrap().into_body().collect().await.unwrap();
            assert_eq!(body.to_bytes(), "short");
        }
        assert!((500_000..1_200_000).contains(&given.get()), "{}", given.get());
        // It goes on when it is read.
        let mut body = unread.into_body();
        let mut read = 0;
        while read < 20 << 20 {
            read += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
        }
    })
    .await;
}

#[tokio::test]
async fn who_gives_up_is_known_to_the_other_side() {
    within(async {
        let live = Rc::new(());
        let held = Rc::clone(&live);
        let (connection, _leave, _) = connected(4096, move |request: Request<Received>| {
            let held = Rc::clone(&held);
            async move {
                if request.uri().path() == "/break" {
                    return Err(());
                }
                let _held = held;
                std::future::pending().await
            }
        });
        let waiting = (0..20).map(|_| Box::pin(get(&connection, "/"))).collect::<Vec<_>>();
        let mut all = futures_util::future::select_all(waiting);
        while Rc::strong_count(&live) < 22 {
            assert!(poll_fn(|context| Poll::Ready(Pin::new(&mut all).poll(context))).await.is_pending());
            tokio::task::yield_now().await;
        }
        drop(all);
        while Rc::strong_count(&live) > 2 {
            tokio::task::yield_now().await;
        }
        let broken = get(&connection, "/break").await.unwrap_err();
        assert_eq!(broken, NotSent { why: Broken::Reset, unsent: false });
        assert!(!connection.is_closed(), "it is for others too");
    })
    .await;
}

#[tokio::test]
async fn too_many_requests_are_refused_and_the_others_answered() {
    within(async {
        let (near, far) = tokio::io::duplex(4096);
        let gate = Rc::new(Semaphore::new(0));
        let opened = Rc::clone(&gate);
        serve(far, 3, stays(), move |_| {
            let gate = Rc::clone(&opened);
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(Response::new(full("")))
            }
        });
        let connection = client::start(near, ());
        let all = futures_util::future::join_all((0..5).map(|_| get(&connection, "/")));
        let (answers, ()) = tokio::join!(all, async { gate.add_permits(3) });
        let refused = NotSent { why: Broken::Refused, unsent: false };
        assert_eq!(answers.iter().filter(|answer| answer.as_ref().is_err_and(|error| *error == refused)).count(), 2);
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 3);
    })
    .await;
}

#[tokio::test]
async fn who_takes_leave_still_answers_and_says_what_was_not_taken() {
    within(async {
        let gate = Rc::new(Semaphore::new(0));
        let opened = Rc::clone(&gate);
        let (connection, leave, server) = connected(1 << 20, move |_| {
            let gate = Rc::clone(&opened);
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(Response::new(full("late")))
            }
        });
        let ask = async {
            let (head, body) = get(&connection, "/").await.unwrap().into_parts();
            assert_eq!((head.status, body.collect().await.unwrap().to_bytes()), (StatusCode::OK, Bytes::from("late")));
        };
        let end = async {
            leave.add_permits(1);
            while !connection.is_closed() {
                tokio::task::yield_now().await;
            }
            assert_eq!(get(&connection, "/").await.unwrap_err(), NotSent { why: Broken::Closed, unsent: true });
            gate.add_permits(1);
        };
        tokio::join!(ask, end);
        // Nobody asks any more: the client goes.
        assert_eq!(server.await.unwrap(), Some(Broken::Closed));
    })
    .await;
}

/// A server by hand, which takes two requests of three and closes.
#[tokio::test]
async fn a_request_that_was_not_taken_may_be_sent_again() {
    within(async {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let connection = client::start(near, ());
        let all = futures_util::future::join_all((0..3).map(|_| get(&connection, "/")));
        let end = async {
            far.read_exact(&mut [0; 8]).await.unwrap();
            far.write_all(&[0, 0, 4, 0x87, 255, 255, 255, 255, 0, 0, 0, 2]).await.unwrap();
            far.shutdown().await.unwrap();
            let mut rest = Vec::new();
            let _ = far.read_to_end(&mut rest).await;
        };
        let (answers, ()) = tokio::join!(all, end);
        let why: Vec<_> = answers.into_iter().map(|answer| answer.unwrap_err().why).collect();
        assert_eq!(why, [Broken::Closed, Broken::Closed, Broken::Refused]);
        assert!(connection.is_closed());
    })
    .await;
}

#[tokio::test]
async fn what_is_not_the_protocol_ends_the_connection() {
    within(async {
        let frames: [&[u8]; 8] = [
            b"GET / HTTP/1.1\r\n\r\n",
            &[0, 0, 0, 9, 0, 0, 0, 0],
            // A head that is too long, data that is too long, a reset without a code, a credit without a number.
            &[8, 0, 1, 1, 0, 0, 0, 0],
            &[0, 0x40, 1, 3, 0, 0, 0, 0],
            &[0, 0, 0, 5, 0, 0, 0, 0],
            &[0, 0, 2, 6, 0, 0, 0, 0, 1, 1],
            // No request, and one for a place that is beyond all.
            &[0, 0, 2, 1, 0, 0, 0, 0, 9, 9],
            &[0, 0, 5, 0x81, 0, 0, 0xff, 0xff, 0, 1, 0, 1, b'/'],
        ];
        for (number, frame) in frames.iter().enumerate() {
            let (mut near, far) = tokio::io::duplex(4096);
            let server = serve(far, 9, stays(), echo);
            near.write_all(frame).await.unwrap();
            assert_eq!(server.await.unwrap(), Some(Broken::Protocol), "{number}");
            // An answer is not for a server, and a request none for a client: both refuse the same frames.
            let (near, mut far) = tokio::io::duplex(4096);
            let connection = client::start(near, ());
            far.write_all(frame).await.unwrap();
            assert_eq!(get(&connection, "/").await.unwrap_err().why, Broken::Protocol, "{number}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_does_not_read_does_not_hold_a_connection_that_ends() {
    within(async {
        let (near, far) = tokio::io::duplex(1);
        let mut server = Server::new(far, 9);
        let serve = |_| std::future::pending::<Result<Response<AnyBody>, ()>>();
        assert!(poll_fn(|context| Poll::Ready(server.poll(context, serve))).await.is_pending());
        server.close().await;
        drop(near);
    })
    .await;
}

#[tokio::test]
async fn data_in_tiny_pieces_is_held_in_few() {
    within(async {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let taken: Rc<RefCell<Vec<Request<Received>>>> = Rc::default();
        let keeping = Rc::clone(&taken);
        serve(far, 9, stays(), move |request| {
            keeping.borrow_mut().push(request);
            std::future::pending()
        });
        near.write_all(&[0, 0, 5, 1, 0, 0, 0, 0, 0, 1, 0, 1, b'/']).await.unwrap();
        for _ in 0..5000 {
            near.write_all(&[0, 0, 1, 3, 0, 0, 0, 0, b'x']).await.unwrap();
        }
        near.write_all(&[0, 0, 0, 0x83, 0, 0, 0, 0]).await.unwrap();
        while taken.borrow().first().is_none_or(|request| !request.body().received_all()) {
            tokio::task::yield_now().await;
        }
        let (mut pieces, mut bytes) = (0, 0);
        let mut request = taken.borrow_mut().pop().unwrap();
        while let Some(frame) = request.body_mut().frame().await {
            (pieces, bytes) = (pieces + 1, bytes + frame.unwrap().into_data().unwrap().len());
        }
        assert_eq!((pieces, bytes), (5, 5000));
    })
    .await;
}

#[tokio::test]
async fn a_client_that_breaks_off_without_end_is_sent_away() {
    within(async {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let server = serve(far, 9, stays(), |_| std::future::pending());
        let ask = spawn_local(async move {
            for count in 0..u16::MAX {
                let [high, low] = count.to_be_bytes();
                let asked = near.write_all(&[0, 0, 5, 0x81, high, low, 0, 1, 0, 1, 0, 1, b'/']).await;
                if asked.is_err() || near.write_all(&[0, 0, 1, 5, high, low, 0, 1, 0]).await.is_err() {
                    return count;
                }
            }
            u16::MAX
        });
        assert_eq!(server.await.unwrap(), Some(Broken::Protocol));
        assert!(ask.await.unwrap() < u16::MAX);
    })
    .await;
}

#[tokio::test]
async fn a_window_that_is_overrun_ends_the_connection() {
    within(async {
        let (mut near, far) = tokio::io::duplex(4 << 20);
        let taken: Rc<RefCell<Vec<Request<Received>>>> = Rc::default();
        let keeping = Rc::clone(&taken);
        let server = serve(far, 9, stays(), move |request| {
            // Held, and never read.
            keeping.borrow_mut().push(request);
            std::future::pending()
        });
        near.write_all(&[0, 0, 5, 1, 0, 0, 0, 0, 0, 1, 0, 1, b'/']).await.unwrap();
        let frame = [&[0, 0x40, 0, 3, 0, 0, 0, 0][..], &[7; 16 * 1024]].concat();
        for _ in 0..65 {
            near.write_all(&frame).await.unwrap();
        }
        assert_eq!(server.await.unwrap(), Some(Broken::Protocol));
        assert_eq!(taken.borrow().len(), 1);
    })
    .await;
}
