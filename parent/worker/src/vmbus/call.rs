//! Messages and events of the guest's, as the processors' intercepts bring them.

use std::sync::atomic::Ordering;

use parterre_partition::HvStatus;
use parterre_partition::hypercall::SynicCall;
use parterre_vmbus_server::protocol::message::{
    EVENT_CONNECTION_ID, HV_MESSAGE_TYPE, MESSAGE_CONNECTION_ID, MESSAGE_CONNECTION_ID_4, MessageType,
};
use parterre_vmbus_server::state::{EVENT_CONNECTION_BASE, MAX_CHANNELS};
use vm_memory::VolatileMemory;

use super::VmBus;

/// Where the guest's half of the interrupt page begins.
const SEND_INTERRUPTS: u64 = 2048;

impl VmBus {
    /// Takes a message or an event of VP `vp`; returns the status for the guest.
    pub fn call(&self, vp: u32, call: &SynicCall) -> HvStatus {
        match call {
            SynicCall::Post {
                connection: MESSAGE_CONNECTION_ID | MESSAGE_CONNECTION_ID_4,
                kind,
                payload,
                len,
            } => {
                if *kind != HV_MESSAGE_TYPE {
                    return HvStatus::INVALID_PARAMETER;
                }
                self.message(&payload[..*len])
            }
            SynicCall::Signal { connection: EVENT_CONNECTION_ID, .. } => self.shared_event(vp),
            SynicCall::Signal { connection, flag: 0 } => {
                match connection.checked_sub(EVENT_CONNECTION_BASE).and_then(|number| self.channel(number)) {
                    Some(channel) => {
                        channel.signalled_by_guest(vp);
                        HvStatus::SUCCESS
                    }
                    None => HvStatus::INVALID_CONNECTION_ID,
                }
            }
            _ => HvStatus::INVALID_CONNECTION_ID,
        }
    }

    /// The slot of a SINT is free again: post what waits for it.
    pub fn deliverable(&self) {
        self.state().messages.post(&*self.0.partition);
    }

    fn message(&self, bytes: &[u8]) -> HvStatus {
        {
            let mut state = self.state();
            if bytes.starts_with(&MessageType::INITIATE_CONTACT.0.to_le_bytes()) {
                // What was for an earlier kernel would only confuse this one.
                state.messages.clear();
            }
            if state.messages.is_backed_up() {
                return HvStatus::INSUFFICIENT_BUFFERS;
            }
        }
        let before = self.version();
        if let Err(error) = self.with_server(|server| server.message(bytes)) {
            self.note(format_args!("{error}"));
        }
        match (before, self.version()) {
            (None, Some(version)) => self.note(format_args!("the guest speaks VMBus {version}")),
            (Some(_), None) => self.note(format_args!("the guest leaves VMBus")),
            _ => {}
        }
        HvStatus::SUCCESS
    }

    /// Before Windows 7 all channels share one event: the bits of the guest's half of the interrupt page say which.
    fn shared_event(&self, vp: u32) -> HvStatus {
        for number in 1..=MAX_CHANNELS {
            let Some(channel) = self.channel(number) else { continue };
            let Some(page) = channel.interrupt_page() else { continue };
            let word = page + SEND_INTERRUPTS + u64::from(number / 32 * 4);
            let Some(slice) = self.0.memory.slice(word, 4) else { continue };
            let Ok(bits) = slice.get_atomic_ref::<std::sync::atomic::AtomicU32>(0) else { continue };
            if bits.fetch_and(!(1 << (number % 32)), Ordering::AcqRel) & 1 << (number % 32) != 0 {
                channel.signalled_by_guest(vp);
            }
        }
        HvStatus::SUCCESS
    }
}
