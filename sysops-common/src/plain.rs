//! Types that are nothing but their bytes, and the one way to see a record in bytes that the kernel handed over.

/// A type of which any bytes are a value: `repr(C)`, integers and arrays of them only.
///
/// # Safety
/// Whoever implements it promises just that.
#[cfg(feature = "user")]
pub unsafe trait Plain: aya::Pod {}

/// A type of which any bytes are a value: `repr(C)`, integers and arrays of them only.
///
/// # Safety
/// Whoever implements it promises just that.
#[cfg(not(feature = "user"))]
pub unsafe trait Plain: Copy + 'static {}

/// The record at the beginning of `bytes`; `None` when they are too few or not aligned for it.
#[must_use]
pub fn view<T: Plain>(bytes: &[u8]) -> Option<&T> {
    let start = bytes.as_ptr().cast::<T>();
    if bytes.len() < size_of::<T>() || !start.is_aligned() {
        return None;
    }
    // SAFETY: there are enough aligned bytes, they live as long as the result, and any bytes are a `T` (Plain).
    Some(unsafe { &*start })
}

// SAFETY: an integer. aya has its own word for it.
unsafe impl Plain for u32 {}
// SAFETY: an integer. aya has its own word for it.
unsafe impl Plain for u64 {}

/// Declares types as plain, on the user side for aya too.
macro_rules! plain {
    ($($name:ty),+ $(,)?) => {$(
        // SAFETY: repr(C), integers and arrays of integers only: any bytes are a value.
        unsafe impl $crate::plain::Plain for $name {}
        #[cfg(feature = "user")]
        // SAFETY: as above.
        unsafe impl aya::Pod for $name {}
    )+};
}
pub(crate) use plain;
