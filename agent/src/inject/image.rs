//! Dynamic symbols of a library as it lies in a target's memory.
//!
//! Memory and not the file: the file may have been replaced by an upgrade since, or live in another mount
//! namespace. Everything read is checked; a target can only make a lookup fail or return an address in itself.

use object::pod::{Pod, bytes_of_slice_mut, from_bytes};
use object::{NativeEndian, elf};

use super::procfs::{Mapping, Memory};

/// More than any libc has; bounds what a corrupt table makes us read.
const MAX_DYNAMIC: u64 = 512;
const MAX_CHAIN: u32 = 1 << 16;

/// A function in the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) addr: u64,
    pub(super) size: u64,
}

/// A mapped ELF image.
#[derive(Debug)]
pub(super) struct Image<'a> {
    mem: &'a Memory,
    /// Added to the file's virtual addresses.
    bias: u64,
    symtab: u64,
    strtab: u64,
    gnu_hash: Option<u64>,
    sysv_hash: Option<u64>,
    code_end: u64,
}

impl<'a> Image<'a> {
    /// The image whose ELF header is at `base`. None when there is none, or it has no dynamic symbols.
    pub(super) fn at(mem: &'a Memory, base: u64) -> Option<Self> {
        let header: elf::FileHeader64<NativeEndian> = read(mem, base)?;
        let ne = NativeEndian;
        if header.e_ident.magic != elf::ELFMAG || header.e_ident.class != elf::ELFCLASS64 {
            return None;
        }
        let phdrs: Vec<elf::ProgramHeader64<NativeEndian>> = (0..u64::from(header.e_phnum.get(ne)))
            .map_while(|i| read(mem, base.checked_add(header.e_phoff.get(ne))?.checked_add(i * 56)?))
            .collect();
        let first = phdrs.iter().find(|p| p.p_type.get(ne) == elf::PT_LOAD)?;
        let bias = base.wrapping_sub(first.p_vaddr.get(ne) & !0xfff);
        let dynamic = phdrs.iter().find(|p| p.p_type.get(ne) == elf::PT_DYNAMIC)?;
        let mut image = Self::from_dynamic(mem, base, bias, bias.wrapping_add(dynamic.p_vaddr.get(ne)))?;
        let code = phdrs
            .iter()
            .filter(|p| p.p_type.get(ne) == elf::PT_LOAD && p.p_flags.get(ne) & elf::PF_X == elf::PF_X);
        let ends = code.map(|p| bias.wrapping_add(p.p_vaddr.get(ne)).wrapping_add(p.p_memsz.get(ne)));
        image.code_end = ends.max().unwrap_or(0);
        Some(image)
    }

    /// An unused, zeroed place of this many bytes behind the code, in its last page.
    pub(super) fn padding(&self, len: u64) -> Option<u64> {
        let begin = self.code_end.checked_next_multiple_of(16)?;
        let fits = begin.checked_add(len)? <= self.code_end.checked_next_multiple_of(4096)?;
        let mut bytes = vec![1; len as usize];
        (fits && self.mem.read(begin, &mut bytes).is_ok() && bytes.iter().all(|&b| b == 0)).then_some(begin)
    }

    fn from_dynamic(mem: &'a Memory, base: u64, bias: u64, dynamic: u64) -> Option<Self> {
        let mut image =
            Self { mem, bias, symtab: 0, strtab: 0, gnu_hash: None, sysv_hash: None, code_end: 0 };
        // glibc has added the load address to these entries, musl has not.
        let absolute = |v: u64| if v < base { v.wrapping_add(bias) } else { v };
        for i in 0..MAX_DYNAMIC {
            let tag = mem.read_u64(dynamic.checked_add(i * 16)?).ok()?;
            let value = absolute(mem.read_u64(dynamic.checked_add(i * 16 + 8)?).ok()?);
            match elf::DynamicTag(tag as i64) {
                elf::DT_NULL => break,
                elf::DT_SYMTAB => image.symtab = value,
                elf::DT_STRTAB => image.strtab = value,
                elf::DT_GNU_HASH => image.gnu_hash = Some(value),
                elf::DT_HASH => image.sysv_hash = Some(value),
                _ => {}
            }
        }
        (image.symtab != 0 && image.strtab != 0).then_some(image)
    }

    /// A function that this image defines and exports.
    pub(super) fn function(&self, name: &str) -> Option<Function> {
        match (self.gnu_hash, self.sysv_hash) {
            (Some(table), _) => self.find_gnu(table, name),
            (None, Some(table)) => self.find_sysv(table, name),
            (None, None) => None,
        }
    }

