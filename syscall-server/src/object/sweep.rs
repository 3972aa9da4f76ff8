//! Forgetting objects that the tool has closed, with our own descriptors and the memory of them.
//!
//! A perf event or a link is a socket, whose end the broker sees. A map or a program is a memory file, whose last close
//! nobody is told of. So now and then, when objects have become more, the tool's descriptors are looked through: an object
//! is let go when nothing refers to it and two looks in a row found no descriptor of its file. Two, since a descriptor may
//! be moved to another number while we look. In a forked child that goes on with a descriptor nothing changes: it has
//! copies of all of this.

use super::{Object, Row, table};
use crate::fds::{self, FileId};
use rustix::fd::{AsRawFd, RawFd};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So few are never looked through.
const FEW: usize = 128;
/// How many looks have to miss an object.
const LOOKS: u8 = 2;

static NEXT: AtomicUsize = AtomicUsize::new(FEW);

/// Whether it is time to look, with `objects` in the table.
pub fn is_due(objects: usize) -> bool {
    objects >= NEXT.load(Ordering::Relaxed)
}

/// Lets go what is closed, as far as one look can tell.
pub fn sweep() {
    let mut table = table();
    let Some(open) = open_files(&table) else { return };
    for (id, row) in table.iter_mut() {
        row.unseen = if open.contains(id) { 0 } else { row.unseen.saturating_add(1) };
    }
    let gone: Vec<Row> = dead(&table).iter().filter_map(|id| table.remove(id)).collect();
    let left = table.len();
    NEXT.store((left + (left / 4).max(FEW / 2)).max(FEW), Ordering::Relaxed);
    drop(table);
    tracing::debug!(gone = gone.len(), left, "closed objects let go");
    // What only they referred to goes at the next look.
    drop(gone);
}

/// Lets go all that can be: the descriptor table is full.
pub fn reclaim() {
    // A program's maps are free once it is gone.
    (0..=LOOKS).for_each(|_| sweep());
}

/// The files behind the tool's descriptors, ours left out. `None` when they cannot be told.
fn open_files(table: &HashMap<FileId, Row>) -> Option<HashSet<FileId>> {
    let ours: HashSet<RawFd> = table.values().flat_map(|row| own_numbers(&row.object)).collect();
    let numbers = std::fs::read_dir("/proc/thread-self/fd").ok()?;
    let numbers = numbers.flatten().filter_map(|e| e.file_name().to_str()?.parse::<RawFd>().ok());
    let theirs = numbers.filter(|n| !ours.contains(n));
    Some(theirs.filter_map(|n| fds::identity(fds::borrow(n).ok()?).ok()).collect())
}

/// Numbers that we hold of the very file that identifies the object.
pub fn own_numbers(object: &Object) -> Vec<RawFd> {
    let events = |e: &Option<super::Events>| e.as_ref().map(|e| e.tool.as_raw_fd());
    match object {
        Object::Map(m) => events(&m.events).into_iter().chain([m.memfd.as_raw_fd()]).collect(),
        Object::Prog(p) => vec![p.image.as_raw_fd()],
        Object::Perf(p) => events(&p.events).into_iter().collect(),
        Object::Link(_) => Vec::new(),
        Object::Btf(b) => vec![b.memfd.as_raw_fd()],
    }
}

/// Objects that were missed often enough and that nothing but the table refers to.
fn dead(table: &HashMap<FileId, Row>) -> Vec<FileId> {
    let uses = |row: &Row| match &row.object {
        Object::Prog(p) => Some(p.btf),
        Object::Map(m) => Some(m.def().btf_id),
        _ => None,
    };
    let used_btf: HashSet<u32> = table.values().filter_map(uses).collect();
    let unused = |o: &Object| match o {
        Object::Map(m) => Arc::strong_count(m) == 1,
        Object::Prog(p) => Arc::strong_count(p) == 1,
        Object::Perf(p) => Arc::strong_count(p) == 1,
        Object::Link(l) => Arc::strong_count(l) == 1,
        // The kernel's is offered for as long as the tool runs.
        Object::Btf(b) => Arc::strong_count(b) == 1 && b.name.is_empty() && !used_btf.contains(&b.id),
    };
    table.iter().filter(|(_, r)| r.unseen >= LOOKS && unused(&r.object)).map(|(id, _)| *id).collect()
}
