//! Doorbells: a child's write to an address that becomes an entry in the parent's event ring, without an exit to it (Linux
//! `mshv_eventfd.c`, `mshv_synic.c`). Ports of other kinds come with VMBus.

use super::Call;
use crate::{hypervisor::Hypervisor, machine::Machine};
use parterre_abi::{
    hypercall::{
        ConnectPortInput, CreatePortInput, DeletePortInput, DisconnectPortInput, NotifyPortRingEmptyInput,
    },
    status::{HvResult, HvStatus},
    synic::{ConnectionInfo, PortType},
    types::PartitionId,
};

/// The ports of the parent, in places that the machine layer supplies.
pub(crate) struct Ports(pub &'static mut [Option<Port>]);

/// A port of the parent, and the connection to it.
pub struct Port {
    id: u32,
    sint: usize,
    /// The child that may connect.
    child: PartitionId,
    connection: Option<Connection>,
    /// It rang while the ring was full.
    missed: bool,
}

struct Connection {
    id: u32,
    info: ConnectionInfo,
}

/// A doorbell that has rung.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doorbell {
    port: u32,
    sint: usize,
}

impl Ports {
    /// Whether a write to `gpa` of this child may ring a doorbell.
    pub fn has_doorbell(&self, child: PartitionId, gpa: u64) -> bool {
        self.connections(child).any(|(_, connection)| connection.info.gpa == gpa)
    }

    /// The doorbell that a write of `size` bytes with `value` rings.
    pub fn ring(&self, child: PartitionId, gpa: u64, size: u8, value: u64) -> Option<Doorbell> {
        let (port, _) = self.connections(child).find(|(_, connection)| {
            let info = connection.info;
            info.gpa == gpa
                && matches!(info.trigger_size(), Some(wanted) if wanted.is_none_or(|wanted| wanted == size))
                && (info.triggers_on_any_value() || info.trigger_value == value)
        })?;
        Some(Doorbell { port: port.id, sint: port.sint })
    }

    fn connections(&self, child: PartitionId) -> impl Iterator<Item = (&Port, &Connection)> {
        let of_child = self.0.iter().flatten().filter(move |port| port.child == child);
        of_child.filter_map(|port| port.connection.as_ref().map(|connection| (port, connection)))
    }

    /// Ends the connections of a child that ends.
    pub fn disconnect_all(&mut self, child: PartitionId) {
        for port in self.0.iter_mut().flatten().filter(|port| port.child == child) {
            port.connection = None;
        }
    }
}

/// Puts a doorbell into the event ring of a processor that takes it, this one if it does.
pub(crate) fn ring<M: Machine>(hv: &Hypervisor<M>, lp: usize, doorbell: Doorbell) {
    let here = hv.processors.get(lp).filter(|here| here.takes_doorbells(doorbell.sint));
    let target = here.or_else(|| hv.processors.iter().find(|other| other.takes_doorbells(doorbell.sint)));
    let rung = target.is_some_and(|target| target.ring(&hv.machine, doorbell.sint, doorbell.port));
    if !rung && let Some(port) = hv.ports.lock().0.iter_mut().flatten().find(|port| port.id == doorbell.port)
    {
        port.missed = true;
    }
}

/// Only the parent has ports.
fn of_parent<M: Machine>(partition: PartitionId) -> HvResult<()> {
    if Hypervisor::<M>::is_parent(partition) { Ok(()) } else { Err(HvStatus::INVALID_PARTITION_ID) }
}

/// `HvCallCreatePort`.
pub(super) fn create<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: CreatePortInput = call.header()?;
    let sint = usize::try_from(input.port_info.target_sint).ok().filter(|sint| *sint < 16);
    let sint = sint.ok_or(HvStatus::INVALID_PARAMETER)?;
    if input.port_info.port_type != PortType::DOORBELL {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    of_parent::<M>(input.port_partition_id)?;
    // An entry of 0 means an empty place in the ring.
    if input.port_id == 0 || input.port_id >> 24 != 0 {
        return Err(HvStatus::INVALID_PORT_ID);
    }
    let child = hv.child(input.connection_partition_id)?.id;
    let mut ports = hv.ports.lock();
    if ports.0.iter().flatten().any(|port| port.id == input.port_id) {
        return Err(HvStatus::INVALID_PORT_ID);
    }
    let place = ports.0.iter_mut().find(|place| place.is_none()).ok_or(HvStatus::INSUFFICIENT_BUFFERS)?;
    *place = Some(Port { id: input.port_id, sint, child, connection: None, missed: false });
    Ok(())
}

/// `HvCallDeletePort`.
pub(super) fn delete<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: DeletePortInput = call.header()?;
    of_parent::<M>(input.port_partition_id)?;
    let mut ports = hv.ports.lock();
    let place = ports.0.iter_mut().find(|place| place.as_ref().is_some_and(|port| port.id == input.port_id));
    *place.ok_or(HvStatus::INVALID_PORT_ID)? = None;
    Ok(())
}

/// `HvCallConnectPort`.
pub(super) fn connect<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: ConnectPortInput = call.header()?;
    let info = input.connection_info;
    if info.port_type != PortType::DOORBELL || info.trigger_size().is_none() {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let child = hv.child(input.connection_partition_id)?.id;
    of_parent::<M>(input.port_partition_id)?;
    let mut ports = hv.ports.lock();
    if ports.connections(child).any(|(_, connection)| connection.id == input.connection_id) {
        return Err(HvStatus::INVALID_CONNECTION_ID);
    }
    let port = ports.0.iter_mut().flatten().find(|port| port.id == input.port_id && port.child == child);
    let port = port.filter(|port| port.connection.is_none()).ok_or(HvStatus::INVALID_PORT_ID)?;
    port.connection = Some(Connection { id: input.connection_id, info });
    Ok(())
}

/// `HvCallDisconnectPort`.
pub(super) fn disconnect<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: DisconnectPortInput = call.header()?;
    hv.child(input.connection_partition_id)?;
    let mut ports = hv.ports.lock();
    let port = ports.0.iter_mut().flatten().find(|port| {
        port.child == input.connection_partition_id
            && port.connection.as_ref().is_some_and(|connection| connection.id == input.connection_id)
    });
    port.ok_or(HvStatus::INVALID_CONNECTION_ID)?.connection = None;
    Ok(())
}

/// `HvCallNotifyPortRingEmpty`: the parent has emptied its ring; what did not fit is rung again.
pub(super) fn ring_empty<M: Machine>(hv: &Hypervisor<M>, lp: usize, call: &Call<'_>) -> HvResult<()> {
    let input: NotifyPortRingEmptyInput = call.header()?;
    let next = || {
        let mut ports = hv.ports.lock();
        let port = ports
            .0
            .iter_mut()
            .flatten()
            .find(|port| port.missed && port.sint == input.sint_index as usize)?;
        port.missed = false;
        Some(Doorbell { port: port.id, sint: port.sint })
    };
    // Each at most once, lest a ring that is full again keeps the caller here.
    let most = hv.ports.lock().0.len();
    for _ in 0..most {
        let Some(doorbell) = next() else { break };
        ring(hv, lp, doorbell);
        if hv.ports.lock().0.iter().flatten().any(|port| port.id == doorbell.port && port.missed) {
            break;
        }
    }
    Ok(())
}
