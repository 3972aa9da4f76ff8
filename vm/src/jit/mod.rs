//! Program to native image, with Cranelift.
//!
//! One Cranelift function per BPF function, registers as SSA variables, plain loads and stores: what an
//! access may touch was settled by the verifier. What this module adds of its own is fuel (so that a run
//! ends), a zeroed stack (so that nothing of the host leaks) and the edge cases of division.
//!
//! `translate` walks the ops; `arith`, `memory` and `call` hold the instructions; `layout` puts
//! the functions behind each other and turns Cranelift's relocations into the image's.

mod arith;
mod bytes;
mod call;
mod control;
mod frame;
mod fuel;
mod hash;
mod kernel;
mod layout;
mod loops;
mod memory;
mod scan;
mod select;
mod table;
mod translate;

use crate::image::{CpuFeatures, Image, ImageError, Reloc};
use crate::opt::intrinsic::Environment;
pub use crate::opt::intrinsic::{ArrayLayout, HashLayout, MapLayout};
use crate::program::Func;
use crate::verify::Verified;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{Function, UserExternalName, UserFuncName};
use cranelift_codegen::isa::{OwnedTargetIsa, TargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_codegen::{Context, binemit};
use cranelift_frontend::FunctionBuilderContext;
use frame::Known;
use layout::Layout;
use thiserror::Error;

/// Choices of [`compile`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// CPU features the code may use beyond the baseline. The linker refuses the image where they lack.
    pub cpu: CpuFeatures,
    /// Helper ids mean what they mean in the kernel, so that the cheap ones may be inlined: what they return is
    /// in the [`RunHeader`](crate::RunHeader).
    pub kernel_helpers: bool,
    /// Maps whose operations may be inlined, by index; see [`Resolve::map_elements`](crate::Resolve) for arrays,
    /// [`HashTable`](crate::contract::HashTable) for hash maps.
    pub maps: &'a [Option<MapLayout>],
}

impl Options<'_> {
    fn environment(&self) -> Environment<'_> {
        Environment { kernel_helpers: self.kernel_helpers, maps: self.maps }
    }
}

/// Why a decoded program has no image. None of these is the program's fault.
#[derive(Debug, Error)]
pub enum CompileError {
    /// The code generator was not built for x86-64, or rejects our settings.
    #[error("code generator setup: {0}")]
    Setup(String),
    /// The code generator gave up on a function.
    #[error("function at insn {insn}: {error}")]
    Codegen {
        /// First slot of the function.
        insn: usize,
        /// The code generator's words.
        error: String,
    },
    /// The code generator emitted a relocation that the image format has no row for.
    #[error("function at insn {insn}: relocation {kind:?} to {target}")]
    Relocation {
        /// First slot of the function.
        insn: usize,
        /// Cranelift's kind.
        kind: binemit::Reloc,
        /// What it refers to.
        target: String,
    },
    /// The result is not a valid image.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Name spaces of the symbols in generated code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Space {
    /// Functions of the program, by index.
    Func = 0,
    /// Helpers, by kernel id.
    Helper = 1,
    /// Map handles, by index.
    Map = 2,
    /// Addresses of map values, by index.
    MapValue = 3,
    /// Addresses of the elements of array maps, by index.
    MapElements = 4,
    /// Tables of constants, by index within the function that reads them.
    Table = 5,
}

impl Space {
    fn name(self, index: u32) -> UserExternalName {
        UserExternalName::new(self as u32, index)
    }

    fn of(name: &UserExternalName) -> Option<Space> {
        [Space::Func, Space::Helper, Space::Map, Space::MapValue, Space::MapElements, Space::Table]
            .into_iter()
            .find(|space| *space as u32 == name.namespace)
    }
}

/// Compiles every reachable function of a program. Only what was verified is compiled.
pub fn compile(program: &Verified, options: &Options<'_>) -> Result<Image, CompileError> {
    laid_out(program, options, &*target(options, false)?)?.finish()
}

