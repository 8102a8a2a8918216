//! Where a member lies in a kernel structure, as found in the running kernel's BTF and frozen into a program.

use crate::plain::plain;

/// Bytes from the start of a structure to a member, or [`Offset::ABSENT`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset(u16);

plain!(Offset);

impl Offset {
    /// The running kernel has no such member.
    pub const ABSENT: Self = Self(u16::MAX);

    /// A member at `bytes`; `None` when that is further than any member which a probe reads.
    #[must_use]
    pub const fn at(bytes: u32) -> Option<Self> {
        if bytes < u16::MAX as u32 { Some(Self(bytes as u16)) } else { None }
    }

    /// The offset in bytes, if the member is there.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        if self.0 == u16::MAX { None } else { Some(self.0 as u64) }
    }
}
