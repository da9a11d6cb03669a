//! What the mesh costs in a Kubernetes cluster, beside the same workloads without it: 5 Deployments of 4 pods, and two
//! clients. All is done as a user does it, with kubectl and meshctl; memory and CPU are read from the processes, which on a
//! cluster of `cargo xtask cluster` are processes of this machine.

pub(crate) mod pod;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::report::{machine, number, rounded, table};
use crate::{Output as Form, beside};

const NAMESPACE: &str = "bench";
const DEPLOYMENTS: usize = 5;
const REPLICAS: usize = 4;

/// `bench cluster …`
#[derive(Args)]
pub(crate) struct Arguments {
    /// The cluster's kubectl: a program and its first arguments.
    #[arg(long, default_value = "kubectl")]
    kubectl: String,
    /// Part of the path of the cgroups in which the cluster's containers are.
    #[arg(long, default_value = "/mesh-cluster/mesh/")]
    cgroup: String,
    /// Tag of the images.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// Everything shorter: says only where things stand.
    #[arg(long)]
    quick: bool,
    /// Only these parts; installing and restarting is always done.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::value_variants().iter().copied())]
    only: Vec<Part>,
    /// What the installation has besides its defaults (`components.cni.enabled=true`), as `meshctl install` takes it.
    #[arg(long)]
    set: Vec<String>,
    /// How the results are printed.
    #[arg(short, long, default_value = "table")]
    output: Form,
}

/// A part that can be left out.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Memory and CPU without traffic.
    Idle,
    /// Latency and CPU under 1,000 requests a second.
    Latency,
    /// How fast a changed route is followed.
    Route,
    /// A Deployment is replaced under load.
    Rolling,
    /// A route comes before the subset that it names.
    Early,
    /// The control plane is killed under load.
    Killed,
    /// Servers close idle connections.
    KeepAlive,
}

/// One measure: what it was without and with the mesh.
struct Row {
    name: &'static str,
    without: Option<String>,
    with: String,
}

struct Cluster<'a> {
    arguments: &'a Arguments,
    folder: &'a Path,
    meshctl: PathBuf,
}

/// Runs all.
pub(crate) fn run(arguments: &Arguments, folder: &Path) -> Result<()> {
    let cluster = Cluster { arguments, folder, meshctl: beside()?.join("meshctl") };
    let outcome = cluster.measure();
    // Whatever happened, the cluster is left as it was found.
    let _ = cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=true", "--ignore-not-found"]);
    let _ = cluster.meshctl(&["uninstall", "--purge", "-y"]);
    let rows = outcome?;
    match arguments.output {
        Form::Table => {
            let cells =
                |row: &Row| vec![row.name.to_owned(), row.without.clone().unwrap_or_default(), row.with.clone()];
            print!("{}", table(&["MEASURE", "NO MESH", "MESH"], &rows.iter().map(cells).collect::<Vec<_>>()));
        }
        Form::Json => {
            let rows: Vec<Value> =
                rows.iter().map(|row| json!({"measure": row.name, "without": row.without, "with": row.with})).collect();
            println!("{:#}", json!({"machine": machine(), "rows": rows}));
        }
    }
    Ok(())
}

