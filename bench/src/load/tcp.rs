//! Connections of bytes: long ones that carry much, and short ones that carry little.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Done, Target};
use crate::backend::{DOWNLOAD, ECHO};

/// Reads what the server sends without end.
pub(super) async fn download(target: Target, done: Arc<Done>) -> Result<()> {
    let mut stream = TcpStream::connect(target.address).await?;
    stream.write_all(&[DOWNLOAD]).await?;
    let mut buffer = vec![0; 256 << 10];
    while !done.is_over() {
        let count = stream.read(&mut buffer).await?;
        ensure!(count > 0, "the connection was closed while bytes flowed");
        done.add(0, count);
    }
    Ok(())
}

/// Opens a connection, exchanges a message, closes it, and again.
pub(super) async fn churn(target: Target, done: Arc<Done>) -> Result<()> {
    while !done.is_over() {
        once(&target).await?;
        done.add(1, 1);
    }
    Ok(())
}

/// One connection with one message each way.
pub(super) async fn once(target: &Target) -> Result<()> {
    let mut stream = TcpStream::connect(target.address).await.context("no connection could be made")?;
    stream.set_nodelay(true)?;
    stream.write_all(&[ECHO]).await?;
    let mut byte = [0];
    stream.read_exact(&mut byte).await.context("the message did not come back")?;
    ensure!(byte == [ECHO], "another message came back");
    Ok(())
}
