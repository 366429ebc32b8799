//! A guest's secrets: a pattern in all memory that it has to spare. It stays as it is, and nobody else ever sees it.
//!
//! With `secret=N` and `foreign=M` on the command line, two such guests look for each other's patterns.

use tmk::{TestResult, check, line, params, skip};

/// The words of a page, by the secret of whose page it is.
fn word(secret: u32, address: u64) -> u64 {
    let offset = address as u32 & 0xFFF;
    let mixed = (secret ^ offset.wrapping_mul(0x9E37_79B1)).wrapping_mul(0x85EB_CA6B);
    u64::from(secret | 1) << 32 | u64::from(mixed ^ mixed >> 15)
}

fn spare_words() -> impl Iterator<Item = *mut u64> {
    let ram = params::spare_ram();
    (ram.start..ram.end).step_by(8).map(|address| address as *mut u64)
}

fn secret(name: &str) -> Option<u32> {
    params::number(name).map(|number| number as u32)
}

/// No word of the other guest's pattern is in this one's memory.
fn look_for_foreign_words() -> TestResult {
    let Some(foreign) = secret("foreign") else { skip!("the command line names no foreign secret") };
    for pointer in spare_words() {
        // SAFETY: RAM that nothing else here uses.
        let value = unsafe { core::ptr::read_volatile(pointer) };
        check!(value != word(foreign, pointer as u64), "the other guest's secret lies at {pointer:p}");
    }
    Ok(())
}

/// What an earlier guest left is not in memory that is new to this one.
pub fn new_memory_holds_no_secrets() -> TestResult {
    look_for_foreign_words()
}

/// Writes the pattern that [`own_secrets_are_untouched`] looks for.
pub fn memory_takes_secrets() -> TestResult {
    let own = secret("secret").unwrap_or(0x7E57);
    for pointer in spare_words() {
        // SAFETY: RAM that nothing else here uses.
        unsafe { core::ptr::write_volatile(pointer, word(own, pointer as u64)) };
    }
    line!("{} MiB hold secrets", (params::spare_ram().end - params::spare_ram().start) >> 20);
    own_secrets_are_untouched()
}

/// Every word is as it was written.
pub fn own_secrets_are_untouched() -> TestResult {
    let own = secret("secret").unwrap_or(0x7E57);
    for pointer in spare_words() {
        // SAFETY: RAM that nothing else here uses.
        let value = unsafe { core::ptr::read_volatile(pointer) };
        check!(value == word(own, pointer as u64), "the secret at {pointer:p} has become {value:#x}");
    }
    Ok(())
}

/// The other guest's pattern has not come here meanwhile.
pub fn no_foreign_secrets_appear() -> TestResult {
    look_for_foreign_words()
}
