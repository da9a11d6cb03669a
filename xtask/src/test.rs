//! `cargo xtask test`: every kind of test, from cheap to dear, and one closing line.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::Result;

use crate::{bench, e2e, repository, tools};

/// Counts over all steps, and what those that failed said: who sees only the end of the output must see why.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    why: Vec<String>,
}

/// Lines of a failed test that are said again at the end: its own words come first, then the way there.
const WHY: usize = 20;

/// Runs all. A step that cannot run has failed; the others still run.
pub(crate) fn run(root: &Path) -> Result<ExitCode> {
    let target = repository::target(root)?;
    let mut tally = Tally::default();
    tally.check("install what the tests need", tools::programs);
    tally.step(root, "formatting", Command::new(env!("CARGO")).args(["fmt", "--all", "--check"]));
    // `--all-targets` leaves out what is not a test of `cargo test`: the scenarios are named.
    for (name, targets) in [("lints", &["--all-targets"][..]), ("lints of the scenarios", &["--test", "e2e"])] {
        tally.step(
            root,
            name,
            Command::new(env!("CARGO"))
                .args(["clippy", "--workspace", "--locked", "--quiet"])
                .args(targets)
                .args(["--", "-D", "warnings"]),
        );
    }
    match tools::cargo_deny(&target) {
        Ok(program) => tally.step(
            root,
            "licences, bans, sources",
            Command::new(program).args([
                "--all-features",
                "check",
                "--hide-inclusion-graph",
                "licenses",
                "bans",
                "sources",
            ]),
        ),
        Err(error) => tally.cannot("licences, bans, sources", &error),
    }
    // The tests start the programs, and some of them a real Envoy, and xDS servers and clients of others.
    tally.step(
        root,
        "build",
        Command::new(env!("CARGO")).args(["build", "--workspace", "--bins", "--locked", "--quiet"]),
    );
    match foreign(&target) {
        Ok(foreign) => {
            let [(_, envoy), ..] = foreign.clone();
            tally.tests(
                root,
                "tests",
                Command::new(env!("CARGO")).args(["test", "--workspace", "--locked", "--no-fail-fast"]).envs(foreign),
            );
            tally.check("the benchmarks, for a moment", || {
                tools::peers(&["nginx", "haproxy"])?;
                bench::short(root, &envoy)
            });
        }
        Err(error) => tally.cannot("tests and benchmarks (Envoy, and gRPC for Python and Node.js, are needed)", &error),
    }
    match e2e::prepare(root, &e2e::Options::default()) {
        Ok(prepared) => {
            tally.tests(root, "tests on Kubernetes", &mut prepared.command());
            tally.check("end the cluster", || prepared.end());
        }
        Err(error) => tally.cannot("tests on Kubernetes", &error),
    }
    tally.step(root, "the demo", Command::new(repository::program(root, "meshctl")?).args(["demo", "--once"]));
    for line in &tally.why {
        println!("{line}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where the programs of others are, as the tests are told.
fn foreign(target: &Path) -> Result<[(&'static str, PathBuf); 3]> {
    Ok([
        ("ENVOY", tools::envoy(target)?),
        ("XDS_PYTHON", tools::xds_python(target)?),
        ("XDS_NODE_MODULES", tools::xds_node_modules(target)?),
    ])
}

impl Tally {
    fn count(&mut self, name: &str, passed: bool, started: Instant) {
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
        let line =
            format!("{} {name} ({:.0} s)", if passed { "ok    " } else { "FAILED" }, started.elapsed().as_secs_f64());
        println!("{line}");
        if !passed {
            self.why.push(line);
        }
    }

    fn cannot(&mut self, name: &str, error: &anyhow::Error) {
        eprintln!("{error:#}");
        self.count(name, false, Instant::now());
        self.why.push(format!("{error:#}"));
    }

    fn check(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        let started = Instant::now();
        match check() {
            Ok(()) => self.count(name, true, started),
            Err(error) => self.cannot(name, &error),
        }
    }

    /// One command that passes or fails as a whole.
    fn step(&mut self, root: &Path, name: &str, command: &mut Command) {
        let started = Instant::now();
        match command.current_dir(root).status() {
            Ok(status) => self.count(name, status.success(), started),
            Err(error) => self.cannot(name, &error.into()),
        }
    }

    /// `cargo test`: every test counts. Its output is shown as it comes.
    fn tests(&mut self, root: &Path, name: &str, command: &mut Command) {
        let started = Instant::now();
        let mut child = match command.current_dir(root).stdout(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => return self.cannot(name, &error.into()),
        };
        let (mut counted, before) = (0, self.failed);
        // How many more lines belong to what failed.
        let mut why = 0;
        for line in
            child.stdout.take().into_iter().flat_map(|output| BufReader::new(output).lines()).map_while(Result::ok)
        {
            if let Some((passed, failed)) = closing_line(&line) {
                self.passed += passed;
                self.failed += failed;
                counted += passed + failed;
            }
            if told_of_a_failure(&line) {
                why = WHY;
            }
            if why > 0 && !line.is_empty() {
                why -= 1;
                self.why.push(line.clone());
            }
            // The closing line of a part must not be taken for that of the whole.
            if !line.ends_with("... ok") && !line.is_empty() {
                println!("{line}");
            }
        }
        let passed = child.wait().is_ok_and(|status| status.success()) && counted > 0;
        // A test that failed is counted already; what kept tests from running is not.
        let failed_before = self.failed;
        self.count(name, passed, started);
        if !passed && failed_before > before {
            self.failed = failed_before;
        }
    }
}

/// `test result: ok. 17 passed; 0 failed; …`
fn closing_line(line: &str) -> Option<(usize, usize)> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| {
        let before = rest.split_once(word)?.0;
        before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    Some((number(" passed")?, number(" failed")?))
}

/// Where a failed test begins to say why: `---- name stdout ----`, and of the scenarios `FAILED name (3 s): …`.
fn told_of_a_failure(line: &str) -> bool {
    (line.starts_with("---- ") && line.ends_with(" stdout ----")) || line.starts_with("FAILED ")
}

#[cfg(test)]
mod tests {
    use super::{closing_line, told_of_a_failure};

    #[test]
    fn what_a_failed_test_says_is_found() {
        assert!(told_of_a_failure("---- proxy::drops stdout ----"));
        assert!(told_of_a_failure("FAILED job_ends (3 s): the job runs"));
        assert!(!told_of_a_failure("test proxy::drops ... FAILED"));
        assert!(!told_of_a_failure("ok job_ends (3 s)"));
    }

    #[test]
    fn closing_lines_are_counted_and_other_lines_are_not() {
        assert_eq!(closing_line("test result: ok. 17 passed; 0 failed; 0 ignored; 0 measured"), Some((17, 0)));
        assert_eq!(closing_line("test result: FAILED. 3 passed; 12 failed; 0 ignored"), Some((3, 12)));
        assert_eq!(closing_line("test a ... ok"), None);
    }
}
