//! Programs of others, in other languages: each is told lines and answers lines.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::wait::PATIENCE;

/// A running program; it ends with this value.
pub struct Foreign {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Foreign {
    /// Starts a script of `tests/foreign`: with Python if `XDS_PYTHON`, with Node.js if `XDS_NODE_MODULES` is where its
    /// packages are; both are installed by `cargo xtask test`.
    pub fn start(script: &str, arguments: &[&str], environment: &[(&str, String)]) -> Foreign {
        let file = Path::new("foreign").join(script);
        let variable = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| {
                panic!("{name} says where the packages for {script} are; `cargo xtask test` installs them")
            })
        };
        let mut command = if script.ends_with(".py") {
            Command::new(variable("XDS_PYTHON"))
        } else {
            let mut node = Command::new("node");
            node.env("NODE_PATH", variable("XDS_NODE_MODULES"));
            node
        };
        command.arg(file).args(arguments).envs(environment.iter().map(|(name, value)| (*name, value)));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("it starts");
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Foreign { input: child.stdin.take().unwrap(), output, _child: child }
    }

    /// Tells it a line.
    pub async fn tell(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    /// Its next line.
    pub async fn hear(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.output.next_line()).await.expect("an answer in time").unwrap();
        serde_json::from_str(&line.expect("it is still there")).unwrap()
    }
}
