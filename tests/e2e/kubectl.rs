//! The cluster as people drive it: with kubectl and meshctl, run as programs; and waiting for a condition.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// After so long a condition that has not come true is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// The cluster under test.
pub(crate) struct Cluster {
    /// The program, and its first words.
    kubectl: Vec<String>,
    meshctl: PathBuf,
    /// `tests/cluster/cluster` and the cluster's name, if it is one of those: then its parts can be killed.
    script: Option<(PathBuf, String)>,
    /// A Python with the package `kubernetes`.
    pub(crate) python: Option<PathBuf>,
    /// Top folder of the repository.
    pub(crate) repository: PathBuf,
    /// Tag of the images.
    pub(crate) tag: String,
    /// Requests a second that make up a load.
    pub(crate) rate: u32,
}

impl Cluster {
    /// As the environment says: `KUBECONFIG`, `KUBECTL`, `MESHCTL`, `E2E_CLUSTER`, `E2E_PYTHON`, `E2E_RATE`.
    pub(crate) fn of_environment() -> Result<Cluster> {
        let repository = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
        let given = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        given("KUBECONFIG").context("KUBECONFIG names no cluster; `cargo xtask e2e` starts one")?;
        let script = given("E2E_CLUSTER").map(|name| (repository.join("tests/cluster/cluster"), name));
        // Its own kubectl is of its version, and remembers nothing of other clusters at the same address.
        let kubectl = match &script {
            Some((script, name)) => {
                vec![script.display().to_string(), "kubectl".to_owned(), "--name".to_owned(), name.clone()]
            }
            None => vec![given("KUBECTL").unwrap_or_else(|| "kubectl".to_owned())],
        };
        Ok(Cluster {
            kubectl,
            meshctl: given("MESHCTL").context("MESHCTL does not say where meshctl is")?.into(),
            script,
            python: given("E2E_PYTHON").map(PathBuf::from),
            repository,
            tag: env!("CARGO_PKG_VERSION").to_owned(),
            rate: given("E2E_RATE").map_or(Ok(500), |rate| rate.parse())?,
        })
    }

    /// Runs kubectl; what it prints.
    pub(crate) fn kubectl(&self, words: &str) -> Result<String> {
        self.kubectl_words(&words.split_whitespace().collect::<Vec<_>>())
    }

    /// The same with words that hold spaces.
    pub(crate) fn kubectl_words(&self, words: &[&str]) -> Result<String> {
        again_while_unreached(|| printed(self.kubectl_command(words).output(), &format!("kubectl {}", words.join(" "))))
    }

