//! Random programs in the shapes that compilers emit: values are looked up and checked, indices are bounded
//! (or nearly), numbers are spilled, records reserved. About half of them are safe.

use std::collections::VecDeque;
use std::fmt::Write;

/// Decisions. Those of a script come first: that is what a fuzzer changes. Then xorshift64*, the same for the same
/// seed everywhere.
pub struct Random {
    state: u64,
    script: VecDeque<u8>,
}

impl Random {
    pub fn new(seed: u64) -> Random {
        Random { state: seed | 1, script: VecDeque::new() }
    }

    pub fn scripted(script: &[u8]) -> Random {
        Random { script: script.iter().copied().collect(), ..Random::new(0x9e37_79b9_7f4a_7c15) }
    }

    pub fn next(&mut self) -> u64 {
        if !self.script.is_empty() {
            return u64::from_le_bytes([(); 8].map(|()| self.script.pop_front().unwrap_or(0)));
        }
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: usize) -> usize {
        if n <= 256
            && let Some(byte) = self.script.pop_front()
        {
            return usize::from(byte) % n;
        }
        (self.next() >> 33) as usize % n
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn imm(&mut self) -> i32 {
        match self.below(5) {
            0 => *self.pick(&[0, 1, -1, 7, 8, 63, 64, 255, 256, 65535, i32::MAX, i32::MIN, i32::MIN + 1]),
            1 => self.below(16) as i32,
            2 => self.below(128) as i32 - 64,
            3 => 1 << self.below(31),
            _ => self.next() as i32,
        }
    }
}

const CONDS: &[&str] = &["jeq", "jne", "jgt", "jge", "jlt", "jle", "jsgt", "jsge", "jslt", "jsle", "jset"];
const ALU: &[&str] =
    &["add", "sub", "mul", "div", "or", "and", "lsh", "rsh", "mod", "xor", "arsh", "sdiv", "smod", "mov"];

pub struct Generator {
    pub random: Random,
    text: String,
    labels: usize,
    /// Slots of the stack that hold something: offsets below r10.
    depth: usize,
    in_function: bool,
    wants_function: bool,
    wants_callback: bool,
}

/// r6 is a map value of 64 bytes, r7 to r9 are numbers, r10-8 is a key, r10-64..r10-8 is scratch.
impl Generator {
    pub fn program(seed: u64) -> String {
        let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for _ in 0..8 {
            random.next();
        }
        Generator::with(random)
    }

    /// The program that a fuzzer's input stands for.
    pub fn scripted(script: &[u8]) -> String {
        Generator::with(Random::scripted(script))
    }

    fn with(random: Random) -> String {
        let mut g = Generator {
            random,
            text: String::new(),
            labels: 0,
            depth: 0,
            in_function: false,
            wants_function: false,
            wants_callback: false,
        };
        g.main();
        g.text
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn label(&mut self) -> String {
        self.labels += 1;
        format!("l{}", self.labels)
    }

    fn main(&mut self) {
        let items = [3, 6, 12, 24][self.random.below(4)];
        if self.random.one_in(3) {
            // The context survives in r9 for a while.
            self.line("mov r9, r1; ldxdw r8, [r9+8]; mov r9, 3");
        } else {
            self.line("mov r8, 1; mov r9, 2");
        }
        self.line("stdw [r10-8], 0; stdw [r10-16], 0; mov r2, r10; add r2, -8; lddw r1, map 106; call 1");
        self.line("mov r6, r0; mov r7, 0");
        if !self.random.one_in(12) {
            self.line("jeq r6, 0, out");
        }
        self.line("call 7; mov r7, r0");
        for _ in 0..items {
            self.item();
        }
        self.line("out: mov r0, 0; exit");
        if self.wants_function {
            self.in_function = true;
            // r1 is the value, r2 a number.
            self.line("f: mov r6, r1; mov r7, r2; mov r8, r2; mov r9, 0; stdw [r10-8], 0; stdw [r10-16], 0");
            for _ in 0..1 + self.random.below(5) {
                self.item();
            }
            self.line("mov r0, r7; exit");
        }
        if self.wants_callback {
            self.in_function = true;
            // r1 is a number, r2 points to eight bytes of the caller.
            let body = *self.random.pick(&[
                "ldxdw r3, [r2]; add r3, 1; stxdw [r2], r3",
                "stxdw [r2], r1",
                "ldxdw r3, [r2]; jgt r3, 60, cb; lddw r4, value 101; add r4, r3; stb [r4], 1; cb: mov r0, 0",
                "ldxdw r3, [r2]; lddw r4, value 101; add r4, r3; stb [r4], 1",
                "and r1, 63; lddw r4, value 101; add r4, r1; stb [r4], 1",
                "stdw [r2], 63",
                "stdw [r2+8], 1",
                "mov r3, 1; lock add [r2], r3",
            ]);
            let result = *self.random.pick(&["mov r0, 0", "mov r0, 1", "call 7; and r0, 1", "mov r0, r1"]);
            let head = format!("c: {body}; {result}; exit");
            self.line(&head);
        }
    }

    fn number(&mut self) -> u8 {
        7 + self.random.below(3) as u8
    }

    fn operand(&mut self) -> String {
        if self.random.one_in(2) { format!("r{}", self.number()) } else { self.random.imm().to_string() }
    }

    fn width(&mut self) -> &'static str {
        if self.random.one_in(3) { "32" } else { "" }
    }

