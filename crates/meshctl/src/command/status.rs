//! `meshctl status`: each proxy, kind by kind.

use anyhow::Result;
use api::debug::SyncStatus;

use crate::mesh::Mesh;
use crate::print::{Format, structured, table};

pub(super) async fn run(mesh: &Mesh, proxy: Option<&str>, output: Format) -> Result<String> {
    let rows = match proxy {
        Some(name) => vec![mesh.proxy(name).await?],
        None => mesh.proxies().await?,
    };
    if output != Format::Table {
        return structured(output, &rows);
    }
    if rows.is_empty() {
        return Ok("No proxy is connected.\n".to_owned());
    }
    let kinds: Vec<String> = rows[0].types.iter().map(|kind| kind.kind.clone()).collect();
    let heading: Vec<&str> =
        ["NAME", "CLUSTER"].into_iter().chain(kinds.iter().map(String::as_str)).chain(["VERSION"]).collect();
    let cells = |row: &SyncStatus| {
        let states = row.types.iter().map(|kind| kind.state.clone());
        [row.proxy.clone(), row.cluster_id.clone()]
            .into_iter()
            .chain(states)
            .chain([row.proxy_version.clone()])
            .collect()
    };
    let mut text = table(&heading, &rows.iter().map(cells).collect::<Vec<_>>());
    for refusal in mesh.refusals(proxy).await? {
        text += &format!("\n{refusal}\n");
    }
    Ok(text)
}
