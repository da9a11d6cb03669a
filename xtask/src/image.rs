//! `cargo xtask image`: container images from scratch, with static programs and without a container engine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cluster, repository};

/// What images are built for. Named, so that compiler plug-ins stay dynamic while the programs are static.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// An image.
struct Image {
    name: &'static str,
    /// Our program in it, which is also what it runs.
    program: &'static str,
    /// Other names of the program: people and tools exec Istio's.
    links: &'static [&'static str],
    /// What it runs, by the name it is called by.
    entry: &'static str,
    user: &'static str,
    /// Programs of the system that it calls, with the libraries they load.
    system: &'static [&'static str],
}

const IMAGES: &[Image] = &[
    Image {
        name: "meshd",
        program: "meshd",
        links: &["pilot-discovery"],
        entry: "/usr/local/bin/meshd",
        user: "1337:1337",
        system: &[],
    },
    Image {
        name: "proxy",
        program: "proxy",
        links: &["pilot-agent"],
        entry: "/usr/local/bin/pilot-agent",
        user: "1337:1337",
        // `pilot-agent istio-iptables` hands its rules to whichever of them the kernel takes: nf_tables is not in all.
        system: &[
            "nft",
            "ip",
            "iptables-legacy",
            "iptables-legacy-restore",
            "ip6tables-legacy",
            "ip6tables-legacy-restore",
        ],
    },
    Image {
        name: "bench",
        program: "bench",
        links: &[],
        entry: "/usr/local/bin/bench",
        user: "1000:1000",
        system: &[],
    },
    Image { name: "shop", program: "shop", links: &[], entry: "/usr/local/bin/shop", user: "1000:1000", system: &[] },
    // What the tests on Kubernetes put into pods.
    Image {
        name: "workload",
        program: "workload",
        links: &[],
        entry: "/usr/local/bin/workload",
        user: "1000:1000",
        system: &[],
    },
];

/// Builds the programs and makes the images; tells their archives.
pub(crate) fn build(root: &Path, profile: &str, tag: &str) -> Result<Vec<PathBuf>> {
    let status = Command::new(env!("CARGO"))
        .args(["build", "--workspace", "--bins", "--locked", "--target", TARGET, "--profile", profile])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(root)
        .status()?;
    if !status.success() {
        bail!("the static programs cannot be built");
    }
    let built = built(root, profile)?;
    let folder = repository::target(root)?.join("images");
    IMAGES.iter().map(|image| make(root, image, &built, &folder.join(image.name), tag)).collect()
}

/// Where the static programs are.
pub(crate) fn built(root: &Path, profile: &str) -> Result<PathBuf> {
    Ok(repository::target(root)?.join(TARGET).join(if profile == "dev" { "debug" } else { profile }))
}

/// Names of the images; the targets of the Dockerfile have the same.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    IMAGES.iter().map(|image| image.name)
}

fn make(root: &Path, image: &Image, built: &Path, folder: &Path, tag: &str) -> Result<PathBuf> {
    let _ = fs::remove_dir_all(folder);
    let programs = folder.join("usr/local/bin");
    fs::create_dir_all(&programs)?;
    let program = programs.join(image.program);
    fs::copy(built.join(image.program), &program).with_context(|| format!("there is no program {}", image.program))?;
    let stripped = Command::new("strip").arg(&program).status().is_ok_and(|status| status.success());
    if !stripped {
        eprintln!("{} is not stripped: its image is larger than it need be", image.program);
    }
    for link in image.links {
        symlink(image.program, programs.join(link))?;
    }
    let place = folder.display().to_string();
    if !image.system.is_empty() {
        cluster::output(root, &[&["rootfs", &place], image.system].concat())?;
    }
    if image.system.contains(&"iptables-legacy") {
        copy_extensions(folder)?;
    }
    let name = format!("mesh/{}:{tag}", image.name);
    // Beside what it is made of: clones that share a cache of clusters do not share their images.
    let archive = folder.with_extension("tar");
    let file = archive.display().to_string();
    cluster::output(root, &["image", "--user", image.user, "--archive", &file, &name, &place, image.entry])?;
    println!("{name} {file}");
    Ok(archive)
}

/// What iptables loads for the rules of `proxy init`, by the words in them.
const EXTENSIONS: [&str; 8] = [
    "libxt_standard.so",
    "libxt_tcp.so",
    "libxt_udp.so",
    "libxt_multiport.so",
    "libxt_owner.so",
    "libxt_conntrack.so",
    "libxt_CT.so",
    "libxt_REDIRECT.so",
];

/// Copies them to where they are on this system, where the program looks for them.
fn copy_extensions(folder: &Path) -> Result<()> {
    let place = format!("/usr/lib/{}-linux-gnu/xtables", std::env::consts::ARCH);
    let to = folder.join(place.trim_start_matches('/'));
    fs::create_dir_all(&to)?;
    for name in EXTENSIONS {
        let from = Path::new(&place).join(name);
        fs::copy(&from, to.join(name)).with_context(|| format!("{} cannot be copied", from.display()))?;
    }
    Ok(())
}
