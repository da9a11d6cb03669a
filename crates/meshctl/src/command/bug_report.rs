//! `meshctl bug-report`: what helps to understand what is wrong, gathered into one archive. Secrets are not read, and proxies show no
//! keys.

mod archive;

use std::path::PathBuf;

use anyhow::{Context, Result};
use api::debug::SyncStatus;
use api::object::KINDS;
use serde_json::Value;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::chart;
use crate::cli::operator::BugReportArguments;
use crate::cluster::refusal::told;
use crate::cluster::{Cluster, LogWish};
use crate::mesh::{Mesh, Method};
use crate::print::{Format, Progress, structured};
use archive::Archive;

/// Kinds of Kubernetes' own in the namespace of the control plane.
const OF_MESH: [(&str, &str); 8] = [
    ("apps/v1", "Deployment"),
    ("v1", "Pod"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "Event"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("policy/v1", "PodDisruptionBudget"),
    ("coordination.k8s.io/v1", "Lease"),
];
/// Those that belong to no namespace.
const OF_CLUSTER: [(&str, &str); 4] = [
    ("v1", "Namespace"),
    ("v1", "Node"),
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
];
/// Debug pages of the control plane.
const PAGES: [&str; 7] =
    ["version", "debug/syncz", "debug/problems", "debug/registryz", "debug/mesh", "debug/push_status", "debug/logging"];
/// Pages of each proxy.
const OF_PROXY: [(&str, &str); 5] = [
    ("config_dump?include_eds", "config_dump.json"),
    ("clusters?format=json", "clusters.json"),
    ("listeners?format=json", "listeners.json"),
    ("stats", "stats.txt"),
    ("why?last=100", "why.json"),
];

/// Gathers all and writes the archive. What cannot be had is named in it, and at the end.
///
/// # Errors
/// The archive cannot be written.
pub(super) async fn run(cluster: &Cluster, mesh: &Mesh, namespace: &str, arguments: &BugReportArguments) -> Result<()> {
    let time = OffsetDateTime::now_utc();
    let stamp = time.format(format_description!("[year][month][day]-[hour][minute][second]"))?;
    let file = arguments.output_dir.join(format!("bug-report-{stamp}.tar"));
    std::fs::create_dir_all(&arguments.output_dir)
        .with_context(|| format!("{} cannot be made", arguments.output_dir.display()))?;
    let mut report = Report { archive: Archive::new(time.unix_timestamp()), missing: Vec::new() };
    let mut progress = Progress::start("bug report");
    progress.tell("the cluster");
    let version = cluster.version().await;
    report.add(
        "versions.txt",
        version.map(|server| format!("meshctl {}\nKubernetes {server}\n", env!("CARGO_PKG_VERSION"))),
    );
    for (version, kind) in OF_CLUSTER {
        report.list(cluster, version, kind, None).await;
    }
    for (version, kind) in OF_MESH {
        report.list(cluster, version, kind, Some(namespace)).await;
    }
    for row in KINDS.iter().filter(|row| row.strict) {
        report.list(cluster, &format!("{}/{}", row.group, row.storage), row.name, None).await;
    }
    progress.tell("the control plane");
    for page in PAGES {
        match mesh.pages(&format!("/{page}")).await {
            Ok(pages) => {
                for (replica, page_of) in pages {
                    let path = format!("control-plane/{replica}/{}.json", page.trim_start_matches("debug/"));
                    report.add(&path, structured(Format::Json, &page_of));
                }
            }
            Err(error) => report.miss(&format!("control-plane/{page}"), &error),
        }
    }
    let planes = cluster.list("v1", "Pod", Some(namespace), "app=istiod", "").await.unwrap_or_default();
    for plane in planes {
        let (_, namespace, pod) = chart::key(&plane);
        report.log(cluster, &namespace, &pod, "discovery", arguments).await;
    }
    match mesh.proxies().await {
        Ok(proxies) => {
            for proxy in proxies.iter().filter(|proxy| is_wanted(proxy, arguments)) {
                progress.tell(&proxy.proxy);
                of_proxy(&mut report, cluster, mesh, proxy, arguments).await;
            }
        }
        Err(error) => report.miss("proxies", &error),
    }
    let missing = report.finish(&file)?;
    progress.done(&file.display().to_string());
    missing.iter().for_each(|missing| println!("  not in it: {missing}"));
    Ok(())
}

fn is_wanted(proxy: &SyncStatus, arguments: &BugReportArguments) -> bool {
    let namespace = proxy.proxy.split_once('.').map_or("", |(_, namespace)| namespace).to_owned();
    (arguments.include.is_empty() || arguments.include.contains(&namespace)) && !arguments.exclude.contains(&namespace)
}

async fn of_proxy(
    report: &mut Report,
    cluster: &Cluster,
    mesh: &Mesh,
    proxy: &SyncStatus,
    arguments: &BugReportArguments,
) {
    for (page, name) in OF_PROXY {
        let answer = mesh.ask(proxy, Method::GET, &format!("/{page}")).await;
        report.add(&format!("proxies/{}/{name}", proxy.proxy), answer.map(|answer| answer.text()));
    }
    if let Some((pod, namespace)) = proxy.proxy.split_once('.') {
        report.log(cluster, namespace, pod, "istio-proxy", arguments).await;
    }
}

/// What has been gathered.
struct Report {
    archive: Archive,
    missing: Vec<String>,
}

impl Report {
    fn add(&mut self, path: &str, text: Result<String>) {
        match text {
            Ok(text) => self.archive.add(path, text.as_bytes()),
            Err(error) => self.miss(path, &error),
        }
    }

    fn miss(&mut self, path: &str, error: &anyhow::Error) {
        self.missing.push(format!("{path}: {}", told(error)));
    }

    async fn list(&mut self, cluster: &Cluster, version: &str, kind: &str, namespace: Option<&str>) {
        let folder = if namespace.is_some() { "mesh" } else { "cluster" };
        let path = format!("{folder}/{kind}.yaml");
        let listed = cluster.list(version, kind, namespace, "", "").await;
        let listed = listed.and_then(|mut objects| {
            objects.iter_mut().for_each(without_noise);
            chart::print(&objects)
        });
        if listed.as_ref().is_ok_and(String::is_empty) {
            return;
        }
        self.add(&path, listed);
    }

    async fn log(
        &mut self,
        cluster: &Cluster,
        namespace: &str,
        pod: &str,
        container: &str,
        arguments: &BugReportArguments,
    ) {
        for previous in [false, true] {
            let wish = LogWish {
                container: container.to_owned(),
                tail: arguments.tail,
                since: arguments.duration,
                previous,
                ..LogWish::default()
            };
            let path = format!("logs/{namespace}/{pod}.{container}{}.log", if previous { ".previous" } else { "" });
            match whole(cluster, namespace, pod, &wish).await {
                Ok(text) => self.archive.add(&path, text.as_bytes()),
                // Most containers have never been started before.
                Err(_) if previous => {}
                Err(error) => self.miss(&path, &error),
            }
        }
    }

    /// Writes the archive; what is not in it.
    fn finish(mut self, file: &PathBuf) -> Result<Vec<String>> {
        if !self.missing.is_empty() {
            self.archive.add("missing.txt", (self.missing.join("\n") + "\n").as_bytes());
        }
        std::fs::write(file, self.archive.finish()).with_context(|| format!("{} cannot be written", file.display()))?;
        Ok(self.missing)
    }
}

async fn whole(cluster: &Cluster, namespace: &str, pod: &str, wish: &LogWish) -> Result<String> {
    let mut log = cluster.log(namespace, pod, wish).await?;
    let mut text = String::new();
    while let Some(line) = log.next().await? {
        text += &line;
        text.push('\n');
    }
    Ok(text)
}

/// Who wrote which field helps nobody; an earlier version may hold what was taken out since.
fn without_noise(object: &mut Value) {
    let Some(metadata) = object["metadata"].as_object_mut() else { return };
    metadata.remove("managedFields");
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_read() {
        let mut all = OF_MESH.iter().chain(&OF_CLUSTER).map(|(_, kind)| *kind);
        assert!(all.all(|kind| kind != "Secret"));
        assert!(KINDS.iter().filter(|row| row.strict).all(|row| row.name != "Secret"));
    }

    #[test]
    fn proxies_are_chosen_by_their_namespaces() {
        let proxy = SyncStatus { proxy: "a.shop".into(), ..SyncStatus::default() };
        let wish = |include: &[&str], exclude: &[&str]| BugReportArguments {
            output_dir: ".".into(),
            include: include.iter().map(|one| (*one).to_owned()).collect(),
            exclude: exclude.iter().map(|one| (*one).to_owned()).collect(),
            tail: 1,
            duration: None,
        };
        assert!(is_wanted(&proxy, &wish(&[], &["kube-system"])) && is_wanted(&proxy, &wish(&["shop"], &[])));
        assert!(!is_wanted(&proxy, &wish(&["b"], &[])) && !is_wanted(&proxy, &wish(&[], &["shop"])));
    }
}
