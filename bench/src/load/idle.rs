//! Connections that have made one request and then wait.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::http1::Connection;
use super::{Target, runtime};

/// Connections from one source address: below the number of ports that the system gives out by itself.
const FROM_ONE_ADDRESS: usize = 5_000;
/// Connections that are opened at once.
const AT_ONCE: usize = 64;

/// Opens so many connections, makes one request of `size` bytes on each, and calls `seen` while all are open.
///
/// # Errors
/// A connection or request failed, or what `seen` tells.
pub(crate) fn hold<T>(target: &Target, size: usize, connections: usize, seen: impl FnOnce() -> Result<T>) -> Result<T> {
    runtime()?.block_on(async {
        let mut held: Vec<TcpStream> = Vec::with_capacity(connections);
        let mut opening = JoinSet::new();
        for number in 0..connections {
            if opening.len() == AT_ONCE {
                held.push(next(&mut opening).await?);
            }
            opening.spawn(open(target.clone(), size, number));
        }
        while !opening.is_empty() {
            held.push(next(&mut opening).await?);
        }
        let outcome = seen();
        drop(held);
        outcome
    })
}

async fn next(opening: &mut JoinSet<Result<TcpStream>>) -> Result<TcpStream> {
    opening.join_next().await.context("no connection is being opened")??
}

async fn open(target: Target, size: usize, number: usize) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let last = u8::try_from(2 + number / FROM_ONE_ADDRESS).context("too many connections")?;
    socket.bind(SocketAddr::from(([127, 0, 3, last], 0)))?;
    let stream = socket.connect(target.address).await.context("no connection could be made")?;
    let mut connection = Connection::open(&target, size, stream)?;
    connection.ask(|_| {}).await?;
    Ok(connection.into_stream())
}
