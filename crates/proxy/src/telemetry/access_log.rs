//! Access logs: what is written for whom, and the road of the lines. A worker gathers lines and hands them over now and then;
//! a thread of its own writes them, so that a slow disk is never seen by a request.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use http::HeaderName;

use super::format::{Facts, Format};

/// One configured access log.
#[derive(Debug)]
pub struct AccessLog {
    /// File that lines are appended to; `/dev/stdout` and `/dev/stderr` are the process's own.
    pub path: Arc<str>,
    /// How a line looks.
    pub layout: Layout,
    /// Which records are written.
    pub filter: LogFilter,
}

/// How a line looks.
#[derive(Debug)]
pub enum Layout {
    /// Text, line end included.
    Text(Format),
    /// An object, keys in order.
    Json(Vec<(String, Format)>),
}

/// Which records are written (the part of Envoy's `AccessLogFilter` that Istio produces).
#[derive(Debug)]
pub enum LogFilter {
    /// All.
    All,
    /// With one of these flags; none given: with any.
    Flags(Vec<String>),
    /// Status compared with a number.
    Status(Compare, u16),
    /// All of these.
    And(Vec<LogFilter>),
    /// Any of these.
    Or(Vec<LogFilter>),
}

/// A comparison.
#[derive(Clone, Copy, Debug)]
pub enum Compare {
    /// Equal.
    Equal,
    /// Greater or equal.
    AtLeast,
    /// Less or equal.
    AtMost,
    /// Not equal.
    Unequal,
}

impl LogFilter {
    /// Whether the record is written.
    pub fn allows(&self, facts: &Facts<'_>) -> bool {
        match self {
            LogFilter::All => true,
            LogFilter::Flags(flags) => {
                let set = !facts.flags.is_empty() && facts.flags != "-";
                set && (flags.is_empty()
                    || facts.flags.split(',').any(|flag| flags.iter().any(|wanted| wanted == flag)))
            }
            LogFilter::Status(compare, status) => match compare {
                Compare::Equal => facts.status == *status,
                Compare::AtLeast => facts.status >= *status,
                Compare::AtMost => facts.status <= *status,
                Compare::Unequal => facts.status != *status,
            },
            LogFilter::And(all) => all.iter().all(|filter| filter.allows(facts)),
            LogFilter::Or(any) => any.iter().any(|filter| filter.allows(facts)),
        }
    }
}

impl Layout {
    /// The request (`true`) or answer headers that the layout asks for.
    pub fn headers(&self, of_request: bool) -> Vec<HeaderName> {
        match self {
            Layout::Text(format) => format.headers(of_request).cloned().collect(),
            Layout::Json(fields) => fields.iter().flat_map(|(_, format)| format.headers(of_request).cloned()).collect(),
        }
    }

    /// Writes one line.
    pub fn write(&self, facts: &Facts<'_>, out: &mut String) {
        match self {
            Layout::Text(format) => format.write(facts, out),
            Layout::Json(fields) => {
                let mut value = String::new();
                out.push('{');
                for (place, (key, format)) in fields.iter().enumerate() {
                    if place > 0 {
                        out.push(',');
                    }
                    out.push_str(&serde_json::Value::from(key.as_str()).to_string());
                    out.push(':');
                    value.clear();
                    format.write(facts, &mut value);
                    if value == "-" && !format.is_flags() {
                        out.push_str("null");
                    } else if format.is_number() {
                        out.push_str(&value);
                    } else {
                        out.push_str(&serde_json::Value::from(value.as_str()).to_string());
                    }
                }
                out.push_str("}\n");
            }
        }
    }
}

/// Lines of one path, gathered by a worker.
type Batch = (Arc<str>, String);

/// How much a worker gathers before it hands over, bytes.
const BATCH: usize = 16 * 1024;

/// A worker's end.
#[derive(Debug)]
pub struct Sink {
    gathered: RefCell<BTreeMap<Arc<str>, String>>,
    out: SyncSender<Batch>,
    dropped: Arc<AtomicU64>,
}

/// The road from workers to files.
#[derive(Debug)]
pub struct Road {
    out: SyncSender<Batch>,
    dropped: Arc<AtomicU64>,
}