impl Cluster<'_> {
    fn measure(&self) -> Result<Vec<Row>> {
        let seconds = if self.arguments.quick { 5.0 } else { 20.0 };
        let mut rows = Vec::new();
        let mut row = |name, without: Option<String>, with: String| {
            eprintln!("{name}: {} / {with}", without.as_deref().unwrap_or("-"));
            rows.push(Row { name, without, with });
        };
        let wants = |part: Part| self.arguments.only.contains(&part);
        self.workloads(false)?;
        self.rolled_out()?;
        let plain_restart = self.restarts()?;
        let plain = wants(Part::Latency).then(|| self.call(1000.0, 16, seconds)).transpose()?;
        let plain_roll = wants(Part::Rolling).then(|| self.rolling()).transpose()?;

        let started = Instant::now();
        let more = self.arguments.set.iter().flat_map(|set| ["--set", set]);
        self.meshctl(&["install", "--set", "profile=minimal", "-y"].into_iter().chain(more).collect::<Vec<_>>())?;
        row("install until ready, s", None, number(started.elapsed().as_secs_f64()));
        self.kubectl(&["label", "namespace", NAMESPACE, "istio-injection=enabled", "--overwrite"])?;
        row("restart of 22 pods until ready, s", Some(plain_restart), self.restarts()?);
        self.apply(&json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": "default", "namespace": NAMESPACE}, "spec": {"mtls": {"mode": "STRICT"}},
        }))?;
        if wants(Part::Idle) {
            self.idle(&mut row)?;
        }
        if let Some(plain) = plain {
            settle()?;
            let before = self.cpu("pilot-agent")?;
            let meshed = self.load(1000.0, 16, seconds)?;
            let cpu = (self.cpu("pilot-agent")? - before) * 1e3 / meshed["requests"].as_f64().unwrap_or(1.0);
            let latency = |seen: &Value| {
                ["p50_ms", "p90_ms", "p99_ms"].map(|part| number(seen[part].as_f64().unwrap_or_default())).join(" / ")
            };
            let added = ["p50_ms", "p90_ms", "p99_ms"].map(|part| {
                number(meshed[part].as_f64().unwrap_or_default() - plain[part].as_f64().unwrap_or_default())
            });
            row("latency p50 / p90 / p99 at 1,000 requests/s, ms", Some(latency(&plain)), latency(&meshed));
            row("added p50 / p90 / p99, ms", None, added.join(" / "));
            row("CPU a request, both sidecars, ms", None, number(cpu));
        }
        if wants(Part::Route) {
            settle()?;
            row("route change until the first answer that follows it, p50 / p99, ms", None, self.route_change()?);
        }
        if let Some(plain_roll) = plain_roll {
            for (name, at_once) in [
                ("rolling replacement at 200 requests/s, server stops at SIGTERM: failed", false),
                ("the same, server exits at once: failed", true),
            ] {
                self.workloads(at_once)?;
                self.rolled_out()?;
                let seen = self.rolling()?;
                let without = (!at_once).then(|| failed(&plain_roll));
                row(name, without, failed(&seen));
            }
            self.workloads(false)?;
            self.rolled_out()?;
        }
        if wants(Part::Early) {
            row("route to a subset 5 s before its DestinationRule, several times: failed", None, self.early_route()?);
        }
        if wants(Part::Killed) {
            row("control plane killed under load: failed", None, self.control_plane_killed()?);
        }
        if wants(Part::KeepAlive) {
            row("keep-alive race: failed", None, self.keep_alive_race()?);
        }
        Ok(rows)
    }

    fn idle(&self, row: &mut impl FnMut(&'static str, Option<String>, String)) -> Result<()> {
        // The old pods are gone, and what the start took has been given back.
        settle()?;
        let (before, seconds) = (self.cpu("pilot-agent")?, if self.arguments.quick { 5 } else { 20 });
        std::thread::sleep(Duration::from_secs(seconds));
        let used = (self.cpu("pilot-agent")? - before) / seconds as f64 * 100.0;
        let (plane, proxies) = (self.memory("meshd")?, self.memory("pilot-agent")?);
        let of = |all: &[(f64, f64)], part: fn(&(f64, f64)) -> f64| all.iter().map(part).sum::<f64>();
        let each = proxies.len().max(1) as f64;
        row("control plane, RSS, MiB", None, number(of(&plane, |one| one.0)));
        row(
            "a sidecar, RSS / PSS, MiB",
            None,
            format!("{} / {}", number(of(&proxies, |one| one.0) / each), number(of(&proxies, |one| one.1) / each)),
        );
        let sum = |part: fn(&(f64, f64)) -> f64| of(&plane, part) + of(&proxies, part);
        row("whole mesh, RSS / PSS, MiB", None, format!("{} / {}", number(sum(|one| one.0)), number(sum(|one| one.1))));
        row("idle CPU of all sidecars, % of a core", None, number(used));
        Ok(())
    }

    fn program(&self) -> (String, Vec<String>) {
        let mut words = self.arguments.kubectl.split_whitespace().map(str::to_owned);
        (words.next().unwrap_or_default(), words.collect())
    }

    fn command(&self, words: &[&str]) -> Command {
        let (program, first) = self.program();
        let mut command = Command::new(program);
        command.args(first).args(words).stdin(Stdio::null());
        command
    }

    fn kubectl(&self, words: &[&str]) -> Result<String> {
        text(self.command(words).output().context("kubectl cannot be run")?, "kubectl", words)
    }

    fn meshctl(&self, words: &[&str]) -> Result<String> {
        let output = Command::new(&self.meshctl).args(words).output();
        text(output.with_context(|| format!("{} cannot be run", self.meshctl.display()))?, "meshctl", words)
    }

    fn apply(&self, object: &Value) -> Result<()> {
        let file = self.folder.join("object.json");
        fs::write(&file, object.to_string())?;
        self.kubectl(&["apply", "-f", &file.display().to_string()]).map(drop)
    }

    /// The servers and the clients.
    fn workloads(&self, at_once: bool) -> Result<()> {
        let image = format!("mesh/bench:{}", self.arguments.tag);
        let mut items = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})];
        let deployment = |name: &str, app: &str, replicas: usize, words: Vec<&str>, serves: bool| {
            let mut container = json!({
                "name": "app", "image": image, "args": words,
                "resources": {"requests": {"cpu": "50m", "memory": "4Mi"}},
            });
            if serves {
                container["ports"] = json!([{"name": "http", "containerPort": 8080}]);
                container["readinessProbe"] = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
            }
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {
                    "replicas": replicas, "selector": {"matchLabels": {"app": app}},
                    "template": {
                        "metadata": {"labels": {"app": app, "version": "v1"}},
                        "spec": {"containers": [container], "terminationGracePeriodSeconds": 30},
                    },
                },
            })
        };
        for server in 1..=DEPLOYMENTS {
            let name = format!("server-{server}");
            let mut words = vec!["pod", "serve"];
            if at_once {
                words.push("--at-once");
            }
            // The last one closes idle connections, for the race.
            if server == DEPLOYMENTS {
                words.extend(["--idle", "5"]);
            }
            items.push(deployment(&name, &name, REPLICAS, words, true));
            items.push(json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 8080}]},
            }));
        }
        for client in ["client", "follower"] {
            items.push(deployment(client, client, 1, vec!["pod", "serve", "--port", "9999"], false));
        }
        self.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}))
    }

    /// Waits until all pods are of the newest template and ready, and the old ones are gone.
    fn rolled_out(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(180);
        loop {
            let pods: Value = serde_json::from_str(&self.kubectl(&["get", "pods", "-n", NAMESPACE, "-o", "json"])?)?;
            let deployments: Value =
                serde_json::from_str(&self.kubectl(&["get", "deployments", "-n", NAMESPACE, "-o", "json"])?)?;
            let whole = deployments["items"].as_array().into_iter().flatten().all(|one| {
                let number = |pointer: &str| one.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
                let wanted = number("/spec/replicas");
                number("/status/observedGeneration") >= number("/metadata/generation")
                    && number("/status/updatedReplicas") == wanted
                    && number("/status/availableReplicas") == wanted
                    && number("/status/replicas") == wanted
            });
            let wanted = DEPLOYMENTS * REPLICAS + 2;
            if whole && pods["items"].as_array().is_some_and(|pods| pods.len() == wanted) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the pods are not ready after 180 s\n{}", self.kubectl(&["get", "pods", "-n", NAMESPACE])?);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Seconds of some restarts: the median, and smallest to largest.
    fn restarts(&self) -> Result<String> {
        let times = if self.arguments.quick { 1 } else { 3 };
        let mut seconds = Vec::new();
        for _ in 0..times {
            settle()?;
            seconds.push(self.restart()?);
        }
        seconds.sort_by(f64::total_cmp);
        let [least, median, most] = [0, times / 2, times - 1].map(|at| number(seconds[at]));
        Ok(if times == 1 { median } else { format!("{median} ({least}-{most})") })
    }

    /// Restarts everything. Seconds until all new pods are ready; old ones may still be ending.
    fn restart(&self) -> Result<f64> {
        let started = Instant::now();
        self.kubectl(&["rollout", "restart", "deployment", "-n", NAMESPACE])?;
        for name in
            (1..=DEPLOYMENTS).map(|server| format!("server-{server}")).chain(["client".into(), "follower".into()])
        {
            self.kubectl(&["rollout", "status", "deployment", &name, "-n", NAMESPACE, "--timeout=180s"])?;
        }
        let seconds = started.elapsed().as_secs_f64();
        self.rolled_out()?;
        Ok(seconds)
    }

    fn in_client<'a>(&self, client: &'a str, words: &[&'a str]) -> Command {
        let deployment = format!("deployment/{client}");
        self.command(&[&["exec", "-n", NAMESPACE, &deployment, "-c", "app", "--", "bench", "pod"], words].concat())
    }

    /// A load on a machine that does nothing else.
    fn call(&self, rate: f64, connections: usize, seconds: f64) -> Result<Value> {
        settle()?;
        self.load(rate, connections, seconds)
    }

    fn load(&self, rate: f64, connections: usize, seconds: f64) -> Result<Value> {
        let (rate, connections, seconds) = (rate.to_string(), connections.to_string(), seconds.to_string());
        let words =
            ["call", "--to", "server-1:8080", "--rate", &rate, "--connections", &connections, "--seconds", &seconds];
        let output = self.in_client("client", &words).output()?;
        let seen: Value = serde_json::from_str(&text(output, "bench pod", &words)?)?;
        if seen["failed"] != 0 {
            bail!("requests failed: {seen}");
        }
        Ok(seen)
    }

    /// A load beside which something is done.
    fn under_load(&self, to: &str, words: &[&str], work: impl FnOnce() -> Result<()>) -> Result<Value> {
        let words = [&["call", "--to", to], words].concat();
        let child = self.in_client("client", &words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        std::thread::sleep(Duration::from_secs(3));
        let done = work();
        let output = child.wait_with_output()?;
        done?;
        Ok(serde_json::from_str(&text(output, "bench pod", &words)?)?)
    }

    fn rolling(&self) -> Result<Value> {
        let seconds = if self.arguments.quick { "40" } else { "60" };
        self.under_load("server-1:8080", &["--rate", "200", "--seconds", seconds], || {
            for _ in 0..2 {
                self.kubectl(&["rollout", "restart", "deployment", "server-1", "-n", NAMESPACE])?;
                self.kubectl(&["rollout", "status", "deployment", "server-1", "-n", NAMESPACE, "--timeout=120s"])?;
            }
            Ok(())
        })
    }

    fn route_change(&self) -> Result<String> {
        let changes = if self.arguments.quick { 10 } else { 50 };
        // One process that stays speaks to the API server: starting kubectl takes longer than what is measured.
        let file = self.folder.join("proxy.sock");
        let place = file.display().to_string();
        let mut api = self.command(&["proxy", "--unix-socket", &place]).stdout(Stdio::null()).spawn()?;
        let outcome = self.follow_route(changes, &file);
        let _ = api.kill();
        let _ = api.wait();
        let mut times = outcome?;
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize] * 1e3;
        self.kubectl(&["delete", "virtualservice", "edition", "-n", NAMESPACE])?;
        Ok(format!("{} / {}", number(at(0.5)), number(at(0.99))))
    }

    fn follow_route(&self, changes: usize, api: &Path) -> Result<Vec<f64>> {
        let route = |edition: usize| {
            json!({
                "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
                "metadata": {"name": "edition", "namespace": NAMESPACE},
                "spec": {"hosts": ["server-2"], "http": [{
                    "headers": {"response": {"set": {"x-edition": edition.to_string()}}},
                    "route": [{"destination": {"host": "server-2"}}],
                }]},
            })
        };
        self.apply(&route(0))?;
        let seconds = (changes as f64 * 0.6 + 6.0).to_string();
        let words = ["follow", "--to", "server-2:8080", "--header", "x-edition", "--seconds", &seconds];
        let child = self.in_client("follower", &words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        std::thread::sleep(Duration::from_secs(3));
        let mut sent = Vec::new();
        for edition in 1..=changes {
            sent.push(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64());
            patch(api, &route(edition))?;
            std::thread::sleep(Duration::from_millis(500));
        }
        let seen = text(child.wait_with_output()?, "bench pod", &words)?;
        let seen: Vec<Value> = seen.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let time = |edition: usize| {
            let edition = edition.to_string();
            seen.iter().find(|line| line["value"].as_str() == Some(&edition)).and_then(|line| line["time"].as_f64())
        };
        (1..=changes)
            .map(|edition| time(edition).map(|time| time - sent[edition - 1]).context("a change was never seen"))
            .collect()
    }

    fn early_route(&self) -> Result<String> {
        let times = if self.arguments.quick { 2 } else { 10 };
        let seconds = (times * 8 + 4).to_string();
        let route = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "early", "namespace": NAMESPACE},
            "spec": {"hosts": ["server-3"], "http": [{"route": [{"destination": {"host": "server-3", "subset": "v1"}}]}]},
        });
        let rule = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "early", "namespace": NAMESPACE},
            "spec": {"host": "server-3", "subsets": [{"name": "v1", "labels": {"version": "v1"}}]},
        });
        let seen = self.under_load("server-3:8080", &["--rate", "200", "--seconds", &seconds], || {
            for _ in 0..times {
                self.apply(&route)?;
                std::thread::sleep(Duration::from_secs(5));
                self.apply(&rule)?;
                std::thread::sleep(Duration::from_secs(1));
                self.kubectl(&["delete", "virtualservice", "early", "-n", NAMESPACE])?;
                self.kubectl(&["delete", "destinationrule", "early", "-n", NAMESPACE])?;
            }
            Ok(())
        })?;
        Ok(failed(&seen))
    }

    fn control_plane_killed(&self) -> Result<String> {
        let seen = self.under_load("server-1:8080", &["--rate", "500", "--seconds", "15"], || {
            self.kubectl(&["delete", "pod", "-n", "istio-system", "-l", "app=istiod", "--grace-period=0", "--force"])?;
            self.kubectl(&["rollout", "status", "deployment", "istiod", "-n", "istio-system", "--timeout=60s"])
                .map(drop)
        })?;
        Ok(failed(&seen))
    }

    /// The last server closes connections that are idle for 5 s, while each of ten gets a request about every 5 s.
    fn keep_alive_race(&self) -> Result<String> {
        let seconds = if self.arguments.quick { "30" } else { "180" };
        let to = format!("server-{DEPLOYMENTS}:8080");
        let seen = self.under_load(
            &to,
            &["--rate", "2.0", "--connections", "10", "--seconds", seconds, "--warm-up", "0"],
            || Ok(()),
        )?;
        Ok(failed(&seen))
    }

    /// The cluster's processes whose first word ends so.
    fn processes(&self, program: &str) -> Vec<PathBuf> {
        let all = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
        let ours = |place: &PathBuf| {
            let words = fs::read(place.join("cmdline")).unwrap_or_default();
            let first = words.split(|byte| *byte == 0).next().unwrap_or_default();
            let named = String::from_utf8_lossy(first).ends_with(program);
            named
                && fs::read_to_string(place.join("cgroup")).is_ok_and(|groups| groups.contains(&self.arguments.cgroup))
        };
        all.filter(ours).collect()
    }

    /// Resident and proportional memory of each, in MiB.
    fn memory(&self, program: &str) -> Result<Vec<(f64, f64)>> {
        let found: Vec<(f64, f64)> = self
            .processes(program)
            .iter()
            .filter_map(|place| {
                let text = fs::read_to_string(place.join("smaps_rollup")).ok()?;
                let size = |name: &str| -> Option<f64> {
                    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
                    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
                };
                Some((size("Rss:")?, size("Pss:")?))
            })
            .collect();
        if found.is_empty() {
            bail!(
                "no process {program} was found below the cgroup {}: is this the cluster's machine?",
                self.arguments.cgroup
            );
        }
        Ok(found)
    }

    /// CPU seconds of all of them.
    fn cpu(&self, program: &str) -> Result<f64> {
        let ticks: u64 = self
            .processes(program)
            .iter()
            .filter_map(|place| {
                let text = fs::read_to_string(place.join("stat")).ok()?;
                let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
                Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
            })
            .sum();
        Ok(rounded(ticks as f64 / 100.0))
    }
}

