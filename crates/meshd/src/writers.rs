//! What the control plane writes into the cluster. One replica does it, the one that holds the lease; all others wait for it.

mod default;
mod addresses;
mod root_certificate;
mod status;
mod webhook_bundle;

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use api::object::{Kind, Object};
use kube::Client;
use kube::api::ApiResource;
use kube_lease_manager::LeaseManagerBuilder;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::state::Published;

/// Name of the lease (Istio's `istio-leader`), followed by the revision if that is not the default: each writes of its own objects.
const LEASE: &str = "istio-leader";
/// A holder that is silent for so long has lost it. What is written twice is written the same, so it need not be long.
const LEASE_SECONDS: u64 = 6;

/// What is written.
#[derive(Clone)]
pub struct Writers {
    /// Speaks to the API server.
    pub client: Client,
    /// Where the control plane lives.
    pub namespace: String,
    /// Revision of the control plane.
    pub revision: String,
    /// Name of this replica.
    pub replica: String,
    /// What workloads trust, PEM.
    pub bundle: String,
    /// What became of the objects.
    pub published: watch::Receiver<Option<Published>>,
}

impl Writers {
    /// Writes while this replica leads, until told to stop.
    ///
    /// # Errors
    /// The lease cannot be used at all.
    pub async fn run(self, shutdown: CancellationToken) -> Result<()> {
        let lease = match self.revision.as_str() {
            "default" => LEASE.to_owned(),
            revision => format!("{LEASE}-{revision}"),
        };
        let manager = LeaseManagerBuilder::new(self.client.clone(), &lease)
            .with_namespace(&self.namespace)
            .with_identity(&self.replica)
            .with_duration(LEASE_SECONDS)
            .with_grace(LEASE_SECONDS / 3)
            .build()
            .await
            .with_context(|| format!("the lease {}/{lease} cannot be used", self.namespace))?;
        let (mut leads, task) = manager.watch().await;
        loop {
            let ended = tokio::select! {
                ended = leads.wait_for(|leads| *leads) => ended.is_err(),
                () = shutdown.cancelled() => true,
            };
            if ended {
                break;
            }
            tracing::info!(
                lease,
                "this replica leads: it writes root certificates, CA bundles and the status of objects"
            );
            tokio::select! {
                () = self.write() => {}
                _ = leads.wait_for(|leads| !*leads) => tracing::info!(lease, "this replica no longer leads"),
                () = shutdown.cancelled() => break,
            }
        }
        // The lease is given back, so that the next replica does not wait for its end.
        drop(leads);
        let _ = tokio::time::timeout(Duration::from_secs(1), task).await;
        Ok(())
    }

    async fn write(&self) {
        let (tell, default) = watch::channel(None);
        let default = Unnamed(default);
        tokio::join!(
            again("which revision is the default", || default::keep(self, &tell)),
            again("root certificates", || root_certificate::keep(self)),
            again("CA bundles of webhooks", || webhook_bundle::keep(self)),
            again("addresses of hosts", || addresses::keep(self, default.clone())),
            again("status of objects", || status::keep(self, default.clone())),
        );
    }
}

/// Whether this revision is the default, as it is now.
#[derive(Clone)]
struct Unnamed(watch::Receiver<Option<bool>>);

impl Unnamed {
    /// Whether this revision writes of an object: of those that name it or a tag of it always (others are not read), of those that
    /// name none if it is the default. Nothing while that is not known.
    fn writes(&self, object: &Object) -> bool {
        let named = object.meta.labels.contains_key(default::REVISION);
        named || self.is_ours()
    }

    /// Whether it is known to be the default.
    fn is_ours(&self) -> bool {
        *self.0.borrow() == Some(true)
    }

    /// Until it becomes so, or is not so any more.
    async fn changed(&mut self) -> Result<()> {
        self.0.changed().await.context("nobody follows which revision is the default")
    }
}

/// What fails is begun again: an API server that is away comes back.
async fn again<F: Future<Output = Result<()>>>(what: &str, work: impl Fn() -> F) {
    loop {
        if let Err(error) = work().await {
            tracing::warn!(what, "could not be written, is tried again: {error:#}");
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// How the API server is asked for objects of a kind of ours.
fn resource(kind: Kind) -> ApiResource {
    let row = kind.row();
    ApiResource {
        group: row.group.to_owned(),
        version: row.storage.to_owned(),
        api_version: format!("{}/{}", row.group, row.storage),
        kind: row.name.to_owned(),
        plural: row.plural.to_owned(),
    }
}
