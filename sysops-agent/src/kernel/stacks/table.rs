//! Makes rules from the unwind tables of a file: for an address the one row of `.eh_frame` that is for it, as the
//! programs in the kernel can follow it. Following it is left to `walk` and to the kernel side.

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EhFrameHdr, Encoding, EndianSlice, EvaluationResult, Expression,
    FrameDescriptionEntry, LittleEndian, Location, ParsedEhFrameHdr, RegisterRule, UnwindContext, UnwindSection, Value,
};
use sysops_common::stack::{Rule, way};

use super::elf::{Elf, Section};

type Bytes<'a> = EndianSlice<'a, LittleEndian>;
type Entry<'a> = FrameDescriptionEntry<Bytes<'a>>;
/// Memory that is used again for every row.
pub(super) type Context = UnwindContext<usize>;

#[cfg(not(target_arch = "aarch64"))]
mod register {
    use gimli::Register;
    pub(super) const BP: Register = Register(6);
    pub(super) const SP: Register = Register(7);
    pub(super) const RA: Register = Register(16);
    /// A return address is in memory from the first instruction of a function on.
    pub(super) const HAS_LINK: bool = false;
}
#[cfg(target_arch = "aarch64")]
mod register {
    use gimli::Register;
    pub(super) const BP: Register = Register(29);
    pub(super) const SP: Register = Register(31);
    pub(super) const RA: Register = Register(30);
    /// A function that calls none keeps its return address in a register.
    pub(super) const HAS_LINK: bool = true;
}

/// Bytes that the entry of one function may have. Those of the largest functions have some ten thousand.
const ENTRY_BYTES_MAX: usize = 1 << 20;
/// Steps that an expression may take; those that compilers write take up to ten.
const EXPRESSION_STEPS_MAX: u32 = 64;
/// Entries that a file without an index may have.
const ENTRIES_MAX: usize = 1 << 20;

/// The unwind tables of a file.
pub(super) struct Table {
    frames: Section,
    index: Option<Section>,
    bases: BaseAddresses,
    /// Where there is no index: addresses of functions with the places of their entries, sorted.
    entries: Vec<(u64, usize)>,
}

/// What the tables say of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// This is the way to the caller.
    Rule(Rule),
    /// No entry is for that address.
    Nothing,
    /// What they say cannot be followed: it needs registers that are not kept, or makes no sense.
    TooMuch,
}

/// Code without tables but with frame pointers.
pub(super) const FRAME_POINTER: Rule = Rule { ways: way::SP_FROM_BP, sp: 16, ra: -8, bp: -16 };
/// The outermost frame.
pub(super) const LAST: Rule = Rule { ways: way::LAST, sp: 0, ra: 0, bp: 0 };
/// No code.
pub(super) const NOWHERE: Rule = Rule { ways: way::NOWHERE, sp: 0, ra: 0, bp: 0 };

impl Table {
    /// Takes the tables out of `elf`; `None` when it has none.
    #[must_use]
    pub(super) fn new(elf: &mut Elf) -> Option<Self> {
        let frames = elf.frames.take()?;
        let bases = BaseAddresses::default().set_eh_frame(frames.address).set_text(elf.text);
        let mut table = Self { frames, index: None, bases, entries: Vec::new() };
        if let Some(index) = elf.index.take() {
            table.bases = table.bases.set_eh_frame_hdr(index.address);
            let usable = parsed(&index, &table.bases).is_some_and(|header| header.table().is_some());
            table.index = usable.then_some(index);
        }
        if table.index.is_none() {
            table.entries = table.list();
        }
        Some(table)
    }

    /// Bytes that are held.
    #[must_use]
    pub(super) fn bytes(&self) -> usize {
        let index = self.index.as_ref().map_or(0, |index| index.data.len());
        self.frames.data.len() + index + self.entries.len() * size_of::<(u64, usize)>()
    }

