//! gRPC channels to the control plane: TLS with the mesh's roots, our certificate once there is one, a token until then.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::Identity;
use crate::xds::client::Options;

/// Name under which the control plane's certificate is checked when it is reached by address.
const CONTROL_PLANE: &str = "istiod.istio-system.svc";
/// How long a dial may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a channel and tells the token to send with calls, if one is needed: with a certificate of our own none is.
///
/// # Errors
/// The sentence says which step failed: reading files, resolving, connecting, TLS.
pub async fn connect(
    options: &Options,
    address: &str,
    plaintext: bool,
    identity: Option<&Identity>,
) -> Result<(Channel, Option<String>)> {
    let roots = if plaintext { None } else { Some(Arc::new(read_roots(options)?)) };
    // A certificate of an authority that has been replaced proves nothing to the new one: then the token does.
    let identity = identity.filter(|held| roots.as_ref().is_none_or(|roots| is_from(held, roots)));
    let token = match (&options.token_file, identity) {
        (Some(file), None) => Some(read_token(file)?),
        _ => None,
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .with_context(|| format!("{address:?} is not host:port"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_while_idle(true)
        .initial_connection_window_size(16 << 20)
        .initial_stream_window_size(4 << 20);
    let channel = if let Some(roots) = roots {
        let connector = TlsConnector::from(Arc::new(client_config(roots, identity)?));
        let address = address.to_owned();
        endpoint
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let (connector, address) = (connector.clone(), address.clone());
                async move {
                    let stream = TcpStream::connect(&address).await?;
                    stream.set_nodelay(true)?;
                    let name = ServerName::try_from(CONTROL_PLANE).map_err(std::io::Error::other)?;
                    let stream = connector.connect(name, stream).await?;
                    Ok::<_, std::io::Error>(TokioIo::new(stream))
                }
            }))
            .await
    } else {
        endpoint.connect().await
    };
    Ok((channel.map_err(|error| anyhow::anyhow!("{address}: {}", explain(&error, options)))?, token))
}

/// tonic's own words ("transport error") say nothing; the cause below them does.
fn explain(error: &(dyn std::error::Error + 'static), options: &Options) -> String {
    use rustls::{CertificateError as Bad, Error};
    let mut error = error;
    // An I/O error does not name what it wraps as its source, but the source of that.
    while let Some(source) = error.source() {
        error = source;
    }
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let tls = error.downcast_ref::<Error>().or_else(|| wrapped.and_then(|inner| inner.downcast_ref::<Error>()));
    match tls {
        Some(Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature)) => format!(
            "the control plane's certificate is not from an authority in {}; if its root was replaced, give the proxy the new one there, and a new token",
            options.root_cert.as_deref().unwrap_or(Path::new("--root-cert")).display()
        ),
        _ => error.to_string(),
    }
}

/// Whether the certificate is from one of these authorities, and valid now.
fn is_from(identity: &Identity, roots: &Arc<RootCertStore>) -> bool {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let Some((leaf, between)) = identity.chain.split_first() else { return false };
    WebPkiClientVerifier::builder_with_provider(roots.clone(), provider)
        .build()
        .is_ok_and(|verifier| verifier.verify_client_cert(leaf, between, UnixTime::now()).is_ok())
}

fn read_token(file: &Path) -> Result<String> {
    let token =
        std::fs::read_to_string(file).with_context(|| format!("the token file {} cannot be read", file.display()))?;
    Ok(token.trim().to_owned())
}

fn read_roots(options: &Options) -> Result<RootCertStore> {
    let file = options
        .root_cert
        .as_ref()
        .context("no root certificate is given (--root-cert), so the control plane cannot be trusted")?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file)
        .with_context(|| format!("the root certificate {} cannot be read", file.display()))?
    {
        let certificate = certificate.with_context(|| format!("{} is not PEM", file.display()))?;
        roots.add(certificate).with_context(|| format!("{} holds no certificate authority", file.display()))?;
    }
    Ok(roots)
}

fn client_config(roots: Arc<RootCertStore>, identity: Option<&Identity>) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => {
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(identity.key.clone())))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would skip the check against the roots of now.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}
