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
    let mut priorities: Vec<Vec<Endpoint>> = Vec::new();
    for group in &assignment.endpoints {
        let priority = group.priority as usize;
        if priority > 128 {
            return Err(format!("the priority {priority} is beyond 128"));
        }
        if priorities.len() <= priority {
            priorities.resize_with(priority + 1, Vec::new);
        }
        for endpoint in &group.lb_endpoints {
            priorities[priority].push(one(endpoint, group)?);
        }
    }
    reduce(&mut priorities);
    let priorities = priorities.into_iter().map(|group| group.into_iter().map(Arc::new).collect()).collect();
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

/// Shares of a locality's weight are kept to a thousandth.
const PRECISION: u64 = 1000;

fn own_weight(endpoint: &LbEndpoint) -> u64 {
    endpoint.load_balancing_weight.map_or(1, |weight| u64::from(weight.value.max(1)))
}

/// Weights in their smallest terms, by priority: equal ones become 1.
fn reduce(priorities: &mut [Vec<Endpoint>]) {
    for group in priorities {
        let divisor = group.iter().fold(0, |divisor, endpoint| gcd(divisor, endpoint.weight)).max(1);
        group.iter_mut().for_each(|endpoint| endpoint.weight /= divisor);
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn one(endpoint: &LbEndpoint, group: &LocalityLbEndpoints) -> Result<Endpoint, String> {
    let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else {
        return Err("an endpoint has no address".to_owned());
    };
    let Some(address) = &host.address else { return Err("an endpoint has no address".to_owned()) };
    let own = own_weight(endpoint);
    // A locality's weight is shared by its endpoints, whatever their number.
    let weight = match group.load_balancing_weight {
        None => own * PRECISION,
        Some(locality) => {
            let sum: u64 = group.lb_endpoints.iter().map(own_weight).sum();
            (u64::from(locality.value) * own * PRECISION / sum.max(1)).max(1)
        }
    };
    let place = group.locality.clone().unwrap_or_default();
    Ok(Endpoint {
        place: place_of(address)?,
        hostname: host.hostname.clone(),
        weight: u32::try_from(weight).unwrap_or(u32::MAX),
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

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::endpoint::v3::Endpoint as XdsEndpoint;
    use envoy_types::pb::google::protobuf::UInt32Value;

    fn group(last: u8, own: &[Option<u32>], weight: Option<u32>) -> LocalityLbEndpoints {
        let value = |weight: u32| UInt32Value { value: weight };
        let endpoint = |(number, own): (usize, &Option<u32>)| LbEndpoint {
            host_identifier: Some(HostIdentifier::Endpoint(XdsEndpoint {
                address: Some(crate::compile::tests_address(&format!("10.0.{last}.{number}"), 80)),
                ..XdsEndpoint::default()
            })),
            load_balancing_weight: own.map(value),
            ..LbEndpoint::default()
        };
        LocalityLbEndpoints {
            lb_endpoints: own.iter().enumerate().map(endpoint).collect(),
            load_balancing_weight: weight.map(value),
            ..LocalityLbEndpoints::default()
        }
    }

    fn weights(groups: Vec<LocalityLbEndpoints>) -> Vec<u32> {
        let compiled =
            compile(&ClusterLoadAssignment { endpoints: groups, ..ClusterLoadAssignment::default() }).unwrap();
        compiled.priorities[0].iter().map(|endpoint| endpoint.weight).collect()
    }

    #[test]
    fn a_localitys_weight_is_shared_by_its_endpoints() {
        assert_eq!(weights(vec![group(1, &[None, None], None), group(2, &[None], None)]), [1, 1, 1]);
        // Istio's servers give each locality the sum of its endpoints' weights: nothing changes.
        assert_eq!(weights(vec![group(1, &[None, None, None], Some(3)), group(2, &[None], Some(1))]), [1, 1, 1, 1]);
        // Half each, though one has more endpoints.
        assert_eq!(weights(vec![group(1, &[None, None], Some(50)), group(2, &[None], Some(50))]), [1, 1, 2]);
        assert_eq!(weights(vec![group(1, &[Some(3), Some(1)], Some(80)), group(2, &[None], Some(20))]), [3, 1, 1]);
    }
}
