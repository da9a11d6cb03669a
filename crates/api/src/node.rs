//! What a proxy says of itself when it connects: Istio's node id and metadata keys (`pkg/model/proxy.go`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::xds::core::Node;

/// What a proxy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Beside one workload.
    Sidecar,
    /// A gateway.
    Router,
}

impl Role {
    /// The word in the node id.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Sidecar => "sidecar",
            Role::Router => "router",
        }
    }
}

/// A proxy's id: `TYPE~IP~NAME.NAMESPACE~NAMESPACE.svc.DOMAIN`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    /// Sidecar or gateway.
    pub role: Role,
    /// The workload's first address.
    pub address: IpAddr,
    /// Workload instance's (pod's) name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// DNS domain of the namespace, `shop.svc.cluster.local`.
    pub dns_domain: String,
}

/// The node id cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node id {id:?} is not of the form TYPE~IP~NAME.NAMESPACE~NAMESPACE.svc.DOMAIN: {reason}")]
pub struct BadNodeId {
    /// What was sent.
    pub id: String,
    /// Which part is wrong.
    pub reason: &'static str,
}

impl fmt::Display for NodeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}~{}~{}.{}~{}", self.role.as_str(), self.address, self.name, self.namespace, self.dns_domain)
    }
}

impl FromStr for NodeId {
    type Err = BadNodeId;

    fn from_str(id: &str) -> Result<Self, BadNodeId> {
        let wrong = |reason| BadNodeId { id: id.to_owned(), reason };
        let parts: Vec<&str> = id.split('~').collect();
        let [role, address, name, dns_domain] = parts.as_slice() else {
            return Err(wrong("it does not have four parts"));
        };
        let role = match *role {
            "sidecar" => Role::Sidecar,
            "router" => Role::Router,
            _ => return Err(wrong("the type is neither sidecar nor router")),
        };
        let address = address.parse().map_err(|_| wrong("the second part is not an IP address"))?;
        let (name, namespace) = name.rsplit_once('.').ok_or_else(|| wrong("the third part is not NAME.NAMESPACE"))?;
        if name.is_empty() || namespace.is_empty() {
            return Err(wrong("the third part is not NAME.NAMESPACE"));
        }
        Ok(Self {
            role,
            address,
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            dns_domain: (*dns_domain).to_owned(),
        })
    }
}

/// The node metadata that the mesh reads; unknown keys are left alone. Names are Istio's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE", default)]
pub struct NodeMetadata {
    /// Workload instance's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Name of the workload (Deployment).
    pub workload_name: String,
    /// `kubernetes://apis/apps/v1/namespaces/NS/deployments/NAME`.
    pub owner: String,
    /// Labels; a workload known by address overrides them.
    pub labels: BTreeMap<String, String>,
    /// Addresses, separated by commas.
    pub instance_ips: String,
    /// Kubernetes service account.
    pub service_account: String,
    /// Cluster the workload runs in.
    pub cluster_id: String,
    /// Network the workload is on.
    pub network: String,
    /// Mesh it belongs to.
    pub mesh_id: String,
    /// REDIRECT, TPROXY or NONE; empty is REDIRECT.
    pub interception_mode: String,
    /// Version of Istio that the proxy is compatible with.
    pub istio_version: String,
    /// `grpc` for clients without a proxy.
    pub generator: String,
    /// `true` if the proxy answers the workload's DNS questions.
    pub dns_capture: String,
    /// `true` asks for HTTP/1.0.
    pub http10: String,
    /// The proxy's own settings, with the fields of the mesh's `defaultConfig`; null if there are none.
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    pub proxy_config: serde_json::Value,
    /// Where the proxy's admin interface listens, `address:port`; ours, empty for Envoy.
    pub mesh_admin_address: String,
    /// Proxy's own version; ours, empty for Envoy.
    pub mesh_version: String,
}

impl NodeMetadata {
    /// Reads the metadata of an xDS node. A value of another type than expected is taken as absent: one odd key must not
    /// keep a proxy out.
    pub fn of(node: &Node) -> Self {
        let Some(metadata) = &node.metadata else { return Self::default() };
        let serde_json::Value::Object(map) = crate::xds::struct_to_json(metadata) else { return Self::default() };
        let mut read = Self::default();
        for (key, value) in map {
            let mut one = serde_json::Map::new();
            // Istio writes some numbers and booleans where others write text.
            let value = match value {
                serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {
                    serde_json::Value::String(value.to_string())
                }
                other => other,
            };
            one.insert(key, value);
            if let Ok(part) = serde_json::from_value::<NodeMetadata>(serde_json::Value::Object(one)) {
                read.take(part);
            }
        }
        read
    }

    fn take(&mut self, part: NodeMetadata) {
        macro_rules! take {
            ($($field:ident),*) => { $( if !part.$field.is_empty() { self.$field = part.$field; } )* };
        }
        take!(
            name,
            namespace,
            workload_name,
            owner,
            labels,
            instance_ips,
            service_account,
            cluster_id,
            network,
            mesh_id
        );
        if !part.proxy_config.is_null() {
            self.proxy_config = part.proxy_config;
        }
        take!(interception_mode, istio_version, generator, dns_capture, http10, mesh_admin_address, mesh_version);
    }
}

/// Whether the node says that it has an extension of this name (`istio.stats`) built in.
pub fn has_extension(node: &Node, name: &str) -> bool {
    node.extensions.iter().any(|extension| extension.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::json_to_struct;

    #[test]
    fn the_id_prints_what_it_parses() {
        let text = "sidecar~127.10.0.11~user-v1.ecommerce~ecommerce.svc.cluster.local";
        let id: NodeId = text.parse().unwrap();
        assert_eq!((id.name.as_str(), id.namespace.as_str()), ("user-v1", "ecommerce"));
        assert_eq!(id.to_string(), text);
        for text in ["", "sidecar~x~a.b~c", "waypoint~1.1.1.1~a.b~c", "sidecar~1.1.1.1~ab~c", "sidecar~1.1.1.1~a.b"] {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
    }

    #[test]
    fn odd_metadata_is_skipped_and_the_rest_is_read() {
        let metadata = json_to_struct(&serde_json::json!({
            "NAMESPACE": "shop", "LABELS": {"app": "user"}, "NAME": ["not", "text"], "HTTP10": true, "OTHER": {"a": 1}
        }));
        let read = NodeMetadata::of(&Node { metadata: Some(metadata), ..Node::default() });
        assert_eq!(read.namespace, "shop");
        assert_eq!(read.labels["app"], "user");
        assert_eq!(read.name, "");
        assert_eq!(read.http10, "true");
    }
}
