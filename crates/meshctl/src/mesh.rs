//! Finding proxies through the control plane, and asking them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use api::debug::{SyncStatus, Why};
use api::problem::nearest;
pub use hyper::Method;
use serde_json::Value;

use crate::chart::key;
use crate::cli::Reach;
use crate::cluster::Cluster;
use crate::cluster::refusal;
use crate::fetch::{self, Answer, Connection};
use crate::workload::{Whose, pods};

/// Port of the control plane's debug pages (Istio `--httpAddr`).
const DEBUG: u16 = 8080;

/// The mesh, reached through its control plane's debug port.
pub struct Mesh {
    way: Way,
}

/// How parts of the mesh are reached.
enum Way {
    /// At addresses, from here.
    Direct(String),
    /// In pods, through the API server; the control plane is in this namespace.
    Pods(Box<Cluster>, String),
}

impl Mesh {
    /// The mesh that the command line means: the control plane of `--meshd`, else the one in the cluster that is configured,
    /// else the one of a first try on this machine.
    ///
    /// # Errors
    /// A cluster is configured and cannot be used.
    pub async fn open(reach: &Reach) -> Result<Self> {
        let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"));
        let configured = reach.kubeconfig.is_some()
            || reach.context.is_some()
            || std::env::var_os("KUBECONFIG").is_some_and(|files| !files.is_empty())
            || home.is_some_and(|file| file.exists());
        let way = match &reach.meshd {
            Some(address) => Way::Direct(address.clone()),
            None if configured => {
                let cluster = Cluster::open(reach.kubeconfig.as_deref(), reach.context.as_deref()).await?;
                Way::Pods(Box::new(cluster), reach.istio_namespace.clone())
            }
            None => Way::Direct(format!("127.0.0.1:{DEBUG}")),
        };
        Ok(Self { way })
    }

    /// The mesh of the control plane at an address.
    pub fn at(address: &str) -> Self {
        Self { way: Way::Direct(address.to_owned()) }
    }

    /// The cluster, if the mesh is in one.
    pub fn cluster(&self) -> Option<&Cluster> {
        match &self.way {
            Way::Direct(_) => None,
            Way::Pods(cluster, _) => Some(cluster),
        }
    }

    /// A page of each replica of the control plane, with the replica's name or address.
    ///
    /// # Errors
    /// One cannot be reached, or does not have the page.
    pub async fn pages(&self, path: &str) -> Result<Vec<(String, Value)>> {
        self.replicas(Method::GET, path, None).await
    }

    /// The same with another method, and of one replica if it is named.
    ///
    /// # Errors
    /// See [`Mesh::pages`]; or there is no such replica.
    pub async fn replicas(&self, method: Method, path: &str, only: Option<&str>) -> Result<Vec<(String, Value)>> {
        let read = |answer: Answer| serde_json::from_slice(&answer.body).with_context(|| format!("{path} is not JSON"));
        match &self.way {
            Way::Direct(address) => {
                let answer = fetch::ask(address, method, path).await.with_context(|| {
                    format!("the control plane was asked at {address}; set --meshd or the variable MESHD to its debug port, or name a cluster with --kubeconfig")
                })?;
                Ok(vec![(address.clone(), read(answer)?)])
            }
            Way::Pods(cluster, namespace) => {
                let pods = cluster.running(Some(namespace), "app=istiod").await?;
                if pods.is_empty() {
                    bail!(
                        "no control plane runs in the namespace {namespace} of {}; install one with `meshctl install`, or name another namespace with -i",
                        cluster.server
                    );
                }
                let names: Vec<&str> = pods.iter().map(|(_, pod)| pod.as_str()).collect();
                if let Some(only) = only.filter(|only| !names.contains(only)) {
                    bail!("{only:?} is no pod of a control plane in {namespace}; there are: {}", names.join(", "));
                }
                let mut pages = Vec::new();
                for (namespace, pod) in pods.iter().filter(|(_, pod)| only.is_none_or(|only| only == pod)) {
                    let page = read(cluster.fetch(namespace, pod, DEBUG, method.clone(), path).await?)?;
                    pages.push((pod.clone(), page));
                }
                Ok(pages)
            }
        }
    }

