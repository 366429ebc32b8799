//! A partition of the real hypervisor.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mshv_bindings::{
    HV_INTERCEPT_ACCESS_MASK_EXECUTE, HV_INTERCEPT_ACCESS_MASK_WRITE, MSHV_SET_MEM_BIT_EXECUTABLE,
    MSHV_SET_MEM_BIT_WRITABLE, hv_intercept_parameters, mshv_install_intercept, mshv_user_mem_region,
};
use mshv_ioctls::{InterruptRequest as MshvInterrupt, MshvError, VmFd};
use parterre_abi::hypercall::InterceptType;
use parterre_abi::message::{MESSAGE_PAYLOAD_SIZE, MESSAGE_SIZE};
use parterre_abi::msr::CRASH_CTL;
use parterre_abi::property::PartitionPropertyCode as PropertyCode;
use parterre_abi::status::HvStatus;

use crate::device_memory::DeviceMemory;
use crate::memory::GuestMemory;
use crate::{DeliveryMode, Error, InterruptRequest, MshvVp, Partition, Posted, Result};

const PAGE_SHIFT: u32 = 12;

/// A child partition. The hypervisor frees it when this and all of its VPs are dropped.
pub struct MshvPartition {
    vm: VmFd,
    // Keeps the mapped memory alive as long as the partition.
    memory: Arc<GuestMemory>,
    /// Memory of devices that is mapped, by its address.
    device_memory: Mutex<BTreeMap<u64, Arc<DeviceMemory>>>,
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
        memory.note_mapped();
        // Messages and events of the guest's come as intercepts: the worker is the other end of all of them.
        vm.install_intercept(mshv_install_intercept {
            access_type_mask: HV_INTERCEPT_ACCESS_MASK_EXECUTE,
            intercept_type: InterceptType::UNKNOWN_SYNIC_CONNECTION.0,
            ..Default::default()
        })
        .map_err(Error::call("cannot intercept the messages and events of the guest"))?;
        // That it crashes, a guest tells by a register that is else the hypervisor's own.
        vm.install_intercept(mshv_install_intercept {
            access_type_mask: HV_INTERCEPT_ACCESS_MASK_WRITE,
            intercept_type: InterceptType::X64_MSR_INDEX.0,
            intercept_parameter: hv_intercept_parameters { as_uint64: CRASH_CTL.into() },
        })
        .map_err(Error::call("cannot intercept the crash register of the guest"))?;
        Ok(MshvPartition { vm, memory, device_memory: Mutex::default() })
    }

    /// Creates the VP with the given index, which is also its APIC id.
    pub fn create_vp(&self, index: u8) -> Result<MshvVp> {
        let vcpu = self
            .vm
            .create_vcpu(index)
            .map_err(Error::call(format!("cannot create virtual processor {index}")))?;
        Ok(MshvVp::new(u32::from(index), vcpu))
    }

    fn device_memory(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<DeviceMemory>>> {
        self.device_memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The partition's memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }
}

/// How the driver is told of a device's memory.
fn device_region(gpa: u64, memory: &DeviceMemory) -> mshv_user_mem_region {
    mshv_user_mem_region {
        size: memory.size(),
        guest_pfn: gpa >> PAGE_SHIFT,
        userspace_addr: memory.host_address(),
        flags: 1 << MSHV_SET_MEM_BIT_WRITABLE,
        ..Default::default()
    }
}

impl Partition for MshvPartition {
    fn map_device_memory(&self, gpa: u64, memory: &Arc<DeviceMemory>) -> Result<()> {
        let mut mapped = self.device_memory();
        self.vm
            .map_user_memory(device_region(gpa, memory))
            .map_err(Error::call(format!("cannot map memory of a device at {gpa:#x}")))?;
        mapped.insert(gpa, memory.clone());
        Ok(())
    }

    fn unmap_device_memory(&self, gpa: u64) -> Result<()> {
        let mut mapped = self.device_memory();
        let Some(memory) = mapped.get(&gpa) else { return Ok(()) };
        self.vm
            .unmap_user_memory(device_region(gpa, memory))
            .map_err(Error::call(format!("cannot unmap the memory of a device at {gpa:#x}")))?;
        mapped.remove(&gpa);
        Ok(())
    }

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

    fn post_message(&self, vp: u32, sint: u8, kind: u32, payload: &[u8]) -> Result<Posted> {
        let payload = &payload[..payload.len().min(MESSAGE_PAYLOAD_SIZE)];
        let mut message = [0; MESSAGE_SIZE];
        message[..4].copy_from_slice(&kind.to_ne_bytes());
        message[4] = payload.len() as u8;
        message[MESSAGE_SIZE - MESSAGE_PAYLOAD_SIZE..][..payload.len()].copy_from_slice(payload);
        match self.vm.post_message_direct(vp, sint, &message) {
            Ok(()) => Ok(Posted::Done),
            Err(error) => match status_of(&error) {
                Some(HvStatus::OBJECT_IN_USE) => Ok(Posted::Full),
                Some(HvStatus::INVALID_SYNIC_STATE) => Ok(Posted::NobodyListens),
                _ => {
                    Err(Error::call(format!("cannot post a message to SINT {sint} of processor {vp}"))(error))
                }
            },
        }
    }

    fn signal_event(&self, vp: u32, sint: u8, flag: u16) -> Result<()> {
        match self.vm.signal_event_direct(vp, sint, flag) {
            Ok(_) => Ok(()),
            Err(error) if status_of(&error) == Some(HvStatus::INVALID_SYNIC_STATE) => Ok(()),
            Err(error) => Err(Error::call(format!(
                "cannot signal event {flag} at SINT {sint} of processor {vp}"
            ))(error)),
        }
    }

    fn notify_deliverable(&self, vp: u32, sints: u16) -> Result<()> {
        // The SINTs are the high 16 bits of the register.
        self.vm
            .register_deliverabilty_notifications(vp, u64::from(sints) << 48)
            .map_err(Error::call(format!("cannot wait for a free message slot of processor {vp}")))
    }

    fn reference_time(&self) -> Result<u64> {
        self.vm
            .get_partition_property(PropertyCode::REFERENCE_TIME.0)
            .map_err(Error::call("cannot read the guest's reference time"))
    }

    fn freeze_time(&self, frozen: bool) -> Result<()> {
        self.vm
            .set_partition_property(PropertyCode::TIME_FREEZE.0, frozen.into())
            .map_err(Error::call("cannot stop or start the guest's reference time"))
    }
}

/// The hypervisor's own answer in an error of a call.
fn status_of(error: &MshvError) -> Option<HvStatus> {
    match error {
        MshvError::Hypercall { status_raw, .. } => Some(HvStatus(*status_raw)),
        _ => None,
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
