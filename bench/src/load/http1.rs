//! HTTP/1.1 requests on a connection that stays.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Done, Meter, Target};

/// Sends requests one after another.
pub(super) async fn repeat(target: Target, size: usize, done: Arc<Done>) -> Result<()> {
    let mut connection = Connection::open(&target, size, TcpStream::connect(target.address).await?)?;
    while !done.is_over() {
        // Bytes count as they come: an answer may take longer than a measured window.
        connection.ask(|count| done.add(0, count)).await?;
        done.add(1, 0);
    }
    Ok(())
}

/// Sends requests when they are due.
pub(super) async fn paced(target: Target, size: usize, mut meter: Meter) -> Result<()> {
    let mut connection = Connection::open(&target, size, TcpStream::connect(target.address).await?)?;
    while let Some(due) = meter.next().await {
        connection.ask(|_| {}).await?;
        meter.answered(due);
    }
    Ok(())
}

/// Sends one.
pub(super) async fn once(target: &Target, size: usize) -> Result<()> {
    Connection::open(target, size, TcpStream::connect(target.address).await?)?.ask(|_| {}).await
}

/// A connection and what is asked on it.
pub(super) struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    size: usize,
    buffer: Vec<u8>,
}

impl Connection {
    /// Makes requests of a connection.
    pub(super) fn open(target: &Target, size: usize, stream: TcpStream) -> Result<Connection> {
        stream.set_nodelay(true)?;
        let request =
            format!("GET /{size} HTTP/1.1\r\nhost: {}\r\nuser-agent: bench\r\naccept: */*\r\n\r\n", target.authority);
        let buffer = vec![0; (size + 4096).min(256 << 10)];
        Ok(Connection { stream, request: request.into_bytes(), size, buffer })
    }

    /// The connection alone, without the buffers.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Sends one request and reads its answer; tells of the bytes of its body as they come.
    pub(super) async fn ask(&mut self, mut came: impl FnMut(usize)) -> Result<()> {
        self.stream.write_all(&self.request).await.context("the request could not be sent")?;
        let mut filled = 0;
        let head = loop {
            ensure!(filled < self.buffer.len(), "the answer's head does not end");
            let count = self.stream.read(&mut self.buffer[filled..]).await.context("the answer broke off")?;
            ensure!(count > 0, "the connection was closed in place of an answer");
            filled += count;
            if let Some(head) = self.head(filled)? {
                break head;
            }
        };
        came(filled - head);
        let mut missing = (head + self.size).checked_sub(filled).context("the answer is longer than it says")?;
        while missing > 0 {
            let count = self.stream.read(&mut self.buffer).await.context("the answer broke off")?;
            ensure!(count > 0, "the answer broke off, {missing} bytes before its end");
            came(count);
            missing = missing.checked_sub(count).context("the answer is longer than it says")?;
        }
        Ok(())
    }

    /// Where the head ends, if it is there; it must tell of the body that was asked for.
    fn head(&self, filled: usize) -> Result<Option<usize>> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(head) = response.parse(&self.buffer[..filled])? else { return Ok(None) };
        let told = || String::from_utf8_lossy(&self.buffer[..filled.min(600)]).into_owned();
        ensure!(response.code == Some(200), "the answer is not 200: {}", told());
        let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok());
        ensure!(length == Some(self.size), "the answer is not of {} bytes: {}", self.size, told());
        Ok(Some(head))
    }
}
