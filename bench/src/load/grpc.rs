//! gRPC calls: one message each way, and the status in the trailers.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Done, Meter, Target};

/// Makes calls on one connection, `calls` at a time.
pub(super) async fn repeat(target: Target, size: usize, calls: usize, done: Arc<Done>) -> Result<()> {
    ensure!(calls > 0, "no calls are to be made");
    let connection = connect(&target).await?;
    let mut tasks = JoinSet::new();
    for _ in 0..calls {
        let (target, mut connection, done) = (target.clone(), connection.clone(), done.clone());
        tasks.spawn(async move {
            let caller = Caller::new(&target, size)?;
            while !done.is_over() {
                connection = caller.call(connection).await?;
                done.add(1, size);
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// Makes calls when they are due.
pub(super) async fn paced(target: Target, size: usize, mut meter: Meter) -> Result<()> {
    let mut connection = connect(&target).await?;
    let caller = Caller::new(&target, size)?;
    while let Some(due) = meter.next().await {
        connection = caller.call(connection).await?;
        meter.answered(due);
    }
    Ok(())
}

/// Makes one.
pub(super) async fn once(target: &Target, size: usize) -> Result<()> {
    Caller::new(target, size)?.call(connect(target).await?).await.map(drop)
}

async fn connect(target: &Target) -> Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(target.address).await?;
    stream.set_nodelay(true)?;
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .handshake(stream)
        .await?;
    // What breaks the connection is told by the calls on it.
    tokio::spawn(connection);
    Ok(send)
}

/// What is said in each call.
struct Caller {
    head: http::Request<()>,
    message: Bytes,
}

impl Caller {
    fn new(target: &Target, size: usize) -> Result<Caller> {
        let head = http::Request::post(format!("http://{}/bench.Echo/Unary", target.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "bench")
            .body(())?;
        // The frame of a message: not compressed, its length, the message (gRPC over HTTP/2, "Length-Prefixed-Message").
        let mut message = BytesMut::with_capacity(size + 5);
        message.put_u8(0);
        message.put_u32(u32::try_from(size)?);
        message.put_bytes(b'x', size);
        Ok(Caller { head, message: message.freeze() })
    }

    async fn call(&self, connection: SendRequest<Bytes>) -> Result<SendRequest<Bytes>> {
        let mut connection = connection.ready().await?;
        let (response, mut body) = connection.send_request(self.head.clone(), false)?;
        body.send_data(self.message.clone(), true)?;
        let response = response.await?;
        ensure!(response.status() == 200, "the call was answered {response:?}");
        let mut body = response.into_body();
        let mut received = 0;
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            received += data.len();
        }
        let trailers = body.trailers().await?.context("the call ended without trailers")?;
        let status = trailers.get("grpc-status").context("the call ended without a status")?;
        ensure!(status == "0", "the call failed: {trailers:?}");
        ensure!(received == self.message.len(), "the message came back with {received} bytes");
        Ok(connection)
    }
}
