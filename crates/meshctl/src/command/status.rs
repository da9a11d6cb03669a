//! `meshctl status`: each proxy, kind by kind.

use anyhow::Result;
use api::debug::SyncStatus;

use crate::mesh::Mesh;
use crate::print::{Format, structured, table};

/// What tools call the kind of tables of names.
const NAMES: &str = "NDS";

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
    // Tables of names are asked for only by proxies that capture DNS.
    let is_shown = |kind: &str| {
        let of_kind = || rows.iter().flat_map(|row| &row.types).filter(|one| one.kind == kind);
        kind != NAMES || of_kind().any(|one| !one.sent.is_empty())
    };
    let kinds: Vec<String> = rows[0].types.iter().map(|kind| kind.kind.clone()).filter(|kind| is_shown(kind)).collect();
    let heading: Vec<&str> =
        ["NAME", "CLUSTER"].into_iter().chain(kinds.iter().map(String::as_str)).chain(["ISTIOD", "VERSION"]).collect();
    let cells = |row: &SyncStatus| {
        let states = row.types.iter().filter(|one| kinds.contains(&one.kind)).map(|one| one.state.clone());
        [row.proxy.clone(), row.cluster_id.clone()]
            .into_iter()
            .chain(states)
            .chain([row.control_plane.clone(), row.proxy_version.clone()])
            .collect()
    };
    let mut text = table(&heading, &rows.iter().map(cells).collect::<Vec<_>>());
    for refusal in mesh.refusals(proxy).await? {
        text += &format!("\n{refusal}\n");
    }
    Ok(text)
}
