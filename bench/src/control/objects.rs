//! The folder that the control plane plans from: services with five endpoints each, every tenth with a VirtualService.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Namespaces that the services and proxies are spread over.
const NAMESPACES: usize = 20;
/// Endpoints of each service.
const ENDPOINTS: usize = 5;
/// Ports of the services, in turn: each HTTP port makes one set of routes.
const PORTS: [u16; 4] = [80, 8080, 9080, 9090];
/// Services between two with a VirtualService.
const ROUTED: usize = 10;

/// A namespace, of a service or a proxy.
pub(crate) fn namespace(number: usize) -> String {
    format!("team-{}", number % NAMESPACES)
}

/// Address of an endpoint. The proxy of the same number stands beside the first endpoint of the service.
pub(crate) fn address(service: usize, endpoint: usize) -> String {
    format!("10.{}.{}.{}", service >> 8, service & 255, endpoint + 1)
}

/// Writes all objects, and answers their folder.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn write(folder: &Path, services: usize) -> Result<PathBuf> {
    let config = folder.join("config");
    for number in 0..NAMESPACES {
        fs::create_dir_all(config.join(namespace(number)))?;
    }
    for service in 0..services {
        fs::write(file(&config, service, "service"), plain(service))?;
        fs::write(file(&config, service, "endpoints"), endpoints(service, &address(service, 0)))?;
        if service % ROUTED == 0 {
            fs::write(file(&config, service, "routes"), routes(service, "none"))?;
        }
    }
    Ok(config)
}

/// The file of a service's `service`, `endpoints` or `routes`.
fn file(config: &Path, service: usize, part: &str) -> PathBuf {
    config.join(namespace(service)).join(format!("service-{service}-{part}.yaml"))
}

/// A text whose file takes the place of another in one step, as editors and mounted volumes do it.
pub(crate) struct Edit {
    draft: PathBuf,
    file: PathBuf,
}

impl Edit {
    /// Gives the service's first endpoint another address.
    ///
    /// # Errors
    /// The draft cannot be written.
    pub(crate) fn endpoint(folder: &Path, service: usize, address: &str) -> Result<Edit> {
        Self::draft(folder, service, "endpoints", &endpoints(service, address))
    }

    /// Has the service's routes set another header.
    ///
    /// # Errors
    /// The draft cannot be written.
    pub(crate) fn route(folder: &Path, service: usize, header: &str) -> Result<Edit> {
        Self::draft(folder, service, "routes", &routes(service, header))
    }

    fn draft(folder: &Path, service: usize, part: &str, text: &str) -> Result<Edit> {
        let edit = Edit { draft: folder.join("draft"), file: file(&folder.join("config"), service, part) };
        fs::write(&edit.draft, text)?;
        Ok(edit)
    }

    /// Puts the draft in place.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub(crate) fn publish(self) -> Result<()> {
        Ok(fs::rename(self.draft, self.file)?)
    }
}

fn plain(service: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: service-{service}, namespace: {}}}\nspec:\n  clusterIP: 172.{}.{}.1\n  ports: [{{name: http, port: {}, targetPort: 8080}}]\n",
        namespace(service),
        16 + (service >> 8),
        service & 255,
        PORTS[service % PORTS.len()],
    )
}

fn endpoints(service: usize, first: &str) -> String {
    let rest = (1..ENDPOINTS).map(|endpoint| address(service, endpoint));
    let all: String = std::iter::once(first.to_owned())
        .chain(rest)
        .map(|address| format!("- {{addresses: [{address}], conditions: {{ready: true}}}}\n"))
        .collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: service-{service}\n  namespace: {}\n  labels: {{kubernetes.io/service-name: service-{service}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n{all}",
        namespace(service),
    )
}

fn routes(service: usize, header: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: service-{service}, namespace: {}}}\nspec:\n  hosts: [service-{service}]\n  http:\n  - match: [{{uri: {{prefix: /v2}}}}]\n    route: [{{destination: {{host: service-{service}}}}}]\n  - headers: {{request: {{set: {{x-edition: {header}}}}}}}\n    route: [{{destination: {{host: service-{service}}}}}]\n",
        namespace(service),
    )
}