    /// A debug page of the control plane; of one replica where there are several, since all know the same objects.
    ///
    /// # Errors
    /// It cannot be reached, or does not have the page.
    pub async fn page(&self, path: &str) -> Result<Value> {
        let first = self.pages(path).await?.into_iter().next();
        first.map(|(_, page)| page).context("the control plane has no replica")
    }

    /// All connected proxies, of all replicas.
    ///
    /// # Errors
    /// See [`Mesh::page`].
    pub async fn proxies(&self) -> Result<Vec<SyncStatus>> {
        let mut all: Vec<SyncStatus> = Vec::new();
        for (replica, page) in self.pages("/debug/syncz").await? {
            let rows: Vec<SyncStatus> = serde_json::from_value(page).context("the list of proxies cannot be read")?;
            all.extend(rows.into_iter().map(|row| SyncStatus { control_plane: replica.clone(), ..row }));
        }
        all.sort_by(|a, b| a.proxy.cmp(&b.proxy));
        Ok(all)
    }

    /// The proxy that a user names: NAME.NAMESPACE, NAME if only one proxy has it, or KIND/NAME.NAMESPACE of a workload.
    ///
    /// # Errors
    /// None or several have the name.
    pub async fn proxy(&self, name: &str) -> Result<SyncStatus> {
        let mut proxies = self.proxies().await?;
        if name.contains('/') {
            return self.proxy_of(&Whose::parse(name, "default")?, proxies).await;
        }
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

    /// One of the proxies of a workload: all have the same configuration.
    async fn proxy_of(&self, whose: &Whose, proxies: Vec<SyncStatus>) -> Result<SyncStatus> {
        let cluster = self.cluster().context("KIND/NAME is for clusters; name a proxy: NAME, or NAME.NAMESPACE")?;
        let names: Vec<String> = pods(cluster, whose)
            .await?
            .iter()
            .map(|pod| {
                let (_, namespace, name) = key(pod);
                format!("{name}.{namespace}")
            })
            .collect();
        let found = proxies.into_iter().find(|row| names.contains(&row.proxy));
        found.with_context(|| {
            format!("no proxy of {} in {} is connected; its pods: {}", whose.name, whose.namespace, names.join(", "))
        })
    }

    /// A page of a proxy's admin interface.
    ///
    /// # Errors
    /// The proxy did not tell where that is, or it cannot be reached.
    pub async fn admin(&self, proxy: &SyncStatus, path: &str) -> Result<Value> {
        if proxy.admin_address.is_empty() {
            bail!("{} did not tell where its admin interface listens", proxy.proxy);
        }
        let answer = self.ask(proxy, Method::GET, path).await?;
        serde_json::from_slice(&answer.body).with_context(|| format!("{path} of {} is not JSON", proxy.proxy))
    }

    /// Any page of a proxy's admin interface.
    ///
    /// # Errors
    /// See [`Mesh::admin`].
    pub async fn ask(&self, proxy: &SyncStatus, method: Method, path: &str) -> Result<Answer> {
        let wrong = || format!("the proxy {} could not be asked", proxy.proxy);
        match &self.way {
            Way::Direct(_) => {
                let address = &proxy.admin_address;
                let mut connection = Connection::open(address).await.with_context(wrong)?;
                let answer = connection.send(method, path, &[("host", address)], None).await.with_context(wrong)?;
                // What was asked is wrong, and the answer says in what.
                if answer.status == 400 && !answer.body.is_empty() {
                    bail!("{}", answer.text().trim());
                }
                if answer.status != 200 {
                    bail!("{address} answered {}: {}", answer.status, answer.text().trim());
                }
                Ok(answer)
            }
            Way::Pods(cluster, _) => {
                let (pod, namespace) = proxy.proxy.split_once('.').with_context(wrong)?;
                let port = proxy.admin_address.rsplit(':').next().and_then(|port| port.parse().ok());
                cluster.fetch(namespace, pod, port.unwrap_or(api::port::ADMIN), method, path).await
            }
        }
    }

    /// The metrics of a proxy together with those of its application.
    ///
    /// # Errors
    /// The proxy is not in a cluster, or cannot be reached.
    pub async fn merged(&self, proxy: &SyncStatus) -> Result<String> {
        let Some((cluster, (pod, namespace))) = self.cluster().zip(proxy.proxy.split_once('.')) else {
            bail!("metrics are merged in pods; of {} there are only its own (-o prom)", proxy.proxy);
        };
        Ok(cluster.fetch(namespace, pod, api::port::STATUS, Method::GET, "/stats/prometheus").await?.text())
    }

    /// The levels of a proxy's log; with `level` after it was set.
    ///
    /// # Errors
    /// See [`Mesh::admin`]; or the level is none.
    pub async fn log_level(&self, proxy: &SyncStatus, level: Option<&str>) -> Result<String> {
        let path = level.map_or_else(|| "/logging".to_owned(), |level| format!("/logging?level={level}"));
        Ok(self.ask(proxy, Method::POST, &path).await?.text())
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
                Err(error) => silent.push(format!("{}: {}", proxy.proxy, refusal::told(&error))),
            }
        }
        found.sort_by(|a, b| a.time.cmp(&b.time));
        let origins = self.origins().await?;
        for why in &mut found {
            why.place = origins.get(&why.object).cloned().unwrap_or_default();
        }
        Ok((found, silent))
    }

    /// Where each object was read (`VirtualService shop/a` is at `shop.yaml:12`).
    ///
    /// # Errors
    /// See [`Mesh::page`].
    pub async fn origins(&self) -> Result<BTreeMap<String, String>> {
        serde_json::from_value(self.page("/debug/origins").await?).context("the places of objects cannot be read")
    }

    /// What proxies refuse of their configuration, one sentence each, with the places of the objects named. `only` one proxy.
    ///
    /// # Errors
    /// See [`Mesh::page`].
    pub async fn refusals(&self, only: Option<&str>) -> Result<Vec<String>> {
        let proxies = match only {
            Some(name) => vec![self.proxy(name).await?],
            None => self.proxies().await?,
        };
        let refused: Vec<(String, String, String)> = proxies
            .into_iter()
            .flat_map(|row| row.types.into_iter().map(move |kind| (row.proxy.clone(), kind.kind, kind.nack)))
            .filter(|(.., nack)| !nack.is_empty())
            .collect();
        if refused.is_empty() {
            return Ok(Vec::new());
        }
        let origins = self.origins().await?;
        let told = |(proxy, kind, nack): (String, String, String)| {
            format!("{proxy} refused {kind}: {}", with_places(&nack, &origins))
        };
        Ok(refused.into_iter().map(told).collect())
    }
}

