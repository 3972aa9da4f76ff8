//! BPF_PROG_LOAD and BPF_PROG_TEST_RUN.

use super::log::LogBuffer;
use super::map::possible_cpus;
use super::verify::NamedMaps;
use super::{Attr, ENOTSUPP, check_name};
use crate::object::{self, MapObject, Object, ProgObject};
use crate::stats::{self, OwnRow};
use crate::{broker, fds, user};
use bpftime_abi::attr::{BindMap, ProgLoad, TestRun};
use bpftime_abi::map_type::{BPF_MAP_TYPE_PERCPU_HASH, BPF_MAP_TYPE_PROG_ARRAY};
use bpftime_abi::{helper, prog_type};
use bpftime_agent::run::enter::Session;
use bpftime_shm::Map;
use bpftime_shm::session::sealed;
use bpftime_shm::session::wire::ProgSpec;
use bpftime_vm::jit::{ArrayLayout, HashLayout, MapLayout, Options};
use bpftime_vm::verify::{self, Verified};
use bpftime_vm::{CpuFeatures, ImageRef, Insn, LoadEnv, MapIdx};
use rustix::io::Errno;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use zerocopy::{FromBytes, IntoBytes};

/// `BPF_COMPLEXITY_LIMIT_INSNS`.
const INSNS_MAX: u32 = 1_000_000;
/// Flags that a program may be loaded with (`BPF_F_STRICT_ALIGNMENT` to `BPF_F_XDP_DEV_BOUND_ONLY`).
const PROG_FLAGS: u32 = 0xff;

/// BPF_PROG_LOAD.
pub fn load(attr: &Attr) -> Result<i64, Errno> {
    let a: ProgLoad = attr.get();
    check(&a)?;
    let gpl = is_gpl(&user::read_str(a.license, 128)?);
    let insns = read_insns(&a)?;
    let buffer = LogBuffer::new(&a)?;
    let mut log = verify::Log::new(buffer.level);
    let mut maps = UsedMaps { fd_array: a.fd_array, list: Vec::new(), failed: None };
    let built = super::verify::accept(&insns, &mut maps, &a, gpl, &mut log)
        .and_then(|p| Ok((compile(&p, &layouts(&maps.list), &mut log)?, p.ctx_bytes())));
    let stored = buffer.store(log.text());
    let true_size = buffer.true_size(log.text());
    attr.put(std::mem::offset_of!(ProgLoad, log_true_size), &true_size.to_ne_bytes())?;
    // As in the kernel, a log that could not be stored whole comes before the verdict.
    stored?;
    let (image, ctx_bytes) = built?;
    // As in the kernel, a prog array belongs to one type of programs: those it is used by.
    let arrays = maps.list.iter().filter(|m| m.def().map_type == BPF_MAP_TYPE_PROG_ARRAY);
    if arrays.into_iter().any(|m| !m.takes_programs_of(a.prog_type)) {
        return Err(Errno::INVAL);
    }
    let btf = if a.prog_btf_fd != 0 && a.func_info_cnt != 0 { object::btf(a.prog_btf_fd)?.id } else { 0 };
    finish(&a, &insns, Built { image, ctx_bytes, maps: maps.list, gpl, btf })
}

/// Loads an image that was compiled ahead of time, from a file that the tool trusts as it trusts itself. Its map indices
/// are those of `fd_array`. ESTALE: it was compiled for maps that lie in memory otherwise.
pub fn load_image(a: &ProgLoad, image: &[u8], ctx_bytes: u32) -> Result<i64, Errno> {
    check(a)?;
    let gpl = is_gpl(&user::read_str(a.license, 128)?);
    let insns = read_insns(a)?;
    let parsed = ImageRef::parse(image).map_err(|_| Errno::INVAL)?;
    if parsed.bytecode_hash() != bpftime_vm::isa::bytecode_hash(&insns) {
        return Err(Errno::BADMSG);
    }
    let fd = |i: u32| user::read_value::<u32>(a.fd_array.wrapping_add(u64::from(i) * 4));
    let maps = (0..a.fd_array_cnt).map(|i| object::map(fd(i)?)).collect::<Result<Vec<_>, _>>()?;
    if parsed.layouts() != MapLayout::digest(&layouts(&maps)) {
        return Err(Errno::STALE);
    }
    finish(a, &insns, Built { image: image.to_vec(), ctx_bytes, maps, gpl, btf: 0 })
}

