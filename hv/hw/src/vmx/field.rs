//! The fields of a virtual machine control structure, by their encodings (Intel SDM volume 3D, appendix B), and the
//! instructions that reach them in the current one.

use core::arch::asm;

macro_rules! fields {
    ($($name:ident = $encoding:literal),* $(,)?) => {
        /// A field.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        #[allow(missing_docs, reason = "the names are the manual's")]
        pub enum Field { $($name = $encoding),* }
    };
}

fields! {
    Vpid = 0x0000,
    GuestEsSelector = 0x0800,
    GuestCsSelector = 0x0802,
    GuestSsSelector = 0x0804,
    GuestDsSelector = 0x0806,
    GuestFsSelector = 0x0808,
    GuestGsSelector = 0x080a,
    GuestLdtrSelector = 0x080c,
    GuestTrSelector = 0x080e,
    HostEsSelector = 0x0c00,
    HostCsSelector = 0x0c02,
    HostSsSelector = 0x0c04,
    HostDsSelector = 0x0c06,
    HostFsSelector = 0x0c08,
    HostGsSelector = 0x0c0a,
    HostTrSelector = 0x0c0c,
    MsrBitmap = 0x2004,
    TscOffset = 0x2010,
    VirtualApicPage = 0x2012,
    EptPointer = 0x201a,
    XssExitingBitmap = 0x202c,
    GuestPhysicalAddress = 0x2400,
    VmcsLink = 0x2800,
    GuestDebugCtl = 0x2802,
    GuestPat = 0x2804,
    GuestEfer = 0x2806,
    GuestPdpte0 = 0x280a,
    GuestPdpte1 = 0x280c,
    GuestPdpte2 = 0x280e,
    GuestPdpte3 = 0x2810,
    HostPat = 0x2c00,
    HostEfer = 0x2c02,
    PinControls = 0x4000,
    PrimaryControls = 0x4002,
    ExceptionBitmap = 0x4004,
    PageFaultMask = 0x4006,
    PageFaultMatch = 0x4008,
    Cr3TargetCount = 0x400a,
    ExitControls = 0x400c,
    ExitMsrStoreCount = 0x400e,
    ExitMsrLoadCount = 0x4010,
    EntryControls = 0x4012,
    EntryMsrLoadCount = 0x4014,
    EntryInterruptionInfo = 0x4016,
    EntryExceptionError = 0x4018,
    EntryInstructionLength = 0x401a,
    TprThreshold = 0x401c,
    SecondaryControls = 0x401e,
    InstructionError = 0x4400,
    ExitReason = 0x4402,
    ExitInterruptionInfo = 0x4404,
    ExitInterruptionError = 0x4406,
    IdtVectoringInfo = 0x4408,
    IdtVectoringError = 0x440a,
    ExitInstructionLength = 0x440c,
    GuestEsLimit = 0x4800,
    GuestCsLimit = 0x4802,
    GuestSsLimit = 0x4804,
    GuestDsLimit = 0x4806,
    GuestFsLimit = 0x4808,
    GuestGsLimit = 0x480a,
    GuestLdtrLimit = 0x480c,
    GuestTrLimit = 0x480e,
    GuestGdtrLimit = 0x4810,
    GuestIdtrLimit = 0x4812,
    GuestEsRights = 0x4814,
    GuestCsRights = 0x4816,
    GuestSsRights = 0x4818,
    GuestDsRights = 0x481a,
    GuestFsRights = 0x481c,
    GuestGsRights = 0x481e,
    GuestLdtrRights = 0x4820,
    GuestTrRights = 0x4822,
    GuestInterruptibility = 0x4824,
    GuestActivity = 0x4826,
    GuestSysenterCs = 0x482a,
    PreemptionTimer = 0x482e,
    HostSysenterCs = 0x4c00,
    Cr0Mask = 0x6000,
    Cr4Mask = 0x6002,
    Cr0Shadow = 0x6004,
    Cr4Shadow = 0x6006,
    ExitQualification = 0x6400,
    GuestLinearAddress = 0x640a,
    GuestCr0 = 0x6800,
    GuestCr3 = 0x6802,
    GuestCr4 = 0x6804,
    GuestEsBase = 0x6806,
    GuestCsBase = 0x6808,
    GuestSsBase = 0x680a,
    GuestDsBase = 0x680c,
    GuestFsBase = 0x680e,
    GuestGsBase = 0x6810,
    GuestLdtrBase = 0x6812,
    GuestTrBase = 0x6814,
    GuestGdtrBase = 0x6816,
    GuestIdtrBase = 0x6818,
    GuestDr7 = 0x681a,
    GuestRsp = 0x681c,
    GuestRip = 0x681e,
    GuestRflags = 0x6820,
    GuestPendingDebug = 0x6822,
    GuestSysenterEsp = 0x6824,
    GuestSysenterEip = 0x6826,
    HostCr0 = 0x6c00,
    HostCr3 = 0x6c02,
    HostCr4 = 0x6c04,
    HostFsBase = 0x6c06,
    HostGsBase = 0x6c08,
    HostTrBase = 0x6c0a,
    HostGdtrBase = 0x6c0c,
    HostIdtrBase = 0x6c0e,
    HostSysenterEsp = 0x6c10,
    HostSysenterEip = 0x6c12,
    HostRsp = 0x6c14,
    HostRip = 0x6c16,
}

