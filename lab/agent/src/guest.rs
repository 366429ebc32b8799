//! Guests of a few instructions, made by hand through `/dev/mshv`: for what no guest's kernel shows of the hypervisor.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use mshv_bindings::{
    MSHV_GPAP_ACCESS_OP_CLEAR, MSHV_PT_BIT_LAPIC, MSHV_SET_MEM_BIT_EXECUTABLE, MSHV_SET_MEM_BIT_WRITABLE,
    hv_message_type_HVMSG_UNRECOVERABLE_EXCEPTION, hv_message_type_HVMSG_X64_IO_PORT_INTERCEPT,
    hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_CLOCK_FREQUENCY as PROCESSOR_CLOCK_FREQUENCY,
    hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_FEATURES0 as PROCESSOR_FEATURES0,
    hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_VENDOR as PROCESSOR_VENDOR,
    mshv_create_partition_v2, mshv_user_mem_region,
};
use mshv_ioctls::{Mshv, VcpuFd, VmFd};
use vm_memory::{MmapRegion, VolatileMemory};

const PAGE: u64 = 4096;
const SIZE: usize = 8 << 20;
const WORD: usize = 64;
/// MOV BYTE [EBX], 1; OUT 0x80, AL; in 16-bit code.
const WRITE: (u64, &[u8]) = (0x1000, &[0x67, 0xc6, 0x03, 0x01, 0xe6, 0x80]);
/// MOV AL, [EBX]; OUT 0x80, AL.
const READ: (u64, &[u8]) = (0x1100, &[0x67, 0x8a, 0x03, 0xe6, 0x80]);

/// A partition with 8 MiB and one virtual processor in real mode, whose data segment reaches over all of it.
struct Guest {
    vcpu: VcpuFd,
    vm: VmFd,
    _memory: MmapRegion,
}

impl Guest {
    fn new() -> Result<Self> {
        let memory = MmapRegion::new(SIZE)?;
        for (place, code) in [WRITE, READ] {
            memory.get_slice(place as usize, code.len())?.copy_from(code);
        }
        let arguments = mshv_create_partition_v2 { pt_flags: 1 << MSHV_PT_BIT_LAPIC, ..Default::default() };
        let vm = Mshv::new().context("/dev/mshv cannot be opened.")?.create_vm_with_args(&arguments)?;
        vm.initialize()?;
        vm.enable_dirty_page_tracking().context("Page tracking cannot be switched on.")?;
        vm.map_user_memory(mshv_user_mem_region {
            size: SIZE as u64,
            userspace_addr: memory.as_ptr() as u64,
            flags: 1 << MSHV_SET_MEM_BIT_WRITABLE | 1 << MSHV_SET_MEM_BIT_EXECUTABLE,
            ..Default::default()
        })?;
        let vcpu = vm.create_vcpu(0)?;
        let mut registers = vcpu.get_sregs()?;
        (registers.cs.base, registers.cs.selector) = (0, 0);
        (registers.ds.limit, registers.ds.g) = (u32::MAX, 1);
        vcpu.set_sregs(&registers)?;
        Ok(Self { vcpu, vm, _memory: memory })
    }

    /// Runs `code` with EBX at the beginning of `page`, to its port access.
    fn touch(&self, code: (u64, &[u8]), page: u64) -> Result<()> {
        let mut registers = self.vcpu.get_regs()?;
        (registers.rip, registers.rbx) = (code.0, page * PAGE);
        self.vcpu.set_regs(&registers)?;
        let kind = self.run()?;
        ensure!(
            kind == hv_message_type_HVMSG_X64_IO_PORT_INTERCEPT,
            "The guest ended with message {kind:#x}."
        );
        Ok(())
    }

    fn run(&self) -> Result<u32> {
        Ok(self.vcpu.run()?.header.message_type)
    }

    /// The pages that were written to since this was asked last. (Linux 7.2 has no way to ask and leave the state as it is: the
    /// operation that shall do nothing sets it.)
    fn take_dirty(&self) -> Result<Vec<u64>> {
        let words = self.vm.get_dirty_log(0, SIZE, MSHV_GPAP_ACCESS_OP_CLEAR as u8)?;
        let is_set = |page: &u64| words[*page as usize / WORD] >> (page % WORD as u64) & 1 != 0;
        Ok((0..SIZE as u64 / PAGE).filter(is_set).collect())
    }
}

