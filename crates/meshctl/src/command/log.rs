//! `meshctl config log`: how much a proxy tells.

use anyhow::Result;
use hyper::Method;

use crate::mesh::Mesh;

/// Prints the levels in effect; with `level` after it was set, with `reset` after it was set back.
pub(super) async fn run(mesh: &Mesh, proxy: &str, level: Option<&str>, reset: bool) -> Result<String> {
    let proxy = mesh.proxy(proxy).await?;
    let level = level.or(reset.then_some("reset"));
    let path = level.map_or_else(|| "/logging".to_owned(), |level| format!("/logging?level={}", encoded(level)));
    let answer = mesh.ask(&proxy, Method::POST, &path).await?;
    Ok(format!("{}:\n{}", proxy.proxy, answer.text()))
}

/// A value inside a query: all but letters, digits and a few marks as `%XX`.
fn encoded(text: &str) -> String {
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
