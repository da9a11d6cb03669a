//! Endpoints.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use api::xds::Any;
use api::xds::core::address::Address as AddressKind;
use api::xds::core::socket_address::PortSpecifier;
use api::xds::core::{Address, Metadata};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints};
use envoy_types::pb::google::protobuf::value::Kind;

use crate::snapshot::endpoint::{Endpoint, Endpoints, Place};

/// Compiles an EDS resource.
///
/// # Errors
/// An address that cannot be used.
pub fn compile_any(any: &Any) -> Result<Endpoints, String> {
    compile(&api::xds::unpack(any)?)
}

/// Compiles an assignment.
pub(crate) fn compile(assignment: &ClusterLoadAssignment) -> Result<Endpoints, String> {
    let mut priorities: Vec<Vec<Arc<Endpoint>>> = Vec::new();
    for group in &assignment.endpoints {
        let priority = group.priority as usize;
        if priority > 128 {
            return Err(format!("the priority {priority} is beyond 128"));
        }
        if priorities.len() <= priority {
            priorities.resize_with(priority + 1, Vec::new);
        }
        for endpoint in &group.lb_endpoints {
            priorities[priority].push(Arc::new(one(endpoint, group)?));
        }
    }
    let policy = assignment.policy.clone().unwrap_or_default();
    let drops = policy
        .drop_overloads
        .iter()
        .filter_map(|overload| overload.drop_percentage.as_ref())
        .map(crate::leaf::millionths);
    Ok(Endpoints {
        priorities,
        drop_millionths: drops.fold(0, u32::saturating_add).min(1_000_000),
        overprovisioning: policy.overprovisioning_factor.map_or(140, |factor| factor.value.max(1)),
    })
}

fn one(endpoint: &LbEndpoint, group: &LocalityLbEndpoints) -> Result<Endpoint, String> {
    let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else {
        return Err("an endpoint has no address".to_owned());
    };
    let Some(address) = &host.address else { return Err("an endpoint has no address".to_owned()) };
    let own = endpoint.load_balancing_weight.map_or(1, |weight| weight.value.max(1));
    let locality = group.load_balancing_weight.map_or(1, |weight| weight.value.max(1));
    let place = group.locality.clone().unwrap_or_default();
    Ok(Endpoint {
        place: place_of(address)?,
        hostname: host.hostname.clone(),
        weight: own.saturating_mul(if group.load_balancing_weight.is_some() { locality } else { 1 }),
        // HealthStatus: UNKNOWN 0, HEALTHY 1, UNHEALTHY 2, DRAINING 3, TIMEOUT 4, DEGRADED 5.
        healthy: matches!(endpoint.health_status, 0 | 1 | 5),
        socket_match: texts(endpoint.metadata.as_ref(), "envoy.transport_socket_match"),
        workload: texts(endpoint.metadata.as_ref(), "istio").get("workload").map(|text| text.as_str().into()),
        locality: [place.region, place.zone, place.sub_zone].join("/").trim_end_matches('/').into(),
    })
}

fn texts(metadata: Option<&Metadata>, key: &str) -> BTreeMap<String, String> {
    let Some(values) = metadata.and_then(|metadata| metadata.filter_metadata.get(key)) else { return BTreeMap::new() };
    texts_of(values)
}

/// The texts among a struct's values.
pub(crate) fn texts_of(values: &api::xds::Struct) -> BTreeMap<String, String> {
    values
        .fields
        .iter()
        .filter_map(|(key, value)| match &value.kind {
            Some(Kind::StringValue(text)) => Some((key.clone(), text.clone())),
            _ => None,
        })
        .collect()
}

/// An address of a resource.
pub(crate) fn place_of(address: &Address) -> Result<Place, String> {
    match &address.address {
        Some(AddressKind::SocketAddress(socket)) => {
            if socket.protocol != 0 {
                return Err(format!("{}: only TCP is proxied", socket.address));
            }
            let port = match &socket.port_specifier {
                Some(PortSpecifier::PortValue(port)) => {
                    u16::try_from(*port).map_err(|_| format!("{port} is not a port"))?
                }
                None => 0,
                Some(PortSpecifier::NamedPort(name)) => return Err(format!("the named port {name:?} is not known")),
            };
            match socket.address.parse() {
                Ok(ip) => Ok(Place::Socket(SocketAddr::new(ip, port))),
                Err(_) if !socket.address.is_empty() => Ok(Place::Name(socket.address.clone(), port)),
                Err(_) => Err("an address is empty".to_owned()),
            }
        }
        Some(AddressKind::Pipe(pipe)) => Ok(Place::Unix(pipe.path.clone())),
        Some(AddressKind::EnvoyInternalAddress(_)) => Err("internal addresses are not built".to_owned()),
        None => Err("an address is empty".to_owned()),
    }
}