fn check(a: &ProgLoad) -> Result<(), Errno> {
    if a.prog_flags & !PROG_FLAGS != 0 || a.prog_type == 0 || a.prog_type > prog_type::PROG_TYPE_MAX {
        return Err(Errno::INVAL);
    }
    check_name(&a.prog_name)?;
    if a.insn_cnt == 0 || a.insn_cnt > INSNS_MAX {
        return Err(Errno::TOOBIG);
    }
    Ok(())
}

fn is_gpl(license: &[u8]) -> bool {
    let compatible: [&[u8]; 6] =
        [b"GPL", b"GPL v2", b"GPL and additional rights", b"Dual BSD/GPL", b"Dual MIT/GPL", b"Dual MPL/GPL"];
    compatible.contains(&license)
}

fn read_insns(a: &ProgLoad) -> Result<Vec<Insn>, Errno> {
    let bytes = user::read(a.insns, a.insn_cnt as usize * size_of::<Insn>())?;
    Ok(bytes.chunks_exact(size_of::<Insn>()).filter_map(|c| Insn::read_from_bytes(c).ok()).collect())
}

fn compile(program: &Verified, maps: &[Option<MapLayout>], log: &mut verify::Log) -> Result<Vec<u8>, Errno> {
    // The image is for this machine. No AVX: a thunk would have to save more for it than it gains.
    let options = Options { cpu: CpuFeatures::detect().without_avx(), kernel_helpers: true, maps };
    let Some(compile) = crate::compiler() else {
        log.reason("compiler: none in this program; `bpftime compile` makes what it can load");
        return Err(ENOTSUPP);
    };
    match compile(program, &options) {
        Ok(image) => Ok(image.to_bytes()),
        Err(e) => {
            tracing::error!(reason = %e, "program does not compile");
            log.reason(&format!("compiler: {e}"));
            Err(ENOTSUPP)
        }
    }
}

/// What a load made of the instructions.
struct Built {
    image: Vec<u8>,
    ctx_bytes: u32,
    maps: Vec<Arc<MapObject>>,
    gpl: bool,
    btf: u32,
}

fn finish(a: &ProgLoad, insns: &[Insn], built: Built) -> Result<i64, Errno> {
    let Built { image, ctx_bytes, maps, gpl, btf } = built;
    let fd = sealed::create("bpftime-prog", &image)?;
    let name = a.prog_name.iter().take_while(|b| **b != 0).copied().collect();
    let row = OwnRow::take();
    let spec = ProgSpec {
        prog: object::next_id(),
        prog_type: a.prog_type,
        name,
        maps: maps.iter().map(|m| m.id).collect(),
        stats: row.number(),
    };
    let prog = ProgObject {
        spec,
        maps,
        image: fds::hidden(&fd)?,
        // The kernel's tag is a SHA; nothing but equality is read from it.
        tag: bpftime_vm::isa::bytecode_hash(insns).to_be_bytes(),
        load_time: bpftime_agent::run::clock::boottime(),
        insns: with_ids(insns),
        gpl,
        btf,
        ctx_bytes,
        asks_for_task: asks_for_task(insns.as_bytes()),
        overrides: calls(insns.as_bytes(), helper::id::override_return),
        attach_type: a.expected_attach_type,
        bound: Mutex::default(),
        linked: OnceLock::new(),
        row,
        viewed: false,
        is_elsewhere: AtomicBool::new(false),
        before: None,
    };
    object::insert(&fd, Object::Prog(Arc::new(prog)))?;
    Ok(fds::give(fd))
}

