//! Ids of objects, unique among the sessions of a runtime directory as the kernel's are among all tools; and the indices
//! by which maps know processes, since a pinned map is used by processes of several sessions.
//!
//! A file in the directory holds the next id that nobody has; a tool takes a block at a time under the file's lock.

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::path::Path;

/// Ids that are taken at once.
pub const BLOCK: u32 = 64;

/// The first of [`BLOCK`] ids that nobody else was or will be given. After four thousand million they begin anew.
pub fn take_block(dir: &Path) -> Result<u32, Errno> {
    take(dir, "ids")
}

/// The first of [`BLOCK`] process indices. They begin anew after 1023 blocks: whoever takes one must look whether a
/// process that it knows has it yet.
pub fn take_owners(dir: &Path) -> Result<u16, Errno> {
    /// Blocks above the first, which is left to the indices with a meaning of their own.
    const BLOCKS: u32 = (1 << 16) / BLOCK - 1;
    Ok(((1 + take(dir, "owners")? / BLOCK % BLOCKS) * BLOCK) as u16)
}

fn take(dir: &Path, name: &str) -> Result<u32, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(dir.join(name), flags, Mode::RUSR | Mode::WUSR)?;
    // Given back when the file is closed.
    rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    let mut bytes = [0; 4];
    let read = rustix::io::pread(&file, &mut bytes, 0)?;
    let next = if read == 4 { u32::from_le_bytes(bytes).max(1) } else { 1 };
    let after = next.checked_add(BLOCK).unwrap_or(1);
    crate::region::file_of(4, || rustix::io::pwrite(&file, &after.to_le_bytes(), 0))?;
    Ok(if after == 1 { 1 } else { next })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_is_given_twice() {
        let dir = std::env::temp_dir().join(format!("bpftime-ids-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("directory");
        let take = |dir: std::path::PathBuf| {
            move || (0..50).map(|_| take_block(&dir).expect("block")).collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(take(dir.clone()))).collect();
        let mut all: Vec<u32> = threads.into_iter().flat_map(|t| t.join().expect("thread")).collect();
        std::fs::remove_dir_all(&dir).expect("directory");
        all.sort_unstable();
        let wanted: Vec<u32> = (0..200).map(|n| 1 + n * BLOCK).collect();
        assert_eq!(all, wanted);
    }
}
