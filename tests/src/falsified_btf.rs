//! A kernel's BTF in which a member is not where the kernel has it, as a wrong or foreign file would say.
#![expect(clippy::panic, reason = "a test fails by panic")]

/// Moves `member` of `struct name` by `bits` in the BTF `data`.
///
/// # Panics
/// When there is no such member.
pub fn move_member(data: &mut [u8], name: &str, member: &str, bits: i32) {
    let word = |data: &[u8], at: usize| u32::from_ne_bytes(data[at..at + 4].try_into().expect("four bytes"));
    let header = word(data, 4) as usize;
    let (mut at, types_len) = (header + word(data, 8) as usize, word(data, 12) as usize);
    let strings = header + word(data, 16) as usize;
    let end = at + types_len;
    let is = |data: &[u8], place: u32, text: &str| {
        let start = strings + place as usize;
        data[start..].starts_with(text.as_bytes()) && data[start + text.len()] == 0
    };
    while at < end {
        let info = word(data, at + 4);
        let (kind, vlen) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        if kind == 4 && is(data, word(data, at), name) {
            for place in (0..vlen).map(|index| at + 12 + index * 12) {
                if is(data, word(data, place), member) {
                    let moved = word(data, place + 8).checked_add_signed(bits).expect("a place in the structure");
                    data[place + 8..place + 12].copy_from_slice(&moved.to_ne_bytes());
                    return;
                }
            }
        }
        at += 12
            + match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * vlen,
                6 | 13 => 8 * vlen,
                _ => 0,
            };
    }
    panic!("no {name}.{member}");
}
