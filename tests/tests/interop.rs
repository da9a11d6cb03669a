//! The same requests over every combination of client sidecar, server sidecar and gateway, each ours or a real Envoy, under one
//! control plane: answers, identities, metrics and access logs must be the same. All-Envoy is what the others are held against.

// A test stops at the first thing that is not as it should be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use api::node::Role;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tests::control_plane::ControlPlane;
use mesh_tests::envoy::{Envoy, Workload};
use mesh_tests::server::{Authority, Client, ask, echo_tls, get};
use mesh_tests::sidecar::{Process, workload};
use mesh_tests::wait::until;
use rand::RngExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const MESH: &str = "proxyHttpPort: 15080\naccessLogFile: /dev/stdout\naccessLogEncoding: JSON\ndefaultConfig: {interceptionMode: NONE}\n";
/// Ends of names: ours, Envoy.
const KINDS: [char; 2] = ['m', 'e'];
/// Everything a request asks for beyond being forwarded, by path; the same in the mesh and at the gateway.
const RULES: &str = "
  - match: [{uri: {prefix: /abort}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: HOST, port: {number: 8080}}}]
  - match: [{uri: {prefix: /delay}}]
    fault: {delay: {fixedDelay: 30ms, percentage: {value: 100}}}
    route: [{destination: {host: HOST, port: {number: 8080}}}]
  - match: [{uri: {prefix: /slow}}]
    timeout: 200ms
    route: [{destination: {host: HOST, port: {number: 8080}}}]
  - match: [{uri: {prefix: /failing}}]
    retries: {attempts: 2, retryOn: 5xx, backoff: 10ms}
    route: [{destination: {host: HOST, port: {number: 8080}}}]
  - match: [{uri: {prefix: /direct}}]
    directResponse: {status: 503, body: {string: closed today}}
  - match: [{uri: {prefix: /moved}}]
    redirect: {uri: /elsewhere, redirectCode: 302}
  - match: [{uri: {prefix: /rewrite}}]
    rewrite: {uri: /written, authority: other.example}
    route: [{destination: {host: HOST, port: {number: 8080}}}]
  - match: [{uri: {prefix: /headers}}]
    headers:
      request: {set: {x-set: one}, add: {x-add: two}, remove: [x-gone]}
      response: {set: {x-answer: three}, remove: [x-app]}
    route: [{destination: {host: HOST, port: {number: 8080}}}]
  - match: [{uri: {prefix: /nobody}}]
    route: [{destination: {host: nobody.shop.svc.cluster.local, port: {number: 8080}}}]
  - match: [{uri: {prefix: /detected}}]
    route: [{destination: {host: HOST, port: {number: 8090}}}]
  - match: [{uri: {prefix: /echo.}}]
    route: [{destination: {host: HOST, port: {number: 8081}}}]
  - name: rest
    route: [{destination: {host: HOST, port: {number: 8080}}}]
";

/// What the client calls its request.
const REQUEST_ID: &str = "7c8a24a5-6c2f-4a8e-9d1a-0b5d6c1f2e3a";

fn tcp_port(kind: char) -> u16 {
    if kind == 'm' { 9001 } else { 9002 }
}

/// Addresses of one run: `127.A.B.` and three digits, so that texts with them are equally long.
struct Places {
    prefix: String,
    /// The machine's own address, not a loopback one.
    machine: String,
}

/// As Envoy finds it: that of an interface which is not the loopback's.
fn machine_address() -> String {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: the system only chooses the address it would send from.
    let found = socket.connect("192.0.2.77:9").and_then(|()| socket.local_addr());
    found.map_or_else(|_| "127.0.0.1".to_owned(), |address| address.ip().to_string())
}

impl Places {
    fn of(&self, what: &str, kind: char) -> String {
        let base = match what {
            "caller" => 101,
            "web" => 111,
            _ => 121,
        };
        format!("{}{}", self.prefix, base + u8::from(kind == 'e'))
    }
}

