//! Opening the hypervisor and creating a partition on it.

use mshv_bindings::{
    MSHV_NUM_CPU_FEATURES_BANKS, MSHV_PT_BIT_CPU_AND_XSAVE_FEATURES, MSHV_PT_BIT_GPA_SUPER_PAGES,
    MSHV_PT_BIT_LAPIC, MSHV_PT_BIT_X2APIC, MSHV_PT_ISOLATION_NONE, hv_partition_processor_xsave_features,
    mshv_create_partition_v2,
};
use mshv_ioctls::Mshv;
use parterre_abi::property::{PartitionPropertyCode, SyntheticProcessorFeatures};

use std::sync::Arc;

use crate::memory::GuestMemory;
use crate::{Error, MshvPartition, Result};

/// The device of the parent kernel's driver.
const DEVICE: &str = "/dev/mshv";

/// Synthetic features offered to a guest: what Microsoft's own VMMs give.
const SYNTHETIC_FEATURES: SyntheticProcessorFeatures = SyntheticProcessorFeatures::HYPERVISOR_PRESENT
    .union(SyntheticProcessorFeatures::HV1)
    .union(SyntheticProcessorFeatures::ACCESS_PARTITION_REFERENCE_COUNTER)
    .union(SyntheticProcessorFeatures::ACCESS_SYNIC_REGS)
    .union(SyntheticProcessorFeatures::ACCESS_SYNTHETIC_TIMER_REGS)
    .union(SyntheticProcessorFeatures::ACCESS_INTR_CTRL_REGS)
    .union(SyntheticProcessorFeatures::ACCESS_HYPERCALL_REGS)
    .union(SyntheticProcessorFeatures::ACCESS_VP_INDEX)
    .union(SyntheticProcessorFeatures::ACCESS_PARTITION_REFERENCE_TSC)
    .union(SyntheticProcessorFeatures::ACCESS_GUEST_IDLE_REG)
    .union(SyntheticProcessorFeatures::ACCESS_FREQUENCY_REGS)
    .union(SyntheticProcessorFeatures::FAST_HYPERCALL_OUTPUT)
    .union(SyntheticProcessorFeatures::START_VIRTUAL_PROCESSOR)
    .union(SyntheticProcessorFeatures::DIRECT_SYNTHETIC_TIMERS)
    .union(SyntheticProcessorFeatures::TB_FLUSH_HYPERCALLS)
    .union(SyntheticProcessorFeatures::SYNTHETIC_CLUSTER_IPI)
    .union(SyntheticProcessorFeatures::SIGNAL_EVENTS)
    .union(SyntheticProcessorFeatures::EXTENDED_PROCESSOR_MASKS)
    .union(SyntheticProcessorFeatures::NOTIFY_LONG_SPIN_WAIT)
    .union(SyntheticProcessorFeatures::ACCESS_VP_RUN_TIME_REG)
    .union(SyntheticProcessorFeatures::ACCESS_VP_REGS);

const fn bits(positions: &[u32]) -> u64 {
    let mut mask = 0;
    let mut at = 0;
    while at < positions.len() {
        mask |= 1 << positions[at];
        at += 1;
    }
    mask
}

/// What a partition is to look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionConfig {
    /// Number of virtual processors, 1 to 255.
    pub processors: u8,
}

/// The hypervisor below the parent partition.
pub struct Hypervisor {
    mshv: Mshv,
}

impl Hypervisor {
    /// Opens `/dev/mshv`.
    pub fn open() -> Result<Hypervisor> {
        let mshv = Mshv::new().map_err(|e| match std::io::Error::from(e) {
            e if e.kind() == std::io::ErrorKind::NotFound => Error::NoHypervisor,
            e => Error::Open(e),
        })?;
        Ok(Hypervisor { mshv })
    }

    /// Whether the device exists at all.
    pub fn is_present() -> bool {
        std::path::Path::new(DEVICE).exists()
    }

    /// The two banks of processor features that the hypervisor can give to children
    /// (`HV_PARTITION_PROCESSOR_FEATURES`; a set bit is a feature that is there).
    pub fn processor_features(&self) -> Result<[u64; 2]> {
        let get = |code: PartitionPropertyCode| {
            self.mshv
                .get_host_partition_property(code.0)
                .map_err(Error::call("cannot read the host's processor features"))
        };
        Ok([
            get(PartitionPropertyCode::PROCESSOR_FEATURES0)?,
            get(PartitionPropertyCode::PROCESSOR_FEATURES1)?,
        ])
    }

    /// Reads any property of the parent partition (`HvCallGetPartitionProperty` on itself).
    pub fn host_property(&self, code: u32) -> Result<u64> {
        self.mshv
            .get_host_partition_property(code)
            .map_err(Error::call(format!("cannot read host partition property {code:#x}")))
    }

    /// Creates a partition with its memory mapped and no virtual processor yet.
    pub fn create_partition(&self, memory: Arc<GuestMemory>) -> Result<MshvPartition> {
        let features = self.processor_features()?;
        let arguments = mshv_create_partition_v2 {
            pt_flags: bits(&[
                MSHV_PT_BIT_LAPIC,
                MSHV_PT_BIT_X2APIC,
                MSHV_PT_BIT_GPA_SUPER_PAGES,
                MSHV_PT_BIT_CPU_AND_XSAVE_FEATURES,
            ]),
            pt_isolation: u64::from(MSHV_PT_ISOLATION_NONE),
            pt_num_cpu_fbanks: MSHV_NUM_CPU_FEATURES_BANKS as u16,
            // The driver wants the features that are *disabled*. Reserved bits stay as the hypervisor says.
            pt_cpu_fbanks: [!features[0], !features[1]],
            pt_disabled_xsave: disabled_xsave_features(),
            ..Default::default()
        };
        let vm =
            self.mshv.create_vm_with_args(&arguments).map_err(Error::call("cannot create a partition"))?;
        // Early property: only between creation and initialization.
        vm.set_partition_property(
            PartitionPropertyCode::SYNTHETIC_PROC_FEATURES.0,
            SYNTHETIC_FEATURES.bits(),
        )
        .map_err(Error::call("cannot set the partition's synthetic features"))?;
        vm.initialize().map_err(Error::call("cannot initialize the partition"))?;
        MshvPartition::new(vm, memory)
    }
}

/// XSAVE features that guests do not get: all but XSAVE, XSAVEOPT, compaction, supervisor states, AVX, AVX2, FMA.
fn disabled_xsave_features() -> u64 {
    let mut features = hv_partition_processor_xsave_features { as_uint64: u64::MAX };
    // SAFETY: both members of the union are plain 64-bit data, any bit pattern is valid for either.
    unsafe {
        let bits = &mut features.__bindgen_anon_1;
        bits.set_xsave_support(0);
        bits.set_xsaveopt_support(0);
        bits.set_xsave_comp_support(0);
        bits.set_xsave_supervisor_support(0);
        bits.set_avx_support(0);
        bits.set_avx2_support(0);
        bits.set_fma_support(0);
        features.as_uint64
    }
}
