//! Servers that do what servers should not do: they are silent, break off, speak something else, or never take a connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::channel::Channel;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// What a server does with each request.
#[derive(Clone, Copy, Debug)]
pub enum Conduct {
    /// Answers with this status.
    Answers(u16),
    /// Answers 200 with the gRPC status UNAVAILABLE among the headers.
    Unavailable,
    /// Reads, and never answers.
    Silent,
    /// Reads, and closes the connection.
    Closes,
    /// Reads, and resets the connection.
    Aborts,
    /// Announces 100 bytes, sends two, and closes the connection.
    BreaksOff,
    /// The same, but resets the connection.
    ResetsInMidBody,
    /// Answers something that is not HTTP.
    Babbles,
}

/// Serves like this in the background; where.
pub async fn serve(address: &str, conduct: Conduct) -> SocketAddr {
    let socket = TcpListener::bind(address).await.unwrap();
    let bound = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            tokio::spawn(behave(stream, conduct));
        }
    });
    bound
}

async fn behave(mut stream: TcpStream, conduct: Conduct) -> Option<()> {
    const PART: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nok";
    loop {
        head(&mut stream).await?;
        match conduct {
            Conduct::Answers(status) => {
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok");
                stream.write_all(answer.as_bytes()).await.ok()?;
                continue;
            }
            Conduct::Unavailable => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ngrpc-status: 14\r\n\r\nok").await.ok()?;
                continue;
            }
            Conduct::Silent => {
                let _ = stream.read_u8().await;
            }
            Conduct::Closes => {}
            Conduct::Aborts => {
                acknowledged(&stream).await;
                stream.set_zero_linger().ok()?;
            }
            Conduct::BreaksOff => stream.write_all(PART).await.ok()?,
            Conduct::ResetsInMidBody => {
                stream.write_all(PART).await.ok()?;
                // What was sent must have been read: a reset throws away what has not.
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                stream.set_zero_linger().ok()?;
            }
            Conduct::Babbles => stream.write_all(b"good morning to you\r\n\r\n").await.ok()?,
        }
        return None;
    }
}

/// Serves at several places as one program with several instances of which one ends: whichever is asked first takes no more
/// connections, and closes the one it has without reading the request, though its kernel has acknowledged it; `politely`: it
/// says first that it will send nothing. All others answer.
pub async fn serve_while_one_ends(addresses: &[String], politely: bool) {
    let ended = Arc::new(AtomicBool::new(false));
    for address in addresses {
        let socket = TcpListener::bind(address).await.unwrap();
        let ended = Arc::clone(&ended);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = socket.accept().await {
                if !ended.swap(true, Ordering::Relaxed) {
                    drop(socket);
                    stream.readable().await.unwrap();
                    acknowledged(&stream).await;
                    if politely {
                        stream.shutdown().await.unwrap();
                    }
                    return;
                }
                tokio::spawn(behave(stream, Conduct::Answers(200)));
            }
        });
    }
}

/// Waits until the kernel has acknowledged all that a local peer has sent: a row has own address, remote address, state, and what
/// waits in either direction (proc(5), `/proc/net/tcp`).
async fn acknowledged(stream: &TcpStream) {
    let peer = format!(":{:04X}", stream.peer_addr().unwrap().port());
    loop {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let mut rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        if rows.any(|row| row[1].ends_with(&peer) && row[4].starts_with("00000000:")) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// When a stream is reset.
#[derive(Clone, Copy, Debug)]
pub enum Reset {
    /// Before there is an answer.
    BeforeHeaders,
    /// After two bytes of an answer that would have gone on.
    InMidBody,
}

/// Serves HTTP/2 in the clear; each stream is reset, and the connection stays.
pub async fn serve_resets(address: &str, reset: Reset) -> SocketAddr {
    let socket = TcpListener::bind(address).await.unwrap();
    let bound = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            // What fails here leaves as RST_STREAM with INTERNAL_ERROR.
            let service = service_fn(move |_: Request<Incoming>| async move {
                if let Reset::BeforeHeaders = reset {
                    return Err(std::io::Error::other("reset"));
                }
                let (mut data, body) = Channel::<Bytes, std::io::Error>::new(1);
                tokio::spawn(async move {
                    data.send_data(Bytes::from_static(b"ok")).await.unwrap();
                    // What was sent must have been read: a reset throws away what has not.
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    data.abort(std::io::Error::other("reset"));
                });
                Ok(Response::new(body))
            });
            let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(http2.serve_connection(TokioIo::new(stream), service));
        }
    });
    bound
}

/// Reads a request's head to its end.
async fn head(stream: &mut TcpStream) -> Option<()> {
    let mut last = [0; 4];
    while &last != b"\r\n\r\n" {
        last.rotate_left(1);
        last[3] = stream.read_u8().await.ok()?;
    }
    Some(())
}

/// A port whose queue of connections is full: those who dial it wait for ever. Ends with this value.
pub struct Full {
    /// Where.
    pub address: SocketAddr,
    _held: Vec<tokio::task::JoinHandle<()>>,
    _socket: Arc<TcpListener>,
}

impl Full {
    /// Opens it.
    pub async fn open(ip: &str) -> Full {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{ip}:0").parse().unwrap()).unwrap();
        let socket = Arc::new(socket.listen(1).unwrap());
        let address = socket.local_addr().unwrap();
        let mut held = Vec::new();
        // The queue takes one or two more than asked for.
        for _ in 0..8 {
            held.push(tokio::spawn(async move {
                let _held = TcpStream::connect(address).await;
                std::future::pending::<()>().await;
            }));
        }
        let full = async || {
            let dial = TcpStream::connect(address);
            match tokio::time::timeout(std::time::Duration::from_millis(100), dial).await {
                Err(_) => Ok(()),
                Ok(_) => Err("it still takes connections"),
            }
        };
        crate::wait::until("a full queue", full).await;
        Full { address, _held: held, _socket: socket }
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        self._held.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
