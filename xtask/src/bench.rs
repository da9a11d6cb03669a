//! `cargo xtask bench`: builds the release binaries, installs the peers that are missing, and runs `bench`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::{repository, tools};

/// Programs of ours that a build to compare must have.
const PROGRAMS: [&str; 2] = ["meshd", "proxy"];

/// Runs a benchmark with these arguments, built in this profile. Two builds to compare may be named by git revisions.
pub(crate) fn run(root: &Path, profile: &str, arguments: &[String]) -> Result<ExitCode> {
    let target = repository::target(root)?;
    let mut arguments = arguments.to_vec();
    let helps = arguments.iter().any(|word| word == "--help" || word == "-h");
    if !helps && arguments.first().is_some_and(|word| word == "compare") {
        for build in arguments.iter_mut().skip(1).take(2) {
            if build.starts_with('-') {
                bail!("name the two builds first: `cargo xtask bench compare OLD NEW …`");
            }
            *build = build_of(root, &target, profile, build)?.display().to_string();
        }
    }
    // Where another folder with our programs is named, only the benchmark itself is needed.
    let named = arguments.iter().any(|word| word.starts_with("--binaries"));
    if named || arguments.first().is_some_and(|word| word == "compare") {
        repository::cargo(root, &["build", "--profile", profile, "--locked", "--workspace", "--bin", "bench"])?;
    } else {
        repository::cargo(root, &["build", "--profile", profile, "--locked", "--workspace", "--bins"])?;
    }
    let mut command = Command::new(target.join(profile).join("bench"));
    if !helps && arguments.first().is_some_and(|word| word == "pair") {
        prepare_peers(&target, &arguments, &mut command)?;
    }
    let status = command.args(&arguments).current_dir(root).status()?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

/// A few seconds of each benchmark with the development build: that they run, not what they show.
pub(crate) fn short(root: &Path, envoy: &Path) -> Result<()> {
    let program = repository::program(root, "bench")?;
    let target = repository::target(root)?;
    let builds = target.join("debug").into_os_string();
    let lines: [&[OsString]; 3] = [
        &["pair".into(), "--peers".into(), "none,mesh,nginx,haproxy,envoy-http2".into()],
        &["control".into()],
        &["compare".into(), builds.clone(), builds, "--mode".into(), "http1".into()],
    ];
    for line in lines {
        let output = Command::new(&program).args(line).arg("--short").env("ENVOY", envoy).current_dir(root).output()?;
        if !output.status.success() {
            bail!("`bench {}` failed: {}", line[0].to_string_lossy(), String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(())
}

/// Installs whom the arguments name, or all.
fn prepare_peers(target: &Path, arguments: &[String], command: &mut Command) -> Result<()> {
    let peers = arguments.iter().position(|word| word.starts_with("--peers"));
    let named = peers.map(|at| arguments[at..].iter().take(2).cloned().collect::<String>());
    let wanted = |peer: &str| named.as_ref().is_none_or(|named| named.contains(peer));
    let packages: Vec<&str> = ["nginx", "haproxy"].into_iter().filter(|peer| wanted(peer)).collect();
    tools::peers(&packages)?;
    if wanted("envoy") && std::env::var_os("ENVOY").is_none() {
        command.env("ENVOY", tools::envoy(target)?);
    }
    Ok(())
}

/// A folder with our programs: the one named, or that of a revision, which is built for it.
fn build_of(root: &Path, target: &Path, profile: &str, named: &str) -> Result<PathBuf> {
    let folder = Path::new(named);
    if folder.is_dir() {
        return folder.canonicalize().with_context(|| format!("{named} cannot be read"));
    }
    let revision = git(root, &["rev-parse", "--verify", "--quiet", &format!("{named}^{{commit}}")])
        .with_context(|| format!("{named} is neither a folder nor a git revision"))?;
    let kept = target.join("bench-builds").join(format!("{revision}-{profile}"));
    if PROGRAMS.iter().all(|program| kept.join(program).is_file()) {
        return Ok(kept);
    }
    let sources = target.join("bench-builds").join(format!("{revision}.sources"));
    let place = sources.display().to_string();
    if !sources.exists() {
        git(root, &["worktree", "add", "--detach", &place, &revision])?;
    }
    let built = target.join("bench-builds/target");
    eprintln!("building {named}");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--profile", profile, "--locked", "--workspace", "--bins"])
        .env("CARGO_TARGET_DIR", &built)
        .current_dir(&sources)
        .status()?;
    git(root, &["worktree", "remove", "--force", &place])?;
    if !status.success() {
        bail!("{named} cannot be built");
    }
    std::fs::create_dir_all(&kept)?;
    for program in PROGRAMS {
        std::fs::copy(built.join(profile).join(program), kept.join(program))
            .with_context(|| format!("{named} has no program {program}"))?;
    }
    Ok(kept)
}

fn git(root: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").args(arguments).current_dir(root).output()?;
    if !output.status.success() {
        bail!("`git {}` failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
