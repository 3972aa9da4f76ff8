//! The environment variables that change what bpftime does: one row each, read by every crate.

/// One configuration variable.
pub struct Var {
    /// Name in the environment.
    pub name: &'static str,
    /// What it does, for `bpftime doctor` and the README.
    pub doc: &'static str,
}

macro_rules! vars {
    ($($id:ident = $name:literal, $doc:literal;)*) => {
        $(#[doc = $doc] pub const $id: &str = $name;)*
        /// All configuration variables.
        pub const VARS: &[Var] = &[$(Var { name: $name, doc: $doc }),*];
    };
}

vars! {
    RUNTIME_DIR = "BPFTIME_RUNTIME_DIR", "Directory of the session sockets (default: XDG_RUNTIME_DIR/bpftime, else /tmp/bpftime-UID).";
    LOG = "BPFTIME_LOG", "Log filter of the server and the CLI, written to BPFTIME_LOG_FILE or standard error (default: nothing is written).";
    LOG_FILE = "BPFTIME_LOG_FILE", "File that log lines are appended to.";
    LIB_DIR = "BPFTIME_LIB_DIR", "Directory of libbpftime-syscall.so and libbpftime-agent.so (default: beside the executable or the loaded library).";
    VERIFY = "BPFTIME_VERIFY", "off: load programs that were only checked structurally (default: every program is verified).";
    KERNEL_BTF = "BPFTIME_KERNEL_BTF", "off: serve bpftime's own BTF in place of the kernel's (default: only where the kernel's cannot be read).";
    INJECT = "BPFTIME_INJECT", "all: a tool's probes bring the agent into every process of the user that maps the probed file (default: only into the process that an event names).";
    FAKE_ROOT = "BPFTIME_FAKE_ROOT", "1: geteuid() answers 0 in this program, 0: never (default: only in programs known to demand it).";
}
