//! `bench pair`: client → A → B → server with mutual TLS between A and B; the same for each peer, round by round in turn.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::certificates::Certificates;
use crate::load::{self, Kind, Target};
use crate::peer::{Pair, Peer, Site};
use crate::report::{Spread, machine, number, rounded, table};
use crate::{Output, backend, beside, process};

/// What is measured.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// What to measure; all if not given.
    #[arg(long, value_delimiter = ',', value_enum)]
    mode: Vec<Mode>,
    /// Who is measured; all if not given. `none` is needed for added latency.
    #[arg(long, value_delimiter = ',', value_enum)]
    peers: Vec<Peer>,
    /// Connections of http1, grpc, large and churn, and of tcp besides one.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// gRPC calls at once on each connection.
    #[arg(long, default_value_t = 1)]
    calls: usize,
    /// Bytes of an answer (http1) or message (grpc).
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// Bytes of an answer of mode large.
    #[arg(long, default_value_t = 1 << 20)]
    large_size: usize,
    /// Connections of mode idle.
    #[arg(long)]
    idle: Option<usize>,
    /// Requests a second of the open loop that measures latency; 0 measures none.
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// Rounds, all peers in turn in each.
    #[arg(long)]
    rounds: Option<usize>,
    /// Length of each measured window.
    #[arg(long)]
    seconds: Option<f64>,
    /// Short: under 3 minutes for everything.
    #[arg(long)]
    quick: bool,
    /// Folder with the release builds of `meshd` and `proxy`; the one that this program is in if not given.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// How the results are printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// HTTP/1.1 requests on kept connections.
    Http1,
    /// gRPC calls.
    Grpc,
    /// Bytes from the server, over one connection and over many.
    Tcp,
    /// HTTP/1.1 answers of a megabyte.
    Large,
    /// Memory of connections that wait.
    Idle,
    /// TCP connections with one message each way: a handshake each.
    Churn,
}

/// One thing that is measured of all peers.
struct Measurement {
    /// Its name in results.
    name: &'static str,
    mode: Mode,
    kind: Kind,
    connections: usize,
    /// What CPU is counted for.
    unit: &'static str,
}

/// How long, and how often.
struct Pace {
    rounds: usize,
    warm_up: Duration,
    measure: Duration,
    rate: u32,
}

/// What was seen of one peer.
#[derive(Default)]
struct Seen {
    version: String,
    /// Why nothing was.
    reason: Option<String>,
    /// CPU of both proxies in microseconds for each unit; one a round, as all below.
    cpu: Vec<f64>,
    /// Units a second.
    speed: Vec<f64>,
    /// Share of its core that the pair used.
    busy: Vec<f64>,
    /// Microseconds: p50, p99, p99.9.
    latency: [Vec<f64>; 3],
    /// Bytes of each proxy, before any load and under it.
    resident: Vec<(u64, u64)>,
    /// Kilobytes of both proxies for each idle connection.
    idle: Option<f64>,
}

const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments, folder: &Path) -> Result<()> {
    let results = measure(arguments, folder)?;
    match arguments.output {
        Output::Json => println!("{results:#}"),
        Output::Table => println!("{}", told(&results)),
    }
    Ok(())
}

