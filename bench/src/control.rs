//! `bench control`: what the control plane needs for many services and many proxies, and how fast a change arrives.

mod objects;
mod proxy;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use api::xds::ResourceKind;
use serde_json::{Value, json};

use self::objects::Edit;
use self::proxy::Fleet;
use crate::histogram::Histogram;
use crate::peer::ControlPlane;
use crate::report::{cores, machine, number, rounded, table};
use crate::{Output, beside, process};

/// All proxies must be in sync after so long.
const SYNC_PATIENCE: Duration = Duration::from_secs(600);
/// A change must have arrived everywhere after so long.
const CHANGE_PATIENCE: Duration = Duration::from_secs(60);
/// What a change causes is over after so long without another message.
const QUIET: Duration = Duration::from_millis(300);

/// Share of the machine's memory at which a measurement of the control plane is given up.
const MEMORY_SHARE: f64 = 0.6;

/// What is measured.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Services, five endpoints each: one or several numbers.
    #[arg(long, value_delimiter = ',')]
    services: Vec<usize>,
    /// Simulated proxies that take everything: one or several numbers.
    #[arg(long, value_delimiter = ',')]
    proxies: Vec<usize>,
    /// Changes of an endpoint, and as many of a route.
    #[arg(long)]
    changes: Option<usize>,
    /// Under 3 minutes: 1,000 services for 200 and 1,000 proxies, few changes.
    #[arg(long)]
    quick: bool,
    /// A few seconds: 50 services for 10 proxies. Says only that the benchmark works.
    #[arg(long, conflicts_with = "quick")]
    short: bool,
    /// Folder with the release build of `meshd`; the one that this program is in if not given.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// How the results are printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Measures and prints.
///
/// # Errors
/// The control plane fails, a proxy is refused, or a change does not arrive.
pub(crate) fn run(arguments: &Arguments, folder: &Path) -> Result<()> {
    let results = measure(arguments, folder)?;
    check(&results)?;
    match arguments.output {
        Output::Json => println!("{results:#}"),
        Output::Table => println!("{}", told(&results)),
    }
    Ok(())
}

/// The control plane takes so much of the machine's memory that going on would end other programs.
#[derive(Debug)]
struct TooLarge(u64);

impl std::error::Error for TooLarge {}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "meshd has grown to {} MB, more than {MEMORY_SHARE} of this machine", self.0 / 1_000_000)
    }
}

/// What follows a kind of change.
#[derive(Default)]
struct Change {
    took: Histogram,
    bytes: u64,
    messages: u64,
    cpu: f64,
    times: usize,
}

fn measure(arguments: &Arguments, folder: &Path) -> Result<Value> {
    let (load_core, control_core) = if cores() >= 2 { (Some(0), Some(1)) } else { (None, None) };
    load_core.map_or(Ok(()), process::pin)?;
    let binaries = arguments.binaries.clone().map_or_else(beside, Ok)?;
    let given = |given: &Vec<usize>, short: &[usize], quick: &[usize], full: &[usize]| match given.as_slice() {
        [] if arguments.short => short.to_vec(),
        [] if arguments.quick => quick.to_vec(),
        [] => full.to_vec(),
        given => given.to_vec(),
    };
    let services = given(&arguments.services, &[50], &[1_000], &[1_000, 5_000]);
    let proxies = given(&arguments.proxies, &[10], &[200, 1_000], &[200, 1_000]);
    let changes = arguments.changes.unwrap_or(if arguments.short || arguments.quick { 3 } else { 20 });
    ensure!(services.iter().chain(&proxies).all(|count| *count > 0), "a number of services or proxies is 0");
    ensure!(services.iter().all(|count| *count <= 50_000), "more than 50,000 services have no addresses here");
    let mut rows = Vec::new();
    for services in services {
        for proxies in &proxies {
            let home = folder.join(format!("control-{services}-{proxies}"));
            eprintln!("{services} services, {proxies} proxies");
            let row = one(&home, &binaries, control_core, services, *proxies, changes).or_else(|error| {
                let large = error.downcast_ref::<TooLarge>().map(TooLarge::to_string).ok_or(error)?;
                Ok(json!({"services": services, "proxies": proxies, "not_measured": large}))
            });
            let row =
                row.map_err(|error: anyhow::Error| error.context(format!("{services} services, {proxies} proxies")))?;
            rows.push(row);
            std::fs::remove_dir_all(&home)?;
        }
    }
    Ok(json!({
        "bench": "control",
        "machine": machine(),
        "pinned": control_core.is_some(),
        "changes": changes,
        // Nobody else is measured here; the key is where programs look for it.
        "ratio_to_leanest": {},
        "rows": rows,
    }))
}

