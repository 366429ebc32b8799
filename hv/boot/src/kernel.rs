//! A Linux kernel file: is it one that can be started, and what does it ask for?
//!
//! Source: Linux `Documentation/arch/x86/boot.rst` ("The Linux/x86 Boot Protocol"), offsets from there.

use alloc::vec::Vec;
use core::fmt;

use crate::bytes::{u8_at, u16_at, u32_at, u64_at};

/// How much of the file [`Kernel::parse`] needs to see: the boot sector and the setup header behind it.
pub const HEADER_BYTES: usize = 1024;

/// Offset of the setup header in the file and in the zero page.
pub const SETUP_HEADER: usize = 0x1f1;

const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const BOOT_FLAG: usize = 0x1fe;
const JUMP: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const RELOCATABLE: usize = 0x234;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;

/// The protocol that introduced `xloadflags`, 2.12 (Linux 3.8).
const MIN_VERSION: u16 = 0x020c;
/// `loadflags`: the protected-mode code loads high.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: has the 64-bit entry at 0x200.
const XLF_KERNEL_64: u16 = 1 << 0;
/// `xloadflags`: kernel, initrd and so on may lie above 4 GiB.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
/// Where the 64-bit entry lies in the loaded code.
const ENTRY_64: u64 = 0x200;

/// What a kernel file says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The setup header, to be copied to the zero page at [`SETUP_HEADER`].
    pub header: Vec<u8>,
    /// Where in the file the code to be loaded begins.
    pub code_offset: u64,
    /// Length of that code in bytes.
    pub code_length: u64,
    /// How much memory the kernel needs from its load address on, before it reads the memory map.
    pub init_size: u64,
    /// Where it likes best to be loaded.
    pub preferred_address: u64,
    /// Alignment of other load addresses, where it can be loaded elsewhere.
    pub alignment: Option<u64>,
    /// Kernel, initrd and zero page may lie above 4 GiB.
    pub above_4g: bool,
    /// The highest address that a byte of the initrd may have, when not `above_4g`.
    pub initrd_addr_max: u64,
    /// Length of the longest command line, without the final zero.
    pub cmdline_size: u32,
}

/// Why a file cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelError {
    /// Shorter than a boot sector and a setup header.
    TooShort,
    /// No boot sector of a bzImage.
    NotBzImage,
    /// Protocol version, as 0xMMmm.
    TooOld(u16),
    /// No 64-bit entry.
    Not64Bit,
    /// Fields that contradict each other; holds which.
    Damaged(&'static str),
    /// The file ends before its code does.
    Truncated {
        /// Bytes that there are.
        found: u64,
        /// Bytes that the header announces.
        expected: u64,
    },
}

impl fmt::Display for KernelError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort => write!(out, "the file is too short to be a Linux kernel; copy it anew"),
            Self::NotBzImage => {
                write!(out, "the file is not a Linux kernel (bzImage); name another one or copy it anew")
            }
            Self::TooOld(version) => write!(
                out,
                "the kernel speaks boot protocol {}.{:02}, and 2.12 or newer is needed; use Linux 6.18 or newer",
                version >> 8,
                version & 0xff
            ),
            Self::Not64Bit => {
                write!(out, "the kernel has no 64-bit entry; use a 64-bit kernel (CONFIG_X86_64)")
            }
            Self::Damaged(what) => write!(out, "the kernel's header is damaged ({what}); copy the file anew"),
            Self::Truncated { found, expected } => write!(
                out,
                "the file is truncated: {found} bytes of {expected} that its header announces; copy it anew"
            ),
        }
    }
}

