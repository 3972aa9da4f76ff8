//! Kernel headers, where bcc looks for them: `/lib/modules/RELEASE/{build,source}` of the running kernel.
//!
//! bcc compiles its programs against them. Where the running kernel has none, the headers of another installed kernel
//! stand in: what tracing programs of user space take from them (`struct pt_regs`, integer types, helper numbers) is ABI.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering as Memory};

/// Whether this process was given another kernel's idea of the task.
static USED: AtomicBool = AtomicBool::new(false);

/// Whether this process was given another kernel's `linux/sched.h`: what its programs take the task to look like is then
/// nobody's BTF.
pub fn in_use() -> bool {
    USED.load(Memory::Relaxed)
}

const MODULES: &str = "/lib/modules/";

/// Headers that are installed.
struct Headers {
    /// The configured tree, with the generated files.
    build: PathBuf,
    /// The tree of the sources, where the distribution keeps them apart.
    source: PathBuf,
}

/// The path of an installed file that stands for `path`, one that is missing below the running kernel's directory.
pub fn stand_in(path: &str) -> Option<PathBuf> {
    let below = path.strip_prefix(MODULES)?.strip_prefix(release())?.strip_prefix('/')?;
    let (tree, rest) = below.split_once('/').unwrap_or((below, ""));
    let headers = installed()?;
    let base = match tree {
        "build" => &headers.build,
        "source" => &headers.source,
        _ => return None,
    };
    if rest.ends_with("include/linux/sched.h") {
        USED.store(true, Memory::Relaxed);
    }
    Some(if rest.is_empty() { base.clone() } else { base.join(rest) })
}

fn release() -> &'static str {
    static RELEASE: OnceLock<String> = OnceLock::new();
    RELEASE.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        text.trim().to_owned()
    })
}

/// The newest kernel whose headers are installed; none where the running one has its own, so that two never mix.
fn installed() -> Option<&'static Headers> {
    static FOUND: OnceLock<Option<Headers>> = OnceLock::new();
    let modules = Path::new(MODULES);
    let find = || if is_complete(&modules.join(release())) { None } else { newest(modules) };
    FOUND.get_or_init(find).as_ref()
}

fn newest(modules: &Path) -> Option<Headers> {
    let names = std::fs::read_dir(modules).ok()?.flatten().filter_map(|e| e.file_name().into_string().ok());
    let mut complete: Vec<String> = names.filter(|n| is_complete(&modules.join(n))).collect();
    complete.sort_by(|a, b| by_version(a, b));
    let dir = modules.join(complete.pop()?);
    let build = dir.join("build");
    // Without a source tree of their own the headers are all in one place.
    let source = Some(dir.join("source")).filter(|p| exists(p)).unwrap_or_else(|| build.clone());
    Some(Headers { build, source })
}

fn is_complete(dir: &Path) -> bool {
    let has = |tree: &str, file: &str| exists(&dir.join(tree).join(file));
    let linux = "include/linux/kconfig.h";
    has("build", "include/generated/autoconf.h") && (has("source", linux) || has("build", linux))
}

/// Asks the kernel itself: our own stat() would come back here.
fn exists(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXISTS).is_ok()
}

/// Orders releases by their numbers: 6.9 before 6.12.
fn by_version(a: &str, b: &str) -> Ordering {
    let numbers = |s: &str| -> Vec<u64> {
        s.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b)).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(root: &Path, release: &str, complete: bool) {
        let build = root.join(release).join("build/include");
        std::fs::create_dir_all(build.join("generated")).unwrap();
        std::fs::create_dir_all(build.join("linux")).unwrap();
        std::fs::write(build.join("linux/kconfig.h"), "").unwrap();
        if complete {
            std::fs::write(build.join("generated/autoconf.h"), "").unwrap();
        }
    }

    #[test]
    fn the_newest_complete_headers_are_chosen() {
        let root = std::env::temp_dir().join(format!("bpftime-headers-{}", std::process::id()));
        tree(&root, "6.9.0-1", true);
        tree(&root, "6.12.0-1", true);
        tree(&root, "6.18.0-1", false);
        let found = newest(&root).map(|h| h.build);
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, Some(root.join("6.12.0-1/build")));
    }

    #[test]
    fn only_the_running_kernels_trees_have_a_stand_in() {
        assert_eq!(stand_in("/lib/modules/0.0.1-none/build"), None);
        assert_eq!(stand_in(&format!("/lib/modules/{}/kernel", release())), None);
        assert_eq!(stand_in("/etc/passwd"), None);
    }
}
