//! What a processor's VMX can do, out of its capability registers, and the control fields that follow from it
//! (Intel SDM volume 3D, appendix A). Pure arithmetic; who reads the registers is the caller's business.

use super::speculation::{ARCH_CAPABILITIES, Speculation};

/// The capability registers.
pub mod register {
    /// Basic information.
    pub const BASIC: u32 = 0x480;
    /// Bits of CR0 that must be 1; the next register: that may be 1.
    pub const CR0_FIXED0: u32 = 0x486;
    /// Bits of CR0 that may be 1.
    pub const CR0_FIXED1: u32 = 0x487;
    /// Bits of CR4 that must be 1.
    pub const CR4_FIXED0: u32 = 0x488;
    /// Bits of CR4 that may be 1.
    pub const CR4_FIXED1: u32 = 0x489;
    /// Settings of the secondary controls.
    pub const SECONDARY: u32 = 0x48b;
    /// EPT and VPID.
    pub const EPT_VPID: u32 = 0x48c;
    /// Settings of the pin-based controls, those called true.
    pub const TRUE_PIN: u32 = 0x48d;
    /// Settings of the primary controls.
    pub const TRUE_PRIMARY: u32 = 0x48e;
    /// Settings of the exit controls.
    pub const TRUE_EXIT: u32 = 0x48f;
    /// Settings of the entry controls.
    pub const TRUE_ENTRY: u32 = 0x490;
}

/// Pin-based controls.
pub mod pin {
    /// Physical interrupts exit.
    pub const INTERRUPTS: u32 = 1 << 0;
    /// NMIs exit.
    pub const NMIS: u32 = 1 << 3;
    /// A timer ends the run, if nothing else has.
    pub const PREEMPTION_TIMER: u32 = 1 << 6;
    /// The masking of NMIs is the guest's own.
    pub const VIRTUAL_NMIS: u32 = 1 << 5;
}

/// Primary processor-based controls.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod primary {
    pub const INTERRUPT_WINDOW: u32 = 1 << 2;
    pub const TSC_OFFSETTING: u32 = 1 << 3;
    pub const HLT: u32 = 1 << 7;
    pub const MWAIT: u32 = 1 << 10;
    pub const RDPMC: u32 = 1 << 11;
    pub const TPR_SHADOW: u32 = 1 << 21;
    pub const NMI_WINDOW: u32 = 1 << 22;
    pub const UNCONDITIONAL_IO: u32 = 1 << 24;
    pub const MSR_BITMAPS: u32 = 1 << 28;
    pub const MONITOR: u32 = 1 << 29;
    pub const SECONDARY: u32 = 1 << 31;
}

/// Secondary processor-based controls.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod secondary {
    pub const EPT: u32 = 1 << 1;
    pub const RDTSCP: u32 = 1 << 3;
    pub const VPID: u32 = 1 << 5;
    pub const WBINVD: u32 = 1 << 6;
    pub const UNRESTRICTED_GUEST: u32 = 1 << 7;
    pub const INVPCID: u32 = 1 << 12;
    pub const XSAVES: u32 = 1 << 20;
    pub const USER_WAIT: u32 = 1 << 26;
}

/// Exit controls: debug controls saved, 64-bit host, PAT and EFER saved and loaded.
const EXIT: u32 = 1 << 2 | 1 << 9 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 21;
/// Entry controls: debug controls, PAT and EFER loaded.
const ENTRY: u32 = 1 << 2 | 1 << 14 | 1 << 15;
/// Entry control: the guest is in IA-32e mode.
pub const ENTRY_LONG_MODE: u32 = 1 << 9;

/// The control fields of a kind of partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Controls {
    pub pin: u32,
    pub primary: u32,
    pub secondary: u32,
    pub exit: u32,
    pub entry: u32,
}

/// What a processor's VMX can do, as far as Parterre uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What stands at the beginning of each structure.
    pub revision: u32,
    /// Controls of the parent.
    pub parent: Controls,
    /// Controls of children.
    pub child: Controls,
    /// Bits that CR0 must have, and may have.
    pub cr0: (u64, u64),
    /// Bits that CR4 must have, and may have.
    pub cr4: (u64, u64),
    /// EPT maps pages of 1 GiB.
    pub gigabyte_pages: bool,
    /// EPT keeps accessed and dirty bits.
    pub accessed_dirty: bool,
    /// INVEPT can be told which tables.
    pub invept_single: bool,
    /// What has to be done between partitions.
    pub speculation: Speculation,
}

/// What is missing, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing(pub &'static str);

