//! `meshctl version`, in istioctl's words and keys.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};

use crate::cli::operator::VersionArguments;
use crate::mesh::Mesh;
use crate::print::{Format, structured};

pub(super) async fn run(mesh: Option<Mesh>, arguments: &VersionArguments) -> Result<String> {
    let (mut replicas, mut proxies) = (Vec::new(), Vec::new());
    if let Some(mesh) = mesh.filter(|_| arguments.remote) {
        replicas = mesh.pages("/version").await.unwrap_or_default().into_iter().map(|(_, page)| page).collect();
        proxies = mesh.proxies().await.unwrap_or_default();
    }
    let proxies: Vec<(String, String)> = proxies.into_iter().map(|proxy| (proxy.proxy, proxy.proxy_version)).collect();
    if arguments.output != Format::Table {
        return structured(arguments.output, &document(arguments.remote, &replicas, &proxies));
    }
    Ok(lines(arguments, &replicas, &proxies))
}

fn of<'a>(page: &'a Value, field: &str) -> &'a str {
    page[field].as_str().unwrap_or("unknown")
}

/// Istio's keys (`pkg/version.Version`).
fn document(remote: bool, replicas: &[Value], proxies: &[(String, String)]) -> Value {
    let mut document = json!({"clientVersion": {"version": env!("CARGO_PKG_VERSION")}});
    if remote {
        let info = |page: &Value| json!({"Component": "pilot", "Info": {"version": of(page, "version")}});
        let proxy = |(name, version): &(String, String)| json!({"ID": name, "IstioVersion": version});
        document["meshVersion"] = replicas.iter().map(info).collect();
        document["dataPlaneVersion"] = proxies.iter().map(proxy).collect();
    }
    document
}

fn lines(arguments: &VersionArguments, replicas: &[Value], proxies: &[(String, String)]) -> String {
    let mut text = format!("client version: {}\n", env!("CARGO_PKG_VERSION"));
    if !arguments.remote {
        return text;
    }
    let planes = counted(replicas.iter().map(|page| of(page, "version")));
    let named = if planes.is_empty() {
        "not reached".to_owned()
    } else {
        planes.keys().copied().collect::<Vec<_>>().join(", ")
    };
    text += &format!("control plane version: {named}\n");
    let of_proxies = counted(proxies.iter().map(|(_, version)| version.as_str()));
    let one = |(version, count): (&&str, &usize)| {
        format!("{version} ({count} {})", if *count == 1 { "proxy" } else { "proxies" })
    };
    let named = if of_proxies.is_empty() {
        "none".to_owned()
    } else {
        of_proxies.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    text += &format!("data plane version: {named}\n");
    if !arguments.short
        && let Some(page) = replicas.first()
    {
        text += &format!("compatible with Istio: {}\n", of(page, "istio_version"));
    }
    text
}

/// How often each stands there.
fn counted<'a>(versions: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    versions.for_each(|version| *counts.entry(version).or_default() += 1);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_stand_in_istioctls_words_and_keys() {
        let wish = |short, remote| VersionArguments { short, remote, output: Format::Table };
        let replicas = [json!({"version": "2", "istio_version": "1.99"}), json!({"version": "2"})];
        let proxies =
            [("a.b", "1"), ("c.b", "2"), ("d.b", "2")].map(|(name, version)| (name.to_owned(), version.to_owned()));
        let text = lines(&wish(true, true), &replicas, &proxies);
        assert!(text.ends_with("control plane version: 2\ndata plane version: 1 (1 proxy), 2 (2 proxies)\n"), "{text}");
        assert!(lines(&wish(false, true), &replicas, &proxies).ends_with("compatible with Istio: 1.99\n"));
        assert_eq!(lines(&wish(true, false), &[], &[]).lines().count(), 1);
        assert!(
            lines(&wish(true, true), &[], &[])
                .contains("control plane version: not reached\ndata plane version: none\n")
        );
        let document = document(true, &replicas[..1], &proxies[..1]);
        assert_eq!(document["meshVersion"][0]["Info"]["version"], "2");
        assert_eq!(document["dataPlaneVersion"], json!([{"ID": "a.b", "IstioVersion": "1"}]));
    }
}