    fn item(&mut self) {
        match self.random.below(20) {
            0..=3 => self.alu(),
            4 => self.source(),
            5..=6 => self.branch(),
            7..=9 => self.index(),
            10 => self.stack_number(),
            11 => self.spill(),
            12 => self.stack_index(),
            13 => self.sized_helper(),
            14 => self.record(),
            15 => self.lookup(),
            16 => self.looped(),
            17 => self.call(),
            18 => self.atomic(),
            _ => self.clamp(),
        }
    }

    fn alu(&mut self) {
        let (dst, width, src) = (self.number(), self.width(), self.operand());
        let line = match self.random.below(12) {
            0 => format!("neg{width} r{dst}"),
            1 => format!(
                "movsx{} r{dst}, r{}",
                self.random.pick(&["8", "16", "32", "8_32", "16_32"]),
                self.number()
            ),
            2 => format!(
                "{}{} r{dst}",
                self.random.pick(&["le", "be", "bswap"]),
                self.random.pick(&[16, 32, 64])
            ),
            _ => {
                let op = *self.random.pick(ALU);
                let shift = matches!(op, "lsh" | "rsh" | "arsh");
                let src = if shift {
                    self.random.below(if width == "32" { 32 } else { 64 }).to_string()
                } else if src == "0" && matches!(op, "div" | "mod" | "sdiv" | "smod") {
                    "3".into()
                } else {
                    src
                };
                format!("{op}{width} r{dst}, {src}")
            }
        };
        self.line(&line);
    }

    fn source(&mut self) {
        let dst = self.number();
        let line = match self.random.below(5) {
            0 => format!("call 7; mov r{dst}, r0"),
            1 => format!("ldxdw r{dst}, [r6+{}]", 8 * self.random.below(8)),
            2 => format!(
                "ldx{} r{dst}, [r6+{}]",
                self.random.pick(&["b", "h", "w", "sb", "sh", "sw"]),
                self.random.below(61)
            ),
            3 => format!("lddw r{dst}, {:#x}", self.random.next() >> self.random.below(64)),
            _ => format!("lddw r1, value 102+8; ldxw r{dst}, [r1]"),
        };
        self.line(&line);
    }

    /// No compiler compares a register with itself, and the kernel knows little of it.
    fn condition(&mut self) -> String {
        let (cond, width, dst) = (*self.random.pick(CONDS), self.width(), self.number());
        let src = self.operand();
        let src = if src == format!("r{dst}") { self.random.imm().to_string() } else { src };
        format!("{cond}{width} r{dst}, {src}")
    }

    fn branch(&mut self) {
        let (over, condition) = (self.label(), self.condition());
        if self.depth > 2 {
            return;
        }
        self.depth += 1;
        let text = format!("{condition}, {over}");
        self.line(&text);
        for _ in 0..1 + self.random.below(2) {
            self.item();
        }
        if self.random.one_in(3) {
            let end = self.label();
            let text = format!("ja {end}");
            self.line(&text);
            let text = format!("{over}:");
            self.line(&text);
            self.item();
            let text = format!("{end}:");
            self.line(&text);
        } else {
            let text = format!("{over}:");
            self.line(&text);
        }
        self.depth -= 1;
    }

