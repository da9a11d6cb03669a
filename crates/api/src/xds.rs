//! Envoy's xDS v3 types, the table of resource kinds, and packing into `Any`.

use envoy_types::pb::google::protobuf::value::Kind as ValueKind;
use envoy_types::pb::google::protobuf::{ListValue, Value as ProtoValue};
use prost::{Message, Name};
use serde_json::Value as Json;

pub use envoy_types::pb::envoy::config::core::v3 as core;
pub use envoy_types::pb::google::protobuf::{Any, Struct};

/// The certificate service of Istio, generated from `proto/istio/v1/auth/ca.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}

/// Configuration of `istio.stats`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod stats {
    tonic::include_proto!("stats");
}

/// Configuration of `istio.peer_metadata`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod peer_metadata {
    tonic::include_proto!("io.istio.http.peer_metadata");
}

/// Configuration of `istio.alpn`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod alpn {
    tonic::include_proto!("istio.envoy.config.filter.http.alpn.v2alpha1");
}

/// Configuration of `envoy.filters.network.metadata_exchange`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod metadata_exchange {
    tonic::include_proto!("envoy.tcp.metadataexchange.config");
}

/// The table of names that a proxy answers by itself where it captures DNS.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod nds {
    tonic::include_proto!("istio.networking.nds.v1");
}

/// Name (`kid`) of the key that stands for keys of an issuer of tokens that are not known yet: Envoy takes no key set without a key.
pub const UNKNOWN_KEY: &str = "keys-not-fetched";

/// The application protocol of TLS connections that begin with the metadata of both ends (Istio `istio-peer-exchange`).
pub const PEER_EXCHANGE: &str = "istio-peer-exchange";

/// A kind of xDS resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKind {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoint,
    /// LDS.
    Listener,
    /// RDS.
    Route,
    /// SDS.
    Secret,
    /// NDS: only for proxies that capture DNS.
    NameTable,
}

/// One row of the table of kinds.
#[derive(Clone, Copy, Debug)]
pub struct KindRow {
    /// The kind.
    pub kind: ResourceKind,
    /// `type.googleapis.com/…`.
    pub type_url: &'static str,
    /// The three letters that tools show.
    pub short: &'static str,
    /// The word that Istio's `syncz` shows.
    pub name: &'static str,
    /// Asked for with no names, all resources of the kind are meant.
    pub wildcard: bool,
}

/// All kinds, in the order in which they are pushed: what is pointed at comes before what points at it.
pub const KINDS: &[KindRow] = &[
    KindRow {
        kind: ResourceKind::Cluster,
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        short: "CDS",
        name: "cluster",
        wildcard: true,
    },
    KindRow {
        kind: ResourceKind::Endpoint,
        type_url: "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        short: "EDS",
        name: "endpoint",
        wildcard: false,
    },
    KindRow {
        kind: ResourceKind::Listener,
        type_url: "type.googleapis.com/envoy.config.listener.v3.Listener",
        short: "LDS",
        name: "listener",
        wildcard: true,
    },
    KindRow {
        kind: ResourceKind::Route,
        type_url: "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        short: "RDS",
        name: "route",
        wildcard: false,
    },
    KindRow {
        kind: ResourceKind::Secret,
        type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        short: "SDS",
        name: "secret",
        wildcard: false,
    },
    KindRow {
        kind: ResourceKind::NameTable,
        type_url: "type.googleapis.com/istio.networking.nds.v1.NameTable",
        short: "NDS",
        name: "nametable",
        wildcard: true,
    },
];

impl ResourceKind {
    /// The kind's row.
    pub fn row(self) -> &'static KindRow {
        &KINDS[self as usize]
    }

    /// `type.googleapis.com/…`.
    pub fn type_url(self) -> &'static str {
        self.row().type_url
    }

    /// The kind of a type URL.
    pub fn of(type_url: &str) -> Option<Self> {
        KINDS.iter().find(|row| row.type_url == type_url).map(|row| row.kind)
    }
}