/// Whether a program calls a helper that returns the task.
pub fn asks_for_task(insns: &[u8]) -> bool {
    const GET_CURRENT_TASK_BTF: u32 = 158;
    calls(insns, helper::id::get_current_task) || calls(insns, GET_CURRENT_TASK_BTF)
}

/// Whether a program calls this helper.
pub fn calls(insns: &[u8], helper: u32) -> bool {
    const CALL: u8 = 0x85;
    let does = |i: Insn| i.code == CALL && i.src() == 0 && i.imm == helper as i32;
    let slots = insns.chunks_exact(size_of::<Insn>());
    slots.filter_map(|c| Insn::read_from_bytes(c).ok()).any(does)
}

/// The instructions as other tools may see them: maps by id.
fn with_ids(insns: &[Insn]) -> Vec<u8> {
    const LDDW: u8 = 0x18;
    /// `BPF_PSEUDO_MAP_FD` and `BPF_PSEUDO_MAP_VALUE`.
    const BY_FD: [u8; 2] = [1, 2];
    let mut out = insns.to_vec();
    for insn in out.iter_mut().filter(|i| i.code == LDDW && BY_FD.contains(&i.src())) {
        insn.imm = object::map(insn.imm as u32).map_or(0, |m| m.id as i32);
    }
    out.as_bytes().to_vec()
}

/// What the compiler may know of a map.
fn layout(map: &Map) -> Option<MapLayout> {
    let def = map.def();
    // What an update leaves out of a value is the map's own business.
    if !def.fields.is_empty() {
        return None;
    }
    if map.hash_table().is_some() {
        let percpu = def.map_type == BPF_MAP_TYPE_PERCPU_HASH;
        let (key_size, value_size) = (def.key_size, def.value_size);
        return Some(MapLayout::Hash(HashLayout { key_size, value_size, percpu }));
    }
    let (_, cpu_stride) = map.elements()?;
    Some(MapLayout::Array(ArrayLayout {
        entries: def.max_entries,
        value_size: def.value_size,
        stride: u32::try_from(map.value_stride()).ok()?,
        cpu_stride: cpu_stride.map(|bytes| bytes as u64),
    }))
}

fn layouts(maps: &[Arc<MapObject>]) -> Vec<Option<MapLayout>> {
    maps.iter().map(|m| layout(&m.handle.map)).collect()
}

/// The maps a program names, in the order it names them.
struct UsedMaps {
    fd_array: u64,
    list: Vec<Arc<MapObject>>,
    /// The errno of a descriptor that is no map, which the kernel passes on as it is.
    failed: Option<Errno>,
}

impl UsedMaps {
    fn add(&mut self, found: Result<Arc<MapObject>, Errno>) -> Option<MapIdx> {
        match found {
            Err(errno) => {
                self.failed = Some(errno);
                None
            }
            Ok(map) => {
                let at = self.list.iter().position(|m| m.id == map.id).unwrap_or_else(|| {
                    self.list.push(map);
                    self.list.len() - 1
                });
                Some(MapIdx(at as u32))
            }
        }
    }
}

impl LoadEnv for UsedMaps {
    fn map_by_fd(&mut self, fd: i32) -> Option<MapIdx> {
        self.add(object::map(fd as u32))
    }
    fn map_by_index(&mut self, idx: i32) -> Option<MapIdx> {
        let addr = (self.fd_array != 0).then(|| self.fd_array.wrapping_add(idx as u64 * 4));
        let fd = addr.ok_or(Errno::PROTO).and_then(user::read_value::<u32>);
        self.add(fd.and_then(object::map))
    }
    fn map_value_len(&self, map: MapIdx) -> Option<u32> {
        let map = self.list.get(map.0 as usize)?;
        map.handle.map.value_base().map(|_| map.def().value_size)
    }
    fn helper_exists(&self, id: u32) -> bool {
        helper::exists(id)
    }
    fn kernel_function(&mut self, btf_id: i32) -> Option<u32> {
        crate::btf::kernel_function(btf_id as u32)
    }
}

