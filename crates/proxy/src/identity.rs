//! The workload's own identity: a key that never leaves memory, a certificate from the mesh's authority, renewed at half its
//! life. While the authority is away the old certificate stays in use.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::secret::{DEFAULT, ROOT_CA, Secret, Store};
use crate::xds::client::Options;

pub mod channel;
pub mod csr;
pub mod rotate;
pub mod sds;

use api::xds::ca::IstioCertificateRequest;
use api::xds::ca::istio_certificate_service_client::IstioCertificateServiceClient;

/// A key with the chain that was issued for it, and the roots to trust.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Certificate and key as TLS takes them.
    pub key: Arc<CertifiedKey>,
    /// The key itself, for those that this process hands it to (`sds`).
    pub private_key: Arc<PrivateKeyDer<'static>>,
    /// The mesh's trust roots.
    pub roots: Arc<RootCertStore>,
    /// The same as certificates.
    pub root_certificates: Vec<CertificateDer<'static>>,
    /// The leaf's times, seconds since 1970.
    pub valid: rotate::Validity,
    /// The SPIFFE name in the leaf.
    pub name: String,
}

/// What the rest of the proxy may want to know of the identity.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The identity in use, if there is one.
    pub current: Option<Identity>,
    /// Why the last renewal failed; empty when it did not.
    pub error: String,
}

/// Gets and renews the certificate until the task is dropped: publishes it in the store as `default` and `ROOTCA`.
pub async fn run(options: Options, store: Arc<Store>, state: watch::Sender<State>) {
    let mut attempt = 0;
    loop {
        match issue(&options, &state).await {
            Ok(identity) => {
                attempt = 0;
                tracing::info!(name = identity.name, not_after = identity.valid.not_after, "certificate issued");
                store.update([
                    (DEFAULT.to_owned(), Some(Secret::Certificate(identity.key.clone()))),
                    (ROOT_CA.to_owned(), Some(Secret::Roots(identity.roots.clone()))),
                ]);
                let pause = identity.valid.renew_in(exactly_now(), rand::random());
                state.send_modify(|state| *state = State { current: Some(identity), error: String::new() });
                sleep_until_wall(pause).await;
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(%error, "no certificate from the certificate service");
                state.send_modify(|state| state.error = error);
                let end = state.borrow().current.as_ref().map_or(0.0, |held| held.valid.not_after as f64);
                tokio::time::sleep(rotate::back_off(attempt, end - exactly_now(), rand::random())).await;
                attempt += 1;
            }
        }
    }
}

/// Sleeps in short steps against the wall clock: after a machine's sleep or a jump of its clock the renewal is due at once.
async fn sleep_until_wall(pause: Duration) {
    let due = now().saturating_add(pause.as_secs() as i64);
    let short = pause < Duration::from_secs(10);
    if short {
        return tokio::time::sleep(pause).await;
    }
    while now() < due {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    exactly_now() as i64
}

/// The same with its fraction, which counts where lives are of a few seconds.
fn exactly_now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

async fn issue(options: &Options, state: &watch::Sender<State>) -> Result<Identity> {
    let address = options.ca_address.as_ref().unwrap_or(&options.xds_address);
    let current = state.borrow().current.clone().filter(|held| held.valid.not_after > now());
    let (channel, token) = channel::connect(options, address, false, current.as_ref()).await?;
    sign(channel, token, options.secret_ttl).await
}

async fn sign(channel: Channel, token: Option<String>, lifetime: Duration) -> Result<Identity> {
    let request = csr::create()?;
    let mut call = tonic::Request::new(IstioCertificateRequest {
        csr: request.pem,
        validity_duration: lifetime.as_secs() as i64,
        metadata: None,
    });
    call.set_timeout(Duration::from_secs(10));
    if let Some(token) = token {
        call.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    }
    let answer = IstioCertificateServiceClient::new(channel)
        .create_certificate(call)
        .await
        .map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()))?;
    read(&answer.into_inner().cert_chain, request.key)
}

/// The answer is one certificate an element, leaf first, the root bundle last.
fn read(answer: &[String], key: PrivateKeyDer<'static>) -> Result<Identity> {
    let Some((root, chain)) = answer.split_last().filter(|(_, chain)| !chain.is_empty()) else {
        bail!("the certificate service answered {} certificates; a leaf and a root are the least", answer.len());
    };
    let mut certificates = Vec::new();
    for pem in chain {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            certificates.push(certificate.context("a certificate of the answer is not PEM")?);
        }
    }
    let (mut roots, mut root_certificates) = (RootCertStore::empty(), Vec::new());
    for certificate in CertificateDer::pem_slice_iter(root.as_bytes()) {
        let certificate = certificate.context("the root is not PEM")?;
        roots.add(certificate.clone()).context("the root is not a certificate authority")?;
        root_certificates.push(certificate);
    }
    let leaf = certificates.first().context("the answer holds no leaf")?;
    let (valid, name) = rotate::read_leaf(leaf)?;
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).context("the key cannot sign")?;
    let certified = CertifiedKey::new(certificates.clone(), signer);
    certified.keys_match().context("the certificate is not for our key")?;
    Ok(Identity {
        chain: certificates,
        key: Arc::new(certified),
        private_key: Arc::new(key),
        roots: Arc::new(roots),
        root_certificates,
        valid,
        name,
    })
}
