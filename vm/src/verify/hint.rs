//! What a person can do about a refusal. The reasons themselves are the kernel's words, which tools match;
//! these are ours.

/// Words in a reason, and advice. The first row that fits counts.
const HINTS: &[(&str, &str)] = &[
    (
        "!read_ok",
        "the register holds nothing on this path: r1 to r5 are gone after a call, r0 is set by the one before exit",
    ),
    ("_or_null", "compare the pointer with NULL first, and use it only where it is not"),
    (
        "invalid mem access 'scalar'",
        "this is a number, not an address the verifier knows; read other memory with bpf_probe_read_user or bpf_probe_read_kernel",
    ),
    (
        "invalid mem access",
        "this kind of address cannot be dereferenced; check what the register holds on this path",
    ),
    ("min value is negative", "make the index unsigned, or compare it with 0 first"),
    ("unbounded memory access", "bound the index or size before: `if (n < limit)` or `n &= limit - 1`"),
    (
        "invalid access to map value",
        "the access reaches outside of the value; bound the offset, and mind the size of the access",
    ),
    ("invalid access to map key", "the access reaches outside of the key"),
    ("invalid access to memory", "the access reaches outside of the record"),
    ("outside of the allowed memory range", "bound the variable part of the address on both sides"),
    ("invalid zero-sized read", "the size may be 0; compare it with 0 first"),
    ("variable ctx access", "the context is only read at constant offsets"),
    (
        "dereference of modified ctx",
        "the context is only read at constant offsets from the pointer as it was given",
    ),
    (
        "invalid bpf_context access",
        "this program type has no such bytes in its context, or not of this size, or they are read-only",
    ),
    ("invalid unbounded variable-offset", "bound the index into the stack on both sides"),
    ("variable-offset", "bound the index into the array on the stack; all of the access must be inside"),
    ("invalid read from stack", "the access reaches outside of the 512 bytes of stack"),
    ("invalid write to stack", "the access reaches outside of the 512 bytes of stack"),
    (
        "combined stack size",
        "all functions of a call chain share 512 bytes of stack; keep large data in a map",
    ),
    ("too deep", "at most 8 functions may call each other"),
    ("misaligned", "the address must be a multiple of the size of the access"),
    ("Unreleased reference", "submit or discard the ring buffer record on every path"),
    ("reference has not been acquired before", "the record was given up already, or is not this program's"),
    (
        "invalid func",
        "this helper does not exist here, or the instruction was left behind for a kernel feature that is missing",
    ),
    ("cannot use helper", "this helper is not for this program type"),
    (
        "cannot call GPL-restricted",
        "declare a licence that is compatible with the GPL: char LICENSE[] SEC(\"license\") = \"GPL\"",
    ),
    ("cannot pass map_type", "this helper does not work on this type of map"),
    ("write into map forbidden", "the map is read-only for programs"),
    ("read from map forbidden", "the map is write-only for programs"),
    ("infinite loop detected", "nothing that ends the loop changes from round to round"),
    ("too large. Processed", "the loops take too many rounds to follow; use bpf_loop, or bound them"),
    ("too complex", "there are too many paths; use bpf_loop or global functions for large loop bodies"),
    ("At callback return", "a callback returns 0 to go on or 1 to stop"),
    ("is not a known constant", "the size of a reservation is a constant"),
    ("unreachable insn", "no jump leads to this instruction"),
    ("back-edge", "this kind of loop is not allowed"),
    (
        "pointer arithmetic",
        "only additions and subtractions of bounded numbers are allowed on this kind of address",
    ),
    ("pointer prohibited", "addresses may be subtracted from each other, nothing else"),
    ("math between", "bound the number before it is added to the address"),
    ("makes", "bound the number before it is added to the address"),
    ("cannot return stack pointer", "the stack of a function is gone when it returns"),
    ("expected=", "the helper wants another kind of argument in this register"),
    ("size of register", "an address is saved and restored with all of its 8 bytes"),
];

/// Advice for a reason, if there is any.
pub fn hint(reason: &str) -> Option<&'static str> {
    HINTS.iter().find(|(words, _)| reason.contains(words)).map(|(_, advice)| *advice)
}
