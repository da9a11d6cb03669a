//! Small constructors for Envoy's types.

use api::object::ObjectKey;
use api::value::Duration;
use api::xds::core::{
    Address, AggregatedConfigSource, ApiConfigSource, ApiVersion, CidrRange, ConfigSource, GrpcService, Metadata,
    SocketAddress, TransportSocket, address::Address as Choice, api_config_source::ApiType,
    config_source::ConfigSourceSpecifier, grpc_service, socket_address::PortSpecifier, transport_socket::ConfigType,
};
use api::xds::{json_to_struct, pack};
use envoy_types::pb::google::protobuf::{BoolValue, Duration as ProtoDuration, UInt32Value};
use prost::{Message, Name};
use serde_json::Value;

pub(super) fn some_u32(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(super) fn some_bool(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

pub(super) fn some_duration(duration: Duration) -> Option<ProtoDuration> {
    Some(duration.proto())
}

/// `address:port` over TCP.
pub(super) fn socket(address: &str, port: u16) -> Option<Address> {
    Some(Address {
        address: Some(Choice::SocketAddress(SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(port))),
            ..SocketAddress::default()
        })),
    })
}

/// Resources that come over the stream on which this one came.
pub(super) fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    })
}

/// Resources that come from the proxy's own agent: the workload's certificate and the mesh's authorities.
pub(super) fn agent() -> Option<ConfigSource> {
    let service = GrpcService {
        target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(grpc_service::EnvoyGrpc {
            cluster_name: "sds-grpc".into(),
            ..Default::default()
        })),
        ..GrpcService::default()
    };
    Some(ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        initial_fetch_timeout: some_duration(Duration::default()),
        config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(ApiConfigSource {
            api_type: ApiType::Grpc as i32,
            transport_api_version: ApiVersion::V3 as i32,
            grpc_services: vec![service],
            set_node_on_first_message_only: true,
            ..ApiConfigSource::default()
        })),
        ..ConfigSource::default()
    })
}

/// A transport socket of a named kind.
pub(super) fn transport_socket<M: Message + Name>(name: &str, config: &M) -> TransportSocket {
    TransportSocket { name: name.to_owned(), config_type: Some(ConfigType::TypedConfig(pack(config))) }
}

/// Metadata of one or more filters.
pub(super) fn metadata<'a>(filters: impl IntoIterator<Item = (&'a str, Value)>) -> Option<Metadata> {
    Some(Metadata {
        filter_metadata: filters.into_iter().map(|(name, fields)| (name.to_owned(), json_to_struct(&fields))).collect(),
        ..Metadata::default()
    })
}

/// An address or a range; nothing if the text is neither.
pub(super) fn cidr(text: &str) -> Option<CidrRange> {
    let network: ipnet::IpNet =
        text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(ipnet::IpNet::from))?;
    Some(CidrRange {
        address_prefix: network.network().to_string(),
        prefix_len: some_u32(u32::from(network.prefix_len())),
    })
}

/// The same of any object, by its key: the kind in words with dashes, as Istio writes it.
pub(super) fn object_path(key: &ObjectKey) -> String {
    let row = key.kind.row();
    let root = if row.group.is_empty() { "api".to_owned() } else { format!("apis/{}", row.group) };
    let mut kind = String::new();
    for letter in row.name.chars() {
        if letter.is_ascii_uppercase() && !kind.is_empty() {
            kind.push('-');
        }
        kind.push(letter.to_ascii_lowercase());
    }
    format!("/{root}/v1/namespaces/{}/{kind}/{}", key.namespace, key.name)
}

/// `/apis/networking.istio.io/v1/namespaces/NS/KIND/NAME`, which tools show beside a resource.
pub(super) fn config_path(kind: &str, namespace: &str, name: &str) -> String {
    format!("/apis/networking.istio.io/v1/namespaces/{namespace}/{kind}/{name}")
}
