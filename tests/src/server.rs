//! Applications and their clients: a server that tells what it got, over plain sockets or TLS, and load on a proxy.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// An answer takes no longer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Streams that an application has open.
#[derive(Clone, Debug, Default)]
pub struct Open(Arc<AtomicUsize>);

impl Open {
    /// So many.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// One more, for as long as the value lives.
    pub fn one(&self) -> impl Sized + Send + use<> {
        struct One(Arc<AtomicUsize>);
        impl Drop for One {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.0.fetch_add(1, Ordering::Relaxed);
        One(self.0.clone())
    }
}

/// Serves HTTP/1.1 in the background: answers tell the request's head, `websocket` upgrades echo bytes. How many of those are
/// open is counted.
pub async fn echo(address: &str) -> Open {
    let socket = TcpListener::bind(address).await.unwrap();
    let open = Open::default();
    let counted = open.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            tokio::spawn(serve(stream, counted.clone()));
        }
    });
    open
}

/// Serves HTTP/1.1 in the background: answers are requests' bodies.
pub async fn echo_bodies(address: &str) {
    let socket = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let service = service_fn(async |request: Request<Incoming>| {
                request.into_body().collect().await.map(|body| Response::new(Full::new(body.to_bytes())))
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
}

/// [`echo`] behind TLS.
pub async fn echo_tls(address: &str, pair: &Pair) {
    let socket = TcpListener::bind(address).await.unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(
        ServerConfig::builder_with_provider(proxy::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(pair.chain(), pair.private_key())
            .unwrap(),
    ));
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream, Open::default()).await;
                }
            });
        }
    });
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, open: Open) {
    let service = service_fn(|request| {
        let answer = answer(request, &open);
        async move { Ok::<_, Infallible>(answer) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

fn answer(mut request: Request<Incoming>, open: &Open) -> Response<Full<Bytes>> {
    let mut text = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\n", value.to_str().unwrap_or("?"));
    }
    if request.headers().get("upgrade").is_none_or(|kind| kind != "websocket") {
        return Response::new(text.into());
    }
    let switch = hyper::upgrade::on(&mut request);
    let open = open.one();
    tokio::spawn(async move {
        let _open = open;
        let mut stream = TokioIo::new(switch.await.unwrap());
        let mut bytes = [0; 256];
        while let Ok(count @ 1..) = stream.read(&mut bytes).await {
            if stream.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
    response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    response
}

/// A GET for a host.
pub fn get(host: &str, path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", host).body(Full::default()).unwrap()
}

/// One connection for HTTP/1.1.
pub struct Client(SendRequest<Full<Bytes>>);

impl Client {
    /// In the clear.
    pub async fn connect(to: &str) -> std::io::Result<Client> {
        Ok(Self::on(TcpStream::connect(to).await?).await)
    }

    /// With TLS.
    ///
    /// # Errors
    /// The handshake fails.
    pub async fn connect_tls(to: &str, name: &str, config: ClientConfig) -> std::io::Result<Client> {
        let stream = TcpStream::connect(to).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        Ok(Self::on(TlsConnector::from(Arc::new(config)).connect(name, stream).await?).await)
    }

    async fn on<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Client {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Client(sender)
    }

    /// Status and body.
    ///
    /// # Errors
    /// There was no complete answer.
    pub async fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<(u16, String), String> {
        let (head, body) = self.exchange(request).await?;
        Ok((head.status.as_u16(), body))
    }

    /// The answer's head and body.
    ///
    /// # Errors
    /// There was no complete answer.
    pub async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<(Parts, String), String> {
        let answer = async {
            self.0.ready().await?;
            let (head, body) = self.0.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>((head, String::from_utf8_lossy(&body).into_owned()))
        };
        tokio::time::timeout(PATIENCE, answer)
            .await
            .map_err(|_| "no answer in time".to_owned())?
            .map_err(|error| format!("{error:?}"))
    }

    /// Switches protocols: the answer's status, and the bytes after it.
    pub async fn upgrade(mut self, request: Request<Full<Bytes>>) -> (u16, TokioIo<hyper::upgrade::Upgraded>) {
        let response = tokio::time::timeout(PATIENCE, self.0.send_request(request)).await.unwrap().unwrap();
        (response.status().as_u16(), TokioIo::new(hyper::upgrade::on(response).await.unwrap()))
    }
}

/// One request on a connection of its own.
///
/// # Errors
/// There was no complete answer.
pub async fn ask(to: &str, host: &str, path: &str) -> Result<(u16, String), String> {
    Client::connect(to).await.map_err(|error| error.to_string())?.ask(get(host, path)).await
}

/// Requests without a pause from a few clients, until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: JoinSet<Option<String>>,
}

impl Load {
    /// Starts it.
    pub fn start(to: &str, host: &str, clients: usize) -> Load {
        let mut load = Load { stop: Arc::default(), answered: Arc::default(), clients: JoinSet::new() };
        for number in 0..clients {
            let (to, host) = (to.to_owned(), host.to_owned());
            let (stop, answered) = (load.stop.clone(), load.answered.clone());
            load.clients.spawn(async move {
                let mut client = Client::connect(&to).await.unwrap();
                while !stop.load(Ordering::Relaxed) {
                    match client.ask(get(&host, &format!("/load/{number}"))).await {
                        Ok((200, _)) => answered.fetch_add(1, Ordering::Relaxed),
                        other => return Some(format!("{other:?}")),
                    };
                }
                None
            });
        }
        load
    }

    /// Requests answered so far.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends it: what went wrong.
    pub async fn stop(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        while let Some(ended) = self.clients.join_next().await {
            failures.extend(ended.unwrap());
        }
        failures
    }
}

/// An authority of a company outside of the mesh.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, PEM.
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl Default for Authority {
    fn default() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }
}

impl Authority {
    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a name.
    pub fn pair(&self, name: &str) -> Pair {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        Pair { certificate: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }

    /// A certificate for a name whose time is over.
    pub fn expired_pair(&self, name: &str) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 2, 1);
        Pair { certificate: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }

    /// TLS for a client that trusts this authority.
    pub fn client(&self, own: Option<&Pair>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(proxy::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match own {
            None => builder.with_no_client_auth(),
            Some(pair) => builder.with_client_auth_cert(pair.chain(), pair.private_key()).unwrap(),
        }
    }
}

impl Pair {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()]
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }
}
