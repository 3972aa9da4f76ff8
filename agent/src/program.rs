//! Kinds of program that the agent cannot serve, by their ELF file.

use object::read::elf::{FileHeader, ProgramHeader};
use object::{ReadRef, elf};
use std::fs::File;
use std::path::Path;

type Header = elf::FileHeader64<object::NativeEndian>;

const NE: object::NativeEndian = object::NativeEndian;

/// Why no probe can stand in a file's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// A program that no dynamic loader starts, and so none can load the agent into.
    Static,
    /// Code of Go: its stacks are of two kilobytes, of which it leaves less than a probe takes, and they move.
    Go,
}

impl Unfit {
    /// In words.
    pub fn why(self) -> &'static str {
        match self {
            Self::Static => {
                "it is a static program: no dynamic loader can load the agent there; link it dynamically"
            }
            Self::Go => {
                "it is a Go program: its stacks are too small for a probe, and move; probe the C libraries it uses"
            }
        }
    }
}

/// What stands against probes in the file at `path`, if it is one that can be read. Only its headers are looked at.
pub fn unfit(path: &Path) -> Option<Unfit> {
    let data = object::ReadCache::new(File::open(path).ok()?);
    if is_go(&data) {
        return Some(Unfit::Go);
    }
    is_static(&data).then_some(Unfit::Static)
}

/// Whether an ELF file is a program that no dynamic loader starts.
pub fn is_static<'a>(data: impl ReadRef<'a>) -> bool {
    let headers = Header::parse(data).and_then(|h| h.program_headers(NE, data)).unwrap_or_default();
    if headers.is_empty() || headers.iter().any(|p| p.p_type(NE) == elf::PT_INTERP) {
        return false;
    }
    // A library has no interpreter either. What tells it from a program at any address is DF_1_PIE in DT_FLAGS_1.
    let dynamic = headers.iter().find_map(|p| p.dynamic(NE, data).ok().flatten());
    let is_pie = |d: &elf::Dyn64<_>| d.d_tag.get(NE) == elf::DT_FLAGS_1 && d.d_val.get(NE) & 0x0800_0000 != 0;
    dynamic.is_none_or(|entries| entries.iter().any(is_pie))
}

/// Whether an ELF file has the line table of Go's runtime.
pub fn is_go<'a>(data: impl ReadRef<'a>) -> bool {
    let Ok(sections) = Header::parse(data).and_then(|h| h.sections(NE, data)) else { return false };
    [&b".gopclntab"[..], b".data.rel.ro.gopclntab"].iter().any(|n| sections.section_by_name(NE, n).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_here_is_fit_and_a_library_is_no_static_program() {
        for path in
            ["/bin/sh", "/proc/self/exe", "/lib64/ld-linux-x86-64.so.2", "/etc/passwd", "/no/such/file"]
        {
            assert_eq!(unfit(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn the_static_linker_cache_builder_is_unfit() {
        let path = Path::new("/sbin/ldconfig");
        if !path.exists() {
            println!("no ldconfig here: nothing to look at");
            return;
        }
        assert_eq!(unfit(path), Some(Unfit::Static));
    }
}
