//! The message page and the event flags page, which the guest uses at the same time.

use super::Synic;
use crate::machine::Machine;
use crate::memory::Frame;
use parterre_abi::message::{MESSAGE_SIZE, Message};
use parterre_abi::msr::SINT_COUNT;
use parterre_abi::status::{HvResult, HvStatus};
use parterre_abi::synic::EVENT_FLAGS_COUNT;
use zerocopy::IntoBytes;

/// Bytes of one source's event flags.
const FLAGS_SIZE: usize = EVENT_FLAGS_COUNT / 8;
/// The message type, the first word of a slot.
const TYPE: usize = 0;
/// The word with payload size and flags.
const FLAGS: usize = 4;
/// "Message pending" in that word: the lowest bit of its second byte.
const PENDING: u32 = 1 << 8;
/// How often a word is tried to be changed that the guest keeps changing.
const ATTEMPTS: usize = 64;

/// A page that the guest can write at any time.
pub trait SharedPage {
    /// Reads the 32-bit word at `offset`, a multiple of 4 below 4096.
    fn load(&self, offset: usize) -> u32;
    /// Writes `bytes` at `offset`; the end lies in the page.
    fn store(&self, offset: usize, bytes: &[u8]);
    /// Atomically replaces the word at `offset` if it is `current`; gives what it was.
    fn compare_exchange(&self, offset: usize, current: u32, new: u32) -> u32;
}

/// A frame of the hypervisor that a guest sees.
pub struct FramePage<'a, M: Machine> {
    /// The machine it is in.
    pub machine: &'a M,
    /// The page.
    pub frame: &'a Frame,
}

impl<M: Machine> SharedPage for FramePage<'_, M> {
    fn load(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.machine.read_frame(self.frame, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn store(&self, offset: usize, bytes: &[u8]) {
        self.machine.write_frame(self.frame, offset, bytes);
    }

    fn compare_exchange(&self, offset: usize, current: u32, new: u32) -> u32 {
        self.machine.compare_exchange_frame(self.frame, offset, current, new)
    }
}

/// What became of an event flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signalled {
    /// It was not set before.
    pub newly: bool,
    /// The vector to request.
    pub vector: Option<u8>,
}

impl Synic {
    /// Puts `message` into the slot of source `sint`, if it is empty. Gives the vector to request, if the source makes
    /// interrupts.
    ///
    /// # Errors
    /// `INVALID_PARAMETER`: there is no such source, or the message has no type. `INVALID_SYNIC_STATE`: the SynIC or
    /// its page is disabled. `OBJECT_IN_USE`: the slot is not empty; the guest has been asked to write EOM.
    pub fn put_message<P: SharedPage>(&self, page: &P, sint: u8, message: &Message) -> HvResult<Option<u8>> {
        if usize::from(sint) >= SINT_COUNT || message.header.message_type.0 == 0 {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        if !self.takes_messages() {
            return Err(HvStatus::INVALID_SYNIC_STATE);
        }
        let slot = usize::from(sint) * MESSAGE_SIZE;
        if !is_empty(page, slot) {
            return Err(HvStatus::OBJECT_IN_USE);
        }
        let bytes = message.as_bytes();
        page.store(slot + FLAGS, bytes.get(FLAGS..).unwrap_or_default());
        // The type goes last: what has a type is a message. A guest that puts one there itself has made its own bed.
        page.compare_exchange(slot + TYPE, 0, message.header.message_type.0);
        Ok(self.vector(sint))
    }

    /// Whether a message for source `sint` would find its slot empty. If not, the guest is asked to write EOM.
    pub fn slot_is_free<P: SharedPage>(&self, page: &P, sint: u8) -> bool {
        usize::from(sint) < SINT_COUNT
            && self.takes_messages()
            && is_empty(page, usize::from(sint) * MESSAGE_SIZE)
    }

    /// Sets event flag `flag` of source `sint`.
    ///
    /// # Errors
    /// `INVALID_PARAMETER`: there is no such source or flag. `INVALID_SYNIC_STATE`: the SynIC or its page is disabled,
    /// or the source is masked.
    pub fn signal_event<P: SharedPage>(&self, page: &P, sint: u8, flag: u16) -> HvResult<Signalled> {
        let flag = usize::from(flag);
        if usize::from(sint) >= SINT_COUNT || flag >= EVENT_FLAGS_COUNT {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        if !self.takes_events(sint) {
            return Err(HvStatus::INVALID_SYNIC_STATE);
        }
        let bit = 1 << (flag % 32);
        let before = set_bits(page, usize::from(sint) * FLAGS_SIZE + flag / 32 * 4, bit);
        let newly = before & bit == 0;
        Ok(Signalled { newly, vector: self.vector(sint).filter(|_| newly) })
    }
}

/// Whether a slot is empty. One that is not gets the mark that makes the guest tell when it is.
fn is_empty<P: SharedPage>(page: &P, slot: usize) -> bool {
    if page.load(slot + TYPE) == 0 {
        return true;
    }
    set_bits(page, slot + FLAGS, PENDING);
    // The guest may have emptied the slot before it could see the mark.
    page.load(slot + TYPE) == 0
}

/// Sets bits of a word atomically; gives what it was. A guest that changes the word without end loses them.
fn set_bits<P: SharedPage>(page: &P, offset: usize, bits: u32) -> u32 {
    let mut current = page.load(offset);
    for _ in 0..ATTEMPTS {
        if current & bits == bits {
            break;
        }
        let seen = page.compare_exchange(offset, current, current | bits);
        if seen == current {
            break;
        }
        current = seen;
    }
    current
}
