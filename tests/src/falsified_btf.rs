//! A kernel's BTF that says of a member what is not so, as a wrong or foreign file, or another kernel's, would.
#![expect(clippy::panic, reason = "a test fails by panic")]

/// True when `struct name` has such a member.
#[must_use]
pub fn has_member(data: &[u8], name: &str, member: &str) -> bool {
    find(data, name, member).is_some()
}

/// Moves `member` of `struct name` by `bits` in the BTF `data`.
///
/// # Panics
/// When there is no such member.
pub fn move_member(data: &mut [u8], name: &str, member: &str, bits: i32) {
    let place = place(data, name, member);
    let moved = word(data, place.at + 8).checked_add_signed(bits).expect("a place in the structure");
    set(data, place.at + 8, moved);
}

/// Takes `member` out of `struct name`: it gets the name of the structure.
///
/// # Panics
/// When there is no such member.
pub fn remove_member(data: &mut [u8], name: &str, member: &str) {
    let place = place(data, name, member);
    let other = word(data, place.structure_at);
    set(data, place.at, other);
}

/// Makes `member` of `struct name` of another type, and so of another size: that of the structure itself.
///
/// # Panics
/// When there is no such member.
pub fn retype_member(data: &mut [u8], name: &str, member: &str) {
    let place = place(data, name, member);
    set(data, place.at + 4, place.structure_id);
}

/// Where a member is: name, type and bits, each of four bytes.
struct Place {
    at: usize,
    structure_at: usize,
    structure_id: u32,
}

fn place(data: &[u8], name: &str, member: &str) -> Place {
    find(data, name, member).unwrap_or_else(|| panic!("no {name}.{member}"))
}

fn find(data: &[u8], name: &str, member: &str) -> Option<Place> {
    let header = word(data, 4) as usize;
    let (mut at, types_len) = (header + word(data, 8) as usize, word(data, 12) as usize);
    let strings = header + word(data, 16) as usize;
    let end = at + types_len;
    let is = |place: u32, text: &str| {
        let start = strings + place as usize;
        data[start..].starts_with(text.as_bytes()) && data[start + text.len()] == 0
    };
    let mut id = 1;
    while at < end {
        let info = word(data, at + 4);
        let (kind, vlen) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        if kind == 4 && is(word(data, at), name) {
            let mut members = (0..vlen).map(|index| at + 12 + index * 12);
            if let Some(found) = members.find(|&place| is(word(data, place), member)) {
                return Some(Place { at: found, structure_at: at, structure_id: id });
            }
        }
        id += 1;
        at += 12
            + match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * vlen,
                6 | 13 => 8 * vlen,
                _ => 0,
            };
    }
    None
}

fn word(data: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(data[at..at + 4].try_into().expect("four bytes"))
}

fn set(data: &mut [u8], at: usize, value: u32) {
    data[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}