impl Road {
    /// Starts the writing thread; it ends when all sinks are gone.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start() -> std::io::Result<Self> {
        let (out, batches) = sync_channel(256);
        std::thread::Builder::new().name("access-log".into()).spawn(move || write_all(&batches))?;
        Ok(Self { out, dropped: Arc::default() })
    }

    /// A worker's end.
    pub fn sink(&self) -> Sink {
        Sink { gathered: RefCell::default(), out: self.out.clone(), dropped: Arc::clone(&self.dropped) }
    }

    /// Batches lost because the writer was too slow.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Sink {
    /// Adds a record to every log that wants it.
    pub fn record(&self, logs: &[AccessLog], facts: &Facts<'_>) {
        let mut gathered = self.gathered.borrow_mut();
        for log in logs.iter().filter(|log| log.filter.allows(facts)) {
            let lines = match gathered.get_mut(&log.path) {
                Some(lines) => lines,
                None => gathered.entry(Arc::clone(&log.path)).or_default(),
            };
            log.layout.write(facts, lines);
            if lines.len() >= BATCH {
                self.hand_over(&log.path, std::mem::take(lines));
            }
        }
    }

    /// Hands over what was gathered.
    pub fn flush(&self) {
        for (path, lines) in self.gathered.borrow_mut().iter_mut() {
            if !lines.is_empty() {
                self.hand_over(path, std::mem::take(lines));
            }
        }
    }

    fn hand_over(&self, path: &Arc<str>, lines: String) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.out.try_send((Arc::clone(path), lines))
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.flush();
    }
}

fn write_all(batches: &Receiver<Batch>) {
    let mut files: BTreeMap<Arc<str>, File> = BTreeMap::new();
    while let Ok((path, lines)) = batches.recv() {
        let result = match path.as_ref() {
            "/dev/stdout" => std::io::stdout().lock().write_all(lines.as_bytes()),
            "/dev/stderr" => std::io::stderr().lock().write_all(lines.as_bytes()),
            _ => match files.get_mut(&path) {
                Some(file) => file.write_all(lines.as_bytes()),
                None => OpenOptions::new().create(true).append(true).open(path.as_ref()).and_then(|mut file| {
                    let result = file.write_all(lines.as_bytes());
                    files.insert(Arc::clone(&path), file);
                    result
                }),
            },
        };
        if let Err(error) = result {
            tracing::warn!(%path, %error, "an access log cannot be written");
            files.remove(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_numbers_nulls_and_escapes() {
        let fields = [("a", "%RESPONSE_CODE%"), ("b", "%ROUTE_NAME%"), ("c", "x\"%REQ(:PATH)%")];
        let layout = Layout::Json(
            fields.iter().map(|(key, format)| ((*key).to_owned(), Format::parse(format).unwrap())).collect(),
        );
        let mut out = String::new();
        layout.write(&Facts { status: 503, path: "/p", ..Facts::default() }, &mut out);
        assert_eq!(out, "{\"a\":503,\"b\":null,\"c\":\"x\\\"/p\"}\n");
    }

    #[test]
    fn filters_choose_records() {
        let facts = |status, flags| Facts { status, flags, ..Facts::default() };
        let bad = LogFilter::Or(vec![LogFilter::Status(Compare::AtLeast, 500), LogFilter::Flags(vec!["UF".into()])]);
        assert!(bad.allows(&facts(503, "-")) && bad.allows(&facts(0, "UF,URX")) && !bad.allows(&facts(200, "-")));
        assert!(LogFilter::Flags(vec![]).allows(&facts(0, "NR")) && !LogFilter::Flags(vec![]).allows(&facts(0, "-")));
    }

    #[test]
    fn lines_reach_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path: Arc<str> = folder.path().join("log").to_str().unwrap().into();
        let road = Road::start().unwrap();
        let logs = [AccessLog {
            path: Arc::clone(&path),
            layout: Layout::Text(Format::parse("%RESPONSE_CODE%\n").unwrap()),
            filter: LogFilter::All,
        }];
        let sink = road.sink();
        sink.record(&logs, &Facts { status: 200, ..Facts::default() });
        drop(sink);
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::fs::read_to_string(path.as_ref()).unwrap_or_default() != "200\n" {
            assert!(std::time::Instant::now() < until, "the line did not arrive");
            std::thread::yield_now();
        }
        assert_eq!(road.dropped(), 0);
    }
}