fn measure(arguments: &Arguments, folder: &Path) -> Result<Value> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (load_core, proxy_core) = if cores >= 2 { (Some(0), Some(1)) } else { (None, None) };
    // The load runs on this thread.
    load_core.map_or(Ok(()), process::pin)?;
    let site = Site {
        folder: folder.to_owned(),
        binaries: arguments.binaries.clone().map_or_else(beside, Ok)?,
        proxy_core,
        load_core,
        backend: backend::start(load_core)?,
        certificates: Certificates::make(folder)?,
    };
    let pace = Pace {
        rounds: arguments.rounds.unwrap_or(if arguments.quick { 3 } else { 7 }),
        warm_up: Duration::from_secs_f64(if arguments.quick { 0.15 } else { 1.0 }),
        measure: Duration::try_from_secs_f64(arguments.seconds.unwrap_or(if arguments.quick { 0.5 } else { 3.0 }))?,
        rate: arguments.rate,
    };
    ensure!(pace.rounds > 0, "at least one round must be measured");
    let peers = if arguments.peers.is_empty() { Peer::value_variants() } else { &arguments.peers };
    let (mut rows, mut ratios, mut spreads) = (Vec::new(), Map::new(), Map::new());
    for measurement in measurements(arguments) {
        let seen = if measurement.mode == Mode::Idle {
            idle(&measurement, peers, &site)?
        } else {
            rounds(&measurement, peers, &site, &pace)?
        };
        if let Some((ratio, leanest)) = ratio(&seen) {
            ratios.insert(measurement.name.to_owned(), json!(rounded(ratio.median)));
            let mut spread = ratio.json();
            spread["leanest"] = json!(leanest.name());
            spreads.insert(measurement.name.to_owned(), spread);
        }
        let direct = seen.iter().find(|(peer, _)| *peer == Peer::None).map(|(_, seen)| latencies(seen));
        rows.extend(seen.iter().map(|(peer, seen)| row(&measurement, *peer, seen, direct.as_ref())));
    }
    Ok(json!({
        "bench": "pair",
        "machine": machine(),
        "pinned": proxy_core.is_some(),
        "rounds": pace.rounds,
        "seconds": pace.measure.as_secs_f64(),
        "rate": pace.rate,
        "ratio_to_leanest": ratios,
        "ratio_spread": spreads,
        "rows": rows,
    }))
}

fn measurements(arguments: &Arguments) -> Vec<Measurement> {
    let modes = if arguments.mode.is_empty() { Mode::value_variants() } else { &arguments.mode };
    let connections = arguments.connections;
    let of = |name, mode, kind, connections, unit| Measurement { name, mode, kind, connections, unit };
    let mut all = Vec::new();
    for mode in modes {
        match mode {
            Mode::Http1 => {
                all.push(of("http1", *mode, Kind::Http1 { size: arguments.size }, connections, "request"));
            }
            Mode::Grpc => {
                let kind = Kind::Grpc { size: arguments.size, calls: arguments.calls };
                all.push(of("grpc", *mode, kind, connections, "request"));
            }
            Mode::Tcp => {
                all.push(of("tcp-one", *mode, Kind::Download, 1, "MB"));
                all.push(of("tcp-many", *mode, Kind::Download, connections, "MB"));
            }
            Mode::Large => {
                all.push(of("large", *mode, Kind::Http1 { size: arguments.large_size }, connections, "MB"));
            }
            Mode::Churn => all.push(of("churn", *mode, Kind::Churn, connections, "connection")),
            Mode::Idle => {
                let count = arguments.idle.unwrap_or(10_000);
                all.push(of("idle", *mode, Kind::Http1 { size: arguments.size }, count, "connection"));
            }
        }
    }
    all
}

impl Measurement {
    fn target(&self, pair: &Pair) -> Result<Target, String> {
        match self.kind {
            Kind::Http1 { .. } => pair.http.clone(),
            Kind::Grpc { .. } => pair.grpc.clone(),
            Kind::Download | Kind::Churn => pair.tcp.clone(),
        }
    }

    fn has_latency(&self) -> bool {
        matches!(self.mode, Mode::Http1 | Mode::Grpc)
    }
}

/// Pairs that can be measured, with their target; and for those that cannot, why.
fn start(measurement: &Measurement, peers: &[Peer], site: &Site) -> Result<Vec<(Pair, Option<Target>, Seen)>> {
    let mut pairs = Vec::new();
    for peer in peers {
        let pair = Pair::start(*peer, site)?;
        let mut seen = Seen { version: pair.version.clone(), ..Seen::default() };
        let target = match measurement.target(&pair) {
            Ok(target) => Some(target),
            Err(reason) => {
                seen.reason = Some(reason);
                None
            }
        };
        seen.resident = pair.resident()?.into_iter().map(|size| (size, size)).collect();
        pairs.push((pair, target, seen));
    }
    Ok(pairs)
}