fn objects(places: &Places) -> String {
    let mut out = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec: {selector: {app: nobody}, ports: [{name: http, port: 8080}]}
"
    .to_owned();
    for kind in KINDS {
        let tcp = tcp_port(kind);
        let (caller, web, edge) = (places.of("caller", kind), places.of("web", kind), places.of("edge", kind));
        let rules = RULES.replace("HOST", &format!("web-{kind}.shop.svc.cluster.local"));
        let outside: Vec<String> = KINDS.iter().map(|edge| format!("web-{kind}.edge-{edge}.example")).collect();
        let outside = outside.join(", ");
        write!(
            out,
            "---
apiVersion: v1
kind: Service
metadata: {{name: web-{kind}, namespace: shop}}
spec:
  selector: {{app: web-{kind}}}
  ports:
  - {{name: http, port: 8080, targetPort: 8080}}
  - {{name: grpc, port: 8081, targetPort: 8081}}
  - {{name: tcp, port: {tcp}, targetPort: 9000}}
  - {{name: tls, port: 9443, targetPort: 9443}}
  - {{name: any, port: 8090, targetPort: 8090}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: web-{kind}, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: web-{kind}}}}}
  ingress:
  - {{port: {{number: 8080, protocol: HTTP, name: http}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}
  - {{port: {{number: 8081, protocol: GRPC, name: grpc}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18081'}}
  - {{port: {{number: 9000, protocol: TCP, name: tcp}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:19000'}}
  - {{port: {{number: 9443, protocol: TCP, name: tls}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:19443'}}
  - {{port: {{number: 8090, name: any}}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: caller-{kind}, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: caller-{kind}}}}}
  egress:
  - {{port: {{number: 8081, protocol: GRPC, name: grpc}}, bind: {caller}, captureMode: NONE, hosts: [./*]}}
  - {{port: {{number: 9001, protocol: TCP, name: one}}, bind: {caller}, captureMode: NONE, hosts: [./web-m.shop.svc.cluster.local]}}
  - {{port: {{number: 9002, protocol: TCP, name: two}}, bind: {caller}, captureMode: NONE, hosts: [./web-e.shop.svc.cluster.local]}}
  - {{captureMode: NONE, hosts: [./*]}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge-{kind}, namespace: shop}}
spec:
  selector: {{app: edge-{kind}}}
  servers:
  - {{port: {{number: 8080, name: http, protocol: HTTP}}, bind: {edge}, hosts: ['*']}}
  - {{port: {{number: 9001, name: one, protocol: TCP}}, bind: {edge}, hosts: ['*']}}
  - {{port: {{number: 9002, name: two, protocol: TCP}}, bind: {edge}, hosts: ['*']}}
  - {{port: {{number: 8443, name: tls, protocol: TLS}}, bind: {edge}, hosts: [web-m.example, web-e.example], tls: {{mode: PASSTHROUGH}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: web-{kind}, namespace: shop}}
spec:
  hosts: [web-{kind}.shop.svc.cluster.local]
  http:{rules}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: outside-{kind}, namespace: shop}}
spec:
  hosts: [{outside}]
  gateways: [edge-m, edge-e]
  http:{rules}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: through-{kind}, namespace: shop}}
spec:
  hosts: [web-{kind}.example]
  gateways: [edge-m, edge-e]
  tls:
  - match: [{{port: 8443, sniHosts: [web-{kind}.example]}}]
    route: [{{destination: {{host: web-{kind}.shop.svc.cluster.local, port: {{number: 9443}}}}}}]
  tcp:
  - match: [{{port: {tcp}}}]
    route: [{{destination: {{host: web-{kind}.shop.svc.cluster.local, port: {{number: {tcp}}}}}}}]
"
        )
        .unwrap();
        for server in KINDS {
            write!(
                out,
                "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web-{server}-edge-{kind}, namespace: shop}}
spec:
  hosts: [web-{server}.edge-{kind}.example]
  resolution: STATIC
  location: MESH_EXTERNAL
  ports:
  - {{number: 80, name: http, protocol: HTTP, targetPort: 8080}}
  - {{number: 8081, name: grpc, protocol: GRPC, targetPort: 8080}}
  endpoints: [{{address: {edge}}}]
"
            )
            .unwrap();
        }
        for (name, address) in [("web", &web), ("caller", &caller), ("edge", &edge)] {
            out += &workload(&format!("{name}-{kind}"), "shop", address);
        }
    }
    out
}

/// A proxy, ours or Envoy's.
struct Actor {
    output: PathBuf,
    admin: String,
    _ours: Option<Process>,
    _envoy: Option<Envoy>,
}

impl Actor {
    async fn start(control_plane: &ControlPlane, places: &Places, what: &str, kind: char) -> Actor {
        let (name, address) = (format!("{what}-{kind}"), places.of(what, kind));
        let role = if what == "edge" { Role::Router } else { Role::Sidecar };
        if kind == 'm' {
            let output = control_plane.path(&format!("{name}.out"));
            let file = std::fs::File::create(&output).unwrap();
            let process = Process::start_writing(control_plane, role, &name, "shop", &address, Stdio::from(file)).await;
            let admin = format!("{address}:{}", api::port::ADMIN);
            return Actor { output, admin, _ours: Some(process), _envoy: None };
        }
        let workload = Workload {
            node_id: format!("{}~{address}~{name}.shop~shop.svc.cluster.local", role.as_str()),
            namespace: "shop".into(),
            account: name.clone(),
            labels: json!({"app": name}),
        };
        let envoy = Envoy::start(control_plane, &workload, true);
        let admin = until(&name, async || {
            let admin = envoy.admin().ok_or_else(|| "no admin".to_owned())?;
            match ask(&admin, "x", "/ready").await {
                Ok((200, _)) => Ok(admin),
                other => Err(format!("{other:?} {}", std::fs::read_to_string(&envoy.log).unwrap())),
            }
        })
        .await;
        Actor { output: envoy.output.clone(), admin, _ours: None, _envoy: Some(envoy) }
    }

    /// The lines of its access log after so many bytes, and how many there are now.
    fn lines(&self, after: usize) -> (Vec<Value>, usize) {
        let text = std::fs::read_to_string(&self.output).unwrap();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let lines = text[after.min(whole)..whole].lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (lines, whole)
    }
}

type Body = BoxBody<Bytes, Infallible>;

fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

fn frame(text: &str) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes.into()
}

fn trailers(status: &str, message: &str) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert("grpc-status", status.parse().unwrap());
    if !message.is_empty() {
        map.insert("grpc-message", message.parse().unwrap());
    }
    map
}

fn with_trailers(frames: Vec<Bytes>, end: HeaderMap) -> Body {
    let frames = frames.into_iter().map(Frame::data).chain([Frame::trailers(end)]).map(Ok);
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)))
}

/// The application behind a server's sidecar: HTTP/1.1 and HTTP/2 with prior knowledge.
async fn application(address: String) {
    let socket = TcpListener::bind(&address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            tokio::spawn(async move {
                let service =
                    hyper::service::service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
                let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
}

async fn answer(mut request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if request.headers().get("content-type").is_some_and(|kind| kind == "application/grpc") {
        return grpc(&path, request).await;
    }
    if request.headers().contains_key("upgrade") {
        let switch = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(switch.await.unwrap());
            let mut bytes = [0; 256];
            while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                stream.write_all(&bytes[..count]).await.unwrap();
            }
        });
        let response = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "websocket");
        return response.body(body("")).unwrap();
    }
    if path.starts_with("/slow") {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    // The metadata of our proxies reaches the application through an Envoy without Istio's extensions.
    let shown = |name: &http::HeaderName| !name.as_str().starts_with("x-envoy-peer-metadata");
    let all = request.headers().iter().filter(|(name, _)| shown(name));
    let mut headers: Vec<String> =
        all.map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap_or("?"))).collect();
    headers.sort();
    text += &headers.concat();
    let sent = request.into_body().collect().await.map_or_else(|error| error.to_string().into(), |all| all.to_bytes());
    write!(
        text,
        "{} bytes, {:x}",
        sent.len(),
        sent.iter().fold(0u32, |sum, byte| sum.wrapping_mul(31) + u32::from(*byte))
    )
    .unwrap();
    let status = if path.starts_with("/failing") { 503 } else { 200 };
    let mut response = Response::builder().status(status).header("x-app", "told");
    if path.starts_with("/chunked") {
        let parts: Vec<Bytes> = text.as_bytes().chunks(40).map(Bytes::copy_from_slice).collect();
        let parts = parts.into_iter().map(|part| Ok(Frame::data(part)));
        return response.body(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(parts)))).unwrap();
    }
    if path.starts_with("/own-server") {
        response = response.header("server", "application/1").header("date", "Thu, 01 Jan 1970 00:00:00 GMT");
    }
    response.body(body(text)).unwrap()
}

async fn grpc(path: &str, request: Request<Incoming>) -> Response<Body> {
    let response = Response::builder().header("content-type", "application/grpc");
    let client = request.headers().get("x-forwarded-client-cert").map_or("", |value| value.to_str().unwrap());
    let client = client.split(';').find(|part| part.starts_with("URI=")).unwrap_or("nobody").to_owned();
    if path.contains("/Error") {
        request.into_body().collect().await.unwrap();
        return response.header("grpc-status", "5").header("grpc-message", "no such thing").body(body("")).unwrap();
    }
    if path.contains("/Bidi") {
        let echoed = BodyStream::new(request.into_body()).filter_map(|frame| async {
            let data = frame.ok()?.into_data().ok()?;
            Some(Ok::<_, Infallible>(Frame::data(data)))
        });
        let end = futures_util::stream::iter([Ok(Frame::trailers(trailers("0", "")))]);
        // The pieces come from another task: the body of the request is not `Sync`.
        let (send, pieces) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut all = std::pin::pin!(echoed.chain(end));
            while let Some(piece) = all.next().await {
                if send.send(piece).await.is_err() {
                    return;
                }
            }
        });
        return response.body(BodyExt::boxed(StreamBody::new(ReceiverStream::new(pieces)))).unwrap();
    }
    let sent = request.into_body().collect().await.unwrap().to_bytes();
    let frames = match path {
        _ if path.contains("/ServerStream") => vec![frame("one"), frame("two"), frame("three")],
        _ if path.contains("/ClientStream") => vec![frame(&format!("{} bytes came", sent.len()))],
        _ if path.contains("/Late") => vec![frame("so far")],
        _ => vec![frame(&client), sent],
    };
    let end = if path.contains("/Late") { trailers("13", "broke") } else { trailers("0", "") };
    response.header("x-app", "told").body(with_trailers(frames, end)).unwrap()
}

/// Speaks first, echoes, and says so when the other side has ended.
async fn bytes_application(address: String) {
    let socket = TcpListener::bind(&address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"welcome\n").await.unwrap();
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                    stream.write_all(&bytes[..count]).await.unwrap();
                }
                let _ = stream.write_all(b"bye\n").await;
            });
        }
    });
}

/// One way from a client to an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chain {
    caller: Option<char>,
    edge: Option<char>,
    web: char,
}

impl Chain {
    fn all() -> Vec<Chain> {
        let mut all = Vec::new();
        for web in ['e', 'm'] {
            for (caller, edge) in [(true, false), (true, true), (false, true)] {
                let choices = |there: bool| if there { vec![Some('e'), Some('m')] } else { vec![None] };
                for caller in choices(caller) {
                    all.extend(choices(edge).into_iter().map(|edge| Chain { caller, edge, web }));
                }
            }
        }
        all
    }

    /// The same way with Envoys only.
    fn reference(self) -> Chain {
        Chain { caller: self.caller.map(|_| 'e'), edge: self.edge.map(|_| 'e'), web: 'e' }
    }

    fn names(self) -> Vec<(&'static str, char)> {
        let there = |what, kind: Option<char>| kind.map(|kind| (what, kind));
        [there("caller", self.caller), there("edge", self.edge), there("web", Some(self.web))]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Makes what differs by name only the same.
    fn normal(self, places: &Places, text: &str) -> String {
        let mut text = text.to_owned();
        for (what, kind) in self.names() {
            text = text.replace(&places.of(what, kind), what).replace(&format!("{what}-{kind}"), what);
        }
        for around in ["|N|", ".N.", ".N_", ":N\""] {
            let port = tcp_port(self.web).to_string();
            text = text.replace(&around.replace('N', &port), &around.replace('N', "TCP"));
        }
        // Of clients on the loopback Envoy's gateway says its machine's address.
        text.replace(&places.machine, "127.0.0.1")
    }

    /// Where a client connects, and the authority it asks for.
    fn entry(self, places: &Places, grpc: bool) -> (String, String) {
        let host = match self.edge {
            Some(edge) => format!("web-{}.edge-{edge}.example", self.web),
            None => format!("web-{}.shop.svc.cluster.local:{}", self.web, if grpc { 8081 } else { 8080 }),
        };
        match (self.caller, self.edge) {
            (Some(caller), edge) => {
                let host = if grpc && edge.is_some() { format!("{host}:8081") } else { host };
                (format!("{}:{}", places.of("caller", caller), if grpc { 8081 } else { 15080 }), host)
            }
            (None, edge) => (format!("{}:8080", places.of("edge", edge.unwrap())), host),
        }
    }
}

/// One thing to do.
struct Scenario {
    path: &'static str,
    status: u16,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Get,
    Post,
    Http2,
    Grpc,
    Bidi,
    Socket,
}

const SCENARIOS: &[Scenario] = &[
    Scenario { path: "/plain?a=b", status: 200, what: What::Get },
    Scenario { path: "/posted", status: 200, what: What::Post },
    Scenario { path: "/chunked", status: 200, what: What::Post },
    Scenario { path: "/own-server", status: 200, what: What::Get },
    Scenario { path: "/two", status: 200, what: What::Http2 },
    Scenario { path: "/abort", status: 418, what: What::Get },
    Scenario { path: "/delay", status: 200, what: What::Get },
    Scenario { path: "/slow", status: 504, what: What::Get },
    Scenario { path: "/failing", status: 503, what: What::Get },
    Scenario { path: "/direct", status: 503, what: What::Get },
    Scenario { path: "/moved", status: 302, what: What::Get },
    Scenario { path: "/rewrite", status: 200, what: What::Get },
    Scenario { path: "/headers", status: 200, what: What::Get },
    Scenario { path: "/nobody", status: 503, what: What::Get },
    Scenario { path: "/echo.Echo/Unary", status: 200, what: What::Grpc },
    Scenario { path: "/echo.Echo/ServerStream", status: 200, what: What::Grpc },
    Scenario { path: "/echo.Echo/ClientStream", status: 200, what: What::Grpc },
    Scenario { path: "/echo.Echo/Error", status: 200, what: What::Grpc },
    Scenario { path: "/echo.Echo/Late", status: 200, what: What::Grpc },
    Scenario { path: "/echo.Echo/Bidi", status: 200, what: What::Bidi },
    Scenario { path: "/socket", status: 101, what: What::Socket },
];

/// Headers that say when or which, not what.
fn told(headers: &HeaderMap) -> Vec<String> {
    let mut lines: Vec<String> = headers
        .iter()
        .map(|(name, value)| match name.as_str() {
            "date" | "x-envoy-upstream-service-time" => format!("{name}: *"),
            // How long a body is may be said before or after it, as its pieces come.
            "transfer-encoding" | "content-length" => "length".to_owned(),
            _ => format!("{name}: {}", value.to_str().unwrap()),
        })
        .collect();
    lines.sort();
    lines
}

/// Plays one scenario and tells the answer as text.
async fn play(scenario: &Scenario, to: &str, host: &str, path: &str) -> Result<String, String> {
    let stream = TcpStream::connect(to).await.map_err(|error| error.to_string())?;
    let failed = |error: hyper::Error| format!("{error:?}");
    let http2 = matches!(scenario.what, What::Http2 | What::Grpc | What::Bidi);
    let (method, sent): (&str, Body) = match scenario.what {
        What::Get | What::Http2 | What::Socket => ("GET", body("")),
        What::Post => ("POST", body(vec![b'x'; 70_000])),
        What::Grpc => ("POST", with_trailers(vec![frame("hello"), frame("again")], HeaderMap::new())),
        What::Bidi => ("POST", body("")),
    };
    let mut request = Request::builder().method(method).header("x-gone", "1").header("user-agent", "scenario");
    request = request.header("x-request-id", REQUEST_ID);
    request = if http2 { request.uri(format!("http://{host}{path}")) } else { request.uri(path).header("host", host) };
    if matches!(scenario.what, What::Grpc | What::Bidi) {
        request = request.header("content-type", "application/grpc").header("te", "trailers");
    }
    if scenario.what == What::Socket {
        request = request.header("connection", "Upgrade").header("upgrade", "websocket");
    }
    let mut words = None;
    let sent = if scenario.what == What::Bidi {
        let (send, pieces) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
        words = Some(send);
        BodyExt::boxed(StreamBody::new(ReceiverStream::new(pieces)))
    } else {
        // gRPC bodies end without trailers.
        if scenario.what == What::Grpc { body([frame("hello"), frame("again")].concat()) } else { sent }
    };
    let request = request.body(sent).unwrap();
    let mut response = if http2 {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(failed)?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(failed)?
    } else {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(failed)?
    };
    let mut text = format!("{}\n{}\n", response.status().as_u16(), told(response.headers()).join("\n"));
    if scenario.what == What::Socket && response.status() == 101 {
        let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.map_err(failed)?);
        for word in ["one", "two"] {
            stream.write_all(word.as_bytes()).await.map_err(|error| error.to_string())?;
            let mut back = [0; 3];
            stream.read_exact(&mut back).await.map_err(|error| error.to_string())?;
            text += std::str::from_utf8(&back).unwrap();
        }
        return Ok(text);
    }
    let mut incoming = response.into_body();
    if let Some(words) = words.take() {
        // Each word comes back before the next is said.
        for word in ["one", "two", "three"] {
            words.send(Ok(Frame::data(frame(word)))).await.map_err(|error| error.to_string())?;
            let mut back = Vec::new();
            while back.len() < frame(word).len() {
                let piece = incoming.frame().await.ok_or("the stream ended")?.map_err(failed)?;
                back.extend(piece.into_data().map_err(|_| "trailers")?);
            }
            assert_eq!(back, frame(word));
        }
    }
    let all = incoming.collect().await.map_err(failed)?;
    let end = all.trailers().map(told).unwrap_or_default();
    write!(text, "{}\n{}", String::from_utf8_lossy(&all.to_bytes()), end.join("\n")).unwrap();
    Ok(text)
}

/// Lines of the application's answer that say which, not what, and those that only Istio's extensions write.
fn essence(text: &str) -> String {
    let line = |line: &str| match line.split_once(": ") {
        Some(("x-request-id", id)) if id != REQUEST_ID => Some("x-request-id: *".to_owned()),
        Some(("x-forwarded-client-cert", value)) => {
            let parts: Vec<&str> = value.split(';').filter(|part| !part.starts_with("Hash=")).collect();
            Some(format!("x-forwarded-client-cert: {}", parts.join(";")))
        }
        _ => Some(line.to_owned()),
    };
    text.lines().filter_map(line).collect::<Vec<_>>().join("\n")
}

/// Whether the application's own TLS went through.
fn carries_tls(line: &Value) -> bool {
    line["requested_server_name"].as_str().is_some_and(|name| name.ends_with(".example") || name.contains(".9443_"))
}

/// An access log's fields without those that say when or which.
fn record(line: &Value) -> BTreeMap<String, String> {
    let port = |text: &str| match text.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok_and(|port| port >= 20_000) => format!("{host}:*"),
        _ => text.to_owned(),
    };
    let field = |(key, value): (&String, &Value)| {
        let value = match (key.as_str(), value) {
            // The length of a signature in a handshake is a matter of luck.
            ("bytes_sent" | "bytes_received", _) if carries_tls(line) => "*".to_owned(),
            ("start_time" | "duration" | "request_id" | "upstream_service_time", value) => {
                if value.is_null() {
                    "null".to_owned()
                } else {
                    "*".to_owned()
                }
            }
            (_, Value::String(text)) => format!("{:?}", port(text)),
            (_, value) => value.to_string(),
        };
        (key.clone(), value)
    };
    line.as_object().unwrap().iter().map(field).collect()
}

/// What a scenario came to: the answer, and what each proxy on the way logged.
#[derive(Clone, Debug, PartialEq)]
struct Outcome {
    answer: Vec<String>,
    logs: BTreeMap<&'static str, Vec<BTreeMap<String, String>>>,
}

/// How two outcomes differ, a line each.
fn differences(reference: &Outcome, other: &Outcome) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut ours, mut theirs) = (other.answer.clone(), reference.answer.clone());
    let (only_ours, only_theirs): (Vec<_>, Vec<_>) = (
        ours.extract_if(.., |line| !reference.answer.contains(line)).collect(),
        theirs.extract_if(.., |line| !other.answer.contains(line)).collect(),
    );
    lines.extend(only_theirs.into_iter().map(|line| format!("answer: only Envoy: {line}")));
    lines.extend(only_ours.into_iter().map(|line| format!("answer: only here: {line}")));
    for (what, records) in &reference.logs {
        let found = &other.logs[what];
        if records.len() != found.len() {
            lines.push(format!("{what} log: {} lines, {} here", records.len(), found.len()));
            continue;
        }
        for (one, two) in records.iter().zip(found) {
            for key in one.keys().chain(two.keys()).collect::<std::collections::BTreeSet<_>>() {
                let none = "absent".to_owned();
                let (one, two) = (one.get(key).unwrap_or(&none), two.get(key).unwrap_or(&none));
                if one != two {
                    lines.push(format!("{what} log: {key}: Envoy {one}, here {two}"));
                }
            }
        }
    }
    lines
}

/// What must differ: the difference, the scenario, the reason. Everything else must be the same.
const NAMED: &[(&str, &str, &str)] = &[(
    "web log: protocol: Envoy \"HTTP/1.1\", here \"HTTP/2\"",
    "/two",
    "between ours a hop is HTTP/2 whatever the client speaks, and the log says what the client spoke",
)];

/// The application is told who called the last proxy, whoever made that proxy and the caller's.
fn expect_identity(chain: Chain, scenario: &Scenario, outcome: &Outcome) {
    if scenario.path != "/plain?a=b" {
        return;
    }
    let caller = if chain.edge.is_some() { "edge" } else { "caller" };
    let name = format!("URI=spiffe://cluster.local/ns/shop/sa/{caller}");
    let told = outcome.answer.iter().find(|line| line.starts_with("x-forwarded-client-cert: ")).expect("a certificate");
    assert!(told.ends_with(&name), "{chain:?}: {told}");
}

/// Our proxies tell each other who they are in headers, which they take out again. An Envoy without Istio's extensions passes
/// them on: then the client sees those of our server's proxy.
fn expect_metadata(chain: Chain, scenario: &Scenario, outcome: &mut Outcome) {
    let told: Vec<String> = outcome.answer.extract_if(.., |line| line.starts_with("x-envoy-peer-metadata")).collect();
    let only_the_server_is_ours = chain.web == 'm' && chain.caller != Some('m') && chain.edge != Some('m');
    let comes_from_it = !["/abort", "/direct", "/moved", "/nobody", "/slow"].contains(&scenario.path);
    assert_eq!(!told.is_empty(), only_the_server_is_ours && comes_from_it, "{chain:?} {}: {told:?}", scenario.path);
}

/// On a port that says no protocol, for callers that are ours. An Envoy at the server finds out what comes over the hop and
/// speaks that to the application, so that our hop to it must be in the client's protocol, not in that in which our own proxies
/// carry many requests on one connection. (For callers without Istio's ALPN filter the port carries bytes: nothing to compare.)
const DETECTED: &[(Scenario, &str)] = &[
    (Scenario { path: "/detected", status: 200, what: What::Get }, "HTTP/1.1"),
    (Scenario { path: "/detected/two", status: 200, what: What::Http2 }, "HTTP/2"),
];

async fn expect_clients_protocol(stage: &Stage, web: char) {
    let chain = Chain { caller: Some('m'), edge: None, web };
    for (scenario, protocol) in DETECTED {
        let outcome = stage.http(chain, scenario, None).await;
        assert_eq!(outcome.answer[0], scenario.status.to_string(), "{chain:?}: {outcome:?}");
        let asked = outcome.answer.iter().find(|line| line.starts_with("GET ")).expect("the application's words");
        assert!(asked.contains(&format!(" {protocol}")), "{chain:?}: the application got {asked:?}, not {protocol}");
        assert_eq!(outcome.logs["web"][0]["protocol"], format!("{protocol:?}"), "{chain:?}");
        let client = "x-forwarded-client-cert: By=spiffe://cluster.local/ns/shop/sa/web;";
        assert!(outcome.answer.iter().any(|line| line.starts_with(client)), "{chain:?}: {outcome:?}");
    }
}

struct Stage {
    places: Places,
    actors: BTreeMap<(&'static str, char), Actor>,
    company: Authority,
    _control_plane: ControlPlane,
}

impl Stage {
    async fn open() -> Stage {
        let mut dice = rand::rng();
        let prefix = format!("127.{}.{}.", dice.random_range(100..250), dice.random_range(100..250));
        let places = Places { prefix, machine: machine_address() };
        let objects = objects(&places);
        let control_plane = ControlPlane::start_with(&[("shop.yaml", objects.as_str())], MESH).await;
        let problems: Vec<_> = control_plane
            .problems()
            .into_iter()
            .filter(|problem| problem.severity == api::problem::Severity::Error)
            .collect();
        assert!(problems.is_empty(), "{problems:?}");
        let company = Authority::default();
        for kind in KINDS {
            let web = places.of("web", kind);
            application(format!("{web}:18080")).await;
            application(format!("{web}:18081")).await;
            bytes_application(format!("{web}:19000")).await;
            echo_tls(&format!("{web}:19443"), &company.pair(&format!("web-{kind}.example"))).await;
        }
        let mut actors = BTreeMap::new();
        for what in ["web", "edge", "caller"] {
            for kind in KINDS {
                actors.insert((what, kind), Actor::start(&control_plane, &places, what, kind).await);
            }
        }
        Stage { places, actors, company, _control_plane: control_plane }
    }

    /// What a proxy counted of the answers of clusters, under Envoy's names.
    async fn counters(&self, what: &'static str, kind: char) -> BTreeMap<String, u64> {
        let admin = &self.actors[&(what, kind)].admin;
        let (_, text) = Client::connect(admin).await.unwrap().ask(get(admin, "/stats")).await.unwrap();
        let about = |line: &&str| line.starts_with("cluster.outbound|") || line.starts_with("cluster.inbound|");
        let counted = [".upstream_rq_2xx", ".upstream_rq_4xx", ".upstream_rq_5xx", ".upstream_rq_total"];
        text.lines()
            .filter(about)
            .filter_map(|line| line.rsplit_once(": "))
            // Envoy's further names for the same, by where an answer came from.
            .filter(|(name, _)| ![".external.", ".internal.", ".retry."].iter().any(|part| name.contains(part)))
            .filter(|(name, _)| counted.iter().any(|end| name.ends_with(end)))
            .filter_map(|(name, value)| Some((name.replace("..", "."), value.parse().ok()?)))
            .filter(|(_, value)| *value > 0)
            .collect()
    }

    fn marks(&self, chain: Chain) -> Vec<(&'static str, char, usize)> {
        chain.names().into_iter().map(|(what, kind)| (what, kind, self.actors[&(what, kind)].lines(0).1)).collect()
    }

    /// The log lines that are about this since the marks. `expected` is how many each proxy of the reference wrote.
    async fn logs(
        &self,
        chain: Chain,
        marks: &[(&'static str, char, usize)],
        about: &dyn Fn(&Value) -> bool,
        expected: Option<&Outcome>,
    ) -> BTreeMap<&'static str, Vec<BTreeMap<String, String>>> {
        let read = || {
            let mut logs = BTreeMap::new();
            for (what, kind, mark) in marks {
                let (lines, _) = self.actors[&(*what, *kind)].lines(*mark);
                let normal = |line: &Value| {
                    serde_json::from_str::<Value>(&chain.normal(&self.places, &line.to_string())).unwrap()
                };
                let records =
                    lines.iter().filter(|line| about(line)).map(|line| record(&normal(line))).collect::<Vec<_>>();
                logs.insert(*what, records);
            }
            logs
        };
        let Some(expected) = expected else {
            // The reference: lines are written within a moment of the end of what they tell.
            let mut last = read();
            let mut calm = 0;
            while calm < 3 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let now = read();
                calm = if now == last && now.values().any(|lines| !lines.is_empty()) { calm + 1 } else { 0 };
                last = now;
            }
            return last;
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(2);
        loop {
            let logs = read();
            let enough = logs.iter().all(|(what, lines)| lines.len() >= expected.logs[what].len());
            if enough || std::time::Instant::now() > deadline {
                return logs;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn http(&self, chain: Chain, scenario: &Scenario, reference: Option<&Outcome>) -> Outcome {
        let (to, host) = chain.entry(&self.places, matches!(scenario.what, What::Grpc | What::Bidi));
        let marks = self.marks(chain);
        let answer = match play(scenario, &to, &host, scenario.path).await {
            Ok(text) => text,
            Err(error) => format!("no answer: {error}"),
        };
        let answer = essence(&chain.normal(&self.places, &answer));
        let path = scenario.path;
        let about = move |line: &Value| line["path"].as_str() == Some(path);
        let logs = self.logs(chain, &marks, &about, reference).await;
        Outcome { answer: answer.lines().map(str::to_owned).collect(), logs }
    }

    async fn bytes(&self, chain: Chain, reference: Option<&Outcome>) -> Outcome {
        let to = match (chain.caller, chain.edge) {
            (Some(caller), None) => self.places.of("caller", caller),
            (_, edge) => self.places.of("edge", edge.unwrap()),
        };
        let marks = self.marks(chain);
        let talk = async {
            let mut stream = TcpStream::connect(format!("{to}:{}", tcp_port(chain.web))).await?;
            let mut text = vec![0; 8];
            stream.read_exact(&mut text).await?;
            stream.write_all(&[b'y'; 50_000]).await?;
            stream.shutdown().await?;
            stream.read_to_end(&mut text).await?;
            Ok::<_, std::io::Error>(format!(
                "{} bytes, {:?}",
                text.len(),
                String::from_utf8_lossy(&text[text.len() - 6..])
            ))
        };
        let answer = talk.await.unwrap_or_else(|error| error.to_string());
        let logs = self.logs(chain, &marks, &|line| line["method"].is_null(), reference).await;
        Outcome { answer: vec![answer], logs }
    }

    async fn through(&self, chain: Chain, reference: Option<&Outcome>) -> Outcome {
        let to = format!("{}:8443", self.places.of("edge", chain.edge.unwrap()));
        let (host, marks) = (format!("web-{}.example", chain.web), self.marks(chain));
        let answer = async {
            let client = Client::connect_tls(&to, &host, self.company.client(None)).await;
            client.map_err(|error| error.to_string())?.ask(get(&host, "/through")).await
        };
        let answer = format!("{:?}", answer.await);
        let logs = self.logs(chain, &marks, &|line| line["method"].is_null(), reference).await;
        Outcome { answer: vec![chain.normal(&self.places, &answer)], logs }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_combination_of_ours_and_envoy_gives_the_same() {
    let stage = Stage::open().await;
    for chain in Chain::all() {
        let (to, host) = chain.entry(&stage.places, false);
        until(&format!("{chain:?}"), async || match ask(&to, &host, "/warm").await {
            Ok((200, _)) => Ok(()),
            other => Err(other),
        })
        .await;
    }
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // Envoys only come first in `Chain::all`: the others are held against them.
    let mut references: BTreeMap<String, Outcome> = BTreeMap::new();
    for chain in Chain::all() {
        let shape = format!("{:?}", chain.reference());
        let mut outcomes = Vec::new();
        // All at once: each has a path of its own, by which its log lines are found.
        let (stage, references_of) = (&stage, &references);
        let played = SCENARIOS.iter().map(|scenario| {
            let key = format!("{} {shape}", scenario.path);
            async move {
                let outcome = stage.http(chain, scenario, references_of.get(&key)).await;
                (scenario, key, outcome)
            }
        });
        for (scenario, key, mut outcome) in futures_util::future::join_all(played).await {
            expect_identity(chain, scenario, &outcome);
            expect_metadata(chain, scenario, &mut outcome);
            let status = outcome.answer[0].as_str();
            assert_eq!(status, scenario.status.to_string(), "{chain:?} {}: {outcome:?}", scenario.path);
            outcomes.push((scenario.path, key, outcome));
        }
        if chain.caller.is_none() || chain.edge.is_none() {
            let key = format!("bytes {shape}");
            let outcome = stage.bytes(chain, references.get(&key)).await;
            assert_eq!(outcome.answer, ["50012 bytes, \"yybye\\n\""], "{chain:?}");
            outcomes.push(("bytes", key, outcome));
        }
        if chain.caller.is_none() {
            let key = format!("through {shape}");
            let outcome = stage.through(chain, references.get(&key)).await;
            assert!(outcome.answer[0].starts_with("Ok((200"), "{chain:?}: {outcome:?}");
            outcomes.push(("through", key, outcome));
        }
        for (what, key, outcome) in outcomes {
            let Some(reference) = references.get(&key) else {
                assert_eq!(chain, chain.reference());
                references.insert(key, outcome);
                continue;
            };
            for line in differences(reference, &outcome) {
                if NAMED.iter().any(|(named, scenario, _)| *named == line && *scenario == what) {
                    continue;
                }
                let names = chain.names().iter().map(|(what, kind)| format!("{what}-{kind}")).collect::<Vec<_>>();
                found.entry(line).or_default().push(format!("{what}: {}", names.join(" ")));
            }
        }
    }
    for what in ["web", "caller", "edge"] {
        let (ours, theirs) = (stage.counters(what, 'm').await, stage.counters(what, 'e').await);
        assert!(theirs.len() > 1, "{theirs:?}");
        for name in ours.keys().chain(theirs.keys()) {
            let (ours, theirs) = (ours.get(name), theirs.get(name));
            if ours != theirs {
                found.entry(format!("{what} counts {name}: Envoy {theirs:?}, here {ours:?}")).or_default();
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
    for web in KINDS {
        expect_clients_protocol(&stage, web).await;
    }
}
