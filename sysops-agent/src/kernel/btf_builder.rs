//! BTF for tests: small files, of a kernel that has just the types a test speaks of with any layout, and what real ones have.

use sysops_btf::{Btf, TypeId};

const INT: u32 = 1;
const POINTER: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const PROTOTYPE: u32 = 13;

/// Extracts of real kernels (tests/fixtures/extract-btf.py).
pub(super) const KERNELS: [(&str, &[u8]); 5] = [
    ("5.10", include_bytes!("../../../tests/fixtures/btf/5.10.btf")),
    ("6.1", include_bytes!("../../../tests/fixtures/btf/6.1.btf")),
    ("6.12", include_bytes!("../../../tests/fixtures/btf/6.12.btf")),
    ("6.18", include_bytes!("../../../tests/fixtures/btf/6.18.btf")),
    ("7.2", include_bytes!("../../../tests/fixtures/btf/7.2.btf")),
];

/// One of them.
pub(super) fn kernel(name: &str) -> Btf {
    let found = KERNELS.iter().find(|(kernel, _)| *kernel == name).expect("a fixture");
    Btf::parse(found.1.to_vec()).expect("a kernel's BTF")
}

/// Types and names so far.
pub(super) struct Builder {
    types: Vec<u32>,
    strings: Vec<u8>,
    count: TypeId,
}

impl Builder {
    /// None yet.
    #[must_use]
    pub(super) fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0], count: 0 }
    }

    /// A number of `size` bytes.
    pub(super) fn int(&mut self, size: u32) -> TypeId {
        self.add("", INT << 24, size, &[size * 8])
    }

    /// `count` elements.
    pub(super) fn array(&mut self, element: TypeId, count: u32) -> TypeId {
        self.add("", ARRAY << 24, 0, &[element, element, count])
    }

    /// A pointer to `to`.
    pub(super) fn pointer(&mut self, to: TypeId) -> TypeId {
        self.add("", POINTER << 24, to, &[])
    }

    /// A structure with members by name, type and offset in bytes.
    pub(super) fn structure(&mut self, name: &str, members: &[(&str, TypeId, u32)]) -> TypeId {
        let tail: Vec<u32> =
            members.iter().flat_map(|&(member, of, bytes)| [self.string(member), of, bytes * 8]).collect();
        self.add(name, STRUCT << 24 | len(members), 4096, &tail)
    }

    /// Names with their numbers.
    pub(super) fn enumeration(&mut self, items: &[(&str, u32)]) -> TypeId {
        let tail: Vec<u32> = items.iter().flat_map(|&(item, value)| [self.string(item), value]).collect();
        self.add("", ENUM << 24 | len(items), 4, &tail)
    }

    /// A tracepoint that hands over `arguments`.
    pub(super) fn tracepoint(&mut self, name: &str, arguments: &[TypeId]) {
        let data = self.pointer(0);
        let tail: Vec<u32> = std::iter::once(data).chain(arguments.iter().copied()).flat_map(|of| [0, of]).collect();
        let prototype = self.add("", PROTOTYPE << 24 | (len(arguments) + 1), 0, &tail);
        let pointer = self.pointer(prototype);
        self.add(&format!("btf_trace_{name}"), TYPEDEF << 24, pointer, &[]);
    }

    /// The file.
    #[must_use]
    pub(super) fn build(self) -> Btf {
        let types_len = u32::try_from(self.types.len() * 4).expect("small");
        let strings_len = u32::try_from(self.strings.len()).expect("small");
        let header = [0x0001_eb9f, 24, 0, types_len, types_len, strings_len];
        let mut data: Vec<u8> = header.iter().chain(&self.types).flat_map(|word| word.to_ne_bytes()).collect();
        data.extend(self.strings);
        Btf::parse(data).expect("it is made as it should be")
    }

    fn add(&mut self, name: &str, info: u32, size_or_type: u32, tail: &[u32]) -> TypeId {
        let name = self.string(name);
        self.types.extend([name, info, size_or_type]);
        self.types.extend(tail);
        self.count += 1;
        self.count
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let place = u32::try_from(self.strings.len()).expect("small");
        self.strings.extend(text.as_bytes());
        self.strings.push(0);
        place
    }
}

fn len<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).expect("small")
}