    /// A bound on a number, right or nearly.
    fn bound(&mut self, reg: u8, limit: i64, out: &str) -> String {
        let limit = limit + [0, 0, 0, 0, 0, 0, 1, -1, 4][self.random.below(9)];
        match self.random.below(9) {
            0 => format!(
                "and r{reg}, {}",
                if self.random.one_in(5) { 127 } else { (limit.max(2) as u64).next_power_of_two() / 2 - 1 }
            ),
            1 => format!("jgt r{reg}, {limit}, {out}"),
            2 => format!("jge r{reg}, {}, {out}", limit + 1),
            3 => format!("jsgt r{reg}, {limit}, {out}; jslt r{reg}, 0, {out}"),
            4 => format!("mov32 r{reg}, r{reg}; jgt32 r{reg}, {limit}, {out}"),
            5 => format!("mov r1, {limit}; jlt r1, r{reg}, {out}"),
            6 => format!("mov r1, r{reg}; jgt r1, {limit}, {out}"),
            7 => format!(
                "lsh r{reg}, 32; rsh r{reg}, {}; jsgt r{reg}, {limit}, {out}",
                32 + self.random.below(24)
            ),
            _ => format!("jgt{} r{reg}, {limit}, {out}", self.width()),
        }
    }

    /// An access to the map value at a bounded index.
    fn index(&mut self) {
        let (reg, out) = (self.number(), self.label());
        let (name, bytes) = *self.random.pick(&[("b", 1), ("h", 2), ("w", 4), ("dw", 8)]);
        let base = self.random.below(3) as i64 * 8;
        let bound = self.bound(reg, 64 - bytes - base, &out);
        self.line(&bound);
        let op = if self.random.one_in(12) { "sub" } else { "add" };
        let scale = if self.random.one_in(6) {
            format!("lsh r{reg}, {}; ", self.random.below(4))
        } else {
            String::new()
        };
        let text = format!("{scale}mov r1, r6; {op} r1, r{reg}");
        self.line(&text);
        let access = match self.random.below(3) {
            0 => format!("ldx{name} r{}, [r1+{base}]", self.number()),
            1 => format!("st{name} [r1+{base}], 1"),
            _ => format!("stx{name} [r1+{base}], r{}", self.number()),
        };
        self.line(&access);
        let text = format!("{out}:");
        self.line(&text);
    }

    fn place(&mut self, bytes: usize) -> String {
        let slots = 48 / bytes;
        format!("[r10-{}]", 16 + bytes * (1 + self.random.below(slots)))
    }

    fn stack_number(&mut self) {
        let (name, bytes) = *self.random.pick(&[("b", 1), ("h", 2), ("w", 4), ("dw", 8)]);
        let (place, reg) = (self.place(bytes), self.number());
        let line = match self.random.below(3) {
            0 => format!("stx{name} {place}, r{reg}"),
            1 => format!("st{name} {place}, {}", self.random.imm()),
            _ => format!("ldx{name} r{reg}, {place}"),
        };
        self.line(&line);
    }

    fn spill(&mut self) {
        let place = self.place(8);
        let reg = self.number();
        let line = match self.random.below(4) {
            0 => format!("stxdw {place}, r6; ldxdw r6, {place}"),
            1 => format!("stxdw {place}, r6; mov r1, 1; ldxdw r1, {place}; ldxdw r{reg}, [r1+56]"),
            2 => format!("stxdw {place}, r{reg}; ldxdw r{}, {place}", self.number()),
            _ => format!("stxw {place}, r{reg}; ldxw r{}, {place}", self.number()),
        };
        self.line(&line);
    }

    fn stack_index(&mut self) {
        let (reg, out) = (self.number(), self.label());
        let bound = self.bound(reg, 31, &out);
        let write = self.random.one_in(2);
        self.line(&bound);
        let text = format!("mov r1, r10; add r1, -{}; add r1, r{reg}", 40 + 8 * self.random.below(3));
        self.line(&text);
        self.line(if write { "stb [r1], 5" } else { "ldxb r0, [r1]" });
        let text = format!("{out}:");
        self.line(&text);
    }

    fn sized_helper(&mut self) {
        let (reg, out) = (self.number(), self.label());
        let target = *self.random.pick(&[
            "mov r1, r10; add r1, -48",
            "mov r1, r6; add r1, 32",
            "lddw r1, value 101+32",
        ]);
        let bound = self.bound(reg, 32, &out);
        self.line(&bound);
        let text =
            format!("{target}; mov r2, r{reg}; mov r3, 0; call {}", self.random.pick(&[113, 113, 115, 16]));
        self.line(&text);
        if self.random.one_in(2) {
            let text = format!("mov r{reg}, r0");
            self.line(&text);
        }
        let text = format!("{out}:");
        self.line(&text);
    }

