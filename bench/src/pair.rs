//! `bench pair`: client → A → B → server with mutual TLS between A and B; the same for each peer, round by round in turn.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::certificates::Certificates;
use crate::load::{self, Kind, Target};
use crate::peer::{Pair, Peer, Site};
use crate::report::{Spread, cores, machine, number, rounded, table};
use crate::{Output, backend, beside, process};

/// What is measured, and of whom.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Who is measured; all if not given. `none` is needed for added latency.
    #[arg(long, value_delimiter = ',', value_enum)]
    peers: Vec<Peer>,
    /// Folder with the release builds of `meshd` and `proxy`; the one that this program is in if not given.
    #[arg(long)]
    binaries: Option<PathBuf>,
    #[command(flatten)]
    shape: Shape,
}

/// What is measured, and for how long.
#[derive(clap::Args, Debug)]
pub(crate) struct Shape {
    /// What to measure; all if not given.
    #[arg(long, value_delimiter = ',', value_enum)]
    mode: Vec<Mode>,
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
    /// Connections of mode idle [default: 10000].
    #[arg(long)]
    idle: Option<usize>,
    /// Requests a second of the open loop that measures latency; 0 measures none.
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// Rounds, all in turn in each [default: 7].
    #[arg(long)]
    rounds: Option<usize>,
    /// Length of each measured window [default: 3].
    #[arg(long)]
    seconds: Option<f64>,
    /// Under 3 minutes for everything: 3 rounds of 0.4 s.
    #[arg(long)]
    quick: bool,
    /// Seconds: one short round, few idle connections. Says only that the benchmark works.
    #[arg(long, conflicts_with = "quick")]
    short: bool,
    /// How the results are printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
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
pub(crate) struct Measurement {
    /// Its name in results.
    pub(crate) name: &'static str,
    mode: Mode,
    kind: Kind,
    connections: usize,
    /// What CPU is counted for.
    unit: &'static str,
}

/// How long, and how often.
pub(crate) struct Pace {
    /// All contestants in turn in each.
    pub(crate) rounds: usize,
    warm_up: Duration,
    /// Length of each measured window.
    pub(crate) measure: Duration,
    rate: u32,
}

/// What was seen of one peer.
#[derive(Default)]
pub(crate) struct Seen {
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

/// Someone who is measured.
pub(crate) struct Contestant {
    /// In results.
    pub(crate) name: String,
    pub(crate) peer: Peer,
    pub(crate) site: Site,
}

/// Measures and prints.
///
/// # Errors
/// A program is missing or fails, an answer is wrong, or a number is not plausible.
pub(crate) fn run(arguments: &Arguments, folder: &Path) -> Result<()> {
    let results = measure(arguments, folder)?;
    check(&results)?;
    match arguments.shape.output {
        Output::Json => println!("{results:#}"),
        Output::Table => println!("{}", told(&results)),
    }
    Ok(())
}

/// Where proxies are started from: the server runs, and this thread is where the load will be.
///
/// # Errors
/// A core may not be used, or a folder not written.
pub(crate) fn prepare(folder: &Path, binaries: PathBuf) -> Result<Site> {
    let (load_core, proxy_core) = if cores() >= 2 { (Some(0), Some(1)) } else { (None, None) };
    load_core.map_or(Ok(()), process::pin)?;
    Ok(Site {
        folder: folder.to_owned(),
        binaries,
        proxy_core,
        load_core,
        backend: backend::start(load_core)?,
        certificates: Certificates::make(folder)?,
    })
}

fn measure(arguments: &Arguments, folder: &Path) -> Result<Value> {
    let site = prepare(folder, arguments.binaries.clone().map_or_else(beside, Ok)?)?;
    let pinned = site.proxy_core.is_some();
    let pace = arguments.shape.pace()?;
    let peers = if arguments.peers.is_empty() { Peer::value_variants() } else { &arguments.peers };
    let contestants: Vec<Contestant> =
        peers.iter().map(|peer| Contestant { name: peer.name().to_owned(), peer: *peer, site: site.clone() }).collect();
    let (mut rows, mut ratios, mut spreads) = (Vec::new(), Map::new(), Map::new());
    for measurement in arguments.shape.measurements() {
        let seen = measurement.take(&contestants, &pace)?;
        if let Some((ratio, leanest)) = ratio_to_leanest(&contestants, &seen) {
            ratios.insert(measurement.name.to_owned(), json!(rounded(ratio.median)));
            let mut spread = ratio.json();
            spread["leanest"] = json!(leanest);
            spreads.insert(measurement.name.to_owned(), spread);
        }
        rows.extend(rows_of(&measurement, &contestants, &seen));
    }
    Ok(json!({
        "bench": "pair",
        "machine": machine(),
        "pinned": pinned,
        "rounds": pace.rounds,
        "seconds": pace.measure.as_secs_f64(),
        "rate": pace.rate,
        "ratio_to_leanest": ratios,
        "ratio_spread": spreads,
        "rows": rows,
    }))
}

impl Shape {
    /// How long, and how often.
    ///
    /// # Errors
    /// A length is negative, or no round is asked for.
    pub(crate) fn pace(&self) -> Result<Pace> {
        let of = |short, quick, full| {
            if self.short {
                short
            } else if self.quick {
                quick
            } else {
                full
            }
        };
        let rounds = self.rounds.unwrap_or(of(1.0, 3.0, 7.0) as usize);
        ensure!(rounds > 0, "at least one round must be measured");
        let sizes = [self.connections, self.calls, self.size, self.large_size, self.idle.unwrap_or(1)];
        ensure!(sizes.iter().all(|size| *size > 0), "a size or number is 0, so nothing would be measured");
        Ok(Pace {
            rounds,
            warm_up: Duration::from_secs_f64(of(0.1, 0.1, 1.0)),
            measure: Duration::try_from_secs_f64(self.seconds.unwrap_or(of(0.2, 0.4, 3.0)))?,
            rate: self.rate,
        })
    }

