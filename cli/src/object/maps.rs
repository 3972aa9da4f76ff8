//! Map definitions: variables of the section `.maps`, whose types say everything, and one array for each
//! section of global data.

use super::ObjectError;
use super::btf::{Btf, Kind, Member};
use super::elf::File;
use bpftime_abi::field::{Fields, find};
use bpftime_abi::map_type::*;
use bpftime_vm::aot::MapDef;
use bpftime_vm::verify::MapFacts;

/// Section of values that libbpf fills in.
const KCONFIG: &str = ".kconfig";

/// The maps of an object, and where references find them.
pub struct Maps {
    list: Vec<MapDef>,
    /// Offset in `.maps` of each map that is defined there.
    offsets: Vec<u64>,
    /// Section index of each data map, in the order of the list behind those.
    sections: Vec<usize>,
    /// Values of the kernel's configuration: name, offset in the last map.
    externs: Vec<(String, u32)>,
}

impl Maps {
    pub fn of(file: &File) -> Result<Maps, ObjectError> {
        let mut maps = Maps { list: vec![], offsets: vec![], sections: vec![], externs: vec![] };
        let mut symbols = file.maps.clone();
        symbols.sort();
        for (offset, name) in symbols {
            maps.list.push(defined(&file.btf, &name)?);
            maps.offsets.push(offset);
        }
        for data in &file.data {
            maps.list.push(data_map(&data.name, data.bytes.clone()));
            maps.sections.push(data.index);
        }
        maps.add_configuration(&file.btf)?;
        Ok(maps)
    }

    pub fn into_list(self) -> Vec<MapDef> {
        self.list
    }

    /// The map whose variable is at this offset of `.maps`.
    pub fn defined_at(&self, offset: u64) -> Option<usize> {
        self.offsets.iter().position(|o| *o == offset)
    }

    /// The map that holds a section.
    pub fn of_section(&self, section: usize) -> Option<usize> {
        self.sections.iter().position(|s| *s == section).map(|n| self.offsets.len() + n)
    }

    /// Map and offset of a value of the kernel's configuration.
    pub fn configuration(&self, name: &str) -> Option<(usize, u32)> {
        let (_, off) = self.externs.iter().find(|(n, _)| n == name)?;
        Some((self.list.len() - 1, *off))
    }

    /// `extern ... __kconfig`: what libbpf would find out about the kernel.
    fn add_configuration(&mut self, btf: &Btf) -> Result<(), ObjectError> {
        let mut bytes: Vec<u8> = vec![];
        for var in btf.section(KCONFIG) {
            let (name, size) = (btf.name(var.var).to_string(), btf.size(var.var) as usize);
            bytes.resize(bytes.len().next_multiple_of(size.clamp(1, 8).next_power_of_two()), 0);
            let off = bytes.len() as u32;
            bytes.extend(
                configured(&name).to_le_bytes().iter().copied().chain(std::iter::repeat(0)).take(size),
            );
            self.externs.push((name, off));
        }
        if !bytes.is_empty() {
            let mut map = data_map(KCONFIG, bytes);
            (map.facts.flags, map.facts.frozen) = (BPF_F_RDONLY_PROG, true);
            self.list.push(map);
        }
        Ok(())
    }
}

/// A value that libbpf makes up; options of the kernel that a program asks for count as not set.
fn configured(name: &str) -> u64 {
    match name {
        "LINUX_KERNEL_VERSION" => kernel_version(),
        "LINUX_HAS_BPF_COOKIE" | "LINUX_HAS_SYSCALL_WRAPPER" => 1,
        _ => 0,
    }
}

/// `KERNEL_VERSION(a, b, c)` of the running kernel.
fn kernel_version() -> u64 {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let numbers: Vec<u64> =
        release.split(|c: char| !c.is_ascii_digit()).take(3).map(|n| n.parse().unwrap_or(0)).collect();
    numbers.iter().chain(&[0, 0, 0]).take(3).fold(0, |v, n| v << 8 | (*n).min(255))
}

fn data_map(name: &str, contents: Vec<u8>) -> MapDef {
    let constant = name.starts_with(".rodata");
    let facts = MapFacts {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: contents.len() as u32,
        max_entries: 1,
        flags: BPF_F_MMAPABLE | if constant { BPF_F_RDONLY_PROG } else { 0 },
        frozen: constant,
    };
    MapDef { name: name.into(), facts, contents, fields: Fields::default() }
}

/// A definition by the type of its variable.
fn defined(btf: &Btf, name: &str) -> Result<MapDef, ObjectError> {
    let bad = |reason: &str| ObjectError::Map { map: name.into(), reason: reason.into() };
    let found = btf.section(".maps").iter().find(|v| btf.name(v.var) == name);
    let Some(Kind::Var(ty)) = found.map(|v| &btf.get(v.var).kind) else {
        return Err(bad("BTF has no variable of this name in .maps; compile with -g"));
    };
    let members = btf.members(btf.resolved(*ty)).ok_or_else(|| bad("its type is no struct"))?;
    let (mut facts, mut fields) = (MapFacts::default(), Fields::default());
    for member in members {
        if let ("value", Kind::Ptr(to)) = (btf.text(member.name), &btf.get(btf.resolved(member.ty)).kind) {
            fields = find::of_map(btf, btf.resolved(*to));
        }
        field(btf, member, &mut facts).map_err(|reason| bad(&reason))?;
    }
    if facts.map_type == BPF_MAP_TYPE_PERF_EVENT_ARRAY && facts.key_size == 0 {
        (facts.key_size, facts.value_size) = (4, 4);
    }
    Ok(MapDef { name: name.into(), facts, contents: vec![], fields })
}

/// One member: `int (*name)[number]`, or `type *key`.
fn field(btf: &Btf, member: &Member, facts: &mut MapFacts) -> Result<(), String> {
    let name = btf.text(member.name);
    let Kind::Ptr(to) = btf.get(btf.resolved(member.ty)).kind else {
        return if name == "values" { Ok(()) } else { Err(format!("`{name}` is no pointer")) };
    };
    let number = match btf.get(btf.resolved(to)).kind {
        Kind::Array { len, .. } => len,
        _ => 0,
    };
    match name {
        "type" => facts.map_type = number,
        "max_entries" => facts.max_entries = number,
        "map_flags" => facts.flags = number,
        "key_size" => facts.key_size = number,
        "value_size" => facts.value_size = number,
        "key" => facts.key_size = btf.size(to),
        "value" => facts.value_size = btf.size(to),
        // Where a tool pins it, on which NUMA node, how it is prefilled: no fact of a program.
        "pinning" | "numa_node" | "map_extra" | "values" => {}
        _ => return Err(format!("`{name}` is no known attribute")),
    }
    Ok(())
}
