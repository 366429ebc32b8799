//! The system-call registers, which entries and exits leave alone: the machine has those of the virtual processor that is
//! loaded. Changing to another one costs a write for each that differs, and one read: what the others hold is known, because
//! their writes exit. KERNEL_GS_BASE changes without an exit (SWAPGS).

use crate::cpu::msr;
use crate::svm::vmcb::Save;

pub const STAR: u32 = 0xc000_0081;
pub const LSTAR: u32 = 0xc000_0082;
pub const CSTAR: u32 = 0xc000_0083;
pub const SFMASK: u32 = 0xc000_0084;
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// The registers, in the order of [`values`]. STAR comes last: nothing else is kept for later when it is tried.
const NUMBERS: [u32; 5] = [LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE, STAR];

/// What a processor's registers hold while no virtual processor is loaded there. Zeroed memory is a valid one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msrs {
    values: [u64; 5],
    /// `values` is what they hold.
    known: bool,
}

fn values(save: &Save) -> [u64; 5] {
    [save.lstar, save.cstar, save.sfmask, save.kernel_gs_base, save.star]
}

impl Msrs {
    /// Makes them those of `save`.
    pub fn load(&self, save: &mut Save) {
        self.change(values(save), |number, value| {
            if number == STAR {
                return load_star(&mut save.star);
            }
            // SAFETY: the hypervisor uses neither system calls nor SWAPGS, so what these hold is the guest's alone. It was in
            // such a register before, or core has checked it.
            unsafe { msr::write(number, value) };
        });
    }

    #[inline]
    fn change(&self, values: [u64; 5], mut write: impl FnMut(u32, u64)) {
        if !self.known {
            return NUMBERS.into_iter().zip(values).for_each(|(number, new)| write(number, new));
        }
        for ((number, old), new) in NUMBERS.into_iter().zip(self.values).zip(values) {
            if old != new {
                write(number, new);
            }
        }
    }

    /// Takes them back into `save`.
    pub fn unload(&mut self, save: &mut Save) {
        // SAFETY: every processor with long mode has the register; reading it changes nothing.
        save.kernel_gs_base = unsafe { msr::read(KERNEL_GS_BASE) };
        *self = Self { values: values(save), known: true };
    }
}

/// Loads STAR, whose value nobody has checked: the manuals know none that it does not take. If there is one it becomes 0.
fn load_star(value: &mut u64) {
    // SAFETY: as in `Msrs::load`; a #GP is caught.
    if !unsafe { msr::try_write(STAR, *value) } {
        *value = 0;
        // SAFETY: as before; a processor starts with this value.
        unsafe { msr::write(STAR, 0) };
    }
}

/// The place in `save` of a register whose writes exit.
pub fn intercepted(save: &mut Save, number: u32) -> Option<&mut u64> {
    Some(match number {
        STAR => &mut save.star,
        LSTAR => &mut save.lstar,
        CSTAR => &mut save.cstar,
        SFMASK => &mut save.sfmask,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let mut machine = Msrs::default();
        let mut written = Vec::new();
        machine.change([0; 5], |number, value| written.push((number, value)));
        assert_eq!(written, NUMBERS.map(|number| (number, 0)), "nothing is known at first");
        machine = Msrs { values: [1, 2, 3, 4, 5], known: true };
        written.clear();
        machine.change([1, 7, 3, 4, 8], |number, value| written.push((number, value)));
        assert_eq!(written, [(CSTAR, 7), (STAR, 8)]);
    }

    #[test]
    fn registers_whose_writes_exit_have_places() {
        let mut save = crate::svm::vmcb::zeroed().save;
        for (value, number) in (1..).zip(STAR..=SFMASK) {
            *intercepted(&mut save, number).unwrap() = value;
        }
        assert_eq!(values(&save), [2, 3, 4, 0, 1]);
        assert!(intercepted(&mut save, KERNEL_GS_BASE).is_none());
    }
}
