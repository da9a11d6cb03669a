//! Who decides about requests besides the policies themselves (`extensionProviders` of kind ext_authz), each with the service
//! behind its name. One that is wrong is there too, so that policies that ask it let nobody in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::cluster_name::ClusterName;
use api::extension_provider::{ExtAuthzGrpc, ExtAuthzHttp, ExtensionProvider, RequestBody};
use api::mesh_config::MeshConfig;
use api::name::Hostname;
use api::problem::nearest;
use api::value::Duration;
use envoy_types::pb::envoy::r#type::v3::StatusCode;

use crate::model::{Digested, Protocol, Service, digest_of};

/// Istio's patience with a provider that is given none.
const PATIENCE: Duration = Duration::seconds(600);

/// Who is asked.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) name: String,
    pub(crate) service: Digested<Service>,
    /// Name of the cluster.
    pub(crate) cluster: String,
    pub(crate) timeout: Duration,
    pub(crate) fail_open: bool,
    pub(crate) clear_route_cache: bool,
    pub(crate) status_on_error: Option<StatusCode>,
    pub(crate) body: Option<RequestBody>,
    /// What is particular to HTTP; none: it is asked over gRPC.
    pub(crate) http: Option<ExtAuthzHttp>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Providers {
    /// By name; nothing: it is wrong.
    known: BTreeMap<String, Option<Arc<Provider>>>,
    /// What is wrong: the field of the settings, whether nobody can be asked for it, and a sentence.
    pub(crate) faults: Vec<(String, bool, String)>,
}

impl Providers {
    pub(super) fn of(
        mesh: &MeshConfig,
        services: &[Digested<Service>],
        by_host: &BTreeMap<Hostname, Vec<usize>>,
    ) -> Self {
        let mut all = Self::default();
        let mut names = BTreeSet::new();
        for (index, given) in mesh.extension_providers.iter().enumerate() {
            let field = format!("extensionProviders[{index}]");
            let mut faults = Faults { field: &field, all: &mut all.faults, any: false };
            if given.name.is_empty() {
                faults.wrong("name", "The provider has no name; no policy can ask it.");
            } else if !names.insert(given.name.as_str()) {
                let message =
                    format!("There are several providers named {:?}; nobody is asked by that name.", given.name);
                faults.wrong("name", &message);
            }
            let kinds = given.kinds();
            if kinds.len() != 1 {
                let found = if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") };
                let message =
                    format!("A provider is of exactly one kind, such as envoyExtAuthzGrpc; here are {found}.");
                faults.wrong("", &message);
            }
            if !given.is_ext_authz() {
                continue;
            }
            let made = provider(given, services, by_host, &mut faults);
            let made = made.filter(|_| !faults.any).map(Arc::new);
            all.known.insert(given.name.clone(), made);
        }
        all
    }

    /// The provider of a name, if it can be asked.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Provider>> {
        self.known.get(name)?.as_ref()
    }

    /// Whether there is one of that name, right or wrong.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    /// The name that is nearest to one that is not there.
    pub(crate) fn nearest(&self, name: &str) -> Option<&str> {
        nearest(name, self.known.keys().map(String::as_str))
    }

    /// All names.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.known.keys().map(String::as_str).collect()
    }
}

impl Provider {
    /// Digest of all that is told of it to proxies, but for its service.
    pub(crate) fn digest(&self) -> u64 {
        digest_of(&format!(
            "{:?}",
            (
                &self.name,
                &self.cluster,
                self.timeout,
                self.fail_open,
                self.clear_route_cache,
                self.status_on_error,
                self.body,
                &self.http
            )
        ))
    }
}

/// Faults of one provider.
struct Faults<'a> {
    field: &'a str,
    all: &'a mut Vec<(String, bool, String)>,
    any: bool,
}

