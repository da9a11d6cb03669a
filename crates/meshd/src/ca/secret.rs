//! The authority of a cluster is in Secrets of the root namespace: all replicas and all restarts have the same one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Error};

use super::root::{CERT_FILE, CHAIN_FILE, KEY_FILE, ROOT_FILE, Root};
use crate::state_folder::write_secret;

/// Where an administrator plugs in an authority.
pub const PLUGGED_IN: &str = "cacerts";
/// Where our own is kept.
pub const OWN: &str = "istio-ca-secret";
/// Its type, which keeps it apart from Secrets for applications.
const OWN_TYPE: &str = "istio.io/ca-root";

/// Loads the authority of the cluster: what is plugged in, else what is kept, else a new one, which is then kept.
///
/// # Errors
/// The Secrets cannot be read or written, or hold no authority.
pub async fn load(client: &Client, namespace: &str, state: &Path, trust_domain: &str) -> Result<Root> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let read = async |name: &str| {
        secrets.get_opt(name).await.with_context(|| format!("the Secret {namespace}/{name} cannot be read"))
    };
    if let Some(secret) = read(PLUGGED_IN).await? {
        let folder = unpack(&secret, &state.join(PLUGGED_IN))?;
        return Root::load(Some(&folder), state, trust_domain)
            .with_context(|| format!("the Secret {namespace}/{PLUGGED_IN} cannot be used"));
    }
    let own = state.join(OWN);
    // Another replica may be as new as this one: whoever writes first decides.
    for _ in 0..3 {
        if let Some(secret) = read(OWN).await? {
            unpack(&secret, &own)?;
            return Root::load(None, &own, trust_domain)
                .with_context(|| format!("the Secret {namespace}/{OWN} cannot be used"));
        }
        let _ = fs::remove_dir_all(&own);
        crate::state_folder::prepare(&own)?;
        let root = Root::load(None, &own, trust_domain)?;
        match secrets.create(&PostParams::default(), &pack(&own, namespace)?).await {
            Ok(_) => return Ok(root),
            Err(Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => {
                return Err(error).with_context(|| format!("the Secret {namespace}/{OWN} cannot be written"));
            }
        }
    }
    bail!("the Secret {namespace}/{OWN} can neither be read nor written")
}

fn unpack(secret: &Secret, folder: &Path) -> Result<PathBuf> {
    // Files of an earlier life of this folder must not mix with what the Secret holds.
    let _ = fs::remove_dir_all(folder);
    crate::state_folder::prepare(folder)?;
    let data = secret.data.clone().unwrap_or_default();
    // cert-manager's names for the same things.
    let value =
        |name: &str, other: &str| data.get(name).or_else(|| data.get(other)).filter(|value| !value.0.is_empty());
    for (name, other) in [(CERT_FILE, "tls.crt"), (KEY_FILE, "tls.key"), (ROOT_FILE, "ca.crt"), (CHAIN_FILE, "")] {
        if let Some(ByteString(bytes)) = value(name, other) {
            write_secret(&folder.join(name), bytes)?;
        }
    }
    Ok(folder.to_owned())
}

fn pack(folder: &Path, namespace: &str) -> Result<Secret> {
    let file = |name: &str| -> Result<(String, ByteString)> {
        Ok((name.to_owned(), ByteString(fs::read(folder.join(name))?)))
    };
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(OWN.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(OWN_TYPE.to_owned()),
        data: Some([file(CERT_FILE)?, file(KEY_FILE)?, file(ROOT_FILE)?].into()),
        ..Secret::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_the_same_authority_when_it_is_unpacked() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = Root::load(None, one.path(), "cluster.local").unwrap();
        let secret = pack(one.path(), "istio-system").unwrap();
        let folder = unpack(&secret, &other.path().join("x")).unwrap();
        let second = Root::load(None, &folder, "cluster.local").unwrap();
        assert_eq!(first.bundle, second.bundle);
    }
}