    /// What the tables say of `address`.
    #[must_use]
    pub(super) fn say(&self, address: u64, context: &mut Context) -> Said {
        let frames = self.section();
        let Some(entry) = self.entry(&frames, address) else { return Said::Nothing };
        if entry.entry_len() > ENTRY_BYTES_MAX {
            return Said::TooMuch;
        }
        let Ok(row) = entry.unwind_info_for_address(&frames, &self.bases, context, address) else {
            return Said::TooMuch;
        };
        let reader = Reader { frames: &frames, encoding: entry.cie().encoding(), address };
        let rule = reader.rule(row.cfa(), row.register(register::RA), row.register(register::BP));
        let signal = if entry.is_signal_trampoline() { way::SIGNAL } else { 0 };
        rule.map_or(Said::TooMuch, |rule| Said::Rule(Rule { ways: rule.ways | signal, ..rule }))
    }

    fn section(&self) -> EhFrame<Bytes<'_>> {
        let mut frames = EhFrame::new(&self.frames.data, LittleEndian);
        frames.set_address_size(8);
        if cfg!(target_arch = "aarch64") {
            frames.set_vendor(gimli::Vendor::AArch64);
        }
        frames
    }

    fn entry<'a>(&'a self, frames: &EhFrame<Bytes<'a>>, address: u64) -> Option<Entry<'a>> {
        let offset = match &self.index {
            Some(index) => {
                let header = parsed(index, &self.bases)?;
                let table = header.table()?;
                let pointer = table.lookup(address, &self.bases).ok()?.direct().ok()?;
                // What gimli offers for this subtracts without a look.
                usize::try_from(pointer.checked_sub(header.eh_frame_ptr().direct().ok()?)?).ok()?
            }
            None => {
                let after = self.entries.partition_point(|(start, _)| *start <= address);
                self.entries.get(after.checked_sub(1)?)?.1
            }
        };
        let entry = frames.fde_from_offset(&self.bases, offset.into(), EhFrame::cie_from_offset).ok()?;
        entry.contains(address).then_some(entry)
    }

    fn list(&self) -> Vec<(u64, usize)> {
        let frames = self.section();
        let mut found = Vec::new();
        let mut entries = frames.entries(&self.bases);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(partial) = entry else { continue };
            if let Ok(entry) = partial.parse(EhFrame::cie_from_offset) {
                found.push((entry.initial_address(), entry.offset()));
            }
            if found.len() == ENTRIES_MAX {
                break;
            }
        }
        found.sort_unstable();
        found
    }
}

fn parsed<'a>(index: &'a Section, bases: &BaseAddresses) -> Option<ParsedEhFrameHdr<Bytes<'a>>> {
    EhFrameHdr::new(&index.data, LittleEndian).parse(bases, 8).ok()
}

/// From what an address is reckoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    StackPointer,
    FramePointer,
    /// The caller's stack pointer.
    Caller,
}

/// What an expression comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worth {
    /// An address.
    Address(From, i32),
    /// What is in memory at an address.
    Memory(From, i32),
}

struct Reader<'a> {
    frames: &'a EhFrame<Bytes<'a>>,
    encoding: Encoding,
    address: u64,
}

