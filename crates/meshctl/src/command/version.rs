//! `meshctl version`.

use anyhow::Result;
use serde_json::json;

use crate::mesh::Mesh;
use crate::print::{Format, structured, table};

pub(super) async fn run(mesh: Option<Mesh>, output: Format) -> Result<String> {
    let client = env!("CARGO_PKG_VERSION");
    let mut control_plane = "not reached".to_owned();
    let mut proxies = Vec::new();
    if let Some(mesh) = mesh {
        if let Ok(page) = mesh.page("/version").await {
            control_plane = page["version"].as_str().unwrap_or("unknown").to_owned();
        }
        proxies = mesh.proxies().await.unwrap_or_default();
    }
    let mut planes: Vec<(String, usize)> = Vec::new();
    for proxy in proxies {
        match planes.iter_mut().find(|(version, _)| *version == proxy.proxy_version) {
            Some((_, count)) => *count += 1,
            None => planes.push((proxy.proxy_version, 1)),
        }
    }
    if output != Format::Table {
        let planes: Vec<_> =
            planes.iter().map(|(version, count)| json!({"version": version, "proxies": count})).collect();
        return structured(output, &json!({"client": client, "controlPlane": control_plane, "dataPlane": planes}));
    }
    let mut rows = vec![vec!["client".to_owned(), client.to_owned()], vec!["control plane".to_owned(), control_plane]];
    rows.extend(
        planes
            .into_iter()
            .map(|(version, count)| vec!["data plane".to_owned(), format!("{version} ({count} proxies)")]),
    );
    Ok(table(&["PART", "VERSION"], &rows))
}