impl Faults<'_> {
    fn wrong(&mut self, field: &str, message: &str) {
        self.any = true;
        self.tell(field, true, message);
    }

    fn tell(&mut self, field: &str, closes: bool, message: &str) {
        let dot = if field.is_empty() { "" } else { "." };
        self.all.push((format!("{}{dot}{field}", self.field), closes, message.to_owned()));
    }
}

/// What both kinds have.
struct Common<'a> {
    kind: &'static str,
    service: &'a str,
    port: u32,
    timeout: Option<Duration>,
    status: &'a str,
    body: Option<RequestBody>,
    fail_open: bool,
    clear_route_cache: bool,
}

impl<'a> Common<'a> {
    fn of(given: &'a ExtensionProvider) -> Option<(Self, Option<&'a ExtAuthzHttp>)> {
        if let Some(grpc) = &given.envoy_ext_authz_grpc {
            let ExtAuthzGrpc { service, port, timeout, fail_open, clear_route_cache, status_on_error, .. } = grpc;
            let common = Self {
                kind: "envoyExtAuthzGrpc",
                service,
                port: *port,
                timeout: *timeout,
                status: status_on_error,
                body: grpc.include_request_body_in_check,
                fail_open: *fail_open,
                clear_route_cache: *clear_route_cache,
            };
            return Some((common, None));
        }
        let http = given.envoy_ext_authz_http.as_ref()?;
        let common = Self {
            kind: "envoyExtAuthzHttp",
            service: &http.service,
            port: http.port,
            timeout: http.timeout,
            status: &http.status_on_error,
            body: http.include_request_body_in_check,
            fail_open: http.fail_open,
            clear_route_cache: http.clear_route_cache,
        };
        Some((common, Some(http)))
    }
}

fn provider(
    given: &ExtensionProvider,
    services: &[Digested<Service>],
    by_host: &BTreeMap<Hostname, Vec<usize>>,
    faults: &mut Faults<'_>,
) -> Option<Provider> {
    let (common, http) = Common::of(given)?;
    let at = |field: &str| format!("{}.{field}", common.kind);
    if common.timeout.is_some_and(|timeout| timeout < Duration::millis(1)) {
        faults.wrong(&at("timeout"), "The time for an answer must be 1ms or more.");
    }
    let status_on_error = status(common.status).unwrap_or_else(|message| {
        faults.wrong(&at("statusOnError"), &message);
        None
    });
    if common.body.is_some_and(|body| body.max_request_bytes == 0) {
        let field = at("includeRequestBodyInCheck.maxRequestBytes");
        faults.wrong(&field, "How much of a body is sent along must be told: 1 byte or more.");
    }
    if let Some(http) = http {
        particulars(http, &at, faults);
    }
    let number = u16::try_from(common.port).ok().filter(|port| *port > 0);
    if number.is_none() {
        faults.wrong(
            &at("port"),
            &format!("The number {} is not that of a port; give one from 1 to 65535.", common.port),
        );
    }
    let service = match service(common.service, services, by_host) {
        Ok(service) => service,
        Err(message) => {
            faults.wrong(&at("service"), &message);
            return None;
        }
    };
    let number = number?;
    match service.port(number) {
        None => {
            let ports: Vec<String> = service.ports.iter().map(|port| port.number.to_string()).collect();
            let message = format!("The service {} has no port {number}; it has {}.", service.host, ports.join(", "));
            faults.wrong(&at("port"), &message);
        }
        Some(port) if http.is_none() && !matches!(port.protocol, Protocol::Grpc | Protocol::Http2) => {
            let message = format!(
                "The port {number} of {} is not declared to speak gRPC: name it grpc-… or give it appProtocol: grpc; else it may be asked in HTTP/1, which it does not answer.",
                service.host
            );
            faults.tell(&at("port"), false, &message);
        }
        Some(_) => {}
    }
    Some(Provider {
        name: given.name.clone(),
        cluster: ClusterName::outbound(number, "", service.host.as_str()).to_string(),
        service: service.clone(),
        timeout: common.timeout.unwrap_or(PATIENCE),
        fail_open: common.fail_open,
        clear_route_cache: common.clear_route_cache,
        status_on_error,
        body: common.body,
        http: http.cloned(),
    })
}

