//! What a guest says when its operating system crashes (TLFS "Partition Crash Enlightenment"): five parameters of its own
//! choosing, and, since Linux 4.20, the end of its kernel's log.
//!
//! The guest writes the parameters to registers of the hypervisor's, then the control register, which the hypervisor hands to
//! the worker. What the guest does afterwards (halt, restart) is its own decision. The last crash is kept over resets.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use parterre_partition::memory::GuestMemory;
use parterre_partition::{Error, VirtualProcessor};
use vm_memory::{Bytes, GuestAddress};

use crate::processor::log_line;

/// Bits of the control register: a crash is told, and parameters 3 and 4 are address and length of a message.
const NOTIFY: u64 = 1 << 63;
const MESSAGE: u64 = 1 << 62;
/// Longest message: a page.
const MAX_MESSAGE: u64 = 4096;
/// Crashes whose message is written to the log: a guest may crash for ever.
const MAX_LOGGED: u32 = 16;

/// A crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// When it was told, by the parent's clock.
    pub time: SystemTime,
    /// The parameters. What they mean is the guest's business.
    pub parameters: [u64; 5],
    /// The message, possibly empty; lines of printable characters.
    pub message: String,
}

#[derive(Default)]
struct State {
    last: Option<Crash>,
    count: u32,
}

/// The crashes of a machine's guests.
#[derive(Default)]
pub struct Crashes(Mutex<State>);

impl Crashes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last one.
    pub fn last(&self) -> Option<Crash> {
        self.state().last.clone()
    }

    /// The guest has written `control` to its crash control register.
    ///
    /// # Errors
    /// The parameters cannot be read.
    pub fn tell(&self, vp: &mut dyn VirtualProcessor, ram: &GuestMemory, control: u64) -> Result<(), Error> {
        if control & NOTIFY == 0 {
            return Ok(());
        }
        let parameters = vp.crash_parameters()?;
        let message = if control & MESSAGE == 0 { String::new() } else { message(ram, &parameters) };
        let mut state = self.state();
        state.count = state.count.saturating_add(1);
        if state.count <= MAX_LOGGED {
            log_line(format_args!("the guest has crashed, with parameters {parameters:x?}"));
            message.lines().for_each(|line| log_line(format_args!("guest: {line}")));
        }
        state.last = Some(Crash { time: SystemTime::now(), parameters, message });
        Ok(())
    }
}

/// The message that the parameters name; what is not in the guest's memory is left out.
fn message(ram: &GuestMemory, parameters: &[u64; 5]) -> String {
    let [.., address, length] = *parameters;
    let mut bytes = vec![0; length.min(MAX_MESSAGE) as usize];
    let read = ram.regions().read(&mut bytes, GuestAddress(address)).unwrap_or(0);
    let text = bytes.get(..read).unwrap_or_default();
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    String::from_utf8_lossy(&text[..end]).replace(|c: char| c.is_control() && c != '\n', " ")
}

#[cfg(test)]
mod tests {
    use parterre_partition::fake::FakeVp;

    use super::*;

    fn told(control: u64, parameters: [u64; 5], at: u64, text: &[u8]) -> Option<Crash> {
        let ram = GuestMemory::new(16 << 20).unwrap();
        ram.regions().write_slice(text, GuestAddress(at)).unwrap();
        let crashes = Crashes::default();
        let mut vp = FakeVp { crash_parameters: parameters, ..FakeVp::default() };
        crashes.tell(&mut vp, &ram, control).unwrap();
        crashes.last()
    }

    #[test]
    fn a_crash_has_its_parameters_and_its_message() {
        let crash = told(NOTIFY, [1, 2, 3, 4, 5], 0, b"").unwrap();
        assert_eq!((crash.parameters, crash.message.as_str()), ([1, 2, 3, 4, 5], ""));
        let crash = told(NOTIFY | MESSAGE, [0, 0, 0, 0x5000, 12], 0x5000, b"one\x1b[2J\ntwo\0three").unwrap();
        assert_eq!(crash.message, "one [2J\ntwo");
    }

    #[test]
    fn what_is_no_crash_is_none() {
        assert_eq!(told(0, [0; 5], 0, b""), None);
        assert_eq!(told(MESSAGE, [0; 5], 0, b""), None);
    }

    #[test]
    fn wrong_messages_are_cut() {
        let end = 16 << 20;
        for (address, length, expected) in [
            (end - 4, 100, "last"),
            (end, 100, ""),
            (u64::MAX, u64::MAX, ""),
            (u64::MAX - 10, 4096, ""),
            (end - 4, 0, ""),
        ] {
            let crash = told(NOTIFY | MESSAGE, [0, 0, 0, address, length], end - 4, b"last").unwrap();
            assert_eq!(crash.message, expected, "{length} bytes at {address:#x}");
        }
        let long = vec![b'x'; 5000];
        let crash = told(NOTIFY | MESSAGE, [0, 0, 0, 0, u64::MAX], 0, &long).unwrap();
        assert_eq!(crash.message.len(), 4096);
    }
}
