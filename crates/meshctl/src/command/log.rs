//! `meshctl config log`: how much a proxy tells.

use crate::mesh::Mesh;
use anyhow::Result;

/// Prints the levels in effect; with `level` after it was set, with `reset` after it was set back.
pub(super) async fn run(mesh: &Mesh, proxy: &str, level: Option<&str>, reset: bool) -> Result<String> {
    let proxy = mesh.proxy(proxy).await?;
    let level = level.or(reset.then_some("reset")).map(encoded);
    Ok(format!("{}:\n{}", proxy.proxy, mesh.log_level(&proxy, level.as_deref()).await?))
}

/// A value inside a query: all but letters, digits and a few marks as `%XX`.
pub(super) fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~:".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_survives_the_query() {
        assert_eq!(encoded("info,proxy::tls=debug"), "info%2Cproxy::tls%3Ddebug");
    }
}