fn one(
    home: &Path,
    binaries: &Path,
    core: Option<usize>,
    services: usize,
    proxies: usize,
    changes: usize,
) -> Result<Value> {
    std::fs::create_dir_all(home)?;
    objects::write(home, services)?;
    std::fs::write(home.join("mesh-config.yaml"), "")?;
    let started = Instant::now();
    let mut control_plane = ControlPlane::start(binaries, home, core)?;
    let ready = (started.elapsed().as_secs_f64(), control_plane.process.cpu_seconds()?);
    let at_rest = control_plane.process.resident()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let fleet = Fleet::default();
    runtime.block_on(async {
        let started = Instant::now();
        for number in 0..proxies {
            // Proxies stand beside endpoints, the first ones of all services first.
            let address = objects::address(number % services, number / services);
            tokio::spawn(proxy::run(fleet.clone(), number, address, control_plane.grpc.clone()));
        }
        wait(&fleet, &mut control_plane, SYNC_PATIENCE, || (fleet.synced(), proxies))
            .await
            .context("getting in sync")?;
        let sync_seconds = started.elapsed().as_secs_f64();
        quiet(&fleet).await?;
        let sync_cpu = control_plane.process.cpu_seconds()? - ready.1;
        let (bytes, messages) = fleet.received();
        let synced = control_plane.process.resident()?;
        let mut endpoint = Change::default();
        let mut route = Change::default();
        for number in 0..changes {
            let address = format!("10.254.{}.{}", number / 250, number % 250 + 1);
            let edit = Edit::endpoint(home, 0, &address)?;
            change(&fleet, &mut control_plane, proxies, ResourceKind::Endpoint, &address, edit, &mut endpoint)
                .await
                .context("changing an endpoint")?;
            let header = format!("edition-{number}-of-the-route");
            let edit = Edit::route(home, 0, &header)?;
            change(&fleet, &mut control_plane, proxies, ResourceKind::Route, &header, edit, &mut route)
                .await
                .context("changing a route")?;
        }
        let after = control_plane.process.resident()?;
        let megabytes = |bytes: u64| rounded(bytes as f64 / 1e6);
        Ok(json!({
            "services": services,
            "proxies": proxies,
            "ready_seconds": rounded(ready.0),
            "ready_cpu_seconds": rounded(ready.1),
            "rss_mb_at_rest": megabytes(at_rest),
            "rss_mb_synced": megabytes(synced),
            "rss_mb_after_changes": megabytes(after),
            "sync_seconds": rounded(sync_seconds),
            "sync_cpu_seconds": rounded(sync_cpu),
            "sync_refused_connections": fleet.retries(),
            "sync_bytes_per_proxy": bytes / proxies as u64,
            "sync_messages_per_proxy": rounded(messages as f64 / proxies as f64),
            "endpoint": endpoint.json(proxies),
            "route": route.json(proxies),
        }))
    })
}

impl Change {
    fn json(&self, proxies: usize) -> Value {
        let pushes = (self.times * proxies).max(1) as f64;
        json!({
            "applied_ms_p50": rounded(self.took.quantile(0.5) / 1e3),
            "applied_ms_p99": rounded(self.took.quantile(0.99) / 1e3),
            "bytes_per_push": rounded(self.bytes as f64 / pushes),
            "messages_per_push": rounded(self.messages as f64 / pushes),
            "cpu_ms_per_change": rounded(self.cpu * 1e3 / self.times.max(1) as f64),
        })
    }
}

async fn change(
    fleet: &Fleet,
    control_plane: &mut ControlPlane,
    proxies: usize,
    kind: ResourceKind,
    marker: &str,
    edit: Edit,
    seen: &mut Change,
) -> Result<()> {
    let (before, cpu) = (fleet.received(), control_plane.process.cpu_seconds()?);
    fleet.await_change(kind, marker);
    edit.publish()?;
    wait(fleet, control_plane, CHANGE_PATIENCE, || (fleet.applied(), proxies)).await?;
    quiet(fleet).await?;
    fleet.take_applied().into_iter().for_each(|took| seen.took.add(took));
    let after = fleet.received();
    seen.bytes += after.0 - before.0;
    seen.messages += after.1 - before.1;
    seen.cpu += control_plane.process.cpu_seconds()? - cpu;
    seen.times += 1;
    Ok(())
}

