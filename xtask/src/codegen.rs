//! Makes `crates/api/src/json/descriptors.bin`: the descriptors of the messages that the mesh writes or reads, and of all
//! that these hold, without comments. Read from the `types.bin` of the `envoy-types` crate and from our own `proto/`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use prost::Message;
use prost_reflect::prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};

/// Messages that stand in an `Any`, or that tools show; what they hold comes along.
const ROOTS: &[&str] = &[
    "envoy.admin.v3.ClustersConfigDump",
    "envoy.admin.v3.ConfigDump",
    "envoy.admin.v3.EndpointsConfigDump",
    "envoy.admin.v3.ListenersConfigDump",
    "envoy.admin.v3.RoutesConfigDump",
    "envoy.admin.v3.SecretsConfigDump",
    "envoy.config.bootstrap.v3.Bootstrap",
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.core.v3.TypedExtensionConfig",
    "envoy.config.endpoint.v3.ClusterLoadAssignment",
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.RouteConfiguration",
    "envoy.extensions.access_loggers.file.v3.FileAccessLog",
    "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
    "envoy.extensions.filters.http.cors.v3.Cors",
    "envoy.extensions.filters.http.cors.v3.CorsPolicy",
    "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
    "envoy.extensions.filters.http.fault.v3.HTTPFault",
    "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
    "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
    "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
    "envoy.extensions.filters.http.rbac.v3.RBAC",
    "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
    "envoy.extensions.filters.http.router.v3.Router",
    "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    "envoy.extensions.filters.listener.original_src.v3.OriginalSrc",
    "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
    "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz",
    "envoy.extensions.filters.network.rbac.v3.RBAC",
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig",
    "envoy.extensions.http.original_ip_detection.xff.v3.XffConfig",
    "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
    "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
    "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
    "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
    "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
    "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
    "envoy.extensions.transport_sockets.tls.v3.Secret",
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions",
    "envoy.service.discovery.v3.DeltaDiscoveryRequest",
    "envoy.service.discovery.v3.DeltaDiscoveryResponse",
    "envoy.service.discovery.v3.DiscoveryRequest",
    "envoy.service.discovery.v3.DiscoveryResponse",
];

/// Our own protos.
const OWN: &[&str] = &[
    "istio/v1/auth/ca.proto",
    "stats/config.proto",
    "io/istio/http/peer_metadata/config.proto",
    "istio/envoy/config/filter/http/alpn/v2alpha1/config.proto",
    "envoy/tcp/metadataexchange/config.proto",
    "istio/networking/nds/v1/nds.proto",
];

/// Writes the file.
///
/// # Errors
/// The crate `envoy-types` is not found, or a proto cannot be compiled.
pub(crate) fn run() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let bytes =
        std::fs::read(envoy_types()?.join("src/generated/types.bin")).context("reading types.bin of envoy-types")?;
    let mut files = FileDescriptorSet::decode(bytes.as_slice())?.file;
    let own = protox::compile(OWN, [root.join("proto")])?;
    let mut roots: BTreeSet<String> = ROOTS.iter().map(|name| format!(".{name}")).collect();
    for file in own.file {
        if !files.iter().any(|known| known.name == file.name) {
            let package = file.package().to_owned();
            roots.extend(file.message_type.iter().map(|message| format!(".{package}.{}", message.name())));
            files.push(file);
        }
    }
    let kept = closure(files, roots);
    let out = root.join("crates/api/src/json/descriptors.bin");
    std::fs::write(&out, FileDescriptorSet { file: kept }.encode_to_vec())?;
    Ok(())
}

fn envoy_types() -> Result<PathBuf> {
    let output = Command::new(env!("CARGO")).args(["metadata", "--format-version", "1"]).output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| package["manifest_path"].as_str())
        .context("cargo metadata knows no crate envoy-types")?;
    Ok(Path::new(manifest).parent().context("a manifest without a folder")?.to_path_buf())
}

/// Keeps the messages and enums that can be reached from the roots; a nested message keeps its outermost one.
fn closure(files: Vec<FileDescriptorProto>, roots: BTreeSet<String>) -> Vec<FileDescriptorProto> {
    let mut outermost: BTreeMap<String, (usize, String)> = BTreeMap::new();
    let mut messages: BTreeMap<String, &DescriptorProto> = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        let package = format!(".{}", file.package());
        for message in &file.message_type {
            let top = format!("{package}.{}", message.name());
            messages.insert(top.clone(), message);
            let mut names = vec![];
            names_inside(message, &top, &mut names);
            outermost.extend(names.into_iter().map(|name| (name, (index, top.clone()))));
        }
        for one in &file.enum_type {
            let name = format!("{package}.{}", one.name());
            outermost.insert(name.clone(), (index, name));
        }
    }
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    let mut open: Vec<String> = roots.into_iter().collect();
    while let Some(name) = open.pop() {
        let Some((_, top)) = outermost.get(&name) else { continue };
        if wanted.insert(top.clone())
            && let Some(message) = messages.get(top)
        {
            types_inside(message, &mut open);
        }
    }
    let used_files: BTreeSet<usize> =
        wanted.iter().filter_map(|top| outermost.get(top)).map(|(index, _)| *index).collect();
    let names: BTreeSet<String> = used_files.iter().map(|index| files[*index].name().to_owned()).collect();
    let mut kept = Vec::new();
    for index in used_files {
        let mut file = files[index].clone();
        let package = format!(".{}", file.package());
        file.message_type.retain(|message| wanted.contains(&format!("{package}.{}", message.name())));
        file.enum_type.retain(|one| wanted.contains(&format!("{package}.{}", one.name())));
        file.message_type.iter_mut().for_each(strip);
        for one in &mut file.enum_type {
            one.options = None;
            one.value.iter_mut().for_each(|value| value.options = None);
        }
        file.dependency.retain(|name| names.contains(name));
        file.public_dependency.clear();
        file.weak_dependency.clear();
        file.service.clear();
        file.extension.clear();
        file.options = None;
        file.source_code_info = None;
        kept.push(file);
    }
    kept
}

fn names_inside(message: &DescriptorProto, name: &str, out: &mut Vec<String>) {
    out.push(name.to_owned());
    for inner in &message.nested_type {
        names_inside(inner, &format!("{name}.{}", inner.name()), out);
    }
    out.extend(message.enum_type.iter().map(|one| format!("{name}.{}", one.name())));
}

fn types_inside(message: &DescriptorProto, out: &mut Vec<String>) {
    out.extend(message.field.iter().filter_map(|field| field.type_name.clone()));
    message.nested_type.iter().for_each(|inner| types_inside(inner, out));
}

/// Options are extensions of other files (validation, annotations); only those of maps and packed fields count here.
fn strip(message: &mut DescriptorProto) {
    if let Some(options) = &message.options {
        let map_entry = options.map_entry;
        message.options = map_entry
            .map(|truth| prost_reflect::prost_types::MessageOptions { map_entry: Some(truth), ..Default::default() });
    }
    for field in &mut message.field {
        let packed = field.options.as_ref().and_then(|options| options.packed);
        field.options =
            packed.map(|truth| prost_reflect::prost_types::FieldOptions { packed: Some(truth), ..Default::default() });
    }
    for one in &mut message.enum_type {
        one.options = None;
        one.value.iter_mut().for_each(|value| value.options = None);
    }
    message.oneof_decl.iter_mut().for_each(|one| one.options = None);
    message.extension.clear();
    message.nested_type.iter_mut().for_each(strip);
}
