//! A Kubernetes cluster: apply and delete objects, look at pods, and reach ports of theirs through the API server.

pub mod refusal;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::BodyExt;
use hyper::Method;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams, PostParams, Request,
};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, Discovery, Scope, pinned_kind, verbs};
use kube::{Client, Config, Resource, ResourceExt};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::chart::key;
use crate::fetch::{Answer, Connection};

/// Who writes, as the API server remembers it.
const MANAGER: &str = "meshctl";

/// How long webhooks may take for an object that is only tried.
const REVIEW: Duration = Duration::from_secs(1);

/// A cluster.
pub struct Cluster {
    client: Client,
    /// Where the API server is.
    pub server: String,
    kinds: Mutex<HashMap<GroupVersionKind, (ApiResource, ApiCapabilities)>>,
}

/// What applying an object did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was not there.
    Created,
    /// It was other.
    Changed,
    /// It was the same.
    Unchanged,
}

impl Cluster {
    /// The cluster of a kubeconfig file and context; without a file that of `KUBECONFIG`, `~/.kube/config`, or the pod.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub async fn open(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Cluster> {
        let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
        let config = match kubeconfig {
            Some(file) => {
                let wrong = || format!("the kubeconfig {} cannot be used", file.display());
                let read = Kubeconfig::read_from(file).with_context(wrong)?;
                Config::from_custom_kubeconfig(read, &options).await.with_context(wrong)?
            }
            None if context.is_some() => {
                Config::from_kubeconfig(&options).await.context("the kubeconfig cannot be used")?
            }
            None => Config::infer()
                .await
                .context("no cluster is configured: name a file with --kubeconfig or the variable KUBECONFIG")?,
        };
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).context("the cluster cannot be reached with this kubeconfig")?;
        Ok(Cluster { client, server, kinds: Mutex::default() })
    }

    /// The client of the API server.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Version of the API server.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn version(&self) -> Result<String> {
        let info = self
            .client
            .apiserver_version()
            .await
            .with_context(|| format!("the API server at {} does not answer", self.server))?;
        Ok(info.git_version)
    }

    async fn kind_of(&self, object: &Value) -> Result<(ApiResource, ApiCapabilities)> {
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let version = text("apiVersion");
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let kind = GroupVersionKind::gvk(group, version, &text("kind"));
        let known = |kinds: &HashMap<_, _>| kinds.get(&kind).cloned();
        if let Some(found) = self.kinds.lock().ok().and_then(|kinds| known(&kinds)) {
            return Ok(found);
        }
        let found = pinned_kind(&self.client, &kind).await.map_err(|error| {
            let what = match &error {
                kube::Error::Service(_) | kube::Error::HyperError(_) => {
                    format!("the API server at {} does not answer", self.server)
                }
                kube::Error::Api(status) if !status.is_not_found() => {
                    format!("the cluster at {} cannot be asked", self.server)
                }
                _ => format!("the cluster does not know the kind {} of {}", kind.kind, text("apiVersion")),
            };
            anyhow::Error::new(error).context(what)
        })?;
        if let Ok(mut kinds) = self.kinds.lock() {
            kinds.insert(kind, found.clone());
        }
        Ok(found)
    }

    async fn api(&self, object: &Value) -> Result<Api<DynamicObject>> {
        let (resource, capabilities) = self.kind_of(object).await?;
        let (_, namespace, _) = key(object);
        Ok(match capabilities.scope {
            Scope::Namespaced => {
                let namespace = if namespace.is_empty() { "default" } else { &namespace };
                Api::namespaced_with(self.client.clone(), namespace, &resource)
            }
            Scope::Cluster => Api::all_with(self.client.clone(), &resource),
        })
    }

    /// Applies an object on the server's side. `dry` changes nothing.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn apply(&self, object: &Value, dry: bool) -> Result<Applied> {
        let (kind, namespace, name) = key(object);
        let what = || format!("{kind} {} cannot be applied", place(&namespace, &name));
        let api = self.api(object).await.with_context(what)?;
        let before = api.get_opt(&name).await.with_context(what)?;
        let mut how = PatchParams::apply(MANAGER).force();
        how.dry_run = dry;
        let after = api.patch(&name, &how, &Patch::Apply(object)).await.with_context(what)?;
        let Some(before) = before else { return Ok(Applied::Created) };
        let same = match dry {
            false => before.resource_version() == after.resource_version(),
            // What is only tried gets no new version.
            true => content(before) == content(after),
        };
        Ok(if same { Applied::Unchanged } else { Applied::Changed })
    }

    /// Turns an object as it was read into another, unless somebody else wrote it meanwhile.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn change(&self, before: &Value, after: &Value) -> Result<()> {
        if before == after {
            return Ok(());
        }
        let (kind, namespace, name) = key(before);
        let what = || format!("{kind} {} cannot be changed", place(&namespace, &name));
        let api = self.api(before).await.with_context(what)?;
        let after = serde_json::from_value(after.clone()).with_context(what)?;
        let how = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        api.replace(&name, &how, &after).await.with_context(what)?;
        Ok(())
    }

    /// The object as it is now, if it is there.
    ///
    /// # Errors
    /// The API server does not say.
    pub async fn get(&self, object: &Value) -> Result<Option<Value>> {
        let (kind, namespace, name) = key(object);
        let what = || format!("{kind} {} cannot be read", place(&namespace, &name));
        let found = self.api(object).await?.get_opt(&name).await.with_context(what)?;
        found.map(|found| serde_json::to_value(found).with_context(what)).transpose()
    }

    /// Deletes an object; false if it was not there. What it owns goes with it.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn delete(&self, object: &Value) -> Result<bool> {
        let (kind, namespace, name) = key(object);
        let what = || format!("{kind} {} cannot be deleted", place(&namespace, &name));
        let api = self.api(object).await.with_context(what)?;
        // A DaemonSet stays until its pods are gone: they may have to ask whether it goes.
        let how = if kind == "DaemonSet" { DeleteParams::foreground() } else { DeleteParams::background() };
        match api.delete(&name, &how).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
            Err(error) => Err(error).with_context(what),
        }
    }

    /// Objects of a kind in all namespaces (or one), by label and field.
    ///
    /// # Errors
    /// The API server refuses, or does not know the kind.
    pub async fn list(
        &self,
        api_version: &str,
        kind: &str,
        namespace: Option<&str>,
        labels: &str,
        fields: &str,
    ) -> Result<Vec<Value>> {
        let sample = serde_json::json!({"apiVersion": api_version, "kind": kind});
        let (resource, _) = self.kind_of(&sample).await?;
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let which = ListParams {
            label_selector: (!labels.is_empty()).then(|| labels.to_owned()),
            field_selector: (!fields.is_empty()).then(|| fields.to_owned()),
            ..ListParams::default()
        };
        let listed = api.list(&which).await.with_context(|| format!("{kind}s cannot be listed"))?;
        let mut objects = Vec::new();
        for object in listed {
            let mut value = serde_json::to_value(object)?;
            // Elements of a list do not say what they are.
            value["apiVersion"] = serde_json::json!(api_version);
            value["kind"] = serde_json::json!(kind);
            objects.push(value);
        }
        Ok(objects)
    }
}