/// Waits until as many have come as are expected.
async fn wait(
    fleet: &Fleet,
    control_plane: &mut ControlPlane,
    patience: Duration,
    count: impl Fn() -> (usize, usize),
) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let (there, expected) = count();
        if there >= expected {
            return Ok(());
        }
        control_plane.process.alive()?;
        let held = control_plane.process.resident()?;
        if held as f64 > memory()? as f64 * MEMORY_SHARE {
            return Err(TooLarge(held).into());
        }
        fleet
            .healthy()
            .with_context(|| format!("{there} of {expected} are\n{}", control_plane.process.last_words()))?;
        if Instant::now() > deadline {
            bail!("{there} of {expected} after {patience:?}\n{}", control_plane.process.last_words());
        }
        // Coarser than what is measured: the proxies note the time of a change themselves.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Memory of the machine, in bytes.
fn memory() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).context("/proc/meminfo is odd")?;
    let kilobytes: u64 = line.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(kilobytes * 1024)
}

/// Waits until no message comes any more.
async fn quiet(fleet: &Fleet) -> Result<()> {
    let mut last = fleet.received();
    loop {
        tokio::time::sleep(QUIET).await;
        fleet.healthy()?;
        let now = fleet.received();
        if now == last {
            return Ok(());
        }
        last = now;
    }
}

/// Results that cannot be are refused.
fn check(results: &Value) -> Result<()> {
    for row in results["rows"].as_array().into_iter().flatten().filter(|row| row["not_measured"].is_null()) {
        let [endpoint, route] = ["endpoint", "route"].map(|kind| &row[kind]);
        let numbers = [
            ("memory", &row["rss_mb_synced"]),
            ("time", &row["sync_seconds"]),
            ("bytes", &row["sync_bytes_per_proxy"]),
            ("time of an endpoint", &endpoint["applied_ms_p50"]),
            ("bytes of an endpoint", &endpoint["bytes_per_push"]),
            ("time of a route", &route["applied_ms_p50"]),
            ("bytes of a route", &route["bytes_per_push"]),
        ];
        for (name, value) in numbers {
            ensure!(value.as_f64().is_some_and(|number| number > 0.0), "{name} is {value} in {row}");
        }
    }
    Ok(())
}

/// For people.
fn told(results: &Value) -> String {
    let plain = |value: &Value| value.as_f64().map_or_else(String::new, number);
    let kilobytes = |value: &Value| value.as_f64().map_or_else(String::new, |bytes| number(bytes / 1e3));
    let (mut rows, mut notes) = (Vec::new(), String::new());
    for row in results["rows"].as_array().into_iter().flatten() {
        if let Some(reason) = row["not_measured"].as_str() {
            notes +=
                &format!("\n{} services and {} proxies are not measured: {reason}", row["services"], row["proxies"]);
            continue;
        }
        let both = |name: &str| format!("{} / {}", plain(&row["endpoint"][name]), plain(&row["route"][name]));
        rows.push(vec![
            row["services"].to_string(),
            row["proxies"].to_string(),
            plain(&row["ready_seconds"]),
            plain(&row["rss_mb_at_rest"]),
            plain(&row["rss_mb_synced"]),
            plain(&row["sync_seconds"]),
            plain(&row["sync_cpu_seconds"]),
            kilobytes(&row["sync_bytes_per_proxy"]),
            both("applied_ms_p50"),
            both("applied_ms_p99"),
            format!(
                "{} / {}",
                kilobytes(&row["endpoint"]["bytes_per_push"]),
                kilobytes(&row["route"]["bytes_per_push"])
            ),
            both("cpu_ms_per_change"),
        ]);
    }
    let head = [
        "SERVICES",
        "PROXIES",
        "READY s",
        "RSS MB",
        "SYNCED",
        "SYNC s",
        "CPU s",
        "kB EACH",
        "ENDPOINT/ROUTE p50 ms",
        "p99 ms",
        "kB A PUSH",
        "CPU ms",
    ];
    table(&head, &rows) + &notes
}
