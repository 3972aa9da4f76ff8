//! Directories of ours, for tools that list them: bcc's wildcards over tracepoints. What the C library gives for one it
//! cannot open is an address of ours; every function that takes such an address looks first whether it is one.

use super::paths::{or_ours, real_for};
use crate::files::{self, Answer};
use crate::guard::guard;
use crate::real;
use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A directory that is being read.
struct Listing {
    entries: Vec<libc::dirent>,
    next: usize,
}

/// Those that are open, by the address that the tool has.
static OPEN: Mutex<Vec<(usize, Listing)>> = Mutex::new(Vec::new());
/// How many, so that other directories cost a tool nothing.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// What `f` does with the listing at this address; `theirs` if it is none of ours.
fn of_ours<T>(dir: *mut c_void, f: impl FnOnce(&mut Listing) -> T, theirs: impl FnOnce() -> T) -> T {
    if COUNT.load(Ordering::Relaxed) == 0 {
        return theirs();
    }
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    match open.iter_mut().find(|(at, _)| *at == dir as usize) {
        Some((_, listing)) => f(listing),
        None => {
            drop(open);
            theirs()
        }
    }
}

/// An entry as readdir(3) describes it.
fn entry(name: &str, d_type: u8, at: usize) -> libc::dirent {
    // SAFETY: a dirent is plain data, for which zeroes are valid.
    let mut e: libc::dirent = unsafe { std::mem::zeroed() };
    let room = e.d_name.len() - 1;
    e.d_name.iter_mut().zip(name.bytes().take(room)).for_each(|(to, from)| *to = from as c_char);
    (e.d_ino, e.d_off, e.d_reclen, e.d_type) =
        (at as u64 + 1, at as i64 + 1, size_of::<libc::dirent>() as u16, d_type);
    e
}

fn entries(path: &CStr) -> Option<Vec<libc::dirent>> {
    let (directories, files) = files::names(path)?;
    let dots = [".", ".."].map(String::from).into_iter().chain(directories).map(|n| (n, libc::DT_DIR));
    let all = dots.chain(files.into_iter().map(|n| (n, libc::DT_REG)));
    Some(all.enumerate().map(|(at, (name, kind))| entry(&name, kind, at)).collect())
}

/// Opens what we have at `path`.
fn open(path: &CStr) -> Option<*mut c_void> {
    let entries = entries(path)?;
    // Its entries' address is nobody else's while it is open.
    let dir = entries.as_ptr() as *mut c_void;
    OPEN.lock().unwrap_or_else(PoisonError::into_inner).push((dir as usize, Listing { entries, next: 0 }));
    COUNT.fetch_add(1, Ordering::Relaxed);
    Some(dir)
}

/// `opendir(3)`.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opendir(path: *const c_char) -> *mut c_void {
    let mut dir = std::ptr::null_mut();
    real_for(path, || {
        dir = real::opendir(path);
        0
    });
    if !dir.is_null() {
        return dir;
    }
    or_ours(dir, path, |answer| match answer {
        Answer::StandIn(path) | Answer::Bpf(path) => Some(real::opendir(path.as_ptr())),
        // SAFETY: the C library has just read the string.
        Answer::Directory => open(unsafe { CStr::from_ptr(path) }),
        Answer::Contents(_) | Answer::TracePipe => None,
    })
}

/// `readdir(3)`.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn readdir(dir: *mut c_void) -> *mut c_void {
    let theirs = || real::readdir(dir);
    let ours = |listing: &mut Listing| {
        let entry = listing.entries.get_mut(listing.next);
        listing.next += usize::from(entry.is_some());
        entry.map_or(std::ptr::null_mut(), |e| std::ptr::from_mut(e).cast())
    };
    guard(|| of_ours(dir, ours, theirs), theirs)
}

/// `readdir64`: the same function on x86-64.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn readdir64(dir: *mut c_void) -> *mut c_void {
    // SAFETY: as our caller's.
    unsafe { readdir(dir) }
}

