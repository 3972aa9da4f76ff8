//! Files in whose code no probe can stand: static programs, where none would ever fire, and Go's, which it would break. A
//! tool is refused there rather than left waiting.

use bpftime_agent::program::{self, Unfit};
use rustix::fs::Stat;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A file as it was when it was looked at: device, inode, size, time of its last change.
type Seen = (u64, u64, i64, i64, i64);

/// `EOPNOTSUPP` for such a file, with the reason in the log. Tools probe thousands of places of one file in a row, so the
/// last answer is kept.
pub fn refuse(path: &[u8], st: &Stat) -> Result<(), Errno> {
    static LAST: Mutex<Option<(Seen, Option<Unfit>)>> = Mutex::new(None);
    let seen = (st.st_dev, st.st_ino, st.st_size, st.st_ctime, st.st_ctime_nsec as i64);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let known = last.filter(|(of, _)| *of == seen).map(|(_, answer)| answer);
    let answer = known.unwrap_or_else(|| program::unfit(Path::new(OsStr::from_bytes(path))));
    *last = Some((seen, answer));
    let Some(unfit) = answer else { return Ok(()) };
    if known.is_none() {
        let path = String::from_utf8_lossy(path);
        tracing::error!(%path, reason = unfit.why(), "probes are refused");
    }
    Err(Errno::OPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_kept_is_the_same_answer() {
        for (path, answer) in [(&b"/bin/sh"[..], Ok(())), (b"/sbin/ldconfig", Err(Errno::OPNOTSUPP))] {
            let Ok(st) = rustix::fs::stat(path) else { continue };
            assert_eq!(refuse(path, &st), answer);
            assert_eq!(refuse(path, &st), answer);
        }
    }
}
