//! `.BTF.ext`: source lines and CO-RE relocations, by section of code.

use super::btf::{BtfError, Words, header, part};

/// Where an instruction comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Byte offset of the instruction in its section.
    pub off: u32,
    /// String offsets in `.BTF`.
    pub file: u32,
    pub text: u32,
    pub number: u32,
}

/// A place that depends on the layout of a kernel type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoRe {
    /// Byte offset of the instruction in its section.
    pub off: u32,
    /// Type in the object's BTF.
    pub ty: u32,
    /// String offset of the path into it.
    pub path: u32,
    /// `enum bpf_core_relo_kind`.
    pub kind: u32,
}

/// Records by section, which is a string offset in `.BTF`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ext {
    pub lines: Vec<(u32, Vec<Line>)>,
    pub relocations: Vec<(u32, Vec<CoRe>)>,
}

impl Ext {
    /// Parses the section.
    pub fn parse(bytes: &[u8]) -> Result<Ext, BtfError> {
        let (mut h, len) = header(bytes)?;
        let mut next = || h.u32("the header of .BTF.ext");
        let _functions = (next()?, next()?);
        let lines = (next()?, next()?);
        // Older compilers write a header without CO-RE relocations.
        let relocations = if len >= 32 { (next()?, next()?) } else { (0, 0) };
        let lines = records(part(bytes, len, lines.0, lines.1)?, |w| Line {
            off: w[0],
            file: w[1],
            text: w[2],
            number: w[3] >> 10,
        })?;
        let relocations = records(part(bytes, len, relocations.0, relocations.1)?, |w| CoRe {
            off: w[0],
            ty: w[1],
            path: w[2],
            kind: w[3],
        })?;
        Ok(Ext { lines, relocations })
    }
}

/// Blocks of records of at least four words, after one word that says how long they are.
fn records<T>(bytes: &[u8], record: impl Fn(&[u32; 4]) -> T) -> Result<Vec<(u32, Vec<T>)>, BtfError> {
    const WHAT: &str = "a record of .BTF.ext";
    let mut blocks = vec![];
    if bytes.is_empty() {
        return Ok(blocks);
    }
    let mut words = Words(bytes);
    let size = words.u32(WHAT)? as usize;
    if size < 16 {
        return Err(BtfError::Short(WHAT));
    }
    while !words.0.is_empty() {
        let (section, count) = (words.u32(WHAT)?, words.u32(WHAT)?);
        let mut block = vec![];
        for _ in 0..count {
            let (one, rest) = words.0.split_at_checked(size).ok_or(BtfError::Short(WHAT))?;
            words.0 = rest;
            let mut one = Words(one);
            let w = [one.u32(WHAT)?, one.u32(WHAT)?, one.u32(WHAT)?, one.u32(WHAT)?];
            block.push(record(&w));
        }
        blocks.push((section, block));
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_may_be_longer_than_we_know() {
        let words: Vec<u8> =
            [20u32, 7, 1, 8, 1, 2, 5 << 10, 99].iter().flat_map(|w| w.to_le_bytes()).collect();
        let found = records(&words, |w| *w).unwrap();
        assert_eq!(found, [(7, vec![[8, 1, 2, 5 << 10]])]);
        assert!(records(&words[..24], |w| *w).is_err());
    }
}