impl Cluster {
    /// What keeps the API server from having an object looked at by webhooks, if any of them does not answer. Nothing is made.
    ///
    /// # Errors
    /// The object is none, or its kind is not known.
    pub async fn unanswered(&self, object: &Value) -> Result<Option<String>> {
        let api = self.api(object).await?;
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let object = serde_json::from_value(object.clone())?;
        // Whoever dialled before the Service led anywhere waits for long, while a new attempt gets there.
        match tokio::time::timeout(REVIEW, api.create(&dry, &object)).await {
            Err(_) => Ok(Some("the API server does not reach the control plane's webhooks yet".to_owned())),
            Ok(Err(kube::Error::Api(status))) if status.message.contains("failed calling webhook") => {
                Ok(Some(status.message.clone()))
            }
            // Whatever else is said of it, all that were asked have answered.
            Ok(_) => Ok(None),
        }
    }

    /// Everything in a namespace, of whatever kind, as far as it can be listed.
    ///
    /// # Errors
    /// The API server does not say which kinds there are, or refuses a list.
    pub async fn contents(&self, namespace: &str) -> Result<Vec<Value>> {
        let all =
            Discovery::new(self.client.clone()).run().await.context("the kinds of the cluster cannot be listed")?;
        let resources = all.groups().flat_map(|group| group.recommended_resources());
        let mut objects = Vec::new();
        for (resource, capabilities) in resources {
            if capabilities.scope == Scope::Namespaced && capabilities.supports_operation(verbs::LIST) {
                objects.extend(self.list(&resource.api_version, &resource.kind, Some(namespace), "", "").await?);
            }
        }
        Ok(objects)
    }

    /// Whether the caller may do this with objects of a resource (plural), in a namespace.
    ///
    /// # Errors
    /// The API server does not say.
    pub async fn may(&self, verb: &str, group: &str, resource: &str, namespace: &str) -> Result<bool> {
        let review = serde_json::json!({"spec": {"resourceAttributes": {
            "verb": verb, "group": group, "resource": resource, "namespace": namespace,
        }}});
        let review: SelfSubjectAccessReview = serde_json::from_value(review)?;
        let reviews: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let said = reviews.create(&PostParams::default(), &review).await;
        let said = said.with_context(|| format!("the API server does not say whether you may {verb} {resource}"))?;
        Ok(said.status.is_some_and(|said| said.allowed))
    }

