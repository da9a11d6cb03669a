//! Who a proxy is: read from its xDS node and from its verified certificate or token.

use std::net::IpAddr;

use api::mesh_config::{MeshConfig, preserve_http1_header_case};
use api::node::{NodeId, NodeMetadata, Role, has_extension};
use api::spiffe::SpiffeId;
use api::value::Labels;
use api::xds::core::Node;

/// Filters that only Istio's Envoy and our proxy have built in, by the name a node lists them under.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extensions {
    /// `istio.metadata_exchange`, in HTTP headers.
    pub metadata_exchange: bool,
    /// `envoy.filters.network.metadata_exchange`, in front of the bytes of a TCP connection.
    pub peer_exchange: bool,
    /// `istio.stats`.
    pub stats: bool,
    /// `istio.alpn`.
    pub alpn: bool,
}

/// How a workload's traffic gets to its proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Interception {
    /// Redirected by packet filter rules.
    #[default]
    Captured,
    /// The same on its way out; on its way in it keeps its addresses, and the application sees its caller's (TPROXY).
    Transparent,
    /// Applications talk to the proxy's listeners.
    None,
    /// The node does not say: `defaultConfig.interceptionMode` of the mesh counts.
    Unsaid,
}

impl Interception {
    /// Istio's word for it; none if it is not one.
    pub(crate) fn named(word: &str) -> Option<Interception> {
        match word.to_ascii_uppercase().as_str() {
            "" => Some(Interception::Unsaid),
            "NONE" => Some(Interception::None),
            "REDIRECT" => Some(Interception::Captured),
            "TPROXY" => Some(Interception::Transparent),
            _ => None,
        }
    }

    /// Packet filter rules bring the traffic.
    pub(crate) fn is_captured(self) -> bool {
        matches!(self, Interception::Captured | Interception::Transparent)
    }

    /// What counts for a proxy, with what the mesh says of those that do not say.
    pub(crate) fn or_of(self, mesh: &MeshConfig) -> Interception {
        let word = mesh.default_config.as_ref().and_then(|config| config.get("interceptionMode")?.as_str());
        match (self, Interception::named(word.unwrap_or_default())) {
            (Interception::Unsaid, None | Some(Interception::Unsaid)) => Interception::Captured,
            (Interception::Unsaid, Some(told)) => told,
            (own, _) => own,
        }
    }
}

/// A proxy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProxyIdentity {
    /// Sidecar or gateway.
    pub role: Role,
    /// Workload instance's name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Domain of the cluster, `cluster.local`.
    pub domain: String,
    /// Addresses, first the one of the node id.
    pub addresses: Vec<IpAddr>,
    /// Labels as the node says; those of the workload known by address override them.
    pub labels: Labels,
    /// Service account; empty if the node names none and nothing was verified.
    pub service_account: String,
    /// Cluster.
    pub cluster_id: String,
    /// Network.
    pub network: String,
    /// It is no proxy but a gRPC client that takes its configuration itself (Istio `GENERATOR: grpc`).
    pub proxyless: bool,
    /// How traffic gets here.
    pub interception: Interception,
    /// Whether it answers the workload's DNS questions, and so uses the addresses that the mesh gives to names.
    pub dns_capture: bool,
    /// Whether HTTP/1 header names keep their spelling; the mesh's `defaultConfig` counts if the node does not say.
    pub preserve_header_case: Option<bool>,
    /// Filters built in.
    pub extensions: Extensions,
    /// Whether the identity was proved; Secrets are only for those.
    pub verified: bool,
}

impl ProxyIdentity {
    /// Reads the node, and holds it against the verified identity.
    ///
    /// # Errors
    /// A node id that cannot be read, or a claim that differs from what was proved; a sentence.
    pub fn of(node: &Node, verified: Option<&SpiffeId>) -> Result<ProxyIdentity, String> {
        let id: NodeId = node.id.parse().map_err(|error: api::node::BadNodeId| error.to_string())?;
        let metadata = NodeMetadata::of(node);
        if !metadata.namespace.is_empty() && metadata.namespace != id.namespace {
            return Err(format!(
                "the node says namespace {:?} in its metadata and {:?} in its id; they must be the same",
                metadata.namespace, id.namespace
            ));
        }
        let mut service_account = metadata.service_account.clone();
        if let Some(proved) = verified {
            if proved.namespace != id.namespace {
                return Err(format!(
                    "the identity {proved} is not of namespace {:?}, which the node claims",
                    id.namespace
                ));
            }
            if !service_account.is_empty() && proved.service_account != service_account {
                return Err(format!(
                    "the identity {proved} is not of service account {service_account:?}, which the node claims"
                ));
            }
            service_account.clone_from(&proved.service_account);
        }
        let mut addresses = vec![id.address];
        for address in metadata.instance_ips.split(',').filter_map(|text| text.trim().parse().ok()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let domain = id.dns_domain.split_once(".svc.").map_or("cluster.local", |(_, domain)| domain).to_owned();
        Ok(ProxyIdentity {
            role: id.role,
            name: id.name,
            namespace: id.namespace,
            domain,
            addresses,
            labels: metadata.labels,
            service_account,
            cluster_id: metadata.cluster_id,
            network: metadata.network,
            proxyless: match metadata.generator.as_str() {
                "" => false,
                "grpc" => true,
                other => return Err(format!("there is no generator {other:?}: \"grpc\" is the only one besides none")),
            },
            interception: Interception::named(&metadata.interception_mode).unwrap_or_default(),
            dns_capture: metadata.dns_capture == "true",
            preserve_header_case: preserve_http1_header_case(&metadata.proxy_config),
            extensions: Extensions {
                metadata_exchange: has_extension(node, "istio.metadata_exchange"),
                peer_exchange: has_extension(node, "envoy.filters.network.metadata_exchange"),
                stats: has_extension(node, "istio.stats"),
                alpn: has_extension(node, "istio.alpn"),
            },
            verified: verified.is_some(),
        })
    }

    /// Whether HTTP/1 header names keep their spelling on their way through this proxy.
    pub(crate) fn preserves_header_case(&self, mesh: &MeshConfig) -> bool {
        self.preserve_header_case
            .or_else(|| preserve_http1_header_case(mesh.default_config.as_ref()?))
            .unwrap_or_default()
    }

    /// The proxy's first address.
    pub fn address(&self) -> IpAddr {
        self.addresses.first().copied().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
    }

    /// Where "all addresses" is for this proxy. Several workloads may share one machine, each with a loopback address of
    /// its own; then it is that address.
    pub fn wildcard(&self) -> String {
        match self.address() {
            address if address.is_loopback() => address.to_string(),
            IpAddr::V4(_) => "0.0.0.0".into(),
            IpAddr::V6(_) => "::".into(),
        }
    }

    /// The unspecified addresses of all families that the proxy has addresses of, the first address's family first: where
    /// captured connections come to.
    pub(crate) fn any_addresses(&self) -> Vec<&'static str> {
        let first = self.address();
        let both = self.addresses.iter().any(|address| address.is_ipv6() != first.is_ipv6());
        match (first.is_ipv6(), both) {
            (false, false) => vec!["0.0.0.0"],
            (true, false) => vec!["::"],
            (false, true) => vec!["0.0.0.0", "::"],
            (true, true) => vec!["::", "0.0.0.0"],
        }
    }