/// Position-independent code for a linker that knows nothing of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectCode {
    /// The functions of the program, and the constants that they read.
    pub code: Vec<u8>,
    /// Offset of the entry function.
    pub entry: u32,
    /// Fields of four bytes that lead to the entry of a symbol in the global offset table (`R_X86_64_GOTPCREL`).
    pub references: Vec<Reloc>,
}

/// Compiles a program for an object file instead of an image.
pub fn compile_object(program: &Verified, options: &Options<'_>) -> Result<ObjectCode, CompileError> {
    laid_out(program, options, &*target(options, true)?)?.finish_object()
}

fn laid_out<'p>(
    program: &'p Verified,
    options: &Options<'_>,
    isa: &dyn TargetIsa,
) -> Result<Layout<'p>, CompileError> {
    let mut layout = Layout::new(program, options);
    let mut context = Context::new();
    let mut builder = FunctionBuilderContext::new();
    let known = Known::of(program, options.environment());
    for (index, func) in program.funcs().iter().enumerate() {
        if program.is_reachable(func.start) && !known.inlined[index] {
            context.clear();
            context.func = empty_function(isa, index as u32);
            let tables = translate::function(&known, index, isa, &mut context.func, &mut builder);
            layout.tables_of(tables);
            emit(&mut context, isa, func, &mut layout, index)?;
        }
    }
    Ok(layout)
}

fn empty_function(isa: &dyn TargetIsa, index: u32) -> Function {
    let name = UserFuncName::User(Space::Func.name(index));
    Function::with_name_signature(name, call::signature(isa))
}

fn emit(
    context: &mut Context,
    isa: &dyn TargetIsa,
    func: &Func,
    layout: &mut Layout<'_>,
    index: usize,
) -> Result<(), CompileError> {
    if uses_vectors(&context.func) {
        layout.uses_vectors();
    }
    let compiled = context.compile(isa, &mut ControlPlane::default());
    let code =
        compiled.map_err(|e| CompileError::Codegen { insn: func.start, error: e.inner.to_string() })?;
    let (buffer, align) = (&code.buffer, code.buffer.alignment);
    layout.place(index, buffer.data(), align);
    // Borrowed from the context, which also owns the names the relocations refer to.
    let relocs = buffer.relocs().to_vec();
    for reloc in &relocs {
        layout.relocate(index, reloc, context.func.params.user_named_funcs())?;
    }
    Ok(())
}

/// Code for integers stays in the general registers.
fn uses_vectors(func: &Function) -> bool {
    func.dfg.values().any(|value| {
        let ty = func.dfg.value_type(value);
        ty.is_vector() || ty.is_float()
    })
}

/// Shared settings: fast code, no unwind tables (nothing unwinds through a program).
const SETTINGS: &[(&str, &str)] = &[
    ("opt_level", "speed"),
    ("unwind_info", "false"),
    ("enable_probestack", "false"),
    ("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" }),
];

/// Images have absolute addresses filled in, objects go through the global offset table.
fn target(options: &Options<'_>, is_pic: bool) -> Result<OwnedTargetIsa, CompileError> {
    let setup = |e: &dyn std::fmt::Display| CompileError::Setup(e.to_string());
    let mut shared = settings::builder();
    for (name, value) in SETTINGS {
        shared.set(name, value).map_err(|e| setup(&e))?;
    }
    shared.set("is_pic", if is_pic { "true" } else { "false" }).map_err(|e| setup(&e))?;
    let mut isa =
        cranelift_codegen::isa::lookup_by_name("x86_64-unknown-linux-gnu").map_err(|e| setup(&e))?;
    for setting in options.cpu.settings() {
        isa.enable(setting).map_err(|e| setup(&e))?;
    }
    isa.finish(settings::Flags::new(shared)).map_err(|e| setup(&e))
}
