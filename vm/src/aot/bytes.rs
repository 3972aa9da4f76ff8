//! Numbers, texts and byte strings in a row.

use super::ContainerError;

/// Puts them together.
#[derive(Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub fn number(&mut self, n: u32) {
        self.0.extend(n.to_le_bytes());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u32);
        self.0.extend(bytes);
    }

    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Takes them apart. Errors name the part of the file.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    part: &'static str,
}

impl<'a> Reader<'a> {
    pub fn new(rest: &'a [u8], part: &'static str) -> Reader<'a> {
        Reader { rest, part }
    }

    /// What comes next.
    pub fn at(&mut self, part: &'static str) {
        self.part = part;
    }

    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], ContainerError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(ContainerError::Malformed(self.part))?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn number(&mut self) -> Result<u32, ContainerError> {
        Ok(self.take(4)?.iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte)))
    }

    pub fn wide(&mut self) -> Result<u64, ContainerError> {
        Ok(self.take(8)?.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], ContainerError> {
        let len = self.number()? as usize;
        self.take(len)
    }

    pub fn text(&mut self) -> Result<String, ContainerError> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| ContainerError::Malformed(self.part))
    }
}
