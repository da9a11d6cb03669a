//! `meshctl dashboard`: a port of a pod on this machine, through the API server, until ctrl-C.

use anyhow::{Context, Result, bail};
use tokio::net::TcpListener;

use crate::chart::key;
use crate::cli::in_namespace;
use crate::cli::operator::{DashboardCommand, PageArguments};
use crate::cluster::Cluster;
use crate::workload::{Whose, pods};

/// A page that pods serve.
struct Page {
    /// What people call it.
    name: &'static str,
    /// Labels of the pods; none if a pod has to be named.
    labels: &'static str,
    /// Its port.
    port: u16,
    /// Where to begin.
    path: &'static str,
    /// What to do where no pod has the labels.
    missing: &'static str,
}

const ADD_ON: &str = "it is not part of an installation; apply its own manifests";
const PAGES: [Page; 8] = [
    Page { name: "the proxy", labels: "", port: api::port::ADMIN, path: "/", missing: "" },
    Page {
        name: "the control plane",
        labels: "app=istiod",
        port: 8080,
        path: "/debug",
        missing: "install one with `meshctl install`, or name another namespace with -i",
    },
    add_on("Prometheus", "app.kubernetes.io/name=prometheus", 9090),
    add_on("Grafana", "app.kubernetes.io/name=grafana", 3000),
    add_on("Kiali", "app=kiali", 20001),
    add_on("Jaeger", "app=jaeger", 16686),
    add_on("Zipkin", "app=zipkin", 9411),
    add_on("SkyWalking", "app=skywalking-ui", 8080),
];

const fn add_on(name: &'static str, labels: &'static str, port: u16) -> Page {
    Page { name, labels, port, path: "/", missing: ADD_ON }
}

/// Offers the page until it is interrupted.
///
/// # Errors
/// There is no pod of it, or no port here.
pub(super) async fn run(cluster: &Cluster, mesh_namespace: &str, command: &DashboardCommand) -> Result<()> {
    let (place, arguments) = chosen(command);
    let page = &PAGES[place];
    let (namespace, pod) = pod(cluster, mesh_namespace, page, arguments).await?;
    let asked = (arguments.address, arguments.port);
    let listener = TcpListener::bind(asked).await.with_context(|| {
        format!("{}:{} cannot be listened on; choose another --port", arguments.address, arguments.port)
    })?;
    println!("{} of {namespace}/{pod} is at http://{}{} until ctrl-C", page.name, listener.local_addr()?, page.path);
    let port = arguments.ui_port.unwrap_or(page.port);
    tokio::select! {
        ended = cluster.forward(&namespace, &pod, port, listener) => ended,
        interrupted = tokio::signal::ctrl_c() => interrupted.context("ctrl-C cannot be waited for"),
    }
}

fn chosen(command: &DashboardCommand) -> (usize, &PageArguments) {
    match command {
        DashboardCommand::Envoy(arguments) => (0, arguments),
        DashboardCommand::Controlz(arguments) => (1, arguments),
        DashboardCommand::Prometheus(arguments) => (2, arguments),
        DashboardCommand::Grafana(arguments) => (3, arguments),
        DashboardCommand::Kiali(arguments) => (4, arguments),
        DashboardCommand::Jaeger(arguments) => (5, arguments),
        DashboardCommand::Zipkin(arguments) => (6, arguments),
        DashboardCommand::Skywalking(arguments) => (7, arguments),
    }
}

async fn pod(
    cluster: &Cluster,
    mesh_namespace: &str,
    page: &Page,
    arguments: &PageArguments,
) -> Result<(String, String)> {
    if let Some(name) = &arguments.pod {
        let namespace = if page.labels.is_empty() { "default" } else { mesh_namespace };
        let name = in_namespace(name, arguments.namespace.as_deref());
        let whose = Whose::parse(&name, namespace)?;
        let found = pods(cluster, &whose).await?;
        let first = found.first().with_context(|| format!("{name} has no pod"))?;
        let (_, namespace, name) = key(first);
        return Ok((namespace, name));
    }
    if page.labels.is_empty() {
        bail!("name a pod: `meshctl dashboard envoy NAME.NAMESPACE`, or KIND/NAME of a workload");
    }
    let namespace = arguments.namespace.as_deref().unwrap_or(mesh_namespace);
    let found = cluster.running(Some(namespace), page.labels).await?;
    let missing = || format!("no pod of {} ({}) runs in {namespace}: {}", page.name, page.labels, page.missing);
    found.into_iter().next().with_context(missing)
}
