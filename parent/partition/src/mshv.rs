//! A partition of the real hypervisor.

use std::sync::Arc;

use mshv_bindings::{MSHV_SET_MEM_BIT_EXECUTABLE, MSHV_SET_MEM_BIT_WRITABLE, mshv_user_mem_region};
use mshv_ioctls::{InterruptRequest as MshvInterrupt, VmFd};

use crate::memory::GuestMemory;
use crate::{DeliveryMode, Error, InterruptRequest, MshvVp, Partition, Result};

const PAGE_SHIFT: u32 = 12;

/// A child partition. The hypervisor frees it when this and all of its VPs are dropped.
pub struct MshvPartition {
    vm: VmFd,
    // Keeps the mapped memory alive as long as the partition.
    memory: Arc<GuestMemory>,
}

impl MshvPartition {
    /// Maps the memory into a partition that was just initialized.
    pub(crate) fn new(vm: VmFd, memory: Arc<GuestMemory>) -> Result<MshvPartition> {
        for (range, host) in memory.host_ranges() {
            let region = mshv_user_mem_region {
                size: range.len,
                guest_pfn: range.gpa >> PAGE_SHIFT,
                userspace_addr: host,
                flags: (1 << MSHV_SET_MEM_BIT_WRITABLE) | (1 << MSHV_SET_MEM_BIT_EXECUTABLE),
                ..Default::default()
            };
            vm.map_user_memory(region).map_err(Error::call(format!(
                "cannot map {} MiB of guest memory at {:#x}",
                range.len >> 20,
                range.gpa
            )))?;
        }
        Ok(MshvPartition { vm, memory })
    }

    /// Creates the VP with the given index, which is also its APIC id.
    pub fn create_vp(&self, index: u8) -> Result<MshvVp> {
        let vcpu = self
            .vm
            .create_vcpu(index)
            .map_err(Error::call(format!("cannot create virtual processor {index}")))?;
        Ok(MshvVp::new(u32::from(index), vcpu))
    }

    /// The partition's memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }
}

impl Partition for MshvPartition {
    fn assert_interrupt(&self, request: &InterruptRequest) -> Result<()> {
        let interrupt = MshvInterrupt {
            interrupt_type: interrupt_type(request.mode),
            apic_id: request.destination,
            vector: u32::from(request.vector),
            level_triggered: request.level,
            logical_destination_mode: request.logical,
            long_mode: false,
        };
        self.vm
            .request_virtual_interrupt(&interrupt)
            .map_err(Error::call(format!("cannot assert interrupt {request:?}")))
    }
}

/// The number of a delivery mode in `enum hv_interrupt_type`; equal to the local APIC's encoding.
fn interrupt_type(mode: DeliveryMode) -> u32 {
    match mode {
        DeliveryMode::Fixed => 0,
        DeliveryMode::LowestPriority => 1,
        DeliveryMode::Smi => 2,
        DeliveryMode::Nmi => 4,
        DeliveryMode::Init => 5,
        DeliveryMode::ExtInt => 7,
    }
}