/// Something that fields can be read from: the current structure, or a list of a test.
pub trait Source {
    /// The field's value.
    fn read(&self, field: Field) -> u64;
}

/// The processor's current structure.
#[derive(Clone, Copy, Debug)]
pub struct Current(());

impl Current {
    /// The structure that is current on this processor.
    ///
    /// # Safety
    /// There is one (VMPTRLD), and it stays current while the value is used.
    pub unsafe fn new() -> Self {
        Self(())
    }

    /// Writes a field.
    #[inline]
    pub fn write(self, field: Field, value: u64) {
        // SAFETY: there is a current structure (`new`). What is written has its effect at the next entry, whose caller
        // answers for the whole.
        unsafe {
            asm!("vmwrite {}, {}", in(reg) u64::from(field as u32), in(reg) value, options(nomem, nostack));
        }
    }
}

impl Source for Current {
    #[inline]
    fn read(&self, field: Field) -> u64 {
        let value: u64;
        // SAFETY: there is a current structure (`new`); reading changes nothing.
        unsafe {
            asm!("vmread {}, {}", out(reg) value, in(reg) u64::from(field as u32), options(nomem, nostack));
        }
        value
    }
}

macro_rules! on_region {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        pub unsafe fn $name(region: u64) -> bool {
            let succeeded: u8;
            // Neither carry nor zero: it did what it was told (Intel SDM volume 3C, 31.2).
            // SAFETY: the caller's promise.
            unsafe {
                asm!(concat!($instruction, " [{}]"), "seta {}",
                    in(reg) &raw const region, out(reg_byte) succeeded, options(nostack));
            }
            succeeded != 0
        }
    };
}

on_region! {
    /// Enters VMX operation with the region at this physical address; `false` if the processor refuses.
    ///
    /// # Safety
    /// CR4.VMXE is set, the firmware allows it, and the page is the processor's alone from now on.
    vmxon, "vmxon"
}
on_region! {
    /// Writes what the processor keeps of the structure at this physical address back to it, and forgets it.
    ///
    /// # Safety
    /// The processor is in VMX operation; the page is a structure of the hypervisor's.
    vmclear, "vmclear"
}
on_region! {
    /// Makes the structure at this physical address the current one.
    ///
    /// # Safety
    /// As for [`vmclear`], and no other processor has it active.
    vmptrld, "vmptrld"
}

/// The physical address of the current structure; all ones if there is none.
///
/// # Safety
/// The processor is in VMX operation.
pub unsafe fn vmptrst() -> u64 {
    let mut structure = 0_u64;
    // SAFETY: the caller's promise; it writes the word and nothing else.
    unsafe { asm!("vmptrst [{}]", in(reg) &raw mut structure, options(nostack)) };
    structure
}

/// Forgets what was translated by the tables of `eptp`, or by all tables.
///
/// # Safety
/// The processor is in VMX operation and has this form of INVEPT.
pub unsafe fn invept(eptp: u64, all: bool) {
    let (kind, descriptor) = (if all { 2_u64 } else { 1 }, [eptp, 0]);
    // SAFETY: the caller's promise; forgetting translations changes no meaning.
    unsafe {
        asm!("invept {}, [{}]", in(reg) kind, in(reg) &raw const descriptor, options(nostack, readonly));
    }
}
