//! Reading and writing of big-endian fields, bounds-checked.
//!
//! Owns: the primitives and `DecodeError`. Leaves to others: every layout.
//!
//! Invariant: a `Decoder` never reads past its input, and `finish` refuses bytes that no field took.

use alloc::string::String;
use alloc::vec::Vec;

use crate::kv::OpError;
use crate::types::Timestamp;

/// Version of every metadata value written by this code: its first byte.
pub const VALUE_VERSION: u8 = 1;

/// Why bytes do not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by another version of the format (the number found).
    #[error("format version {0} is not supported")]
    Version(u32),
    /// The bytes end within a field.
    #[error("cut short")]
    Short,
    /// Bytes follow the last field.
    #[error("trailing bytes")]
    Trailing,
    /// A field holds what it may not; the text says which.
    #[error("bad field: {0}")]
    Invalid(&'static str),
}

impl From<DecodeError> for OpError {
    fn from(error: DecodeError) -> Self {
        Self::Damaged(match error {
            DecodeError::Version(_) => "a record of an unknown format version",
            DecodeError::Short => "a record that is cut short",
            DecodeError::Trailing => "a record with trailing bytes",
            DecodeError::Invalid(what) => what,
        })
    }
}

/// Appends fields to a buffer.
#[derive(Debug)]
pub struct Encoder(Vec<u8>);

impl Encoder {
    /// An empty buffer with room for `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// A buffer that starts with the value version, with room for `capacity` bytes in all.
    pub fn value(capacity: usize) -> Self {
        Self::new(capacity).u8(VALUE_VERSION)
    }

    /// One byte.
    pub fn u8(self, value: u8) -> Self {
        self.raw(&[value])
    }

    /// Two bytes.
    pub fn u16(self, value: u16) -> Self {
        self.raw(&value.to_be_bytes())
    }

    /// Four bytes.
    pub fn u32(self, value: u32) -> Self {
        self.raw(&value.to_be_bytes())
    }

    /// Eight bytes.
    pub fn u64(self, value: u64) -> Self {
        self.raw(&value.to_be_bytes())
    }

    /// Eight bytes, two's complement.
    pub fn i64(self, value: i64) -> Self {
        self.raw(&value.to_be_bytes())
    }

    /// Seconds and nanoseconds: twelve bytes.
    pub fn time(self, value: Timestamp) -> Self {
        debug_assert!(value.nanos < 1_000_000_000);
        self.i64(value.secs).u32(value.nanos)
    }

    /// A string of at most 65535 bytes, after its length as two bytes.
    pub fn text(self, value: &str) -> Self {
        assert!(value.len() <= usize::from(u16::MAX));
        self.u16(value.len() as u16).raw(value.as_bytes())
    }

    /// The bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The buffer.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Takes fields from the front of a slice.
#[derive(Debug)]
pub struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Starts after the value version, which must be the known one.
    pub fn value(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut decoder = Self(bytes);
        match decoder.u8()? {
            VALUE_VERSION => Ok(decoder),
            other => Err(DecodeError::Version(u32::from(other))),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Eight bytes, two's complement.
    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// Sixteen bytes.
    pub fn bytes16(&mut self) -> Result<[u8; 16], DecodeError> {
        self.array()
    }

    /// Seconds and nanoseconds, the latter below a second.
    pub fn time(&mut self) -> Result<Timestamp, DecodeError> {
        let time = Timestamp { secs: self.i64()?, nanos: self.u32()? };
        require(time.nanos < 1_000_000_000, "nanoseconds")?;
        Ok(time)
    }

    /// A string after its length as two bytes.
    pub fn text(&mut self) -> Result<String, DecodeError> {
        let len = usize::from(self.u16()?);
        let bytes = self.raw(len)?;
        core::str::from_utf8(bytes).map(String::from).map_err(|_| DecodeError::Invalid("text"))
    }

    /// The next `len` bytes.
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(head)
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks that nothing is left.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }
}

/// `Invalid(what)` unless `holds`.
pub fn require(holds: bool, what: &'static str) -> Result<(), DecodeError> {
    if holds { Ok(()) } else { Err(DecodeError::Invalid(what)) }
}
