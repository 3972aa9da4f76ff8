//! Operation tables. A row is: name, encoding bits, assembler mnemonic, operator of the kernel's log.

/// Declares an enum whose rows also carry their encoding, mnemonic and operator.
macro_rules! rows {
    ($(#[$doc:meta])* $name:ident: $bits:ty { $($row:ident = $enc:literal, $asm:literal, $sign:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $(#[doc = concat!("`", $asm, "`")] $row,)+
        }

        impl $name {
            /// Every row, in table order.
            pub const ALL: &'static [$name] = &[$($name::$row,)+];

            /// The bits that select this row in its field of the encoding.
            pub const fn bits(self) -> $bits {
                match self { $($name::$row => $enc,)+ }
            }

            /// The row with these bits, if there is one.
            pub const fn from_bits(bits: $bits) -> Option<$name> {
                match bits { $($enc => Some($name::$row),)+ _ => None }
            }

            /// Mnemonic of the text assembler.
            pub const fn mnemonic(self) -> &'static str {
                match self { $($name::$row => $asm,)+ }
            }

            /// Operator as the kernel's verifier log prints it.
            pub const fn sign(self) -> &'static str {
                match self { $($name::$row => $sign,)+ }
            }
        }
    };
}

// Sdiv and Smod share the nibbles of Div and Mod and are told apart by `off` = 1, which the encoding
// column writes as 0x100: the field is (off << 8) | (code & 0xf0).
rows! {
    /// Binary ALU operations.
    AluOp: u16 {
        Add  = 0x000, "add",  "+=";
        Sub  = 0x010, "sub",  "-=";
        Mul  = 0x020, "mul",  "*=";
        Div  = 0x030, "div",  "/=";
        Sdiv = 0x130, "sdiv", "s/=";
        Or   = 0x040, "or",   "|=";
        And  = 0x050, "and",  "&=";
        Lsh  = 0x060, "lsh",  "<<=";
        Rsh  = 0x070, "rsh",  ">>=";
        Mod  = 0x090, "mod",  "%=";
        Smod = 0x190, "smod", "s%=";
        Xor  = 0x0a0, "xor",  "^=";
        Mov  = 0x0b0, "mov",  "=";
        Arsh = 0x0c0, "arsh", "s>>=";
    }
}

rows! {
    /// Conditions of the conditional jumps.
    Cond: u8 {
        Eq   = 0x10, "jeq",  "==";
        Ugt  = 0x20, "jgt",  ">";
        Uge  = 0x30, "jge",  ">=";
        Set  = 0x40, "jset", "&";
        Ne   = 0x50, "jne",  "!=";
        Sgt  = 0x60, "jsgt", "s>";
        Sge  = 0x70, "jsge", "s>=";
        Ult  = 0xa0, "jlt",  "<";
        Ule  = 0xb0, "jle",  "<=";
        Slt  = 0xc0, "jslt", "s<";
        Sle  = 0xd0, "jsle", "s<=";
    }
}

rows! {
    /// Access sizes: the bits are the size field of the opcode, the operator the kernel's type name.
    Size: u8 {
        B  = 0x10, "b",  "u8";
        H  = 0x08, "h",  "u16";
        W  = 0x00, "w",  "u32";
        Dw = 0x18, "dw", "u64";
    }
}

rows! {
    /// Atomic operations: the bits are `imm` without [`FETCH`](super::code::FETCH).
    AtomicOp: u8 {
        Add     = 0x00, "add",     "+=";
        Or      = 0x40, "or",      "|=";
        And     = 0x50, "and",     "&=";
        Xor     = 0xa0, "xor",     "^=";
        Xchg    = 0xe0, "xchg",    "atomic_xchg";
        Cmpxchg = 0xf0, "cmpxchg", "atomic_cmpxchg";
    }
}

rows! {
    /// Byte order operations: the bits are the opcode.
    SwapOp: u8 {
        ToLe = 0xd4, "le",    "le";
        ToBe = 0xdc, "be",    "be";
        Swap = 0xd7, "bswap", "bswap";
    }
}

impl AtomicOp {
    /// Exchanges always return the old value; the others only with the fetch bit.
    pub const fn always_fetches(self) -> bool {
        matches!(self, AtomicOp::Xchg | AtomicOp::Cmpxchg)
    }
}

impl Size {
    /// Bytes accessed.
    pub const fn bytes(self) -> u32 {
        match self {
            Size::B => 1,
            Size::H => 2,
            Size::W => 4,
            Size::Dw => 8,
        }
    }

    /// Bits accessed.
    pub const fn bits_wide(self) -> u32 {
        self.bytes() * 8
    }

    /// The size that is this many bits wide.
    pub const fn from_width(bits: u32) -> Option<Size> {
        match bits {
            8 => Some(Size::B),
            16 => Some(Size::H),
            32 => Some(Size::W),
            64 => Some(Size::Dw),
            _ => None,
        }
    }
}

/// Operand width of ALU operations and comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// Lower halves; a result zero-extends into the whole register.
    W32,
    /// Whole registers; an immediate operand is sign-extended.
    W64,
}

impl Width {
    /// Both widths.
    pub const ALL: [Width; 2] = [Width::W32, Width::W64];

    /// 32 or 64.
    pub const fn bits(self) -> u32 {
        match self {
            Width::W32 => 32,
            Width::W64 => 64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_its_bits() {
        assert!(AluOp::ALL.iter().all(|r| AluOp::from_bits(r.bits()) == Some(*r)));
        assert!(Cond::ALL.iter().all(|r| Cond::from_bits(r.bits()) == Some(*r)));
        assert!(Size::ALL.iter().all(|r| Size::from_bits(r.bits()) == Some(*r)));
        assert!(AtomicOp::ALL.iter().all(|r| AtomicOp::from_bits(r.bits()) == Some(*r)));
        assert!(SwapOp::ALL.iter().all(|r| SwapOp::from_bits(r.bits()) == Some(*r)));
    }

    #[test]
    fn sizes_round_trip() {
        assert!(Size::ALL.iter().all(|s| Size::from_width(s.bits_wide()) == Some(*s)));
        assert_eq!(Size::from_width(24), None);
    }
}
