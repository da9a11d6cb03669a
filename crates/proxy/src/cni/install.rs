//! The agent on each node (Istio `install-cni`): puts the plug-in's program and its entry into the node's folders, puts them back
//! when somebody else rewrites them, says when all is in place, and takes them away when its DaemonSet is taken away.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use super::NAME;
use super::api::Api;
use super::conflist::{self, Change};
use super::decide::ANNOTATIONS;
use super::owner::{Found, Owner};
use super::repair;

/// How often the folders are looked at though nothing was heard of them.
const LOOK: Duration = Duration::from_secs(10);
/// How often while something is missing.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long a question about readiness may take.
const QUESTION: Duration = Duration::from_secs(5);

/// Settings of the agent.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Where the node's folder of plug-ins is mounted.
    #[arg(long, env = "CNI_BIN_DIR", default_value = "/host/cni-bin")]
    pub bin_dir: PathBuf,
    /// Where the node's folder of network configurations is mounted.
    #[arg(long, env = "CNI_CONF_DIR", default_value = "/host/cni-conf")]
    pub conf_dir: PathBuf,
    /// The configuration to follow; the first by name if empty, as runtimes do.
    #[arg(long, env = "CNI_CONF_NAME", default_value = "")]
    pub conf_name: String,
    /// Namespaces whose pods are left alone.
    #[arg(long, env = "EXCLUDE_NAMESPACES", value_delimiter = ',', default_value = "kube-system")]
    pub exclude_namespaces: Vec<String>,
    /// Where it says that all is in place (`/readyz`).
    #[arg(long, env = "READY_ADDR", default_value = "0.0.0.0:8000")]
    pub ready_addr: SocketAddr,
    /// Name of its DaemonSet.
    #[arg(long, env = "DAEMON_SET", default_value = "istio-cni-node")]
    pub daemon_set: String,
    /// Namespace of its DaemonSet.
    #[arg(long, env = "POD_NAMESPACE", default_value = "istio-system")]
    pub namespace: String,
    /// The API server's host.
    #[arg(long, env = "KUBERNETES_SERVICE_HOST", default_value = "kubernetes.default.svc")]
    pub api_host: String,
    /// The API server's port.
    #[arg(long, env = "KUBERNETES_SERVICE_PORT", default_value_t = 443)]
    pub api_port: u16,
    /// Folder of the token with which the API server is asked whether the DaemonSet is still there.
    #[arg(long, env = "ACCOUNT_DIR", default_value = "/var/run/secrets/kubernetes.io/serviceaccount")]
    pub account_dir: PathBuf,
    /// Delete pods of this node that started before the plug-in was in place.
    #[arg(long, env = "REPAIR_DELETE_PODS")]
    pub repair_delete_pods: bool,
    /// Name of this node.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node_name: String,
    /// What is logged.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log: String,
    /// Log as JSON.
    #[arg(long, env = "LOG_AS_JSON")]
    pub log_as_json: bool,
}

/// The node's folders, and what is to be in them.
struct Node {
    /// Our own program, which is the plug-in too.
    program: PathBuf,
    bin: PathBuf,
    conf: PathBuf,
    /// The configuration to follow, if one is named.
    name: Option<String>,
    entry: Value,
}

impl Node {
    fn of(arguments: &Arguments, program: PathBuf) -> Node {
        let mut excluded: Vec<&str> = arguments.exclude_namespaces.iter().map(|name| name.trim()).collect();
        // A control plane that waited for its own plug-in would never come.
        excluded.push(&arguments.namespace);
        excluded.retain(|name| !name.is_empty());
        excluded.sort_unstable();
        excluded.dedup();
        Node {
            program,
            bin: arguments.bin_dir.clone(),
            conf: arguments.conf_dir.clone(),
            name: Some(arguments.conf_name.clone()).filter(|name| !name.is_empty()),
            entry: json!({"type": NAME, "capabilities": {ANNOTATIONS: true, "dns": true}, "excludeNamespaces": excluded}),
        }
    }