impl Kernel {
    /// Reads the header from the first bytes of a file that is `file_length` bytes long.
    ///
    /// # Errors
    /// The first reason why this file cannot be started.
    pub fn parse(start: &[u8], file_length: u64) -> Result<Self, KernelError> {
        let fields = Fields::read(start).ok_or(KernelError::TooShort)?;
        if fields.boot_flag != 0xaa55 || fields.magic != u32::from_le_bytes(*b"HdrS") {
            return Err(KernelError::NotBzImage);
        }
        if fields.version < MIN_VERSION {
            return Err(KernelError::TooOld(fields.version));
        }
        if fields.loadflags & LOADED_HIGH == 0 {
            return Err(KernelError::NotBzImage);
        }
        if fields.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(KernelError::Not64Bit);
        }
        fields.kernel(start, file_length)
    }

    /// The 64-bit entry of code that was loaded at `address`.
    pub fn entry(&self, address: u64) -> u64 {
        address + ENTRY_64
    }
}

struct Fields {
    setup_sects: u8,
    syssize: u32,
    boot_flag: u16,
    jump: u8,
    magic: u32,
    version: u16,
    loadflags: u8,
    initrd_addr_max: u32,
    kernel_alignment: u32,
    relocatable: u8,
    xloadflags: u16,
    cmdline_size: u32,
    pref_address: u64,
    init_size: u32,
}

impl Fields {
    fn read(start: &[u8]) -> Option<Self> {
        Some(Self {
            setup_sects: u8_at(start, SETUP_SECTS)?,
            syssize: u32_at(start, SYSSIZE)?,
            boot_flag: u16_at(start, BOOT_FLAG)?,
            jump: u8_at(start, JUMP)?,
            magic: u32_at(start, MAGIC)?,
            version: u16_at(start, VERSION)?,
            loadflags: u8_at(start, LOADFLAGS)?,
            initrd_addr_max: u32_at(start, INITRD_ADDR_MAX)?,
            kernel_alignment: u32_at(start, KERNEL_ALIGNMENT)?,
            relocatable: u8_at(start, RELOCATABLE)?,
            xloadflags: u16_at(start, XLOADFLAGS)?,
            cmdline_size: u32_at(start, CMDLINE_SIZE)?,
            pref_address: u64_at(start, PREF_ADDRESS)?,
            init_size: u32_at(start, INIT_SIZE)?,
        })
    }

