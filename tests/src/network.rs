//! Machines on one network, each a network namespace of its own, with real programs in them. This takes root.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

/// The user and group that the proxy runs as.
const PROXY: &str = "1337";

/// A hub at 10.66.0.1 and fd66::1, and machines at 10.66.0.2, fd66::2 and up. Everything ends with this value; the logs are shown if the test fails.
pub struct Network {
    /// Files that every user may read.
    pub folder: TempDir,
    names: Vec<String>,
    running: Vec<(String, Child)>,
}

impl Network {
    /// The hub and so many machines.
    pub fn new(machines: usize) -> Network {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let unique = format!("mesh-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let mut network = Network { folder, names: Vec::new(), running: Vec::new() };
        network.add(format!("{unique}-hub"));
        network.ip(0, "link add hub type bridge");
        network.ip(0, "addr add 10.66.0.1/24 dev hub");
        network.ip(0, "-6 addr add fd66::1/64 dev hub nodad");
        network.ip(0, "link set hub up");
        for machine in 1..=machines {
            network.add(format!("{unique}-{machine}"));
            let hub = network.names[0].clone();
            network.ip(machine, &format!("link add eth0 type veth peer name port{machine} netns {hub}"));
            network.ip(0, &format!("link set port{machine} master hub"));
            network.ip(0, &format!("link set port{machine} up"));
            network.ip(machine, &format!("addr add {}/24 dev eth0", Self::address(machine)));
            network.ip(machine, &format!("-6 addr add {}/64 dev eth0 nodad", Self::address_six(machine)));
            network.ip(machine, "link set eth0 up");
            network.ip(machine, "route add default via 10.66.0.1");
            network.ip(machine, "-6 route add default via fd66::1");
        }
        network
    }

    /// The address of a machine.
    pub fn address(machine: usize) -> String {
        format!("10.66.0.{}", machine + 1)
    }

    /// Its IPv6 address.
    pub fn address_six(machine: usize) -> String {
        format!("fd66::{}", machine + 1)
    }

    fn add(&mut self, name: String) {
        run(Command::new("ip").args(["netns", "add", &name]));
        self.names.push(name);
        self.ip(self.names.len() - 1, "link set lo up");
    }

    fn ip(&self, machine: usize, words: &str) {
        run(Command::new("ip").args(["-n", &self.names[machine]]).args(words.split(' ')));
    }

    fn command(&self, machine: usize) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[machine]]).stdin(Stdio::null());
        command
    }

    /// Sets what programs on a machine that start from now on find in `/etc/resolv.conf`.
    pub fn set_resolv_conf(&self, machine: usize, text: &str) {
        let folder = Path::new("/etc/netns").join(&self.names[machine]);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("resolv.conf"), text).unwrap();
    }

    /// Runs a program on a machine to its end. Machine 0 is the hub.
    pub fn output<S: AsRef<std::ffi::OsStr>>(&self, machine: usize, program: &Path, arguments: &[S]) -> Output {
        self.command(machine).arg(program).args(arguments).output().unwrap()
    }

    /// Starts a program with what `setpriv` is told; it ends with the network.
    fn start(&mut self, machine: usize, name: &str, as_whom: &[&str], program: &Path, arguments: &[String]) {
        let log = File::create(self.folder.path().join(format!("{name}.log"))).unwrap();
        let mut command = self.command(machine);
        if !as_whom.is_empty() {
            command.arg("setpriv").args(as_whom).arg("--clear-groups");
        }
        command.arg(program).args(arguments).stdout(log.try_clone().unwrap()).stderr(log);
        self.running.push((name.to_owned(), command.spawn().unwrap()));
    }

    /// Starts a program as root.
    pub fn start_program(&mut self, machine: usize, name: &str, program: &Path, arguments: &[String]) {
        self.start(machine, name, &[], program, arguments);
    }

    /// Starts a program as the proxy's user.
    pub fn start_proxy(&mut self, machine: usize, name: &str, program: &Path, arguments: &[String]) {
        self.start(machine, name, &["--reuid", PROXY, "--regid", PROXY], program, arguments);
    }

    /// Starts a program as pods with TPROXY start the proxy: as root of the proxy's group, with one capability.
    pub fn start_transparent_proxy(&mut self, machine: usize, name: &str, program: &Path, arguments: &[String]) {
        let as_whom = ["--reuid", "0", "--regid", PROXY, "--bounding-set", "-all,+net_admin"];
        self.start(machine, name, &as_whom, program, arguments);
    }

    /// Asks a program to end, as the kubelet does.
    pub fn terminate(&self, name: &str) {
        let (_, child) = self.running.iter().find(|(known, _)| known == name).unwrap();
        run(Command::new("kill").args(["-TERM", &child.id().to_string()]));
    }

    /// Says how a program ended, if one has.
    pub fn ended(&mut self) -> Option<String> {
        self.running.iter_mut().find_map(|(name, child)| Some(format!("{name}: {}", child.try_wait().unwrap()?)))
    }

    /// The network namespace of a machine.
    pub fn name(&self, machine: usize) -> &str {
        &self.names[machine]
    }

    /// A copy of a program that every user may run: the build's folder may be closed to them.
    pub fn copy_of(&self, program: &Path) -> PathBuf {
        let copy = self.folder.path().join(program.file_name().unwrap());
        std::fs::copy(program, &copy).unwrap();
        copy
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
            let _ = std::fs::remove_dir_all(Path::new("/etc/netns").join(name));
        }
        if !std::thread::panicking() {
            return;
        }
        for (name, _) in &self.running {
            let text = std::fs::read_to_string(self.folder.path().join(format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {name}\n{}", lines[lines.len().saturating_sub(25)..].join("\n"));
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed, which takes root and iproute2: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A program of the workspace, beside the folder that the tests lie in.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join(name);
    assert!(path.exists(), "{} is not there: build all programs with `cargo build --workspace --bins`", path.display());
    path
}