fn rounds(measurement: &Measurement, peers: &[Peer], site: &Site, pace: &Pace) -> Result<Vec<(Peer, Seen)>> {
    let mut pairs = start(measurement, peers, site)?;
    for round in 0..pace.rounds {
        for index in 0..pairs.len() {
            // Who comes after whom changes, so that nobody always inherits a warm or a throttled core.
            let at = (index + round) % pairs.len();
            let (pair, Some(target), seen) = &mut pairs[at] else { continue };
            let name = pair.peer.name();
            eprintln!("{} round {} of {}: {name}", measurement.name, round + 1, pace.rounds);
            one_round(measurement, pair, target, seen, pace)
                .with_context(|| format!("{} of {name}", measurement.name))?;
            pair.alive()?;
        }
    }
    Ok(pairs.into_iter().map(|(pair, _, seen)| (pair.peer, seen)).collect())
}

fn one_round(measurement: &Measurement, pair: &Pair, target: &Target, seen: &mut Seen, pace: &Pace) -> Result<()> {
    let sample = || Ok((pair.cpu_seconds()?, pair.resident()?));
    let window = load::closed(target, measurement.kind, measurement.connections, pace.warm_up, pace.measure, sample)?;
    let units = match measurement.unit {
        "MB" => window.bytes as f64 / 1e6,
        _ => window.requests as f64,
    };
    ensure!(units > 0.0, "nothing was answered in {:.1} s", window.seconds);
    let cpu = window.after.0 - window.before.0;
    seen.cpu.push(cpu * 1e6 / units);
    seen.busy.push(cpu / window.seconds);
    seen.speed.push(units / window.seconds);
    for (held, now) in seen.resident.iter_mut().zip(&window.after.1) {
        held.1 = held.1.max(*now);
    }
    if pace.rate > 0 && measurement.has_latency() {
        let connections = measurement.connections;
        let counted = load::open(target, measurement.kind, connections, pace.rate, pace.warm_up, pace.measure)?;
        ensure!(counted.total() > 0, "no request of the open loop was counted");
        for (values, (_, share)) in seen.latency.iter_mut().zip(QUANTILES) {
            values.push(counted.quantile(share));
        }
    }
    Ok(())
}

fn idle(measurement: &Measurement, peers: &[Peer], site: &Site) -> Result<Vec<(Peer, Seen)>> {
    let Kind::Http1 { size } = measurement.kind else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for peer in peers.iter().filter(|peer| **peer != Peer::None) {
        eprintln!("idle: {}", peer.name());
        for (pair, target, mut seen) in start(measurement, &[*peer], site)? {
            let Some(target) = target else {
                all.push((pair.peer, seen));
                continue;
            };
            let after = load::hold(&target, size, measurement.connections, || {
                // What is given back when a connection falls idle is given back by then.
                std::thread::sleep(Duration::from_secs(2));
                pair.resident()
            });
            let after =
                after.with_context(|| format!("{} with {} connections", peer.name(), measurement.connections))?;
            seen.resident.iter_mut().zip(after).for_each(|(held, now)| held.1 = now);
            let grown: u64 = seen.resident.iter().map(|(before, after)| after.saturating_sub(*before)).sum();
            seen.idle = Some(grown as f64 / 1024.0 / measurement.connections as f64);
            all.push((pair.peer, seen));
        }
    }
    Ok(all)
}

/// Ours to the leanest of the others: round by round, since rounds share what the machine did meanwhile.
fn ratio(seen: &[(Peer, Seen)]) -> Option<(Spread, Peer)> {
    let cost = |seen: &Seen| seen.idle.map_or_else(|| seen.cpu.clone(), |size| vec![size]);
    let median = |seen: &Seen| Spread::of(&cost(seen)).map(|spread| spread.median);
    let (_, ours) = seen.iter().find(|(peer, _)| *peer == Peer::Mesh)?;
    let others = seen.iter().filter(|(peer, _)| !matches!(peer, Peer::Mesh | Peer::None));
    let (leanest, theirs) = others
        .filter_map(|(peer, seen)| median(seen).map(|median| (median, *peer, seen)))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, peer, seen)| (peer, seen))?;
    let ratios: Vec<f64> = cost(ours).iter().zip(cost(theirs)).map(|(ours, theirs)| ours / theirs).collect();
    Some((Spread::of(&ratios)?, leanest))
}

fn latencies(seen: &Seen) -> Vec<Option<Spread>> {
    seen.latency.iter().map(|values| Spread::of(values)).collect()
}

