//! The command line and environment of Istio's agent (`pilot-agent`), under which name the program is started in pods. They are
//! translated into our own settings: nothing else in the proxy knows that it is in a pod.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::node::Role;
use clap::{Args, Parser, Subcommand};
use serde_json::Value;

use crate::bootstrap::{Arguments, Cli, Command};
use crate::{capture, pod};

/// Where the agent finds what the pod's volumes hold.
const ROOT_CERTIFICATE: &str = "/var/run/secrets/istio/root-cert.pem";
const TOKEN: &str = "/var/run/secrets/tokens/istio-token";
const POD_INFO: &str = "/etc/istio/pod";
/// The control plane, if the proxy's settings name none.
const CONTROL_PLANE: &str = "istiod.istio-system.svc:15012";
/// Worker threads without a CPU limit, as in Istio.
const WORKERS: u64 = 2;

/// Istio's agent: runs the proxy, talks to it, captures traffic.
#[derive(Debug, Parser)]
#[command(name = "pilot-agent", version, arg_required_else_help = true)]
pub struct PilotAgent {
    /// What to do.
    #[command(subcommand)]
    pub command: AgentCommand,
}

/// `pilot-agent …`
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Run the proxy.
    Proxy(Box<ProxyOptions>),
    /// Ask the proxy's own pages.
    Request(RequestOptions),
    /// Wait until the proxy is ready.
    Wait(WaitOptions),
    /// Install the rules that send the pod's traffic through its proxy.
    IstioIptables(Box<capture::Options>),
    /// Print the version.
    Version(Ignored),
}

/// Flags that some commands carry and none heeds.
#[derive(Clone, Debug, Default, Args)]
pub struct Ignored {
    /// `-s`, `-o`: the version is one line.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<String>,
}

/// `pilot-agent proxy …`
#[derive(Clone, Debug, Default, Args)]
pub struct ProxyOptions {
    /// sidecar, or router for gateways.
    #[arg(default_value = "sidecar")]
    role: String,
    /// Domain of the namespace's services.
    #[arg(long)]
    domain: Option<String>,
    /// Log level of the data path (Envoy's words).
    #[arg(long = "proxyLogLevel", default_value = "warning")]
    proxy_log_level: String,
    /// Log levels of the rest, `default:info`.
    #[arg(long = "log_output_level", default_value = "default:info")]
    log_output_level: String,
    /// Log as JSON.
    #[arg(long = "log_as_json", num_args = 0..=1, default_missing_value = "true")]
    log_as_json: Option<bool>,
    /// Worker threads; 0 goes by the CPU limit.
    #[arg(long, default_value_t = 0)]
    concurrency: u64,
    /// Flags that do nothing here.
    #[command(flatten)]
    idle: Idle,
}

/// Flags of Istio's agent that are taken and do nothing: they tune what does not exist here.
#[derive(Clone, Debug, Default, Args)]
struct Idle {
    #[arg(long = "proxyComponentLogLevel", hide = true)]
    proxy_component_log_level: Option<String>,
    #[arg(long = "meshConfig", hide = true)]
    mesh_config: Option<String>,
    #[arg(long = "stsPort", hide = true)]
    sts_port: Option<String>,
    #[arg(long = "tokenManagerPlugin", hide = true)]
    token_manager_plugin: Option<String>,
    #[arg(long = "serviceCluster", hide = true)]
    service_cluster: Option<String>,
    #[arg(long = "templateFile", hide = true)]
    template_file: Option<String>,
    #[arg(long = "outlierLogPath", hide = true)]
    outlier_log_path: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    profiling: Option<String>,
    #[arg(long = "log_caller", hide = true)]
    log_caller: Option<String>,
    #[arg(long = "log_stacktrace_level", hide = true)]
    log_stacktrace_level: Option<String>,
    #[arg(long = "log_target", hide = true)]
    log_target: Option<String>,
    #[arg(long, hide = true)]
    vklog: Option<String>,
}