    /// Puts the program into its place, whole or not at all. One that runs meanwhile goes on as it was.
    fn put_program(&self) -> Result<()> {
        let (place, new) = (self.bin.join(NAME), self.bin.join(format!(".{NAME}.new")));
        let copied = fs::copy(&self.program, &new)
            .and_then(|_| fs::set_permissions(&new, fs::Permissions::from_mode(0o755)))
            .and_then(|()| fs::rename(&new, &place));
        copied.with_context(|| format!("the plug-in cannot be put into the folder {}", self.bin.display()))
    }

    /// Puts back what is missing; whether something was.
    fn put(&self) -> Result<bool> {
        // The program first: an entry without it would keep every pod of the node from starting.
        let lost = !self.bin.join(NAME).exists();
        if lost {
            self.put_program()?;
        }
        let (file, text) = self.configuration()?;
        let wrong = |wrong| anyhow::anyhow!("{} {wrong}", self.conf.join(&file).display());
        let Some(change) = conflist::add(&file, &text, &self.entry).map_err(wrong)? else { return Ok(lost) };
        if change.remove.is_some()
            && let Ok(other) = fs::read_to_string(self.conf.join(&change.file))
            && !conflist::has_entry(&change.file, &other)
        {
            bail!("{file} has to become {}, which is there already: remove one of them", change.file);
        }
        self.write(&change)?;
        Ok(true)
    }

