//! Reads the running kernel's own description of its types (BTF): where members lie, what tracepoints pass, what
//! enumerators are worth. Which of them a probe needs is left to the probe.

/// Wrapped names and arrays of arrays end somewhere; a cycle in a broken file must too.
const MAX_STEPS: usize = 32;

/// The types of a kernel. The file is kept as it is; beside it stands only where each type begins, and a table of their
/// names: there are a hundred thousand of them, and the probes ask for a hundred.
pub struct Btf {
    data: Vec<u8>,
    strings: (usize, usize),
    types: Vec<u32>,
    /// By a name's hash: the first type of those that have it, 0 for none.
    first: Vec<TypeId>,
    /// By type: the next one of the same hash, 0 for none.
    next: Vec<TypeId>,
}

/// A number of a type; 0 is `void`.
pub type TypeId = u32;

/// A member that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Bytes from the start of the outermost structure.
    pub offset: u32,
    /// Its type.
    pub type_id: TypeId,
}

/// What a tracepoint hands to a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A pointer to a structure of this name.
    Pointer(String),
    /// A number, or a pointer to something that is no structure.
    Value,
}

/// Why the file or a name in it cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// The file is not what it should be.
    #[error("malformed BTF: {0}")]
    Malformed(&'static str),
    /// This kernel has no such thing.
    #[error("no {0} in BTF")]
    Missing(String),
}

const INT: u8 = 1;
const POINTER: u8 = 2;
const ARRAY: u8 = 3;
const STRUCT: u8 = 4;
const UNION: u8 = 5;
const ENUM: u8 = 6;
const TYPEDEF: u8 = 8;
const VOLATILE: u8 = 9;
const CONST: u8 = 10;
const RESTRICT: u8 = 11;
const FUNC: u8 = 12;
const FUNC_PROTO: u8 = 13;
const FLOAT: u8 = 16;
const TYPE_TAG: u8 = 18;
const ENUM64: u8 = 19;

/// Bytes that follow the twelve of every type: (fixed, for each of `vlen`), by kind
/// (Documentation/bpf/btf.rst). A kind that is not here has an unknown size, so nothing behind it can be read.
const TAILS: [(usize, usize); 20] = [
    (0, 0),  // void
    (4, 0),  // INT
    (0, 0),  // PTR
    (12, 0), // ARRAY
    (0, 12), // STRUCT
    (0, 12), // UNION
    (0, 8),  // ENUM
    (0, 0),  // FWD
    (0, 0),  // TYPEDEF
    (0, 0),  // VOLATILE
    (0, 0),  // CONST
    (0, 0),  // RESTRICT
    (0, 0),  // FUNC
    (0, 8),  // FUNC_PROTO
    (4, 0),  // VAR
    (0, 12), // DATASEC
    (0, 0),  // FLOAT
    (4, 0),  // DECL_TAG
    (0, 0),  // TYPE_TAG
    (0, 12), // ENUM64
];

/// Kinds that are looked for by name.
const FOUND: [u8; 3] = [STRUCT, TYPEDEF, FUNC];

/// Sixteen bits: chains of one or two in a kernel's BTF.
const HASHES: usize = 1 << 16;

/// FNV-1a, folded.
fn hash(name: &[u8]) -> usize {
    let hash = name.iter().fold(0x811c_9dc5_u32, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash ^ (hash >> 16)) as usize & (HASHES - 1)
}

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u8,
    vlen: usize,
    /// The top bit of `info`: members of a structure are bit fields.
    flag: bool,
    size_or_type: u32,
    tail: usize,
}

