//! The server behind the pairs: as lean as can be, since it shares its core with the load.
//!
//! HTTP/1.1: `GET /N` is answered with N bytes. gRPC: each message comes back. TCP: the first byte of a connection says
//! whether bytes shall flow without end (`D`) or come back (`E`).

use std::net::SocketAddr;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::process;

/// Command byte of a TCP connection: bytes flow without end.
pub(crate) const DOWNLOAD: u8 = b'D';
/// Command byte of a TCP connection: all bytes come back, this one too.
pub(crate) const ECHO: u8 = b'E';

/// Where the server listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// HTTP/1.1.
    pub(crate) http: SocketAddr,
    /// gRPC over HTTP/2 without TLS.
    pub(crate) grpc: SocketAddr,
    /// Bytes.
    pub(crate) tcp: SocketAddr,
}

/// Starts the server on a thread of its own, tied to a core if one is given. It lives as long as the program.
///
/// # Errors
/// No port is free, or the thread cannot be started.
pub(crate) fn start(core: Option<usize>) -> Result<Addresses> {
    let (sender, started) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("backend".to_owned()).spawn(move || {
        let outcome = serve(core, &sender);
        if let Err(error) = outcome {
            let _ = sender.send(Err(error));
        }
    })?;
    started.recv().context("the server did not start")?
}

fn serve(core: Option<usize>, started: &std::sync::mpsc::Sender<Result<Addresses>>) -> Result<()> {
    core.map_or(Ok(()), process::pin)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let [http, grpc, tcp] = [listen()?, listen()?, listen()?];
        let addresses = Addresses { http: http.local_addr()?, grpc: grpc.local_addr()?, tcp: tcp.local_addr()? };
        let _ = started.send(Ok(addresses));
        tokio::spawn(accept(http, serve_http));
        tokio::spawn(accept(grpc, serve_grpc));
        accept(tcp, serve_tcp).await;
        Ok(())
    })
}

fn listen() -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    // Connections come in bursts, as many as the load has.
    Ok(socket.listen(8192)?)
}

async fn accept<F>(listener: TcpListener, serve: fn(TcpStream) -> F)
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        // A connection that breaks is seen by the load, which tells it.
        tokio::spawn(serve(stream));
    }
}

async fn serve_http(mut stream: TcpStream) -> Result<()> {
    let mut buffer = BytesMut::with_capacity(4096);
    let mut answer = Vec::new();
    let mut answer_size = usize::MAX;
    loop {
        let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let size = asked_size(&buffer[..end]).context("the request's path is not a number")?;
        buffer.clear();
        if size != answer_size {
            answer =
                format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {size}\r\n\r\n").into_bytes();
            answer.resize(answer.len() + size, b'x');
            answer_size = size;
        }
        stream.write_all(&answer).await?;
    }
}

/// `GET /1024 HTTP/1.1` asks for 1,024 bytes; a proxy may have made the target absolute.
fn asked_size(request: &[u8]) -> Option<usize> {
    let line = std::str::from_utf8(request.split(|byte| *byte == b'\r').next()?).ok()?;
    line.split(' ').nth(1)?.rsplit('/').next()?.parse().ok()
}

async fn serve_grpc(stream: TcpStream) -> Result<()> {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .max_concurrent_streams(1024)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        tokio::spawn(echo_message(request, respond));
    }
    Ok(())
}

async fn echo_message(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<()> {
    let mut body = request.into_body();
    let mut message = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        message.extend_from_slice(&data);
    }
    let head = http::Response::builder().header("content-type", "application/grpc").body(())?;
    let mut send = respond.send_response(head, false)?;
    send.send_data(message.freeze(), false)?;
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    send.send_trailers(trailers)?;
    Ok(())
}

async fn serve_tcp(mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; 4096];
    let count = stream.read(&mut buffer).await?;
    match buffer[..count].first() {
        Some(&DOWNLOAD) => {
            let chunk = vec![b'x'; 256 << 10];
            loop {
                stream.write_all(&chunk).await?;
            }
        }
        Some(&ECHO) => {
            let mut count = count;
            while count > 0 {
                stream.write_all(&buffer[..count]).await?;
                count = stream.read(&mut buffer).await?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