    /// The file that the runtime goes by, and its text.
    fn configuration(&self) -> Result<(String, String)> {
        let unread = || format!("the folder {} cannot be read", self.conf.display());
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.conf).with_context(unread)? {
            names.extend(entry.with_context(unread)?.file_name().into_string());
        }
        let listed = self.name.as_deref().map(conflist::listed);
        let named = self.name.as_deref().map(|name| {
            // One that was named as a single configuration has become a list.
            let listed = listed.as_deref().filter(|listed| names.iter().any(|one| one == listed));
            if names.iter().any(|one| one == name) { name } else { listed.unwrap_or(name) }
        });
        let Some(file) = named.or_else(|| conflist::chosen(&names)) else {
            bail!("no network is configured in {} yet: the plug-in follows another", self.conf.display());
        };
        let path = self.conf.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        Ok((file.to_owned(), text))
    }

    fn write(&self, change: &Change) -> Result<()> {
        let (place, new) = (self.conf.join(&change.file), self.conf.join(format!(".{}.{NAME}", change.file)));
        let mode = [Some(change.file.as_str()), change.remove.as_deref()]
            .into_iter()
            .flatten()
            .find_map(|name| Some(fs::metadata(self.conf.join(name)).ok()?.permissions().mode()));
        let written = fs::write(&new, &change.text)
            .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(mode.unwrap_or(0o644))))
            .and_then(|()| fs::rename(&new, &place));
        written.with_context(|| format!("{} cannot be written", place.display()))?;
        if let Some(old) = &change.remove {
            fs::remove_file(self.conf.join(old)).with_context(|| format!("{old} cannot be removed"))?;
        }
        Ok(())
    }

    /// Takes away entry and program, from whichever file.
    fn clean(&self) -> Result<()> {
        let unread = || format!("the folder {} cannot be read", self.conf.display());
        for entry in fs::read_dir(&self.conf).with_context(unread)? {
            let Ok(file) = entry.with_context(unread)?.file_name().into_string() else { continue };
            let Ok(text) = fs::read_to_string(self.conf.join(&file)) else { continue };
            if let Ok(Some(change)) = conflist::remove(&file, &text) {
                self.write(&change)?;
            }
        }
        let program = self.bin.join(NAME);
        match fs::remove_file(&program) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{} cannot be removed", program.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Keeps the plug-in in place until it is told to end.
///
/// # Errors
/// The port cannot be listened on, the folders cannot be watched, or the node cannot be cleaned.
pub async fn run(arguments: &Arguments) -> Result<()> {
    let node = Node::of(arguments, std::env::current_exe()?);
    let mut terminate = signal(SignalKind::terminate())?;
    let ready = Arc::new(AtomicBool::new(false));
    let listener = TcpListener::bind(arguments.ready_addr).await;
    let listener = listener.with_context(|| format!("{} cannot be listened on", arguments.ready_addr))?;
    tokio::spawn(tell(listener, Arc::clone(&ready)));
    let api = Api { server: (arguments.api_host.clone(), arguments.api_port), account: arguments.account_dir.clone() };
    if arguments.repair_delete_pods {
        tokio::spawn(repair::run(api.clone(), arguments.node_name.clone()));
    }
    let owner = Owner { api, namespace: arguments.namespace.clone(), name: arguments.daemon_set.clone() };
    let changed = watch(&[&node.bin, &node.conf])?;
    // A newer agent brings its own program.
    node.put_program()?;
    let allowed = tokio::spawn({
        let owner = owner.clone();
        async move { owner.ask().await }
    });
    let mut told = String::new();
    loop {
        let now = match node.put() {
            Ok(true) => "the plug-in was put into its place".to_owned(),
            Ok(false) => String::new(),
            Err(error) => format!("not ready: {error:#}"),
        };
        let missing = now.starts_with("not ready");
        ready.store(!missing, Ordering::Relaxed);
        if now != told && !now.is_empty() {
            tracing::info!("{now}");
        }
        told = now;
        tokio::select! {
            () = changed.notified() => {}
            () = tokio::time::sleep(if missing { LOOK_AGAIN } else { LOOK }) => {}
            _ = terminate.recv() => break,
        }
    }
    ready.store(false, Ordering::Relaxed);
    let before = if allowed.is_finished() { allowed.await? } else { Ok(Found::Refused) };
    let now = owner.ask().await;
    if is_over(before.as_ref().ok().copied(), now.as_ref().ok().copied()) {
        node.clean()?;
        tracing::info!("the DaemonSet is taken away: the node is as it was before");
    } else {
        let why = now.err().map(|error| format!("{error:#}")).unwrap_or_default();
        tracing::info!(why, "the DaemonSet stays: so does the plug-in, for pods that start meanwhile");
    }
    Ok(())
}

/// Whether the installation is taken away. Its rights go with it, often before the agent is told to end: who was allowed to ask
/// and no longer is has been taken away too.
fn is_over(before: Option<Found>, now: Option<Found>) -> bool {
    match now {
        Some(Found::Gone) => true,
        Some(Found::Refused) => before == Some(Found::Stays),
        Some(Found::Stays) | None => false,
    }
}

/// Watches folders for files that come, go or change: whoever waits is woken.
fn watch(folders: &[&Path]) -> Result<Arc<Notify>> {
    let watch = Inotify::init(InitFlags::IN_CLOEXEC).context("folders cannot be watched")?;
    let what =
        AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVE | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE;
    for folder in folders {
        watch.add_watch(*folder, what).with_context(|| format!("the folder {} cannot be watched", folder.display()))?;
    }
    let changed = Arc::new(Notify::new());
    let waker = Arc::clone(&changed);
    // Ends with the program. Should the watch ever fail, folders are looked at all the same, less often.
    std::thread::spawn(move || {
        while watch.read_events().is_ok() {
            waker.notify_one();
        }
    });
    Ok(changed)
}

/// Answers whoever asks whether all is in place.
async fn tell(listener: TcpListener, ready: Arc<AtomicBool>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        };
        let ready = ready.load(Ordering::Relaxed);
        tokio::spawn(tokio::time::timeout(QUESTION, answer(stream, ready)));
    }
}