fn row(measurement: &Measurement, peer: Peer, seen: &Seen, direct: Option<&Vec<Option<Spread>>>) -> Value {
    let mut row = json!({
        "mode": measurement.name,
        "peer": peer.name(),
        "version": seen.version,
        "connections": measurement.connections,
        "unit": measurement.unit,
    });
    if let Some(reason) = &seen.reason {
        row["not_measured"] = json!(reason);
        return row;
    }
    let spread = |values: &[f64]| Spread::of(values).map(Spread::json);
    if let Some(speed) = spread(&seen.speed) {
        row["per_second"] = speed;
    }
    if peer != Peer::None && !seen.cpu.is_empty() {
        row["cpu_us_per_unit"] = json!(spread(&seen.cpu));
        row["core_busy"] = json!(spread(&seen.busy));
    }
    if let Some(size) = seen.idle {
        row["kb_per_connection"] = json!(rounded(size));
    }
    let sizes = |pick: fn(&(u64, u64)) -> u64| {
        seen.resident.iter().map(|sizes| rounded(pick(sizes) as f64 / 1e6)).collect::<Vec<_>>()
    };
    if !seen.resident.is_empty() {
        row["rss_mb_at_rest"] = json!(sizes(|sizes| sizes.0));
        row["rss_mb_under_load"] = json!(sizes(|sizes| sizes.1));
    }
    for (index, ((name, _), latency)) in QUANTILES.iter().zip(latencies(seen)).enumerate() {
        let Some(latency) = latency else { continue };
        row["latency_us"][name] = latency.json();
        if let Some(direct) = direct.and_then(|direct| direct.get(index).copied().flatten()) {
            row["added_latency_us"][name] = json!(rounded(latency.median - direct.median));
        }
    }
    row
}

/// For people.
fn told(results: &Value) -> String {
    let mut text = String::new();
    let mut rows = Vec::new();
    for row in results["rows"].as_array().into_iter().flatten() {
        let median = |value: &Value| {
            let part = |name: &str| value[name].as_f64();
            let spread = part("median").zip(part("min").zip(part("max")));
            spread.map_or_else(String::new, |(median, (min, max))| Spread { median, min, max }.told())
        };
        let plain = |value: &Value| value.as_f64().map_or_else(String::new, number);
        let sizes = |value: &Value| {
            let sizes = value.as_array().into_iter().flatten().filter_map(Value::as_f64).map(number);
            sizes.collect::<Vec<_>>().join(" + ")
        };
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut cells = vec![
            word(&row["mode"]),
            word(&row["peer"]),
            row["connections"].to_string(),
            if row["kb_per_connection"].is_null() {
                median(&row["cpu_us_per_unit"])
            } else {
                format!("{} kB", plain(&row["kb_per_connection"]))
            },
            word(&row["unit"]),
            median(&row["per_second"]),
            plain(&row["core_busy"]["median"]),
        ];
        let shown = if row["added_latency_us"].is_null() { &row["latency_us"] } else { &row["added_latency_us"] };
        for (name, _) in QUANTILES {
            let value = if shown[name].is_number() { &shown[name] } else { &shown[name]["median"] };
            cells.push(plain(value));
        }
        cells.extend([sizes(&row["rss_mb_at_rest"]), sizes(&row["rss_mb_under_load"])]);
        if let Some(reason) = row["not_measured"].as_str() {
            cells[3] = format!("not measured: {reason}");
        }
        rows.push(cells);
    }
    let head = [
        "MODE",
        "PEER",
        "CONNS",
        "CPU µs (SPREAD)",
        "EACH",
        "A SECOND",
        "BUSY",
        "+p50 µs",
        "+p99",
        "+p99.9",
        "RSS MB AT REST",
        "UNDER LOAD",
    ];
    text += &table(&head, &rows);
    for (mode, spread) in results["ratio_spread"].as_object().into_iter().flatten() {
        let part = |name: &str| spread[name].as_f64().unwrap_or_default();
        text += &format!(
            "\n{mode}: ours is {:.2} ({:.2}-{:.2}) × {}",
            part("median"),
            part("min"),
            part("max"),
            spread["leanest"].as_str().unwrap_or_default(),
        );
    }
    text
}
