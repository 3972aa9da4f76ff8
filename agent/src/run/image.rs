//! A program in this process: its sealed image mapped privately, its constants filled in, executable and not writable.

use super::shadow::Layout;
use super::{MapHandle, Run, helpers};
use bpftime_shm::uapi::BPF_F_STACK_BUILD_ID;
use bpftime_vm::image::{Needs, Symbol};
use bpftime_vm::{ImageRef, MapIdx, Resolve};
use rustix::mm::{self, MapFlags, MprotectFlags, ProtFlags};
use std::sync::Arc;

/// Why an image cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum LinkFailure {
    /// The bytes are no image of ours.
    #[error("program image: {0}")]
    Image(#[from] bpftime_vm::ImageError),
    /// A constant cannot be filled in.
    #[error("program image: {0}")]
    Link(#[from] bpftime_vm::LinkError),
    /// No executable memory.
    #[error("no executable memory for {bytes} bytes of code: {errno}")]
    Memory {
        /// Size wanted.
        bytes: usize,
        /// What the kernel said; EACCES or EPERM under SELinux execmem or PR_SET_MDWE.
        errno: rustix::io::Errno,
    },
}

/// A linked program. Keeps its maps alive.
pub struct Program {
    base: *mut u8,
    len: usize,
    entry: usize,
    needs: Needs,
    /// Nothing outside of it is named: no map, no helper.
    local: bool,
    reads_registers: bool,
    reads_registers_for_context: bool,
    may_replace: bool,
    asks_for_build_ids: bool,
    /// The maps its code points into.
    pub maps: Vec<Arc<MapHandle>>,
    /// What its tool takes the task to look like, if it asks for the task.
    pub task: Option<Arc<Layout>>,
}

// SAFETY: the code is immutable once linked; the maps are shared memory behind atomics.
unsafe impl Send for Program {}
// SAFETY: as above.
unsafe impl Sync for Program {}

/// Helpers that read the thread's registers without being given the context: get_task_stack, task_pt_regs.
const READ_REGISTERS: [u32; 2] = [141, 175];
/// Helpers whose flags may ask for build ids: get_stack, get_task_stack.
const READ_STACKS: [u32; 2] = [67, 141];
/// Helpers that read them whatever the context is that they are given: get_stackid, get_stack; and tail_call, whose target
/// may do any of this.
const READ_REGISTERS_FOR_CONTEXT: [u32; 3] = [27, 67, 12];
/// Helper override_return.
const OVERRIDE_RETURN: u32 = 58;

/// A compiled BPF function or helper.
pub type Func = unsafe extern "C" fn(u64, u64, u64, u64, u64, *mut Run) -> u64;

struct Constants<'a>(&'a [Arc<MapHandle>]);

impl Resolve for Constants<'_> {
    fn map(&self, i: MapIdx) -> Option<u64> {
        self.0.get(i.0 as usize).map(|m| Arc::as_ptr(m) as u64)
    }
    fn map_value(&self, i: MapIdx) -> Option<u64> {
        self.0.get(i.0 as usize)?.map.value_base().map(|p| p as u64)
    }
    fn map_elements(&self, i: MapIdx) -> Option<u64> {
        self.0.get(i.0 as usize)?.map.elements().map(|(base, _)| base as u64)
    }
    fn helper(&self, id: u32) -> Option<u64> {
        helpers::address(id).map(|f| f as usize as u64)
    }
}

impl Program {
    /// Links the image in `bytes` with `maps` (in the order of the image's map indices).
    pub fn link(bytes: &[u8], maps: Vec<Arc<MapHandle>>) -> Result<Self, LinkFailure> {
        let image = ImageRef::parse(bytes)?;
        maps.iter().for_each(|map| map.ready());
        let len = image.code_len().max(1).next_multiple_of(4096);
        let memory = |errno| LinkFailure::Memory { bytes: len, errno };
        // SAFETY: fresh anonymous memory.
        let base = unsafe {
            let rw = ProtFlags::READ | ProtFlags::WRITE;
            mm::mmap_anonymous(std::ptr::null_mut(), len, rw, MapFlags::PRIVATE).map_err(memory)?
        };
        let needs = image.needs();
        let mut symbols = image.relocs().map(|r| r.symbol);
        let local = !needs.calls && symbols.all(|s| s == Symbol::Code);
        let names =
            |ids: &[u32]| image.relocs().any(|r| matches!(r.symbol, Symbol::Helper(id) if ids.contains(&id)));
        let asks_for_build_ids =
            names(&READ_STACKS) || maps.iter().any(|m| m.map.def().map_flags & BPF_F_STACK_BUILD_ID != 0);
        let entry = image.entry_offset();
        let program = Self {
            base: base.cast(),
            len,
            entry,
            needs,
            local,
            reads_registers: names(&READ_REGISTERS),
            reads_registers_for_context: names(&READ_REGISTERS_FOR_CONTEXT),
            may_replace: names(&[OVERRIDE_RETURN]),
            asks_for_build_ids,
            maps,
            task: None,
        };
        // SAFETY: base..len was mapped above, writable, and nobody else knows it.
        let code = unsafe { std::slice::from_raw_parts_mut(program.base, len) };
        image.link(&mut code[..image.code_len()], base as u64, &Constants(&program.maps))?;
        // SAFETY: as above; from here on nobody writes.
        unsafe { mm::mprotect(base, len, MprotectFlags::READ | MprotectFlags::EXEC).map_err(memory)? };
        crate::signals::register_code_range(base as usize, base as usize + len);
        Ok(program)
    }

    /// The program, with what its tool takes the task to look like.
    pub fn with_task(mut self, task: Option<Arc<Layout>>) -> Self {
        self.task = task;
        self
    }

    /// What its code needs from whoever runs it.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// Whether the program's own code is all that it can reach.
    pub fn is_local(&self) -> bool {
        self.local
    }

    /// Whether a helper of the program reads the registers of the event where the context is something else.
    pub fn reads_registers(&self) -> bool {
        self.reads_registers || self.reads_registers_for_context
    }

    /// Whether the program, or a helper for it, may read the context.
    pub fn looks_at_context(&self) -> bool {
        self.reads_registers || !self.needs.ignores_ctx()
    }

    /// Whether the program may ask for the build ids of the files on a stack.
    pub fn asks_for_build_ids(&self) -> bool {
        self.asks_for_build_ids
    }

    /// Whether the program may give a result in the probed function's place.
    pub fn may_replace(&self) -> bool {
        self.may_replace
    }

    /// The program's entry.
    pub fn entry(&self) -> Func {
        // SAFETY: the linker checked that the entry lies in the code, which follows the BPF calling convention.
        unsafe { std::mem::transmute(self.base.add(self.entry)) }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        crate::signals::unregister_code_range(self.base as usize, self.base as usize + self.len);
        // SAFETY: exactly the mapping of `link`; the owner waited until no thread runs in it.
        let _ = unsafe { mm::munmap(self.base.cast(), self.len) };
    }
}