async fn answer(mut stream: TcpStream, ready: bool) -> std::io::Result<()> {
    let mut question = [0; 1024];
    let length = stream.read(&mut question).await?;
    let alive = question[..length].starts_with(b"GET /healthz");
    let status = if ready || alive { "200 OK" } else { "503 Service Unavailable" };
    stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "{ \"name\": \"k8s\", \"cniVersion\": \"1.0.0\", \"plugins\": [{\"type\": \"ptp\"}] }";

    fn node(folder: &Path) -> Node {
        let (bin, conf) = (folder.join("bin"), folder.join("conf"));
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(&conf).unwrap();
        let program = folder.join("proxy");
        fs::write(&program, "program").unwrap();
        Node { program, bin, conf, name: None, entry: json!({"type": NAME}) }
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut all: Vec<String> =
            fs::read_dir(folder).unwrap().map(|one| one.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[test]
    fn the_node_is_as_before_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let node = node(folder.path());
        assert!(format!("{:#}", node.put().unwrap_err()).contains("no network is configured"));
        fs::write(node.conf.join("10-a.conflist"), LIST).unwrap();
        fs::set_permissions(node.conf.join("10-a.conflist"), fs::Permissions::from_mode(0o600)).unwrap();
        assert!(node.put().unwrap());
        assert!(!node.put().unwrap(), "the second time there is nothing to do");
        assert_eq!(fs::read_to_string(node.bin.join(NAME)).unwrap(), "program");
        assert_eq!(fs::metadata(node.bin.join(NAME)).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!((files(&node.bin), files(&node.conf)), (vec![NAME.to_owned()], vec!["10-a.conflist".to_owned()]));
        // Another plug-in's agent writes its file anew, and somebody removes the program.
        fs::write(node.conf.join("10-a.conflist"), LIST).unwrap();
        fs::remove_file(node.bin.join(NAME)).unwrap();
        assert!(node.put().unwrap());
        node.clean().unwrap();
        assert_eq!(fs::read_to_string(node.conf.join("10-a.conflist")).unwrap(), LIST);
        assert_eq!(fs::metadata(node.conf.join("10-a.conflist")).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(files(&node.bin).is_empty());
        node.clean().unwrap();
    }

    #[test]
    fn a_single_configuration_that_comes_again_is_taken_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut node = node(folder.path());
        let single = "{\"name\": \"one\", \"type\": \"bridge\"}";
        for name in [None, Some("10-a.conf".to_owned())] {
            node.name = name;
            fs::write(node.conf.join("10-a.conf"), single).unwrap();
            assert!(node.put().unwrap());
            assert!(!node.put().unwrap());
            fs::write(node.conf.join("10-a.conf"), single).unwrap();
            assert!(node.put().unwrap());
            assert_eq!(files(&node.conf), ["10-a.conflist"]);
            node.clean().unwrap();
            assert_eq!(files(&node.conf), ["10-a.conf"]);
            assert_eq!(fs::read_to_string(node.conf.join("10-a.conf")).unwrap(), single);
        }
        fs::write(node.conf.join("10-a.conflist"), LIST).unwrap();
        assert!(node.put().unwrap_err().to_string().contains("there already"));
    }

    #[test]
    fn the_mesh_excludes_itself() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: Arguments,
        }
        let line = ["x", "--exclude-namespaces=kube-system,a", "--namespace=mesh"];
        let arguments = <Line as clap::Parser>::parse_from(line).arguments;
        let node = Node::of(&arguments, PathBuf::new());
        assert_eq!(node.entry["excludeNamespaces"], json!(["a", "kube-system", "mesh"]));
        assert_eq!(node.entry["capabilities"], json!({ANNOTATIONS: true, "dns": true}));
    }

    #[test]
    fn the_plug_in_stays_unless_the_daemon_set_goes() {
        use Found::{Gone, Refused, Stays};
        for (before, now, over) in [
            (Some(Stays), Some(Gone), true),
            (None, Some(Gone), true),
            (Some(Stays), Some(Refused), true),
            (Some(Refused), Some(Refused), false),
            (None, Some(Refused), false),
            (Some(Stays), Some(Stays), false),
            (Some(Stays), None, false),
        ] {
            assert_eq!(is_over(before, now), over, "{before:?} {now:?}");
        }
    }

    #[tokio::test]
    async fn folders_are_listened_to() {
        let folder = tempfile::tempdir().unwrap();
        let changed = watch(&[folder.path()]).unwrap();
        fs::write(folder.path().join("a"), "b").unwrap();
        changed.notified().await;
    }
}