impl Idle {
    /// Those given. One that the injector gives every proxy is not worth a line.
    fn given(&self) -> Vec<&'static str> {
        let component = self.proxy_component_log_level.clone().filter(|levels| levels != "misc:error");
        let flags = [
            ("--proxyComponentLogLevel", &component),
            ("--meshConfig", &self.mesh_config),
            ("--stsPort", &self.sts_port),
            ("--tokenManagerPlugin", &self.token_manager_plugin),
            ("--serviceCluster", &self.service_cluster),
            ("--templateFile", &self.template_file),
            ("--outlierLogPath", &self.outlier_log_path),
            ("--profiling", &self.profiling),
            ("--log_caller", &self.log_caller),
            ("--log_stacktrace_level", &self.log_stacktrace_level),
            ("--log_target", &self.log_target),
            ("--vklog", &self.vklog),
        ];
        flags.iter().filter(|(_, value)| value.is_some()).map(|(flag, _)| *flag).collect()
    }
}

/// Whether the program was started under the agent's name.
pub fn is_called(program: Option<&OsStr>) -> bool {
    program.and_then(|program| Path::new(program).file_name()).is_some_and(|name| name == "pilot-agent")
}

/// The environment of a pod: variables, and the files of its volume of labels and annotations.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// Variables by name.
    pub variables: BTreeMap<String, String>,
    /// Labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod.
    pub annotations: BTreeMap<String, String>,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        let file = |name: &str| {
            let text = std::fs::read_to_string(Path::new(POD_INFO).join(name)).unwrap_or_default();
            pod::downward(&text)
        };
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            variables: std::env::vars_os().filter_map(text).collect(),
            labels: file("labels"),
            annotations: file("annotations"),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn is_true(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "True" | "TRUE" | "1" | "t"))
    }
}

/// What a proxy in a pod is started with.
#[derive(Debug)]
pub struct InPod {
    /// The settings.
    pub arguments: Arguments,
    /// Sidecar or gateway.
    pub role: Role,
    /// Flags that were taken and do nothing.
    pub without_effect: Vec<&'static str>,
}

impl ProxyOptions {
    /// Our settings from Istio's.
    ///
    /// # Errors
    /// The role is not built, or a variable cannot be read.
    pub fn settings(&self, environment: &Environment) -> Result<InPod> {
        let role = match self.role.as_str() {
            "sidecar" => Role::Sidecar,
            "router" => Role::Router,
            other => bail!("the role {other} is not built; sidecar and router are"),
        };
        let config = match environment.get("PROXY_CONFIG") {
            Some(text) => {
                api::mesh_config::proxy_config(text).map_err(|error| anyhow::anyhow!("PROXY_CONFIG: {error}"))?
            }
            None => Value::Null,
        };
        let words = self.words(role, environment, &config);
        let mut arguments = match Cli::try_parse_from(&words)?.command {
            Command::Sidecar(arguments) | Command::Router(arguments) => *arguments,
            _ => bail!("{} is no proxy", words.join(" ")),
        };
        if !environment.labels.is_empty() {
            arguments.labels = environment.labels.clone().into_iter().collect();
        }
        arguments.pod = self.pod(role, environment, &arguments)?;
        Ok(InPod { arguments, role, without_effect: self.idle.given() })
    }

