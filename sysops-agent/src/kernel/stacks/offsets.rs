//! Finds in BTF what the programs need to know to tell where a user program stands when it is in the kernel. The size of
//! kernel stacks is in no type: the program tries those that there are.

use sysops_btf::Btf;
use sysops_common::stack::{CANDIDATES, StackOffsets};

use crate::kernel::ladder::Refusal;
use crate::kernel::layout::{self, contradiction};

/// Sizes that a kernel stack has (THREAD_SIZE), smallest first: the registers at the end of a smaller one lie in the middle of a
/// larger one, where by chance alone they would look like those of a user program.
#[cfg(target_arch = "x86_64")]
const STACK_SIZES: [u32; 2] = [16 << 10, 32 << 10];
#[cfg(not(target_arch = "x86_64"))]
const STACK_SIZES: [u32; 3] = [16 << 10, 32 << 10, 64 << 10];
/// TOP_OF_KERNEL_STACK_PADDING: kernels with CONFIG_X86_FRED leave 16 bytes.
#[cfg(target_arch = "x86_64")]
const PADDINGS: [u32; 2] = [0, 16];
#[cfg(not(target_arch = "x86_64"))]
const PADDINGS: [u32; 1] = [0];

/// What the programs must know of the running kernel.
///
/// # Errors
/// Names the first member that is missing or not as expected.
pub(in crate::kernel) fn offsets(btf: &Btf) -> Result<StackOffsets, Refusal> {
    let registers = "pt_regs";
    let mut found = StackOffsets {
        stack: layout::offset(btf, "task_struct", "stack", 8)?,
        mm: layout::offset(btf, "task_struct", "mm", 8)?,
        start_stack: layout::offset(btf, "mm_struct", "start_stack", 8)?,
        group_leader: layout::offset(btf, "task_struct", "group_leader", 8)?,
        start_boottime: layout::offset_if_any(btf, "task_struct", "start_boottime", 8)?,
        sp: layout::offset(btf, registers, "sp", 8)?,
        ..StackOffsets::ABSENT
    };
    machine(btf, registers, &mut found)?;
    let structure = btf.structure_size(registers).ok_or_else(|| contradiction("BTF: no struct pt_regs".into()))?;
    let places = STACK_SIZES.iter().flat_map(|size| PADDINGS.iter().map(move |padding| size - padding));
    for (place, end) in found.registers.iter_mut().zip(places.take(CANDIDATES)) {
        *place = end
            .checked_sub(structure)
            .ok_or_else(|| contradiction(format!("BTF: pt_regs: {structure} bytes are too many")))?;
    }
    Ok(found)
}

#[cfg(target_arch = "x86_64")]
fn machine(btf: &Btf, registers: &str, found: &mut StackOffsets) -> Result<(), Refusal> {
    found.ip = layout::offset(btf, registers, "ip", 8)?;
    found.bp = layout::offset(btf, registers, "bp", 8)?;
    // Two bytes since it shares its place with flags of FRED.
    let mode = btf.member(registers, "cs").map_err(|error| contradiction(error.to_string()))?;
    found.mode = layout::at(registers, "cs", mode.offset)?;
    // __USER_CS (arch/x86/include/asm/segment.h); 32-bit programs have 0x23.
    (found.mode_mask, found.mode_value) = (0xffff, 0x33);
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn machine(btf: &Btf, registers: &str, found: &mut StackOffsets) -> Result<(), Refusal> {
    found.ip = layout::offset(btf, registers, "pc", 8)?;
    found.bp = layout::element(btf, registers, "regs", 29, 8)?;
    found.lr = layout::element(btf, registers, "regs", 30, 8)?;
    found.mode = layout::offset(btf, registers, "pstate", 8)?;
    // PSR_MODE32_BIT and PSR_MODE_EL0t (arch/arm64/include/uapi/asm/ptrace.h).
    (found.mode_mask, found.mode_value) = (0x1f, 0);
    // VA_BITS of nearly every kernel; with 52 only programs that ask for it get addresses beyond.
    found.address_bits = 48;
    Ok(())
}

#[cfg(test)]
mod tests {
    use sysops_common::offset::Offset;

    use super::*;
    use crate::kernel::btf_builder::Builder;

    /// The members as on `x86_64`, with `cs` of this size.
    fn kernel(cs: u32) -> Btf {
        let mut types = Builder::new();
        let (word, code) = (types.int(8), types.int(cs));
        types.structure("pt_regs", &[("bp", word, 32), ("ip", word, 128), ("cs", code, 136), ("sp", word, 152)]);
        let task =
            [("stack", word, 32), ("mm", word, 1200), ("group_leader", word, 1320), ("start_boottime", word, 1560)];
        types.structure("task_struct", &task);
        types.structure("mm_struct", &[("start_stack", word, 416)]);
        types.build()
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn registers_are_where_the_types_say() {
        for cs in [2, 8] {
            let found = offsets(&kernel(cs)).expect("all there");
            let at = |offset: Offset| offset.bytes();
            assert_eq!((at(found.ip), at(found.sp), at(found.bp)), (Some(128), Some(152), Some(32)));
            assert_eq!((at(found.mode), at(found.lr)), (Some(136), None));
            let size = kernel(cs).structure_size("pt_regs").expect("it is there");
            assert_eq!(found.registers, [16_384, 16_368, 32_768, 32_752].map(|end| end - size));
        }
    }

    #[test]
    fn a_kernel_without_them_is_refused_by_name() {
        let refused = offsets(&Builder::new().build()).expect_err("nothing is there");
        assert!(refused.reason.contains("task_struct"), "{refused:?}");
    }
}