    /// What is to be measured, one after another.
    pub(crate) fn measurements(&self) -> Vec<Measurement> {
        let modes = if self.mode.is_empty() { Mode::value_variants() } else { &self.mode };
        let connections = self.connections;
        let of = |name, mode, kind, connections, unit| Measurement { name, mode, kind, connections, unit };
        let mut all = Vec::new();
        for mode in modes {
            match mode {
                Mode::Http1 => {
                    all.push(of("http1", *mode, Kind::Http1 { size: self.size }, connections, "request"));
                }
                Mode::Grpc => {
                    let kind = Kind::Grpc { size: self.size, calls: self.calls };
                    all.push(of("grpc", *mode, kind, connections, "request"));
                }
                Mode::Tcp => {
                    all.push(of("tcp-one", *mode, Kind::Download, 1, "MB"));
                    all.push(of("tcp-many", *mode, Kind::Download, connections, "MB"));
                }
                Mode::Large => {
                    all.push(of("large", *mode, Kind::Http1 { size: self.large_size }, connections, "MB"));
                }
                Mode::Churn => all.push(of("churn", *mode, Kind::Churn, connections, "connection")),
                Mode::Idle => {
                    let count = self.idle.unwrap_or(if self.short { 200 } else { 10_000 });
                    all.push(of("idle", *mode, Kind::Http1 { size: self.size }, count, "connection"));
                }
            }
        }
        all
    }
}

impl Measurement {
    /// Measures all, each in the order of the contestants.
    ///
    /// # Errors
    /// A program fails, or an answer is wrong.
    pub(crate) fn take(&self, contestants: &[Contestant], pace: &Pace) -> Result<Vec<Seen>> {
        if self.mode == Mode::Idle { idle(self, contestants) } else { rounds(self, contestants, pace) }
    }

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

/// Starts a pair, with its target if it can be measured.
fn start(measurement: &Measurement, contestant: &Contestant) -> Result<(Pair, Option<Target>, Seen)> {
    let pair = Pair::start(contestant.peer, &contestant.site)?;
    let mut seen = Seen { version: pair.version.clone(), ..Seen::default() };
    let target = match measurement.target(&pair) {
        Ok(target) => Some(target),
        Err(reason) => {
            seen.reason = Some(reason);
            None
        }
    };
    seen.resident = pair.resident()?.into_iter().map(|size| (size, 0)).collect();
    Ok((pair, target, seen))
}

fn rounds(measurement: &Measurement, contestants: &[Contestant], pace: &Pace) -> Result<Vec<Seen>> {
    let mut pairs = contestants.iter().map(|one| start(measurement, one)).collect::<Result<Vec<_>>>()?;
    for round in 0..pace.rounds {
        for index in 0..pairs.len() {
            // Who comes after whom changes, so that nobody always inherits a warm or a throttled core.
            let at = (index + round) % pairs.len();
            let (pair, Some(target), seen) = &mut pairs[at] else { continue };
            let name = &contestants[at].name;
            eprintln!("{} round {} of {}: {name}", measurement.name, round + 1, pace.rounds);
            one_round(measurement, pair, target, seen, pace)
                .with_context(|| format!("{} of {name}", measurement.name))?;
            pair.alive()?;
        }
    }
    Ok(pairs.into_iter().map(|(_, _, seen)| seen).collect())
}

fn one_round(measurement: &Measurement, pair: &Pair, target: &Target, seen: &mut Seen, pace: &Pace) -> Result<()> {
    let sample = || Ok((pair.cpu_seconds()?, pair.resident()?));
    let once = || load::closed(target, measurement.kind, measurement.connections, pace.warm_up, pace.measure, sample);
    let mut window = once()?;
    // Less than a tick of the kernel's clock: a short window on a busy machine.
    for _ in 0..10 {
        if window.after.0 > window.before.0 || pair.proxies.is_empty() {
            break;
        }
        window = once()?;
    }
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

fn idle(measurement: &Measurement, contestants: &[Contestant]) -> Result<Vec<Seen>> {
    let Kind::Http1 { size } = measurement.kind else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for contestant in contestants {
        eprintln!("idle: {}", contestant.name);
        let (pair, target, mut seen) = start(measurement, contestant)?;
        if contestant.peer == Peer::None {
            seen.reason = Some("no proxy holds connections".to_owned());
        } else if let Some(target) = target {
            let before = pair.anonymous()?;
            let after = load::hold(&target, size, measurement.connections, || {
                // What is given back when a connection falls idle is given back by then.
                std::thread::sleep(Duration::from_secs(1));
                Ok((pair.resident()?, pair.anonymous()?))
            });
            let (after, anonymous) = after.with_context(|| format!("idle connections of {}", contestant.name))?;
            seen.resident.iter_mut().zip(after).for_each(|(held, now)| held.1 = now);
            let grown = anonymous.saturating_sub(before);
            seen.idle = Some(grown as f64 / 1024.0 / measurement.connections as f64);
        }
        all.push(seen);
    }
    Ok(all)
}

impl Seen {
    /// What is compared, one a round: CPU for each unit, or memory for each connection.
    fn cost(&self) -> Vec<f64> {
        self.idle.map_or_else(|| self.cpu.clone(), |size| vec![size])
    }
}

/// Costs of one to those of another, round by round, since rounds share what the machine did meanwhile.
pub(crate) fn ratio(one: &Seen, other: &Seen) -> Option<Spread> {
    let ratios: Vec<f64> = one.cost().iter().zip(other.cost()).map(|(one, other)| one / other).collect();
    Spread::of(&ratios)
}

/// Ours to the leanest of the others.
fn ratio_to_leanest<'a>(contestants: &'a [Contestant], seen: &[Seen]) -> Option<(Spread, &'a str)> {
    let all = || contestants.iter().zip(seen);
    let (_, ours) = all().find(|(one, _)| one.peer == Peer::Mesh)?;
    let median = |seen: &Seen| Spread::of(&seen.cost()).map(|spread| spread.median);
    let (_, leanest, theirs) = all()
        .filter(|(one, _)| !matches!(one.peer, Peer::Mesh | Peer::None))
        .filter_map(|(one, seen)| median(seen).map(|median| (median, &one.name, seen)))
        .min_by(|a, b| a.0.total_cmp(&b.0))?;
    Some((ratio(ours, theirs)?, leanest))
}

/// A row for each contestant.
pub(crate) fn rows_of(measurement: &Measurement, contestants: &[Contestant], seen: &[Seen]) -> Vec<Value> {
    let direct = contestants.iter().zip(seen).find(|(one, _)| one.peer == Peer::None).map(|(_, seen)| latencies(seen));
    // Without a proxy no connection waits in one.
    let measured = |one: &Contestant| measurement.mode != Mode::Idle || one.peer != Peer::None;
    let all = contestants.iter().zip(seen).filter(|(one, _)| measured(one));
    all.map(|(one, seen)| row(measurement, one, seen, direct.as_deref())).collect()
}

/// Results that cannot be are refused: a benchmark that measures nothing must not look like a good one.
///
/// # Errors
/// A number that must be above zero is not.
pub(crate) fn check(results: &Value) -> Result<()> {
    let rows = results["rows"].as_array().context("there are no rows")?;
    ensure!(!rows.is_empty(), "there are no rows");
    for row in rows.iter().filter(|row| row["not_measured"].is_null()) {
        let what = format!("{} of {}", row["mode"], row["peer"]);
        let positive = |field: &str, value: &Value| {
            let number = value.as_f64().or_else(|| value["median"].as_f64());
            ensure!(number.is_some_and(|number| number > 0.0), "{what}: {field} is {value}");
            Ok(())
        };
        if row["mode"] == "idle" {
            positive("memory of a connection", &row["kb_per_connection"])?;
        } else {
            positive("speed", &row["per_second"])?;
        }
        if row["peer"] != Peer::None.name() {
            for size in row["rss_mb_under_load"].as_array().context("a row tells no memory")? {
                positive("memory", size)?;
            }
            if row["mode"] != "idle" {
                positive("CPU", &row["cpu_us_per_unit"])?;
            }
        }
        if let Some(latencies) = row["latency_us"].as_object() {
            latencies.iter().try_for_each(|(name, latency)| positive(name, latency))?;
        }
    }
    Ok(())
}

fn latencies(seen: &Seen) -> Vec<Option<Spread>> {
    seen.latency.iter().map(|values| Spread::of(values)).collect()
}

fn row(measurement: &Measurement, contestant: &Contestant, seen: &Seen, direct: Option<&[Option<Spread>]>) -> Value {
    let mut row = json!({
        "mode": measurement.name,
        "peer": contestant.name,
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
    if contestant.peer != Peer::None && !seen.cpu.is_empty() {
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
pub(crate) fn told(results: &Value) -> String {
    let (mut rows, mut notes) = (Vec::new(), String::new());
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
            cells[3] = "-".to_owned();
            notes += &format!("\n{} of {} is not measured: {reason}", word(&row["mode"]), word(&row["peer"]));
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
    let mut text = table(&head, &rows) + &notes;
    for (mode, spread) in results["ratio_spread"].as_object().into_iter().flatten() {
        let part = |name: &str| spread[name].as_f64().unwrap_or_default();
        text += &format!(
            "\n{mode}: ours costs {:.2} ({:.2}-{:.2}) × {}",
            part("median"),
            part("min"),
            part("max"),
            spread["leanest"].as_str().unwrap_or_default(),
        );
    }
    text
}