    /// The same as our own command line. Variables that both spell alike are read there.
    fn words(&self, role: Role, environment: &Environment, config: &Value) -> Vec<String> {
        let mut words = vec!["proxy".to_owned(), role.as_str().to_owned()];
        let mut add = |flag: &str, value: Option<String>| words.extend(value.map(|value| format!("--{flag}={value}")));
        let variable = |name: &str| environment.get(name).map(str::to_owned);
        let field = |name: &str| match config.get(name) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        for (flag, name) in [
            ("name", "POD_NAME"),
            ("namespace", "POD_NAMESPACE"),
            ("ip", "INSTANCE_IP"),
            ("instance-ips", "INSTANCE_IPS"),
            ("service-account", "SERVICE_ACCOUNT"),
            ("workload-name", "ISTIO_META_WORKLOAD_NAME"),
            ("interception-mode", "ISTIO_META_INTERCEPTION_MODE"),
            ("cluster-id", "ISTIO_META_CLUSTER_ID"),
            ("mesh-id", "ISTIO_META_MESH_ID"),
            ("proxy-config", "PROXY_CONFIG"),
            ("ca-address", "CA_ADDR"),
        ] {
            add(flag, variable(name));
        }
        add("domain", self.domain.clone());
        add(
            "xds-address",
            variable("XDS_ADDRESS").or_else(|| field("discoveryAddress")).or(Some(CONTROL_PLANE.to_owned())),
        );
        add(
            "root-cert",
            variable("XDS_ROOT_CA").or_else(|| variable("CA_ROOT_CA")).or(Some(ROOT_CERTIFICATE.to_owned())),
        );
        add("token-file", variable("TOKEN_FILE").or(Some(TOKEN.to_owned())));
        add("workers", Some(self.workers(environment, config).to_string()));
        add("drain", field("drainDuration"));
        add("drain-delay", Some(drain_delay(role, environment, field("terminationDrainDuration"))));
        add("log", Some(log_filter(&self.log_output_level, &self.proxy_log_level)));
        let is_six = environment.get("INSTANCE_IP").is_some_and(|address| address.contains(':'));
        let any = if is_six { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let status = field("statusPort").and_then(|port| port.parse().ok()).filter(|port| *port != 0);
        for (flag, name, port) in [
            ("status-addr", "STATUS_ADDR", status.unwrap_or(api::port::STATUS)),
            ("ready-addr", "READY_ADDR", api::port::READY),
            ("prometheus-addr", "PROMETHEUS_ADDR", api::port::PROMETHEUS),
        ] {
            add(flag, variable(name).or_else(|| Some(SocketAddr::new(any, port).to_string())));
        }
        if self.log_as_json == Some(true) {
            words.push("--log-as-json".to_owned());
        }
        words
    }

    fn workers(&self, environment: &Environment, config: &Value) -> u64 {
        let set = config.get("concurrency").and_then(Value::as_u64).filter(|count| *count > 0);
        let limit = environment.get("ISTIO_CPU_LIMIT").and_then(|limit| limit.parse::<u64>().ok());
        Some(self.concurrency).filter(|count| *count > 0).or(set).or(limit).unwrap_or(WORKERS).max(1)
    }

    fn pod(&self, role: Role, environment: &Environment, arguments: &Arguments) -> Result<pod::Pod> {
        let is_captured =
            role == Role::Sidecar && matches!(arguments.interception_mode.as_str(), "REDIRECT" | "TPROXY");
        let mut metadata = pod::metadata(environment.variables.clone().into_iter());
        if !environment.annotations.is_empty() {
            metadata.insert("ANNOTATIONS".to_owned(), serde_json::to_value(&environment.annotations)?);
        }
        let probes = environment.get("ISTIO_KUBE_APP_PROBERS").map(pod::probes).transpose();
        let metrics = environment.get("ISTIO_PROMETHEUS_ANNOTATIONS").map(pod::metrics).transpose();
        Ok(pod::Pod {
            check_capture: is_captured,
            captured_by_node: environment.is_true("MESH_CAPTURED_BY_CNI"),
            early: if is_captured { early(arguments) } else { Vec::new() },
            exit_on_zero: environment.is_true("EXIT_ON_ZERO_ACTIVE_CONNECTIONS"),
            keep_outbound: role == Role::Sidecar,
            probes: probes.map_err(anyhow::Error::msg)?.unwrap_or_default(),
            metrics: metrics.map_err(anyhow::Error::msg)?.unwrap_or_default(),
            metadata,
        })
    }
}

/// The two capturing listeners, in each family that the pod has; with TPROXY the inbound one is transparent.
fn early(arguments: &Arguments) -> Vec<(SocketAddr, bool)> {
    let all: Vec<IpAddr> = arguments.instance_ips.iter().copied().chain([arguments.ip]).collect();
    let mut addresses = Vec::new();
    for (has, any) in [
        (all.iter().any(IpAddr::is_ipv4), IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        (all.iter().any(IpAddr::is_ipv6), IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    ] {
        if has {
            let transparent = arguments.interception_mode == "TPROXY";
            addresses.push((SocketAddr::new(any, api::port::OUTBOUND), false));
            addresses.push((SocketAddr::new(any, api::port::INBOUND), transparent));
        }
    }
    addresses
}

/// How long new connections are taken after SIGTERM. A sidecar that stays as an init container is told to end when the
/// application has ended already: then nobody can be served any more.
fn drain_delay(role: Role, environment: &Environment, configured: Option<String>) -> String {
    if role == Role::Sidecar && environment.is_true("MESH_NATIVE_SIDECAR") {
        return "0s".to_owned();
    }
    if environment.is_true("EXIT_ON_ZERO_ACTIVE_CONNECTIONS") {
        return environment.get("MINIMUM_DRAIN_DURATION").unwrap_or("5s").to_owned();
    }
    let variable = environment.get("TERMINATION_DRAIN_DURATION_SECONDS").map(|seconds| format!("{seconds}s"));
    variable.or(configured).unwrap_or_else(|| "5s".to_owned())
}

/// Istio's scopes (`default:info,ads:debug`) and Envoy's level as one filter: the data path has Envoy's level.
fn log_filter(scopes: &str, proxy: &str) -> String {
    let level = |word: &str| match word {
        "none" | "off" => "off",
        "fatal" | "error" | "critical" => "error",
        "warn" | "warning" => "warn",
        "debug" => "debug",
        "trace" => "trace",
        _ => "info",
    };
    let mut pairs = scopes.split(',').map(|one| one.split_once(':').unwrap_or(("default", one)));
    let base = pairs.rfind(|(scope, _)| *scope == "default" || *scope == "all").map_or("info", |(_, word)| level(word));
    let path = ["http", "tcp", "listen", "upstream", "tls", "worker"];
    let path = path.map(|module| format!("proxy::{module}={}", level(proxy))).join(",");
    format!("{base},{path}")
}

/// `pilot-agent request …`
#[derive(Clone, Debug, Args)]
pub struct RequestOptions {
    /// Port of the page on this host: 15000 (the proxy's) or 15020 (the agent's).
    #[arg(long, default_value_t = api::port::ADMIN)]
    debug_port: u16,
    /// GET, POST …
    method: String,
    /// Path, with its query.
    path: String,
    /// Body.
    body: Option<String>,
}

impl RequestOptions {
    /// Asks, and prints the answer.
    ///
    /// # Errors
    /// Nobody answers, or with an error.
    pub fn run(&self) -> Result<()> {
        let address = format!("127.0.0.1:{}", self.debug_port);
        let path = format!("/{}", self.path.trim_start_matches('/'));
        let body = self.body.as_deref().unwrap_or_default();
        let (status, text) = ask(&address, &self.method.to_uppercase(), &path, body, Duration::from_secs(60))?;
        std::io::stdout().write_all(&text)?;
        if status >= 400 {
            bail!("{} http://{address}{path} was answered with {status}", self.method);
        }
        Ok(())
    }
}

/// `pilot-agent wait …`
#[derive(Clone, Debug, Args)]
pub struct WaitOptions {
    /// Longest wait, seconds.
    #[arg(long = "timeoutSeconds", default_value_t = 60)]
    timeout_seconds: u64,
    /// Longest wait for one answer, milliseconds.
    #[arg(long = "requestTimeoutMillis", default_value_t = 500)]
    request_timeout_millis: u64,
    /// Pause between two questions, milliseconds.
    #[arg(long = "periodMillis", default_value_t = 500)]
    period_millis: u64,
    /// Who is asked.
    #[arg(long, default_value = "http://localhost:15021/healthz/ready")]
    url: String,
}

impl WaitOptions {
    /// Waits.
    ///
    /// # Errors
    /// The proxy was not ready in time; the sentence has the last reason.
    pub fn run(&self) -> Result<()> {
        let rest =
            self.url.strip_prefix("http://").with_context(|| format!("{:?} does not start with http://", self.url))?;
        let (address, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (start, bound) = (Instant::now(), Duration::from_secs(self.timeout_seconds));
        loop {
            let timeout = Duration::from_millis(self.request_timeout_millis.max(1));
            let reason = match ask(address, "GET", &format!("/{path}"), "", timeout) {
                Ok((200, _)) => return Ok(()),
                Ok((status, text)) => format!("{status} {}", String::from_utf8_lossy(&text).trim()),
                Err(error) => format!("{error:#}"),
            };
            if start.elapsed() >= bound {
                bail!("the proxy was not ready within {} s: {reason}", self.timeout_seconds);
            }
            std::thread::sleep(Duration::from_millis(self.period_millis.max(1)));
        }
    }
}

/// One HTTP/1.0 request: the answer ends with the connection, so that no client is needed.
fn ask(address: &str, method: &str, path: &str, body: &str, timeout: Duration) -> Result<(u16, Vec<u8>)> {
    let mut reached = None;
    for place in address.to_socket_addrs().with_context(|| format!("{address} is not HOST:PORT"))? {
        reached = Some(TcpStream::connect_timeout(&place, timeout));
        if matches!(reached, Some(Ok(_))) {
            break;
        }
    }
    let mut stream =
        reached.context("the host has no address")?.with_context(|| format!("{address} cannot be reached"))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(stream, "{method} {path} HTTP/1.0\r\nhost: {address}\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("{address} does not answer"))?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("the answer is not HTTP")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("the answer has no status")?;
    Ok((status, answer.split_off(end + 4)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        let base =
            [("POD_NAME", "web-1"), ("POD_NAMESPACE", "shop"), ("INSTANCE_IP", "10.0.0.7"), ("SERVICE_ACCOUNT", "web")];
        let variables =
            base.iter().chain(pairs).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        Environment { variables, labels, annotations: BTreeMap::from([("a".to_owned(), "b".to_owned())]) }
    }

    fn started(line: &str, pairs: &[(&str, &str)]) -> InPod {
        let line = format!("pilot-agent proxy {line}");
        let AgentCommand::Proxy(options) = PilotAgent::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("no proxy")
        };
        options.settings(&environment(pairs)).unwrap()
    }

    const LINE: &str = "sidecar --domain shop.svc.cluster.local --proxyLogLevel=warning --proxyComponentLogLevel=misc:error --log_output_level=default:info";

    #[test]
    fn the_injected_command_line_becomes_our_settings() {
        let in_pod = started(
            LINE,
            &[
                (
                    "PROXY_CONFIG",
                    r#"{"discoveryAddress":"istiod-x.mesh.svc:15012","terminationDrainDuration":"9s","proxyHeaders":{"preserveHttp1HeaderCase":true}}"#,
                ),
                ("CA_ADDR", "ca:15012"),
                ("INSTANCE_IPS", "10.0.0.7,fd00::7"),
                ("ISTIO_CPU_LIMIT", "3"),
                ("ISTIO_META_WORKLOAD_NAME", "web"),
                ("ISTIO_META_OWNER", "kubernetes://apis/apps/v1/namespaces/shop/deployments/web"),
                ("ISTIO_META_POD_PORTS", r#"[{"containerPort":80}]"#),
                ("ISTIO_META_NETWORK", "n1"),
            ],
        );
        assert!(in_pod.without_effect.is_empty(), "{:?}", in_pod.without_effect);
        let arguments = &in_pod.arguments;
        assert_eq!(arguments.control_plane.xds_address, "istiod-x.mesh.svc:15012");
        assert_eq!(arguments.control_plane.ca_address.as_deref(), Some("ca:15012"));
        assert_eq!(arguments.control_plane.root_cert.as_deref(), Some(Path::new(ROOT_CERTIFICATE)));
        assert_eq!(arguments.control_plane.token_file.as_deref(), Some(Path::new(TOKEN)));
        assert_eq!((arguments.workers, arguments.drain_delay), (3, Duration::from_secs(9)));
        let settings = arguments.settings(in_pod.role);
        assert_eq!(settings.node_id, "sidecar~10.0.0.7~web-1.shop~shop.svc.cluster.local");
        assert_eq!(settings.metadata.instance_ips, "10.0.0.7,fd00::7");
        assert!(settings.pod.check_capture && settings.pod.early.len() == 4);
        let node = crate::bootstrap::node(&settings, "127.0.0.1:15000".parse().unwrap());
        let metadata = api::xds::struct_to_json(node.metadata.as_ref().unwrap());
        for (pointer, wanted) in [
            ("/OWNER", "kubernetes://apis/apps/v1/namespaces/shop/deployments/web"),
            ("/NETWORK", "n1"),
            ("/WORKLOAD_NAME", "web"),
            ("/LABELS/app", "web"),
            ("/ANNOTATIONS/a", "b"),
            ("/INTERCEPTION_MODE", "REDIRECT"),
        ] {
            assert_eq!(metadata.pointer(pointer).and_then(Value::as_str), Some(wanted), "{pointer}");
        }
        assert_eq!(metadata.pointer("/POD_PORTS/0/containerPort").and_then(Value::as_f64), Some(80.0));
    }

    #[test]
    fn what_is_not_given_has_istios_defaults() {
        let in_pod = started("sidecar", &[("ISTIO_META_INTERCEPTION_MODE", "NONE")]);
        let arguments = &in_pod.arguments;
        assert_eq!(arguments.control_plane.xds_address, CONTROL_PLANE);
        assert_eq!((arguments.workers, arguments.drain_delay), (2, Duration::from_secs(5)));
        assert!(!arguments.pod.check_capture && arguments.pod.early.is_empty());
        assert_eq!(started("router", &[]).role, Role::Router);
        assert_eq!(started("sidecar --concurrency 4", &[("ISTIO_CPU_LIMIT", "1")]).arguments.workers, 4);
        assert_eq!(started("sidecar --stsPort 1 --profiling", &[]).without_effect, ["--stsPort", "--profiling"]);
        let native = started("sidecar", &[("MESH_NATIVE_SIDECAR", "true")]);
        assert_eq!(native.arguments.drain_delay, Duration::ZERO);
        let until_idle =
            started("sidecar", &[("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true"), ("MINIMUM_DRAIN_DURATION", "7s")]);
        assert!(until_idle.arguments.pod.exit_on_zero);
        assert_eq!(until_idle.arguments.drain_delay, Duration::from_secs(7));
        let six = started("sidecar", &[("INSTANCE_IP", "fd00::1")]);
        assert_eq!(six.arguments.ready_addr, "[::]:15021".parse().unwrap());
    }

    #[test]
    fn levels_are_translated() {
        assert!(log_filter("default:info", "warning").starts_with("info,proxy::http=warn,"));
        assert!(log_filter("ads:debug,all:debug", "trace").starts_with("debug,proxy::http=trace,"));
        assert!(log_filter("error", "off").starts_with("error,proxy::http=off"));
    }

    #[test]
    fn the_name_decides() {
        assert!(is_called(Some(OsStr::new("/usr/local/bin/pilot-agent"))));
        assert!(!is_called(Some(OsStr::new("proxy"))) && !is_called(None));
    }

    #[test]
    fn a_wait_that_ends_says_why() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("http://{closed}/healthz/ready");
        let wait = WaitOptions { timeout_seconds: 0, request_timeout_millis: 100, period_millis: 1, url };
        assert!(wait.run().unwrap_err().to_string().contains("cannot be reached"));
    }

    #[test]
    fn the_capture_takes_istios_flags() {
        let line = "pilot-agent istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i * -b * -d 15090,15021,15020 --log_output_level=default:info -n --iptables-probe-port 15002";
        let AgentCommand::IstioIptables(options) = PilotAgent::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("no capture")
        };
        assert_eq!(options.check(), Ok(()));
        assert_eq!(options.without_effect(), ["--log_output_level"]);
        assert!(!options.redirect_dns);
        let line = "pilot-agent istio-iptables --redirect-dns --capture-all-dns=true --cni-mode";
        let AgentCommand::IstioIptables(options) = PilotAgent::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("no capture")
        };
        assert!(options.redirect_dns && options.capture_all_dns);
        assert!(options.check().unwrap_err().contains("--cni-mode"));
    }
}