/// A text in which each object named is followed by its place.
fn with_places(text: &str, origins: &BTreeMap<String, String>) -> String {
    let mut places: Vec<(usize, &str)> = Vec::new();
    for (object, place) in origins {
        for (start, _) in text.match_indices(object.as_str()) {
            let end = start + object.len();
            // A longer name that begins alike is another object.
            let goes_on = |letter: char| letter.is_alphanumeric() || letter == '-';
            if !text[end..].starts_with(goes_on) {
                places.push((end, place));
            }
        }
    }
    places.sort_unstable();
    let mut told = text.to_owned();
    for (end, place) in places.into_iter().rev() {
        told.insert_str(end, &format!(", {place}"));
    }
    told
}

fn hint(name: &str, proxies: &[SyncStatus]) -> String {
    match nearest(name, proxies.iter().map(|row| row.proxy.as_str())) {
        Some(near) => format!("; did you mean {near}?"),
        None if proxies.is_empty() => "; none is".to_owned(),
        None => format!("; connected: {}", proxies.iter().map(|row| row.proxy.as_str()).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_in_a_text_are_followed_by_their_places() {
        let origins = [("Gateway a/b", "x.yaml:3"), ("Gateway a/b-c", "y.yaml:4")]
            .map(|(object, place)| (object.to_owned(), place.to_owned()))
            .into();
        assert_eq!(
            with_places("no (it comes from Gateway a/b-c); nor Gateway a/b", &origins),
            "no (it comes from Gateway a/b-c, y.yaml:4); nor Gateway a/b, x.yaml:3"
        );
    }
}
