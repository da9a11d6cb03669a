//! The sample shop: one small HTTP server that plays any of the shop's services. It knows nothing of the mesh but the
//! address of its sidecar, and passes on the headers that keep a request's traces together.

mod call;
mod roles;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;

use roles::{Role, Shop};

/// One service of the sample shop.
#[derive(Parser)]
#[command(about)]
struct Arguments {
    /// Which service to be.
    #[arg(long, env = "SHOP_ROLE")]
    role: Role,
    /// The version to show in answers.
    #[arg(long, env = "SHOP_VERSION", default_value = "v1")]
    version: String,
    /// Where to listen.
    #[arg(long, env = "SHOP_LISTEN", default_value = "127.0.0.1:18080")]
    listen: SocketAddr,
    /// HTTP proxy for calls of other services, `host:port`: the sidecar. Without it calls go out directly.
    #[arg(long, env = "SHOP_PROXY")]
    proxy: Option<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let listen = arguments.listen;
    let listener =
        tokio::net::TcpListener::bind(listen).await.with_context(|| format!("{listen} cannot be listened on"))?;
    let shop = Arc::new(Shop::new(arguments.role, arguments.version, arguments.proxy));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let end = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    axum::serve(listener, roles::router(shop)).with_graceful_shutdown(end).await?;
    Ok(())
}
