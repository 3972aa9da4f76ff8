//! Which file offsets are first instructions of functions.

use object::{Object, ObjectSegment, ObjectSymbol, SymbolKind};

/// Whether a symbol of the file says that a function begins at `offset`.
pub fn starts_at(path: &[u8], offset: u64) -> bool {
    let path = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path);
    let Ok(data) = std::fs::read(path) else { return false };
    let Ok(file) = object::File::parse(data.as_slice()) else { return false };
    let address = file.segments().find_map(|s| {
        let (start, len) = s.file_range();
        let at = offset.checked_sub(start).filter(|at| *at < len)?;
        Some(s.address() + at)
    });
    let Some(address) = address else { return false };
    let symbols = file.symbols().chain(file.dynamic_symbols());
    symbols.into_iter().any(|s| s.is_definition() && s.kind() == SymbolKind::Text && s.address() == address)
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_starts_in_what_is_no_program() {
        assert!(!super::starts_at(b"/proc/self/status", 0));
        assert!(!super::starts_at(b"/no/such/file", 0));
        assert!(!super::starts_at(b"/proc/self/exe", 0));
    }
}