    fn kernel(&self, start: &[u8], file_length: u64) -> Result<Kernel, KernelError> {
        // The header ends where the jump at its beginning leads.
        let header_end = MAGIC + usize::from(self.jump);
        let header = start.get(SETUP_HEADER..header_end).ok_or(KernelError::TooShort)?;
        if header_end < INIT_SIZE + 4 {
            return Err(KernelError::Damaged("it is shorter than its version says"));
        }
        let setup_sects = if self.setup_sects == 0 { 4 } else { u64::from(self.setup_sects) };
        let code_offset = (setup_sects + 1) * 512;
        let code_length = u64::from(self.syssize) * 16;
        if code_length <= ENTRY_64 {
            return Err(KernelError::Damaged("it announces no code"));
        }
        if file_length < code_offset + code_length {
            return Err(KernelError::Truncated { found: file_length, expected: code_offset + code_length });
        }
        let init_size = u64::from(self.init_size).max(code_length);
        let alignment = u64::from(self.kernel_alignment).max(4096);
        if !alignment.is_power_of_two() {
            return Err(KernelError::Damaged("its alignment is no power of two"));
        }
        if !self.pref_address.is_multiple_of(4096) || self.pref_address.checked_add(init_size).is_none() {
            return Err(KernelError::Damaged("its preferred address is no page's"));
        }
        Ok(Kernel {
            header: header.to_vec(),
            code_offset,
            code_length,
            init_size,
            preferred_address: self.pref_address,
            alignment: (self.relocatable != 0).then_some(alignment),
            above_4g: self.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0,
            initrd_addr_max: u64::from(self.initrd_addr_max),
            cmdline_size: self.cmdline_size,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The beginning of a file such as Linux makes.
    pub(crate) fn sample() -> Vec<u8> {
        let mut file = vec![0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(SETUP_SECTS, &[39]);
        put(SYSSIZE, &0x1000_u32.to_le_bytes());
        put(BOOT_FLAG, &0xaa55_u16.to_le_bytes());
        put(0x200, &[0xeb, 0x6a]);
        put(MAGIC, b"HdrS");
        put(VERSION, &0x020f_u16.to_le_bytes());
        put(LOADFLAGS, &[LOADED_HIGH]);
        put(INITRD_ADDR_MAX, &0x7fff_ffff_u32.to_le_bytes());
        put(KERNEL_ALIGNMENT, &0x20_0000_u32.to_le_bytes());
        put(RELOCATABLE, &[1]);
        put(XLOADFLAGS, &0x3f_u16.to_le_bytes());
        put(CMDLINE_SIZE, &2047_u32.to_le_bytes());
        put(PREF_ADDRESS, &0x100_0000_u64.to_le_bytes());
        put(INIT_SIZE, &0x200_0000_u32.to_le_bytes());
        file
    }

    const LENGTH: u64 = 40 * 512 + 0x1_0000;

    fn with(at: usize, bytes: &[u8]) -> Result<Kernel, KernelError> {
        let mut file = sample();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Kernel::parse(&file, LENGTH)
    }

    #[test]
    fn a_kernel_says_what_it_needs() {
        let kernel = Kernel::parse(&sample(), LENGTH).unwrap();
        assert_eq!(kernel.header.len(), 0x202 + 0x6a - SETUP_HEADER);
        assert_eq!((kernel.code_offset, kernel.code_length), (40 * 512, 0x1_0000));
        assert_eq!((kernel.init_size, kernel.preferred_address), (0x200_0000, 0x100_0000));
        assert_eq!(kernel.alignment, Some(0x20_0000));
        assert!(kernel.above_4g);
        assert_eq!(kernel.entry(0x100_0000), 0x100_0200);
        assert_eq!(with(RELOCATABLE, &[0]).unwrap().alignment, None);
        assert_eq!(with(SETUP_SECTS, &[0]).unwrap().code_offset, 5 * 512);
        assert!(!with(XLOADFLAGS, &[1, 0]).unwrap().above_4g);
    }

    #[test]
    fn files_that_cannot_be_started_are_told_apart() {
        assert_eq!(with(BOOT_FLAG, &[0, 0]), Err(KernelError::NotBzImage));
        assert_eq!(with(MAGIC, b"XXXX"), Err(KernelError::NotBzImage));
        assert_eq!(with(LOADFLAGS, &[0]), Err(KernelError::NotBzImage));
        assert_eq!(with(VERSION, &[0x0b, 2]), Err(KernelError::TooOld(0x020b)));
        assert_eq!(with(XLOADFLAGS, &[0, 0]), Err(KernelError::Not64Bit));
        assert!(matches!(with(JUMP, &[0x20]), Err(KernelError::Damaged(_))));
        assert!(matches!(with(SYSSIZE, &[0; 4]), Err(KernelError::Damaged(_))));
        assert!(matches!(with(KERNEL_ALIGNMENT, &[0, 0x30, 0, 0]), Err(KernelError::Damaged(_))));
        assert!(matches!(with(PREF_ADDRESS, &[0xff; 8]), Err(KernelError::Damaged(_))));
        assert_eq!(Kernel::parse(&sample()[..600], LENGTH), Err(KernelError::TooShort));
        assert_eq!(
            Kernel::parse(&sample(), LENGTH - 1),
            Err(KernelError::Truncated { found: LENGTH - 1, expected: LENGTH })
        );
    }

    #[test]
    fn errors_say_what_to_do() {
        assert!(KernelError::TooOld(0x0204).to_string().contains("protocol 2.04"));
        assert!(KernelError::Truncated { found: 5, expected: 9 }.to_string().contains("5 bytes of 9"));
    }

    proptest! {
        #[test]
        fn damage_anywhere_gives_an_answer(at in 0usize..HEADER_BYTES, value: u8, length in 0..2 * LENGTH) {
            let mut file = sample();
            file[at] = value;
            if let Ok(kernel) = Kernel::parse(&file, length) {
                prop_assert!(kernel.code_offset + kernel.code_length <= length);
                prop_assert!(kernel.init_size >= kernel.code_length);
            }
        }
    }
}
