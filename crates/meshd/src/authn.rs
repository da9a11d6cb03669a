//! Who is calling: a client certificate of our own authority, a join token, or in a cluster the token of a service account.
//! What a caller claims is never taken.

mod review;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use api::join_token;
use api::spiffe::SpiffeId;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::state_folder::write_secret;
pub use review::{AUDIENCE, Reviewer};

/// The leaf that the caller's TLS connection was verified with, DER. Set by the listener, never by the caller.
#[derive(Clone, Debug, Default)]
pub struct PeerCertificate(pub Option<Vec<u8>>);

/// Checks callers.
pub struct Authenticator {
    token_key: Vec<u8>,
    trust_domain: String,
    /// Other trust domains whose certificates are good: those that were the mesh's before.
    aliases: Vec<String>,
    reviewer: Option<Reviewer>,
}

impl Authenticator {
    /// Reads the key of join tokens from the state folder, and makes one if there is none.
    ///
    /// # Errors
    /// The key cannot be read or written, or is not one.
    pub fn load(state: &Path, trust_domain: &str) -> Result<Self> {
        let file = state.join(join_token::KEY_FILE);
        if !file.exists() {
            write_secret(&file, &rand::random::<[u8; join_token::KEY_LENGTH]>())?;
        }
        let token_key = std::fs::read(&file).with_context(|| format!("{} cannot be read", file.display()))?;
        if token_key.len() != join_token::KEY_LENGTH {
            bail!(
                "{} is not a key of {} bytes: remove it to have a new one made",
                file.display(),
                join_token::KEY_LENGTH
            );
        }
        Ok(Self { token_key, trust_domain: trust_domain.to_owned(), aliases: Vec::new(), reviewer: None })
    }

    /// Certificates of these trust domains are good too, if our authority has signed them (MeshConfig `trustDomainAliases`): a proxy
    /// that started before the mesh's trust domain was changed stays connected, and gets its next certificate of the new one.
    #[must_use]
    pub fn with_aliases(self, aliases: Vec<String>) -> Self {
        Self { aliases, ..self }
    }

    /// Has the cluster judge tokens that are not ours.
    #[must_use]
    pub fn with_reviewer(self, reviewer: Option<Reviewer>) -> Self {
        Self { reviewer, ..self }
    }

    /// The caller of a request: its certificate if it has one, else its token. `Ok(None)` if it shows neither.
    ///
    /// # Errors
    /// What it shows is not good: Unauthenticated, with the reason.
    pub async fn caller<T>(&self, request: &Request<T>) -> Result<Option<SpiffeId>, Status> {
        if let Some(PeerCertificate(Some(leaf))) = request.extensions().get::<PeerCertificate>() {
            return self.of_certificate(leaf).map(Some);
        }
        // Taken out before anything is waited for: the request's body need not be shareable between threads.
        let Some(token) = bearer(request.metadata())? else { return Ok(None) };
        self.of_token(&token).await.map(Some)
    }

    fn of_certificate(&self, leaf: &[u8]) -> Result<SpiffeId, Status> {
        let refuse = |why: &str| Status::unauthenticated(format!("the client certificate {why}"));
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| refuse("cannot be read"))?;
        let names = certificate.subject_alternative_name().map_err(|_| refuse("has unreadable names"))?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        // SPIFFE X509-SVID 2: exactly one URI.
        let [uri] = uris.as_slice() else { return Err(refuse("does not have exactly one URI name")) };
        let id: SpiffeId = uri.parse().map_err(|_| refuse("does not name a service account"))?;
        if id.trust_domain != self.trust_domain && !self.aliases.contains(&id.trust_domain) {
            return Err(refuse(&format!(
                "is of trust domain {:?}, not {:?}; if that was the mesh's before, list it in trustDomainAliases and restart the control plane",
                id.trust_domain, self.trust_domain
            )));
        }
        Ok(SpiffeId::new(&self.trust_domain, &id.namespace, &id.service_account))
    }

    async fn of_token(&self, token: &str) -> Result<SpiffeId, Status> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let refused = match join_token::verify(&self.token_key, token, now) {
            Ok((namespace, account)) => return Ok(SpiffeId::new(&self.trust_domain, &namespace, &account)),
            Err(refused) => refused,
        };
        match &self.reviewer {
            Some(reviewer) => {
                let (namespace, account) = reviewer.service_account(token).await?;
                Ok(SpiffeId::new(&self.trust_domain, &namespace, &account))
            }
            None => Err(Status::unauthenticated(refused.to_string())),
        }
    }
}

/// The bearer token, if one is shown.
fn bearer(metadata: &MetadataMap) -> Result<Option<String>, Status> {
    let Some(value) = metadata.get("authorization") else { return Ok(None) };
    let token = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
    let token = token.ok_or_else(|| Status::unauthenticated("the authorization header is not `Bearer TOKEN`"))?;
    Ok(Some(token.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> i64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
    }

    #[test]
    fn certificates_of_former_trust_domains_are_good_if_they_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        let authenticator = Authenticator::load(folder.path(), "new.example").unwrap();
        let of = |trust_domain: &str| {
            let uri = SpiffeId::new(trust_domain, "shop", "user").to_string();
            let mut params = rcgen::CertificateParams::default();
            params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
        };
        let now = SpiffeId::new("new.example", "shop", "user");
        assert_eq!(authenticator.of_certificate(&of("new.example")).unwrap(), now);
        let refused = authenticator.of_certificate(&of("old.example")).unwrap_err();
        assert!(refused.message().contains("list it in trustDomainAliases"), "{refused}");
        let authenticator = authenticator.with_aliases(vec!["old.example".to_owned()]);
        assert_eq!(authenticator.of_certificate(&of("old.example")).unwrap(), now);
        assert!(authenticator.of_certificate(&of("other.example")).is_err());
    }

    #[tokio::test]
    async fn a_token_is_believed_only_if_it_is_ours() {
        let folder = tempfile::tempdir().unwrap();
        let authenticator = Authenticator::load(folder.path(), "cluster.local").unwrap();
        let key = std::fs::read(folder.path().join(join_token::KEY_FILE)).unwrap();
        let ask = async |value: Option<String>| {
            let mut request = Request::new(());
            if let Some(value) = value {
                request.metadata_mut().insert("authorization", value.parse().unwrap());
            }
            authenticator.caller(&request).await
        };
        let good = join_token::create(&key, "shop", "user", now(), 60).unwrap();
        assert_eq!(
            ask(Some(format!("Bearer {good}"))).await.unwrap(),
            Some(SpiffeId::new("cluster.local", "shop", "user"))
        );
        assert_eq!(ask(None).await.unwrap(), None);
        let foreign = join_token::create(&[7; 32], "shop", "user", now(), 60).unwrap();
        for bad in [format!("Bearer {foreign}"), format!("Basic {good}"), "Bearer x.y.z".to_owned()] {
            assert_eq!(ask(Some(bad)).await.unwrap_err().code(), tonic::Code::Unauthenticated);
        }
    }
}