    /// Where "this host" is for this proxy: its own loopback address if it has one.
    pub fn local_host(&self) -> String {
        match self.address() {
            address if address.is_loopback() => address.to_string(),
            IpAddr::V4(_) => "127.0.0.1".into(),
            IpAddr::V6(_) => "::1".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, metadata: &serde_json::Value) -> Node {
        Node { id: id.into(), metadata: Some(api::xds::json_to_struct(metadata)), ..Node::default() }
    }

    #[test]
    fn the_mesh_speaks_for_proxies_that_do_not_say_how_they_are_reached() {
        let (mesh, problems) = MeshConfig::parse("defaultConfig: {interceptionMode: NONE}", "mesh");
        assert_eq!(problems, []);
        for (own, default, expected) in [
            (Interception::Unsaid, &MeshConfig::default(), Interception::Captured),
            (Interception::Unsaid, &mesh, Interception::None),
            (Interception::Captured, &mesh, Interception::Captured),
            (Interception::None, &MeshConfig::default(), Interception::None),
        ] {
            assert_eq!(own.or_of(default), expected);
        }
        assert_eq!(Interception::named("tproxy"), Some(Interception::Transparent));
        assert_eq!(Interception::named("sometimes"), None);
    }

    #[test]
    fn a_proved_identity_must_agree_with_the_claim() {
        let node = node(
            "sidecar~127.10.0.11~a.shop~shop.svc.cluster.local",
            &serde_json::json!({"SERVICE_ACCOUNT": "a", "INTERCEPTION_MODE": "NONE"}),
        );
        let id = |namespace: &str, account: &str| SpiffeId::new("cluster.local", namespace, account);
        let proxy = ProxyIdentity::of(&node, Some(&id("shop", "a"))).unwrap();
        assert_eq!(
            (proxy.interception, proxy.wildcard(), proxy.verified),
            (Interception::None, "127.10.0.11".to_owned(), true)
        );
        assert!(ProxyIdentity::of(&node, Some(&id("other", "a"))).unwrap_err().contains("namespace"));
        assert!(ProxyIdentity::of(&node, Some(&id("shop", "b"))).unwrap_err().contains("service account"));
        assert!(!ProxyIdentity::of(&node, None).unwrap().verified);
    }

    #[test]
    fn a_proxy_is_captured_in_the_families_of_its_addresses() {
        for (first, all, expected) in [
            ("10.1.0.1", "", &["0.0.0.0"][..]),
            ("10.1.0.1", "10.1.0.1,10.1.0.2", &["0.0.0.0"]),
            ("fd00::1", "fd00::1", &["::"]),
            ("10.1.0.1", "10.1.0.1,fd00::1", &["0.0.0.0", "::"]),
            ("fd00::1", "10.1.0.1", &["::", "0.0.0.0"]),
        ] {
            let id = format!("sidecar~{first}~a.shop~shop.svc.cluster.local");
            let proxy = ProxyIdentity::of(&node(&id, &serde_json::json!({"INSTANCE_IPS": all})), None).unwrap();
            assert_eq!(proxy.any_addresses(), expected, "{first} {all}");
        }
    }

    #[test]
    fn a_proxys_own_word_on_header_names_counts_over_the_meshs() {
        let (mesh, problems) = MeshConfig::parse("defaultConfig: {proxyHeaders: {preserveHttp1HeaderCase: true}}", "m");
        assert_eq!(problems, []);
        for (own, expected) in [
            (serde_json::json!({}), true),
            (serde_json::json!({"PROXY_CONFIG": {"concurrency": 2}}), true),
            (serde_json::json!({"PROXY_CONFIG": {"proxyHeaders": {"preserveHttp1HeaderCase": false}}}), false),
        ] {
            let proxy = ProxyIdentity::of(&node("sidecar~10.1.0.1~a.shop~shop.svc.cluster.local", &own), None).unwrap();
            assert_eq!(proxy.preserves_header_case(&mesh), expected, "{own}");
        }
    }
}