/// Has a guest write to some pages and read others, and compares what it did with what the hypervisor noted.
///
/// # Errors
/// When it noted something else.
pub fn dirty_pages() -> Result<()> {
    const TOUCHED: [u64; 6] = [5, 6, 511, 512, 1000, 2047];
    let guest = Guest::new()?;
    TOUCHED.into_iter().try_for_each(|page| guest.touch(WRITE, page))?;
    // By now the driver has given the guest all of these pages.
    guest.take_dirty()?;
    let expect = |expected: &[u64]| {
        let found = guest.take_dirty()?;
        ensure!(
            found == expected,
            "{} pages count as written to, from {:?} on, and {expected:?} were.",
            found.len(),
            found.get(..found.len().min(8))
        );
        Ok(())
    };
    expect(&[])?;
    TOUCHED.into_iter().try_for_each(|page| guest.touch(READ, page))?;
    expect(&[])?;
    for written in [&[6, 512, 2047][..], &[5], &[6, 511]] {
        // The second time, in pages that have been noted.
        for _ in 0..2 {
            written.iter().try_for_each(|page| guest.touch(WRITE, *page))?;
        }
        expect(written)?;
        expect(&[])?;
    }
    println!("what was written to was noted, and nothing else");
    Ok(())
}

/// Gives a guest a code segment that no processor runs from. It has to end, and nothing else.
///
/// # Errors
/// When it runs, or ends in another way.
pub fn impossible_state() -> Result<()> {
    let guest = Guest::new()?;
    let mut registers = guest.vcpu.get_sregs()?;
    // Protected mode, with data (read-only) in CS.
    (registers.cr0, registers.cs.type_) = (registers.cr0 | 1, 0);
    guest.vcpu.set_sregs(&registers)?;
    match guest.run()? {
        kind if kind == hv_message_type_HVMSG_UNRECOVERABLE_EXCEPTION => println!("the guest was ended"),
        other => bail!("A guest in an impossible state ended with message {other:#x}."),
    }
    Ok(())
}

/// What the hypervisor says of the processor, compared with what the processor said to the kernel.
///
/// # Errors
/// When they differ.
pub fn processor_facts() -> Result<()> {
    /// Bits of the first bank of features, and their names in Linux.
    const FEATURES: [(u32, &str); 8] = [
        (0, "pni"),
        (2, "ssse3"),
        (3, "sse4_1"),
        (4, "sse4_2"),
        (5, "sse4a"),
        (7, "popcnt"),
        (8, "cx16"),
        (16, "aes"),
    ];
    let information = fs::read_to_string("/proc/cpuinfo")?;
    let fact = |name: &str| {
        let line =
            information.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| Some(line.split_once(':')?.1.trim())).with_context(|| format!("No {name}."))
    };
    let vm = Guest::new()?.vm;
    let vendor = vm.get_partition_property(PROCESSOR_VENDOR)?;
    let expected = match fact("vendor_id")? {
        "AuthenticAMD" => 0,
        "GenuineIntel" => 1,
        other => bail!("The processor is of {other}."),
    };
    ensure!(vendor == expected, "The vendor is {vendor}, not {expected}.");
    let features = vm.get_partition_property(PROCESSOR_FEATURES0)?;
    for (bit, name) in FEATURES {
        let there = fact("flags")?.split_whitespace().any(|flag| flag == name);
        ensure!((features >> bit & 1 != 0) == there, "Features {features:#x} are wrong about {name}.");
    }
    let frequency = vm.get_partition_property(PROCESSOR_CLOCK_FREQUENCY)? as f64 / 1e6;
    let megahertz: f64 = fact("cpu MHz")?.parse()?;
    ensure!(
        (frequency / megahertz - 1.0).abs() < 0.01,
        "The clock has {frequency} MHz, and Linux finds {megahertz}."
    );
    println!("vendor {vendor}, features {features:#x}, {frequency:.0} MHz");
    Ok(())
}
