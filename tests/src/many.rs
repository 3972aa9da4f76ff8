//! `targets/many.c`, ten thousand small functions, and `tools/links.c`, which attaches to them.

use crate::{Running, Scratch, symbol_offset};
use std::path::PathBuf;
use std::process::Command;

/// The target, the tool and where the functions begin, in a scratch directory of their own.
pub struct Many {
    /// Where both are, with their sessions.
    pub s: Scratch,
    /// The target.
    pub exe: PathBuf,
    /// The tool.
    pub links: PathBuf,
    /// File offset of the first function; the others follow every 32 bytes.
    pub first: u64,
}

impl Many {
    /// Both compiled.
    pub fn new() -> Self {
        let s = Scratch::new();
        let exe = s.compile("targets/many.c", "many", &[]);
        let links = s.compile("tools/links.c", "links", &["-w"]);
        let first = symbol_offset(&exe, "first");
        Self { s, exe, links, first }
    }

    /// The target with the agent, started.
    pub fn target(&self) -> Running {
        ready(self.s.target(&self.exe))
    }

    /// The target as anybody starts it.
    pub fn plain(&self) -> Running {
        ready(self.s.command(&self.exe))
    }

    /// A tool on the target's file: its first argument, then the words after the path.
    pub fn tool(&self, how: &str, words: &[u64], env: &[(&str, &str)]) -> Running {
        let mut cmd = self.s.tool(&self.links);
        cmd.arg(how).arg(&self.exe).args(words.iter().map(u64::to_string)).envs(env.iter().copied());
        Running::start(cmd)
    }
}

impl Default for Many {
    fn default() -> Self {
        Self::new()
    }
}

/// `cmd` when it has said RUNNING (the target) or READY (the tool).
pub fn ready(cmd: Command) -> Running {
    let mut run = Running::start(cmd);
    run.wait_for("R");
    run
}

/// What the tool has counted, by its answer to `what`.
pub fn count(tool: &mut Running, what: &str) -> u64 {
    tool.ask(what).strip_prefix("COUNT ").and_then(|n| n.parse().ok()).expect("COUNT n")
}