impl Capabilities {
    /// Reads the capability registers by `read`, which is asked for those only that the earlier ones, or CPUID leaf 7 in
    /// `structured`, say exist.
    ///
    /// # Errors
    /// The first thing that Parterre cannot do without.
    pub fn read(read: impl Fn(u32) -> u64, structured: [u32; 4]) -> Result<Self, Missing> {
        let basic = read(register::BASIC);
        let need = |there: bool, what| there.then_some(()).ok_or(Missing(what));
        need(basic >> 55 & 1 != 0, "the true forms of its control registers")?;
        let primary = read(register::TRUE_PRIMARY);
        need(primary >> 63 & 1 != 0, "secondary controls")?;
        let secondary = read(register::SECONDARY);
        need(secondary >> 33 & 1 != 0, "EPT (extended page tables)")?;
        need(secondary >> 39 & 1 != 0, "unrestricted guest mode")?;
        let ept = read(register::EPT_VPID);
        need(
            ept & EPT_NEEDED == EPT_NEEDED,
            "EPT with four levels, write-back memory, 2 MiB pages and INVEPT",
        )?;
        need(ept & (EPT_SINGLE | EPT_ALL) != 0, "a form of INVEPT")?;
        let [pin, exit, entry] = [register::TRUE_PIN, register::TRUE_EXIT, register::TRUE_ENTRY].map(&read);
        Ok(Self {
            revision: basic as u32 & 0x7fff_ffff,
            parent: PARENT.adjust(pin, primary, secondary, exit, entry)?,
            child: CHILD.adjust(pin, primary, secondary, exit, entry)?,
            cr0: (read(register::CR0_FIXED0), read(register::CR0_FIXED1)),
            cr4: (read(register::CR4_FIXED0), read(register::CR4_FIXED1)),
            gigabyte_pages: ept >> 17 & 1 != 0,
            accessed_dirty: ept >> 21 & 1 != 0,
            invept_single: ept & EPT_SINGLE != 0,
            speculation: Speculation::new(structured, || read(ARCH_CAPABILITIES)),
        })
    }

    /// The pointer to the tables whose root is frame `root`.
    pub fn ept_pointer(&self, root: u64) -> u64 {
        const WRITE_BACK: u64 = 6;
        const FOUR_LEVELS: u64 = 3 << 3;
        root << 12 | WRITE_BACK | FOUR_LEVELS | u64::from(self.accessed_dirty) << 6
    }

    /// What CR0 holds while the guest sees `visible`. Caching stays on, and the rest is what VMX demands; protection and
    /// paging are the guest's own in an unrestricted guest.
    pub fn real_cr0(&self, visible: u64) -> u64 {
        const ALWAYS: u64 = 1 << 4 | 1 << 5;
        let demanded = self.cr0.0 & !(CR0_PE | CR0_PG);
        (visible & !(CR0_NW | CR0_CD) | ALWAYS | demanded) & self.cr0.1
    }

    /// What CR4 holds while the guest sees `visible`.
    pub fn real_cr4(&self, visible: u64) -> u64 {
        (visible | self.cr4.0) & self.cr4.1
    }
}

/// Four levels, write-back tables, 2 MiB pages, INVEPT.
const EPT_NEEDED: u64 = 1 << 6 | 1 << 14 | 1 << 16 | 1 << 20;
const EPT_SINGLE: u64 = 1 << 25;
const EPT_ALL: u64 = 1 << 26;
/// CR0 bits.
pub const CR0_PE: u64 = 1 << 0;
/// CR0: FPU errors as exceptions, always in VMX operation.
pub const CR0_NE: u64 = 1 << 5;
/// CR0: not write-through.
pub const CR0_NW: u64 = 1 << 29;
/// CR0: cache disable.
pub const CR0_CD: u64 = 1 << 30;
/// CR0: paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR4: VMX operation.
pub const CR4_VMXE: u64 = 1 << 13;
/// CR4: SMX operation.
pub const CR4_SMXE: u64 = 1 << 14;

/// What is wanted of the controls of a kind of partition: what must be, and what is taken if it is there.
struct Wanted {
    pin: u32,
    pin_optional: u32,
    primary: u32,
    secondary: u32,
    secondary_optional: u32,
}

/// What both kinds of partition need.
const COMMON: Wanted = Wanted {
    pin: pin::NMIS | pin::VIRTUAL_NMIS,
    pin_optional: 0,
    primary: primary::MSR_BITMAPS | primary::SECONDARY,
    secondary: secondary::EPT | secondary::UNRESTRICTED_GUEST,
    secondary_optional: secondary::VPID | secondary::RDTSCP | secondary::INVPCID,
};

/// The parent has its devices and their interrupts to itself.
const PARENT: Wanted = Wanted {
    secondary_optional: COMMON.secondary_optional | secondary::XSAVES | secondary::USER_WAIT,
    ..COMMON
};

/// Children have no physical devices and do not own the processor.
const CHILD: Wanted = Wanted {
    pin: COMMON.pin | pin::INTERRUPTS,
    pin_optional: pin::PREEMPTION_TIMER,
    primary: COMMON.primary
        | primary::TSC_OFFSETTING
        | primary::HLT
        | primary::MWAIT
        | primary::MONITOR
        | primary::RDPMC
        | primary::TPR_SHADOW
        | primary::UNCONDITIONAL_IO,
    secondary: COMMON.secondary | secondary::WBINVD,
    ..COMMON
};

