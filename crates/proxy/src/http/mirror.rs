//! Copies of requests: sent and forgotten, never waited for, never seen by the caller.

use std::rc::Rc;
use std::time::Duration;

use http::request::Parts as RequestHead;
use http::{HeaderValue, Version};
use http_body_util::BodyExt;
use rand::RngExt;

use crate::call::Sent;
use crate::snapshot::route::action::Mirror;
use crate::upstream::Upstream;
use crate::upstream::body::{RequestBody, Source};
use crate::worker::Worker;

/// How long a copy may take.
const BOUND: Duration = Duration::from_secs(15);

/// A copy to send.
pub struct Copy {
    upstream: Rc<Upstream>,
    head: RequestHead,
    authority: HeaderValue,
}

/// The copies of a request, by the routes' shares.
pub fn copies(worker: &Worker, mirrors: &[Mirror], head: &RequestHead, authority: &HeaderValue) -> Vec<Copy> {
    if mirrors.is_empty() {
        return Vec::new();
    }
    let snapshot = worker.snapshot();
    let mut all = Vec::new();
    for mirror in mirrors {
        if worker.upstreams.env().dice.borrow_mut().random_range(0..1_000_000) >= mirror.fraction {
            continue;
        }
        let Some(upstream) = worker.upstreams.get(&mirror.cluster, &snapshot) else { continue };
        let mut authority = authority.clone();
        if mirror.shadow_suffix
            && let Some(shadow) = authority.to_str().ok().and_then(|host| HeaderValue::try_from(shadow_of(host)).ok())
        {
            authority = shadow;
        }
        all.push(Copy { upstream, head: head.clone(), authority });
    }
    all
}

/// `host-shadow`, before a port (Envoy).
fn shadow_of(host: &str) -> String {
    let bare = crate::snapshot::route::without_port(host);
    format!("{bare}-shadow{}", &host[bare.len()..])
}

/// Sends the copies. A body is copied if all of it has gone by and was small enough to be kept.
pub fn send(copies: Vec<Copy>, source: Option<&Rc<Source>>, version: Version, destination: std::net::SocketAddr) {
    for copy in copies {
        let body = match source {
            None => RequestBody::Empty,
            Some(source) => match source.whole() {
                Some(bytes) => RequestBody::Full(Some(bytes)),
                None => {
                    tracing::debug!(cluster = %copy.upstream.settings.name, "a request is not mirrored: its body is large or not complete");
                    continue;
                }
            },
        };
        tokio::task::spawn_local(async move {
            let _ = tokio::time::timeout(BOUND, deliver(copy, body, version, destination)).await;
        });
    }
}

async fn deliver(copy: Copy, body: RequestBody, version: Version, destination: std::net::SocketAddr) -> Option<()> {
    let Copy { upstream, head, authority } = copy;
    let host = upstream.pick(destination, &[], 1).await.ok()?;
    let _busy = upstream.begin(&host);
    let sent = Sent { upstream: &upstream, host: &host, version };
    let (response, lease) = sent.send(&head, &authority, body).await.ok()?;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame.ok()?;
    }
    lease.give_back();
    upstream.wake_one();
    Some(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_suffix_stands_before_the_port() {
        assert_eq!(super::shadow_of("a.b:80"), "a.b-shadow:80");
        assert_eq!(super::shadow_of("a.b"), "a.b-shadow");
    }
}
