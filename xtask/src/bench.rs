//! `cargo xtask bench`: builds the release binaries, installs the peers that are missing, and runs `bench`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::{cluster, image, repository, tools};

/// Programs of ours that a build to compare must have.
const PROGRAMS: [&str; 2] = ["meshd", "proxy"];

/// Profile of what drives a benchmark in a cluster.
const DRIVER: &str = "quick-release";

/// Runs a benchmark with these arguments, built in this profile. Two builds to compare may be named by git revisions.
pub(crate) fn run(root: &Path, profile: &str, arguments: &[String]) -> Result<ExitCode> {
    let target = repository::target(root)?;
    let mut arguments = arguments.to_vec();
    let helps = arguments.iter().any(|word| word == "--help" || word == "-h");
    if !helps && arguments.first().is_some_and(|word| word == "compare") {
        // Both are looked for before either is built, which takes minutes.
        let names: Vec<&String> = arguments.iter().skip(1).take(2).filter(|name| !name.starts_with('-')).collect();
        if names.len() != 2 {
            bail!("name the two builds first: `cargo xtask bench compare OLD NEW …`");
        }
        let builds: Vec<Build> = names.into_iter().map(|name| build_of(root, name)).collect::<Result<_>>()?;
        for (argument, build) in arguments.iter_mut().skip(1).zip(&builds) {
            *argument = programs_of(root, &target, profile, build)?.display().to_string();
        }
    }
    if !helps && arguments.first().is_some_and(|word| word == "cluster") {
        // What runs on this machine only drives and counts: minutes of link-time optimisation are for what is measured.
        let names = ["--bin", "bench", "--bin", "meshctl"];
        let words = ["build", "--profile", DRIVER, "--locked", "--workspace"];
        repository::cargo(root, &[&words[..], &names[..]].concat())?;
        return in_cluster(root, profile, &target, &arguments);
    }
    // Where another folder with our programs is named, only the benchmark itself is needed.
    let named = arguments.iter().any(|word| word.starts_with("--binaries"));
    if named || arguments.first().is_some_and(|word| word == "compare") {
        repository::cargo(root, &["build", "--profile", profile, "--locked", "--workspace", "--bin", "bench"])?;
    } else {
        repository::cargo(root, &["build", "--profile", profile, "--locked", "--workspace", "--bins"])?;
    }
    let mut command = Command::new(target.join(folder_of(profile)).join("bench"));
    if !helps && arguments.first().is_some_and(|word| word == "pair") {
        prepare_peers(&target, &arguments, &mut command)?;
    }
    let status = command.args(&arguments).current_dir(root).status()?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

/// Measures in a cluster of two nodes that is started for it and ended after it.
fn in_cluster(root: &Path, profile: &str, target: &Path, arguments: &[String]) -> Result<ExitCode> {
    const NAME: &str = "bench";
    // What is started from here on means this cluster by its name.
    let script = |words: &[&str]| {
        let mut command = Command::new(root.join("tests/cluster/cluster"));
        command.args(words).env("MESH_CLUSTER_NAME", NAME);
        command
    };
    tools::cluster()?;
    let archives = image::build(root, profile, cluster::TAG)?;
    run_step(script(&["build"]))?;
    run_step(script(&["up", "--nodes", "2"]))?;
    let outcome = (|| {
        let mut load = script(&["load"]);
        load.args(&archives);
        run_step(load)?;
        let kubectl = root.join("tests/cluster/cluster").display().to_string() + " kubectl";
        let state = std::env::var("MESH_CLUSTER_STATE").unwrap_or_else(|_| "/var/lib/mesh-cluster".to_owned());
        let cgroup = format!("/mesh-cluster/{NAME}/");
        let status = Command::new(target.join(DRIVER).join("bench"))
            .args(arguments)
            .args(["--kubectl", &kubectl, "--cgroup", &cgroup])
            .env("MESH_CLUSTER_NAME", NAME)
            .env("KUBECONFIG", Path::new(&state).join(NAME).join("kubeconfig"))
            .current_dir(root)
            .status()?;
        Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
    })();
    run_step(script(&["down"]))?;
    outcome
}

fn run_step(mut command: Command) -> Result<()> {
    let status = command.stdout(std::process::Stdio::null()).status()?;
    if !status.success() {
        bail!("{command:?} failed");
    }
    Ok(())
}

/// A few seconds of each benchmark with the development build: that they run, not what they show.
pub(crate) fn short(root: &Path, envoy: &Path) -> Result<()> {
    let program = repository::program(root, "bench")?;
    let target = repository::target(root)?;
    let builds = target.join("debug").into_os_string();
    let lines: [&[OsString]; 4] = [
        &["pair".into(), "--peers".into(), "none,mesh,nginx,haproxy,envoy-http2".into()],
        &["control".into()],
        &["webhook".into(), "--rates".into(), "50".into()],
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

/// The folder below the target folder in which cargo puts what it builds in a profile.
fn folder_of(profile: &str) -> &str {
    if profile == "dev" { "debug" } else { profile }
}

/// What is compared.
#[derive(Debug)]
enum Build {
    /// A folder with our programs.
    Folder(PathBuf),
    /// A revision, in full and as it was named.
    Revision(String, String),
}

/// What a name stands for.
fn build_of(root: &Path, named: &str) -> Result<Build> {
    let folder = Path::new(named);
    if folder.is_dir() {
        return Ok(Build::Folder(folder.canonicalize().with_context(|| format!("{named} cannot be read"))?));
    }
    match git(root, &["rev-parse", "--verify", "--quiet", &format!("{named}^{{commit}}")]) {
        Ok(revision) => Ok(Build::Revision(revision, named.to_owned())),
        Err(_) => bail!("{named} is neither a folder nor a git revision"),
    }
}

/// The folder with a build's programs. A revision is built for it, once for each profile.
fn programs_of(root: &Path, target: &Path, profile: &str, build: &Build) -> Result<PathBuf> {
    let (revision, named) = match build {
        Build::Folder(folder) => return Ok(folder.clone()),
        Build::Revision(revision, named) => (revision, named),
    };
    let kept = target.join("bench-builds").join(format!("{revision}-{profile}"));
    if PROGRAMS.iter().all(|program| kept.join(program).is_file()) {
        return Ok(kept);
    }
    let sources = target.join("bench-builds").join(format!("{revision}.sources"));
    let place = sources.display().to_string();
    if !sources.exists() {
        git(root, &["worktree", "add", "--detach", &place, revision])?;
    }
    let built = target.join("bench-builds/target");
    eprintln!("building {named}");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--profile", profile, "--locked", "--workspace"]);
    let status = build
        .args(PROGRAMS.iter().flat_map(|program| ["--bin", program]))
        .env("CARGO_TARGET_DIR", &built)
        .current_dir(&sources)
        .status()?;
    git(root, &["worktree", "remove", "--force", &place])?;
    if !status.success() {
        bail!("{named} cannot be built");
    }
    std::fs::create_dir_all(&kept)?;
    for program in PROGRAMS {
        std::fs::copy(built.join(folder_of(profile)).join(program), kept.join(program))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_are_folders_or_revisions_and_nothing_else() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert!(matches!(build_of(root, env!("CARGO_MANIFEST_DIR")), Ok(Build::Folder(_))));
        let refused = build_of(root, "no-such-revision").unwrap_err();
        assert_eq!(format!("{refused:#}"), "no-such-revision is neither a folder nor a git revision");
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for line in [&["compare"][..], &["compare", "HEAD"], &["compare", "HEAD", "--short"]] {
            let refused = run(root, "dev", &words(line)).unwrap_err();
            assert!(refused.to_string().starts_with("name the two builds first"), "{line:?}: {refused:#}");
        }
    }
}