    /// System V gABI, "Hash Table", with the GNU extension's layout: nbuckets, symoffset, bloom_size,
    /// bloom_shift, bloom words, buckets, chain.
    fn find_gnu(&self, table: u64, name: &str) -> Option<Function> {
        let [buckets, first, bloom, _]: [u32; 4] =
            [self.u32(table)?, self.u32(table + 4)?, self.u32(table + 8)?, self.u32(table + 12)?];
        let bucket_array = table.checked_add(16)?.checked_add(u64::from(bloom) * 8)?;
        let chain_array = bucket_array.checked_add(u64::from(buckets) * 4)?;
        let hash = elf::gnu_hash(name.as_bytes());
        let start = self.u32(bucket_array + u64::from(hash.checked_rem(buckets)?) * 4)?;
        if start < first {
            return None;
        }
        for sym in start..start.checked_add(MAX_CHAIN)? {
            let link = self.u32(chain_array.checked_add(u64::from(sym - first) * 4)?)?;
            if link | 1 == hash | 1
                && let Some(found) = self.symbol(sym, name)
            {
                return Some(found);
            }
            if link & 1 != 0 {
                break;
            }
        }
        None
    }

    /// System V gABI, "Hash Table": nbucket, nchain, buckets, chains.
    fn find_sysv(&self, table: u64, name: &str) -> Option<Function> {
        let buckets = self.u32(table)?;
        let bucket = elf::hash(name.as_bytes()).checked_rem(buckets)?;
        let mut sym = self.u32(table + 8 + u64::from(bucket) * 4)?;
        for _ in 0..MAX_CHAIN {
            if sym == 0 {
                break;
            }
            if let Some(found) = self.symbol(sym, name) {
                return Some(found);
            }
            sym = self.u32(table + 8 + (u64::from(buckets) + u64::from(sym)) * 4)?;
        }
        None
    }

    fn symbol(&self, index: u32, name: &str) -> Option<Function> {
        let ne = NativeEndian;
        let sym: elf::Sym64<NativeEndian> = read(self.mem, self.symtab + u64::from(index) * 24)?;
        let at = self.strtab.checked_add(u64::from(sym.st_name.get(ne)))?;
        let mut bytes = vec![0; name.len() + 1];
        self.mem.read(at, &mut bytes).ok()?;
        let defined = sym.st_shndx.get(ne) != elf::SHN_UNDEF && sym.st_type() == elf::STT_FUNC;
        (defined && bytes.strip_suffix(&[0]) == Some(name.as_bytes())).then(|| Function {
            addr: self.bias.wrapping_add(sym.st_value.get(ne)),
            size: sym.st_size.get(ne),
        })
    }

    fn u32(&self, addr: u64) -> Option<u32> {
        let mut buf = [0; 4];
        self.mem.read(addr, &mut buf).ok()?;
        Some(u32::from_ne_bytes(buf))
    }
}

/// Copies one ELF structure (the file header, 64 bytes, is the largest) out of the target.
fn read<T: Pod>(mem: &Memory, addr: u64) -> Option<T> {
    let mut words = [0u64; 8];
    let bytes = bytes_of_slice_mut(&mut words).get_mut(..size_of::<T>())?;
    mem.read(addr, bytes).ok()?;
    from_bytes::<T>(bytes).ok().map(|(value, _)| *value)
}

/// Where each mapped file begins: the mappings of offset 0, one per file.
pub(super) fn bases(maps: &[Mapping]) -> impl Iterator<Item = &Mapping> {
    maps.iter().filter(|m| m.offset == 0 && m.file.1 != 0)
}

#[cfg(test)]
mod tests {
    use super::super::procfs;
    use super::*;

    #[test]
    fn symbols_of_our_own_libc_are_found_in_memory() {
        let pid = std::process::id() as i32;
        let mem = Memory::open(pid).unwrap();
        let maps = procfs::maps(pid).unwrap();
        let libc = bases(&maps).find(|m| m.base_name().starts_with("libc.so")).unwrap();
        let image = Image::at(&mem, libc.start).unwrap();
        let getpid = image.function("getpid").unwrap();
        assert_eq!(getpid.addr, libc::getpid as *const () as u64);
        assert!(getpid.size > 0);
        assert_eq!(image.function("no_such_function"), None);
    }
}
