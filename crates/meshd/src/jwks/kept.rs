//! The keys that were fetched last, in a file: a control plane that starts while an issuer is away would take good keys from
//! all proxies otherwise. They are public; the folder is the control plane's own.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use plan::keys::{KeySource, Known, KnownKeys};
use serde::{Deserialize, Serialize};

use crate::state_folder;

/// One source, as it is written.
#[derive(Serialize, Deserialize)]
struct Row {
    /// The key set's address, or the issuer.
    address: Option<String>,
    issuer: Option<String>,
    jwks: String,
}

/// What was kept; nothing if there is no such file, or none that can be read.
pub(super) fn read(file: &Path) -> Known {
    let Ok(text) = std::fs::read(file) else { return Known::new() };
    let rows: Vec<Row> = serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!("the kept keys of issuers, {}, cannot be read: {error}", file.display());
        Vec::new()
    });
    let known = rows.into_iter().filter_map(|row| {
        let source = match (row.address, row.issuer) {
            (Some(address), _) => KeySource::Address(address),
            (None, issuer) => KeySource::Issuer(issuer?),
        };
        Some((source, KnownKeys { jwks: Some(row.jwks.into()), failure: String::new() }))
    });
    known.collect()
}

/// Keeps the keys of these sources.
pub(super) fn write(file: &Path, known: &Known, sources: &BTreeSet<&KeySource>) -> Result<()> {
    let rows = known.iter().filter(|(source, _)| sources.contains(source)).filter_map(|(source, keys)| {
        let (address, issuer) = match source {
            KeySource::Address(address) => (Some(address.clone()), None),
            KeySource::Issuer(issuer) => (None, Some(issuer.clone())),
        };
        Some(Row { address, issuer, jwks: keys.jwks.as_deref()?.to_owned() })
    });
    let rows: Vec<Row> = rows.collect();
    state_folder::write_secret(file, &serde_json::to_vec_pretty(&rows)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("jwks.json");
        assert_eq!(read(&file), Known::new());
        let sources = ["a", "b", "c"].map(|name| KeySource::Address(name.into()));
        let issuer = KeySource::Issuer("a".into());
        let keys = |text: &str| KnownKeys { jwks: Some(text.into()), failure: String::new() };
        let known = Known::from([
            (sources[0].clone(), keys("one")),
            (sources[1].clone(), KnownKeys { failure: "away".into(), ..KnownKeys::default() }),
            (sources[2].clone(), keys("nobody asks for it any more")),
            (issuer.clone(), KnownKeys { failure: "away".into(), ..keys("two") }),
        ]);
        write(&file, &known, &BTreeSet::from([&sources[0], &sources[1], &issuer])).unwrap();
        assert_eq!(read(&file), Known::from([(sources[0].clone(), keys("one")), (issuer, keys("two"))]));
        std::fs::write(&file, "nonsense").unwrap();
        assert_eq!(read(&file), Known::new());
    }
}