/// `closedir(3)`.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn closedir(dir: *mut c_void) -> c_int {
    let theirs = || real::closedir(dir);
    let close = || {
        if of_ours(dir, |_| false, || true) {
            return theirs();
        }
        OPEN.lock().unwrap_or_else(PoisonError::into_inner).retain(|(at, _)| *at != dir as usize);
        COUNT.fetch_sub(1, Ordering::Relaxed);
        0
    };
    guard(close, theirs)
}

/// `rewinddir(3)`.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rewinddir(dir: *mut c_void) {
    let theirs = || real::rewinddir(dir);
    guard(|| of_ours(dir, |listing| listing.next = 0, theirs), theirs);
}

/// `telldir(3)`.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn telldir(dir: *mut c_void) -> c_long {
    let theirs = || real::telldir(dir);
    guard(|| of_ours(dir, |listing| listing.next as c_long, theirs), theirs)
}

/// `seekdir(3)`.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn seekdir(dir: *mut c_void, at: c_long) {
    let theirs = || real::seekdir(dir, at);
    guard(|| of_ours(dir, |listing| listing.next = usize::try_from(at).unwrap_or(0), theirs), theirs);
}

/// `dirfd(3)`: ours have none, which the C function may say (EOPNOTSUPP).
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dirfd(dir: *mut c_void) -> c_int {
    let theirs = || real::dirfd(dir);
    let ours = |_: &mut Listing| {
        real::set_errno(libc::EOPNOTSUPP);
        -1
    };
    guard(|| of_ours(dir, ours, theirs), theirs)
}

/// What `scandir` filters with.
type Filter = Option<unsafe extern "C" fn(*const libc::dirent) -> c_int>;
/// What `scandir` sorts by.
type Order = Option<unsafe extern "C" fn(*const c_void, *const c_void) -> c_int>;

/// `scandir(3)`.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn scandir(
    path: *const c_char,
    list: *mut *mut *mut libc::dirent,
    filter: Filter,
    order: Order,
) -> c_int {
    let [filter_word, order_word] = [filter.map_or(0, |f| f as usize), order.map_or(0, |f| f as usize)];
    let n = real_for(path, || real::scandir(path, list.cast(), filter_word, order_word));
    if n >= 0 {
        return n;
    }
    or_ours(n, path, |answer| match answer {
        // SAFETY: the C library has just read the string; the rest is as our caller's.
        Answer::Directory => unsafe { scan(CStr::from_ptr(path), list, filter, order) },
        Answer::StandIn(path) | Answer::Bpf(path) => {
            Some(real::scandir(path.as_ptr(), list.cast(), filter_word, order_word))
        }
        Answer::Contents(_) | Answer::TracePipe => None,
    })
}

/// # Safety
/// As for [`scandir`].
unsafe fn scan(
    path: &CStr,
    list: *mut *mut *mut libc::dirent,
    filter: Filter,
    order: Order,
) -> Option<c_int> {
    let mut found = entries(path)?;
    // SAFETY: the caller's function, on an entry.
    found.retain(|e| filter.is_none_or(|filter| unsafe { filter(e) } != 0));
    // The tool frees each entry, and the list.
    let pointer = size_of::<*mut libc::dirent>();
    // SAFETY: at least one, as some libraries give null for none.
    let room = unsafe { libc::malloc((found.len() + 1) * pointer) }.cast::<*mut libc::dirent>();
    if room.is_null() {
        return None;
    }
    for i in 0..found.len() {
        // SAFETY: memory of an entry's size, or null.
        let copy = unsafe { libc::malloc(size_of::<libc::dirent>()) }.cast::<libc::dirent>();
        if copy.is_null() {
            found.truncate(i);
            break;
        }
        // SAFETY: fresh memory, and the place for its address.
        unsafe {
            copy.write(found[i]);
            room.add(i).write(copy);
        }
    }
    // SAFETY: as many addresses as were found; `list` is the caller's.
    unsafe {
        if let Some(order) = order {
            libc::qsort(room.cast(), found.len(), pointer, Some(order));
        }
        list.write(room);
    }
    Some(found.len() as c_int)
}

/// `scandir64`: the same function on x86-64.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn scandir64(
    path: *const c_char,
    list: *mut *mut *mut libc::dirent,
    filter: Filter,
    order: Order,
) -> c_int {
    // SAFETY: as our caller's.
    unsafe { scandir(path, list, filter, order) }
}