impl Reader<'_> {
    fn rule(
        &self,
        cfa: &CfaRule<usize>,
        ra: Option<RegisterRule<usize>>,
        bp: Option<RegisterRule<usize>>,
    ) -> Option<Rule> {
        let mut rule = Rule::default();
        match self.cfa(cfa)? {
            Worth::Address(From::StackPointer, by) => rule.sp = by,
            Worth::Address(From::FramePointer, by) => (rule.ways, rule.sp) = (way::SP_FROM_BP, by),
            Worth::Memory(From::StackPointer, by) => (rule.ways, rule.sp) = (way::SP_IN_MEMORY, by),
            Worth::Memory(From::FramePointer, by) => {
                (rule.ways, rule.sp) = (way::SP_IN_MEMORY | way::SP_FROM_BP, by);
            }
            Worth::Address(From::Caller, _) | Worth::Memory(From::Caller, _) => return None,
        }
        match ra {
            Some(RegisterRule::Undefined) => return Some(LAST),
            None | Some(RegisterRule::SameValue) if register::HAS_LINK => rule.ways |= way::RA_IN_REGISTER,
            other => match self.place(&other?)? {
                (From::Caller, by) => rule.ra = by,
                (From::StackPointer, by) => (rule.ways, rule.ra) = (rule.ways | way::RA_FROM_SP, by),
                (From::FramePointer, _) => return None,
            },
        }
        match bp {
            None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => rule.ways |= way::BP_SAME,
            Some(other) => match self.place(&other)? {
                (From::Caller, by) => rule.bp = by,
                (From::StackPointer, by) => (rule.ways, rule.bp) = (rule.ways | way::BP_FROM_SP, by),
                (From::FramePointer, by) => (rule.ways, rule.bp) = (rule.ways | way::BP_FROM_BP, by),
            },
        }
        Some(rule)
    }

    fn cfa(&self, cfa: &CfaRule<usize>) -> Option<Worth> {
        match cfa {
            CfaRule::RegisterAndOffset { register, offset } => {
                let by = i32::try_from(*offset).ok()?;
                match *register {
                    register::SP => Some(Worth::Address(From::StackPointer, by)),
                    register::BP => Some(Worth::Address(From::FramePointer, by)),
                    _ => None,
                }
            }
            CfaRule::Expression(expression) => self.evaluate(expression.get(self.frames).ok()?, false),
        }
    }

    /// Where in memory a register was saved.
    fn place(&self, rule: &RegisterRule<usize>) -> Option<(From, i32)> {
        match rule {
            RegisterRule::Offset(by) => Some((From::Caller, i32::try_from(*by).ok()?)),
            RegisterRule::Expression(expression) => match self.evaluate(expression.get(self.frames).ok()?, true)? {
                Worth::Address(from, by) => Some((from, by)),
                Worth::Memory(..) => None,
            },
            _ => None,
        }
    }

    /// Evaluates an expression with values in place of the registers and of memory from which it can be seen where the result
    /// comes from: each has a range of its own.
    fn evaluate(&self, expression: Expression<Bytes<'_>>, from_caller: bool) -> Option<Worth> {
        const RANGES: [(From, u64); 3] =
            [(From::StackPointer, 1 << 44), (From::FramePointer, 1 << 45), (From::Caller, 1 << 46)];
        const MEMORY: u64 = 1 << 47;
        let of = |from: From| RANGES.iter().find(|(range, _)| *range == from).map_or(0, |(_, start)| *start);
        let origin = |value: u64| {
            RANGES.iter().find_map(|(from, start)| {
                let by = i64::try_from(value).ok()?.checked_sub(i64::try_from(*start).ok()?)?;
                Some((*from, i32::try_from(by).ok()?))
            })
        };
        let mut evaluation = expression.evaluation(self.encoding);
        evaluation.set_max_iterations(EXPRESSION_STEPS_MAX);
        if from_caller {
            evaluation.set_initial_value(of(From::Caller));
        }
        let mut read = None;
        let mut state = evaluation.evaluate().ok()?;
        loop {
            state = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresRegister { register, .. } => {
                    let value = match register {
                        register::SP => of(From::StackPointer),
                        register::BP => of(From::FramePointer),
                        // The address of the instruction: entries of the PLT ask where in it they are.
                        register::RA => self.address,
                        _ => return None,
                    };
                    evaluation.resume_with_register(Value::Generic(value)).ok()?
                }
                EvaluationResult::RequiresMemory { address, size: 8, .. } if read.is_none() => {
                    read = Some(origin(address)?);
                    evaluation.resume_with_memory(Value::Generic(MEMORY)).ok()?
                }
                _ => return None,
            };
        }
        let pieces = evaluation.result();
        let [piece] = pieces.as_slice() else { return None };
        match (piece.location, read) {
            (Location::Address { address: MEMORY }, Some((from, by))) => Some(Worth::Memory(from, by)),
            (Location::Address { address }, None) => origin(address).map(|(from, by)| Worth::Address(from, by)),
            _ => None,
        }
    }
}