    /// Running pods of a namespace (or of all) with these labels: namespace and name.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn running(&self, namespace: Option<&str>, labels: &str) -> Result<Vec<(String, String)>> {
        let pods = self.list("v1", "Pod", namespace, labels, "status.phase=Running").await?;
        let alive = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        Ok(alive
            .map(|pod| {
                let (_, namespace, name) = key(pod);
                (namespace, name)
            })
            .collect())
    }

    /// A page at a port of a pod, on its own loopback address, through the API server.
    ///
    /// # Errors
    /// The pod is not there, or nothing answers at the port.
    pub async fn fetch(&self, namespace: &str, pod: &str, port: u16, method: Method, path: &str) -> Result<Answer> {
        let wrong = || format!("port {port} of the pod {namespace}/{pod} cannot be reached");
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let mut forwarded = pods.portforward(pod, &[port]).await.with_context(wrong)?;
        let stream = forwarded.take_stream(port).with_context(wrong)?;
        let mut connection = Connection::over(stream).await.with_context(wrong)?;
        let answer = connection.send(method, path, &[("host", "localhost")], None).await.with_context(wrong)?;
        // What was asked is wrong, and the answer says in what.
        if answer.status == 400 && !answer.body.is_empty() {
            bail!("{}", answer.text().trim());
        }
        if answer.status != 200 {
            bail!("{namespace}/{pod} answered {} to {path}: {}", answer.status, answer.text().trim());
        }
        Ok(answer)
    }
}

impl Cluster {
    /// Hands connections on to a port of a pod, each over a stream of its own, for ever.
    ///
    /// # Errors
    /// Nobody can be accepted any more. A connection that breaks is told, and the others go on.
    pub async fn forward(&self, namespace: &str, pod: &str, port: u16, listener: TcpListener) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        loop {
            let (mut near, _) = listener.accept().await.context("no connection can be accepted")?;
            let (pods, pod) = (pods.clone(), pod.to_owned());
            tokio::spawn(async move {
                let handed_on = async {
                    let mut forwarded = pods.portforward(&pod, &[port]).await?;
                    let mut far = forwarded.take_stream(port).context("there is no stream")?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await?;
                    anyhow::Ok(())
                };
                if let Err(error) = handed_on.await {
                    eprintln!("a connection to port {port} of {pod} ended: {}", refusal::told(&error));
                }
            });
        }
    }
}

/// An object without what the API server notes about it.
fn content(mut object: DynamicObject) -> DynamicObject {
    object.metadata.managed_fields = None;
    object.metadata.resource_version = None;
    object.metadata.generation = None;
    object
}

/// Which lines of a container's log.
#[derive(Clone, Debug, Default)]
pub struct LogWish {
    /// The container.
    pub container: String,
    /// New ones too, as they come.
    pub follow: bool,
    /// How many of the last; fewer than none is all.
    pub tail: i64,
    /// Not older than so many seconds.
    pub since: Option<i64>,
    /// Of the container before the last restart.
    pub previous: bool,
}

impl Cluster {
    /// A container's log.
    ///
    /// # Errors
    /// The API server refuses, or the kubelet does not answer it.
    pub async fn log(&self, namespace: &str, pod: &str, wish: &LogWish) -> Result<Log> {
        let wrong = || format!("the log of {} in {namespace}/{pod} cannot be read", wish.container);
        let which = LogParams {
            container: Some(wish.container.clone()),
            follow: wish.follow,
            tail_lines: (wish.tail >= 0).then_some(wish.tail),
            since_seconds: wish.since,
            previous: wish.previous,
            ..LogParams::default()
        };
        let request = Request::new(Pod::url_path(&(), Some(namespace))).logs(pod, &which).with_context(wrong)?;
        let response = self.client.send(request.map(Body::from)).await.with_context(wrong)?;
        let refused = !response.status().is_success();
        let body = response.into_body();
        if refused {
            let told = body.collect().await.with_context(wrong)?.to_bytes();
            let status: Value = serde_json::from_slice(&told).unwrap_or_default();
            let message =
                status["message"].as_str().map_or_else(|| String::from_utf8_lossy(&told).into(), str::to_owned);
            return Err(anyhow::anyhow!(message)).with_context(wrong);
        }
        Ok(Log { body, held: Vec::new(), ended: false })
    }
}

/// A container's log, line by line.
pub struct Log {
    body: Body,
    /// What has come and was not taken.
    held: Vec<u8>,
    ended: bool,
}

impl Log {
    /// The next line without its end; none after the last.
    ///
    /// # Errors
    /// The API server breaks off.
    pub async fn next(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.held.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if self.ended {
                let last = std::mem::take(&mut self.held);
                return Ok((!last.is_empty()).then(|| String::from_utf8_lossy(&last).into_owned()));
            }
            match self.body.frame().await {
                Some(frame) => self.held.extend(frame?.into_data().unwrap_or_default()),
                None => self.ended = true,
            }
        }
    }
}

/// `namespace/name`, or the name alone.
pub fn place(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}