impl Wanted {
    fn adjust(
        &self,
        pin: u64,
        primary: u64,
        secondary: u64,
        exit: u64,
        entry: u64,
    ) -> Result<Controls, Missing> {
        Ok(Controls {
            pin: adjust(self.pin, self.pin_optional, pin, "virtual NMIs")?,
            primary: adjust(self.primary, 0, primary, "a primary control that Parterre needs")?,
            secondary: adjust(
                self.secondary,
                self.secondary_optional,
                secondary,
                "a secondary control that Parterre needs",
            )?,
            exit: adjust(EXIT, 0, exit, "switching of PAT and EFER at exits")?,
            entry: adjust(ENTRY, 0, entry, "switching of PAT and EFER at entries")?,
        })
    }
}

/// A control field with all of `required` and what can be had of `optional`. `allowed` is the capability register: its
/// low half has the bits that must be 1, its high half those that may be.
fn adjust(required: u32, optional: u32, allowed: u64, what: &'static str) -> Result<u32, Missing> {
    let (must, may) = (allowed as u32, (allowed >> 32) as u32);
    if required & !may != 0 {
        return Err(Missing(what));
    }
    Ok((required | optional) & may | must)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::collections::HashMap;

    /// The capability registers of a Haswell, more or less.
    pub fn haswell() -> HashMap<u32, u64> {
        HashMap::from([
            (register::BASIC, 1 << 55 | 6 << 50 | 1024 << 32 | 0x12),
            (register::TRUE_PIN, 0x0000_007f_0000_0016),
            (register::TRUE_PRIMARY, 0xfff9_fffe_0400_6172),
            (register::TRUE_EXIT, 0x007f_ffff_0003_6dfb),
            (register::TRUE_ENTRY, 0x0000_ffff_0000_11fb),
            (register::SECONDARY, 0x0000_7cff_0000_0000),
            (register::EPT_VPID, 0x0f01_0633_4141),
            (register::CR0_FIXED0, 0x8000_0021),
            (register::CR0_FIXED1, 0xffff_ffff),
            (register::CR4_FIXED0, 0x2000),
            (register::CR4_FIXED1, 0x0017_67ff),
        ])
    }

    fn read(registers: &HashMap<u32, u64>) -> Result<Capabilities, Missing> {
        Capabilities::read(|register| registers[&register], [0; 4])
    }

    #[test]
    fn controls_are_what_must_be_and_what_is_wanted() {
        let capabilities = read(&haswell()).expect("all there");
        assert_eq!(capabilities.revision, 0x12);
        assert_eq!(capabilities.parent.pin, 0x16 | 1 << 3 | 1 << 5);
        assert_eq!(capabilities.child.pin, 0x16 | 1 | 1 << 3 | 1 << 5 | 1 << 6);
        assert_eq!(capabilities.parent.primary, 0x0400_6172 | 1 << 28 | 1 << 31);
        assert_eq!(capabilities.child.primary & primary::HLT, primary::HLT);
        assert_eq!(capabilities.parent.secondary & secondary::XSAVES, 0, "not there, and not needed");
        assert_eq!(capabilities.parent.secondary & secondary::WBINVD, 0);
        assert!(capabilities.accessed_dirty && capabilities.invept_single && capabilities.gigabyte_pages);
        assert_eq!(capabilities.ept_pointer(0x1234), 0x123_405e);
    }

    #[test]
    fn what_is_missing_is_named() {
        for (register, bit, word) in [
            (register::BASIC, 55, "true"),
            (register::TRUE_PRIMARY, 63, "secondary"),
            (register::SECONDARY, 33, "EPT"),
            (register::SECONDARY, 39, "unrestricted"),
            (register::EPT_VPID, 16, "2 MiB"),
            (register::TRUE_PIN, 37, "NMI"),
            (register::TRUE_EXIT, 52, "exits"),
            (register::TRUE_ENTRY, 47, "entries"),
        ] {
            let mut registers = haswell();
            *registers.get_mut(&register).expect("listed") &= !(1 << bit);
            let Missing(what) = read(&registers).expect_err("missing");
            assert!(what.contains(word), "{what}");
        }
    }

    #[test]
    fn control_registers_have_what_vmx_demands_and_the_guest_its_modes() {
        let capabilities = read(&haswell()).expect("all there");
        assert_eq!(capabilities.real_cr0(0x6000_0010), 0x30, "real mode, and caching stays on");
        assert_eq!(capabilities.real_cr0(0x8005_0033), 0x8005_0033);
        assert_eq!(capabilities.real_cr4(0x20), 0x2020);
    }
}
