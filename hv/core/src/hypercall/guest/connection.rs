//! `HvCallPostMessage` and `HvCallSignalEvent` of children (TLFS "Inter-Partition Communication").
//!
//! No port of a message or event kind can be created: the only partition that could receive is the parent, whose kernel
//! takes nothing but doorbells. So every connection is one that the hypervisor does not know, and the call goes to the
//! parent if it has asked for such calls. What is wrong with a call by itself is answered here.

use super::{Call, Child, intercepts};
use crate::machine::Machine;
use parterre_abi::{
    hypercall::{ID_MASK, InterceptType, PostMessageInput, SignalEventInput},
    message::{MESSAGE_PAYLOAD_SIZE, MessageType},
    status::{HvResult, HvStatus},
};

/// The fixed part of [`PostMessageInput`]: connection, a reserved word, message type, size of the payload.
const HEADER: usize = core::mem::offset_of!(PostMessageInput, payload);

/// `HvCallPostMessage`: success means that the parent answers.
pub(super) fn post_message<M: Machine>(child: &Child<M>, call: &Call<'_>) -> HvResult<()> {
    call.expect_simple()?;
    let mut header = [0; HEADER];
    call.copy_input(0, &mut header)?;
    let [connection, _, kind, size] = words(header);
    if !MessageType(kind).can_be_posted() || size as usize > MESSAGE_PAYLOAD_SIZE {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    // The payload must be there, though only the parent reads it.
    let mut payload = [0; MESSAGE_PAYLOAD_SIZE];
    call.copy_input(HEADER, &mut payload[..size as usize])?;
    of_parent(child, connection)
}

/// `HvCallSignalEvent`: success means that the parent answers.
pub(super) fn signal_event<M: Machine>(child: &Child<M>, call: &Call<'_>) -> HvResult<()> {
    call.expect_simple()?;
    let input: SignalEventInput = call.header()?;
    if input.reserved != 0 {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    of_parent(child, input.connection_id)
}

fn of_parent<M: Machine>(child: &Child<M>, connection: u32) -> HvResult<()> {
    let known = connection & !ID_MASK == 0 && intercepts(child, InterceptType::UNKNOWN_SYNIC_CONNECTION);
    if known { Ok(()) } else { Err(HvStatus::INVALID_CONNECTION_ID) }
}

fn words(bytes: [u8; HEADER]) -> [u32; HEADER / 4] {
    zerocopy::transmute!(bytes)
}