/// Packs a message with its `type.googleapis.com/…` URL.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// Unpacks a message if it is of this type.
///
/// # Errors
/// Another type, or bytes that are not such a message; the sentence says which.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, String> {
    if any.type_url != M::type_url() {
        return Err(format!("expected {}, found {:?}", M::type_url(), any.type_url));
    }
    M::decode(any.value.as_slice()).map_err(|error| format!("{} cannot be decoded: {error}", M::type_url()))
}

/// JSON of a protobuf struct.
pub fn struct_to_json(message: &Struct) -> Json {
    Json::Object(message.fields.iter().map(|(key, value)| (key.clone(), value_to_json(value))).collect())
}

fn value_to_json(value: &ProtoValue) -> Json {
    match &value.kind {
        None | Some(ValueKind::NullValue(_)) => Json::Null,
        Some(ValueKind::NumberValue(number)) if number.fract() == 0.0 && number.abs() < 9e15 => {
            Json::from(*number as i64)
        }
        Some(ValueKind::NumberValue(number)) => Json::from(*number),
        Some(ValueKind::StringValue(text)) => Json::from(text.clone()),
        Some(ValueKind::BoolValue(truth)) => Json::from(*truth),
        Some(ValueKind::StructValue(inner)) => struct_to_json(inner),
        Some(ValueKind::ListValue(list)) => list.values.iter().map(value_to_json).collect(),
    }
}

/// Protobuf struct of a JSON object; anything but an object becomes an empty struct.
pub fn json_to_struct(json: &Json) -> Struct {
    match json {
        Json::Object(map) => {
            Struct { fields: map.iter().map(|(key, value)| (key.clone(), json_to_value(value))).collect() }
        }
        _ => Struct::default(),
    }
}

/// Protobuf value of a JSON value.
pub fn json_to_value(json: &Json) -> ProtoValue {
    let kind = match json {
        Json::Null => ValueKind::NullValue(0),
        Json::Bool(truth) => ValueKind::BoolValue(*truth),
        Json::Number(number) => ValueKind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => ValueKind::StringValue(text.clone()),
        Json::Array(items) => ValueKind::ListValue(ListValue { values: items.iter().map(json_to_value).collect() }),
        Json::Object(_) => ValueKind::StructValue(json_to_struct(json)),
    };
    ProtoValue { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
    use envoy_types::pb::envoy::config::listener::v3::Listener;
    use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;

    #[test]
    fn the_table_of_kinds_is_in_order_and_true() {
        for (place, row) in KINDS.iter().enumerate() {
            assert_eq!(row.kind as usize, place);
            assert_eq!(ResourceKind::of(row.type_url), Some(row.kind));
        }
        assert_eq!(Cluster::type_url(), ResourceKind::Cluster.type_url());
        assert_eq!(ClusterLoadAssignment::type_url(), ResourceKind::Endpoint.type_url());
        assert_eq!(Listener::type_url(), ResourceKind::Listener.type_url());
        assert_eq!(RouteConfiguration::type_url(), ResourceKind::Route.type_url());
        assert_eq!(Secret::type_url(), ResourceKind::Secret.type_url());
        assert_eq!(nds::NameTable::type_url(), ResourceKind::NameTable.type_url());
        assert_eq!(stats::PluginConfig::type_url(), "type.googleapis.com/stats.PluginConfig");
    }

    #[test]
    fn packing_is_undone_by_unpacking_and_other_types_are_refused() {
        let cluster = Cluster { name: "a".into(), ..Cluster::default() };
        let any = pack(&cluster);
        assert_eq!(unpack::<Cluster>(&any).unwrap(), cluster);
        assert!(unpack::<Listener>(&any).unwrap_err().contains("expected"));
        assert!(unpack::<Cluster>(&Any { value: vec![0xff], ..any }).unwrap_err().contains("cannot be decoded"));
    }

    #[test]
    fn structs_and_json_are_the_same_thing() {
        let json = serde_json::json!({"a": [1, 2.5, true, null, "x"], "b": {"c": {}}});
        assert_eq!(struct_to_json(&json_to_struct(&json)), json);
    }
}
