//! Connections that stop being HTTP: WebSocket and other upgrades, CONNECT.

use std::rc::Rc;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::story::Story;
use crate::failure::Failure;
use crate::tcp::relay::{self, Ended};
use crate::upstream::Upstream;
use crate::upstream::io::Io;
use crate::upstream::pool::{Lease, Link};

/// The upstream's side of a tunnel.
pub enum OtherSide {
    /// It switches protocols too.
    Http(OnUpgrade, Lease),
    /// Bytes from the beginning.
    Tcp(Io, Rc<Link>),
}

/// Carries bytes both ways when both sides have switched. The story ends with the tunnel.
pub fn tunnel(client: OnUpgrade, upstream: OtherSide, mut story: Box<Story>, idle: Duration, from: Rc<Upstream>) {
    tokio::task::spawn_local(async move {
        let Ok(client) = client.await else { return };
        let mut client = TokioIo::new(client);
        let counted = match upstream {
            OtherSide::Http(switch, lease) => {
                let Ok(switched) = switch.await else { return };
                let mut switched = TokioIo::new(switched);
                let counted = relay::both_ways(&mut client, &mut switched, idle).await;
                drop(lease);
                counted
            }
            OtherSide::Tcp(mut io, link) => {
                let counted = relay::both_ways(&mut client, &mut io, idle).await;
                drop(link);
                counted
            }
        };
        story.sent += counted.to_client;
        story.tunnelled = counted.to_upstream;
        story.failure = match counted.ended {
            Ended::Idle => Some(Failure::StreamIdle),
            Ended::ClientBroke => Some(Failure::ClientGone),
            // Envoy does not know of half-closed tunnels: who closes first has ended it.
            Ended::Closed if counted.client_first => Some(Failure::ClientGone),
            Ended::Closed | Ended::UpstreamBroke => None,
        };
        drop(from);
    });
}
