//! The table of HTTP filters: type URL of a configuration to what is made of it. One row a filter.

pub mod cors;
pub mod fault;
pub mod jwt;
pub mod rbac;
pub mod ext_authz;

use std::sync::Arc;

use api::xds::Any;

use crate::filter::HttpFilter;

/// What a filter's configuration becomes.
#[derive(Debug)]
pub enum Compiled {
    /// A filter that is asked for every request.
    Filter(Arc<dyn HttpFilter>),
    /// A filter that does nothing until a route overrides it.
    Idle,
    /// The router, the end of the chain.
    Router,
    /// Istio's metrics.
    Stats,
    /// Istio's protocol names on mesh connections.
    Alpn,
    /// Istio's peer metadata.
    PeerMetadata(crate::snapshot::chain::PeerMetadata),
    /// gRPC statistics: counted with Istio's metrics.
    GrpcStats,
}

/// One row.
pub struct Row {
    /// Last part of the configuration's type URL.
    pub type_name: &'static str,
    /// Makes the filter.
    pub compile: fn(&Any) -> Result<Compiled, String>,
}

/// All filters.
pub const TABLE: &[Row] = &[
    Row { type_name: "envoy.extensions.filters.http.router.v3.Router", compile: |_| Ok(Compiled::Router) },
    Row { type_name: "envoy.extensions.filters.http.fault.v3.HTTPFault", compile: fault::compile },
    Row { type_name: "envoy.extensions.filters.http.cors.v3.Cors", compile: |_| Ok(Compiled::Idle) },
    Row { type_name: "envoy.extensions.filters.http.cors.v3.CorsPolicy", compile: cors::compile },
    Row { type_name: "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication", compile: jwt::compile },
    Row { type_name: "envoy.extensions.filters.http.rbac.v3.RBAC", compile: rbac::compile },
    Row { type_name: "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz", compile: ext_authz::compile },
    Row { type_name: "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig", compile: |_| Ok(Compiled::GrpcStats) },
    Row {
        type_name: "stats.PluginConfig",
        compile: |any| api::xds::unpack::<api::xds::stats::PluginConfig>(any).map(|_| Compiled::Stats),
    },
    Row { type_name: "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig", compile: |_| Ok(Compiled::Alpn) },
    Row { type_name: "io.istio.http.peer_metadata.Config", compile: peer_metadata },
];

/// Makes a filter of its configuration.
///
/// # Errors
/// An unknown type, or a configuration that cannot be read or asks for what is not built.
pub fn compile(any: &Any) -> Result<Compiled, String> {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    match TABLE.iter().find(|row| row.type_name == name) {
        Some(row) => (row.compile)(any),
        None => Err(format!("the HTTP filter {name:?} is not known to this proxy")),
    }
}

fn peer_metadata(any: &Any) -> Result<Compiled, String> {
    use api::xds::peer_metadata::Config;
    use api::xds::peer_metadata::config::{discovery_method, propagation_method};
    let config: Config = api::xds::unpack(any)?;
    let reads = |methods: &[api::xds::peer_metadata::config::DiscoveryMethod]| {
        methods
            .iter()
            .any(|method| matches!(method.method_specifier, Some(discovery_method::MethodSpecifier::IstioHeaders(_))))
    };
    let writes = |methods: &[api::xds::peer_metadata::config::PropagationMethod]| {
        methods
            .iter()
            .any(|method| matches!(method.method_specifier, Some(propagation_method::MethodSpecifier::IstioHeaders(_))))
    };
    Ok(Compiled::PeerMetadata(crate::snapshot::chain::PeerMetadata {
        from_client: reads(&config.downstream_discovery),
        from_upstream: reads(&config.upstream_discovery),
        to_client: writes(&config.downstream_propagation),
        to_upstream: writes(&config.upstream_propagation),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_unique_and_unknown_types_are_named() {
        let names: std::collections::HashSet<_> = TABLE.iter().map(|row| row.type_name).collect();
        assert_eq!(names.len(), TABLE.len());
        let unknown = Any { type_url: "type.googleapis.com/x.Unknown".into(), value: vec![] };
        assert!(compile(&unknown).unwrap_err().contains("x.Unknown"));
        for row in TABLE {
            let empty = Any { type_url: format!("type.googleapis.com/{}", row.type_name), value: vec![] };
            assert!(compile(&empty).is_ok(), "{} does not take its empty configuration", row.type_name);
        }
    }
}