impl NamedMaps for UsedMaps {
    fn maps(&self) -> &[Arc<MapObject>] {
        &self.list
    }
    fn failed(&self) -> Option<Errno> {
        self.failed
    }
}

/// Shared by the runs in this process; exclusive for who must wait for them.
static RUNS: RwLock<()> = RwLock::new(());

/// Runs a program in the tool; `ENOMEM` when it cannot be linked here, `EAGAIN` when the run could not start.
pub fn run_here(prog: &ProgObject, session: &Session, ctx: *mut u8) -> Result<u64, Errno> {
    let program = prog.link_here().ok_or(Errno::NOMEM)?;
    let _run = RUNS.read().unwrap_or_else(PoisonError::into_inner);
    let run = || bpftime_agent::run::enter::run_here(&program, session, ctx, 0);
    stats::counted(prog, &session.page, run).ok_or(Errno::AGAIN)
}

/// Returns when the runs that are under way in the tool are over.
pub fn wait_for_runs() {
    drop(RUNS.write().unwrap_or_else(PoisonError::into_inner));
}

/// BPF_PROG_BIND_MAP.
pub fn bind_map(attr: &Attr) -> Result<i64, Errno> {
    let a: BindMap = attr.get();
    if a.flags != 0 {
        return Err(Errno::INVAL);
    }
    object::prog(a.prog_fd)?.bind(object::map(a.map_fd)?);
    Ok(0)
}

/// BPF_PROG_TEST_RUN: bpftrace's BEGIN and END run this way, in the tool.
pub fn test_run(attr: &Attr) -> Result<i64, Errno> {
    let a: TestRun = attr.get();
    let prog = object::prog(a.prog_fd)?;
    // A size without an address, or the other way round.
    if (a.ctx_size_in == 0) != (a.ctx_in == 0) || (a.ctx_size_out == 0) != (a.ctx_out == 0) {
        return Err(Errno::INVAL);
    }
    match prog.spec.prog_type {
        prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT | prog_type::BPF_PROG_TYPE_SYSCALL => {
            run_with_ctx(attr, &a, &prog)
        }
        _ => Err(ENOTSUPP),
    }
}

/// `BPF_F_TEST_RUN_ON_CPU`.
const RUN_ON_CPU: u32 = 1;

fn run_with_ctx(attr: &Attr, a: &TestRun, prog: &ProgObject) -> Result<i64, Errno> {
    let unused = a.data_in != 0 || a.data_out != 0 || a.ctx_out != 0 || a.duration != 0 || a.repeat != 0;
    if unused || a.batch_size != 0 {
        return Err(Errno::INVAL);
    }
    let raw = prog.spec.prog_type == prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT;
    // Arguments of a tracepoint (MAX_BPF_FUNC_ARGS), or anything that a system call may have. The program may read less,
    // but not more than there is.
    let longest = if raw { 12 * 8 } else { u32::from(u16::MAX) };
    if a.ctx_size_in < prog.ctx_bytes || a.ctx_size_in > longest {
        return Err(Errno::INVAL);
    }
    if raw {
        check_cpu(a)?;
    } else if a.flags != 0 {
        return Err(Errno::INVAL);
    }
    let mut ctx = user::read(a.ctx_in, a.ctx_size_in as usize)?;
    // Programs that this one calls in its place may use more.
    ctx.resize(longest as usize + 8, 0);
    let session = broker::session()?;
    let ret = run_here(prog, &session, ctx.as_mut_ptr())?;
    if !raw {
        user::write(a.ctx_in, &ctx[..a.ctx_size_in as usize])?;
    }
    attr.put(std::mem::offset_of!(TestRun, retval), &(ret as u32).to_ne_bytes())?;
    Ok(0)
}

/// The run is not moved to the CPU, which must be one all the same.
fn check_cpu(a: &TestRun) -> Result<(), Errno> {
    match a.flags & RUN_ON_CPU {
        0 if a.cpu != 0 => Err(Errno::INVAL),
        RUN_ON_CPU if a.cpu >= possible_cpus() => Err(Errno::NXIO),
        _ => Ok(()),
    }
}