    fn kubectl_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl[0]);
        command.args(&self.kubectl[1..]).args(words).stdin(Stdio::null());
        command
    }

    /// `kubectl get … -o json`
    pub(crate) fn get(&self, words: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&format!("get {words} -o json"))?)?)
    }

    /// `kubectl apply -f -`
    pub(crate) fn apply(&self, yaml: &str) -> Result<String> {
        again_while_unreached(|| self.once(&["apply"], yaml))
    }

    /// `kubectl WORDS -f -`, once: what is refused at first is refused.
    pub(crate) fn once(&self, words: &[&str], yaml: &str) -> Result<String> {
        let mut command = self.kubectl_command(&[words, &["-f", "-"]].concat());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("kubectl takes no input")?.write_all(yaml.as_bytes())?;
        printed(child.wait_with_output(), &format!("kubectl {}", words.join(" ")))
    }

    /// `kubectl apply -f` of a file of the repository.
    pub(crate) fn apply_file(&self, path: &str) -> Result<String> {
        self.kubectl_words(&["apply", "-f", &self.repository.join(path).display().to_string()])
    }

    /// Runs a program in a pod.
    pub(crate) fn exec(&self, namespace: &str, of: &str, container: &str, words: &[&str]) -> Result<String> {
        self.kubectl_words(&[&["exec", "-n", namespace, of, "-c", container, "--"], words].concat())
    }

    /// Waits until all pods of all Deployments and StatefulSets of a namespace are the new ones, and ready.
    pub(crate) fn rolled_out(&self, namespace: &str) -> Result<()> {
        let all = self.kubectl(&format!("get deployments,statefulsets -n {namespace} -o name"))?;
        for one in all.lines() {
            self.kubectl(&format!("rollout status -n {namespace} {one} --timeout=120s"))?;
        }
        // Those that are replaced are gone too, so that what is asked next is not about them.
        self.until("the replaced pods are gone", || {
            let pods = self.get(&format!("pods -n {namespace}"))?;
            let ending = items(&pods).filter(|pod| pod["metadata"]["deletionTimestamp"].is_string()).count();
            if ending > 0 {
                bail!("{ending} pods of {namespace} are ending")
            }
            Ok(())
        })
    }

    /// `2/2` and so on of the pods of a namespace, as `kubectl get pods` shows them.
    pub(crate) fn ready_column(&self, namespace: &str) -> Result<Vec<(String, String)>> {
        let table = self.kubectl(&format!("get pods -n {namespace} --no-headers"))?;
        Ok(table
            .lines()
            .filter_map(|line| {
                let mut columns = line.split_whitespace();
                Some((columns.next()?.to_owned(), columns.next()?.to_owned()))
            })
            .collect())
    }

    /// Runs meshctl; what it prints.
    pub(crate) fn meshctl(&self, words: &str) -> Result<String> {
        let output = Command::new(&self.meshctl).args(words.split_whitespace()).stdin(Stdio::null()).output();
        printed(output, &format!("meshctl {words}"))
    }

    /// Starts meshctl; what it prints goes to a file. It is to be ended by who started it.
    pub(crate) fn meshctl_into(&self, words: &str, file: std::fs::File) -> Result<Child> {
        let mut command = Command::new(&self.meshctl);
        command.args(words.split_whitespace()).stdin(Stdio::null()).stdout(file).stderr(Stdio::null());
        command.spawn().with_context(|| format!("meshctl {words} cannot be run"))
    }

    /// Kills a part of the cluster itself (`apiserver`, `kubelet`, …), which its supervisor starts again.
    pub(crate) fn restart_part(&self, part: &str, node: usize) -> Result<()> {
        let (script, name) =
            self.script.as_ref().context("this cluster's parts cannot be killed: it was not made by tests/cluster")?;
        let words = ["restart", "--name", name, "--node", &node.to_string(), part].map(str::to_owned);
        printed(Command::new(script).args(words).stdin(Stdio::null()).output(), "cluster restart").map(drop)
    }

    /// Runs a program in the network of a node, by the node's number. The API server is on the first.
    pub(crate) fn on_node(&self, node: usize, words: &str) -> Result<String> {
        let (script, name) =
            self.script.as_ref().context("this cluster's nodes cannot be reached: it was not made by tests/cluster")?;
        let mut command = Command::new(script);
        command
            .args(["exec", "--name", name, "--node", &node.to_string(), "--"])
            .args(words.split_whitespace())
            .stdin(Stdio::null());
        printed(command.output(), words)
    }

    /// Whether parts of the cluster can be killed.
    pub(crate) fn has_parts(&self) -> bool {
        self.script.is_some()
    }

    /// Asks until the answer is there.
    pub(crate) fn until<T>(&self, what: &str, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match ask() {
                Ok(answer) => return Ok(answer),
                Err(reason) if Instant::now() > deadline => {
                    return Err(reason.context(format!("{what}: has not come within {PATIENCE:?}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(250)),
            }
        }
    }
}

/// An endpoint stands in the API a second or two before the nodes' kube-proxy leads to it; until then a webhook that has just
/// begun to serve cannot be reached, and a user would do the same again.
fn again_while_unreached(mut work: impl FnMut() -> Result<String>) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let outcome = work();
        let unreached = outcome.as_ref().is_err_and(|error| {
            let text = format!("{error:#}");
            text.contains("failed calling webhook") && text.contains("connection refused")
        });
        if !unreached || Instant::now() > deadline {
            return outcome;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// The items of a list.
pub(crate) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// Standard output, or the error with all that was said.
pub(crate) fn printed(output: std::io::Result<Output>, what: &str) -> Result<String> {
    let output = output.with_context(|| format!("{what} cannot be run"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        bail!("`{what}`: {} {}", text(&output.stdout).trim(), text(&output.stderr).trim());
    }
    Ok(text(&output.stdout))
}