/// What only the kind that is asked over HTTP has.
fn particulars(http: &ExtAuthzHttp, at: &dyn Fn(&str) -> String, faults: &mut Faults<'_>) {
    let prefix = &http.path_prefix;
    if !prefix.is_empty() && (!prefix.starts_with('/') || prefix.contains(['?', '#', ' '])) {
        faults.wrong(
            &at("pathPrefix"),
            &format!("The path {prefix:?} must begin with a slash and be no more than a path."),
        );
    }
    let lists = [
        ("includeRequestHeadersInCheck", &http.include_request_headers_in_check),
        ("includeHeadersInCheck", &http.include_headers_in_check),
        ("headersToUpstreamOnAllow", &http.headers_to_upstream_on_allow),
        ("headersToDownstreamOnDeny", &http.headers_to_downstream_on_deny),
        ("headersToDownstreamOnAllow", &http.headers_to_downstream_on_allow),
    ];
    for (name, values) in lists {
        for (index, value) in values.iter().enumerate() {
            let inner = value.strip_prefix('*').or_else(|| value.strip_suffix('*')).unwrap_or(value);
            if inner.is_empty() || inner.contains('*') {
                let message = format!(
                    "The text {value:?} names no headers: give a name, or one with a * at its beginning or end; * alone is not taken."
                );
                faults.wrong(&at(&format!("{name}[{index}]")), &message);
            }
        }
    }
    let names = http.include_additional_headers_in_check.iter();
    for (name, _) in names.filter(|(name, _)| name.is_empty() || !name.bytes().all(is_token)) {
        let message = format!("The text {name:?} is not the name of a header.");
        faults.wrong(&at("includeAdditionalHeadersInCheck"), &message);
    }
}

/// A letter of a header's name (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The status by its number; of those that Envoy knows.
fn status(text: &str) -> Result<Option<StatusCode>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let known = text.parse().ok().and_then(|number: i32| StatusCode::try_from(number).ok());
    let known = known.filter(|status| *status != StatusCode::Empty);
    known.map(Some).ok_or_else(|| format!("The text {text:?} is not an HTTP status such as 403 or 503."))
}

/// The service of a name, `HOST` or `NAMESPACE/HOST`, whoever may see it (Istio).
fn service<'a>(
    name: &str,
    services: &'a [Digested<Service>],
    by_host: &BTreeMap<Hostname, Vec<usize>>,
) -> Result<&'a Digested<Service>, String> {
    let (namespace, host) = match name.split_once('/') {
        Some((namespace, host)) => (Some(namespace), host),
        None => (None, name),
    };
    if host.is_empty() {
        return Err("The provider names no service; give its host, such as opa.security.svc.cluster.local.".to_owned());
    }
    let wanted = Hostname::new(host);
    let places = by_host.get(&wanted).into_iter().flatten().map(|place| &services[*place]);
    let found: Vec<&Digested<Service>> =
        places.filter(|service| namespace.is_none_or(|namespace| service.namespace == namespace)).collect();
    match found.as_slice() {
        [] => {
            let near = nearest(host, by_host.keys().map(Hostname::as_str));
            let near = near.map(|near| format!(" Is {near} meant?")).unwrap_or_default();
            Err(format!("The mesh has no service {name:?}; nobody can be asked.{near}"))
        }
        [only] => Ok(only),
        several => {
            let namespaces: Vec<&str> = several.iter().map(|service| service.namespace.as_str()).collect();
            let message =
                format!("Several namespaces have a service {host:?}: {}; write NAMESPACE/HOST.", namespaces.join(", "));
            Err(message)
        }
    }
}
