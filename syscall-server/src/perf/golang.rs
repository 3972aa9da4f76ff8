//! Go programs: their stacks move, so a return address must stay where the caller put it. The kernel lets a return
//! probe in and the program crashes at the next stack growth; here the probe is refused.

use object::{Object, ObjectSection};

/// Whether the file is a Go program: it has the line table of Go's runtime.
pub fn is_go(path: &[u8]) -> bool {
    let path = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path);
    let Ok(data) = std::fs::read(path) else { return false };
    let Ok(file) = object::File::parse(data.as_slice()) else { return false };
    file.sections().any(|s| s.name().is_ok_and(|n| n == ".gopclntab" || n == ".data.rel.ro.gopclntab"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_c_program_is_no_go_program() {
        assert!(!super::is_go(b"/bin/sh"));
        assert!(!super::is_go(b"/no/such/file"));
    }
}
