//! I/O ports.

use core::arch::asm;

/// Writes a byte.
///
/// # Safety
/// The device behind the port changes no memory of the hypervisor because of it.
#[inline]
pub unsafe fn write8(port: u16, value: u8) {
    // SAFETY: the caller's promise.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

/// Writes a 16-bit word.
///
/// # Safety
/// As for [`write8`].
#[inline]
pub unsafe fn write16(port: u16, value: u16) {
    // SAFETY: the caller's promise.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) }
}

/// Reads a byte.
///
/// # Safety
/// As for [`write8`].
#[inline]
pub unsafe fn read8(port: u16) -> u8 {
    let value;
    // SAFETY: the caller's promise.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) }
    value
}

/// Reads a 16-bit word.
///
/// # Safety
/// As for [`write8`].
#[inline]
pub unsafe fn read16(port: u16) -> u16 {
    let value;
    // SAFETY: the caller's promise.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nostack, preserves_flags)) }
    value
}
