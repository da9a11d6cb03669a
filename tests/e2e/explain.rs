//! What is printed when a scenario has failed, so that nobody needs the cluster to understand why.

use crate::kubectl::{Cluster, items};

/// Namespaces of the tests.
const NAMESPACES: &[&str] = &["istio-system", "ecommerce", "outside", "migration", "abrupt", "manual", "pods"];

/// Prints pods, events, the last lines of the logs of proxies and control plane, and what proxies that are not well say.
pub(crate) fn print(cluster: &Cluster) {
    for namespace in NAMESPACES {
        let Ok(pods) = cluster.get(&format!("pods -n {namespace}")) else { continue };
        if items(&pods).next().is_none() {
            continue;
        }
        section(&format!("pods of {namespace}"), &cluster.kubectl(&format!("get pods -n {namespace} -o wide")));
        let events = cluster.kubectl(&format!("events -n {namespace} --types=Warning"));
        section(&format!("warnings of {namespace}"), &events.map(|text| last(&text, 8)));
        for pod in items(&pods) {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let proxy =
                if *namespace == "istio-system" && name.starts_with("istiod") { "discovery" } else { "istio-proxy" };
            let log = cluster.kubectl(&format!("logs -n {namespace} {name} -c {proxy} --tail=300"));
            if let Ok(text) = log {
                let told: String = text.lines().filter(|line| tells(line)).map(|line| format!("{line}\n")).collect();
                if !told.is_empty() {
                    section(&format!("{proxy} of {name}"), &Ok(last(&told, 8)));
                }
            }
            let ready = pod["status"]["conditions"].as_array().into_iter().flatten();
            let ready = ready.filter(|condition| condition["type"] == "Ready").all(|ready| ready["status"] == "True");
            if proxy == "istio-proxy" && !ready {
                for page in ["ready", "server_info"] {
                    let words = ["pilot-agent", "request", "GET", page];
                    section(&format!("/{page} of {name}"), &cluster.exec(namespace, name, proxy, &words));
                }
            }
        }
    }
}

/// Whether a line of a log may explain something: no ordinary request.
fn tells(line: &str) -> bool {
    !(line.contains("\" 200 ")
        || line.contains("\" 201 ")
        || line.contains(" INFO ")
        || line.contains("\"response_code\":20"))
}

fn last(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..]
        .iter()
        .map(|line| line.chars().take(600).collect::<String>() + "\n")
        .collect()
}

fn section(title: &str, text: &anyhow::Result<String>) {
    println!("  ── {title}");
    match text {
        Ok(text) => text.lines().for_each(|line| println!("     {line}")),
        Err(error) => println!("     {error:#}"),
    }
}
