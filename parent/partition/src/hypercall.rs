//! Hypercalls of the guest that the hypervisor leaves to the worker: decoding and answering them.
//!
//! Source: TLFS "Hypercall Interface". A 64-bit caller has the control word in RCX, input in RDX, output in R8, status in
//! RAX; a 32-bit caller in the pairs EDX:EAX, EBX:ECX, EDI:ESI, and EDX:EAX.

use parterre_abi::hypercall::{HypercallCode, PostMessageInput, SignalEventInput};
use parterre_abi::message::{HypercallInterceptMessage, MESSAGE_PAYLOAD_SIZE};
use parterre_abi::status::HvStatus;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestMemory;
use crate::message::Context;
use crate::registers::Register;
use crate::{Result, VirtualProcessor};

/// Bit of the control word: the input is in registers.
const FAST: u64 = 1 << 16;
/// Length of VMCALL and VMMCALL.
const INSTRUCTION_LENGTH: u8 = 3;

/// A hypercall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hypercall {
    /// Where.
    pub context: Context,
    /// Call code.
    pub code: u16,
    /// `input` and `output` are the input itself, 8 bytes each, not addresses.
    pub fast: bool,
    /// Guest physical address of the input, or its first 8 bytes.
    pub input: u64,
    /// Guest physical address for the output, or the next 8 bytes of the input.
    pub output: u64,
}

/// A message or an event of the guest's for the worker.
// It lives on the stack of the thread that took the exit; a box would be an allocation for each message.
#[expect(clippy::large_enum_variant)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SynicCall {
    /// `HvCallPostMessage`.
    Post {
        /// Through which connection.
        connection: u32,
        /// The type of the message.
        kind: u32,
        /// The payload, of which [`len`](Self::Post::len) bytes count.
        payload: [u8; MESSAGE_PAYLOAD_SIZE],
        /// At most 240.
        len: usize,
    },
    /// `HvCallSignalEvent`.
    Signal {
        /// Through which connection.
        connection: u32,
        /// Which flag of it.
        flag: u16,
    },
}

/// Head of [`PostMessageInput`]; the payload follows.
const POST_HEAD: usize = size_of::<PostMessageInput>() - MESSAGE_PAYLOAD_SIZE;

impl SynicCall {
    /// A post from its head; `payload` fills in the bytes that count.
    fn post(
        head: [u8; POST_HEAD],
        payload: impl FnOnce(&mut [u8]) -> std::result::Result<(), HvStatus>,
    ) -> std::result::Result<SynicCall, HvStatus> {
        let mut bytes = [0; size_of::<PostMessageInput>()];
        bytes[..POST_HEAD].copy_from_slice(&head);
        let mut input: PostMessageInput = zerocopy::transmute!(bytes);
        let len = input.payload_size as usize;
        payload(input.payload.get_mut(..len).ok_or(HvStatus::INVALID_PARAMETER)?)?;
        let (connection, kind) = (input.connection_id, input.message_type.0);
        Ok(SynicCall::Post { connection, kind, payload: input.payload, len })
    }

    fn signal(bytes: [u8; 8]) -> SynicCall {
        let input: SignalEventInput = zerocopy::transmute!(bytes);
        SynicCall::Signal { connection: input.connection_id, flag: input.flag_number }
    }
}

impl Hypercall {
    /// The message or event that this is, its input read once from guest memory.
    ///
    /// # Errors
    /// The status for the guest: another call, or input that cannot be.
    pub fn synic_call(&self, memory: &GuestMemory) -> std::result::Result<SynicCall, HvStatus> {
        match (HypercallCode(self.code), self.fast) {
            (HypercallCode::POST_MESSAGE, false) => {
                let mut head = [0; POST_HEAD];
                self.read_input(memory, 0, &mut head)?;
                SynicCall::post(head, |payload| self.read_input(memory, POST_HEAD as u64, payload))
            }
            // Registers hold the head alone, so there is no payload.
            (HypercallCode::POST_MESSAGE, true) => {
                let mut head = [0; POST_HEAD];
                head[..8].copy_from_slice(&self.input.to_le_bytes());
                head[8..].copy_from_slice(&self.output.to_le_bytes());
                let empty = |payload: &mut [u8]| match payload {
                    [] => Ok(()),
                    _ => Err(HvStatus::INVALID_PARAMETER),
                };
                SynicCall::post(head, empty)
            }
            (HypercallCode::SIGNAL_EVENT, false) => {
                let mut bytes = [0; 8];
                self.read_input(memory, 0, &mut bytes)?;
                Ok(SynicCall::signal(bytes))
            }
            (HypercallCode::SIGNAL_EVENT, true) => Ok(SynicCall::signal(self.input.to_le_bytes())),
            _ => Err(HvStatus::INVALID_HYPERCALL_CODE),
        }
    }

    fn read_input(&self, memory: &GuestMemory, at: u64, to: &mut [u8]) -> std::result::Result<(), HvStatus> {
        let failed = HvStatus::INVALID_HYPERCALL_INPUT;
        let address = self.input.checked_add(at).ok_or(failed)?;
        memory.regions().read_slice(to, GuestAddress(address)).map_err(|_| failed)
    }

    pub(crate) fn decode(message: &HypercallInterceptMessage) -> Hypercall {
        let context = Context::from(message.header);
        let pair = |high: u64, low: u64| high << 32 | low & 0xFFFF_FFFF;
        let (control, input, output) = if context.code_bits() == 64 {
            (message.rcx, message.rdx, message.r8)
        } else {
            let (a, b, c, d) = (message.rax, message.rbx, message.rcx, message.rdx);
            (pair(d, a), pair(b, c), pair(message.rdi, message.rsi))
        };
        Hypercall { context, code: control as u16, fast: control & FAST != 0, input, output }
    }

    /// Gives the guest its answer and goes on behind the instruction.
    pub fn answer(&self, vp: &mut dyn VirtualProcessor, status: HvStatus) -> Result<()> {
        let length = match self.context.instruction_length {
            0 => INSTRUCTION_LENGTH,
            length => length,
        };
        let rip = (Register::Rip, self.context.rip_after(length.into()));
        let result = (Register::Rax, u64::from(status.0));
        if self.context.code_bits() == 64 {
            vp.set(&[result, rip])
        } else {
            vp.set(&[result, (Register::Rdx, 0), rip])
        }
    }
}