impl Btf {
    /// Takes the bytes of /sys/kernel/btf/vmlinux.
    ///
    /// # Errors
    /// When they are no BTF of this machine's byte order, or end too early.
    pub fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        let word = |at: usize| u32_at(&data, at).ok_or(BtfError::Malformed("the header is cut off"));
        if word(0)? & 0x00ff_ffff != 0x0001_eb9f {
            return Err(BtfError::Malformed("no BTF of version 1 in this byte order"));
        }
        let section = |start: u32, len: u32| {
            let start = (word(4)? as usize).checked_add(start as usize);
            let range = start.and_then(|start| Some((start, start.checked_add(len as usize)?)));
            range.filter(|&(_, end)| end <= data.len()).ok_or(BtfError::Malformed("a section ends behind the file"))
        };
        let (first, end) = section(word(8)?, word(12)?)?;
        let strings = section(word(16)?, word(20)?)?;
        let mut btf = Self { data, strings, types: vec![0], first: vec![0; HASHES], next: Vec::new() };
        let mut at = first;
        while at < end {
            let Some(found) = btf.type_at(at) else { return Err(BtfError::Malformed("a type is cut off")) };
            let Some(&(fixed, each)) = TAILS.get(usize::from(found.kind)) else {
                return Err(BtfError::Malformed("a kind of type that is not known"));
            };
            let start = u32::try_from(at).map_err(|_| BtfError::Malformed("larger than 4 GiB"))?;
            btf.types.push(start);
            at = found.tail + fixed + each * found.vlen;
        }
        if at != end {
            return Err(BtfError::Malformed("the last type is cut off"));
        }
        btf.index();
        Ok(btf)
    }

    /// Fills the table of names, from the last type to the first: of two with one name the first is found.
    fn index(&mut self) {
        self.next = vec![0; self.types.len()];
        for place in (1..self.types.len()).rev() {
            let found = self.type_at(self.types[place] as usize).filter(|found| FOUND.contains(&found.kind));
            let Some(name) = found.and_then(|found| self.bytes(found.name)) else { continue };
            let hash = hash(name);
            self.next[place] = self.first[hash];
            // As many types as fit into a file of 4 GiB have a number of 32 bits.
            self.first[hash] = u32::try_from(place).unwrap_or_default();
        }
    }

    /// Where `path` (`signal.oom_score_adj`-like, but within one structure: `a.b` goes into a member that is itself a
    /// structure) lies in `struct name`. Members of structures and unions without a name count as members.
    ///
    /// # Errors
    /// [`BtfError::Missing`] names the structure and the member.
    pub fn member(&self, name: &str, path: &str) -> Result<Member, BtfError> {
        let missing = || BtfError::Missing(format!("{name}.{path}"));
        let mut found = Member {
            offset: 0,
            type_id: self.structure(name).ok_or_else(|| BtfError::Missing(format!("struct {name}")))?,
        };
        for part in path.split('.') {
            let inner = self.member_of(found.type_id, part, 0).ok_or_else(missing)?;
            let offset = found.offset.checked_add(inner.offset).ok_or_else(missing)?;
            found = Member { offset, type_id: inner.type_id };
        }
        Ok(found)
    }

    /// Bytes of a type; `None` for what has no size or more than a structure can have.
    #[must_use]
    pub fn size(&self, id: TypeId) -> Option<u32> {
        let mut factor = 1_u32;
        let mut id = id;
        for _ in 0..MAX_STEPS {
            let found = self.get(self.resolve(id)?)?;
            match found.kind {
                INT | STRUCT | UNION | ENUM | ENUM64 | FLOAT => return found.size_or_type.checked_mul(factor),
                POINTER => return factor.checked_mul(8),
                ARRAY => {
                    factor = factor.checked_mul(u32_at(&self.data, found.tail + 8)?)?;
                    id = u32_at(&self.data, found.tail)?;
                }
                _ => return None,
            }
        }
        None
    }

    /// Bytes of `struct name`.
    #[must_use]
    pub fn structure_size(&self, name: &str) -> Option<u32> {
        self.size(self.structure(name)?)
    }

    /// Type of the elements of an array.
    #[must_use]
    pub fn element(&self, id: TypeId) -> Option<TypeId> {
        let found = self.get(self.resolve(id)?)?;
        if found.kind == ARRAY { u32_at(&self.data, found.tail) } else { None }
    }

    /// Name of the structure or union that a type is, without `const` and type definitions.
    #[must_use]
    pub fn structure_name(&self, id: TypeId) -> Option<&str> {
        let found = self.get(self.resolve(id)?)?;
        if matches!(found.kind, STRUCT | UNION) { self.text(found.name) } else { None }
    }

    /// Offset of `member` in the structure of this type.
    #[must_use]
    pub fn member_in(&self, id: TypeId, member: &str) -> Option<Member> {
        self.member_of(id, member, 0)
    }

    /// What an enumerator is worth, in whichever enumeration it stands.
    #[must_use]
    pub fn enumerator(&self, name: &str) -> Option<u32> {
        let wanted = self.string(name)?;
        self.types.iter().skip(1).find_map(|&at| {
            let found = self.type_at(at as usize)?;
            let step = match found.kind {
                ENUM => 8,
                ENUM64 => 12,
                _ => return None,
            };
            (0..found.vlen)
                .map(|index| found.tail + index * step)
                .find_map(|at| (u32_at(&self.data, at)? == wanted).then(|| u32_at(&self.data, at + 4)).flatten())
        })
    }

    /// Number of the type by which a program attaches to the tracepoint `name` (`btf_trace_<name>`).
    #[must_use]
    pub fn tracepoint(&self, name: &str) -> Option<TypeId> {
        self.find(&format!("btf_trace_{name}"), TYPEDEF)
    }

    /// What the tracepoint `name` hands to a program.
    ///
    /// # Errors
    /// [`BtfError::Missing`] when this kernel has no such tracepoint.
    pub fn arguments(&self, name: &str) -> Result<Vec<Argument>, BtfError> {
        let missing = || BtfError::Missing(format!("tracepoint {name}"));
        let pointer = self.get(self.resolve(self.tracepoint(name).ok_or_else(missing)?).ok_or_else(missing)?);
        let prototype = pointer.and_then(|pointer| self.get(self.resolve(pointer.size_or_type)?));
        // The first parameter is the tracepoint's own `void *__data`.
        self.parameters(prototype, 1, missing)
    }

    /// Number of the kernel function `name`, by which a program attaches to its entry.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<TypeId> {
        self.find(name, FUNC)
    }

    /// What the kernel function `name` takes.
    ///
    /// # Errors
    /// [`BtfError::Missing`] when this kernel has no such function, or has inlined it everywhere.
    pub fn function_arguments(&self, name: &str) -> Result<Vec<Argument>, BtfError> {
        let missing = || BtfError::Missing(format!("function {name}"));
        let function = self.function(name).and_then(|id| self.get(id));
        self.parameters(function.and_then(|function| self.get(function.size_or_type)), 0, missing)
    }

    fn parameters(
        &self,
        prototype: Option<Type>,
        first: usize,
        missing: impl Fn() -> BtfError,
    ) -> Result<Vec<Argument>, BtfError> {
        let prototype = prototype.filter(|found| found.kind == FUNC_PROTO).ok_or_else(&missing)?;
        (first..prototype.vlen)
            .map(|index| {
                let id = u32_at(&self.data, prototype.tail + index * 8 + 4).ok_or_else(&missing)?;
                Ok(self.pointed_structure(id).map_or(Argument::Value, |name| Argument::Pointer(name.to_owned())))
            })
            .collect()
    }

    fn pointed_structure(&self, id: TypeId) -> Option<&str> {
        let pointer = self.get(self.resolve(id)?)?;
        if pointer.kind == POINTER { self.structure_name(pointer.size_or_type) } else { None }
    }

    fn structure(&self, name: &str) -> Option<TypeId> {
        self.find(name, STRUCT)
    }

    fn find(&self, name: &str, kind: u8) -> Option<TypeId> {
        let mut id = self.first[hash(name.as_bytes())];
        while id != 0 {
            let found = self.get(id)?;
            if found.kind == kind && self.bytes(found.name) == Some(name.as_bytes()) {
                return Some(id);
            }
            id = *self.next.get(id as usize)?;
        }
        None
    }

    /// Where `name` stands among the strings, each of which is there once.
    fn string(&self, name: &str) -> Option<u32> {
        let mut at = 0_usize;
        for text in self.data.get(self.strings.0..self.strings.1)?.split(|&byte| byte == 0) {
            if text == name.as_bytes() {
                return u32::try_from(at).ok();
            }
            at += text.len() + 1;
        }
        None
    }

    fn text(&self, at: u32) -> Option<&str> {
        std::str::from_utf8(self.bytes(at)?).ok()
    }

    fn bytes(&self, at: u32) -> Option<&[u8]> {
        let strings = self.data.get(self.strings.0..self.strings.1)?;
        let text = strings.get(at as usize..)?;
        let end = text.iter().position(|&byte| byte == 0)?;
        Some(&text[..end])
    }

    fn member_of(&self, id: TypeId, name: &str, depth: usize) -> Option<Member> {
        let outer = self.get(self.resolve(id)?)?;
        if !matches!(outer.kind, STRUCT | UNION) || depth > MAX_STEPS {
            return None;
        }
        for index in 0..outer.vlen {
            let at = outer.tail + index * 12;
            let (text, type_id, bits) =
                (u32_at(&self.data, at)?, u32_at(&self.data, at + 4)?, u32_at(&self.data, at + 8)?);
            // With the flag the upper byte is the width of a bit field; 0 means that the member is none.
            let (width, bits) = if outer.flag { (bits >> 24, bits & 0x00ff_ffff) } else { (0, bits) };
            let text = self.text(text)?;
            if text.is_empty() {
                if let Some(inner) = self.member_of(type_id, name, depth + 1) {
                    return Some(Member { offset: (bits / 8).checked_add(inner.offset)?, type_id: inner.type_id });
                }
            } else if text == name {
                return (width == 0 && bits % 8 == 0).then_some(Member { offset: bits / 8, type_id });
            }
        }
        None
    }

    /// The type itself, without what only qualifies it.
    fn resolve(&self, id: TypeId) -> Option<TypeId> {
        let mut id = id;
        for _ in 0..MAX_STEPS {
            let found = self.get(id)?;
            if !matches!(found.kind, TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG) {
                return Some(id);
            }
            id = found.size_or_type;
        }
        None
    }

    fn get(&self, id: TypeId) -> Option<Type> {
        if id == 0 {
            return None;
        }
        self.type_at(*self.types.get(id as usize)? as usize)
    }

    fn type_at(&self, at: usize) -> Option<Type> {
        let info = u32_at(&self.data, at + 4)?;
        Some(Type {
            name: u32_at(&self.data, at)?,
            kind: u8::try_from(info >> 24 & 0x1f).ok()?,
            vlen: (info & 0xffff) as usize,
            flag: info >> 31 == 1,
            size_or_type: u32_at(&self.data, at + 8)?,
            tail: at + 12,
        })
    }
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Extracts of real kernels (tests/fixtures/extract-btf.py).
    const KERNELS: [(&str, &[u8]); 5] = [
        ("5.10", include_bytes!("../../tests/fixtures/btf/5.10.btf")),
        ("6.1", include_bytes!("../../tests/fixtures/btf/6.1.btf")),
        ("6.12", include_bytes!("../../tests/fixtures/btf/6.12.btf")),
        ("6.18", include_bytes!("../../tests/fixtures/btf/6.18.btf")),
        ("7.2", include_bytes!("../../tests/fixtures/btf/7.2.btf")),
    ];

    fn kernel(name: &str) -> Btf {
        let found = KERNELS.iter().find(|(kernel, _)| *kernel == name).expect("a fixture");
        Btf::parse(found.1.to_vec()).expect("a kernel's BTF")
    }

    fn offset(kernel: &Btf, name: &str, path: &str) -> Option<u32> {
        kernel.member(name, path).ok().map(|member| member.offset)
    }

    /// What `bpftool btf dump` says of 5.10, 6.1, 6.12, 6.18 and 7.2, for members that did move.
    #[test]
    fn members_are_where_bpftool_sees_them() {
        let table: [(&str, &str, [Option<u32>; 5]); 11] = [
            ("task_struct", "tgid", [Some(2236), Some(2420), Some(2436), Some(1268), Some(2812)]),
            ("task_struct", "comm", [Some(2736), Some(2976), Some(2976), Some(1752), Some(3344)]),
            ("task_struct", "cgroups", [Some(3328), Some(3600), Some(3584), Some(2376), Some(4000)]),
            ("task_struct", "__state", [None, Some(24), Some(24), Some(24), Some(24)]),
            ("signal_struct", "oom_score_adj", [Some(1010), Some(1026), Some(1018), Some(1058), Some(1074)]),
            // In a structure without a name.
            ("mm_struct", "total_vm", [Some(192), Some(184), Some(248), Some(360), Some(600)]),
            ("mm_struct", "rss_stat", [Some(712), Some(720), Some(816), Some(960), Some(1200)]),
            ("kernfs_node", "parent", [Some(8), Some(8), Some(8), None, None]),
            ("kernfs_node", "__parent", [None, None, None, Some(8), Some(8)]),
            ("request", "__data_len", [Some(40), Some(44), Some(44), Some(44), Some(44)]),
            ("block_device", "bd_dev", [Some(0), Some(36), Some(52), Some(52), Some(52)]),
        ];
        let kernels = KERNELS.map(|(name, _)| kernel(name));
        for (name, path, expected) in table {
            assert_eq!(kernels.each_ref().map(|kernel| offset(kernel, name, path)), expected, "{name}.{path}");
        }
    }

    #[test]
    fn arguments_of_a_tracepoint_are_told() {
        let task = Argument::Pointer("task_struct".into());
        assert_eq!(kernel("5.10").arguments("mark_victim"), Ok(vec![Argument::Value]));
        assert_eq!(kernel("6.18").arguments("mark_victim"), Ok(vec![task.clone(), Argument::Value]));
        assert_eq!(kernel("6.12").arguments("sched_process_exit"), Ok(vec![task.clone()]));
        assert_eq!(kernel("6.18").arguments("sched_process_exit"), Ok(vec![task, Argument::Value]));
        assert_eq!(
            kernel("6.1").arguments("block_io_start"),
            Err(BtfError::Missing("tracepoint block_io_start".into()))
        );
        assert_eq!(kernel("6.18").arguments("sys_enter").map(|found| found.len()), Ok(2));
    }

    #[test]
    fn sizes_and_enumerators() {
        let kernel = kernel("6.18");
        let size = |name: &str, path: &str| kernel.member(name, path).ok().and_then(|m| kernel.size(m.type_id));
        assert_eq!(size("task_struct", "comm"), Some(16));
        assert_eq!(size("task_struct", "mm"), Some(8));
        assert_eq!(size("signal_struct", "oom_score_adj"), Some(2));
        assert_eq!(size("cred", "uid"), Some(4), "a structure that holds one number");
        assert_eq!(kernel.enumerator("MM_ANONPAGES"), Some(1));
        assert_eq!(kernel.enumerator("MM_NOSUCH"), None);
        // A bit field has no offset in bytes.
        assert!(kernel.member("task_struct", "in_execve").is_err());
        assert!(kernel.member("task_struct", "no_such_member").is_err());
        assert!(kernel.member("no_such_struct", "x").is_err());
    }

    #[test]
    fn what_is_no_btf_is_an_error() {
        for data in [&b""[..], b"\x9f\xeb", b"\x9f\xeb\x02\x00\x18\x00\x00\x00", &[0; 64]] {
            assert!(matches!(Btf::parse(data.to_vec()), Err(BtfError::Malformed(_))), "{data:?}");
        }
    }

    /// Everything that probes ask, of a file that may be anything: an answer or an error, never a panic.
    fn ask(data: Vec<u8>) {
        let Ok(btf) = Btf::parse(data) else { return };
        for (name, path) in [("task_struct", "tgid"), ("mm_struct", "rss_stat.count"), ("css_set", "subsys")] {
            if let Ok(member) = btf.member(name, path) {
                let _ = (btf.size(member.type_id), btf.element(member.type_id), btf.structure_name(member.type_id));
            }
        }
        let _ = btf.arguments("mark_victim");
        let _ = btf.enumerator("memory_cgrp_id");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_truncated_file_is_no_panic(keep in 0..30_000_usize) {
            let whole = KERNELS[3].1;
            ask(whole[..keep.min(whole.len())].to_vec());
        }

        #[test]
        fn flipped_bits_are_no_panic(flips in prop::collection::vec((0..30_000_usize, 0..8_u32), 1..40)) {
            let mut data = KERNELS[3].1.to_vec();
            for (at, bit) in flips {
                let at = at % data.len();
                data[at] ^= 1 << bit;
            }
            ask(data);
        }
    }
}