/// Waits until the machine has little to do: after pods were replaced, kubelets and runtimes are busy for a while with what is left
/// of the old ones. It goes on after a minute all the same, and says so.
fn settle() -> Result<()> {
    const BUSY: f64 = 0.35;
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut before = used_and_whole()?;
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let now = used_and_whole()?;
        let busy = (now.0 - before.0) as f64 / (now.1 - before.1).max(1) as f64;
        if busy < BUSY {
            return Ok(());
        }
        if Instant::now() > deadline {
            eprintln!("the machine is still {:.0} % busy", busy * 100.0);
            return Ok(());
        }
        before = now;
    }
}

/// Time in which the machine's cores did something, and all of their time (proc(5), `/proc/stat`: the fourth and fifth figure are idle).
fn used_and_whole() -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat")?;
    let figures: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    let whole: u64 = figures.iter().sum();
    let idle: u64 = figures.iter().skip(3).take(2).sum();
    Ok((whole - idle, whole))
}

/// `3 of 12000 (503: 3)`.
fn failed(seen: &Value) -> String {
    let reasons: Vec<String> =
        seen["failures"].as_object().into_iter().flatten().map(|(why, count)| format!("{why}: {count}")).collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
    format!("{} of {}{reasons}", seen["failed"], seen["requests"])
}

fn text(output: Output, program: &str, words: &[&str]) -> Result<String> {
    if !output.status.success() {
        bail!("`{program} {}` failed: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Applies an object through the socket of `kubectl proxy`.
fn patch(api: &Path, object: &Value) -> Result<()> {
    use std::io::{Read, Write};
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut stream = loop {
        match std::os::unix::net::UnixStream::connect(api) {
            Ok(stream) => break stream,
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(error).context("kubectl proxy does not answer"),
        }
    };
    let body = object.to_string();
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    write!(
        stream,
        "PATCH /apis/networking.istio.io/v1/namespaces/{NAMESPACE}/virtualservices/{name} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/merge-patch+json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 200") {
        bail!("the API server refused a change: {}", answer.lines().next().unwrap_or_default());
    }
    Ok(())
}
