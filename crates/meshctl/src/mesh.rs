//! Finding proxies through the control plane, and asking them.

use anyhow::{Context, Result, bail};
use api::debug::{SyncStatus, Why};
use api::problem::nearest;
use serde_json::Value;

use crate::fetch;

/// The mesh, reached through its control plane's debug port.
pub struct Mesh {
    address: String,
}

impl Mesh {
    /// The mesh of a control plane.
    pub fn new(address: &str) -> Self {
        Self { address: address.to_owned() }
    }

    /// A debug page of the control plane.
    ///
    /// # Errors
    /// It cannot be reached, or does not have the page.
    pub async fn page(&self, path: &str) -> Result<Value> {
        let answer = fetch::get(&self.address, path).await.with_context(|| {
            format!(
                "the control plane was asked at {}; set --meshd or the variable MESHD to its debug port",
                self.address
            )
        })?;
        serde_json::from_slice(&answer.body).with_context(|| format!("{path} of {} is not JSON", self.address))
    }

    /// All connected proxies.
    ///
    /// # Errors
    /// See [`Mesh::page`].
    pub async fn proxies(&self) -> Result<Vec<SyncStatus>> {
        serde_json::from_value(self.page("/debug/syncz").await?).context("the list of proxies cannot be read")
    }

    /// The proxy that a user names: NAME.NAMESPACE, or NAME if only one proxy has it.
    ///
    /// # Errors
    /// None or several have the name.
    pub async fn proxy(&self, name: &str) -> Result<SyncStatus> {
        let mut proxies = self.proxies().await?;
        let exact = proxies.iter().position(|row| row.proxy == name);
        let place = match exact {
            Some(place) => place,
            None => {
                let short: Vec<usize> =
                    (0..proxies.len()).filter(|place| proxies[*place].proxy.split('.').next() == Some(name)).collect();
                match short.as_slice() {
                    [one] => *one,
                    [] => bail!("no proxy {name:?} is connected{}", hint(name, &proxies)),
                    _ => bail!("several proxies are named {name:?}: write NAME.NAMESPACE"),
                }
            }
        };
        Ok(proxies.swap_remove(place))
    }

    /// A page of a proxy's admin interface.
    ///
    /// # Errors
    /// The proxy did not tell where that is, or it cannot be reached.
    pub async fn admin(&self, proxy: &SyncStatus, path: &str) -> Result<Value> {
        if proxy.admin_address.is_empty() {
            bail!("{} did not tell where its admin interface listens", proxy.proxy);
        }
        let answer = fetch::get(&proxy.admin_address, path)
            .await
            .with_context(|| format!("the proxy {} could not be asked", proxy.proxy))?;
        serde_json::from_slice(&answer.body).with_context(|| format!("{path} of {} is not JSON", proxy.proxy))
    }

    /// What proxies know of failures; those that cannot be asked are named in the second list.
    ///
    /// # Errors
    /// The control plane cannot be asked.
    pub async fn failures(&self, path: &str, only: Option<&str>) -> Result<(Vec<Why>, Vec<String>)> {
        let proxies = match only {
            Some(name) => vec![self.proxy(name).await?],
            None => self.proxies().await?,
        };
        let (mut found, mut silent) = (Vec::new(), Vec::new());
        for proxy in proxies.iter().filter(|proxy| !proxy.admin_address.is_empty()) {
            match self.admin(proxy, path).await.and_then(|value| Ok(serde_json::from_value::<Vec<Why>>(value)?)) {
                Ok(rows) => found.extend(rows),
                Err(error) => silent.push(format!("{}: {error:#}", proxy.proxy)),
            }
        }
        found.sort_by(|a, b| a.time.cmp(&b.time));
        Ok((found, silent))
    }
}

fn hint(name: &str, proxies: &[SyncStatus]) -> String {
    match nearest(name, proxies.iter().map(|row| row.proxy.as_str())) {
        Some(near) => format!("; did you mean {near}?"),
        None if proxies.is_empty() => "; none is".to_owned(),
        None => format!("; connected: {}", proxies.iter().map(|row| row.proxy.as_str()).collect::<Vec<_>>().join(", ")),
    }
}