    fn record(&mut self) {
        if self.in_function {
            return;
        }
        let out = self.label();
        self.line("lddw r1, map 103; mov r2, 32; mov r3, 0; call 131");
        if !self.random.one_in(10) {
            let text = format!("jeq r0, 0, {out}");
            self.line(&text);
        }
        let slots = if self.random.one_in(8) { 5 } else { 4 };
        let off = 8 * self.random.below(slots);
        let mut text = format!("stxdw [r0+{off}], r{}", self.number());
        if self.random.one_in(4) {
            let reg = self.number();
            write!(text, "; and r{reg}, 31; mov r1, r0; add r1, r{reg}; stb [r1], 1").unwrap();
        }
        if self.random.one_in(12) {
            let skip = format!("; {}, {out}", self.condition());
            text.push_str(&skip);
        }
        self.line(&text);
        if !self.random.one_in(12) {
            let after = if self.random.one_in(10) { "; ldxdw r0, [r0]" } else { "" };
            let text = format!("mov r1, r0; mov r2, 0; call {}{after}", self.random.pick(&[132, 133]));
            self.line(&text);
        }
        let text = format!("{out}:");
        self.line(&text);
    }

    fn lookup(&mut self) {
        let out = self.label();
        let reg = self.number();
        let text = format!("stxw [r10-8], r{reg}; mov r2, r10; add r2, -8; lddw r1, map 100; call 1");
        self.line(&text);
        if !self.random.one_in(10) {
            let text = format!("{} r0, 0, {out}", self.random.pick(&["jeq", "jeq", "jeq", "jne"]));
            self.line(&text);
        }
        let offs = if self.random.one_in(6) { 10 } else { 9 };
        let off = self.random.below(offs);
        let text = format!("ldxdw r{reg}, [r0+{off}]");
        self.line(&text);
        let text = format!("{out}:");
        self.line(&text);
    }

    fn looped(&mut self) {
        if self.depth > 1 {
            return;
        }
        self.depth += 2;
        let (head, times) = (self.label(), 1 + self.random.below(6));
        let counter = 72 + 8 * self.depth;
        let text = format!("stdw [r10-{counter}], {times}");
        self.line(&text);
        let text = format!("{head}:");
        self.line(&text);
        self.item();
        let text =
            format!("ldxdw r0, [r10-{counter}]; add r0, -1; stxdw [r10-{counter}], r0; jne r0, 0, {head}");
        self.line(&text);
        self.depth -= 2;
    }

    fn call(&mut self) {
        if self.in_function {
            return;
        }
        if self.random.one_in(3) {
            self.wants_callback = true;
            let n = self.random.pick(&["1", "10", "r7"]).to_string();
            let text = format!(
                "stdw [r10-24], 0; mov r1, {n}; lddw r2, func c; mov r3, r10; add r3, -24; mov r4, 0; call 181"
            );
            self.line(&text);
            if self.random.one_in(2) {
                let reg = self.number();
                let text = format!("ldxdw r{reg}, [r10-24]");
                self.line(&text);
            }
            return;
        }
        self.wants_function = true;
        let (reg, into) = (self.number(), self.number());
        let text = format!("mov r1, r6; mov r2, r{reg}; call local f; mov r{into}, r0");
        self.line(&text);
    }

    fn atomic(&mut self) {
        let reg = self.number();
        let op = self.random.pick(&["add", "fetch_add", "or", "fetch_and", "xchg", "fetch_xor"]).to_string();
        let (w, bytes) = *self.random.pick(&[("", 8), ("32", 4)]);
        let place = if self.random.one_in(2) {
            format!("[r6+{}]", bytes * self.random.below(8))
        } else {
            "[r10-16]".into()
        };
        let text = format!("lock {op}{w} {place}, r{reg}");
        self.line(&text);
    }

    fn clamp(&mut self) {
        let (reg, out) = (self.number(), "out");
        let limit = 1 + self.random.below(80) as i64;
        if !self.in_function {
            let bound = self.bound(reg, limit, out);
            self.line(&bound);
        }
    }
}
